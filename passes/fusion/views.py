"""Transposes beside views: done in one, or not at all. After attention is recognised, whose heads they make."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from optc.ir.dims import Dim
from optc.ir.ops import made_by, nonzero_dims, only_use, perm_of, reshape, reshape_target, transpose, view
from optc.ir.rewriter import Rewriter
from optc.passes.clean.rules_transposes import is_identity
from optc.passes.rule import node_rule


@node_rule("transpose-is-view", "Transpose")
def transpose_is_view(rw: Rewriter, node: onnx_ir.Node):
    """A Transpose that only moves axes of one entry moves no element."""
    shape, perm = rw.facts.shape(node.inputs[0]), perm_of(node, rw.facts)
    if shape is None or perm is None or len(shape) != len(perm) or is_identity(perm):
        return None
    moved = [axis for axis in perm if shape[axis] != 1]
    if moved != sorted(moved):
        return None
    return view(rw, node.inputs[0], [shape[axis] for axis in perm]) or "no constant shape is right for every size"


@node_rule("transpose-through-view", "Transpose")
def transpose_through_view(rw: Rewriter, node: onnx_ir.Node):
    """Transposes before and behind a Reshape that only joins or splits axes are one, or none."""
    facts, between = rw.facts, made_by(node.inputs[0], "Reshape", "Flatten", "Squeeze", "Unsqueeze")
    before = made_by(between.inputs[0], "Transpose") if between is not None else None
    if between is None or before is None:
        return None
    x, first, second = before.inputs[0], perm_of(before, facts), perm_of(node, facts)
    source, middle, wanted = facts.shape(x), facts.shape(between.outputs[0]), facts.shape(node.outputs[0])
    if None in (first, second, source, middle, wanted):
        return None
    segments = _segments([source[axis] for axis in first], list(middle))  # type: ignore[index, union-attr, arg-type]
    perm = None if segments is None else _joint_order(segments, first, second)  # type: ignore[arg-type]
    if perm is None:
        return "the axes between are torn apart"
    if not is_identity(perm) and not (only_use(before.outputs[0]) and only_use(between.outputs[0])):
        return "the first Transpose is needed anyway"
    target = reshape_target([source[axis] for axis in perm], wanted, nonzero_dims(between, facts))  # type: ignore[index, arg-type]
    if target is None:
        return "no constant shape is right for every size"
    with rw.at(node, "transpose-through-view", [before, between]):
        return reshape(rw, x if is_identity(perm) else transpose(rw, x, perm), target)


#: Places of axes before a Reshape, and of those that they become.
_Segment = tuple[list[int], list[int]]


def _segments(before: Sequence[Dim], after: Sequence[Dim]) -> list[_Segment] | None:
    """The smallest groups of axes that a Reshape turns into each other, in order."""
    found: list[_Segment] = []
    i = j = 0
    while i < len(before) or j < len(after):
        sizes = sorted(
            ((a, b) for a in range(len(before) - i + 1) for b in range(len(after) - j + 1) if a + b), key=sum
        )
        step = next(((a, b) for a, b in sizes if _product(before[i : i + a]) == _product(after[j : j + b])), None)
        if step is None:
            return None
        found.append((list(range(i, i + step[0])), list(range(j, j + step[1]))))
        i, j = i + step[0], j + step[1]
    return found


def _product(dims: Sequence[Dim]) -> Dim:
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return total


def _joint_order(segments: Sequence[_Segment], first: Sequence[int], second: Sequence[int]) -> tuple[int, ...] | None:
    """The one permutation of the first input's axes in place of two; None if the second one tears a group apart."""
    group = {place: index for index, (_, after) in enumerate(segments) for place in after}
    loose = [first[place] for before, after in segments if not after for place in before]
    order: list[int] = []
    place = 0
    while place < len(second):
        before, after = segments[group[second[place]]]
        if list(second[place : place + len(after)]) != after:
            return None
        order += [first[axis] for axis in before]
        place += len(after)
    return (*order, *loose)
