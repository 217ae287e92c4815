"""Reductions, products, layers of networks."""

from __future__ import annotations

import numpy as np

from .builder import FLOAT, INT8, INT32, INT64, SIZES, UINT8, Builder, Value, small, template


@template(2)
def reduction(b: Builder) -> Value | None:
    x = b.pick(b.is_real, lambda v: v.rank > 0 and 0 not in v.shape)
    if x is None:
        return None
    axis, keep = b.rng.randrange(x.rank), b.chance(0.6)
    op = b.rng.choice(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"])
    shape = [*x.shape[:axis], *([1] if keep else []), *x.shape[axis + 1 :]]
    axes = b.ints([axis if b.chance(0.6) else axis - x.rank])
    return b.add(op, [x, axes], shape, steady=op in ("ReduceMax", "ReduceMin"), keepdims=int(keep))


@template()
def normalized(b: Builder) -> Value | None:
    x = b.pick(b.is_real, lambda v: v.rank > 0 and 0 not in v.shape)
    op = b.rng.choice(["Softmax", "LogSoftmax", "Softmax"])
    return x and b.add(op, [x], x.shape, axis=b.rng.randrange(-x.rank, x.rank))


@template()
def arg(b: Builder) -> Value | None:
    x = b.pick(b.is_real, lambda v: v.steady and v.rank > 0 and 0 not in v.shape)
    if x is None:
        return None
    axis = b.rng.randrange(x.rank)
    shape = [*x.shape[:axis], 1, *x.shape[axis + 1 :]]
    return b.add(b.rng.choice(["ArgMax", "ArgMin"]), [x], shape, INT64, steady=True, axis=axis, keepdims=1)


@template(4)
def matmul(b: Builder) -> Value | None:
    x = b.pick(b.is_real, lambda v: v.rank > 1 and isinstance(v.shape[-1], int) and v.shape[-1] > 0, small)
    if x is None:
        return None
    inner = x.shape[-1]
    assert isinstance(inner, int)
    y = b.pick(b.is_real, lambda v: v.rank == x.rank and v.shape[-2] == inner and v.shape[:-2] == x.shape[:-2])
    if y is None or b.chance(0.6):
        y = b.weights(inner, b.rng.choice(SIZES))
    return b.add("MatMul", [x, y], [*x.shape[:-1], y.shape[-1]])


@template()
def self_product(b: Builder) -> Value | None:
    """x @ x^T, as attention scores are."""
    x = b.pick(b.is_real, lambda v: v.rank > 1 and 0 not in v.shape, small)
    if x is None:
        return None
    perm = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    turned = b.add("Transpose", [x], [x.shape[a] for a in perm], perm=perm)
    product = b.add("MatMul", [x, turned], [*x.shape[:-1], x.shape[-2]])
    return b.add("Mul", [product, b.constant(0.125)], product.shape)


@template(2)
def gemm(b: Builder) -> Value | None:
    x = b.pick(b.is_real, lambda v: v.rank == 2 and all(isinstance(d, int) and d > 0 for d in v.shape[1:]), small)
    if x is None:
        return None
    inner, width, turned = x.shape[1], b.rng.choice(SIZES), b.chance(0.5)
    assert isinstance(inner, int)
    w = b.weights(width, inner) if turned else b.weights(inner, width)
    c = b.rng.choice([None, b.weights(width), b.weights(1, width), b.weights(1)])
    alpha, beta = b.rng.choice([(1.0, 1.0), (1.0, 1.0), (0.5, 2.0)])
    return b.add("Gemm", [x, w, c], [x.shape[0], width], transB=int(turned), alpha=alpha, beta=beta)


@template(3)
def conv(b: Builder) -> Value | None:
    x = b.pick(b.is_real, lambda v: v.rank in (3, 4) and all(isinstance(d, int) and d > 0 for d in v.shape[1:]), small)
    if x is None:
        return None
    channels, spatial = x.shape[1], x.shape[2:]
    assert isinstance(channels, int)
    group = b.rng.choice([1, 1, channels])
    out = channels * b.rng.choice([1, 2]) if group > 1 else b.rng.choice(SIZES)
    kernel = [b.rng.choice([1, 3]) if int(size) >= 1 else 1 for size in spatial]
    pads = [k // 2 for k in kernel]
    w = b.weights(out, channels // group, *kernel)
    bias = b.weights(out) if b.chance(0.5) else None
    y = b.add("Conv", [x, w, bias], [x.shape[0], out, *spatial], pads=[*pads, *pads], kernel_shape=kernel, group=group)
    if b.chance(0.4):
        scale, offset, mean = (b.weights(out) for _ in range(3))
        variance = b.constant(np.random.default_rng(b.rng.getrandbits(32)).uniform(0.5, 2.0, out))
        y = b.add("BatchNormalization", [y, scale, offset, mean, variance], y.shape)
    return b.add(b.rng.choice(["Relu", "Sigmoid", "HardSwish"]), [y], y.shape) if b.chance(0.5) else y


@template()
def pool(b: Builder) -> Value | None:
    x = b.pick(b.is_real, lambda v: v.rank == 4 and all(isinstance(d, int) and d > 0 for d in v.shape[1:]))
    if x is None:
        return None
    op = b.rng.choice(["MaxPool", "AveragePool", "GlobalAveragePool"])
    if op == "GlobalAveragePool":
        return b.add(op, [x], [*x.shape[:2], 1, 1])
    more = {"count_include_pad": b.rng.randrange(2)} if op == "AveragePool" else {}
    return b.add(op, [x], x.shape, steady=op == "MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], **more)


def _has_elements(value: Value) -> bool:
    return 0 not in value.shape


@template()
def layer_norm(b: Builder) -> Value | None:
    """Layer normalization, as one node or in parts."""
    x = b.pick(
        b.is_real, lambda v: v.rank > 1 and isinstance(v.shape[-1], int) and v.shape[-1] > 1 and 0 not in v.shape
    )
    if x is None:
        return None
    width = x.shape[-1]
    assert isinstance(width, int)
    gamma, beta = b.weights(width), b.weights(width)
    if b.chance(0.4):
        return b.add("LayerNormalization", [x, gamma, beta], x.shape, axis=-1)
    reduced, last = [*x.shape[:-1], 1], b.ints([-1])
    centered = b.add("Sub", [x, b.add("ReduceMean", [x, last], reduced)], x.shape)
    variance = b.add("ReduceMean", [b.add("Mul", [centered, centered], x.shape), last], reduced)
    eased = b.add("Add", [variance, b.constant(b.rng.choice([1e-5, 1e-2]))], reduced)
    scaled = b.add("Div", [centered, b.add("Sqrt", [eased], reduced)], x.shape)
    return b.add("Add", [b.add("Mul", [scaled, gamma], x.shape), beta], x.shape)


@template()
def gelu(b: Builder) -> Value | None:
    x = b.pick(b.is_real)
    if x is None:
        return None
    inner = b.add("Mul", [x, b.constant(b.rng.choice([0.5**0.5, 0.5**0.5, 0.7]))], x.shape)
    raised = b.add("Add", [b.add("Erf", [inner], x.shape), b.constant(1.0)], x.shape)
    return b.add("Mul", [b.add("Mul", [x, raised], x.shape), b.constant(0.5)], x.shape)


@template()
def einsum(b: Builder) -> Value | None:
    x = b.pick(b.is_real, lambda v: v.rank == 3 and isinstance(v.shape[-1], int) and v.shape[-1] > 0, small)
    if x is None:
        return None
    width, out = x.shape[-1], b.rng.choice(SIZES)
    assert isinstance(width, int)
    equation, shape = b.rng.choice(
        [("abc,cd->abd", (*x.shape[:2], out)), ("abc,cd->adb", (x.shape[0], out, x.shape[1])), ("abc,cd->dab", None)]
    )
    result = shape if shape is not None else (out, *x.shape[:2])
    return b.add("Einsum", [x, b.weights(width, out)], result, equation=equation)


@template(2)
def quantized(b: Builder) -> Value | None:
    """Integers and back, with movement of integers between; the quantizer works on a steady value only."""
    x = b.pick(lambda v: v.dtype == FLOAT and v.steady)
    if x is None:
        return None
    kind = b.rng.choice([UINT8, INT8])
    scale, zero = b.constant(0.0625, FLOAT), b.constant(128 if kind == UINT8 else b.rng.choice([0, 3]), kind)
    q = b.add("QuantizeLinear", [x, scale, zero], x.shape, kind, steady=True)
    if q.rank > 1 and b.chance(0.3):
        perm = b.rng.sample(range(q.rank), q.rank)
        q = b.add("Transpose", [q], [q.shape[axis] for axis in perm], steady=True, perm=perm)
    return b.add("DequantizeLinear", [q, scale, zero], q.shape, FLOAT, steady=True)


@template(1.5)
def quantized_layer(b: Builder) -> Value | None:
    """A product between quantizers, as quantization tools write it: Dequantize, MatMul or Gemm or Conv, Quantize."""
    x = b.pick(lambda v: v.dtype == FLOAT and v.steady and v.rank > 1 and isinstance(v.shape[-1], int), small)
    if x is None or not x.shape[-1]:
        return None
    inner, width = int(x.shape[-1]), b.rng.choice(SIZES)
    kind = b.rng.choice([UINT8, INT8])
    scale, zero = b.constant(0.0625, FLOAT), b.constant(128 if kind == UINT8 else 0, kind)
    q = b.add("QuantizeLinear", [x, scale, zero], x.shape, kind, steady=True)
    d = b.add("DequantizeLinear", [q, scale, zero], x.shape, FLOAT, steady=True)
    numbers = np.random.default_rng(b.rng.getrandbits(32)).integers(-127, 127, (inner, width))
    axis = b.rng.choice([None, 1])
    scales = b.constant(np.full([] if axis is None else [width], 0.0078125), FLOAT)
    zeros = b.constant(np.zeros([] if axis is None else [width]), INT8)
    w = b.add(
        "DequantizeLinear", [b.constant(numbers, INT8), scales, zeros], (inner, width), FLOAT, steady=True,
        **({} if axis is None else {"axis": axis}),
    )  # fmt: skip
    y = b.add("MatMul", [d, w], [*x.shape[:-1], width])
    if b.chance(0.5):
        bias = b.weights(width, dtype=FLOAT)
        y = b.add("Add", [y, bias], y.shape)
    return y


@template(0.7)
def integer_product(b: Builder) -> Value | None:
    """MatMulInteger and DynamicQuantizeLinear, as dynamic quantization writes them."""
    x = b.pick(lambda v: v.dtype == FLOAT and v.steady and v.rank > 1 and isinstance(v.shape[-1], int), small)
    if x is None or 0 in x.shape:
        return None
    inner, width = int(x.shape[-1]), b.rng.choice(SIZES)
    names = [b.name(stem) for stem in ("q", "scale", "zero")]
    b.node("DynamicQuantizeLinear", [x], names)
    q, scale, zero = Value(names[0], UINT8, x.shape), Value(names[1], FLOAT, ()), Value(names[2], UINT8, ())
    numbers = np.random.default_rng(b.rng.getrandbits(32)).integers(-127, 127, (inner, width))
    product = b.add("MatMulInteger", [q, b.constant(numbers, INT8), zero], [*x.shape[:-1], width], INT32, steady=True)
    wide = b.add("Cast", [product], product.shape, FLOAT, to=FLOAT)
    factor = b.add("Mul", [scale, b.constant(0.01, FLOAT)], ())
    return b.add("Mul", [wide, factor], wide.shape)


_CONTRIB = ("Gelu", "FastGelu", "QuickGelu", "BiasGelu", "FusedMatMul", "SkipLayerNormalization", "FusedGemm")


@template(2)
def contrib(b: Builder) -> Value | None:
    """An operator of ONNX Runtime's own."""
    x = b.pick(lambda v: v.dtype == FLOAT and v.rank > 1 and isinstance(v.shape[-1], int) and 0 not in v.shape, small)
    if x is None:
        return None
    width, domain = int(x.shape[-1]), "com.microsoft"
    op = b.rng.choice(
        ["Gelu", "FastGelu", "QuickGelu", "BiasGelu", "FusedMatMul", "SkipLayerNormalization", "FusedGemm"]
    )
    if op in ("Gelu", "FastGelu"):
        return b.add(op, [x], x.shape, domain=domain)
    if op == "QuickGelu":
        return b.add(op, [x], x.shape, domain=domain, alpha=b.rng.choice([1.0, 1.702]))
    if op == "BiasGelu":
        return b.add(op, [x, b.weights(width, dtype=FLOAT)], x.shape, domain=domain)
    if op == "FusedMatMul":
        turned, out = b.chance(0.5), b.rng.choice(SIZES)
        w = b.weights(*((out, width) if turned else (width, out)), dtype=FLOAT)
        alpha = b.rng.choice([1.0, 0.5])
        return b.add(op, [x, w], [*x.shape[:-1], out], domain=domain, transB=int(turned), alpha=alpha)
    if op == "SkipLayerNormalization":
        if x.rank != 3:
            return None
        y = b.pick(lambda v: v.dtype == FLOAT and v.shape == x.shape) or x
        parameters = [b.weights(width, dtype=FLOAT) for _ in range(b.rng.choice([2, 3]))]
        return b.add(op, [x, y, *parameters], x.shape, domain=domain, epsilon=1e-5)
    if x.rank != 2:
        return None
    out = b.rng.choice(SIZES)
    inputs = [x, b.weights(width, out, dtype=FLOAT), b.weights(out, dtype=FLOAT)]
    return b.add(op, inputs, [x.shape[0], out], domain=domain, activation=b.rng.choice(["Relu", "Tanh"]))
