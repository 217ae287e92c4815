"""Shapes that hang on the values of an input.

TensorRT computes shapes on the host, from shapes; where the values of an input decide one, its optimization profile
needs a range of these values, which a bundle does not have ("Working with Dynamic Shapes": shape input tensors).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import is_op, operand

#: Operators whose result's shape is decided by the values of operands, by position.
_DECIDING: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
}


def deciding_inputs(node: onnx_ir.Node, facts: Facts, inputs: Collection[onnx_ir.Value]) -> Iterator[tuple[int, str]]:
    """The operands of a node whose values decide its result's shape and come from an input, with its name."""
    for index in _DECIDING.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ():
        value = operand(node, index)
        if value is None or facts.ints(value) is not None:
            continue
        name = _source(value, facts, inputs)
        if name is not None:
            yield index, name


def _source(value: onnx_ir.Value, facts: Facts, inputs: Collection[onnx_ir.Value]) -> str | None:
    """The input whose values a value is computed from; None for what hangs on shapes and constants only."""
    pending, seen = [value], {value}
    while pending:
        one = pending.pop()
        if facts.is_const(one):
            continue
        producer = one.producer()
        if producer is None:
            if one in inputs:
                return one.name
            continue
        if is_op(producer, "Shape", "Size"):
            continue
        for read in producer.inputs:
            if read is not None and read not in seen:
                seen.add(read)
                pending.append(read)
    return None
