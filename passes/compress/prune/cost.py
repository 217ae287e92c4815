"""How large a model is: parameters and arithmetic, counted from the shapes of what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import int_attr

#: Operators that are counted; all others take next to nothing.
_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm")
_CONVOLUTIONS = ("Conv", "FusedConv", "ConvTranspose")
_ATTENTIONS = ("Attention", "MultiHeadAttention", "GroupQueryAttention")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Cost:
    """What a model takes.

    Attributes:
        parameters: Elements of all floating-point constants.
        flops: Multiplications and additions of products, convolutions and attention; None where sizes are not known.
        zeros: Weights of products and convolutions that are zero; they are among the parameters.
        needed: The flops without those of zeros, which only some runtimes skip.
    """

    parameters: int
    flops: int | None
    zeros: int = 0
    needed: int | None = None

    def __str__(self) -> str:
        flops = "" if self.flops is None else f", {_million(self.flops)}"
        without = "" if self.needed is None else f" and {_million(self.needed)} without these"
        zeros = f" ({self.zeros / self.parameters:.0%} zero{without})" if self.zeros > 0.005 * self.parameters else ""
        return f"{self.parameters:,d} parameters{flops}{zeros}"


def _million(flops: int) -> str:
    million = flops / 1e6
    return f"{million:,.0f} MFLOP" if million >= 100 else f"{million:.2g} MFLOP"


def parameters(model: onnx_ir.Model) -> int:
    """Elements of all floating-point constants."""
    values = model.graph.initializers.values()
    return sum(
        int(v.const_value.size) for v in values if v.const_value is not None and v.const_value.dtype.is_floating_point()
    )


def zeros(graph: onnx_ir.Graph, facts: Facts) -> int:
    """Weights of products and convolutions that are zero, each constant counted once."""
    weights = dict.fromkeys(node.inputs[1] for node in graph if node.op_type in (*_PRODUCTS, *_CONVOLUTIONS))
    arrays = (facts.const(value) for value in weights)
    return sum(array.size - int(np.count_nonzero(array)) for array in arrays if array is not None)


def counted(graph: onnx_ir.Graph, facts: Facts) -> list[onnx_ir.Value]:
    """The values whose shapes :func:`flops` needs."""
    wanted: dict[onnx_ir.Value, None] = {}
    for node in graph:
        if node.op_type in (*_PRODUCTS, *_CONVOLUTIONS, *_ATTENTIONS):
            for value in (*node.inputs[:4], node.outputs[0]):
                if value is not None and not facts.is_const(value):
                    wanted[value] = None
    return list(wanted)


def flops(graph: onnx_ir.Graph, facts: Facts, shapes: Shapes, zeros: bool = True) -> int:
    """Multiplications and additions at given shapes; each counts as one.

    Args:
        graph: The graph.
        facts: What is known of it.
        shapes: Of the values that :func:`counted` lists.
        zeros: Whether those of weights that are zero count.
    """

    def shape(value: onnx_ir.Value | None) -> tuple[int, ...]:
        if value is None:
            return ()
        known = facts.shape(value) if facts.is_const(value) else shapes.get(value.name or "")
        return tuple(int(size) for size in known or ())

    def share(node: onnx_ir.Node) -> float:
        array = None if zeros or node.op_type not in (*_PRODUCTS, *_CONVOLUTIONS) else facts.const(node.inputs[1])
        return 1.0 if array is None or not array.size else np.count_nonzero(array) / array.size

    return sum(
        round(share(node) * _node_flops(node, [shape(v) for v in node.inputs], shape(node.outputs[0])))
        for node in graph
    )


def _node_flops(node: onnx_ir.Node, ins: list[tuple[int, ...]], out: tuple[int, ...]) -> int:
    if node.op_type in _PRODUCTS:
        return 2 * int(np.prod(out)) * _summed(node, ins[0])
    if node.op_type in ("Conv", "FusedConv"):
        return 2 * int(np.prod(out)) * int(np.prod(ins[1][1:]))
    if node.op_type == "ConvTranspose":
        return 2 * int(np.prod(ins[0])) * int(np.prod(ins[1][1:]))
    if node.op_type not in _ATTENTIONS:
        return 0
    if node.op_type == "Attention" and node.domain:
        batch, length, width = ins[0]
        projections = 2 * batch * length * width * ins[1][1]
        return projections + 4 * batch * length * length * out[-1]
    if len(ins) < 2 or len(ins[0]) not in (3, 4) or len(ins[1]) not in (3, 4):
        return 0
    # Scores and their sums over values; rows are those of the queries, heads lie in the width.
    queries, keys = ins[0], ins[1]
    width = queries[-1] if len(queries) == 3 else queries[1] * queries[-1]
    return 4 * queries[0] * queries[-2] * keys[-2] * width


def _summed(node: onnx_ir.Node, a: tuple[int, ...]) -> int:
    if not a:
        return 1
    return a[-2] if int_attr(node, "transA", 0) and len(a) > 1 else a[-1]
