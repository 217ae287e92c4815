"""How fused ops are written for TensorRT, whose parser turns some standard operators into single layers.

Norms as one operator are computed in single precision inside of narrower graphs, which a chain of means and squares in
half precision is not. Attention stays in products and a Softmax: TensorRT fuses that form in every version, while the
operator of opset 23 needs a recent one and a fused kernel for the very types and sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import int_attr, operand
from optc.ir.rewriter import Rewriter
from optc.passes.emit.channel_norm import per_channel

_Results = tuple[onnx_ir.Value, ...]


def gelu(rw: Rewriter, call: onnx_ir.Node) -> _Results:
    """``Gelu``."""
    return (rw.op("Gelu", call.inputs[0]),)


def tanh_gelu(rw: Rewriter, call: onnx_ir.Node) -> _Results:
    """``Gelu`` by tanh."""
    return (rw.op("Gelu", call.inputs[0], approximate="tanh"),)


def bias_gelu(rw: Rewriter, call: onnx_ir.Node) -> _Results:
    """The sum, which the product in front takes in, and ``Gelu``."""
    return (rw.op("Gelu", rw.op("Add", *call.inputs[:2])),)


def bias_tanh_gelu(rw: Rewriter, call: onnx_ir.Node) -> _Results:
    """The sum, and ``Gelu`` by tanh."""
    return (rw.op("Gelu", rw.op("Add", *call.inputs[:2]), approximate="tanh"),)


def no_scale(facts: Facts, call: onnx_ir.Node) -> str | None:
    """Why a norm of a call without a scale cannot be given one; a skip norm brings its scale third."""
    index = 2 if call.op_type.startswith("Skip") else 1
    if operand(call, index) is not None or _normalized(facts, call) is not None:
        return None
    return "it needs a scale, whose size is not known"


def layer_norm(rw: Rewriter, call: onnx_ir.Node) -> _Results:
    """``LayerNormalization``."""
    x, scale, bias = (*call.inputs, None, None)[:3]
    return (rw.op("LayerNormalization", x, _scale(rw, call, scale), bias, **_attributes(call)),)


def rms_norm(rw: Rewriter, call: onnx_ir.Node) -> _Results:
    """``RMSNormalization``."""
    x, scale = (*call.inputs, None)[:2]
    return (rw.op("RMSNormalization", x, _scale(rw, call, scale), **_attributes(call)),)


def skip_layer_norm(rw: Rewriter, call: onnx_ir.Node) -> _Results:
    """The sum and ``LayerNormalization``."""
    x, skip, gamma, beta, bias = (*call.inputs, None, None, None)[:5]
    total, epsilon = _sum(rw, x, skip, bias), call.attributes["epsilon"].as_float()
    return rw.op("LayerNormalization", total, _scale(rw, call, gamma), beta, axis=-1, epsilon=epsilon), total


def skip_rms_norm(rw: Rewriter, call: onnx_ir.Node) -> _Results:
    """The sum and ``RMSNormalization``."""
    x, skip, gamma, bias = (*call.inputs, None, None)[:4]
    total, epsilon = _sum(rw, x, skip, bias), call.attributes["epsilon"].as_float()
    return rw.op("RMSNormalization", total, _scale(rw, call, gamma), axis=-1, epsilon=epsilon), total


def group_norm(rw: Rewriter, call: onnx_ir.Node) -> _Results:
    """``GroupNormalization`` of opset 21, with a scale and a bias for every channel."""
    x, scale, bias = call.inputs[:3]
    vectors = (per_channel(rw, x, value) for value in (scale, bias))  # type: ignore[arg-type]
    groups, epsilon = call.attributes["num_groups"].as_int(), call.attributes["epsilon"].as_float()
    return (rw.op("GroupNormalization", x, *vectors, num_groups=groups, epsilon=epsilon),)


def mish(rw: Rewriter, call: onnx_ir.Node) -> _Results:
    """``Mish``."""
    return (rw.op("Mish", call.inputs[0]),)


def _sum(rw: Rewriter, *terms: onnx_ir.Value | None) -> onnx_ir.Value:
    first, *others = (term for term in terms if term is not None)
    for term in others:
        first = rw.op("Add", first, term)
    return first


def _scale(rw: Rewriter, call: onnx_ir.Node, scale: onnx_ir.Value | None) -> onnx_ir.Value:
    """The scale, or ones where the call has none: the operators do not do without."""
    if scale is not None:
        return scale
    shape, dtype = _normalized(rw.facts, call), rw.facts.dtype(call.inputs[0])
    assert shape is not None and dtype is not None  # `no_scale` asked
    return rw.constant(np.ones(shape, dtype.numpy()), "ones")


def _normalized(facts: Facts, call: onnx_ir.Node) -> tuple[int, ...] | None:
    """The dims that are normalized over; None where they are not all known."""
    shape = facts.shape(call.inputs[0])
    dims = None if shape is None else shape[int_attr(call, "axis", -1) :]
    return None if dims is None or not all(isinstance(dim, int) for dim in dims) else tuple(dims)  # type: ignore[arg-type]


def _attributes(call: onnx_ir.Node) -> dict[str, Any]:
    return {name: attr.value for name, attr in call.attributes.items()}
