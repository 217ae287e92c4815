"""Rotary position embedding (Su et al., 2021) as exporters write it: the heads turned by angles from a table.

The fused op ``optc::RotaryEmbedding`` reads the heads x, (B, N, S, H) with an even H; no position; and the tables cos
and sin, which broadcast to (B, 1, S, H) and have every number twice: in both halves of a row, or next to each other if
``interleaved`` is 1. Pairs of numbers are turned that lie as far apart as the two places of a table's number. With
``heads_axis`` 2 the heads stand behind the positions: x is (B, S, N, H), and the tables broadcast to (B, S, 1, H).

Where only the first numbers of each head are turned (GPT-J, GPT-NeoX, Phi), ``optc::PartialRotaryEmbedding`` has the
same inputs and attributes, x being the whole heads and H, in the shapes of the tables, ``rotary_embedding_dim``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir

from optc.ir.dims import Dim
from optc.ir.facts import Facts
from optc.ir.matcher import Match
from optc.ir.ops import axes_of, axis_of, cuts_of, made_by
from optc.ir.pattern import Var
from optc.passes.fusion.common import FLOATS
from optc.passes.rule import fusion

#: How a table tells that it has every number twice: facts, table, size of a row.
_Twice = Callable[[Facts, onnx_ir.Value | None, int], bool]


def _rotary_attributes(found: Match) -> dict[str, Any] | str:
    facts = found.facts
    kinds = {facts.dtype(value) for value in (found.x, found.cos, found.sin, found.output)}
    if len(kinds) != 1 or not kinds <= FLOATS:
        return "the heads, the tables and the result must be floats of one type"
    shape = facts.shape(found.x)
    if shape is None or len(shape) != 4:
        return "the heads must have 4 dims"
    size, interleaved = shape[3], "pairs" in found.bindings
    if not isinstance(size, int) or size % 2:
        return "the even size of the heads must be known"
    reason = _pairs_problem(found, shape) if interleaved else _halves_problem(found, size)
    if reason is not None:
        return reason
    reasons = [_tables_problem(found, shape, axis, _neighbours if interleaved else _mirrored) for axis in (1, 2)]
    if None not in reasons:
        return reasons[0] or ""
    return {"interleaved": int(interleaved)} | ({"heads_axis": 2} if reasons[0] is not None else {})


def _halves_problem(found: Match, size: int) -> str | None:
    """Why what is negated is not the second half of each head, or what is not, the first."""
    if found.axis not in (-1, 3):
        return "the halves must be joined along the last axis"
    half, wrong = size // 2, "the two halves of the last axis must change places"
    if "low" in found.bindings:
        return None if _cut(found, "low", 0, half, 1) and _cut(found, "high", half, size, 1) else wrong
    return None if _split(found, "first") == (half, half) else wrong


def _pairs_problem(found: Match, shape: tuple[Dim, ...]) -> str | None:
    """Why what is negated are not the odd places of each head, or what is not, the even ones."""
    facts, size = found.facts, shape[3]
    assert isinstance(size, int)
    if not (_cut(found, "even", 0, size, 2) and _cut(found, "odd", 1, size, 2)):
        return "the even and the odd places of the last axis must change places"
    join = found.pairs.producer()
    new = [value.producer() for value in join.inputs]
    if found.axis not in (-1, 4) or any(axes_of(node, facts) != (4,) for node in new):
        return "the pairs must be put together along a new last axis"
    return None if facts.shape(found.output) == shape else "the pairs must be joined into the last axis again"


def _cut(found: Match, name: str, start: int, stop: int, step: int) -> bool:
    """Whether a Slice takes these places of the last axis of the heads."""
    cuts, size = cuts_of(found[name].producer(), found.facts), (found.facts.shape(found.x) or (None,))[-1]
    if not isinstance(size, int) or cuts is None or len(cuts) != 1 or cuts[0].axis != 3 or cuts[0].step != step:
        return False
    end = cuts[0].end + size if cuts[0].end < 0 else min(cuts[0].end, size)
    return cuts[0].start in (start, start - size) and range(start, end, step) == range(start, stop, step)


def _split(found: Match, name: str) -> tuple[Dim, ...]:
    """The sizes along the last axis of what a Split, one of whose outputs has this name, makes of the heads."""
    shapes = [found.facts.shape(value) for value in found[name].producer().outputs]
    return tuple(shape[3] for shape in shapes if shape is not None and len(shape) == 4)


def _tables_problem(found: Match, heads: tuple[Dim, ...], axis: int, twice: _Twice) -> str | None:
    """Why the tables do not turn heads that stand along this axis."""
    if not isinstance(heads[axis], int):
        return "the number of heads must be known"
    for name in ("cos", "sin"):
        shape = found.facts.shape(found[name])
        if shape is None or len(shape) > 4 or len(shape) < 2:
            return f"{name}: the table must have 2 to 4 dims"
        padded: tuple[Dim, ...] = (*[1] * (4 - len(shape)), *shape)
        if padded[0] not in (1, heads[0]) or padded[1:] != (*heads[1:axis], 1, *heads[axis + 1 :]):
            return f"{name}: the table must have one row for every position, the same for all heads"
        assert isinstance(heads[3], int)
        if not twice(found.facts, found[name], heads[3]):
            return f"{name}: each number of the table must provably be there twice"
    return None


def _mirrored(facts: Facts, table: onnx_ir.Value | None, size: int) -> bool:
    """Whether both halves of the last axis of a table are equal."""
    table = _origin(facts, table, size)
    join = made_by(table, "Concat")
    if join is not None:
        last = (facts.rank(table) or 0) - 1
        return len(join.inputs) == 2 and join.inputs[0] is join.inputs[1] and axis_of(join, facts, last) == last
    array = facts.const(table)
    return array is not None and array.ndim > 0 and np.array_equal(*np.split(array, 2, axis=-1))


def _neighbours(facts: Facts, table: onnx_ir.Value | None, size: int) -> bool:
    """Whether every number at an even place of the last axis of a table is that of the next place."""
    table = _origin(facts, table, size)
    last = (facts.rank(table) or 0) - 1
    if (picked := made_by(table, "Gather")) is not None:
        places = tuple(place // 2 for place in range(size))
        return axis_of(picked, facts, 0) == last and facts.ints(picked.inputs[1]) == places
    joined = made_by(table, "Reshape")
    copies = None if joined is None else joined.inputs[0]
    wide, result = facts.shape(copies), facts.shape(table)
    if joined is not None and wide is not None and result is not None:
        node = made_by(copies, "Expand", "Tile", "Concat")
        new = made_by(None if node is None else node.inputs[0], "Unsqueeze")
        copied = node is not None and (node.op_type != "Concat" or len(set(node.inputs)) == 1)
        # A row of (size / 2, 2) is joined to one of size whatever happens to the axes before it.
        before = None if new is None else facts.shape(new.outputs[0])
        return copied and before is not None and before[-2:] == (size // 2, 1) and wide[-2:] == (size // 2, 2)
    array = facts.const(table)
    return array is not None and array.ndim > 0 and np.array_equal(array[..., ::2], array[..., 1::2])


def _origin(facts: Facts, table: onnx_ir.Value | None, size: int) -> onnx_ir.Value | None:
    """What the rows of a table were made of, number by number or row by row."""
    while (node := made_by(table, "Unsqueeze", "Cast", "Cos", "Sin", "Mul", "Gather", "Slice", "Identity")) is not None:
        sources = [value for value in node.inputs if node.op_type != "Mul" or facts.scalar(value) is None]
        if node.op_type == "Mul" and len(sources) != 1:
            break
        if node.op_type == "Gather" and axis_of(node, facts, 0) != 0:
            break
        if (facts.shape(sources[0]) or ())[-1:] != (size,):
            break
        table = sources[0]
    return table


@fusion("rotary-embedding", "RotaryEmbedding", inputs=("x", "position", "cos", "sin"), attributes=_rotary_attributes)
def rotary_embedding(p, x, cos, sin):
    """Every pair of numbers of a head, from its two halves or side by side, is turned by the angle of its position."""
    low, high = p.bind("low", p.Slice(x, ...)), p.bind("high", p.Slice(x, ...))
    even, odd = p.bind("even", p.Slice(x, ...)), p.bind("odd", p.Slice(x, ...))
    first = p.bind("first", p.op("Split", x, ..., output=0))
    second = p.op("Split", x, ..., output=1)
    axis = Var("axis")
    pairs = p.Concat(p.Unsqueeze(p.Neg(odd), ...), p.Unsqueeze(even, ...), axis=axis)
    turned = p.one_of(
        p.Concat(p.Neg(high), low, axis=axis),
        p.Concat(p.Neg(second), first, axis=axis),
        p.Reshape(p.bind("pairs", pairs), p.const()),
    )
    return x * cos + turned * sin


def _partial_attributes(found: Match) -> dict[str, Any] | str:
    heads, turned = found.facts.shape(found.x), found.facts.shape(found.turned)
    if heads is None or len(heads) != 4 or turned is None or not isinstance(heads[3], int):
        return "the size of the heads must be known"
    if found.axis not in (-1, 3):
        return "what is turned and what is not must be joined along the last axis"
    size, part = heads[3], turned[3]
    assert isinstance(part, int)
    if "front" in found.bindings:
        both = _cut(found, "front", 0, part, 1) and _cut(found, "back", part, size, 1)
    else:
        both = _split(found, "first") == (part, size - part)
    if not both:
        return "the first numbers of each head must be turned and all others kept"
    inner = {name: attribute.as_int() for name, attribute in found.turned.producer().attributes.items()}
    return inner | {"rotary_embedding_dim": part}


@fusion(
    "partial-rotary-embedding",
    "PartialRotaryEmbedding",
    inputs=("x", "position", "cos", "sin"),
    attributes=_partial_attributes,
)
def partial_rotary_embedding(p, x, cos, sin):
    """The first numbers of each head are turned, and the others kept."""
    front, back = p.bind("front", p.Slice(x, ...)), p.bind("back", p.Slice(x, ...))
    first, second = p.bind("first", p.op("Split", x, ..., output=0)), p.op("Split", x, ..., output=1)
    axis = Var("axis")

    def turned(part):
        return p.bind("turned", p.op("optc::RotaryEmbedding", part, None, cos, sin))

    return p.one_of(p.Concat(turned(front), back, axis=axis), p.Concat(turned(first), second, axis=axis))


RULES = (rotary_embedding, partial_rotary_embedding)
