"""Numbers that stand for minus infinity: what is added to scores, or taken in their place, before a Softmax."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.functions import FUSED_DOMAIN

#: Operators whose result is a mask where an operand is one: the places of the operands that may be.
_PASSES: Mapping[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Add", "Mul", "Concat", "Min"), None),
    "Where": (1, 2),
    "Sub": (0,),
    **dict.fromkeys(
        (
            *("Identity", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Tile", "Transpose", "Slice", "Gather"),
            *("GatherND", "Split", "Trilu", "Clip", "ConstantOfShape", "Pad", "ScatterND"),
        ),
        (0,),
    ),
}
#: Operators that end a mask's way: the place where scores or their mask go in.
_ENDS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "Softmax"): (0,),
    ("", "Attention"): (3,),
    ("com.microsoft", "Attention"): (5,),
    ("com.microsoft", "MultiHeadAttention"): (5,),
    ("com.microsoft", "GroupQueryAttention"): (10,),
    (FUSED_DOMAIN, "Attention"): (3, 4),
}


def masking(graph: onnx_ir.Graph, facts: Facts) -> frozenset[onnx_ir.Value]:
    """The float values of a graph all of whose ways lead into a Softmax or into the mask of an attention.

    What is very negative there comes to zero, whether it is -3.4e38 or the lowest number of a narrower type.
    """
    found: set[onnx_ir.Value] = set()
    for node in reversed(graph):
        for value in (*node.outputs, *node.inputs):
            if value is not None and value not in found and _leads(value, found, facts):
                found.add(value)
    return frozenset(found)


def _leads(value: onnx_ir.Value, found: Iterable[onnx_ir.Value], facts: Facts) -> bool:
    if value.is_graph_output() or not value.uses() or facts.dtype(value) != onnx_ir.DataType.FLOAT:
        return False
    for use in value.uses():
        node, place = use.node, use.idx
        domain = "" if node.domain == "ai.onnx" else node.domain
        if place in _ENDS.get((domain, node.op_type), ()):
            continue
        places = _PASSES.get(node.op_type, ()) if domain == "" else ()
        if (places is not None and place not in places) or not node.outputs or node.outputs[0] not in found:
            return False
    return True
