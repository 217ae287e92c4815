"""How fused attention is written with ONNX Runtime's ``MultiHeadAttention`` and ``RotaryEmbedding``."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from optc.ir import ops
from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter


def is_multi_head_attention(call: onnx_ir.Node, facts: Facts) -> bool:
    """Whether the kernel computes what a call asks for: as many heads of keys as of queries, no past, joined heads."""
    given = call.attributes
    if given["num_heads"].as_int() != given["kv_num_heads"].as_int() or "softcap" in given or len(call.outputs) > 1:
        return False
    return all(value is None for value in call.inputs[4:]) and facts.rank(call.outputs[0]) != 4


def multi_head_attention(rw: Rewriter, call: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """The kernel wants flat queries, an additive mask with a row per query, and joins the heads to 3 dims."""
    query, key, value, mask = (*call.inputs, None)[:4]
    heads, scale = call.attributes["num_heads"].as_int(), call.attributes["scale"].as_float()
    guarded, shown = "guarded" in call.attributes, None
    if rw.facts.rank(query) == 4:
        _, count, _, size = _dims(rw.facts, query)
        query = ops.reshape(rw, ops.transpose(rw, query, (0, 2, 1, 3)), (0, 0, count * size))
    (query, key, value), bias = _without_biases(rw, (query, key, value))
    if mask is not None:
        mask = _four_dims(rw, _additive(rw, call, mask))
        if guarded:
            mask, shown = _finite(rw, mask)
        mask = _whole(rw, mask, query, key)
    inputs = (query, key, value, bias, None, mask)
    result = rw.op("MultiHeadAttention", *inputs, domain="com.microsoft", num_heads=heads, scale=scale)
    if shown is not None:
        result = rw.op("Where", shown, result, rw.constant(np.array(0, rw.facts.dtype(result).numpy()), "zero"))
    old = _dims(rw.facts, call.outputs[0])
    return (ops.reshape(rw, result, (-1, old[1])) if len(old) == 2 else result,)


def _without_biases(
    rw: Rewriter, projections: tuple[onnx_ir.Value, ...]
) -> tuple[tuple[onnx_ir.Value, ...], onnx_ir.Value | None]:
    """Flat queries, keys and values before their biases are added, and the biases as the one that the kernel adds."""
    facts = rw.facts
    if any(facts.rank(value) != 3 for value in projections):
        return projections, None
    plain, biases = [], []
    for value in projections:
        width = _dims(rw.facts, value)[2]
        x, bias = _bias_of(facts, value, width)
        plain.append(x)
        biases.append(np.zeros(width, facts.dtype(value).numpy()) if bias is None else facts.const(bias))
    if all(x is value for x, value in zip(plain, projections, strict=True)):
        return projections, None
    return tuple(plain), rw.constant(np.concatenate(biases), "qkv_bias")


def _bias_of(facts: Facts, value: onnx_ir.Value, width: int) -> tuple[onnx_ir.Value, onnx_ir.Value | None]:
    """What a constant vector is added to, and the vector, where nobody else reads the sum."""
    add = ops.made_by(value, "Add")
    if add is not None and len(value.uses()) == 1 and not value.is_graph_output():
        for x, bias in (add.inputs, reversed(add.inputs)):
            if facts.is_const(bias) and facts.shape(bias) == (width,) and facts.shape(x) == facts.shape(value):
                return x, bias
    return value, None


def _additive(rw: Rewriter, call: onnx_ir.Node, mask: onnx_ir.Value) -> onnx_ir.Value:
    """A boolean mask as numbers to add: the lowest where a score is hidden, else zero."""
    if "fill" not in call.attributes:
        return mask
    dtype = rw.facts.dtype(call.inputs[0]).numpy()
    zero = rw.constant(np.array(0, dtype), "shown")
    fill = rw.constant(np.array(call.attributes["fill"].as_float(), dtype), "hidden")
    return rw.op("Where", mask, *((fill, zero) if call.attributes["hidden"].as_int() else (zero, fill)))


def _four_dims(rw: Rewriter, mask: onnx_ir.Value) -> onnx_ir.Value:
    missing = 4 - rw.facts.rank(mask)
    return ops.unsqueeze(rw, mask, tuple(range(missing))) if missing else mask


def _finite(rw: Rewriter, mask: onnx_ir.Value) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """A mask without infinities, and which rows are not hidden altogether, as (B or 1, S or 1, 1).

    It is computed from the mask alone, so once for all layers.
    """
    dtype = rw.facts.dtype(mask)
    lowest, nothing = (rw.constant(np.array(x, dtype.numpy()), "lowest") for x in (dtype.min, -np.inf))
    highest = ops.squeeze(rw, ops.reduction(rw, "ReduceMax", mask, (3,), True), (1,))
    return rw.op("Max", mask, lowest), rw.op("Greater", highest, nothing)


def _whole(rw: Rewriter, mask: onnx_ir.Value, query: onnx_ir.Value, key: onnx_ir.Value) -> onnx_ir.Value:
    """A mask with a number for every query and key, where several share one."""
    wanted = [1, 1]
    sizes: list[onnx_ir.Value | None] = [None, None]
    for dim, operand in zip(_dims(rw.facts, mask)[2:], (query, key), strict=True):
        axis = rw.facts.rank(operand) - 2
        length = _dims(rw.facts, operand)[axis]
        wanted.append(1 if dim == length else length)
        sizes.append(ops.gather(rw, rw.op("Shape", operand), [axis], 0) if not isinstance(wanted[-1], int) else None)
    if wanted == [1] * 4:
        return mask
    if not any(sizes):
        return rw.op("Expand", mask, rw.constant(np.array(wanted, np.int64), "scores_shape"))
    parts = [
        s if s is not None else rw.constant(np.array([n], np.int64), "one") for n, s in zip(wanted, sizes, strict=True)
    ]
    return rw.op("Expand", mask, ops.concat(rw, parts, 0))


def rotary_embedding(rw: Rewriter, call: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """The kernel wants half of each table as a matrix, and takes flat heads as well as split ones."""
    heads, _, cos, sin = call.inputs
    _, count, _, size = _dims(rw.facts, heads)
    first = rw.constant(np.array([0], np.int64), "first")
    tables = [ops.reshape(rw, _first_half(rw, table, size), (-1, size // 2)) for table in (cos, sin)]
    flat = _before_split(rw, heads, count * size)
    x = heads if flat is None else flat
    result = rw.op("RotaryEmbedding", x, first, *tables, domain="com.microsoft", interleaved=0)
    if flat is not None:
        result = ops.transpose(rw, ops.reshape(rw, result, (0, 0, count, size)), (0, 2, 1, 3))
    return (result,)


def _first_half(rw: Rewriter, table: onnx_ir.Value, size: int) -> onnx_ir.Value:
    return ops.slice_(rw, table, [ops.Cut(rw.facts.rank(table) - 1, 0, size // 2, 1)])


def _before_split(rw: Rewriter, heads: onnx_ir.Value, width: int) -> onnx_ir.Value | None:
    """The flat value (B, S, N * H) that heads (B, N, S, H) were split from."""
    transpose = ops.made_by(heads, "Transpose")
    if transpose is None or ops.perm_of(transpose, rw.facts) != (0, 2, 1, 3):
        return None
    split = ops.made_by(transpose.inputs[0], "Reshape")
    if split is None:
        return None
    shape, whole = rw.facts.shape(split.inputs[0]), _dims(rw.facts, heads)
    return split.inputs[0] if shape == (whole[0], whole[2], width) else None


def _dims(facts: Facts, value: onnx_ir.Value) -> tuple[Any, ...]:
    """The dims of a value whose rank the fusion made sure of."""
    shape = facts.shape(value)
    assert shape is not None
    return shape
