"""Slices of slices, and pieces taken out of what was just joined, or joined again after a cut."""

from __future__ import annotations

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import TO_THE_END, Cut, axis_of, cuts_of, made_by, operand, slice_
from optc.ir.rewriter import Rewriter
from optc.passes.clean.common import inner
from optc.passes.rule import node_rule


@node_rule("slice-chain", "Slice")
def slice_chain(rw: Rewriter, node: onnx_ir.Node):
    """Slice of Slice is one Slice, where constant bounds can be brought together."""
    before = inner(node.inputs[0], "Slice")
    if before is None:
        return None
    first, second = cuts_of(before, rw.facts), cuts_of(node, rw.facts)
    if first is None or second is None:
        return None
    cuts = {cut.axis: cut for cut in first}
    for cut in second:
        merged = _merged(cuts[cut.axis], cut) if cut.axis in cuts else cut
        if merged is None:
            return None
        cuts[cut.axis] = merged
    return slice_(rw, before.inputs[0], [cuts[axis] for axis in sorted(cuts)])


def _merged(first: Cut, second: Cut) -> Cut | None:
    """Two cuts of one axis as one; only where all bounds count from the front, so that the dim does not matter."""
    if first.step != 1 or second.step < 1 or min(first.start, first.end, second.start, second.end) < 0:
        return None
    start = first.start + second.start
    end = first.end if second.end >= TO_THE_END else min(first.end, first.start + second.end)
    return Cut(first.axis, start, max(start, end), second.step)


@node_rule("piece-of-concat", "Gather", "Slice")
def piece_of_concat(rw: Rewriter, node: onnx_ir.Node):
    """A Gather or Slice along the axis of a Concat that stays within one of its parts takes from that part only."""
    joined = made_by(node.inputs[0], "Concat")
    if joined is None:
        return None
    axis = axis_of(joined, rw.facts, 1, rw.facts.rank(node.inputs[0]))
    if axis is None:
        return None
    ends = _part_ends(rw.facts, joined, axis)
    return (
        _gathered(rw, node, joined, axis, ends) if node.op_type == "Gather" else _sliced(rw, node, joined, axis, ends)
    )


def _part_ends(facts: Facts, joined: onnx_ir.Node, axis: int) -> list[int]:
    """Where the first parts end, as far as their dims are integers."""
    ends: list[int] = []
    for part in joined.inputs:
        shape = facts.shape(part)
        dim = None if shape is None else shape[axis]
        if not isinstance(dim, int):
            break
        ends.append(dim + (ends[-1] if ends else 0))
    return ends


def _holder(ends: list[int], first: int, last: int) -> tuple[int, int] | None:
    """The place of the part that holds all entries from ``first`` to ``last``, and where it starts."""
    start = 0
    for place, end in enumerate(ends):
        if start <= first and last < end:
            return place, start
        start = end
    return None


def _gathered(rw: Rewriter, node: onnx_ir.Node, joined: onnx_ir.Node, axis: int, ends: list[int]):
    if axis_of(node, rw.facts, 0) != axis:
        return None
    indices = rw.facts.ints(operand(node, 1))
    if not indices:
        return None
    if min(indices) < 0:
        if len(ends) < len(joined.inputs):
            return None
        indices = tuple(index + ends[-1] if index < 0 else index for index in indices)
    found = _holder(ends, min(indices), max(indices))
    if found is None:
        return None
    place, start = found
    shape = tuple(rw.facts.shape(operand(node, 1)) or ())
    part = joined.inputs[place]
    moved = tuple(index - start for index in indices)
    if shape == (ends[place] - start,) and moved == tuple(range(shape[0])):
        return part
    return rw.op("Gather", part, rw.constant(np.array(moved, np.int64).reshape(shape), "indices"), axis=axis)


def _sliced(rw: Rewriter, node: onnx_ir.Node, joined: onnx_ir.Node, axis: int, ends: list[int]):
    cuts = cuts_of(node, rw.facts)
    cut = next((cut for cut in cuts or () if cut.axis == axis), None)
    if cuts is None or cut is None or cut.step < 1:
        return None
    total = ends[-1] if len(ends) == len(joined.inputs) else None
    start, end = (_from_front(bound, total) for bound in (cut.start, cut.end))
    if start is None or end is None or start >= end:
        return None
    found = _holder(ends, start, end - 1)
    if found is None:
        return None
    place, offset = found
    part, size = joined.inputs[place], ends[place] - offset
    moved = Cut(axis, start - offset, end - offset, cut.step)
    rest = [other for other in cuts if other.axis != axis]
    if moved == Cut(axis, 0, size, 1):
        return slice_(rw, part, rest) if rest else part
    return slice_(rw, part, sorted([*rest, moved]))


def _from_front(bound: int, total: int | None) -> int | None:
    if total is None:
        return bound if 0 <= bound < TO_THE_END else None
    return min(max(bound + total if bound < 0 else bound, 0), total)


@node_rule("concat-of-split", "Concat")
def concat_of_split(rw: Rewriter, node: onnx_ir.Node):
    """Joining all pieces of a Split again, in their order and along their axis, gives back the whole."""
    producer = None if node.inputs[0] is None else node.inputs[0].producer()
    if (
        producer is None
        or producer.op_type != "Split"
        or producer.domain
        or list(node.inputs) != list(producer.outputs)
    ):
        return None
    rank = rw.facts.rank(producer.inputs[0])
    axis = axis_of(node, rw.facts, 1, rank)
    return producer.inputs[0] if axis is not None and axis == axis_of(producer, rw.facts, 0, rank) else None


RULES = (slice_chain, piece_of_concat, concat_of_split)
