"""Convolutions of groups of few channels, computed directly: there is too little to sum up for a matrix product."""

from __future__ import annotations

import triton
import triton.language as tl

from optc.kernels.base import Kernel
from optc.kernels.convolution import reference
from optc.kernels.pixels import GRID, tile_of_pixels

#: Places of a window up to which it is unrolled; beyond, only its rows are: too many loads at a time spill registers.
_UNROLLED = tl.constexpr(9)


@triton.jit
def depthwise(
    args,
    BATCH,
    CHANNELS,
    H,
    W,
    OUT_H,
    OUT_W,
    LOAD_X: tl.constexpr,
    LOAD_W: tl.constexpr,
    STORE: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    IN_PER_GROUP: tl.constexpr,
    OUT_PER_GROUP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A convolution to CHANNELS channels in groups of IN_PER_GROUP to OUT_PER_GROUP channels (Chollet 2017: 1 to 1).

    A program computes BLOCK_P pixels by BLOCK_C channels. LOAD_X(args, n, c, h, w, mask)
    returns (BLOCK_P, BLOCK_C), 0 where the mask is not set: that is what pads; ``c`` counts all input channels.
    LOAD_W(args, o, c, kh, kw, mask) returns (1, BLOCK_C); ``c`` counts the channels of a group. STORE(args, n, o, oh,
    ow, acc, mask) gets float32.
    """
    n, oh, ow, o, mask = tile_of_pixels(BATCH, CHANNELS, OUT_H, OUT_W, BLOCK_P, BLOCK_C)
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    top = oh * STRIDE_H - PAD_TOP
    left = ow * STRIDE_W - PAD_LEFT
    if KH * KW <= _UNROLLED:
        for kh in tl.static_range(KH):
            acc = _add_row(
                args, n, o, top + kh * DILATION_H, left, kh, mask, acc, CHANNELS, H, W, LOAD_X, LOAD_W, KW,
                DILATION_W, IN_PER_GROUP, OUT_PER_GROUP,
            )  # fmt: skip
    else:
        for kh in range(0, KH):
            acc = _add_row(
                args, n, o, top + kh * DILATION_H, left, kh, mask, acc, CHANNELS, H, W, LOAD_X, LOAD_W, KW,
                DILATION_W, IN_PER_GROUP, OUT_PER_GROUP,
            )  # fmt: skip
    STORE(args, n, o, oh, ow, acc, mask)


@triton.jit
def _add_row(
    args,
    n,
    o,
    h,
    left,
    kh,
    mask,
    acc,
    CHANNELS,
    H,
    W,
    LOAD_X: tl.constexpr,
    LOAD_W: tl.constexpr,
    KW: tl.constexpr,
    DILATION_W: tl.constexpr,
    IN_PER_GROUP: tl.constexpr,
    OUT_PER_GROUP: tl.constexpr,
):
    """The sum so far with one row of the window."""
    for kw in tl.static_range(KW):
        w = left + kw * DILATION_W
        there = mask & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        for c in tl.static_range(IN_PER_GROUP):
            x = LOAD_X(args, n, o // OUT_PER_GROUP * IN_PER_GROUP + c, h, w, there)
            acc += x.to(tl.float32) * LOAD_W(args, o, c, kh, kw, o < CHANNELS).to(tl.float32)
    return acc


DEPTHWISE = Kernel(
    name="depthwise",
    function=depthwise,
    grid=GRID,
    sizes=("BATCH", "CHANNELS", "H", "W", "OUT_H", "OUT_W"),
    hooks={"LOAD_X": ("n", "c", "h", "w"), "LOAD_W": ("o", "c", "kh", "kw"), "STORE": ("n", "o", "oh", "ow")},
    constants={
        "KH": None,
        "KW": None,
        "STRIDE_H": 1,
        "STRIDE_W": 1,
        "PAD_TOP": 0,
        "PAD_LEFT": 0,
        "DILATION_H": 1,
        "DILATION_W": 1,
        "IN_PER_GROUP": 1,
        "OUT_PER_GROUP": 1,
        "BLOCK_P": None,
        "BLOCK_C": None,
    },
    reference=reference,
)
