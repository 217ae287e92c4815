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
    """The kernel wants half of each table as a matrix, and takes flat heads as well as split ones."""
    heads, _, cos, sin = call.inputs
    _, count, _, size = _dims(rw.facts, heads)
    first = rw.constant(np.array([0], np.int64), "first")
    tables = [ops.reshape(rw, _first_half(rw, table, size), (-1, size // 2)) for table in (cos, sin)]
    flat = layouts.before_split(rw.facts, heads)
    x = heads if flat is None else flat
    result = rw.op("RotaryEmbedding", x, first, *tables, domain="com.microsoft", interleaved=0)
    if flat is not None:
        result = ops.transpose(rw, ops.reshape(rw, result, (0, 0, count, size)), (0, 2, 1, 3))
    return (result,)


def _first_half(rw: Rewriter, table: onnx_ir.Value, size: int) -> onnx_ir.Value:
    return ops.slice_(rw, table, [ops.Cut(rw.facts.rank(table) - 1, 0, size // 2, 1)])


def _dims(facts: Facts, value: onnx_ir.Value) -> tuple[Any, ...]:
    """The dims of a value whose rank the fusion made sure of."""
    shape = facts.shape(value)
    assert shape is not None
    return shape
