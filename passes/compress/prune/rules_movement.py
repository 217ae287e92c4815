"""How operators that only move elements tie axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optc.ir.dims import Dim, product
from optc.ir.ops import axes_of, axis_of, cuts_of, int_attr, ints_attr, operand, perm_of
from optc.passes.compress.prune.atoms import Axes, Ids
from optc.passes.compress.prune.scope import View, ids_of

_LOST = "what is not of a known form stays"


def concat(view: View) -> Sequence[Axes | None]:
    axis = axis_of(view.node, view.facts, 0)
    if axis is None or any(axes is None for axes in view.ins):
        view.freeze_inputs(_LOST)
        return [view.out(reason=_LOST)]
    given = [axes for axes in view.ins if axes is not None]
    result: list[Ids | None] = []
    for at in range(len(given[0])):
        parts = [axes[at] for axes in given]
        known = [ids for ids in parts if ids is not None]
        if at == axis:
            if len(known) < len(parts):
                for ids in known:
                    view.freeze(ids, "joined with an axis of unknown size")
            result.append(np.concatenate(known) if len(known) == len(parts) else None)
            continue
        for other in parts[1:]:
            view.tie(parts[0], other)
        result.append(parts[0])
    return [tuple(result)]


def split(view: View) -> Sequence[Axes | None]:
    axis, x = axis_of(view.node, view.facts, 0), view.axes(0)
    view.freeze_inputs("sizes of parts", 0)
    ids = ids_of(x, axis) if axis is not None else None
    shapes = [view.facts.shape(out) for out in view.node.outputs]
    sizes = [int(size) for shape in shapes if shape and isinstance(size := shape[axis or 0], int)]
    if x is None or ids is None or len(sizes) != len(shapes) or sum(sizes) != len(ids):
        view.freeze(x, _LOST)
        return [view.out(index, _LOST) for index in range(len(view.node.outputs))]
    ends = np.cumsum(sizes)
    parts = np.split(ids, ends[:-1])
    return [tuple(part if at == axis else one for at, one in enumerate(x)) for part in parts]


def slice_(view: View) -> Sequence[Axes | None]:
    x, cuts, made = view.axes(0), cuts_of(view.node, view.facts), view.out()
    view.freeze_inputs("bounds", 0)
    if x is None or made is None or cuts is None:
        view.freeze(x, "Slice cuts it at bounds that are not known")
        return [view.out(reason=_LOST)]
    result = list(x)
    for cut in cuts:
        ids = x[cut.axis]
        if ids is None:
            result[cut.axis] = made[cut.axis]
            view.freeze(made[cut.axis], "cut out of an axis of unknown size")
        elif cut.step != 1:
            view.freeze(ids, "Slice takes it in steps")
            result[cut.axis] = view.fixed(cut.axis)
        else:
            result[cut.axis] = ids[cut.start : cut.end]
    return [tuple(result)]


def gather(view: View) -> Sequence[Axes | None]:
    data, indices = view.axes(0), view.axes(1)
    axis = axis_of(view.node, view.facts, 0)
    if data is None or indices is None or axis is None:
        view.freeze_inputs(_LOST)
        return [view.out(reason=_LOST)]
    ids, chosen = data[axis], view.facts.const(operand(view.node, 1))
    middle: tuple[Ids | None, ...] = indices
    if ids is not None and chosen is not None and chosen.ndim < 2 and np.all(np.abs(chosen + 0.5) < len(ids)):
        picked = ids[chosen]
        if chosen.ndim:
            view.tie(indices[0], picked)
            middle = (picked,)
        else:
            view.freeze(picked.reshape(1), "Gather takes one position of it")
    else:
        view.freeze(ids, "Gather looks positions of it up")
        view.freeze(indices, "positions to look up")
    if view.is_const(0):
        for at, one in enumerate(data):
            if at != axis:
                view.writes(0, at, one)
    return [(*data[:axis], *middle, *data[axis + 1 :])]


def transpose(view: View) -> Sequence[Axes | None]:
    x, perm = view.axes(0), perm_of(view.node, view.facts)
    if x is None or perm is None:
        view.freeze_inputs(_LOST)
        return [view.out(reason=_LOST)]
    return [tuple(x[at] for at in perm)]


def reshape(view: View) -> Sequence[Axes | None]:
    """Reshape, Flatten, Squeeze and Unsqueeze, by the shapes before and behind."""
    x, made = view.axes(0), view.out()
    before, behind = view.shape(0), view.facts.shape(view.node.outputs[0])
    view.freeze_inputs("a shape", 0)
    if x is None or made is None or before is None or behind is None:
        view.freeze(x, _LOST)
        return [view.out(reason=_LOST)]
    if view.node.op_type == "Reshape":
        target = view.facts.elements(operand(view.node, 1)) if view.facts.opset() >= 5 else None
        if target is None or len(target) != len(behind):
            view.freeze(x, "Reshape has a target that is not known")
            return [view.out(reason=_LOST)]
        sure = [isinstance(entry, int) for entry in target]
    else:
        sure = [True] * len(behind)
    result: list[Ids | None] = list(made)
    for ins, outs in _segments(before, behind):
        _regroup(view, x, before, behind, ins, outs, result)
    for ids, certain in zip(result, sure, strict=True):
        if not certain:
            view.freeze(ids, "Reshape has a target that is not known")
    return [tuple(result)]


def _segments(before: Sequence[Dim], behind: Sequence[Dim]) -> list[tuple[list[int], list[int]]]:
    """Runs of axes before and behind that hold the same elements, as short as can be told."""
    found: list[tuple[list[int], list[int]]] = []
    ins: list[int] = []
    outs: list[int] = []
    i = o = 0
    while i < len(before) or o < len(behind):
        left, right = product(before[at] for at in ins), product(behind[at] for at in outs)
        if (ins or outs) and left == right and ins and outs:
            found.append((ins, outs))
            ins, outs = [], []
        elif not ins and i < len(before):
            ins.append(i)
            i += 1
        elif not outs and o < len(behind):
            outs.append(o)
            o += 1
        elif i < len(before) and (o >= len(behind) or _smaller(left, right)):
            ins.append(i)
            i += 1
        elif o < len(behind):
            outs.append(o)
            o += 1
    found.append((ins, outs))
    return found


def _smaller(left: Dim, right: Dim) -> bool:
    """Whether the left side is the one to go on with."""
    if isinstance(left, int) and isinstance(right, int):
        return left < right
    return isinstance(left, int)


def _regroup(
    view: View,
    x: Axes,
    before: Sequence[Dim],
    behind: Sequence[Dim],
    ins: list[int],
    outs: list[int],
    result: list[Ids | None],
) -> None:
    """Tie the axes of one segment; ``result`` has fresh ones for the output."""
    ins, ones = [at for at in ins if before[at] != 1], [at for at in outs if behind[at] == 1]
    outs = [at for at in outs if behind[at] != 1]
    for at in ones:
        view.freeze(result[at], "an axis of one position")
    left, made = [x[at] for at in ins], [result[at] for at in outs]
    parts, wholes = ([ids for ids in side if ids is not None] for side in (made, left))
    known = len(parts) == len(outs) and len(wholes) == len(ins)
    if len(ins) == 1 and len(outs) == 1 and before[ins[0]] == behind[outs[0]]:
        result[outs[0]] = left[0]
    elif known and len(ins) == 1 and len(outs) > 1:
        _factors(view, wholes[0].reshape([len(ids) for ids in parts]), parts)
    elif known and len(outs) == 1 and len(ins) > 1:
        _factors(view, parts[0].reshape([len(ids) for ids in wholes]), wholes)
    else:
        for ids in (*left, *made):
            view.freeze(ids, "Reshape mixes it with other axes")


def _factors(view: View, whole: Ids, factors: list[Ids]) -> None:
    """Tie an axis, seen as several, to the one of them that is shortened: whole slices of it go."""
    chosen = view.choose(factors)
    for at, ids in enumerate(factors):
        if chosen is None:
            continue
        if at == chosen:
            shape = [1] * whole.ndim
            shape[at] = -1
            view.atoms.tie(ids.reshape(shape), whole)
        else:
            view.freeze(ids, "part of an axis of which whole slices are removed")


def expand(view: View) -> Sequence[Axes | None]:
    x, made = view.axes(0), view.out()
    before, behind = view.shape(0), view.facts.shape(view.node.outputs[0])
    target = view.facts.elements(operand(view.node, 1))
    view.freeze_inputs("a shape", 0)
    if x is None or made is None or before is None or behind is None or target is None:
        view.freeze(x, _LOST)
        return [view.out(reason=_LOST)]
    result = list(made)
    for at in range(-len(made), 0):
        ids = ids_of(x, at)
        same = ids is not None and before[at] == behind[at]
        sure = len(target) < -at or isinstance(target[at], int)
        if same and sure:
            result[at] = ids
        elif not sure or (ids is not None and len(ids) != 1):
            view.freeze(ids, "Expand to a size that is not known")
            view.freeze(made[at], "Expand to a size that is not known")
    return [tuple(result)]


def tile(view: View) -> Sequence[Axes | None]:
    x, repeats = view.axes(0), view.facts.ints(operand(view.node, 1))
    view.freeze_inputs("counts", 0)
    if x is None or repeats is None or len(repeats) != len(x):
        view.freeze(x, _LOST)
        return [view.out(reason=_LOST)]
    return [tuple(ids if ids is None else np.tile(ids, count) for ids, count in zip(x, repeats, strict=True))]


def pad(view: View) -> Sequence[Axes | None]:
    x, made = view.axes(0), view.out()
    pads = view.facts.ints(operand(view.node, 1)) if view.facts.opset() >= 11 else ints_attr(view.node, "pads")
    given = view.facts.ints(operand(view.node, 3))
    plain = operand(view.node, 3) is None
    view.freeze_inputs("a parameter of the operator", 0)
    if x is None or made is None or pads is None or (not plain and given is None):
        view.freeze(x, _LOST)
        return [view.out(reason=_LOST)]
    axes = range(len(x)) if given is None else [at % len(x) for at in given]
    padded = {at for place, at in enumerate(axes) if pads[place] or pads[place + len(pads) // 2]}
    for at in padded:
        view.freeze(x[at], "Pad makes it longer")
        view.freeze(made[at], "Pad makes it longer")
    return [tuple(made[at] if at in padded else ids for at, ids in enumerate(x))]


def resize(view: View) -> Sequence[Axes | None]:
    """Resize and Upsample; what keeps its size is passed on."""
    x, made = view.axes(0), view.out()
    before, behind = view.shape(0), view.facts.shape(view.node.outputs[0])
    strange = ints_attr(view.node, "axes") is not None and operand(view.node, 3) is not None
    view.freeze_inputs("a parameter of the operator", 0)
    sizes = operand(view.node, 3)
    if x is None or made is None or before is None or behind is None or strange:
        view.freeze(x, _LOST)
        return [view.out(reason=_LOST)]
    if sizes is not None and view.facts.elements(sizes) is None:
        view.freeze(x, "Resize to a size that is not known")
        return [view.out(reason=_LOST)]
    result = list(x)
    for at in range(len(x)):
        if at > 1 or before[at] != behind[at]:
            view.freeze(x[at], f"{view.node.op_type} mixes it")
            view.freeze(made[at], f"{view.node.op_type} makes it")
            result[at] = made[at]
    return [tuple(result)]


def depth_to_space(view: View) -> Sequence[Axes | None]:
    x, made, side = view.axes(0), view.out(), int_attr(view.node, "blocksize", 0)
    if x is None or made is None or x[1] is None or made[1] is None or side < 1:
        view.freeze_inputs(_LOST)
        return [view.out(reason=_LOST)]
    mode = view.node.attributes.get("mode")
    crd = mode is not None and mode.as_string() == "CRD"
    view.freeze(made[2:], "made of channels")
    view.freeze(x[2:], "mixed with channels")
    if crd:
        view.atoms.tie(made[1][:, None], x[1].reshape(-1, side * side))
    else:
        view.atoms.tie(made[1][None, :], x[1].reshape(side * side, -1))
    return [(x[0], made[1], *made[2:])]


def space_to_depth(view: View) -> Sequence[Axes | None]:
    x, made, side = view.axes(0), view.out(), int_attr(view.node, "blocksize", 0)
    if x is None or made is None or x[1] is None or side < 1:
        view.freeze_inputs(_LOST)
        return [view.out(reason=_LOST)]
    view.freeze(made[2:], "a part becomes channels")
    view.freeze(x[2:], "a part becomes channels")
    return [(x[0], np.tile(x[1], side * side), *made[2:])]


def reduction(view: View) -> Sequence[Axes | None]:
    x, axes, made = view.axes(0), axes_of(view.node, view.facts), view.out()
    view.freeze_inputs("axes", 0)
    if x is None or axes is None or made is None:
        view.freeze(x, _LOST)
        return [view.out(reason=_LOST)]
    return [_without(view, x, made, axes, bool(int_attr(view.node, "keepdims", 1)))]


def selection(view: View) -> Sequence[Axes | None]:
    """ArgMax and ArgMin: one axis is searched."""
    axis, x, made = axis_of(view.node, view.facts, 0), view.axes(0), view.out()
    if x is None or axis is None or made is None:
        view.freeze_inputs(_LOST)
        return [view.out(reason=_LOST)]
    return [_without(view, x, made, (axis,), bool(int_attr(view.node, "keepdims", 1)))]


def largest(view: View) -> Sequence[Axes | None]:
    """TopK: the positions that it hands on would be others along a shorter axis."""
    axis, x = axis_of(view.node, view.facts, -1), view.axes(0)
    if x is None or axis is None:
        view.freeze_inputs(_LOST)
        return [view.out(index, _LOST) for index in range(len(view.node.outputs))]
    view.freeze(x[axis], "TopK hands on positions of it")
    view.freeze_inputs("a parameter of the operator", 0)
    return [(*x[:axis], view.fixed(axis, index), *x[axis + 1 :]) for index in range(len(view.node.outputs))]


def _without(view: View, x: Axes, made: Axes, axes: Sequence[int], keeps: bool) -> Axes:
    for at in axes:
        view.freeze(x[at], f"{view.node.op_type} mixes all of it")
    if keeps:
        for at in axes:
            view.freeze(made[at], "an axis of one position")
        return tuple(made[at] if at in axes else ids for at, ids in enumerate(x))
    return tuple(ids for at, ids in enumerate(x) if at not in axes)


def shape_of(view: View) -> Sequence[Axes | None]:
    """Shape and Size: numbers would change; harmless where only other axes of them are looked at."""
    x, out = view.axes(0), view.node.outputs[0]
    for at, ids in enumerate(x or ()):
        if view.node.op_type != "Shape" or _looked_at(view, at, len(x or ())):
            view.freeze(ids, "its size is computed with")
    return [view.state.new(view.facts.shape(out), "sizes")]


def _looked_at(view: View, axis: int, rank: int) -> bool:
    """Whether somebody may see the size of an axis in the output of Shape."""
    start, end = int_attr(view.node, "start", 0), int_attr(view.node, "end", rank)
    seen = list(range(rank))[start:end]
    if axis not in seen:
        return False
    out = view.node.outputs[0]
    if out.is_graph_output():
        return True
    for use in out.uses():
        reader = use.node
        indices = view.facts.ints(operand(reader, 1)) if reader.op_type == "Gather" and use.idx == 0 else None
        if reader.op_type == "Slice" and use.idx == 0:
            cuts = cuts_of(reader, view.facts)
            if cuts is not None and len(cuts) == 1:
                cut = cuts[0]
                indices = tuple(range(len(seen))[slice(cut.start, cut.end, cut.step)])
        if indices is None or axis in {seen[index] for index in indices if -len(seen) <= index < len(seen)}:
            return True
    return False
