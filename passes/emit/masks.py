"""Attention masks as the kernels of ONNX Runtime take them.

All of them want a number (or for ``Attention`` of opset 23 a truth value) for every query and key, and differ in what
becomes of a row that is hidden altogether:

===========================  ==========================  =====================================
row of the mask              MultiHeadAttention, scores  Attention of opset 23
===========================  ==========================  =====================================
minus infinity throughout    NaN, as 0 / 0               0
the lowest number throughout the mean of the values      0
===========================  ==========================  =====================================

So the lowest number is replaced by its neighbour, which hides as well and gives the mean; and where there is no guard
against NaN, rows of minus infinity become rows of NaN. This is computed from the mask alone, so once for all layers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir

from optc.ir import ops
from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter

_MOVES = ("Expand", "Unsqueeze", "Squeeze", "Reshape", "Slice", "Identity", "Transpose", "Gather", "Cast")
#: Integers made numbers to add: the fused op, and what it is claimed as.
_SCALED = {("optc", "ScaledIntegers"), ("ai.onnx.ml", "Scaler")}
_DEPTH = 32


def additive(rw: Rewriter, call: onnx_ir.Node, mask: onnx_ir.Value, lowest: float = -math.inf) -> onnx_ir.Value:
    """A boolean mask as numbers to add: what replaces a hidden score (but at least ``lowest``), else zero."""
    if "fill" not in call.attributes:
        return mask
    dtype = _dtype(rw.facts, call.inputs[0])
    zero = rw.constant(np.array(0, dtype), "shown")
    fill = rw.constant(np.array(max(call.attributes["fill"].as_float(), lowest), dtype), "hidden")
    return rw.op("Where", mask, *((fill, zero) if call.attributes["hidden"].as_int() else (zero, fill)))


def standard(rw: Rewriter, call: onnx_ir.Node, mask: onnx_ir.Value) -> onnx_ir.Value:
    """The mask of a call in float32 for ``Attention`` of opset 23, before it is spread over queries and keys.

    In narrower types a score and a finite number could together be the lowest one.
    """
    facts, guarded = rw.facts, "guarded" in call.attributes
    dtype = _dtype(facts, call.inputs[0])
    lowest = np.finfo(dtype).min
    above = np.nextafter(lowest, dtype.type(0))
    if "fill" in call.attributes:
        if not math.isinf(call.attributes["fill"].as_float()):
            return additive(rw, call, mask, float(above))
        if guarded or _shows_all_rows(facts, mask, bool(call.attributes["hidden"].as_int())):
            return rw.op("Not", mask) if call.attributes["hidden"].as_int() else mask
        return _undefined(rw, additive(rw, call, mask))
    low, high = interval(facts, mask)
    if lowest < low and high < math.inf:
        return mask
    above_value = rw.constant(np.array(above, dtype), "above_lowest")
    if lowest <= low and high < math.inf:
        return rw.op("Max", mask, above_value)
    finite = rw.op("Where", rw.op("Equal", mask, rw.constant(np.array(lowest, dtype), "lowest")), above_value, mask)
    return finite if guarded else _undefined(rw, finite)


def _undefined(rw: Rewriter, mask: onnx_ir.Value) -> onnx_ir.Value:
    """A mask in which rows of minus infinity throughout are NaN."""
    highest = ops.reduction(rw, "ReduceMax", mask, (-1,), True)
    return rw.op("Add", mask, rw.op("Sub", highest, highest))


def _shows_all_rows(facts: Facts, mask: onnx_ir.Value, hidden: bool) -> bool:
    array = facts.const(mask)
    return array is not None and array.ndim > 0 and bool((array != hidden).any(-1).all())


def spread(
    rw: Rewriter,
    mask: onnx_ir.Value,
    query: onnx_ir.Value,
    key: onnx_ir.Value,
    past: onnx_ir.Value | None = None,
    dims: int = 2,
) -> onnx_ir.Value:
    """A mask of at least ``dims`` dims with a number for every query and key, where several share one; (B, N, P, H) is
    what precedes the keys."""
    if (rank := _rank(rw.facts, mask)) < 2:
        mask = ops.unsqueeze(rw, mask, tuple(range(2 - rank)))
    rows, columns = _shape(rw.facts, mask)[-2:]
    lengths = [_shape(rw.facts, x)[_rank(rw.facts, x) - 2] for x in (query, key)]
    if past is not None:
        lengths[1] = lengths[1] + _shape(rw.facts, past)[2]
    if (rows, columns) == tuple(lengths):
        return _with_dims(rw, mask, dims)
    leading = [1] * (dims - _rank(rw.facts, mask))
    if all(isinstance(length, int) for length in lengths):
        return rw.op("Expand", mask, rw.constant(np.array(leading + lengths, np.int64), "scores_shape"))
    one = rw.constant(np.array([1], np.int64), "one")
    parts = [one if rows == lengths[0] else _length(rw, query), one if columns == lengths[1] else _length(rw, key)]
    if past is not None and columns != lengths[1]:
        parts[1] = rw.op("Add", parts[1], _length(rw, past))
    return rw.op("Expand", mask, ops.concat(rw, [*(one for _ in leading), *parts], 0))


def _length(rw: Rewriter, x: onnx_ir.Value) -> onnx_ir.Value:
    return ops.gather(rw, rw.op("Shape", x), [_rank(rw.facts, x) - 2], 0)


def _with_dims(rw: Rewriter, mask: onnx_ir.Value, dims: int) -> onnx_ir.Value:
    missing = dims - _rank(rw.facts, mask)
    return ops.unsqueeze(rw, mask, tuple(range(missing))) if missing > 0 else mask


def without_infinities(rw: Rewriter, mask: onnx_ir.Value) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """A mask without infinities, and which rows are not hidden altogether, as (B or 1, S or 1, 1)."""
    mask = _with_dims(rw, mask, 4)
    dtype = _dtype(rw.facts, mask)
    lowest, nothing = (rw.constant(np.array(x, dtype), "lowest") for x in (np.finfo(dtype).min, -np.inf))
    highest = ops.squeeze(rw, ops.reduction(rw, "ReduceMax", mask, (3,), True), (1,))
    return rw.op("Max", mask, lowest), rw.op("Greater", highest, nothing)


# bounds ---------------------------------------------------------------------------------------------------------------


def interval(facts: Facts, value: onnx_ir.Value | None, depth: int = _DEPTH) -> tuple[float, float]:
    """Bounds of all elements of a value: (-inf, inf) where nothing is known. NaN counts as unbounded."""
    everything = -math.inf, math.inf
    if value is None or depth == 0:
        return everything
    array = facts.const(value)
    if array is not None and array.size and array.dtype.kind in "bifu":
        return everything if np.isnan(array).any() else (float(array.min()), float(array.max()))
    dtype = facts.dtype(value)
    if dtype is not None and dtype.is_integer():
        low, high = onnx_ir_range(dtype)
        return low, high
    if dtype == onnx_ir.DataType.BOOL:
        return 0.0, 1.0
    node = value.producer()
    if node is not None and (node.domain, node.op_type) in _SCALED:
        ends = [(end - _number(node, "offset")) * _number(node, "scale") for end in interval(facts, node.inputs[0])]
        return min(ends), max(ends)
    if node is None or not ops.is_op(node, *_MOVES, "Where", "Add", "Sub", "Mul", "Neg", "Max", "Min"):
        return everything
    operands = (
        node.inputs[1:] if node.op_type == "Where" else node.inputs[:1] if node.op_type in _MOVES else node.inputs
    )
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = _combine(node.op_type, [interval(facts, x, depth - 1) for x in operands])
    limit = float(np.finfo(dtype.numpy()).max) if dtype in _ROUNDED else 0.0
    # beyond the largest number a sum or a product of this type is infinite
    return (low if low >= -limit else -math.inf), (high if high <= limit else math.inf)


def _number(call: onnx_ir.Node, name: str) -> float:
    return float(call.attributes[name].as_floats()[0])


_ROUNDED = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.DOUBLE)


def onnx_ir_range(dtype: onnx_ir.DataType) -> tuple[float, float]:
    """The bounds of an integer type."""
    signed = dtype.is_signed()
    bits = dtype.bitwidth
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1)) if signed else (0.0, 2.0**bits)


def _combine(op_type: str, bounds: list[tuple[float, float]]) -> tuple[float, float]:
    lows, highs = zip(*bounds, strict=True)
    if op_type in _MOVES or op_type == "Where":
        return min(lows), max(highs)
    if op_type == "Neg":
        return -highs[0], -lows[0]
    if op_type in ("Max", "Min"):
        choose = max if op_type == "Max" else min
        return choose(lows), choose(highs)
    if op_type == "Add":
        return sum(lows), sum(highs)
    if op_type == "Sub":
        return lows[0] - highs[1], highs[0] - lows[1]
    ends = [a * b if a and b else 0.0 for a in bounds[0] for b in bounds[1]]
    return min(ends), max(ends)


def _dtype(facts: Facts, value: onnx_ir.Value | None) -> np.dtype:
    dtype = facts.dtype(value)
    assert dtype is not None  # the fusion made sure of it
    return dtype.numpy()


def _rank(facts: Facts, value: onnx_ir.Value) -> int:
    return len(_shape(facts, value))


def _shape(facts: Facts, value: onnx_ir.Value) -> tuple[Any, ...]:
    shape = facts.shape(value)
    assert shape is not None
    return shape
