"""Inference for products, convolutions, pooling, reductions, normalisation, recurrence and quantization."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from optc.ir.dims import BroadcastError, Dim, broadcast, ceildiv, maximum, minimum, product
from optc.ir.infer_base import (
    INT_RANGES,
    Context,
    DType,
    Fact,
    Inference,
    Shape,
    Table,
    broadcast_shapes,
    like,
    normalize_axes,
    normalize_axis,
    table,
)

# products ---------------------------------------------------------------------------------------------------------


def matmul_shape(a: Shape | None, b: Shape | None) -> Shape | None:
    """NumPy's ``matmul``: vectors are promoted, leading dims are broadcast."""
    if not a or not b:
        return None
    batch = broadcast_shapes((a[:-2], b[:-2]))
    if batch is None:
        return None
    return batch + a[-2:-1] + (b[-1:] if len(b) > 1 else ())


def matmul(left: int = 0, right: int = 1, dtype: int | onnx_ir.DataType = 0) -> Inference:
    """A matrix product of two inputs; ``dtype`` is that of an input, or fixed."""

    def infer(ctx: Context) -> Fact:
        kind = dtype if isinstance(dtype, DType) else ctx.dtype(dtype)
        return Fact(kind, matmul_shape(ctx.shape(left), ctx.shape(right)))

    return infer


def gemm(ctx: Context) -> Fact:
    """``alpha * A' * B' + beta * C`` of matrices."""
    a, b = ctx.shape(0), ctx.shape(1)
    dtype = ctx.dtype(0) or ctx.dtype(1)
    rows = ctx.fresh() if a is None or len(a) != 2 else a[1 if ctx.attr("transA", 0) else 0]
    columns = ctx.fresh() if b is None or len(b) != 2 else b[0 if ctx.attr("transB", 0) else 1]
    return Fact(dtype, (rows, columns))


def _einsum(ctx: Context) -> Fact:
    dtype = ctx.dtype(0)
    shapes = [ctx.shape(index) for index in range(len(ctx.inputs))]
    terms, arrow, output = ctx.attr("equation", "").replace(" ", "").partition("->")
    labels = terms.split(",")
    if len(labels) != len(shapes) or any(shape is None for shape in shapes):
        return Fact(dtype)
    dims: dict[str, Dim] = {}
    ellipses: list[Shape] = [()]
    try:
        for label, shape in zip(labels, shapes, strict=True):
            before, dots, after = label.partition("...")
            if len(before) + len(after) > len(shape) or (not dots and len(label) != len(shape)):  # type: ignore[arg-type]
                return Fact(dtype)
            tail = len(shape) - len(after)  # type: ignore[arg-type]
            ellipses.append(shape[len(before) : tail])  # type: ignore[index]
            named = zip(before + after, shape[: len(before)] + shape[tail:], strict=True)  # type: ignore[index]
            for letter, dim in named:
                dims[letter] = broadcast(dims.get(letter, 1), dim)
    except BroadcastError:
        return Fact(dtype)
    middle = broadcast_shapes(ellipses)
    if not arrow:
        once = sorted(letter for letter in dims if terms.count(letter) == 1)
        output = ("..." if "..." in terms else "") + "".join(once)
    before, dots, after = output.partition("...")
    if middle is None or any(letter not in dims for letter in before + after):
        return Fact(dtype)
    names = [tuple(dims[letter] for letter in part) for part in (before, after)]
    return Fact(dtype, names[0] + (middle if dots else ()) + names[1])


# windows ----------------------------------------------------------------------------------------------------------


def _windowed(ctx: Context, spatial: Shape, kernel: Sequence[Dim]) -> Shape:
    """The spatial dims of a convolution or pooling."""
    rank = len(spatial)
    strides = ctx.attr_ints("strides") or (1,) * rank
    dilations = ctx.attr_ints("dilations") or (1,) * rank
    pads = ctx.attr_ints("pads") or (0,) * (2 * rank)
    auto = ctx.attr("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = (0,) * (2 * rank)
    if not rank == len(kernel) == len(strides) == len(dilations) == len(pads) // 2:
        return ctx.fresh_shape(rank)
    result = []
    for axis, dim in enumerate(spatial):
        stride, after = strides[axis], pads[axis + rank]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            result.append(ceildiv(dim, stride))
            continue
        window = (kernel[axis] - 1) * dilations[axis] + 1
        room = pads[axis] + (dim + after) - window
        count = room // stride + 1
        if ctx.attr("ceil_mode", 0):
            rounded_up = ceildiv(room, stride) + 1
            # a last window that starts in the padding after the end is dropped by some versions only
            agreed = isinstance(window, int) and stride + after <= window
            count = rounded_up if agreed or rounded_up == count else ctx.fresh()
        result.append(count)
    return tuple(result)


def convolution(data: int = 0, weight: int = 1, dtype: int | onnx_ir.DataType = 0) -> Inference:
    """A convolution whose data (N, C, ...) and weight (M, C/group, ...) are these inputs."""

    def infer(ctx: Context) -> Fact:
        kind = dtype if isinstance(dtype, DType) else ctx.dtype(dtype)
        x, w = ctx.shape(data), ctx.shape(weight)
        if x is None or len(x) < 2:
            return Fact(kind, ctx.fresh_shape(len(w)) if w is not None else None)
        kernel = w[2:] if w is not None else ctx.attr_ints("kernel_shape") or ctx.fresh_shape(len(x) - 2)
        channels = w[0] if w else ctx.fresh()
        return Fact(kind, (x[0], channels, *_windowed(ctx, x[2:], kernel)))

    return infer


def _conv_transpose(ctx: Context) -> Fact:
    dtype = ctx.dtype(0)
    x, w = ctx.shape(0), ctx.shape(1)
    if x is None or w is None or len(x) != len(w) or len(x) < 3:
        return Fact(dtype, None if x is None else ctx.fresh_shape(len(x)))
    rank = len(x) - 2
    wanted = ctx.attr_ints("output_shape")
    if wanted is not None:
        spatial: Shape = wanted[-rank:]
    elif ctx.attr("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        spatial = ctx.fresh_shape(rank)
    else:
        strides = ctx.attr_ints("strides") or (1,) * rank
        dilations = ctx.attr_ints("dilations") or (1,) * rank
        extra = ctx.attr_ints("output_padding") or (0,) * rank
        pads = ctx.attr_ints("pads") or (0,) * (2 * rank)
        if ctx.attr("auto_pad", "NOTSET") == "VALID":
            pads = (0,) * (2 * rank)
        spatial = tuple(
            (x[i + 2] - 1) * strides[i] + extra[i] + ((w[i + 2] - 1) * dilations[i] + 1) - (pads[i] + pads[i + rank])
            for i in range(rank)
        )
    return Fact(dtype, (x[0], w[1] * ctx.attr("group", 1), *spatial))


def pooling(outputs: int = 1, dtype: int | None = 0) -> Inference:
    """Pooling over the trailing dims; a second output holds indices."""

    def infer(ctx: Context) -> list[Fact]:
        shape, kernel = ctx.shape(0), ctx.attr_ints("kernel_shape")
        if shape is not None:
            windows = _windowed(ctx, shape[2:], kernel) if kernel else ctx.fresh_shape(len(shape) - 2)
            shape = (*shape[:2], *windows)
        return [Fact(ctx.dtype(0), shape), Fact(DType.INT64, shape)][:outputs]

    return infer


def _global_pool(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    return Fact(dtype, None if shape is None else shape[:2] + (1,) * (len(shape) - 2))


# reductions -------------------------------------------------------------------------------------------------------

_REDUCE_ELEMENTS = {
    "ReduceSum": lambda elements: sum(elements[1:], elements[0]),
    "ReduceProd": product,
    "ReduceMax": lambda elements: maximum(*elements),
    "ReduceMin": lambda elements: minimum(*elements),
}


def _reduce(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    if shape is None:
        return Fact(dtype)
    rank, keep = len(shape), ctx.attr("keepdims", 1)
    axes = ctx.attr_ints("axes")
    if axes is None and ctx.has(1):
        axes = ctx.ints(1)
        if axes is None:
            counts = ctx.shape(1)
            if keep:
                return Fact(dtype, ctx.fresh_shape(rank))
            if not counts or not isinstance(counts[0], int) or counts[0] == 0:
                return Fact(dtype)
            return Fact(dtype, ctx.fresh_shape(rank - counts[0]))
    if not axes:
        if ctx.attr("noop_with_empty_axes", 0):
            return Fact(dtype, shape)
        axes = tuple(range(rank))
    normal = normalize_axes(axes, rank)
    if normal is None:
        return Fact(dtype)
    kept = tuple(1 if axis in normal else dim for axis, dim in enumerate(shape) if keep or axis not in normal)
    elements, gather = ctx.elements(0), _REDUCE_ELEMENTS.get(ctx.node.op_type)
    if elements and gather and len(normal) == rank and dtype in INT_RANGES:
        return Fact(dtype, kept, (gather(elements),))
    return Fact(dtype, kept)


def _arg_reduce(ctx: Context) -> Fact:
    shape = ctx.shape(0)
    if shape is None or (axis := normalize_axis(ctx.attr("axis", 0), len(shape))) is None:
        return Fact(DType.INT64)
    middle = (1,) if ctx.attr("keepdims", 1) else ()
    return Fact(DType.INT64, (*shape[:axis], *middle, *shape[axis + 1 :]))


# normalisation ----------------------------------------------------------------------------------------------------


def layer_normalization(ctx: Context) -> list[Fact]:
    """Y like the input; then the statistics (mean and inverse deviation), with the normalised axes reduced to 1."""
    shape = ctx.shape(0)
    dtype = ctx.dtype(1)  # the operators that ONNX Runtime had before opset 17 let it differ from that of the input
    stash = ctx.attr_dtype("stash_type", DType.FLOAT)
    if ctx.node.domain != "":
        stash = None
    axis = None if shape is None else normalize_axis(ctx.attr("axis", -1), len(shape))
    if shape is None or axis is None:
        return [Fact(dtype, shape), Fact(stash), Fact(stash)]
    statistics = Fact(stash, (*shape[:axis], *(1,) * (len(shape) - axis)))
    return [Fact(dtype, shape), statistics, statistics]


def _batch_normalization(ctx: Context) -> list[Fact]:
    dtype, shape, *_ = ctx.fact(0)
    statistics = [Fact(ctx.dtype(index), ctx.shape(index)) for index in (3, 4, 3, 4)]
    return [Fact(dtype, shape), *statistics]


def _attention(ctx: Context) -> list[Fact]:
    """Q, K, V as (B, heads, length, size), or as (B, length, heads * size); then bias, and the past K and V."""
    dtype, query, *_ = ctx.fact(0)
    key, value = ctx.shape(1), ctx.shape(2)
    dtypes = (dtype, ctx.dtype(1), ctx.dtype(2), dtype)
    heads, shared = ctx.attr("q_num_heads", None), ctx.attr("kv_num_heads", None)
    if query is None or key is None or value is None or not len(query) == len(key) == len(value):
        return [Fact(kind) for kind in dtypes]
    packed = len(query) == 3
    if packed:
        if heads is None or shared is None:
            return [Fact(kind) for kind in dtypes]
        query = (query[0], heads, query[1], query[2] // heads)
        key, value = ((s[0], shared, s[1], s[2] // shared) for s in (key, value))
    if len(query) != 4:
        return [Fact(kind) for kind in dtypes]
    past: Dim = 0
    if ctx.has(4):
        before = ctx.shape(4)
        past = before[2] if before is not None and len(before) == 4 else ctx.fresh()
    total = key[2] + past
    output: Shape = (*query[:3], value[3])
    if packed:
        output = (query[0], query[2], value[3] * heads)
    caches = [(*shape[:2], total, shape[3]) for shape in (key, value)]
    shapes = (output, *caches, (*query[:3], total))
    return [Fact(kind, shape) for kind, shape in zip(dtypes, shapes, strict=True)]


# recurrence -------------------------------------------------------------------------------------------------------


def _recurrent(ctx: Context) -> list[Fact]:
    dtype, shape, *_ = ctx.fact(0)
    weights = ctx.shape(2)
    hidden = ctx.attr("hidden_size", None) or (weights[-1] if weights else ctx.fresh())
    directions = 2 if ctx.attr("direction", "forward") == "bidirectional" else 1
    if shape is None or len(shape) != 3:
        return [Fact(dtype)] * 3
    if ctx.attr("layout", 0):
        batch, length, _ = shape
        state = Fact(dtype, (batch, directions, hidden))
        return [Fact(dtype, (batch, length, directions, hidden)), state, state]
    length, batch, _ = shape
    state = Fact(dtype, (directions, batch, hidden))
    return [Fact(dtype, (length, directions, batch, hidden)), state, state]


# quantization -----------------------------------------------------------------------------------------------------


def quantize(ctx: Context) -> Fact:
    """The type of the zero point, else of ``output_dtype``, else uint8."""
    dtype = ctx.dtype(2) if ctx.has(2) else ctx.attr_dtype("output_dtype", DType.UINT8)
    return Fact(dtype, ctx.shape(0))


def dequantize(ctx: Context) -> Fact:
    """The type of ``output_dtype``, else of the scale."""
    return Fact(ctx.attr_dtype("output_dtype", ctx.dtype(1)), ctx.shape(0))


def _dynamic_quantize(ctx: Context) -> list[Fact]:
    return [Fact(DType.UINT8, ctx.shape(0)), Fact(DType.FLOAT, ()), Fact(DType.UINT8, ())]


NN: Table = {
    **table("", "MatMul", matmul()),
    **table("", "MatMulInteger", matmul(dtype=DType.INT32)),
    **table("", "QLinearMatMul", matmul(0, 3, 7)),
    **table("", "Gemm", gemm),
    **table("", "Einsum", _einsum),
    **table("", "Conv", convolution()),
    **table("", "ConvInteger", convolution(dtype=DType.INT32)),
    **table("", "QLinearConv", convolution(0, 3, 7)),
    **table("", "ConvTranspose", _conv_transpose),
    **table("", "MaxPool", pooling(outputs=2)),
    **table("", "AveragePool LpPool", pooling()),
    **table("", "GlobalAveragePool GlobalMaxPool GlobalLpPool", _global_pool),
    **table("", "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare", _reduce),
    **table("", "ReduceLogSum ReduceLogSumExp", _reduce),
    **table("", "ArgMax ArgMin", _arg_reduce),
    **table("", "Softmax LogSoftmax Hardmax LpNormalization MeanVarianceNormalization LRN", like()),
    **table("", "InstanceNormalization GroupNormalization RMSNormalization", like()),
    **table("", "LayerNormalization SimplifiedLayerNormalization", layer_normalization),
    **table("", "Attention", _attention),
    **table("", "RotaryEmbedding", like()),
    **table("", "BatchNormalization", _batch_normalization),
    **table("", "LSTM GRU RNN", _recurrent),
    **table("", "QuantizeLinear", quantize),
    **table("", "DequantizeLinear", dequantize),
    **table("", "DynamicQuantizeLinear", _dynamic_quantize),
}
