"""Masks of attention as torch.export builds them: element by element from a grid of indices."""

from __future__ import annotations

import numpy as np
import onnx_ir

from optc.ir import ops
from optc.ir.dims import Dim
from optc.ir.facts import Facts
from optc.ir.matcher import attribute
from optc.ir.rewriter import Rewriter
from optc.passes.rule import node_rule


@node_rule("grid-gather", "GatherND")
def grid_gather(rw: Rewriter, node: onnx_ir.Node):
    """A matrix gathered at all pairs of a row and a column, both counted from 0, is a part of it with further axes."""
    facts, (data, indices) = rw.facts, node.inputs
    shape, result = facts.shape(data), facts.shape(node.outputs[0])
    if shape is None or result is None or len(shape) != 2 or attribute(node, "batch_dims", facts) not in (0, None):
        return None
    join = ops.made_by(indices, "Concat")
    if join is None or len(join.inputs) != 2 or attribute(join, "axis", facts) not in (-1, len(result)):
        return None
    counts = [found for part in join.inputs if (found := _count_of(facts, part, len(result))) is not None]
    if len(counts) != 2:
        return "rows and columns must be counted from 0, each along one axis"
    (rows, row_axis), (columns, column_axis) = counts
    lengths = [dims[0] for count in (rows, columns) if (dims := facts.shape(count)) is not None]
    wanted: list[Dim] = [1] * len(result)
    wanted[row_axis], wanted[column_axis] = lengths
    if row_axis >= column_axis or result != tuple(wanted):
        return "the result must have the rows before the columns, and no other axes"
    for axis, count in enumerate((rows, columns)):
        if shape[axis] != lengths[axis]:
            # A gather beyond the end fails, so whatever runs has at least as many as are counted.
            start, along = (rw.constant(np.array([x], np.int64), "bound") for x in (0, axis))
            data = rw.op("Slice", data, start, rw.op("Shape", count), along)
    return ops.unsqueeze(rw, data, tuple(a for a in range(len(result)) if a not in (row_axis, column_axis)))


def _count_of(facts: Facts, part: onnx_ir.Value | None, rank: int) -> tuple[onnx_ir.Value, int] | None:
    """The Range from 0 that an index of a grid is, and the axis along which it counts."""
    last = ops.made_by(part, "Unsqueeze")
    if last is None or ops.axes_of(last, facts) != (rank,):
        return None
    value = last.inputs[0]
    spread = ops.made_by(value, "Expand")
    if spread is not None:
        value = spread.inputs[0]
    placed = ops.made_by(value, "Unsqueeze")
    shape = facts.shape(value)
    count = ops.made_by(placed.inputs[0] if placed is not None else None, "Range")
    if count is None or shape is None or len(shape) != rank or facts.rank(count.outputs[0]) != 1:
        return None
    if facts.scalar(count.inputs[0]) != 0 or facts.scalar(count.inputs[2]) != 1:
        return None
    axes = ops.axes_of(placed, facts)
    left = [axis for axis in range(rank) if axes is not None and axis not in {a % rank for a in axes}]
    return (count.outputs[0], left[0]) if len(left) == 1 else None


RULES = (grid_gather,)
