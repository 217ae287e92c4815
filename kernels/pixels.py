"""What kernels over the pixels of channels share: which pixels and channels a program has."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of_pixels(BATCH, CHANNELS, OUT_H, OUT_W, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """A program's tile of BLOCK_P output pixels by BLOCK_C channels, with the channels of a pixel side by side.

    Returns:
        The pixels' place in the batch, row and column as (BLOCK_P, 1), the channels as (1, BLOCK_C), and what is there
        of the tile.
    """
    tiles = tl.cdiv(CHANNELS, BLOCK_C)
    pixel = (tl.program_id(0) // tiles * BLOCK_P + tl.arange(0, BLOCK_P))[:, None]
    c = (tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    mask = (pixel < BATCH * OUT_H * OUT_W) & (c < CHANNELS)
    return pixel // (OUT_W * OUT_H), pixel // OUT_W % OUT_H, pixel % OUT_W, c, mask


#: The grid of kernels that take such tiles, one per program.
GRID = ("ceildiv(BATCH * OUT_H * OUT_W, BLOCK_P) * ceildiv(CHANNELS, BLOCK_C)",)
