"""Tensors that are larger than what is in them, where their readers broadcast anyway.

A tensor is *narrowed*: its axes along which all entries are equal become 1 (or go, if they lead), and so do those of
what elementwise operators make of it, up to where another operand brings the full shape. So less is computed, and what
made the large tensor goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir

from optc.ir.dims import BroadcastError, Dim, broadcast
from optc.ir.facts import Facts
from optc.ir.ops import axis_of, gather, is_op, operand
from optc.ir.rewriter import Rewriter, copy_attributes, users
from optc.passes.clean.contents import uniform
from optc.passes.rule import node_rule

Shape = tuple[Dim, ...]

_OPS = """
    Add Sub Mul Div And Or Xor Equal Less Greater LessOrEqual GreaterOrEqual Where Max Min Sum Mean BitwiseAnd BitwiseOr
    BitwiseXor"""
#: Operators that broadcast all their inputs to one shape, whatever these hold. (Pow is not among them: its kernels
#: round differently for a scalar exponent.)
_BROADCASTING = frozenset(_OPS.split())
#: Operators on single elements that are narrowed with their operand.
_UNARY = frozenset({"Abs", "BitwiseNot", "Cast", "Identity", "Neg", "Not"})
#: The opset from which operators broadcast without being told.
_BROADCASTING_SINCE = 8
#: No more values than this are narrowed at a time.
_MAX_VALUES = 256
_FILLED = """
    Expand ConstantOfShape And Or Not Where Concat Less LessOrEqual Greater GreaterOrEqual Equal Cast Gather
    GatherElements GatherND Reshape Slice Tile"""


@node_rule("filled", *_FILLED.split())
def filled(rw: Rewriter, node: onnx_ir.Node):
    """A computed tensor that holds one number everywhere, for readers that broadcast: the number."""
    out = node.outputs[0]
    plan = None if rw.facts.is_const(out) else _plan(rw, out, ())
    if plan is None:
        return None
    number, dtype = uniform(rw.facts, out), rw.facts.dtype(out)
    if number is None or dtype is None:
        return None
    _narrow(rw, plan, out, rw.constant(onnx_ir.Tensor(np.array(number, dtype.numpy()), dtype=dtype), "fill"))
    rw.erase(node)
    return True


@node_rule("absorbed-expand", "Expand")
def absorbed_expand(rw: Rewriter, node: onnx_ir.Node):
    """An Expand whose readers broadcast anyway, to the same shapes without it."""
    x, shape = node.inputs[0], rw.facts.shape(node.inputs[0])
    return _bypassed(rw, node, x, shape)


@node_rule("absorbed-unsqueeze", "Unsqueeze")
def absorbed_unsqueeze(rw: Rewriter, node: onnx_ir.Node):
    """Leading axes of 1 for readers that broadcast anyway; it may have put them behind others of 1."""
    before, after = rw.facts.shape(node.inputs[0]), rw.facts.shape(node.outputs[0])
    if before is None or after is None:
        return None
    added = len(after) - len(before)
    if not added or after[added:] != before or any(dim != 1 for dim in after[:added]):
        return None
    return _bypassed(rw, node, node.inputs[0], before)


@node_rule("absorbed-tile", "Tile")
def absorbed_tile(rw: Rewriter, node: onnx_ir.Node):
    """A Tile that only repeats dims of 1, whose readers broadcast anyway."""
    x, shape = node.inputs[0], rw.facts.shape(node.inputs[0])
    repeats = rw.facts.elements(operand(node, 1))
    if shape is None or repeats is None or len(repeats) != len(shape):
        return None
    if any(dim != 1 and repeat != 1 for dim, repeat in zip(shape, repeats, strict=True)):
        return None
    return _bypassed(rw, node, x, shape)


@node_rule("gather-of-expand", "Gather")
def gather_of_expand(rw: Rewriter, node: onnx_ir.Node):
    """Entries at indices that were expanded (or are one number): each is taken once, where readers broadcast anyway."""
    facts, (data, indices) = rw.facts, node.inputs
    shape, wide = facts.shape(data), facts.shape(indices)
    axis = axis_of(node, facts, 0)
    if shape is None or not wide or axis is None or data is None or facts.is_const(indices):
        return None
    number = uniform(facts, indices)
    if isinstance(number, int) and isinstance(shape[axis], int) and -shape[axis] <= number < shape[axis]:
        narrow: Shape = (1,) * len(wide) if axis else ()
        plan = _plan(rw, node.outputs[0], (*shape[:axis], *narrow, *shape[axis + 1 :]))
        if plan is None:
            return None
        new = gather(rw, data, np.full(tuple(map(int, narrow)), number).tolist(), axis)
    else:
        expand = None if indices is None else indices.producer()
        if not is_op(expand, "Expand") or expand is None:
            return None
        own = facts.shape(expand.inputs[0])
        if own is None or (axis and len(own) != len(wide)):
            return None
        plan = _plan(rw, node.outputs[0], (*shape[:axis], *own, *shape[axis + 1 :]))
        if plan is None:
            return None
        new = rw.op("Gather", data, expand.inputs[0], axis=axis)
    _narrow(rw, plan, node.outputs[0], new)
    rw.erase(node)
    return True


def _bypassed(rw: Rewriter, node: onnx_ir.Node, x: onnx_ir.Value | None, shape: Shape | None) -> bool:
    plan = None if x is None or shape is None else _plan(rw, node.outputs[0], shape)
    if x is None or plan is None:
        return False
    _narrow(rw, plan, node.outputs[0], x)
    rw.erase(node)
    return True


# narrowing --------------------------------------------------------------------------------------------------------


def _plan(rw: Rewriter, value: onnx_ir.Value, shape: Shape) -> dict[onnx_ir.Value, Shape] | None:
    """The values that would have other shapes if ``value`` had ``shape``; None if that would be seen in the end."""
    facts, plan, pending = rw.facts, {value: shape}, [value]
    if rw.opset() < _BROADCASTING_SINCE or facts.shape(value) in (shape, None):
        return None
    while pending:
        narrowed = pending.pop()
        readers = users(narrowed)
        if narrowed.is_graph_output() or not readers or len(plan) + len(readers) > _MAX_VALUES:
            return None
        for reader in readers:
            out = reader.outputs[0]
            made, wanted = _shape_of(facts, reader, plan), facts.shape(out)
            if made is None or wanted is None:
                return None
            if made != wanted and plan.get(out) != made:
                if not is_op(reader, *_BROADCASTING, *_UNARY):
                    return None
                plan[out] = made
                pending.append(out)
    return plan


def _shape_of(facts: Facts, reader: onnx_ir.Node, plan: Mapping[onnx_ir.Value, Shape]) -> Shape | None:
    """The shape of what a node would make; None if it would fail, or be something else."""
    shapes = [None if v is None else plan.get(v, facts.shape(v)) for v in reader.inputs]
    if is_op(reader, *_UNARY):
        return shapes[0]
    if is_op(reader, *_BROADCASTING):
        return broadcast_shape(shapes)
    if is_op(reader, "Expand") and reader.inputs[1] not in plan:
        return broadcast_shape([shapes[0], facts.elements(reader.inputs[1])])
    return None


def _narrow(rw: Rewriter, plan: Mapping[onnx_ir.Value, Shape], value: onnx_ir.Value, new: onnx_ir.Value) -> None:
    """Let ``new`` stand for ``value``: what reads narrowed values is made anew, as ranks may differ."""
    instead = {value: new}
    pending, done = [value], dict[onnx_ir.Node, None]()
    while pending:
        for reader in users(pending.pop()):
            if reader in done or any(v in plan and v not in instead for v in reader.inputs if v is not None):
                continue
            done[reader] = None
            out = reader.outputs[0]
            with rw.at(reader, "narrowed"):
                attributes = {name: attr.value for name, attr in copy_attributes(reader).items()}
                operands = [v if v is None else instead.get(v, v) for v in reader.inputs]
                made = rw.op(reader.op_type, *operands, **attributes)
            if out in plan:
                instead[out] = made
                pending.append(out)
            else:
                rw.replace(out, made)
    for reader in reversed(done):
        rw.erase(reader)


def broadcast_shape(shapes: Sequence[Shape | None]) -> Shape | None:
    """The shape that tensors of these shapes broadcast to; None if they may not, or one is unknown."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    rank = max(map(len, known))
    padded = [(*(1,) * (rank - len(shape)), *shape) for shape in known]
    try:
        return tuple(broadcast(*dims) for dims in zip(*padded, strict=True))
    except BroadcastError:
        return None


RULES = (filled, gather_of_expand, absorbed_expand, absorbed_unsqueeze, absorbed_tile)
