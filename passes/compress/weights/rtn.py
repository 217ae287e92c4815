"""Round to nearest, with the range of each block taken from its extremes or searched for the least squared error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optc.passes.compress.weights.codes import Codes, Grid, in_blocks, vector_in_blocks
from optc.passes.compress.weights.fit import EXTREMES, encode, fit


def rtn(
    weight: np.ndarray, grid: Grid, importance: np.ndarray | None = None, shares: Sequence[float] = EXTREMES
) -> Codes:
    """Quantize ``weight`` (N, K) on its own.

    Args:
        weight: (N, K), finite.
        grid: Bits, blocks and zero points.
        importance: Of each input channel, (K,): the mean of its square, say. Only a search looks at it.
        shares: Shares of a block's range to try, see :mod:`optc.passes.compress.weights.fit`.
    """
    blocks = in_blocks(weight, grid.block)
    scale, zero = fit(blocks, grid, vector_in_blocks(importance, grid.block), shares)
    return pack_up(encode(blocks, scale, zero, grid), scale, zero, grid, weight.shape[1])


def pack_up(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, grid: Grid, columns: int) -> Codes:
    """Codes (N, blocks, width) in float32, with what belongs to them, in the types in which they are kept."""
    if zero is not None:
        zero = zero.astype(np.uint8 if grid.zeros == "integer" else np.float32)
    return Codes(codes.astype(np.uint8), scale.astype(np.float32), zero, grid.bits, columns)
