"""Operators written with those that have rules: those of ONNX Runtime that a model may come with, and some of ONNX.

What the former compute follows ONNX Runtime's ContribOperators.md. What is not written out here keeps its operator, and
is named among the nodes that cannot be compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir

from optc.ir import ops
from optc.ir.names import join_op
from optc.ir.ops import int_attr, ints_attr, operand
from optc.ir.rewriter import Rewriter

DOMAIN = "com.microsoft"
#: What stands for the outputs of a node, None for those that nobody reads; None where it stays what it is.
Expansion = Callable[[Rewriter, onnx_ir.Node], Sequence[onnx_ir.Value | None] | None]


def expand(rewriter: Rewriter) -> None:
    """Write out all nodes of a model's main graph that can be."""
    for node in list(rewriter.model.graph):
        expansion = EXPANSIONS.get(join_op(node.domain, node.op_type))
        if expansion is None:
            continue
        with rewriter.at(node, "expand", [node]):
            results = expansion(rewriter, node)
            if results is None:
                continue
            for old, new in zip(node.outputs, results, strict=False):
                if new is not None and _is_read(old):
                    rewriter.replace(old, new)
            rewriter.erase(node)


def _is_read(value: onnx_ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _reads(node: onnx_ir.Node, *places: int) -> bool:
    """Whether some of a node's outputs are read."""
    return any(place < len(node.outputs) and _is_read(node.outputs[place]) for place in places)


def _float(node: onnx_ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default


def _skip_normalization(rw: Rewriter, node: onnx_ir.Node) -> Sequence[onnx_ir.Value | None] | None:
    """The norm of a sum, and the sum."""
    if _reads(node, 1, 2):
        return None
    simple = node.op_type == "SkipSimplifiedLayerNormalization"
    total = rw.op("Add", node.inputs[0], node.inputs[1])
    bias = operand(node, 3 if simple else 4)
    if bias is not None:
        total = rw.op("Add", total, bias)
    operator = node.op_type.removeprefix("Skip")
    shift = None if simple else operand(node, 3)
    made = rw.op(operator, total, node.inputs[2], shift, axis=-1, epsilon=_float(node, "epsilon", 1e-12))
    return made, None, None, total


def _embedding(rw: Rewriter, node: onnx_ir.Node) -> Sequence[onnx_ir.Value | None] | None:
    """Sums of rows of tables, normalized, and how many tokens are no padding."""
    ids, segments, words, places, segment_table, scale, shift, mask, position_ids = (
        operand(node, place) for place in range(9)
    )
    if int_attr(node, "mask_index_type", 1) != 1 or (_reads(node, 1) and mask is None):
        return None
    zero, one, two = [rw.constant([number], "axis") for number in range(3)]
    if position_ids is not None:
        positions = rw.op("Gather", places, position_ids, axis=0)
    else:
        length = rw.op("Slice", rw.op("Shape", ids), one, two, zero)
        positions = rw.op("Slice", places, zero, length, zero)
    total = rw.op("Add", rw.op("Gather", words, ids, axis=0), positions)
    if segments is not None and segment_table is not None:
        total = rw.op("Add", total, rw.op("Gather", segment_table, segments, axis=0))
    made = rw.op("LayerNormalization", total, scale, shift, axis=-1, epsilon=_float(node, "epsilon", 1e-12))
    counted = None
    if _reads(node, 1) and mask is not None:
        counted = ops.reduction(rw, "ReduceSum", ops.cast(rw, mask, onnx_ir.DataType.INT32), [1], keepdims=False)
    return made, counted, total


def _fused_matmul(rw: Rewriter, node: onnx_ir.Node) -> Sequence[onnx_ir.Value | None] | None:
    """A product of transposed operands, times a number."""
    operands = []
    for value, letter in zip(node.inputs, "AB", strict=True):
        rank = rw.facts.rank(value)
        if value is None or rank is None:
            return None
        perm = list(range(rank))
        if int_attr(node, f"transBatch{letter}", 0):
            perm = [*perm[1:-1], perm[0], perm[-1]]
        if int_attr(node, f"trans{letter}", 0) and rank > 1:
            perm[-2:] = perm[:-3:-1]
        operands.append(value if perm == sorted(perm) else ops.transpose(rw, value, perm))
    made, alpha, dtype = rw.op("MatMul", *operands), _float(node, "alpha", 1.0), rw.facts.dtype(node.inputs[0])
    if dtype is None:
        return None
    return [made if alpha == 1.0 else rw.op("Mul", made, rw.constant(np.asarray(alpha, dtype.numpy()), "alpha"))]


def _attention(rw: Rewriter, node: onnx_ir.Node) -> Sequence[onnx_ir.Value | None] | None:
    """A projection in front of an attention of several heads; its past and present are keys and values in one."""
    x, weights, bias, mask, past, added = (operand(node, place) for place in range(6))
    shape = rw.facts.shape(weights)
    if int_attr(node, "do_rotary", 0) or int_attr(node, "past_present_share_buffer", 0) or shape is None:
        return None
    sizes = ints_attr(node, "qkv_hidden_sizes")
    if not sizes and isinstance(shape[1], int):
        sizes = (shape[1] // 3,) * 3
    if not sizes:
        return None
    projected = rw.op("MatMul", x, weights)
    if bias is not None:
        projected = rw.op("Add", projected, bias)
    q, k, v = ops.split(rw, projected, sizes, -1)
    caches = [None, None] if past is None else [ops.gather(rw, past, place, 0) for place in (0, 1)]
    present = _reads(node, 1)
    results = _heads(rw, node, (q, k, v), (mask, added), caches, apart=present or past is not None)
    if results is None:
        return None
    made, keys, values = results
    return made, ops.concat(rw, [ops.unsqueeze(rw, x, [0]) for x in (keys, values)], 0) if present else None


def _multi_head(rw: Rewriter, node: onnx_ir.Node) -> Sequence[onnx_ir.Value | None] | None:
    """Biases and caches as operators of their own: what is left has a rule."""
    q, k, v, bias, mask, added, *caches = (operand(node, place) for place in range(8))
    apart = any(cache is not None for cache in caches) or _reads(node, 1, 2)
    if (bias is None and not apart) or q is None or k is None or v is None or operand(node, 8) is not None:
        return None
    parts = [q, k, v]
    if bias is not None:
        widths = [_width(rw, x, int_attr(node, "num_heads", 1)) for x in parts]
        known = [width for width in widths if width is not None]
        if len(known) < len(widths):
            return None
        biases = ops.split(rw, bias, known, 0)
        # Keys that come as heads are those of another sequence, with their biases in them.
        parts = [rw.op("Add", x, b) if rw.facts.rank(x) == 3 else x for x, b in zip(parts, biases, strict=True)]
    return _heads(rw, node, parts, (mask, added), caches, apart)


def _heads(
    rw: Rewriter,
    node: onnx_ir.Node,
    operands: Sequence[onnx_ir.Value],
    masks: Sequence[onnx_ir.Value | None],
    caches: Sequence[onnx_ir.Value | None],
    apart: bool,
) -> tuple[onnx_ir.Value, onnx_ir.Value, onnx_ir.Value] | None:
    """An attention without biases and caches, and all of its keys and values; ``apart`` as heads.

    Args:
        rw: The rewriter.
        node: Whose attributes hold.
        operands: Queries, keys and values.
        masks: Which keys are no padding, and what is added to the scores.
        caches: Keys and values that were there before, as heads.
        apart: Whether keys and values are to be heads, (B, N, S, H).
    """
    heads, found = int_attr(node, "num_heads", 1), []
    for value, past in zip(operands[1:], caches, strict=True):
        width = _width(rw, value, heads)
        if width is None:
            return None
        if apart and rw.facts.rank(value) == 3:
            value = ops.transpose(rw, ops.reshape(rw, value, [0, 0, heads, width // heads]), [0, 2, 1, 3])
        found.append(value if past is None else ops.concat(rw, [past, value], 2))
    options = {name: attribute.value for name, attribute in node.attributes.items() if name in _KEPT}
    made = rw.op("MultiHeadAttention", operands[0], *found, None, *masks, domain=DOMAIN, **options)
    return made, found[0], found[1]


def _width(rw: Rewriter, value: onnx_ir.Value, heads: int) -> int | None:
    """The elements of all heads at one place, where they are known."""
    shape = rw.facts.shape(value)
    if shape is None or len(shape) not in (3, 4):
        return None
    width = shape[-1] if len(shape) == 3 else shape[-1] * heads
    return width if isinstance(width, int) else None


_KEPT = ("num_heads", "unidirectional", "scale", "mask_filter_value")


def _batch_normalization(rw: Rewriter, node: onnx_ir.Node) -> Sequence[onnx_ir.Value | None] | None:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift, per channel."""
    x, *parameters = node.inputs
    rank = rw.facts.rank(x)
    if rank is None or rank < 2 or int_attr(node, "training_mode", 0) or _reads(node, 1, 2, 3, 4):
        return None
    dtype = rw.facts.dtype(parameters[3])
    if dtype is None:
        return None
    scale, shift, mean, variance = (
        ops.unsqueeze(rw, value, list(range(1, rank - 1))) if value is not None and rank > 2 else value
        for value in parameters[:4]
    )
    epsilon = rw.constant(np.asarray(_float(node, "epsilon", 1e-5), dtype.numpy()), "epsilon")
    factor = rw.op("Div", scale, rw.op("Sqrt", rw.op("Add", variance, epsilon)))
    return [rw.op("Add", rw.op("Mul", rw.op("Sub", x, mean), factor), shift)]


def _product_with_vector(rw: Rewriter, node: onnx_ir.Node) -> Sequence[onnx_ir.Value | None] | None:
    """A vector is a matrix of one row, or of one column."""
    ranks = [rw.facts.rank(value) for value in node.inputs]
    if 1 not in ranks or None in ranks:
        return None
    a, b = node.inputs
    assert a is not None and b is not None
    made = rw.op(
        "MatMul",
        ops.unsqueeze(rw, a, [0]) if ranks[0] == 1 else a,
        ops.unsqueeze(rw, b, [1]) if ranks[1] == 1 else b,
    )
    gone = [axis for axis, rank in ((-2, ranks[0]), (-1, ranks[1])) if rank == 1]
    full = max(2, *(rank or 0 for rank in ranks))
    return [ops.squeeze(rw, made, [full + axis for axis in gone])]


EXPANSIONS: Mapping[str, Expansion] = {
    "BatchNormalization": _batch_normalization,
    "MatMul": _product_with_vector,
} | {
    f"{DOMAIN}::{op}": expansion
    for op, expansion in (
        ("SkipLayerNormalization", _skip_normalization),
        ("SkipSimplifiedLayerNormalization", _skip_normalization),
        ("EmbedLayerNormalization", _embedding),
        ("FusedMatMul", _fused_matmul),
        ("TransposeMatMul", _fused_matmul),
        ("Attention", _attention),
        ("MultiHeadAttention", _multi_head),
    )
}
