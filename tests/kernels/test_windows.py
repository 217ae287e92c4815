"""Depthwise convolutions, pooling and resizing against NumPy and ONNX Runtime, and as compiled."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from optc.kernels import convolution, pooling, resize  # noqa: E402
from optc.kernels.base import Kernel, Specialization  # noqa: E402
from optc.kernels.depthwise import DEPTHWISE  # noqa: E402
from optc.kernels.pooling import POOL  # noqa: E402
from optc.kernels.resize import RESIZE  # noqa: E402

from .harness import ARCHITECTURES, assert_close, build, drawn, interpret, unwritten  # noqa: E402

# args: x, w, out, bias, C, H, W, CHANNELS, OUT_H, OUT_W, IN_PER_GROUP, KH, KW


@triton.jit
def load(args, n, c, h, w, mask):
    return tl.load(args[0] + ((n * args[4] + c) * args[5] + h) * args[6] + w, mask=mask, other=0.0)


@triton.jit
def load_sevens(args, n, c, h, w, mask):
    """What a kernel must not rely on: other values where the mask is not set."""
    return tl.load(args[0] + ((n * args[4] + c) * args[5] + h) * args[6] + w, mask=mask, other=7.0)


@triton.jit
def load_channels_last(args, n, c, h, w, mask):
    return tl.load(args[0] + ((n * args[5] + h) * args[6] + w) * args[4] + c, mask=mask, other=0.0)


@triton.jit
def load_w(args, o, c, kh, kw, mask):
    return tl.load(args[1] + ((o * args[10] + c) * args[11] + kh) * args[12] + kw, mask=mask, other=0.0)


@triton.jit
def store(args, n, c, oh, ow, value, mask):
    place = ((n * args[7] + c) * args[8] + oh) * args[9] + ow
    tl.store(args[2] + place, value.to(args[2].dtype.element_ty), mask=mask)


@triton.jit
def store_fused_channels_last(args, n, c, oh, ow, value, mask):
    """Bias and activation, channels last."""
    bias = tl.load(args[3] + c, mask=c < args[7], other=0.0).to(tl.float32)
    place = ((n * args[8] + oh) * args[9] + ow) * args[7] + c
    tl.store(args[2] + place, tl.maximum(value + bias, 0.0).to(args[2].dtype.element_ty), mask=mask)


TYPES = pytest.mark.parametrize(("dtype", "static"), [("fp32", True), ("fp32", False), ("fp16", True), ("bf16", False)])


def run(kernel: Kernel, x, out, dtype, constants, hooks, w=None, static=True, bias=None):
    """One launch; with a bias, everything has its channels last."""
    batch, channels, height, width = x.shape
    out_c, out_h, out_w = out.shape[1:]
    if bias is not None:
        x, (out_h, out_w, out_c) = np.ascontiguousarray(x.transpose(0, 2, 3, 1)), out.shape[1:]
    sizes = {"BATCH": batch, "CHANNELS": out_c, "H": height, "W": width, "OUT_H": out_h, "OUT_W": out_w}
    spec = Specialization(
        kernel,
        (f"*{dtype}",) * 4 + ("i32",) * 9,
        sizes if static else dict.fromkeys(sizes),
        hooks,
        {"BLOCK_P": 16, "BLOCK_C": 8, **constants},
    )
    window = (1, 1, 1) if w is None else w.shape[1:]
    data = (x, x if w is None else w, out, x if bias is None else bias)
    interpret(spec, *data, channels, height, width, out_c, out_h, out_w, *window, **({} if static else sizes))
    return out


def window(size, strides=(1, 1), pads=(0,) * 4, dilations=(1, 1)):
    names = ("KH", "KW", "STRIDE_H", "STRIDE_W", "PAD_TOP", "PAD_LEFT", "DILATION_H", "DILATION_W")
    return dict(zip(names, (*size, *strides, *pads[:2], *dilations), strict=True))


def placed(size, window, stride, pads, dilation, ceil=False):
    """How often a window fits."""
    span = size + pads - dilation * (window - 1) - 1
    return (-(-span // stride) if ceil else span // stride) + 1


#: x, w, strides, pads, dilations, groups
DEPTHWISE_CASES = [
    ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 5, 7, 9), (5, 1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 5),
    ((1, 19, 8, 9), (19, 1, 5, 3), (2, 1), (2, 0, 1, 2), (1, 2), 19),
    ((2, 3, 5, 6), (6, 1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 3),
    ((1, 8, 5, 5), (12, 2, 2, 2), (1, 1), (0, 0, 0, 0), (1, 1), 4),
    ((0, 4, 5, 5), (4, 1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 4),
]


@TYPES
@pytest.mark.parametrize("case", DEPTHWISE_CASES, ids=str)
def test_depthwise(case, dtype, static):
    shape, weights, strides, pads, dilations, groups = case
    x, w = drawn(shape, dtype), drawn(weights, dtype, 1)
    wanted = convolution.reference(x, w, strides, pads, dilations, groups)
    constants = window(weights[2:], strides, pads, dilations)
    constants |= {"IN_PER_GROUP": weights[1], "OUT_PER_GROUP": weights[0] // groups}
    hooks = {"LOAD_X": load, "LOAD_W": load_w, "STORE": store}
    out = run(DEPTHWISE, x, unwritten(wanted.shape, dtype), dtype, constants, hooks, w, static)
    assert_close(out, wanted, dtype, 2)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_depthwise_channels_last_with_an_epilogue(dtype):
    x, w, bias = drawn((2, 11, 6, 7), dtype), drawn((11, 1, 3, 3), dtype, 1), drawn((11,), dtype, 2)
    hooks = {"LOAD_X": load_channels_last, "LOAD_W": load_w, "STORE": store_fused_channels_last}
    constants = window((3, 3), pads=(1, 1, 1, 1))
    out = run(DEPTHWISE, x, unwritten((2, 6, 7, 11), dtype), dtype, constants, hooks, w, bias=bias)
    wanted = convolution.reference(x, w, pads=(1, 1, 1, 1), groups=11).transpose(0, 2, 3, 1)
    assert_close(out, np.maximum(wanted + bias.astype(np.float32), 0), dtype, 2)


#: x, window, strides, pads, dilations, ceil_mode
POOL_CASES = [
    ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), False),
    ((2, 3, 9, 8), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), False),
    ((1, 9, 7, 6), (2, 3), (2, 1), (0, 1, 1, 2), (1, 1), True),
    ((1, 2, 8, 8), (3, 3), (2, 2), (0, 0, 1, 1), (1, 1), True),
    ((1, 2, 11, 10), (3, 2), (2, 3), (2, 1, 1, 1), (2, 3), False),
    ((1, 3, 10, 9), (8, 8), (1, 1), (3, 0, 2, 4), (1, 1), False),
]


def runtime(op, x, *more, **attributes):
    """What ONNX Runtime makes of one node."""
    names = [f"i{i}" for i in range(len(more) + 1)]
    node = onnx.helper.make_node(
        op, [n if a is not None else "" for n, a in zip(names, (x, *more), strict=True)], ["y"], **attributes
    )
    given = {n: a for n, a in zip(names, (x, *more), strict=True) if a is not None}
    kinds = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in given.items()
    ]
    graph = onnx.helper.make_graph([node], "g", kinds, [onnx.helper.make_tensor_value_info("y", 1, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, given)[0]


@TYPES
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
@pytest.mark.parametrize(("kind", "padded"), [("max", False), ("average", False), ("average", True)])
def test_pooling(case, kind, padded, dtype, static):
    shape, size, strides, pads, dilations, ceil = case
    x = -np.abs(drawn(shape, dtype))  # a zero from the padding would be the largest
    out = tuple(placed(shape[2 + i], size[i], strides[i], pads[i] + pads[2 + i], dilations[i], ceil) for i in (0, 1))
    wanted = pooling.reference(x, kind, size, out, strides, pads, dilations, padded)
    constants = window(size, strides, pads, dilations) | {"PAD_BOTTOM": pads[2], "PAD_RIGHT": pads[3]}
    constants |= {"KIND": kind, "COUNT_INCLUDE_PAD": padded}
    hooks = {"LOAD": load_sevens, "STORE": store}
    found = run(POOL, x, unwritten(wanted.shape, dtype), dtype, constants, hooks, static=static)
    assert_close(found, wanted, dtype, 2)
    if dtype == "fp32":
        attributes = {"kernel_shape": size, "strides": strides, "pads": pads, "dilations": dilations, "ceil_mode": ceil}
        extra = {} if kind == "max" else {"count_include_pad": padded}
        op = "MaxPool" if kind == "max" else "AveragePool"
        assert_close(found, runtime(op, x, **attributes, **extra), dtype, 2)


def test_pooling_of_what_is_not_finite():
    x = drawn((1, 2, 6, 6), "fp32")
    x[0, 0, 2, 2], x[0, 1, :, :3] = np.nan, -np.inf
    constants = window((2, 2)) | {"KIND": "max"}
    out = run(POOL, x, unwritten((1, 2, 5, 5), "fp32"), "fp32", constants, {"LOAD": load_sevens, "STORE": store})
    assert np.array_equal(out, pooling.reference(x, "max", (2, 2), (5, 5)), equal_nan=True)


#: x, out, scales
RESIZE_CASES = [
    ((1, 1, 1, 1), (3, 2), (0.0, 0.0)),
    ((2, 3, 5, 7), (10, 21), (2.0, 3.0)),
    ((1, 9, 8, 6), (3, 1), (0.0, 0.0)),
    ((1, 2, 6, 5), (14, 8), (2.4, 1.7)),
]
COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


@pytest.mark.parametrize("case", RESIZE_CASES[1:], ids=str)
@pytest.mark.parametrize(
    ("coordinates", "dtype", "static"),
    [*((c, "fp32", True) for c in COORDINATES), (*COORDINATES[:1], "fp16", False), (*COORDINATES[:1], "bf16", True)],
)
def test_resizing(case, coordinates, dtype, static):
    shape, to, scales = case
    x = drawn(shape, dtype)
    for mode, rounding in [*(("nearest", r) for r in ROUNDINGS), ("linear", "floor"), ("cubic", "floor")]:
        wanted = resize.reference(x, to, mode, coordinates, rounding, scales)
        constants = {"MODE": mode, "COORDINATES": coordinates, "ROUNDING": rounding}
        constants |= {"SCALE_H": scales[0], "SCALE_W": scales[1]}
        hooks = {"LOAD": load, "STORE": store}
        found = run(RESIZE, x, unwritten(wanted.shape, dtype), dtype, constants, hooks, static=static)
        assert_close(found, wanted, dtype, 4)


@pytest.mark.parametrize("case", RESIZE_CASES, ids=str)
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_resizing_is_that_of_onnx(case, coordinates):
    shape, to, scales = case
    x = drawn(shape, "fp32")
    given = [None, None, np.array([*shape[:2], *to], np.int64)]
    if scales[0]:
        given = [None, np.array([1, 1, *scales], np.float32)]
    for mode, rounding in [*(("nearest", r) for r in ROUNDINGS), ("linear", "floor"), ("cubic", "floor")]:
        attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
        wanted = runtime("Resize", x, *given, **attributes)
        assert_close(resize.reference(x, to, mode, coordinates, rounding, scales), wanted, "fp32", 8)


# As a plan has them, channels last, with strides as literals: args are x, w, out, bias.


@triton.jit
def load_96(args, n, c, h, w, mask):
    return tl.load(args[0] + ((n * 56 + h) * 56 + w) * 96 + c, mask=mask, other=0.0)


@triton.jit
def load_w_96(args, o, c, kh, kw, mask):
    return tl.load(args[1] + (kh * 7 + kw) * 96 + o, mask=mask, other=0.0)


@triton.jit
def store_96(args, n, c, oh, ow, value, mask):
    place = ((n * 56 + oh) * 56 + ow) * 96 + c
    tl.store(args[2] + place, value.to(args[2].dtype.element_ty), mask=mask)


def compiled(kernel: Kernel, arch: int, dtype: str, constants, tile=(16, 32), warps=4):
    sizes = dict(zip(("BATCH", "CHANNELS", "H", "W", "OUT_H", "OUT_W"), (None, 96, 56, 56, 56, 56), strict=True))
    hooks = {"LOAD_X": load_96, "LOAD_W": load_w_96, "LOAD": load_96, "STORE": store_96}
    hooks = {name: hooks[name] for name in kernel.hooks}
    blocks = dict(zip(("BLOCK_P", "BLOCK_C"), tile, strict=True))
    return build(Specialization(kernel, (f"*{dtype}",) * 3, sizes, hooks, constants | blocks, warps), arch)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiled(arch):
    compiled(DEPTHWISE, arch, "fp16", window((3, 3), pads=(1,) * 4))
    compiled(DEPTHWISE, arch, "bf16", window((7, 7), pads=(3,) * 4))
    compiled(POOL, arch, "fp16", window((3, 3), pads=(1,) * 4) | {"KIND": "max"})
    compiled(POOL, arch, "fp16", window((9, 9), pads=(4,) * 4) | {"KIND": "average"})
    for mode in ("nearest", "linear", "cubic"):
        compiled(RESIZE, arch, "fp16", {"MODE": mode})
