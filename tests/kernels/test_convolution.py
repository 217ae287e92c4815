"""Convolutions against NumPy, and as compiled."""

from __future__ import annotations

import numpy as np
import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from optc.kernels.base import Specialization  # noqa: E402
from optc.kernels.convolution import CONVOLUTION, reference  # noqa: E402

from .harness import ARCHITECTURES, assert_close, build, drawn, interpret, unwritten  # noqa: E402

# args: x, w, out, bias, residual, C, H, W, O, OUT_H, OUT_W, IN_C, KH, KW


@triton.jit
def load_x(args, n, c, h, w, mask):
    return tl.load(args[0] + ((n * args[5] + c) * args[6] + h) * args[7] + w, mask=mask, other=0.0)


@triton.jit
def load_x_channels_last(args, n, c, h, w, mask):
    return tl.load(args[0] + ((n * args[6] + h) * args[7] + w) * args[5] + c, mask=mask, other=0.0)


@triton.jit
def load_w(args, o, c, kh, kw, mask):
    return tl.load(args[1] + ((o * args[11] + c) * args[12] + kh) * args[13] + kw, mask=mask, other=0.0)


@triton.jit
def store(args, n, o, oh, ow, acc, mask):
    place = ((n * args[8] + o) * args[9] + oh) * args[10] + ow
    tl.store(args[2] + place, acc.to(args[2].dtype.element_ty), mask=mask)


@triton.jit
def store_fused_channels_last(args, n, o, oh, ow, acc, mask):
    """Bias, residual and activation, channels last."""
    place = ((n * args[9] + oh) * args[10] + ow) * args[8] + o
    bias = tl.load(args[3] + o, mask=o < args[8], other=0.0).to(tl.float32)
    residual = tl.load(args[4] + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(args[2] + place, tl.maximum(acc + bias + residual, 0.0).to(args[2].dtype.element_ty), mask=mask)


def extents(x, w, strides, pads, dilations):
    """Sizes of the output."""
    span = [dilations[i] * (w.shape[2 + i] - 1) + 1 for i in (0, 1)]
    return [(x.shape[2 + i] + pads[i] + pads[2 + i] - span[i]) // strides[i] + 1 for i in (0, 1)]


def convolve(
    x, w, dtype, strides=(1, 1), pads=(0,) * 4, dilations=(1, 1), groups=1, static=True, fused=(), **constants
):
    """A convolution by the kernel; ``fused``: bias and residual, and then everything has its channels last."""
    batch, channels, height, width = x.shape
    out_c, in_c, kh, kw = w.shape
    out_h, out_w = extents(x, w, strides, pads, dilations)
    out = unwritten((batch, out_h, out_w, out_c) if fused else (batch, out_c, out_h, out_w), dtype)
    sizes = {"BATCH": batch, "IN_C": in_c, "H": height, "W": width}
    sizes |= {"OUT_C": out_c // groups, "OUT_H": out_h, "OUT_W": out_w}
    window = {"KH": kh, "KW": kw, "STRIDE_H": strides[0], "STRIDE_W": strides[1], "PAD_TOP": pads[0]}
    window |= {"PAD_LEFT": pads[1], "DILATION_H": dilations[0], "DILATION_W": dilations[1], "GROUPS": groups}
    tile = {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 16, "PRECISION": "ieee"}
    hooks = {"LOAD_X": load_x, "LOAD_W": load_w, "STORE": store}
    if fused:
        hooks |= {"LOAD_X": load_x_channels_last, "STORE": store_fused_channels_last}
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    spec = Specialization(
        CONVOLUTION,
        (f"*{dtype}",) * 5 + ("i32",) * 9,
        sizes if static else dict.fromkeys(sizes),
        hooks,
        window | tile | constants,
    )
    data = (x, w, out, *(fused or (x, x)), channels, height, width, out_c, out_h, out_w, in_c, kh, kw)
    interpret(spec, *data, **({} if static else sizes))
    return out


#: (batch, channels, height, width), (out channels, in channels of a group, window), strides, pads, dilations, groups
CASES = [
    ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 5, 7, 9), (19, 5, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((1, 3, 15, 13), (8, 3, 7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    ((1, 20, 6, 5), (17, 20, 1, 1), (2, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 6, 9, 8), (10, 3, 3, 2), (1, 2), (0, 1, 2, 0), (2, 3), 2),
    ((0, 4, 5, 5), (4, 4, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((1, 33, 1, 11), (7, 33, 1, 4), (1, 1), (0, 3, 0, 0), (1, 1), 1),
]


@pytest.mark.parametrize(("dtype", "static"), [("fp32", True), ("fp32", False), ("fp16", True), ("bf16", False)])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["places", "packed"])
def test_convolutions(case, dtype, static, packed):
    shape, weights, strides, pads, dilations, groups = case
    x, w = drawn(shape, dtype), drawn(weights, dtype, 1)
    out = convolve(x, w, dtype, strides, pads, dilations, groups, static, PACKED=packed)
    assert_close(out, reference(x, w, strides, pads, dilations, groups), dtype, 2)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_channels_last_with_an_epilogue(dtype):
    x, w = drawn((2, 17, 6, 7), dtype), drawn((18, 17, 3, 3), dtype, 1)
    bias, residual = drawn((18,), dtype, 2), drawn((2, 6, 7, 18), dtype, 3)
    out = convolve(x, w, dtype, pads=(1, 1, 1, 1), fused=(bias, residual))
    wanted = reference(x, w, pads=(1, 1, 1, 1)).transpose(0, 2, 3, 1) + bias.astype(np.float32)
    assert_close(out, np.maximum(wanted + residual.astype(np.float32), 0), dtype)


# As a plan has them, channels last, with strides as literals: args are x, w, out, bias.


@triton.jit
def load_x_56(args, n, c, h, w, mask):
    return tl.load(args[0] + ((n * 56 + h) * 56 + w) * 64 + c, mask=mask, other=0.0)


@triton.jit
def load_w_64(args, o, c, kh, kw, mask):
    return tl.load(args[1] + ((kh * 3 + kw) * 64 + c) * 64 + o, mask=mask, other=0.0)


@triton.jit
def store_56(args, n, o, oh, ow, acc, mask):
    bias = tl.load(args[3] + o, mask=o < 64, other=0.0).to(tl.float32)
    place = ((n * 56 + oh) * 56 + ow) * 64 + o
    tl.store(args[2] + place, tl.maximum(acc + bias, 0.0).to(args[2].dtype.element_ty), mask=mask)


@triton.jit
def load_image(args, n, c, h, w, mask):
    return tl.load(args[0] + ((n * 224 + h) * 224 + w) * 3 + c, mask=mask, other=0.0)


@triton.jit
def load_stem(args, o, c, kh, kw, mask):
    return tl.load(args[1] + ((kh * 7 + kw) * 3 + c) * 64 + o, mask=mask, other=0.0)


@triton.jit
def store_112(args, n, o, oh, ow, acc, mask):
    place = ((n * 112 + oh) * 112 + ow) * 64 + o
    tl.store(args[2] + place, acc.to(args[2].dtype.element_ty), mask=mask)


def compiled(arch, dtype, tile, warps, stages, stem=False):
    names = ("BATCH", "IN_C", "H", "W", "OUT_C", "OUT_H", "OUT_W")
    sizes = dict(zip(names, (None, 3, 224, 224, 64, 112, 112) if stem else (None, 64, 56, 56, 64, 56, 56), strict=True))
    hooks = {"LOAD_X": load_x_56, "LOAD_W": load_w_64, "STORE": store_56}
    window = {"KH": 3, "KW": 3, "PAD_TOP": 1, "PAD_LEFT": 1}
    if stem:
        hooks = {"LOAD_X": load_image, "LOAD_W": load_stem, "STORE": store_112}
        window = {"KH": 7, "KW": 7, "PAD_TOP": 3, "PAD_LEFT": 3, "STRIDE_H": 2, "STRIDE_W": 2, "PACKED": True}
    blocks = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), tile, strict=True))
    spec = Specialization(CONVOLUTION, (f"*{dtype}",) * 4, sizes, hooks, window | blocks, warps, stages)
    made = build(spec, arch)
    assert made.resources.instructions["mma"] > 0, "no tensor cores"
    return made


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_compiled(arch, dtype):
    made = compiled(arch, dtype, (128, 64, 64), 4, 3)
    assert made.resources.instructions["async_copy"] > 0, "operands are not copied ahead of time"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiled_for_an_image(arch):
    compiled(arch, "fp16", (128, 64, 32), 4, 2, stem=True)
