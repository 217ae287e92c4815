"""Slices of slices, and pieces taken out of what was just joined, or joined again after a cut."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import onnx_ir

from optc.ir.dims import Dim
from optc.ir.facts import Facts
from optc.ir.ops import (
    TO_THE_END,
    Cut,
    axis_of,
    concat,
    cuts_of,
    is_op,
    made_by,
    only_use,
    operand,
    slice_,
    split,
)
from optc.ir.rewriter import Rewriter, copy_attributes, users
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


# pieces -----------------------------------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """Entries ``start`` to ``end`` of a value along an axis."""

    whole: onnx_ir.Value
    axis: int
    start: int
    end: int


def _piece(facts: Facts, value: onnx_ir.Value | None) -> _Piece | None:
    """What a value is a piece of, if a Slice or a Split of one axis makes it, with known bounds."""
    node = None if value is None else value.producer()
    whole = node.inputs[0] if node is not None and is_op(node, "Slice", "Split") else None
    shape = facts.shape(whole)
    if node is None or value is None or whole is None or shape is None:
        return None
    if node.op_type == "Slice":
        cuts = cuts_of(node, facts)
        if cuts is None or len(cuts) != 1 or cuts[0].step != 1:
            return None
        dim = shape[cuts[0].axis]
        start, end = (_from_front(bound, dim if isinstance(dim, int) else None) for bound in cuts[0][1:3])
        return None if start is None or end is None or start >= end else _Piece(whole, cuts[0].axis, start, end)
    axis = axis_of(node, facts, 0)
    place = value.index()
    if axis is None or place is None:
        return None
    sizes = [(facts.shape(part) or ())[axis : axis + 1] for part in node.outputs[: place + 1]]
    if not all(len(size) == 1 and isinstance(size[0], int) for size in sizes):
        return None
    ends = list(itertools.accumulate(int(size[0]) for size in sizes))  # type: ignore[arg-type]
    return _Piece(whole, axis, ends[-1] - sizes[-1][0], ends[-1])  # type: ignore[operator]


@node_rule("slices-to-split", "Slice")
def slices_to_split(rw: Rewriter, node: onnx_ir.Node):
    """Slices of one value that cover an axis are one Split."""
    first = _piece(rw.facts, node.outputs[0])
    dim = None if first is None else (rw.facts.shape(first.whole) or ())[first.axis]
    if first is None or first.start != 0 or not isinstance(dim, int) or first.end == dim:
        return None
    pieces: dict[int, tuple[_Piece, list[onnx_ir.Node]]] = {}
    for user in users(first.whole):
        piece = _piece(rw.facts, user.outputs[0]) if is_op(user, "Slice") else None
        if piece is None or piece.whole is not first.whole or piece.axis != first.axis or user.graph is not node.graph:
            continue
        same = pieces.setdefault(piece.start, (piece, []))
        if same[0] != piece:
            return "slices that start at the same place end at different ones"
        same[1].append(user)
    ordered = [pieces[start] for start in sorted(pieces)]
    if [piece.start for piece, _ in ordered] != [0, *(piece.end for piece, _ in ordered[:-1])] or ordered[-1][
        0
    ].end != dim:
        return "the slices do not cover the axis" if len(ordered) > 1 else None
    slices = [cut for _, nodes in ordered for cut in nodes]
    readers = {reader for cut in slices for reader in users(cut.outputs[0])}
    if len(readers) == 1 and all(is_op(reader, "Concat") for reader in readers):
        return None  # the pieces only change places, which other rules see better as it is
    if any(cut.outputs[0].is_graph_output() and len(nodes) > 1 for _, nodes in ordered for cut in nodes):
        return None
    chosen = set(slices)
    anchor = next(one for one in node.graph if one in chosen)  # type: ignore[union-attr]
    with rw.at(anchor, "slices-to-split", slices):
        parts = split(rw, first.whole, [piece.end - piece.start for piece, _ in ordered], first.axis)
    for part, (_, nodes) in zip(parts, ordered, strict=True):
        for cut in nodes:
            rw.replace(cut.outputs[0], part)
            rw.erase(cut)
    return True


@node_rule("concat-of-pieces", "Concat")
def concat_of_pieces(rw: Rewriter, node: onnx_ir.Node):
    """Pieces of one value that follow each other, joined again: the whole, or a larger piece."""
    axis = axis_of(node, rw.facts, 1, rw.facts.rank(node.outputs[0]))
    if axis is None or len(node.inputs) < 2:
        return None
    cut = None if node.inputs[0] is None else node.inputs[0].producer()
    if is_op(cut, "Split") and cut is not None and list(node.inputs) == list(cut.outputs):
        return cut.inputs[0] if axis_of(cut, rw.facts, 0) == axis else None
    runs: list[list[tuple[onnx_ir.Value, _Piece | None]]] = []
    for part in node.inputs:
        if part is None:
            return None
        piece, last = _piece(rw.facts, part), runs[-1][-1][1] if runs else None
        follows = piece is not None and last is not None and piece == last._replace(start=last.end, end=piece.end)
        if follows and piece is not None and piece.axis == axis:
            runs[-1].append((part, piece))
        else:
            runs.append([(part, piece)])
    if len(runs) == len(node.inputs):
        return None
    parts: list[onnx_ir.Value] = []
    for run in runs:
        (_, first), (_, last) = run[0], run[-1]
        if len(run) == 1 or first is None or last is None:
            parts.extend(value for value, _ in run)
            continue
        joined = first._replace(end=last.end)
        whole = (joined.start, joined.end) == (0, (rw.facts.shape(first.whole) or ())[axis])
        maker, values = run[0][0].producer(), [value for value, _ in run]
        goes = all(map(only_use, values))
        if whole:
            parts.append(first.whole)
        elif goes and is_op(maker, "Split") and maker is not None and all(v.producer() is maker for v in values):
            parts.append(_joined_outputs(rw, maker, values, axis))
        elif len(runs) == 1 or (goes and all(made_by(value, "Slice") for value in values)):
            # No more is moved than before: the Slice moves what the Concat moved, or what the smaller ones did.
            parts.append(slice_(rw, first.whole, [Cut(axis, joined.start, joined.end, 1)]))
        else:
            parts.extend(values)
    return concat(rw, parts, axis) if len(parts) < len(node.inputs) else None


def _joined_outputs(rw: Rewriter, node: onnx_ir.Node, values: list[onnx_ir.Value], axis: int) -> onnx_ir.Value:
    """Some neighbouring outputs of a Split as one: another Split, or a Slice where nothing else is left."""
    sizes = [int((rw.facts.shape(value) or ())[axis]) for value in node.outputs]  # type: ignore[arg-type]
    place, count = values[0].index() or 0, len(values)
    others = [value for value in node.outputs if value not in values]
    total = sum(sizes[place : place + count])
    x = node.inputs[0]
    assert x is not None
    with rw.at(node, "concat-of-pieces"):
        if not any(value.uses() or value.is_graph_output() for value in others):
            return slice_(rw, x, [Cut(axis, sum(sizes[:place]), sum(sizes[:place]) + total, 1)])
        parts = list(split(rw, x, [*sizes[:place], total, *sizes[place + count :]], axis))
    joined = parts.pop(place)
    for old, new in zip(others, parts, strict=True):
        rw.replace(old, new)
    return joined


@node_rule("split-of-concat", "Split")
def split_of_concat(rw: Rewriter, node: onnx_ir.Node):
    """A Split at places where parts were joined gives back the parts."""
    joined = made_by(node.inputs[0], "Concat")
    rank = rw.facts.rank(node.inputs[0])
    axis = axis_of(node, rw.facts, 0, rank)
    if joined is None or axis is None or axis_of(joined, rw.facts, 1, rank) != axis:
        return None
    dims = [(rw.facts.shape(part) or ())[axis : axis + 1] for part in joined.inputs]
    sizes = [(rw.facts.shape(part) or ())[axis : axis + 1] for part in node.outputs]
    if not all(dims) or not all(sizes):
        return None
    groups: list[list[onnx_ir.Value]] = []
    place = 0
    for (size,) in sizes:
        group: list[onnx_ir.Value | None] = []
        total: Dim = 0
        while place < len(dims) and total != size:
            total, group, place = total + dims[place][0], [*group, joined.inputs[place]], place + 1
        if total != size or not group:
            return "the pieces are not those that were joined"
        groups.append(group)  # type: ignore[arg-type]
    if place != len(dims) or sum(len(group) > 1 for group in groups) > 1:
        return "the pieces are not those that were joined"
    for out, parts in zip(node.outputs, groups, strict=True):
        if out.uses() or out.is_graph_output():
            rw.replace(out, concat(rw, parts, axis))
    rw.erase(node)
    return True


@node_rule("piece-of-split", "Split")
def piece_of_split(rw: Rewriter, node: onnx_ir.Node):
    """A Split of which one piece is read is a Slice: the others need not be moved."""
    read = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    piece = _piece(rw.facts, read[0]) if len(read) == 1 and len(node.outputs) > 1 else None
    if piece is None:
        return None
    rw.replace(read[0], slice_(rw, piece.whole, [Cut(piece.axis, piece.start, piece.end, 1)]))
    rw.erase(node)
    return True


@node_rule("slice-of-pad", "Slice")
def slice_of_pad(rw: Rewriter, node: onnx_ir.Node):
    """A Slice that takes away a part of what a Pad has just added: a smaller Pad."""
    pad, cuts = inner(node.inputs[0], "Pad"), cuts_of(node, rw.facts)
    shape, padded = (rw.facts.shape(value) for value in (pad.inputs[0] if pad else None, node.inputs[0]))
    if pad is None or cuts is None or shape is None or padded is None or rw.opset() < 11:
        return None
    amounts, axes = rw.facts.ints(operand(pad, 1)), rw.facts.ints(operand(pad, 3))
    if amounts is None or (operand(pad, 3) is not None and axes is None) or min(amounts, default=0) < 0:
        return None
    places = [axis % len(shape) for axis in (axes if axes is not None else range(len(shape)))]
    before, after = dict(zip(places, amounts, strict=False)), dict(zip(places, amounts[len(places) :], strict=True))
    for cut in cuts:
        dim = padded[cut.axis]
        first, last = cut.start, _dropped(cut.end, dim)
        if first < 0 and isinstance(dim, int):
            first = max(first + dim, 0)
        if last is None or cut.step != 1 or not 0 <= first <= before.get(cut.axis, 0) or last > after.get(cut.axis, 0):
            return "more is cut off than was added" if cut.axis in before else None
        before[cut.axis], after[cut.axis] = before.get(cut.axis, 0) - first, after.get(cut.axis, 0) - last
    new = [*(before[place] for place in places), *(after[place] for place in places)]
    if not any(new):
        return pad.inputs[0]
    attributes = {name: attr.value for name, attr in copy_attributes(pad).items()}
    return rw.op("Pad", pad.inputs[0], rw.constant(np.array(new, np.int64), "pads"), *pad.inputs[2:], **attributes)


def _dropped(end: int, dim: Dim) -> int | None:
    """How many entries a Slice leaves off at the end of an axis."""
    if end >= TO_THE_END:
        return 0
    if end < 0:
        return -end
    return max(dim - end, 0) if isinstance(dim, int) else None


RULES = (
    slice_chain,
    piece_of_concat,
    slices_to_split,
    concat_of_pieces,
    split_of_concat,
    piece_of_split,
    slice_of_pad,
)
