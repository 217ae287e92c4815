"""The pass that takes fused convolutions apart, so that what lies inside of them can be seen and put on grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir

from optc.ir.ops import operand
from optc.ir.rewriter import Rewriter
from optc.passes.base import Numerics, Pass, PassContext

#: Parameters of the activations that com.microsoft::FusedConv knows, in the order of ``activation_params``.
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}


@dataclass(frozen=True)
class SplitConvolutions(Pass):
    """Write com.microsoft::FusedConv as a Conv, a sum and an activation."""

    name: ClassVar[str] = "split-convolutions"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def run(self, ctx: PassContext) -> None:
        for node in list(ctx.model.graph):
            if split_convolution(ctx.rewriter, node):
                ctx.hit(self.name)


def split_convolution(rw: Rewriter, node: onnx_ir.Node) -> bool:
    """Take a com.microsoft::FusedConv apart; whether it was one. Only the last value keeps its name."""
    if node.domain != "com.microsoft" or node.op_type != "FusedConv":
        return False
    own = {name: attr.value for name, attr in node.attributes.items()}
    activation, parameters = own.pop("activation", None), list(own.pop("activation_params", []))
    if activation is not None and activation != "Clip" and activation not in _PARAMETERS:
        return False
    x, weight, bias, summand = node.inputs[0], node.inputs[1], operand(node, 2), operand(node, 3)
    with rw.at(node, "split-convolution"):
        value = rw.op("Conv", x, weight, bias, **own)
        rw.facts.assume(value, like=node.outputs[0])
        if summand is not None:
            value = rw.op("Add", value, summand)
            rw.facts.assume(value, like=node.outputs[0])
        if activation == "Clip":
            if rw.opset() < 11:
                value = rw.op("Clip", value, min=parameters[0], max=parameters[1])
            else:
                low, high = (rw.constant(np.float32(one), "bound") for one in parameters)
                value = rw.op("Clip", value, low, high)
        elif activation is not None:
            names = _PARAMETERS[activation]
            value = rw.op(activation, value, **dict(zip(names, parameters, strict=False)))
        rw.facts.assume(value, like=node.outputs[0])
        rw.keep_name(node.outputs[0], rw.replace(node.outputs[0], value))
    rw.erase(node)
    return True
