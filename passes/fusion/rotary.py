"""Rotary position embedding (Su et al., 2021) as exporters write it: the heads turned by angles from a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from optc.ir.dims import Dim
from optc.ir.facts import Facts
from optc.ir.matcher import Match
from optc.ir.ops import cuts_of, made_by
from optc.ir.pattern import Var
from optc.passes.fusion.common import FLOATS
from optc.passes.rule import fusion


def _rotary_attributes(found: Match) -> dict[str, Any] | str:
    facts = found.facts
    kinds = {facts.dtype(value) for value in (found.x, found.cos, found.sin, found.output)}
    if len(kinds) != 1 or not kinds <= FLOATS:
        return "the heads, the tables and the result must be floats of one type"
    shape = facts.shape(found.x)
    if shape is None or len(shape) != 4:
        return "the heads must have 4 dims"
    size = shape[3]
    if not isinstance(size, int) or size % 2 or not isinstance(shape[1], int):
        return "the number of heads and their even size must be known"
    if found.axis not in (-1, 3):
        return "the halves must be joined along the last axis"
    if not _halves(found, size):
        return "the two halves of the last axis must change places"
    for name in ("cos", "sin"):
        if (reason := _table_problem(facts, found[name], shape)) is not None:
            return f"{name}: {reason}"
    return {"interleaved": 0}


def _halves(found: Match, size: int) -> bool:
    """Whether what is negated is the second half of each head, and what is not the first."""
    facts, half = found.facts, size // 2
    if "low" not in found.bindings:
        split = found.first.producer()
        parts = [facts.shape(value) for value in split.outputs]
        return len(parts) == 2 and all(part is not None and part[3] == half for part in parts)
    for name, start, stop in (("low", 0, half), ("high", half, size)):
        cuts = cuts_of(found[name].producer(), facts)
        if cuts is None or len(cuts) != 1 or cuts[0].axis != 3 or cuts[0].step != 1:
            return False
        end = cuts[0].end + size if cuts[0].end < 0 else min(cuts[0].end, size)
        if cuts[0].start not in (start, start - size) or end != stop:
            return False
    return True


def _table_problem(facts: Facts, table: onnx_ir.Value, heads: tuple[Dim, ...]) -> str | None:
    shape = facts.shape(table)
    if shape is None or len(shape) > 4 or len(shape) < 2:
        return "the table must have 2 to 4 dims"
    if (*[1] * (4 - len(shape)), *shape) != (1, 1, heads[2], heads[3]):
        return "the table must have one row for every position, the same for the whole batch"
    return None if _mirrored(facts, table, heads[3]) else "the two halves of the table must provably be equal"


def _mirrored(facts: Facts, table: onnx_ir.Value | None, size: Dim) -> bool:
    """Whether both halves of the last axis of a table are equal."""
    while (node := made_by(table, "Unsqueeze", "Cast", "Cos", "Sin", "Mul", "Gather", "Identity")) is not None:
        if node.op_type == "Mul" and facts.scalar(node.inputs[1]) is None:
            return False
        if node.op_type == "Gather" and node.attributes.get("axis") is not None and node.attributes["axis"].as_int():
            return False
        table = node.inputs[0]
        if (facts.shape(table) or ())[-1:] != (size,):
            return False
    join = made_by(table, "Concat")
    if join is not None:
        rank = facts.rank(table)
        return (
            len(join.inputs) == 2
            and join.inputs[0] is join.inputs[1]
            and join.attributes["axis"].as_int()
            in (
                -1,
                None if rank is None else rank - 1,
            )
        )
    array = facts.const(table)
    return array is not None and array.ndim > 0 and np.array_equal(*np.split(array, 2, axis=-1))


@fusion("rotary-embedding", "RotaryEmbedding", inputs=("x", "position", "cos", "sin"), attributes=_rotary_attributes)
def rotary_embedding(p, x, cos, sin):
    """Every pair of numbers from the two halves of a head is turned by the angle of its position."""
    low, high = p.bind("low", p.Slice(x, ...)), p.bind("high", p.Slice(x, ...))
    first = p.bind("first", p.op("Split", x, ..., output=0))
    second = p.op("Split", x, ..., output=1)
    axis = Var("axis")
    turned = p.one_of(p.Concat(p.Neg(high), low, axis=axis), p.Concat(p.Neg(second), first, axis=axis))
    return x * cos + turned * sin


RULES = (rotary_embedding,)
