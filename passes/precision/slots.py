"""Which inputs and outputs of a node change their type together: read from the operators' schemas."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.functions import FUSED_DOMAIN
from optc.ir.infer_schema import find_schema
from optc.passes.precision.kinds import Row
from optc.passes.precision.narrow import Narrow

_FLOAT = onnx_ir.DataType.FLOAT
#: Operators whose result has the type that an attribute names.
_MAKERS = frozenset({"Cast", "ConstantOfShape"})

#: Says whether the target's runtime has a kernel for an operator (domain, operator, version) with these type variables
#: in the narrow type; None stands for that of the first input.
Supports = Callable[[str, str, int, Collection[str] | None], bool]


@dataclass(frozen=True)
class Slots:
    """The places of a node that change together; all of them are single-precision tensors now.

    Attributes:
        inputs: Places of inputs.
        outputs: Places of outputs.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def slots_of(node: onnx_ir.Node, row: Row, facts: Facts, narrow: Narrow, supports: Supports | None) -> Slots | str:
    """The places of a node that would become narrow, or why it cannot.

    Args:
        node: A node of the main graph.
        row: What is known of its operator.
        facts: What is known of its graph.
        narrow: The narrow type.
        supports: Asks the target's runtime; None where only the standard is asked.
    """
    inputs = [index for index, value in enumerate(node.inputs) if facts.dtype(value) == _FLOAT]
    outputs = [index for index, value in enumerate(node.outputs) if value.name and facts.dtype(value) == _FLOAT]
    version = facts.opset(node.domain)
    if node.domain == FUSED_DOMAIN:
        return Slots(tuple(inputs), tuple(outputs))
    schema = find_schema(node, version)
    if schema is None:
        if supports is not None and not supports(node.domain, node.op_type, version, None):
            return f"the target's runtime has no {node.op_type} in {narrow.name}"
        return Slots(tuple(inputs), tuple(outputs))
    if node.domain in ("", "ai.onnx") and node.op_type in _MAKERS:
        if not outputs:
            return Slots(tuple(inputs), ())  # it reads any type
        problem = _refused(schema, {schema.outputs[0].type_str}, narrow)
        return problem or Slots((), tuple(outputs))
    made = {_formal(schema.outputs, index).type_str for index in outputs}
    read = {_formal(schema.inputs, index).type_str for index in inputs}
    changing = {name for name in made & read if name in _variables(schema)} | ((made | read) & set(row.also))
    if not outputs:
        changing = read & set(_variables(schema))
    problem = _refused(schema, changing, narrow)
    asked = problem is None and supports is not None and changing
    if asked and not supports(node.domain, node.op_type, version, changing):  # type: ignore[misc]
        problem = f"the target's runtime has no {node.op_type} in {narrow.name}"
    if problem is not None:
        return problem
    return Slots(
        tuple(index for index in inputs if _formal(schema.inputs, index).type_str in changing),
        tuple(index for index in outputs if _formal(schema.outputs, index).type_str in changing),
    )


def _formal(formals: Sequence[Any], index: int) -> Any:
    """The formal parameter of a place; the last one repeats where it is variadic."""
    return formals[min(index, len(formals) - 1)]


def _variables(schema: onnx.defs.OpSchema) -> dict[str, frozenset[str]]:
    return {one.type_param_str: frozenset(one.allowed_type_strs) for one in schema.type_constraints}


def _refused(schema: onnx.defs.OpSchema, names: Iterable[str], narrow: Narrow) -> str | None:
    variables = _variables(schema)
    for name in sorted(names):
        if narrow.text not in variables[name]:
            return f"{schema.name} takes no {narrow.name} at this opset (since version {schema.since_version})"
    return None
