"""Products, convolutions, pooling, norms and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from optc.recovery.engine.elementwise import activate
from optc.recovery.engine.table import MS, OPERATORS, Call, Result, listed, operator

# products ---------------------------------------------------------------------------------------------------------


@operator("MatMul")
def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("FusedMatMul", domain=MS)
def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    if call.integer("transBatchA", 0) or call.integer("transBatchB", 0):
        raise call.refuse("with batches behind the matrix is not known")
    a = a.transpose(-1, -2) if call.integer("transA", 0) else a
    b = b.transpose(-1, -2) if call.integer("transB", 0) else b
    return call.real("alpha", 1.0) * torch.matmul(a, b)


@operator("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if call.integer("transA", 0) else a
    b = b.T if call.integer("transB", 0) else b
    product = call.real("alpha", 1.0) * (a @ b)
    return product if c is None else product + call.real("beta", 1.0) * c


@operator("FusedGemm", domain=MS)
def fused_gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Result:
    return activate(call, gemm(call, a, b, c))  # type: ignore[arg-type]


@operator("Einsum")
def einsum(call: Call, *parts: Tensor) -> Tensor:
    return torch.einsum(call.text("equation", "").replace(" ", ""), *parts)


# convolutions and pooling -----------------------------------------------------------------------------------------


def _pads(call: Call, x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """Pads as torch lists them: the last axis first, begin and end of each."""
    rank = len(kernel)
    auto = call.text("auto_pad", "NOTSET")
    pads = call.integers("pads") or [0] * (2 * rank)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * (2 * rank)
        for axis in range(rank):
            size, step = x.shape[2 + axis], strides[axis]
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            total = max((math.ceil(size / step) - 1) * step + reach - size, 0)
            less, more = total // 2, total - total // 2
            pads[axis], pads[axis + rank] = (less, more) if auto == "SAME_UPPER" else (more, less)
    elif auto == "VALID":
        pads = [0] * (2 * rank)
    return [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]


_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAXIMA: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGES: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@operator("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: float = 0.0) -> Tensor:
    rank = x.dim() - 2
    strides, dilations = (call.integers(name) or [1] * rank for name in ("strides", "dilations"))
    pads = _pads(call, x, list(weight.shape[2:]), strides, dilations)
    x = F.pad(x, pads, value=padding) if any(pads) else x
    return _CONVOLUTIONS[rank](x, weight, bias, strides, 0, dilations, call.integer("group", 1))


@operator("FusedConv", domain=MS)
def fused_conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None, z: Tensor | None = None) -> Tensor:
    y = conv(call, x, weight, bias)
    assert isinstance(y, Tensor)
    return activate(call, y if z is None else y + z)


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.dim() - 2
    if call.text("auto_pad", "NOTSET") != "NOTSET" or call.integers("output_shape"):
        raise call.refuse("with pads that are found from the output is not known")
    strides, dilations = (call.integers(name) or [1] * rank for name in ("strides", "dilations"))
    pads = call.integers("pads") or [0] * (2 * rank)
    if pads[:rank] != pads[rank:]:
        raise call.refuse("with uneven pads is not known")
    more = call.integers("output_padding") or [0] * rank
    return _TRANSPOSED[rank](x, weight, bias, strides, pads[:rank], more, call.integer("group", 1), dilations)


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor:
    kernel = call.integers("kernel_shape") or []
    strides, dilations = (call.integers(name) or [1] * len(kernel) for name in ("strides", "dilations"))
    if call.integer("ceil_mode", 0) or len(call.node.outputs) > 1:
        raise call.refuse("with ceil_mode or indices is not known")
    x = F.pad(x, _pads(call, x, kernel, strides, dilations), value=-math.inf)
    return _MAXIMA[len(kernel)](x, kernel, strides, 0, dilations)


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    kernel = call.integers("kernel_shape") or []
    strides = call.integers("strides") or [1] * len(kernel)
    if call.integer("ceil_mode", 0) or call.integers("dilations"):
        raise call.refuse("with ceil_mode or dilations is not known")
    pads = _pads(call, x, kernel, strides, [1] * len(kernel))
    pooled = _AVERAGES[len(kernel)](F.pad(x, pads), kernel, strides)
    if any(pads) and not call.integer("count_include_pad", 0):
        pooled = pooled / _AVERAGES[len(kernel)](F.pad(torch.ones_like(x), pads), kernel, strides)
    return pooled


@operator("GlobalAveragePool")
def global_average_pool(call: Call, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(call: Call, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


# norms ------------------------------------------------------------------------------------------------------------


@operator("BatchNormalization")
def batch_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if call.integer("training_mode", 0):
        raise call.refuse("in training mode is not known")
    return F.batch_norm(x, mean, variance, scale, bias, eps=call.real("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=call.real("epsilon", 1e-5))


@operator("GroupNormalization")
def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = call.integer("num_groups", 1)
    if call.opset < 21:  # one scale per group until then
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return F.group_norm(x, groups, scale, bias, call.real("epsilon", 1e-5))


def _normed(x: Tensor, axis: int, epsilon: float, centred: bool) -> Tensor:
    axes = tuple(range(axis % x.dim(), x.dim()))
    x = x - x.mean(axes, keepdim=True) if centred else x
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon)


@operator("LayerNormalization")
def layer_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    _one_output(call)
    y = _normed(x, call.integer("axis", -1), call.real("epsilon", 1e-5), True) * scale
    return y if bias is None else y + bias


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    _one_output(call)
    return _normed(x, call.integer("axis", -1), call.real("epsilon", 1e-5), False) * scale


@operator("SkipLayerNormalization", domain=MS)
def skip_layer_normalization(
    call: Call, x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None = None, bias: Tensor | None = None
) -> Result:
    return _with_skip(call, x, skip, gamma, beta, bias, centred=True)


@operator("SkipSimplifiedLayerNormalization", domain=MS)
def skip_rms_normalization(call: Call, x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None) -> Result:
    return _with_skip(call, x, skip, gamma, None, bias, centred=False)


def _with_skip(
    call: Call, x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None, bias: Tensor | None, centred: bool
) -> Result:
    total = x + skip if bias is None else x + skip + bias
    y = _normed(total, -1, call.real("epsilon", 1e-12), centred) * gamma
    return (y if beta is None else y + beta), None, None, total


def _one_output(call: Call) -> None:
    if any(value.name and value.uses() for value in call.node.outputs[1:]):
        raise call.refuse("whose means or deviations are read is not known")


@operator("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    return F.normalize(x, float(call.integer("p", 2)), call.integer("axis", -1), eps=0.0)


# reductions -------------------------------------------------------------------------------------------------------

_REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}


def _reducing(reduce: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    def run(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = listed(axes, call.integers("axes"))
        if not given:
            if call.integer("noop_with_empty_axes", 0):
                return x
            given = list(range(x.dim()))
        return reduce(x, tuple(given), bool(call.integer("keepdims", 1)))

    return run


OPERATORS |= {("", name): _reducing(reduce) for name, reduce in _REDUCTIONS.items()}


@operator("Softmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    return _along(call, x, F.softmax)


@operator("LogSoftmax")
def log_softmax(call: Call, x: Tensor) -> Tensor:
    return _along(call, x, F.log_softmax)


def _along(call: Call, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    if call.opset >= 13:
        return function(x, call.integer("axis", -1))
    axis = call.integer("axis", 1) % x.dim()  # all axes from there on together
    return function(x.flatten(axis), axis).reshape(x.shape)
