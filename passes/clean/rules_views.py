"""Chains of operators that only give a tensor another shape, and reductions, gathers and slices that end in one."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from optc.ir.dims import provably_ge
from optc.ir.facts import Facts
from optc.ir.ops import (
    REDUCTIONS,
    TO_THE_END,
    axes_of,
    axis_of,
    cuts_of,
    gather,
    int_attr,
    made_by,
    nonzero_dims,
    operand,
    perm_of,
    reduction,
    squeeze,
    unsqueeze,
    view,
)
from optc.ir.rewriter import Rewriter
from optc.passes.clean.common import inner, same_shape
from optc.passes.clean.rules_broadcasts import broadcast_shape
from optc.passes.rule import node_rule

_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def _viewed(value: onnx_ir.Value | None, facts: Facts) -> onnx_ir.Node | None:
    """The node that makes a value, if it only gives its input another shape: the elements keep their order."""
    node = made_by(value, *_VIEWS, "Transpose")
    return node if node is not None and (node.op_type != "Transpose" or moves_units_only(node, facts)) else None


def moves_units_only(node: onnx_ir.Node, facts: Facts) -> bool:
    """Whether a Transpose moves nothing but dims that are 1."""
    shape, perm = facts.shape(node.inputs[0]), perm_of(node, facts)
    if shape is None or perm is None:
        return False
    moved = [axis for axis in perm if shape[axis] != 1]
    return moved == sorted(moved)


@node_rule("view-chain", *_VIEWS, "Transpose")
def view_chain(rw: Rewriter, node: onnx_ir.Node):
    """Of Reshape, Squeeze, Unsqueeze, Flatten and Transposes of dims that are 1, one after the other, one is enough."""
    before = _viewed(node.inputs[0], rw.facts)
    if before is None or (node.op_type == "Transpose" and not moves_units_only(node, rw.facts)):
        return None
    x, out = before.inputs[0], node.outputs[0]
    if x is None:
        return None
    if same_shape(rw.facts, x, out):
        return x
    if inner(node.inputs[0], before.op_type) is None:
        return None
    if before.op_type == node.op_type and node.op_type in ("Squeeze", "Unsqueeze"):
        return _merged_axes(rw, node, before)
    if (cancelled := _cancelled_axes(rw, node, before)) is not None:
        return cancelled
    shape = rw.facts.shape(out)
    nonzero = nonzero_dims(node, rw.facts) + nonzero_dims(before, rw.facts)
    if shape is not None and (new := view(rw, x, shape, nonzero)) is not None:
        return new
    if node.op_type != "Reshape" or not copies_no_dim(node, rw.facts):
        return None
    return rw.op("Reshape", x, node.inputs[1], allowzero=int_attr(node, "allowzero", 0) or None)


def _merged_axes(rw: Rewriter, node: onnx_ir.Node, before: onnx_ir.Node) -> onnx_ir.Value | None:
    """Unsqueeze of Unsqueeze, Squeeze of Squeeze: one with the axes of both."""
    first, second = axes_of(before, rw.facts), axes_of(node, rw.facts)
    if first is None or second is None:
        return None
    if node.op_type == "Unsqueeze":
        return unsqueeze(rw, before.inputs[0], sorted((*second, *_among_rest(first, second))))
    return squeeze(rw, before.inputs[0], sorted((*first, *_among_rest(second, first))))


def _among_rest(places: Sequence[int], taken: Sequence[int]) -> list[int]:
    """Places counted without the taken axes, counted with them."""
    free: list[int] = []
    axis = 0
    while len(free) <= max(places, default=-1):
        if axis not in taken:
            free.append(axis)
        axis += 1
    return [free[place] for place in places]


def _cancelled_axes(rw: Rewriter, node: onnx_ir.Node, before: onnx_ir.Node) -> onnx_ir.Value | None:
    """Squeeze of the axes that Unsqueeze made; the other order needs no rule, as equal shapes tell."""
    if node.op_type != "Squeeze" or before.op_type != "Unsqueeze":
        return None
    made, gone = axes_of(before, rw.facts), axes_of(node, rw.facts)
    return before.inputs[0] if made is not None and made == gone else None


def copies_no_dim(node: onnx_ir.Node, facts: Facts) -> bool:
    """Whether a Reshape gives the same of any tensor with the same elements: its target copies no dim of the input."""
    if facts.opset() < 5:
        return False
    target = facts.elements(operand(node, 1))
    allowzero = int_attr(node, "allowzero", 0)
    return target is not None and all(allowzero or entry == -1 or provably_ge(entry, 1) for entry in target)


# around other operators -------------------------------------------------------------------------------------------


@node_rule("reduce-squeeze", "Squeeze")
def reduce_squeeze(rw: Rewriter, node: onnx_ir.Node):
    """Squeeze of the dims that a reduction kept: the reduction need not keep them."""
    before = inner(node.inputs[0], *REDUCTIONS, "ArgMax", "ArgMin")
    if before is None or not int_attr(before, "keepdims", 1):
        return None
    axes = _reduced(rw, before)
    return _with_keepdims(rw, before, False, axes) if axes and axes == axes_of(node, rw.facts) else None


@node_rule("reduce-unsqueeze", "Unsqueeze")
def reduce_unsqueeze(rw: Rewriter, node: onnx_ir.Node):
    """Unsqueeze of the dims that a reduction dropped: the reduction can keep them."""
    before = inner(node.inputs[0], *REDUCTIONS, "ArgMax", "ArgMin")
    if before is None or int_attr(before, "keepdims", 1):
        return None
    axes = _reduced(rw, before)
    return _with_keepdims(rw, before, True, axes) if axes and axes == axes_of(node, rw.facts) else None


def _reduced(rw: Rewriter, node: onnx_ir.Node) -> tuple[int, ...] | None:
    if node.op_type in REDUCTIONS:
        return axes_of(node, rw.facts)
    axis = axis_of(node, rw.facts, 0)
    return None if axis is None else (axis,)


def _with_keepdims(rw: Rewriter, node: onnx_ir.Node, keepdims: bool, axes: Sequence[int]) -> onnx_ir.Value:
    if node.op_type in REDUCTIONS:
        return reduction(rw, node.op_type, node.inputs[0], axes, keepdims)
    last = int_attr(node, "select_last_index", 0)
    return rw.op(
        node.op_type, node.inputs[0], axis=axes[0], keepdims=int(keepdims), select_last_index=1 if last else None
    )


@node_rule("gather-unsqueeze", "Unsqueeze")
def gather_unsqueeze(rw: Rewriter, node: onnx_ir.Node):
    """Taking one entry and giving it its axis back is a Gather with a list of one index."""
    before = inner(node.inputs[0], "Gather")
    if before is None:
        return None
    axis, index = axis_of(before, rw.facts, 0), rw.facts.scalar(operand(before, 1))
    if index is None or axis is None or rw.facts.rank(before.inputs[1]) != 0 or axes_of(node, rw.facts) != (axis,):
        return None
    return gather(rw, before.inputs[0], [int(index)], axis)


@node_rule("gather-squeeze", "Squeeze")
def gather_squeeze(rw: Rewriter, node: onnx_ir.Node):
    """Taking a list of one entry, or a slice of one, and dropping the axis is a Gather of that entry."""
    before = inner(node.inputs[0], "Gather", "Slice")
    axes = axes_of(node, rw.facts)
    if before is None or axes is None or len(axes) != 1:
        return None
    if before.op_type == "Gather":
        axis, index = axis_of(before, rw.facts, 0), rw.facts.scalar(operand(before, 1))
        if index is None or rw.facts.rank(before.inputs[1]) != 1 or axes != (axis,):
            return None
        return gather(rw, before.inputs[0], int(index), axis)
    cuts = cuts_of(before, rw.facts)
    if cuts is None or len(cuts) != 1 or cuts[0].axis != axes[0] or cuts[0].step != 1:
        return None
    start, end = cuts[0].start, cuts[0].end
    single = (end == start + 1 and start != -1) or (start == -1 and end >= TO_THE_END)
    return gather(rw, before.inputs[0], start, axes[0]) if single else None


@node_rule("expand-chain", "Expand")
def expand_chain(rw: Rewriter, node: onnx_ir.Node):
    """Expand of Expand is one Expand, where the outer target alone leads to the same shape."""
    before = inner(node.inputs[0], "Expand")
    if before is None:
        return None
    shape, target = rw.facts.shape(before.inputs[0]), rw.facts.elements(operand(node, 1))
    out = rw.facts.shape(node.outputs[0])
    if shape is None or target is None or out is None or not all(provably_ge(dim, 0) for dim in target):
        return None
    return rw.op("Expand", before.inputs[0], node.inputs[1]) if broadcast_shape([shape, target]) == out else None


@node_rule("identity-gather", "Gather")
def identity_gather(rw: Rewriter, node: onnx_ir.Node):
    """Gather of all entries in their order is the tensor itself."""
    axis, shape = axis_of(node, rw.facts, 0), rw.facts.shape(node.inputs[0])
    if axis is None or shape is None or rw.facts.rank(operand(node, 1)) != 1:
        return None
    indices, dim = rw.facts.ints(node.inputs[1]), shape[axis]
    return node.inputs[0] if isinstance(dim, int) and indices == tuple(range(dim)) else None


RULES = (
    view_chain,
    reduce_squeeze,
    reduce_unsqueeze,
    gather_unsqueeze,
    gather_squeeze,
    expand_chain,
    identity_gather,
)
