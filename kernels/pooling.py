"""The largest element or the average of windows of pixels. Of whole images, they are reductions of rows."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from optc.kernels.base import Kernel
from optc.kernels.pixels import GRID, tile_of_pixels

_INF = tl.constexpr(float("inf"))
#: Places of a window up to which it is unrolled.
_UNROLLED = tl.constexpr(49)


@triton.jit
def pool(
    args,
    BATCH,
    CHANNELS,
    H,
    W,
    OUT_H,
    OUT_W,
    LOAD: tl.constexpr,
    STORE: tl.constexpr,
    KIND: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    PAD_BOTTOM: tl.constexpr,
    PAD_RIGHT: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    COUNT_INCLUDE_PAD: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """KIND "max" or "average" of the elements of a window that lie in the image.

    An average is over these elements; with COUNT_INCLUDE_PAD the padding counts as zeros, but not what a last window
    has beyond it (as ONNX's ceil_mode allows). A program computes BLOCK_P pixels by BLOCK_C channels.
    LOAD(args, n, c, h, w, mask) returns (BLOCK_P, BLOCK_C) of any type that float32 holds, anything where the mask is
    not set. STORE(args, n, c, oh, ow, value, mask) gets float32. A NaN wins; a window with nothing in it has the
    largest element -inf and the average 0.
    """
    n, oh, ow, c, mask = tile_of_pixels(BATCH, CHANNELS, OUT_H, OUT_W, BLOCK_P, BLOCK_C)
    acc = tl.full((BLOCK_P, BLOCK_C), -_INF if KIND == "max" else 0.0, tl.float32)
    top = oh * STRIDE_H - PAD_TOP
    left = ow * STRIDE_W - PAD_LEFT
    if KH * KW <= _UNROLLED:
        for place in tl.static_range(KH * KW):
            h, w = top + place // KW * DILATION_H, left + place % KW * DILATION_W
            acc = _taken(args, n, c, h, w, H, W, mask, acc, LOAD, KIND)
    else:
        for place in range(0, KH * KW):
            h, w = top + place // KW * DILATION_H, left + place % KW * DILATION_W
            acc = _taken(args, n, c, h, w, H, W, mask, acc, LOAD, KIND)
    if KIND == "average":
        if COUNT_INCLUDE_PAD:
            tall = _count(top, KH, DILATION_H, -PAD_TOP, H + PAD_BOTTOM)
            wide = _count(left, KW, DILATION_W, -PAD_LEFT, W + PAD_RIGHT)
        else:
            tall = _count(top, KH, DILATION_H, 0, H)
            wide = _count(left, KW, DILATION_W, 0, W)
        acc = acc / tl.maximum(tall * wide, 1).to(tl.float32)
    STORE(args, n, c, oh, ow, acc, mask)


@triton.jit
def _taken(args, n, c, h, w, H, W, mask, acc, LOAD: tl.constexpr, KIND: tl.constexpr):
    """The largest element so far, or the sum, with those at ``h``, ``w``."""
    there = mask & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    x = LOAD(args, n, c, h, w, there).to(tl.float32)
    if KIND == "max":
        return tl.maximum(acc, tl.where(there, x, -_INF), propagate_nan=tl.PropagateNan.ALL)
    else:
        return acc + tl.where(there, x, 0.0)


@triton.jit
def _count(start, SIZE: tl.constexpr, DILATION: tl.constexpr, low, high):
    """How many of the SIZE places from ``start`` on, DILATION apart, lie in [low, high)."""
    before = tl.maximum((low - start + DILATION - 1) // DILATION, 0)
    until = tl.minimum((tl.maximum(high - start, 0) + DILATION - 1) // DILATION, SIZE)
    return tl.maximum(until - before, 0)


def reference(
    x: np.ndarray,
    kind: str,
    window: tuple[int, int],
    out: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    count_include_pad: bool = False,
) -> np.ndarray:
    """Pooling in float32.

    Args:
        x: (BATCH, CHANNELS, H, W).
        kind: "max" or "average".
        window: Height and width of the window.
        out: Height and width of the output; with ceil_mode a last window may end beyond the padding.
        strides: Down and across.
        pads: Top, left, bottom, right.
        dilations: Down and across.
        count_include_pad: Whether padding counts in an average.

    Returns:
        (BATCH, CHANNELS, OUT_H, OUT_W), float32.
    """
    x = x.astype(np.float32)
    found = np.zeros((*x.shape[:2], *out), np.float32)
    for oh, ow in np.ndindex(out):
        rows = oh * strides[0] - pads[0] + np.arange(window[0]) * dilations[0]
        columns = ow * strides[1] - pads[1] + np.arange(window[1]) * dilations[1]
        inside = rows[(rows >= 0) & (rows < x.shape[2])], columns[(columns >= 0) & (columns < x.shape[3])]
        part = x[:, :, inside[0][:, None], inside[1]]
        count = part.shape[2] * part.shape[3]
        if count_include_pad:
            count = int(np.sum(rows < x.shape[2] + pads[2])) * int(np.sum(columns < x.shape[3] + pads[3]))
        if kind == "max":
            found[:, :, oh, ow] = part.max(axis=(2, 3), initial=-np.inf)
        else:
            found[:, :, oh, ow] = part.sum(axis=(2, 3)) / max(count, 1)
    return found


POOL = Kernel(
    name="pool",
    function=pool,
    grid=GRID,
    sizes=("BATCH", "CHANNELS", "H", "W", "OUT_H", "OUT_W"),
    hooks={"LOAD": ("n", "c", "h", "w"), "STORE": ("n", "c", "oh", "ow")},
    constants={
        "KIND": None,
        "KH": None,
        "KW": None,
        "STRIDE_H": 1,
        "STRIDE_W": 1,
        "PAD_TOP": 0,
        "PAD_LEFT": 0,
        "PAD_BOTTOM": 0,
        "PAD_RIGHT": 0,
        "DILATION_H": 1,
        "DILATION_W": 1,
        "COUNT_INCLUDE_PAD": False,
        "BLOCK_P": None,
        "BLOCK_C": None,
    },
    reference=reference,
)
