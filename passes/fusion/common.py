"""What several fusions ask of a match."""

from __future__ import annotations

from typing import Any

import onnx_ir

from optc.ir.dims import Dim
from optc.ir.facts import Facts
from optc.ir.matcher import Match

FLOATS = frozenset(
    {onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16}
)


def stays_float(found: Match) -> str | None:
    """Refuse a match that computes in another type than floats of one width, from input to output.

    Casts inside of the match may widen and narrow (the fused op computes in single precision at least), as long as
    what comes out has the type of ``x``.
    """
    facts = found.facts
    given, made = facts.dtype(found.x), facts.dtype(found.output)
    if given not in FLOATS:
        return f"x must be a float tensor (it is {_name(given)})"
    if given != made:
        return f"the result must have the type of x ({_name(given)}, not {_name(made)})"
    for node in found.nodes:
        if node.op_type == "Cast" and node.domain == "" and facts.dtype(node.outputs[0]) not in FLOATS:
            return f"a cast to {_name(facts.dtype(node.outputs[0]))} is in the way"
    return None


def trailing(facts: Facts, value: onnx_ir.Value, count: int) -> tuple[Dim, ...] | None:
    """The last ``count`` dims of a value."""
    shape = facts.shape(value)
    return shape[len(shape) - count :] if shape is not None and len(shape) >= count else None


def is_bias_of(facts: Facts, bias: onnx_ir.Value, x: onnx_ir.Value) -> bool:
    """Whether ``bias`` is a vector with one element for each entry of the last axis of ``x``."""
    shape = facts.shape(bias)
    return shape is not None and len(shape) == 1 and shape == trailing(facts, x, 1)


def node_attribute(node: onnx_ir.Node, name: str, default: Any) -> Any:
    """An attribute's Python value, with the default of the operator's specification."""
    attr = node.attributes.get(name)
    if attr is None or attr.is_ref():
        return default
    return attr.value.decode() if isinstance(attr.value, bytes) else attr.value


def _name(dtype: onnx_ir.DataType | None) -> str:
    return "unknown" if dtype is None else dtype.name.lower()
