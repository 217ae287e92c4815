"""Quantizing what was only just dequantized, and what the quantizer's own saturation already does."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import int_attr, made_by, only_use, operand
from optc.ir.rewriter import Rewriter, copy_attributes
from optc.passes.clean.common import DType
from optc.passes.rule import node_rule

#: (lowest, highest) of the types for which quantizing undoes dequantizing exactly.
RANGES = {
    DType.INT4: (-8, 7),
    DType.UINT4: (0, 15),
    DType.INT8: (-(1 << 7), (1 << 7) - 1),
    DType.UINT8: (0, (1 << 8) - 1),
    DType.INT16: (-(1 << 15), (1 << 15) - 1),
    DType.UINT16: (0, (1 << 16) - 1),
}
#: Since when the standard quantizes to a type, and since when along an axis.
_STANDARD_SINCE = {DType.INT8: 10, DType.UINT8: 10, DType.INT16: 21, DType.UINT16: 21, DType.INT32: 10}
_AXIS_SINCE = 13
#: Operators that move elements of their first input and compute nothing.
_MOVING = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile", "Slice", "Gather", "Identity")
#: Types that all of them have kernels for.
_MOVED = {DType.INT8, DType.UINT8}
#: Multiples of a scale beyond these are no longer finite, or no longer exact, in single precision.
_SMALLEST, _LARGEST = 1e-30, 1e30


class Grid(NamedTuple):
    """How a Quantize- or DequantizeLinear with constant parameters maps floats to integers.

    Attributes:
        dtype: The integers' type.
        scale: The distances of neighbours, one or one for each entry of ``axis``.
        zero: The integers that stand for 0.
        axis: None where there is one scale.
    """

    dtype: onnx_ir.DataType
    scale: tuple[float, ...]
    zero: tuple[int, ...]
    axis: int | None

    @property
    def single(self) -> bool:
        """Whether there is one scale for all elements."""
        return self.axis is None


def grid_of(node: onnx_ir.Node, facts: Facts) -> Grid | None:
    """The grid of a QuantizeLinear or DequantizeLinear; None if it is not constant, not in single precision or odd.

    Blocks with scales of their own, scales that are not positive, and scales so extreme that products with them are
    inexact are odd.
    """
    scale_value, zero_value = operand(node, 1), operand(node, 2)
    dtype = facts.dtype(node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0])
    scale, zero = facts.const(scale_value), facts.const(zero_value)
    if scale is None or (zero is None and zero_value is not None) or int_attr(node, "block_size", 0):
        return None
    if dtype is None or facts.dtype(scale_value) != DType.FLOAT or scale.ndim > 1 or not scale.size:
        return None
    if not ((scale >= _SMALLEST) & (scale <= _LARGEST)).all():
        return None
    if zero is None:
        zero = np.zeros(scale.shape, np.int64)
    if zero.size != scale.size:
        return None
    axis = None
    if scale.size > 1:
        rank, axis = facts.rank(node.inputs[0]), int_attr(node, "axis", 1)
        if rank is None:
            return None
        axis += rank if axis < 0 else 0
    return Grid(dtype, tuple(map(float, scale.reshape(-1))), tuple(int(item) for item in zero.reshape(-1)), axis)


_CONTRIB = "com.microsoft"


@node_rule("standard-quantizer", f"{_CONTRIB}::QuantizeLinear", f"{_CONTRIB}::DequantizeLinear")
def standard_quantizer(rw: Rewriter, node: onnx_ir.Node):
    """ONNX Runtime's own Q/DQ, made for types that ONNX lacked once, are the standard's where that has the type now."""
    facts = rw.facts
    dtype = facts.dtype(node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0])
    scale, zero = facts.shape(operand(node, 1)), facts.shape(operand(node, 2))
    since = _STANDARD_SINCE.get(dtype) if dtype is not None else None
    if since is None or scale is None or facts.dtype(operand(node, 1)) != DType.FLOAT:
        return "the standard has no such quantizer"
    single = all(dim == 1 for dim in scale)
    if rw.opset() < (since if single else max(since, _AXIS_SINCE)):
        return "the standard has it in a later opset"
    if operand(node, 2) is not None and zero != scale:
        return "scale and zero point must have one shape"
    axis = None if single else int_attr(node, "axis", 1)
    return rw.op(node.op_type, *node.inputs, axis=axis)


@node_rule("quantize-dequantized", "QuantizeLinear")
def quantize_dequantized(rw: Rewriter, node: onnx_ir.Node):
    """Quantizing what was dequantized with the same scale and zero point gives the integers again.

    What only moves elements between the two moves integers instead, if there is one scale for all of them.
    """
    facts, moves = rw.facts, []
    value = node.inputs[0]
    while (mover := made_by(value, *_MOVING)) is not None and only_use(mover.outputs[0]):
        if mover.graph is not node.graph:
            return None
        moves.append(mover)
        value = mover.inputs[0]
    before = made_by(value, "DequantizeLinear")
    if before is None:
        return None
    was, wanted = grid_of(before, facts), grid_of(node, facts)
    if was is None or wanted is None or was.dtype not in RANGES:
        return "both must have constant scales and zero points"
    if was != wanted:
        return "the scales, zero points or types differ"
    if moves and (not was.single or was.dtype not in _MOVED):
        return "elements with scales of their own, or of an odd type, are moved"
    result = before.inputs[0]
    with rw.at(node, "quantize-dequantized", [*moves, before]):
        for mover in reversed(moves):
            attributes = {name: attr.value for name, attr in copy_attributes(mover).items()}
            result = rw.op(mover.op_type, result, *mover.inputs[1:], **attributes)
        return result


@node_rule("clip-quantized", "QuantizeLinear")
def clip_quantized(rw: Rewriter, node: onnx_ir.Node):
    """A Relu or Clip whose bounds are the quantizer's own, or lie outside of them, does nothing.

    Quantizing is monotonic, so it is enough that the bounds are quantized to the ends of the type's range.
    """
    clip = made_by(node.inputs[0], "Relu", "Clip")
    if clip is None or not only_use(node.inputs[0]):
        return None
    grid = grid_of(node, rw.facts)
    if grid is None or grid.dtype not in RANGES or not grid.single:
        return "the quantizer must have one constant scale and zero point"
    low, high = _bounds(clip, rw.facts)
    (scale,), (zero,), (lowest, highest) = grid.scale, grid.zero, RANGES[grid.dtype]
    if low is None or high is None:
        return "the bounds must be constant"
    if _step(low, scale) + zero > lowest or _step(high, scale) + zero < highest:
        return "the bounds cut off numbers that the quantizer would keep apart"
    with rw.at(node, "clip-quantized", [clip]):
        attributes = {name: attr.value for name, attr in copy_attributes(node).items()}
        return rw.op("QuantizeLinear", clip.inputs[0], *node.inputs[1:], **attributes)


def _bounds(clip: onnx_ir.Node, facts: Facts) -> tuple[float | None, float | None]:
    """The bounds of a Relu or Clip; None for one that is not known."""
    if clip.op_type == "Relu":
        return 0.0, np.inf
    found: list[float | None] = []
    for index, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), 1):
        attr, given = clip.attributes.get(name), operand(clip, index)
        scalar = facts.scalar(given) if given is not None else attr.as_float() if attr is not None else default
        found.append(None if scalar is None else float(scalar))
    return found[0], found[1]


def _step(bound: float, scale: float) -> float:
    """How many steps of the grid a bound lies from 0, in single precision as the quantizer computes it."""
    with np.errstate(over="ignore"):
        return float(np.rint(np.float32(bound) / np.float32(scale)))


RULES = (standard_quantizer, quantize_dequantized, clip_quantized)
