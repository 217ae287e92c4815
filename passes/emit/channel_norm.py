"""How normalizations of channels are written for ONNX Runtime's CPU provider.

It has no kernel for GroupNormalization (it runs the function's body, the statistics taken twice), but one for
InstanceNormalization, and in BatchNormalization one that scales and shifts channels in one pass over memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from optc.ir import ops
from optc.ir.rewriter import Rewriter


def group_norm(rw: Rewriter, call: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """The groups normalized as instances, then scaled and shifted per channel; groups of one channel need no more."""
    x, scale, bias, _, target = (*call.inputs, None, None)[:5]
    groups, epsilon = call.attributes["num_groups"].as_int(), call.attributes["epsilon"].as_float()
    channels, dtype = _channels(rw, x), rw.facts.dtype(x).numpy()
    scale, bias = (per_channel(rw, x, value) for value in (scale, bias))

    def filled(size: int, value: float) -> onnx_ir.Value:
        return rw.constant(np.full(size, value, dtype), "ones" if value else "zeros")

    if groups == channels and rw.facts.rank(x) > 2:
        return (rw.op("InstanceNormalization", x, scale, bias, epsilon=epsilon),)
    grouped = ops.reshape(rw, x, (0, groups, -1))
    normal = rw.op("InstanceNormalization", grouped, filled(groups, 1), filled(groups, 0), epsilon=epsilon)
    joined = rw.op("Reshape", normal, rw.op("Shape", x) if target is None else target)
    mean, variance = filled(channels, 0), filled(channels, 1)
    return (rw.op("BatchNormalization", joined, scale, bias, mean, variance, epsilon=0.0),)


def instance_norm(rw: Rewriter, call: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """The scale and the bias as the vectors that the operator takes."""
    x, *parameters = call.inputs
    scale, bias = (per_channel(rw, x, value) for value in parameters)
    return (rw.op("InstanceNormalization", x, scale, bias, epsilon=call.attributes["epsilon"].as_float()),)


def axis_norm(rw: Rewriter, call: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """The axis moved to the end and back: two movements and one vectorized kernel for nine passes over memory."""
    x, *parameters = call.inputs
    axis, rank = call.attributes["axis"].as_int(), rw.facts.rank(x)
    perm = [*(i for i in range(rank) if i != axis), axis]
    scale, bias = (rw.constant(rw.facts.const(value).reshape(-1), value.name or "parameter") for value in parameters)
    epsilon = call.attributes["epsilon"].as_float()
    normal = rw.op("LayerNormalization", ops.transpose(rw, x, perm), scale, bias, axis=-1, epsilon=epsilon)
    return (ops.transpose(rw, normal, [perm.index(i) for i in range(rank)]),)


def _channels(rw: Rewriter, x: onnx_ir.Value) -> Any:
    """The number of channels, which the fusion made sure of."""
    shape = rw.facts.shape(x)
    assert shape is not None
    return shape[1]


def per_channel(rw: Rewriter, x: onnx_ir.Value, value: onnx_ir.Value) -> onnx_ir.Value:
    """A parameter of one number per channel as a vector; unless it is one, it is constant.

    Args:
        rw: The rewriter.
        x: What is normalized, channels second.
        value: The parameter.
    """
    channels = _channels(rw, x)
    if rw.facts.shape(value) == (channels,):
        return value
    return rw.constant(rw.facts.const(value).reshape(channels), value.name or "parameter")
