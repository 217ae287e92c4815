"""Casts that mixed-precision exports leave between operators."""

from __future__ import annotations

from typing import Any

import onnx_ir

from optc.ir.matcher import Match
from optc.ir.ops import cast, int_attr, made_by, only_use
from optc.ir.rewriter import Rewriter
from optc.passes.base import Numerics
from optc.passes.rule import fusion, node_rule

_NARROW = frozenset({onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16})
_WIDE = frozenset({onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE})


#: Why a model whose outputs are wide must compute what it rounds: ONNX Runtime drops such casts all the same, which
#: moves the outputs by the precision of the narrow type, a thousand times that of the wide one.
_SHOWN = "an output of higher precision would show the difference"


@node_rule("sink-casts", "Add", "Sub", "Mul", numerics=Numerics.ROUNDING)
def sink_casts(rw: Rewriter, node: onnx_ir.Node):
    """Two operands that are both narrowed just before they meet: meet first, then narrow once.

    That rounds once instead of three times, which counts as rounding only in a model whose outputs are narrow, too.
    """
    casts = [made_by(value, "Cast") for value in node.inputs]
    if None in casts or casts[0] is casts[1] or any(made.graph is not node.graph for made in casts):
        return None
    (a, b), narrow = (made.inputs[0] for made in casts), rw.facts.dtype(node.outputs[0])
    if narrow not in _NARROW or any(int_attr(made, "to", 0) != narrow for made in casts):
        return None
    if any(rw.facts.dtype(value) != onnx_ir.DataType.FLOAT for value in (a, b)):
        return "both operands must be narrowed from single precision"
    if any(rw.facts.dtype(value) in _WIDE for value in rw.model.graph.outputs):
        return _SHOWN
    if not all(only_use(value) for value in node.inputs):
        return "a narrowed operand is also used elsewhere"
    with rw.at(node, "sink-casts", casts):
        return cast(rw, rw.op(node.op_type, a, b), narrow)


def _narrowed_alike(found: Match) -> str | None:
    facts = found.facts
    if any(facts.dtype(found[side]) != onnx_ir.DataType.FLOAT for side in "ab"):
        return "both operands must be narrowed from single precision"
    if any(facts.dtype(value) in _WIDE for value in facts.outputs()):
        return _SHOWN
    return None


@fusion("narrowed-matmul", "NarrowedMatMul", inputs=("a", "b"), check=_narrowed_alike)
def narrowed_matmul(p, a, b):
    """A product of operands that are narrowed just before it, where there may be no kernel for the narrow type."""
    half = int(onnx_ir.DataType.FLOAT16)
    return p.Cast(a, to=half) @ p.Cast(b, to=half)


def _offset_and_scale(found: Match) -> dict[str, Any] | str:
    facts = found.facts
    if facts.dtype(found.x) not in (onnx_ir.DataType.INT32, onnx_ir.DataType.INT64):
        return "what is cast must be integers of 32 or 64 bits"
    if facts.dtype(found.output) != onnx_ir.DataType.FLOAT:
        return "it must be cast to single precision"
    scale = float(found.scalar("factor"))
    return {"offset": [float(found.scalar("offset"))], "scale": [-scale if "negated" in found.bindings else scale]}


@fusion("scaled-integers", "ScaledIntegers", inputs=("x",), same_shape_as="x", attributes=_offset_and_scale)
def scaled_integers(p, x):
    """(x - offset) * factor of integers, or (offset - x) * factor: a mask of 0 and 1 as summands of scores."""
    numbers, offset, factor = p.Cast(x), p.scalar("offset"), p.scalar("factor")
    return p.one_of((numbers - offset) * factor, p.bind("negated", offset - numbers) * factor)


RULES = (sink_casts, narrowed_matmul)
