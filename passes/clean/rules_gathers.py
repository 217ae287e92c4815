"""Gathers at indices that follow each other, which are slices."""

from __future__ import annotations

import numpy as np
import onnx_ir

from optc.ir.dims import Dim, SymDim, product, provably_ge
from optc.ir.dims_core import sole_factor
from optc.ir.ops import axis_of, int_attr, made_by, unsqueeze, view
from optc.ir.rewriter import Rewriter
from optc.passes.clean.contents import Grid, grid
from optc.passes.clean.shape_plans import Plan, Planner, Sources, build, nodes_of
from optc.passes.rule import node_rule

#: No more nodes than this are spent on the bounds of a slice.
_MAX_NODES = 3
#: The opset from which Slice takes its bounds as inputs.
_BOUNDS_SINCE = 10


@node_rule("gather-range", "Gather")
def gather_range(rw: Rewriter, node: onnx_ir.Node):
    """Entries at indices that count up by one are a Slice: the rows of a table for the positions 0, 1, 2, ..."""
    facts, (data, indices) = rw.facts, node.inputs
    shape, wide, axis = facts.shape(data), facts.shape(indices), axis_of(node, facts, 0)
    if data is None or shape is None or not wide or axis is None or rw.opset() < _BOUNDS_SINCE:
        return None
    count = None if facts.elements(data) is not None else grid(facts, indices)
    if count is None or not count.axes() or not _is_contiguous(count, wide):
        return None
    if not provably_ge(count.start, 0):
        return "the first index may count from the end"
    length = product(wide)
    result = (*shape[:axis], *wide, *shape[axis + 1 :])
    if (count.start, length) == (0, shape[axis]):
        new = _viewed(rw, data, result)
    else:
        if len(count.axes()) != 1:
            return "the indices count along several axes"
        limits = _vectors(rw, count.start, _end(count.start, length, shape[axis] - count.start))
        if isinstance(limits, str):
            return limits
        new = rw.op("Slice", data, *limits, rw.constant(np.array([axis], np.int64), "axis"))
        others = [axis + place for place, dim in enumerate(wide) if dim == 1]
        if others:
            new = unsqueeze(rw, new, others)
    if isinstance(new, onnx_ir.Value) and new is not data:
        # No index is out of bounds in a run that succeeds, so nothing is cut short.
        facts.assume(new, node.outputs[0])
    return new


def _viewed(rw: Rewriter, x: onnx_ir.Value, shape: tuple[Dim, ...]) -> onnx_ir.Value | str:
    """``x`` in another shape, or what it is a view of."""
    new = view(rw, x, shape)
    before = made_by(x, "Reshape", "Flatten", "Squeeze", "Unsqueeze")
    if new is None and before is not None and before.inputs[0] is not None:
        new = view(rw, before.inputs[0], shape)
    return "no constant target leads to the shape of the result" if new is None else new


def _is_contiguous(count: Grid, shape: tuple[Dim, ...]) -> bool:
    """Whether the indices, in their order, are consecutive integers."""
    step: Dim = 1
    for axis in reversed(range(len(shape))):
        if shape[axis] == 1:
            continue
        if count.steps[axis] != step:
            return False
        step = step * shape[axis]
    return True


@node_rule("gather-grid", "GatherND")
def gather_grid(rw: Rewriter, node: onnx_ir.Node):
    """Entries at all pairs of a row and a column, both counted from 0: a part of the matrix with further axes."""
    facts, (data, indices) = rw.facts, node.inputs
    shape, result, join = facts.shape(data), facts.shape(node.outputs[0]), made_by(indices, "Concat")
    if data is None or shape is None or result is None or join is None or int_attr(node, "batch_dims", 0):
        return None
    if axis_of(join, facts, -1, facts.rank(indices)) != len(result) or len(join.inputs) != len(shape):
        return None
    counts = [grid(facts, part) for part in join.inputs]
    taken: list[int] = []
    for count, part in zip(counts, join.inputs, strict=True):
        dims = facts.shape(part)
        if count is None or dims is None or dims[-1] != 1 or len(count.axes()) != 1:
            return None
        (axis,) = count.axes()
        if count.steps[axis] != 1 or count.start != 0 or dims[axis] != result[axis]:
            return "every index must be counted from 0, by one"
        taken.append(axis)
    if taken != sorted(set(taken)) or any(dim != 1 for axis, dim in enumerate(result) if axis not in taken):
        return "the result must have the axes of the data in their order, and no others"
    cut = [(place, result[axis]) for place, axis in enumerate(taken) if shape[place] != result[axis]]
    if len(cut) > 1:
        return "no more than one axis of the data may be cut"
    # A gather beyond the end fails, so whatever runs has at least as many entries as are counted. (The exception is a
    # run in which the other count is 0: an empty tensor of disputed shape, which is disregarded.)
    ends = _vectors(rw, *(end for _, end in cut))
    if isinstance(ends, str):
        return ends
    for (place, _), end in zip(cut, ends, strict=True):
        start, along = (rw.constant(np.array([number], np.int64), "bound") for number in (0, place))
        data = rw.op("Slice", data, start, end, along)
    new = unsqueeze(rw, data, [axis for axis in range(len(result)) if axis not in taken])
    facts.assume(new, node.outputs[0])
    return new


@node_rule("gather-rows", "Gather")
def gather_rows(rw: Rewriter, node: onnx_ir.Node):
    """The first entries of every row of a matrix, gathered from all its entries in a line: the matrix, cut short."""
    facts, (line, indices) = rw.facts, node.inputs
    flat = made_by(line, "Flatten", "Reshape")
    matrix = None if flat is None else flat.inputs[0]
    shape, dims, wide = facts.shape(matrix), facts.shape(line), facts.shape(indices)
    if matrix is None or shape is None or dims is None or wide is None or len(shape) != 2 or axis_of(node, facts, 0):
        return None
    if dims[0] != shape[0] * shape[1] or any(dim != 1 for dim in dims[1:]) or rw.opset() < _BOUNDS_SINCE:
        return None
    count = grid(facts, indices)
    if count is None or count.start != 0 or len(count.axes()) != 2:
        return None
    rows, columns = count.axes()
    if any(dim != 1 for axis, dim in enumerate(wide) if axis not in (rows, columns)):
        return None
    if (count.steps[rows], count.steps[columns], wide[rows]) != (shape[1], 1, shape[0]):
        return "the indices must count through every row from its start"
    # What is gathered of the last row must not go beyond the end, so no row is shorter than what is gathered of it.
    if wide[columns] != shape[1]:
        ends = _vectors(rw, wide[columns])
        if isinstance(ends, str):
            return ends
        start, along = (rw.constant(np.array([number], np.int64), "bound") for number in (0, 1))
        matrix = rw.op("Slice", matrix, start, *ends, along)
        facts.assume_shape(matrix, (wide[rows], wide[columns]))
    result = len(wide) + len(dims) - 1
    new = unsqueeze(rw, matrix, [axis for axis in range(result) if axis not in (rows, columns)])
    facts.assume(new, node.outputs[0])
    return new


def _end(start: Dim, length: Dim, room: Dim) -> Dim:
    """An end that cuts the same slice as ``start + length``, as simple as can be.

    A slice is cut off where there is no more room, and is empty where it ends before it starts.
    """
    factor = sole_factor(length)
    if factor is not None and factor.op in ("min", "max") and len(factor.args) == 2:
        for bound, other in (factor.args, tuple(reversed(factor.args))):
            if factor.op == "min" and provably_ge(bound, room):
                return start + other
            if factor.op == "max" and bound == 0 and provably_ge(start + other, 0):
                return start + other
    return start + length


def _vectors(rw: Rewriter, *dims: Dim) -> tuple[onnx_ir.Value, ...] | str:
    """Vectors of one dim each, computed from the shapes of the model's inputs; or why that is not done."""
    sources = Sources()
    for value in rw.model.graph.inputs:
        sources.add(value, rw.facts.shape(value) or (), item=False, is_input=True)
    planner = Planner(rw, sources)
    plans = [planner.plan((dim,), 1, onnx_ir.DataType.INT64) if isinstance(dim, SymDim) else (dim,) for dim in dims]
    if None in plans:
        return "the bounds cannot be computed from the inputs"
    if len({node for plan in plans if plan is not None for node in nodes_of(plan)}) > _MAX_NODES:
        return "the bounds take too many nodes to compute"
    built: dict[Plan, onnx_ir.Value] = {}
    return tuple(build(rw, plan, built) for plan in plans if plan is not None)


RULES = (gather_range, gather_grid, gather_rows)
