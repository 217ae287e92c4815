"""Heads and what they were split from."""

from __future__ import annotations

import onnx_ir

from optc.ir import ops
from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter

_ACROSS = (0, 2, 1, 3)


def before_split(facts: Facts, value: onnx_ir.Value) -> onnx_ir.Value | None:
    """The flat value (B, S, N * H) that heads (B, N, S, H) were split from; a flat value itself; else None."""
    heads = facts.shape(value)
    if heads is None or len(heads) == 3:
        return None if heads is None else value
    transpose = ops.made_by(value, "Transpose")
    if transpose is None or ops.perm_of(transpose, facts) != _ACROSS:
        return None
    split = ops.made_by(transpose.inputs[0], "Reshape")
    if split is None or not (isinstance(heads[1], int) and isinstance(heads[3], int)):
        return None
    flat = split.inputs[0]
    return flat if facts.shape(flat) == (heads[0], heads[2], heads[1] * heads[3]) else None


def flat(rw: Rewriter, value: onnx_ir.Value) -> onnx_ir.Value:
    """(B, S, N * H), of whatever a value is."""
    before = before_split(rw.facts, value)
    if before is not None:
        return before
    _, count, _, size = rw.facts.shape(value)  # type: ignore[misc]
    return ops.reshape(rw, ops.transpose(rw, value, _ACROSS), (0, 0, count * size))  # type: ignore[operator, list-item]


def heads(rw: Rewriter, value: onnx_ir.Value, count: int) -> onnx_ir.Value:
    """(B, N, S, H), of whatever a value is."""
    shape = rw.facts.shape(value)
    assert shape is not None
    if len(shape) == 4:
        return value
    return ops.transpose(rw, ops.reshape(rw, value, (0, 0, count, shape[2] // count)), _ACROSS)  # type: ignore[list-item]


def shaped(rw: Rewriter, value: onnx_ir.Value, like: onnx_ir.Value) -> onnx_ir.Value:
    """Heads (B, N, S, V) or flat (B, S, N * V) as a call's output is: heads, flat or a matrix (B * S, N * V)."""
    shape, wanted = rw.facts.shape(value), rw.facts.shape(like)
    assert shape is not None and wanted is not None
    if len(wanted) == 4:
        return heads(rw, value, wanted[1])  # type: ignore[arg-type]
    if len(shape) == 4:
        value = ops.transpose(rw, value, _ACROSS)
        return ops.reshape(rw, value, (0, 0, wanted[-1]) if len(wanted) == 3 else (-1, wanted[-1]))  # type: ignore[arg-type]
    return ops.reshape(rw, value, (-1, wanted[1])) if len(wanted) == 2 else value  # type: ignore[arg-type]
