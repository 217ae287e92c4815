"""How a rotary embedding is written with the operators that ONNX Runtime has kernels for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from optc.ir import ops
from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter
from optc.passes.emit import layouts


def rotary_embedding(rw: Rewriter, call: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """The kernel wants every number of the tables once, as a matrix, and takes flat heads as well as split ones.

    It keeps what follows the first ``rotary_embedding_dim`` numbers of a head, and must be told how many heads there
    are then.
    """
    heads, _, cos, sin = call.inputs
    axis = ops.int_attr(call, "heads_axis", 1)
    count, size = _dims(rw.facts, heads)[axis], _dims(rw.facts, heads)[3]
    interleaved = call.attributes["interleaved"].as_int()
    turned = ops.int_attr(call, "rotary_embedding_dim", size)
    tables = [ops.reshape(rw, _once(rw, table, turned, interleaved), (-1, turned // 2)) for table in (cos, sin)]
    behind = axis == 2
    flat = ops.reshape(rw, heads, (0, 0, count * size)) if behind else layouts.before_split(rw.facts, heads)
    x = heads if flat is None else flat
    positions = _positions(rw, cos, 3 - axis)
    partial = {} if turned == size else {"num_heads": count, "rotary_embedding_dim": turned}
    result = rw.op("RotaryEmbedding", x, positions, *tables, domain="com.microsoft", interleaved=interleaved, **partial)
    if flat is not None:
        result = ops.reshape(rw, result, (0, 0, count, size))
        result = result if behind else ops.transpose(rw, result, (0, 2, 1, 3))
    return (result,)


def _positions(rw: Rewriter, table: onnx_ir.Value, axis: int) -> onnx_ir.Value:
    """Which row of the matrix each position of each sequence reads: (B, S), or the first one if all read the same.

    ``axis`` is that of the positions.
    """
    shape = _dims(rw.facts, table)
    if len(shape) < 4 or shape[0] == 1:
        return rw.constant(np.array([0], np.int64), "first")
    sizes = ops.gather(rw, rw.op("Shape", table), [0, axis], 0)
    zero, one = (rw.constant(np.array(number, np.int64), "bound") for number in (0, 1))
    total = ops.reduction(rw, "ReduceProd", sizes, (0,), False)
    allowzero = 1 if rw.opset() >= 14 else None
    return rw.op("Reshape", rw.op("Range", zero, total, one), sizes, allowzero=allowzero)


def _once(rw: Rewriter, table: onnx_ir.Value, size: int, interleaved: int) -> onnx_ir.Value:
    """The table without the second place of each number."""
    last = rw.facts.rank(table) - 1
    cut = ops.Cut(last, 0, ops.TO_THE_END, 2) if interleaved else ops.Cut(last, 0, size // 2, 1)
    return ops.slice_(rw, table, [cut])


def _dims(facts: Facts, value: onnx_ir.Value) -> tuple[Any, ...]:
    """The dims of a value whose rank the fusion made sure of."""
    shape = facts.shape(value)
    assert shape is not None
    return shape
