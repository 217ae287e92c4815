"""Inference for element-wise operators: broadcasting, data types, and arithmetic on the contents of shape tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir

from optc.ir.dims import Dim, bounds, maximum, minimum, provably_ge, provably_ne, provably_positive
from optc.ir.infer_base import (
    INT_RANGES,
    MAX_ELEMENTS,
    Context,
    DType,
    Fact,
    Inference,
    Shape,
    Table,
    broadcast_shapes,
    element_count,
    like,
    rearranged,
    static,
    table,
)

_Operation = Callable[..., "Dim | None"]


def spread(elements: tuple[Dim, ...], shape: Shape, target: Shape) -> tuple[Dim, ...]:
    """The contents of a tensor of (integer) ``shape`` after broadcasting it to ``target``, row-major."""
    total = element_count(target) or 0
    if len(elements) == total:
        return elements
    if len(elements) == 1:
        return elements * total
    return rearranged(elements, shape, lambda array: np.broadcast_to(array, static(target))) or ()


def combine(ctx: Context, operation: _Operation, shape: Shape | None, inputs: Sequence[int]) -> tuple[Dim, ...] | None:
    """Applies ``operation`` to the contents of ``inputs`` element by element; new symbols where it gives None."""
    count = element_count(shape)
    if shape is None or count is None or count > MAX_ELEMENTS:
        return None
    columns = []
    for index in inputs:
        elements = ctx.elements(index)
        if elements is None:
            return None
        columns.append(spread(elements, ctx.shape(index) or (), shape))
    results = [operation(*row) for row in zip(*columns, strict=True)]
    if results and all(result is None for result in results):
        return None
    return tuple(ctx.knowledge.fresh_integer() if result is None else result for result in results)


# operations on elements: None where the result is not known ---------------------------------------------------------


def _divide(a: Dim, b: Dim) -> Dim | None:
    """Integer division truncates in ONNX; it agrees with floor division where nothing is negative.

    A divisor that may be 0 in some run is fine: such a run does not succeed.
    """
    if isinstance(a, int) and isinstance(b, int):
        return None if b == 0 else (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)
    return a // b if provably_ge(a, 0) and provably_ge(b, 0) and b != 0 else None


def _modulo(a: Dim, b: Dim) -> Dim | None:
    return a % b if provably_ge(a, 0) and provably_ge(b, 0) and b != 0 else None


def _equal(a: Dim, b: Dim) -> Dim | None:
    return 1 if a == b else 0 if provably_ne(a, b) else None


def _greater_equal(a: Dim, b: Dim) -> Dim | None:
    return 1 if provably_ge(a, b) else 0 if provably_ge(b, a + 1) else None


def _greater(a: Dim, b: Dim) -> Dim | None:
    return _greater_equal(a, b + 1)


def _and(a: Dim, b: Dim) -> Dim | None:
    return 0 if 0 in (a, b) else 1 if a == b == 1 else None


def _or(a: Dim, b: Dim) -> Dim | None:
    return 1 if 1 in (a, b) else 0 if a == b == 0 else None


def _not(a: Dim) -> Dim | None:
    return 1 - a if isinstance(a, int) else None


def _truth(a: Dim) -> Dim | None:
    return 1 if provably_ne(a, 0) else 0 if a == 0 else None


def _choose(condition: Dim, a: Dim, b: Dim) -> Dim | None:
    return a if a == b or condition == 1 else b if condition == 0 else None


def _sign(a: Dim) -> Dim | None:
    return 1 if provably_positive(a) else 0 if a == 0 else -1 if bounds(a)[1] < 0 else None


def _absolute(a: Dim) -> Dim | None:
    return a if provably_ge(a, 0) else -a if provably_ge(0, a) else None


# inference functions ----------------------------------------------------------------------------------------------


def broadcasting(operation: _Operation | None = None, dtype: onnx_ir.DataType | None = None) -> Inference:
    """Inputs are broadcast together; the dtype is that of the first input, or ``dtype``."""

    def infer(ctx: Context) -> Fact:
        facts = [ctx.fact(index) for index in range(len(ctx.inputs))]
        # before opset 7, the second input was broadcast to the first
        shape = facts[0].shape if ctx.version < 7 else broadcast_shapes(fact.shape for fact in facts)
        kind = dtype or facts[0].dtype or facts[-1].dtype
        if operation is None or facts[0].dtype not in INT_RANGES or ctx.version < 7:
            return Fact(kind, shape)
        return Fact(kind, shape, combine(ctx, operation, shape, range(len(facts))))

    return infer


def unary(operation: _Operation | None = None, dtype: onnx_ir.DataType | None = None) -> Inference:
    """The shape of the first input; its dtype, or ``dtype``."""

    def infer(ctx: Context) -> Fact:
        kind, shape, *_ = ctx.fact(0)
        if operation is None or kind not in INT_RANGES:
            return Fact(dtype or kind, shape)
        return Fact(dtype or kind, shape, combine(ctx, operation, shape, (0,)))

    return infer


def _where(ctx: Context) -> Fact:
    shape = broadcast_shapes(ctx.shape(index) for index in range(3))
    dtype = ctx.dtype(1) or ctx.dtype(2)
    return Fact(dtype, shape, combine(ctx, _choose, shape, (0, 1, 2)) if dtype in INT_RANGES else None)


def _cast(ctx: Context) -> Fact:
    source, shape, *_ = ctx.fact(0)
    if ctx.node.op_type == "CastLike":
        target = ctx.dtype(1)
    else:
        wanted: int | str = ctx.attr("to", 0)  # a name before opset 6
        target = DType.__members__[wanted] if isinstance(wanted, str) else ctx.attr_dtype("to", None)
    if target not in INT_RANGES:
        return Fact(target, shape)
    if source not in INT_RANGES:
        floats = ctx.floats(0) if target != DType.BOOL else None
        finite = floats is not None and all(map(math.isfinite, floats))
        return Fact(target, shape, tuple(map(int, floats)) if floats is not None and finite else None)
    if target == DType.BOOL and source != DType.BOOL:
        return Fact(target, shape, combine(ctx, _truth, shape, (0,)))
    return Fact(target, shape, ctx.elements(0))


def _identity(ctx: Context) -> Fact:
    return Fact(*ctx.fact(0)[:2], ctx.elements(0), ctx.fact(0).items)


def _dropout(ctx: Context) -> tuple[Fact, Fact]:
    dtype, shape, *_ = ctx.fact(0)
    mask = dtype if ctx.version < 10 else DType.BOOL  # opset 7 to 9 leave the type of the mask to the input
    return Fact(dtype, shape), Fact(mask, shape)


def _random_like(ctx: Context) -> Fact:
    dtype, shape, *_ = ctx.fact(0)
    return Fact(ctx.attr_dtype("dtype", dtype), shape)


ELEMENTWISE: Table = {
    **table("", "Add", broadcasting(lambda a, b: a + b)),
    **table("", "Sub", broadcasting(lambda a, b: a - b)),
    **table("", "Mul", broadcasting(lambda a, b: a * b)),
    **table("", "Div", broadcasting(_divide)),
    **table("", "Mod", broadcasting(_modulo)),
    **table("", "Max", broadcasting(maximum)),
    **table("", "Min", broadcasting(minimum)),
    **table("", "Pow BitShift BitwiseAnd BitwiseOr BitwiseXor Sum Mean", broadcasting()),
    **table("", "Equal", broadcasting(_equal, DType.BOOL)),
    **table("", "Greater", broadcasting(_greater, DType.BOOL)),
    **table("", "GreaterOrEqual", broadcasting(_greater_equal, DType.BOOL)),
    **table("", "Less", broadcasting(lambda a, b: _greater(b, a), DType.BOOL)),
    **table("", "LessOrEqual", broadcasting(lambda a, b: _greater_equal(b, a), DType.BOOL)),
    **table("", "And", broadcasting(_and, DType.BOOL)),
    **table("", "Or", broadcasting(_or, DType.BOOL)),
    **table("", "Xor", broadcasting(lambda a, b: None, DType.BOOL)),
    **table("", "Not", unary(_not, DType.BOOL)),
    **table("", "Neg", unary(lambda a: -a)),
    **table("", "Abs", unary(_absolute)),
    **table("", "Sign", unary(_sign)),
    **table("", "IsNaN IsInf", unary(dtype=DType.BOOL)),
    **table("", "Floor Ceil Round Sqrt Exp Log Reciprocal Erf Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh", like()),
    **table("", "Asinh Acosh Atanh Relu LeakyRelu PRelu Elu Celu Selu Gelu Sigmoid HardSigmoid HardSwish Mish", like()),
    **table("", "Softplus Softsign ThresholdedRelu Shrink Swish BitwiseNot Clip Affine ScaledTanh", like()),
    **table("", "Identity", _identity),
    **table("", "Where", _where),
    **table("", "Cast CastLike", _cast),
    **table("", "Dropout", _dropout),
    **table("", "RandomNormalLike RandomUniformLike", _random_like),
}
