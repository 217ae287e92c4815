"""QuantizeLinear and DequantizeLinear as pointwise operators: what they scale by is one number, one for each place of
an axis, or one for each block of it. Products of the small integers themselves are for kernels of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir

from optc.backends.triton.expressions import REGISTER, Expr
from optc.backends.triton.groups import Coordinates, Value
from optc.backends.triton.layout import Index
from optc.backends.triton.lower import Lowering, Rule, Unsupported
from optc.ir.dims import equal
from optc.ir.ops import int_attr

_T = onnx_ir.DataType
#: The whole numbers that each type holds.
_BOUNDS = {
    _T.INT8: (-128, 127),
    _T.UINT8: (0, 255),
    _T.INT16: (-32768, 32767),
    _T.UINT16: (0, 65535),
    _T.INT32: (-(2**31), 2**31 - 1),
}


def quantized(lowering: Lowering, node: onnx_ir.Node) -> None:
    """saturate(round(x / scale) + zero point), halves to the even number."""
    dtype = lowering.dtype(node.outputs[0])
    if dtype not in _BOUNDS or dtype == _T.INT32:
        raise Unsupported(f"{dtype.name.lower()} is not supported")
    low, high = (float(bound) for bound in _BOUNDS[dtype])

    def apply(x: Expr, scale: Expr, zero: Expr | None) -> Expr:
        pool = lowering.pool
        operands = (pool.cast(x, "fp32"), pool.cast(scale, "fp32"))
        steps = pool.make("functions.round_half_even({0} / {1})", operands, "fp32")
        if zero is not None:
            steps = pool.make("({0} + {1})", (steps, pool.cast(zero, "fp32")), "fp32")
        return pool.cast(pool.make(f"functions.clip({{0}}, {low}, {high})", (steps,), "fp32"), REGISTER[dtype])

    _scaled(lowering, node, apply)


def dequantized(lowering: Lowering, node: onnx_ir.Node) -> None:
    """(x - zero point) * scale."""
    if lowering.needed(node, 0).dtype not in _BOUNDS:
        raise Unsupported(f"{lowering.needed(node, 0).dtype.name.lower()} is not supported")

    def apply(x: Expr, scale: Expr, zero: Expr | None) -> Expr:
        pool = lowering.pool
        steps = pool.cast(x, "i32")
        if zero is not None:
            steps = pool.make("({0} - {1})", (steps, pool.cast(zero, "i32")), "i32")
        return pool.make("({0} * {1})", (pool.cast(steps, "fp32"), pool.cast(scale, "fp32")), "fp32")

    _scaled(lowering, node, apply)


def _scaled(lowering: Lowering, node: onnx_ir.Node, apply: Callable[[Expr, Expr, Expr | None], Expr]) -> None:
    """Define a node's result: ``apply`` on its operand and on the scale and zero point that belong to each place."""
    x = lowering.needed(node, 0)
    axis = int_attr(node, "axis", 1)
    axis += len(x.shape) if axis < 0 else 0
    scale, zero = lowering.needed(node, 1), lowering.operand(node, 2)
    block = int_attr(node, "block_size", 0)
    operands = [x, _spread(lowering, scale, x, axis, block)]
    operands += [] if zero is None else [_spread(lowering, zero, x, axis, block)]

    def build(elements: Sequence[Expr | None]) -> Expr:
        given = [element for element in elements if element is not None]
        return apply(given[0], given[1], given[2] if len(given) > 2 else None)

    lowering.pointwise(node, node.outputs[0], operands, build)


def _spread(lowering: Lowering, scale: Value, x: Value, axis: int, block: int) -> Value:
    """A scale or zero point in a shape that broadcasts to that of ``x``."""
    if all(equal(dim, 1) for dim in scale.shape) and len(scale.shape) <= 1:
        place: Coordinates = (Index(),) * len(scale.shape)
        return Value((), scale.dtype, compute=lambda coordinates, guard: lowering.element(scale, place, guard))
    lowering.stored(scale)
    if len(scale.shape) == 1 and not block:
        shape = tuple(dim if other == axis else 1 for other, dim in enumerate(x.shape))
        return Value(shape, scale.dtype, compute=lambda at, guard: lowering.element(scale, (at[axis],), guard))
    if len(scale.shape) != len(x.shape) or not block:
        raise Unsupported("its scales do not fit its operand")

    def compute(coordinates: Coordinates, guard: Expr | None) -> Expr:
        at = coordinates[axis].split([scale.shape[axis], block])[0]
        return lowering.element(scale, (*coordinates[:axis], at, *coordinates[axis + 1 :]), guard)

    return Value(x.shape, scale.dtype, compute=compute)


RULES: dict[str, Rule] = {
    f"{domain}{op}": rule
    for domain in ("", "com.microsoft::")
    for op, rule in (("QuantizeLinear", quantized), ("DequantizeLinear", dequantized))
}
