"""Inference for the ``com.microsoft`` operators that ONNX Runtime's own optimizer and quantizer write.

Shapes follow ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from optc.ir.dims import Dim
from optc.ir.infer_base import Context, DType, Fact, Inference, Shape, Table, broadcast_shapes, like, table
from optc.ir.infer_movement import concatenated
from optc.ir.infer_nn import convolution, dequantize, gemm, layer_normalization, matmul, matmul_shape, quantize

_MS = "com.microsoft"


def _fused_matmul(ctx: Context) -> Fact:
    dtype = ctx.dtype(0)
    shapes = [_transposed(ctx, ctx.shape(index), letter) for index, letter in ((0, "A"), (1, "B"))]
    return Fact(dtype, matmul_shape(*shapes))


def _transposed(ctx: Context, shape: Shape | None, letter: str) -> Shape | None:
    """The operand as MatMul sees it: first the batch axes move behind the next one, then the last two swap."""
    if shape is None or len(shape) < 2:
        return shape
    if ctx.attr(f"transBatch{letter}", 0):
        shape = (*shape[1:-1], shape[0], shape[-1])
    return (*shape[:-2], shape[-1], shape[-2]) if ctx.attr(f"trans{letter}", 0) else shape


def _skip_normalization(ctx: Context) -> list[Fact]:
    dtype, shape, *_ = ctx.fact(0)
    statistics = Fact(DType.FLOAT, None if shape is None else (*shape[:-1], 1))
    return [Fact(dtype, shape), statistics, statistics, Fact(dtype, shape)]


def _embed_normalization(ctx: Context) -> list[Fact]:
    ids, table_shape, dtype = ctx.shape(0), ctx.shape(2), ctx.dtype(2)
    if ids is None or len(ids) != 2 or table_shape is None or len(table_shape) != 2:
        return [Fact(dtype), Fact(DType.INT32), Fact(dtype)]
    embedded = Fact(dtype, (*ids, table_shape[1]))
    return [embedded, Fact(DType.INT32, ids[:1]), embedded]


def _cached(ctx: Context, length: Dim, index: int, axis: int) -> Dim:
    """The length of a cache after ``length`` more positions; input ``index``, if there, is the cache before."""
    if not ctx.has(index):
        return length
    past = ctx.shape(index)
    return ctx.fresh() if past is None or axis >= len(past) else past[axis] + length


def _attention(ctx: Context) -> list[Fact]:
    """Attention with the projection of Q, K and V inside: input (B, S, D), weights (D, 3 H)."""
    quantized = ctx.node.op_type == "QAttention"
    dtype = ctx.dtype(3) if quantized else ctx.dtype(0)
    shape, weights = ctx.shape(0), ctx.shape(1)
    sizes = ctx.attr_ints("qkv_hidden_sizes")
    if shape is None or len(shape) != 3:
        return [Fact(dtype), Fact(dtype)]
    hidden: Dim = ctx.fresh()
    if sizes:
        hidden = sizes[-1]
    elif weights is not None and len(weights) == 2:
        hidden = weights[1] // 3
    heads = ctx.attr("num_heads", 1)
    total = _cached(ctx, shape[1], 4, 3) if not ctx.attr("past_present_share_buffer", 0) else ctx.fresh()
    present = (2, shape[0], heads, total, hidden // heads)
    return [Fact(dtype, (*shape[:2], hidden)), Fact(dtype, None if sizes else present)]


def _multi_head_attention(ctx: Context) -> list[Fact]:
    """Q (B, S, H), or QKV packed as (B, S, N, 3, D); K and V (B, L, H) or (B, N, L, D), or KV packed."""
    query, key, value = ctx.shape(0), ctx.shape(1), ctx.shape(2)
    dtype, heads = ctx.dtype(0), ctx.attr("num_heads", 1)
    if query is None:
        return [Fact(dtype)] * 3
    hidden: Dim
    if len(query) == 5:
        hidden = query[4] * heads
    elif value is not None and len(value) == 3:
        hidden = value[2]
    elif value is not None and len(value) == 4:
        hidden = value[3] * heads
    elif key is not None and len(key) == 5:
        hidden = key[4] * heads
    else:
        hidden = ctx.fresh()
    caches = []
    for new, past in ((key, 6), (value, 7)):
        length, size = ctx.fresh_shape(2)
        if new is not None and len(new) in (3, 4) and not ctx.has(8):  # input 8: the past shares its buffer
            length = _cached(ctx, new[-2], past, 2)
            size = new[2] // heads if len(new) == 3 else new[3]
        caches.append(Fact(dtype, (query[0], heads, length, size)))
    return [Fact(dtype, (query[0], query[1], hidden)), *caches]


def _group_query_attention(ctx: Context) -> list[Fact]:
    """Q (B, S, N D), or QKV packed along the last axis; the caches are (B, KV heads, L, D)."""
    query, dtype = ctx.shape(0), ctx.dtype(0)
    if query is None or len(query) != 3:
        return [Fact(dtype)] * 3
    heads, shared = ctx.attr("num_heads", 1), ctx.attr("kv_num_heads", 1)
    hidden, size = query[2], query[2] // heads
    if not ctx.has(1):
        size = hidden // (heads + 2 * shared)
        hidden = size * heads
    caches = [
        Fact(ctx.dtype(index) if ctx.has(index) else dtype, (query[0], shared, ctx.fresh(), size)) for index in (3, 4)
    ]
    return [Fact(dtype, (query[0], query[1], hidden)), *caches]


def _matmul_packed(ctx: Context) -> Fact:
    """The weight is packed along N and K, which attributes give."""
    dtype, shape, *_ = ctx.fact(0)
    columns = ctx.attr("N", None)
    return Fact(dtype, None if not shape or columns is None else (*shape[:-1], columns))


def _qgemm(ctx: Context) -> Fact:
    dtype = ctx.dtype(8) if ctx.has(8) else DType.FLOAT
    a, b = ctx.shape(0), ctx.shape(3)
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return Fact(dtype)
    return Fact(dtype, (a[1 if ctx.attr("transA", 0) else 0], b[0 if ctx.attr("transB", 0) else 1]))


def _qlinear(second: int) -> Inference:
    """A quantized binary operator: the operands are inputs 0 and ``second``."""

    def infer(ctx: Context) -> Fact:
        return Fact(ctx.dtype(0), broadcast_shapes((ctx.shape(0), ctx.shape(second))))

    return infer


def _qlinear_pool(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    if shape is None or ctx.attr("channels_last", 0):
        return Fact(dtype)
    return Fact(dtype, shape[:2] + (1,) * (len(shape) - 2))


def _qlinear_concat(ctx: Context) -> Fact:
    """After the scale and zero point of the output come the inputs, each with its own."""
    shapes = [ctx.shape(index) for index in range(2, len(ctx.inputs), 3)]
    return Fact(ctx.dtype(1), concatenated(shapes, ctx.attr("axis", 0), ctx.fresh))


def _bias_dropout(ctx: Context) -> list[Fact]:
    dtype, shape, *_ = ctx.fact(0)
    return [Fact(dtype, shape), Fact(DType.BOOL, shape)]


CONTRIB: Table = {
    **table(_MS, "FusedMatMul TransposeMatMul FusedMatMulActivation", _fused_matmul),
    **table(_MS, "FusedGemm", gemm),
    **table(_MS, "FusedConv", convolution()),
    **table(_MS, "GemmFastGelu DynamicQuantizeMatMul", matmul()),
    **table(_MS, "MatMulIntegerToFloat", matmul(dtype=2)),
    **table(_MS, "MatMulNBits MatMulBnb4", _matmul_packed),
    **table(_MS, "QGemm", _qgemm),
    **table(_MS, "QLinearAdd QLinearMul", _qlinear(3)),
    **table(_MS, "QLinearSigmoid QLinearLeakyRelu QLinearSoftmax", like()),
    **table(_MS, "QLinearGlobalAveragePool", _qlinear_pool),
    **table(_MS, "QLinearConcat", _qlinear_concat),
    **table(_MS, "QuantizeLinear", quantize),
    **table(_MS, "DequantizeLinear", dequantize),
    **table(_MS, "Gelu FastGelu QuickGelu BiasGelu BiasAdd BiasSoftmax RotaryEmbedding GroupNorm MoE QMoE", like()),
    **table(_MS, "SkipLayerNormalization SkipSimplifiedLayerNormalization", _skip_normalization),
    **table("", "SkipLayerNormalization", _skip_normalization),
    **table(_MS, "SimplifiedLayerNormalization LayerNormalization", layer_normalization),
    **table(_MS, "EmbedLayerNormalization", _embed_normalization),
    **table(_MS, "Attention QAttention", _attention),
    **table(_MS, "MultiHeadAttention", _multi_head_attention),
    **table(_MS, "GroupQueryAttention", _group_query_attention),
    **table(_MS, "BiasDropout", _bias_dropout),
}
