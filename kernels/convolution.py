"""Convolutions in two dimensions as matrix products, whose left operand is never in memory."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from optc.kernels.base import Kernel


@triton.jit
def convolution(
    args,
    BATCH,
    IN_C,
    H,
    W,
    OUT_C,
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
    GROUPS: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Implicit GEMM (Chetlur et al. 2014): rows are output pixels, columns output channels, and what is summed over
    are the places of the window and, within one, the channels.

    IN_C and OUT_C are channels of one of GROUPS groups. A program computes BLOCK_M pixels by BLOCK_N channels; tiles
    are visited as in :func:`optc.kernels.matmul.matmul`. A step takes BLOCK_K channels at one place of the window; if
    PACKED, BLOCK_K of all places and channels together, so that few channels (an image's three) do not leave most of a
    step empty.

    LOAD_X(args, n, c, h, w, mask) and LOAD_W(args, o, c, kh, kw, mask) return tiles of (pixels, BLOCK_K) and
    (BLOCK_K, channels) of one dtype, 0 where the mask is not set: that is what pads. ``c`` counts all input channels in
    LOAD_X, those of a group in LOAD_W; ``o`` counts all output channels. STORE(args, n, o, oh, ow, acc, mask) gets
    float32.
    """
    tile = tl.program_id(0)
    group = tl.program_id(1)
    pixels = BATCH * OUT_H * OUT_W
    tiles_m = tl.cdiv(pixels, BLOCK_M)
    tiles_n = tl.cdiv(OUT_C, BLOCK_N)
    in_group = GROUP_M * tiles_n
    first = (tile // in_group) * GROUP_M
    rows = min(tiles_m - first, GROUP_M)
    m = ((first + (tile % in_group) % rows) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    o = (((tile % in_group) // rows) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    ow = m % OUT_W
    oh = m // OUT_W % OUT_H
    n = m // (OUT_W * OUT_H)
    top = oh * STRIDE_H - PAD_TOP
    left = ow * STRIDE_W - PAD_LEFT

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    tiles_c = tl.cdiv(IN_C, BLOCK_K)
    for step in range(0, tl.cdiv(KH * KW * IN_C, BLOCK_K) if PACKED else KH * KW * tiles_c):
        if PACKED:
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            place = k // IN_C
            c = k % IN_C
            inside = place < KH * KW
            kh, kw = (place // KW)[None, :], (place % KW)[None, :]
            weight_kh, weight_kw = (place // KW)[:, None], (place % KW)[:, None]
        else:
            place = step // tiles_c
            c = step % tiles_c * BLOCK_K + tl.arange(0, BLOCK_K)
            inside = c < IN_C
            kh, kw = place // KW, place % KW
            weight_kh, weight_kw = kh, kw
        h = top + kh * DILATION_H
        w = left + kw * DILATION_W
        there = (m < pixels) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        x = LOAD_X(args, n, group * IN_C + c[None, :], h, w, there & inside[None, :])
        weight = LOAD_W(args, group * OUT_C + o, c[:, None], weight_kh, weight_kw, inside[:, None] & (o < OUT_C))
        acc = tl.dot(x, weight, acc, input_precision=PRECISION)
    STORE(args, n, group * OUT_C + o, oh, ow, acc, (m < pixels) & (o < OUT_C))


def reference(
    x: np.ndarray,
    w: np.ndarray,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """Convolution in float32.

    Args:
        x: (BATCH, GROUPS * IN_C, H, W).
        w: (GROUPS * OUT_C, IN_C, KH, KW).
        strides: Down and across.
        pads: Top, left, bottom, right.
        dilations: Down and across.
        groups: Groups of channels.

    Returns:
        (BATCH, GROUPS * OUT_C, OUT_H, OUT_W), float32.
    """
    x, w = x.astype(np.float32), w.astype(np.float32)
    out_c, in_c, kh, kw = w.shape
    x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    span = [dilations[0] * (kh - 1) + 1, dilations[1] * (kw - 1) + 1]
    windows = np.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    windows = windows.reshape(x.shape[0], groups, in_c, *windows.shape[2:])
    found = np.einsum("ngchwij,gocij->ngohw", windows, w.reshape(groups, out_c // groups, in_c, kh, kw))
    return np.asarray(found.reshape(x.shape[0], out_c, *windows.shape[3:5]), np.float32)


CONVOLUTION = Kernel(
    name="convolution",
    function=convolution,
    grid=("ceildiv(BATCH * OUT_H * OUT_W, BLOCK_M) * ceildiv(OUT_C, BLOCK_N)", "GROUPS"),
    sizes=("BATCH", "IN_C", "H", "W", "OUT_C", "OUT_H", "OUT_W"),
    hooks={
        "LOAD_X": ("n", "c", "h", "w"),
        "LOAD_W": ("o", "c", "kh", "kw"),
        "STORE": ("n", "o", "oh", "ow"),
    },
    constants={
        "KH": None,
        "KW": None,
        "STRIDE_H": 1,
        "STRIDE_W": 1,
        "PAD_TOP": 0,
        "PAD_LEFT": 0,
        "DILATION_H": 1,
        "DILATION_W": 1,
        "GROUPS": 1,
        "PACKED": False,
        "BLOCK_M": None,
        "BLOCK_N": None,
        "BLOCK_K": None,
        "GROUP_M": 8,
        "PRECISION": "tf32",
    },
    reference=reference,
)
