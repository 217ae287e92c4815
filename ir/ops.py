"""Writing and reading standard operators whose form depends on the opset.

Axes, slice bounds, split sizes and the like were attributes once and became inputs later. The builders write the form
that the model's opset asks for, the readers understand all of them, and nobody else needs to know. Versions are those
of onnx/docs/Changelog.md.

Builders insert before the rewriter's anchor and return the new value. Readers return None for what is not known.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir

from optc.ir.dims import Dim, provably_positive
from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter

_REDUCTIONS_OF_18 = ("Max", "Min", "Mean", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
#: The opset from which an operator takes its axes as an input.
AXES_INPUT_SINCE = {
    "Squeeze": 13,
    "Unsqueeze": 13,
    "ReduceSum": 13,
    **dict.fromkeys((f"Reduce{kind}" for kind in _REDUCTIONS_OF_18), 18),
}
REDUCTIONS = tuple(op for op in AXES_INPUT_SINCE if op.startswith("Reduce"))

#: Slice ends from here on mean "to the end", whatever the dim.
TO_THE_END = 2**31 - 1


class Cut(NamedTuple):
    """What a Slice does to one axis."""

    axis: int
    start: int
    end: int
    step: int


# builders ---------------------------------------------------------------------------------------------------------


def reshape(rw: Rewriter, x: onnx_ir.Value, target: Sequence[int], allowzero: bool = False) -> onnx_ir.Value:
    """``x`` in another shape; 0 copies the dim of that place (unless ``allowzero``), -1 is what is left."""
    if rw.opset() < 5:
        return rw.op("Reshape", x, shape=list(target))
    return rw.op("Reshape", x, _ints(rw, target, "shape"), allowzero=1 if allowzero else None)


def transpose(rw: Rewriter, x: onnx_ir.Value, perm: Sequence[int]) -> onnx_ir.Value:
    """``x`` with its axes in another order."""
    return rw.op("Transpose", x, perm=list(perm))


def squeeze(rw: Rewriter, x: onnx_ir.Value, axes: Sequence[int]) -> onnx_ir.Value:
    """``x`` without these axes, whose dims are 1."""
    return _with_axes(rw, "Squeeze", x, axes)


def unsqueeze(rw: Rewriter, x: onnx_ir.Value, axes: Sequence[int]) -> onnx_ir.Value:
    """``x`` with new axes of dim 1, counted in the result."""
    return _with_axes(rw, "Unsqueeze", x, axes)


def reduction(rw: Rewriter, op: str, x: onnx_ir.Value, axes: Sequence[int], keepdims: bool) -> onnx_ir.Value:
    """One of :data:`REDUCTIONS` over these axes (at least one)."""
    return _with_axes(rw, op, x, axes, keepdims=int(keepdims))


def slice_(rw: Rewriter, x: onnx_ir.Value, cuts: Sequence[Cut]) -> onnx_ir.Value:
    """``x`` cut along several axes. Steps other than 1 need opset 10."""
    axes, starts, ends, steps = (list(column) for column in zip(*cuts, strict=True))
    if rw.opset() < 10:
        if any(step != 1 for step in steps):
            raise ValueError("Slice has steps only from opset 10 on")
        return rw.op("Slice", x, starts=starts, ends=ends, axes=axes)
    operands = [_ints(rw, starts, "starts"), _ints(rw, ends, "ends"), _ints(rw, axes, "axes")]
    if any(step != 1 for step in steps):
        operands.append(_ints(rw, steps, "steps"))
    return rw.op("Slice", x, *operands)


def split(rw: Rewriter, x: onnx_ir.Value, sizes: Sequence[int], axis: int) -> tuple[onnx_ir.Value, ...]:
    """``x`` in pieces of these sizes along an axis."""
    if rw.opset() < 13:
        parts = rw.op("Split", x, outputs=len(sizes), axis=axis, split=list(sizes))
    else:
        parts = rw.op("Split", x, _ints(rw, sizes, "sizes"), outputs=len(sizes), axis=axis)
    return (parts,) if len(sizes) == 1 else parts


def gather(rw: Rewriter, x: onnx_ir.Value, indices: int | Sequence[int], axis: int) -> onnx_ir.Value:
    """The entries of ``x`` at these indices; one integer takes the axis away."""
    return rw.op("Gather", x, rw.constant(np.array(indices, np.int64), "indices"), axis=axis)


def concat(rw: Rewriter, parts: Sequence[onnx_ir.Value], axis: int) -> onnx_ir.Value:
    """The parts joined along an axis; a single part is itself."""
    return parts[0] if len(parts) == 1 else rw.op("Concat", *parts, axis=axis)


def cast(rw: Rewriter, x: onnx_ir.Value, dtype: onnx_ir.DataType) -> onnx_ir.Value:
    """``x`` in another dtype."""
    return rw.op("Cast", x, to=int(dtype))


def _with_axes(rw: Rewriter, op: str, x: onnx_ir.Value, axes: Sequence[int], **attributes: Any) -> onnx_ir.Value:
    if rw.opset() < AXES_INPUT_SINCE[op]:
        return rw.op(op, x, axes=list(axes), **attributes)
    return rw.op(op, x, _ints(rw, axes, "axes"), **attributes)


def _ints(rw: Rewriter, items: Sequence[int], name: str) -> onnx_ir.Value:
    return rw.constant(np.array(items, np.int64), name)


# readers ----------------------------------------------------------------------------------------------------------


def operand(node: onnx_ir.Node, index: int) -> onnx_ir.Value | None:
    """Input ``index`` of a node; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def int_attr(node: onnx_ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    attr = node.attributes.get(name)
    return default if attr is None else attr.as_int()


def ints_attr(node: onnx_ir.Node, name: str) -> tuple[int, ...] | None:
    """An attribute that lists integers; None where it is not set."""
    attr = node.attributes.get(name)
    return None if attr is None else tuple(attr.as_ints())


def is_op(node: onnx_ir.Node | None, *ops: str) -> bool:
    """Whether a node is one of these standard operators."""
    return node is not None and node.domain == "" and node.op_type in ops


def made_by(value: onnx_ir.Value | None, *ops: str) -> onnx_ir.Node | None:
    """The node that makes a value as its first output, if it is one of these standard operators."""
    node = None if value is None else value.producer()
    return node if node is not None and is_op(node, *ops) and node.outputs[0] is value else None


def only_use(value: onnx_ir.Value) -> bool:
    """Whether exactly one input of one node reads the value, and it is no graph output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def axis_of(node: onnx_ir.Node, facts: Facts, default: int, rank: int | None = None) -> int | None:
    """The attribute ``axis`` counted from the front (in the first input's rank, unless another is given)."""
    axis = int_attr(node, "axis", default)
    if axis >= 0:
        return axis
    rank = facts.rank(node.inputs[0]) if rank is None else rank
    return None if rank is None or axis < -rank else axis + rank


def axes_of(node: onnx_ir.Node, facts: Facts) -> tuple[int, ...] | None:
    """The axes that Squeeze, Unsqueeze or a reduction works on, sorted and counted from the front.

    Unsqueeze counts in its result. Absent axes are all axes for a reduction (none if ``noop_with_empty_axes``), and
    the axes whose dim is 1 for Squeeze.
    """
    rank = facts.rank(node.inputs[0])
    axes = ints_attr(node, "axes")
    given = operand(node, 1)
    if axes is None and given is not None and AXES_INPUT_SINCE[node.op_type] <= facts.opset():
        axes = facts.ints(given)
        if axes is None:
            return None
    if not axes and node.op_type in REDUCTIONS:
        if int_attr(node, "noop_with_empty_axes", 0):
            return ()
        return None if rank is None else tuple(range(rank))
    if axes is None:
        return _unit_axes(facts, node.inputs[0]) if node.op_type == "Squeeze" else None
    if min(axes, default=0) < 0:
        if rank is None:
            return None
        rank += len(axes) if node.op_type == "Unsqueeze" else 0
        axes = tuple(axis + rank if axis < 0 else axis for axis in axes)
    return tuple(sorted(axes)) if len(set(axes)) == len(axes) else None


def _unit_axes(facts: Facts, x: onnx_ir.Value | None) -> tuple[int, ...] | None:
    shape = facts.shape(x)
    if shape is None or not all(isinstance(dim, int) or provably_positive(dim - 1) for dim in shape):
        return None
    return tuple(axis for axis, dim in enumerate(shape) if dim == 1)


def perm_of(node: onnx_ir.Node, facts: Facts) -> tuple[int, ...] | None:
    """The permutation of a Transpose."""
    perm = ints_attr(node, "perm")
    rank = facts.rank(node.inputs[0])
    return perm if perm else None if rank is None else tuple(reversed(range(rank)))


def cuts_of(node: onnx_ir.Node, facts: Facts) -> tuple[Cut, ...] | None:
    """What a Slice with constant bounds cuts, axes counted from the front; bounds are left as they are written."""
    if facts.opset() < 10:
        starts, ends, axes = (ints_attr(node, name) for name in ("starts", "ends", "axes"))
        steps: tuple[int, ...] | None = None
    else:
        starts, ends, axes, steps = (facts.ints(operand(node, index)) for index in (1, 2, 3, 4))
        if (operand(node, 3) is not None and axes is None) or (operand(node, 4) is not None and steps is None):
            return None
    if starts is None or ends is None:
        return None
    axes = axes if axes is not None else tuple(range(len(starts)))
    steps = steps if steps is not None else (1,) * len(starts)
    rank = facts.rank(node.inputs[0])
    if rank is None and any(axis < 0 for axis in axes):
        return None
    axes = tuple(axis + rank if axis < 0 else axis for axis in axes)  # type: ignore[operator]
    if len(set(axes)) != len(axes) or not len(axes) == len(starts) == len(ends) == len(steps):
        return None
    return tuple(Cut(*cut) for cut in zip(axes, starts, ends, steps, strict=True))


# shapes -----------------------------------------------------------------------------------------------------------


def reshape_target(
    source: Sequence[Dim], wanted: Sequence[Dim], nonzero: Collection[Dim] = ()
) -> tuple[int, ...] | None:
    """A constant Reshape target that turns a tensor of shape ``source`` into one of shape ``wanted``, in every run.

    The two have equally many elements. A dim that is no integer is copied (0) where the input has the same dim at the
    same place; one other may be inferred (-1), but only if all others are positive in every run: ONNX Runtime refuses
    to infer a dim beside a 0, as the result would be ambiguous. So a target made here never fails where the original
    one did not, on empty tensors neither.

    Args:
        source: Dims of the input.
        wanted: Dims of the result.
        nonzero: Dims that are not 0 in any run that succeeds, as :func:`nonzero_dims` tells.

    Returns:
        The target, or None if there is none.
    """
    target: list[int] = []
    for place, dim in enumerate(wanted):
        if isinstance(dim, int) and dim > 0:
            target.append(dim)
        elif place < len(source) and source[place] == dim:
            target.append(0)
        else:
            target.append(-1)
    if -1 not in target:
        return tuple(target)
    others = [dim for dim, entry in zip(wanted, target, strict=True) if entry != -1]
    if target.count(-1) > 1 or not all(dim in nonzero or provably_positive(dim) for dim in others):
        return None
    return tuple(target)


def nonzero_dims(node: onnx_ir.Node, facts: Facts) -> tuple[Dim, ...]:
    """Dims that must not be 0 because a Reshape infers another one beside them."""
    shape = facts.shape(node.outputs[0])
    target = facts.elements(operand(node, 1)) if is_op(node, "Reshape") else None
    if shape is None or target is None or target.count(-1) != 1 or len(target) != len(shape):
        return ()
    return tuple(dim for dim, entry in zip(shape, target, strict=True) if entry != -1)


def view(rw: Rewriter, x: onnx_ir.Value, wanted: Sequence[Dim], nonzero: Collection[Dim] = ()) -> onnx_ir.Value | None:
    """``x`` in the shape ``wanted``, which holds equally many elements.

    That is ``x`` itself, a Reshape with a constant, or an Unsqueeze or Squeeze. None, and nothing is changed, where
    none of these is right in every run.
    """
    shape = rw.facts.shape(x)
    if shape is None:
        return None
    if tuple(shape) == tuple(wanted):
        return x
    target = reshape_target(shape, wanted, nonzero)
    if target is not None:
        return reshape(rw, x, target)
    if (new := _new_units(shape, wanted)) is not None:
        return unsqueeze(rw, x, new)
    gone = _new_units(wanted, shape)
    return None if gone is None else squeeze(rw, x, gone)


def viewable(shape: Sequence[Dim], wanted: Sequence[Dim], nonzero: Collection[Dim] = ()) -> bool:
    """Whether :func:`view` can do it."""
    return (
        tuple(shape) == tuple(wanted)
        or reshape_target(shape, wanted, nonzero) is not None
        or _new_units(shape, wanted) is not None
        or _new_units(wanted, shape) is not None
    )


def _new_units(shape: Sequence[Dim], wanted: Sequence[Dim]) -> list[int] | None:
    """The places of 1 in ``wanted`` that ``shape`` lacks, if that is all that tells them apart."""
    new: list[int] = []
    rest = list(shape)
    for place, dim in enumerate(wanted):
        if rest and rest[0] == dim:
            rest.pop(0)
        elif dim == 1:
            new.append(place)
        else:
            return None
    return None if rest else new
