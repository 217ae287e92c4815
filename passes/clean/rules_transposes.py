"""Transposes that undo each other, directly or through operators that let them pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import (
    REDUCTIONS,
    Cut,
    axes_of,
    axis_of,
    cuts_of,
    int_attr,
    is_op,
    made_by,
    only_use,
    perm_of,
    reduction,
    slice_,
    transpose,
)
from optc.ir.rewriter import Rewriter, copy_attributes
from optc.passes.clean.common import MAX_SCANNED
from optc.passes.rule import node_rule

#: Operators that work on every element alone, with NumPy broadcasting if they have several inputs.
_UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish
    Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus
    Softsign Sqrt Swish Tan Tanh ThresholdedRelu"""
_BROADCASTING = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod
    Mul Or Pow Sub Sum Where Xor"""
ELEMENTWISE = frozenset(f"{_UNARY} {_BROADCASTING} Clip".split())
#: The inputs after the first of these are scalars that stay as they are.
_SCALAR_OPERANDS = frozenset({"Clip"})
#: Operators along one axis, which is another one for a transposed operand.
_ALONG_AXIS = ("Softmax", "LogSoftmax", "Hardmax")
_SOFTMAX_ONE_AXIS_SINCE = 13
#: How many nodes deep a layout is followed.
_MAX_DEPTH = 8


def compose(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """The permutation of Transpose(Transpose(x, first), second)."""
    return tuple(first[axis] for axis in second)


def inverse(perm: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes ``perm``."""
    return tuple(int(axis) for axis in np.argsort(perm))


def is_identity(perm: Sequence[int]) -> bool:
    """Whether a permutation moves nothing."""
    return tuple(perm) == tuple(range(len(perm)))


@node_rule("transpose-identity", "Transpose")
def transpose_identity(rw: Rewriter, node: onnx_ir.Node):
    """A Transpose that moves nothing."""
    perm = perm_of(node, rw.facts)
    return node.inputs[0] if perm is not None and is_identity(perm) else None


@node_rule("transpose-pair", "Transpose")
def transpose_pair(rw: Rewriter, node: onnx_ir.Node):
    """Transpose of Transpose is one Transpose, or none."""
    before = made_by(node.inputs[0], "Transpose")
    if before is None:
        return None
    first, second = perm_of(before, rw.facts), perm_of(node, rw.facts)
    if first is None or second is None or len(first) != len(second):
        return None
    perm = compose(first, second)
    return before.inputs[0] if is_identity(perm) else transpose(rw, before.inputs[0], perm)


@node_rule("transpose-cancels", "Transpose")
def transpose_cancels(rw: Rewriter, node: onnx_ir.Node):
    """Transpose of operators that let it pass, some on Transposes: transpose the leaves, where that leaves fewer.

    Elementwise operators, and reductions, slices and softmaxes, which then work along other axes.
    """
    perm = perm_of(node, rw.facts)
    if perm is None or node.inputs[0] is None:
        return None
    gain = _gain_below(rw.facts, node.inputs[0], perm, _MAX_DEPTH)
    return _moved(rw, node.inputs[0], perm, _MAX_DEPTH) if gain is not None and 1 + gain > 0 else None


def _passable(facts: Facts, value: onnx_ir.Value | None, perm: Sequence[int]) -> onnx_ir.Node | None:
    """The node that makes a value, if it can as well make the transposed value of transposed operands."""
    node = None if value is None else value.producer()
    if node is None or len(node.outputs) != 1 or not only_use(node.outputs[0]):
        return None
    if is_op(node, *ELEMENTWISE):
        return node
    if is_op(node, *_ALONG_AXIS) and facts.opset() >= _SOFTMAX_ONE_AXIS_SINCE:
        axis = axis_of(node, facts, -1)
        if axis is None:
            return None
        # Softmax along any other axis than the last one makes ONNX Runtime transpose, there and back.
        return node if perm.index(axis) == len(perm) - 1 or axis != len(perm) - 1 else None
    if is_op(node, *REDUCTIONS):
        return node if int_attr(node, "keepdims", 1) and axes_of(node, facts) else None
    return node if is_op(node, "Slice") and cuts_of(node, facts) else None


def _gain(facts: Facts, value: onnx_ir.Value, perm: tuple[int, ...], depth: int) -> int | None:
    """How many Transposes fewer there are once ``value`` is transposed by ``perm``; None where it cannot be had."""
    rank = facts.rank(value)
    if _unchanged(facts, value, len(perm)):
        return 0
    if rank is None or rank > len(perm):
        return None
    if (size := facts.const_size(value)) is not None:
        return 0 if size <= MAX_SCANNED else None
    if rank != len(perm):
        return None
    leaf = made_by(value, "Transpose")
    if leaf is not None:
        first = perm_of(leaf, facts)
        if first is None:
            return None
        return int(only_use(value)) - (not is_identity(compose(first, perm)))
    below = _gain_below(facts, value, perm, depth)
    return -1 if below is None else max(below, -1)


def _gain_below(facts: Facts, value: onnx_ir.Value, perm: tuple[int, ...], depth: int) -> int | None:
    """The same, if the operands of the operator that makes ``value`` are transposed instead of it."""
    node = _passable(facts, value, perm) if facts.rank(value) == len(perm) else None
    if node is None or depth == 0:
        return None
    gains = [_gain(facts, operand, perm, depth - 1) for operand in _operands(node)]
    return None if None in gains else sum(gain for gain in gains if gain is not None)


def _unchanged(facts: Facts, value: onnx_ir.Value, rank: int) -> bool:
    """Whether a transposed operand is the operand itself: it has one element, and no axes of its own."""
    shape = facts.shape(value)
    return shape is not None and len(shape) <= rank and all(dim == 1 for dim in shape)


def _operands(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    alone = node.op_type in _SCALAR_OPERANDS or is_op(node, "Slice", *REDUCTIONS)
    values = node.inputs[:1] if alone else node.inputs
    return [value for value in values if value is not None]


def _moved(rw: Rewriter, value: onnx_ir.Value, perm: tuple[int, ...], depth: int) -> onnx_ir.Value:
    """``value`` transposed, in the way that :func:`_gain` counted."""
    if _unchanged(rw.facts, value, len(perm)):
        return value
    array = rw.facts.const(value)
    if array is not None:
        dtype = rw.facts.dtype(value)
        moved = array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(perm)
        return rw.constant(onnx_ir.Tensor(np.ascontiguousarray(moved), dtype=dtype), value.name or "constant")
    leaf = made_by(value, "Transpose")
    if leaf is not None:
        composed = compose(perm_of(leaf, rw.facts) or (), perm)
        return leaf.inputs[0] if is_identity(composed) else transpose(rw, leaf.inputs[0], composed)
    below = _gain_below(rw.facts, value, perm, depth)
    node = _passable(rw.facts, value, perm)
    if node is None or below is None or below < -1:
        return transpose(rw, value, perm)
    if is_op(node, "Slice", *REDUCTIONS):
        return _along_moved_axes(rw, node, _moved(rw, node.inputs[0], perm, depth - 1), perm)
    if is_op(node, *_ALONG_AXIS):
        axis = perm.index(axis_of(node, rw.facts, -1) or 0)
        return _copy(rw, node, [_moved(rw, node.inputs[0], perm, depth - 1)], axis=axis)
    count = len(_operands(node))
    operands = [
        None if v is None else _moved(rw, v, perm, depth - 1) if i < count else v for i, v in enumerate(node.inputs)
    ]
    return _copy(rw, node, operands)


def _along_moved_axes(rw: Rewriter, node: onnx_ir.Node, x: onnx_ir.Value, perm: tuple[int, ...]) -> onnx_ir.Value:
    """A Slice or a reduction of what is transposed."""
    if is_op(node, "Slice"):
        return slice_(rw, x, [Cut(perm.index(cut.axis), *cut[1:]) for cut in cuts_of(node, rw.facts) or ()])
    axes = sorted(perm.index(axis) for axis in axes_of(node, rw.facts) or ())
    return reduction(rw, node.op_type, x, axes, keepdims=True)


def _copy(rw: Rewriter, node: onnx_ir.Node, operands: Sequence[onnx_ir.Value | None], **changed: int) -> onnx_ir.Value:
    attributes = {name: attr.value for name, attr in copy_attributes(node).items()} | changed
    return rw.op(node.op_type, *operands, **attributes)


@node_rule("transpose-sinks", *sorted(ELEMENTWISE | {"Concat"}))
def transpose_sinks(rw: Rewriter, node: onnx_ir.Node):
    """An operator on operands that are all transposed alike: transpose its result instead, once."""
    operands = _operands(node)
    leaves = [made_by(value, "Transpose") for value in operands]
    perms = {perm_of(leaf, rw.facts) for leaf in leaves if leaf is not None}
    if len(perms) != 1 or len(node.outputs) != 1 or sum(leaf is not None for leaf in leaves) < 2:
        return None
    (perm,) = perms
    if perm is None:
        return None
    sources = dict.fromkeys(leaf.outputs[0] for leaf in leaves if leaf is not None)
    if len(sources) < 2 or not all(_read_by_only(value, node) for value in sources):
        return None
    back = inverse(perm)
    gains = [_gain(rw.facts, value, back, 0) for value in operands]
    if any(gain is None or gain < 0 for gain in gains):
        return None
    changed = {}
    if node.op_type == "Concat":
        axis = axis_of(node, rw.facts, 1)
        if axis is None or not all(rw.facts.rank(value) == len(perm) for value in operands):
            return None
        if any(leaf is None for leaf in leaves):
            return None
        changed = {"axis": perm[axis]}
    count = len(operands)
    moved = [None if v is None else _moved(rw, v, back, 0) if i < count else v for i, v in enumerate(node.inputs)]
    return transpose(rw, _copy(rw, node, moved, **changed), perm)


def _read_by_only(value: onnx_ir.Value, node: onnx_ir.Node) -> bool:
    return not value.is_graph_output() and all(use.node is node for use in value.uses())


RULES = (transpose_identity, transpose_pair, transpose_cancels, transpose_sinks)
