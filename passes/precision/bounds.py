"""Bounds that a value keeps for any input of the model: intervals, where they follow from operators and constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.mapped import release
from optc.ir.ops import operand

#: The least and the largest value.
Interval = tuple[float, float]

#: Elements of a weight that are read at once.
_CHUNK = 1 << 22


class Bounds:
    """The intervals of a graph's values (Moore, "Interval Analysis", 1966), each computed when it is asked for.

    What is not a number is no part of an interval: a bound says nothing of it.

    Args:
        graph: The main graph.
        facts: What is known of it.
    """

    def __init__(self, graph: onnx_ir.Graph, facts: Facts) -> None:
        self._facts = facts
        self._found: dict[onnx_ir.Value, Interval | None] = {}
        for node in graph:
            known = self._of(node)
            for index, value in enumerate(node.outputs):
                self._found[value] = known if index == 0 or node.op_type == "Split" else None

    def interval(self, value: onnx_ir.Value | None) -> Interval | None:
        """The interval of a value; None where nothing is known."""
        if value is None:
            return None
        if value not in self._found:
            self._found[value] = self._constant(value)
        return self._found[value]

    def constant(self, value: onnx_ir.Value | None) -> np.ndarray | None:
        """The contents of a constant."""
        return self._facts.const(value)

    def release(self, value: onnx_ir.Value) -> None:
        """Give back the memory that reading a constant took."""
        release(self._facts.tensor(value))

    def dtype(self, value: onnx_ir.Value | None) -> onnx_ir.DataType | None:
        """The element type of a value."""
        return self._facts.dtype(value)

    def width(self, value: onnx_ir.Value) -> int | None:
        """The last dim of a value, where it is a number."""
        shape = self._facts.shape(value)
        return shape[-1] if shape and isinstance(shape[-1], int) else None

    def _constant(self, value: onnx_ir.Value) -> Interval | None:
        dtype = self._facts.dtype(value)
        if dtype is None or not dtype.is_floating_point():
            return None
        array = self._facts.const(value)
        if array is None or not array.size:
            return None
        low, high = float(array.min()), float(array.max())
        self.release(value)
        return (low, high) if math.isfinite(low) and math.isfinite(high) else None

    def _of(self, node: onnx_ir.Node) -> Interval | None:
        if node.domain not in ("", "ai.onnx", "com.microsoft", "optc") or not node.outputs:
            return None
        rule = _RULES.get(node.op_type)
        found = rule(self, node) if rule is not None else None
        return found if found is not None and all(map(math.isfinite, found)) else None


Rule = Callable[[Bounds, onnx_ir.Node], Interval | None]


def _fixed(low: float, high: float) -> Rule:
    return lambda bounds, node: (low, high)


def _same(bounds: Bounds, node: onnx_ir.Node) -> Interval | None:
    return bounds.interval(node.inputs[0])


def _hull(bounds: Bounds, node: onnx_ir.Node) -> Interval | None:
    return _joined(bounds, node, 0)


def _where(bounds: Bounds, node: onnx_ir.Node) -> Interval | None:
    return _joined(bounds, node, 1)


def _joined(bounds: Bounds, node: onnx_ir.Node, start: int) -> Interval | None:
    found = [bounds.interval(value) for value in node.inputs[start:]]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def _relu(bounds: Bounds, node: onnx_ir.Node) -> Interval | None:
    found = bounds.interval(node.inputs[0])
    return None if found is None else (max(found[0], 0.0), max(found[1], 0.0))


def _below_identity(least: float) -> Rule:
    """Functions between ``least`` and 0 left of 0, and between 0 and x right of it: Gelu and its like."""

    def rule(bounds: Bounds, node: onnx_ir.Node) -> Interval | None:
        found = bounds.interval(node.inputs[0])
        return None if found is None else (least, max(found[1], 0.0))

    return rule


def _abs(bounds: Bounds, node: onnx_ir.Node) -> Interval | None:
    found = bounds.interval(node.inputs[0])
    return None if found is None else (0.0, max(abs(found[0]), abs(found[1])))


def _neg(bounds: Bounds, node: onnx_ir.Node) -> Interval | None:
    found = bounds.interval(node.inputs[0])
    return None if found is None else (-found[1], -found[0])


def _clip(bounds: Bounds, node: onnx_ir.Node) -> Interval | None:
    ends: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        value = operand(node, index)
        if value is not None:
            found = bounds.interval(value)
            ends.append(None if found is None else found[index - 1])
        else:
            ends.append(node.attributes[name].as_float() if name in node.attributes else None)
    inside = bounds.interval(node.inputs[0])
    low = ends[0] if ends[0] is not None else inside[0] if inside is not None else None
    high = ends[1] if ends[1] is not None else inside[1] if inside is not None else None
    return None if low is None or high is None else (min(low, high), max(low, high))


def _binary(combine: Callable[[Interval, Interval], Interval]) -> Rule:
    def rule(bounds: Bounds, node: onnx_ir.Node) -> Interval | None:
        a, b = (bounds.interval(value) for value in node.inputs[:2])
        return None if a is None or b is None else combine(a, b)

    return rule


def _times(a: Interval, b: Interval) -> Interval:
    products = [x * y for x in a for y in b]
    return min(products), max(products)


def _quotient(a: Interval, b: Interval) -> Interval:
    if b[0] <= 0 <= b[1]:
        return -math.inf, math.inf
    return _times(a, (1 / b[1], 1 / b[0]))


def _norm(centered: bool) -> Rule:
    """A normalized row of n numbers has the L2 norm sqrt(n) at most, so no number is larger."""

    def rule(bounds: Bounds, node: onnx_ir.Node) -> Interval | None:
        skip = node.op_type.startswith("Skip")
        x, scale, bias = node.inputs[0], operand(node, 1 + skip), operand(node, 2 + skip) if centered else None
        axis = node.attributes.get("axis")
        size = bounds.width(x) if x is not None else None
        factor, shift = bounds.interval(scale), bounds.interval(bias) if bias is not None else (0.0, 0.0)
        if size is None or factor is None or shift is None or (axis is not None and axis.as_int() != -1):
            return None
        largest = math.sqrt(size) * max(map(abs, factor)) + max(map(abs, shift))
        return -largest, largest

    return rule


def _product(bounds: Bounds, node: onnx_ir.Node) -> Interval | None:
    """Sums of |weights| bound what a product makes of a bounded input."""
    x, weight = bounds.interval(node.inputs[0]), bounds.constant(node.inputs[1])
    if x is None or weight is None or weight.ndim < 2:
        return None
    if node.op_type == "MatMul":
        axes: tuple[int, ...] = (weight.ndim - 2,)
    elif node.op_type == "Gemm":
        axes = (1,) if "transB" in node.attributes and node.attributes["transB"].as_int() else (0,)
    else:
        axes = tuple(range(1, weight.ndim))
    largest = max(map(abs, x)) * _largest_sum(weight, axes)
    bounds.release(node.inputs[1])
    for name in ("alpha", "beta"):
        if name in node.attributes and node.attributes[name].as_float() != 1:
            return None
    bias = operand(node, 2)
    shift = bounds.interval(bias) if bias is not None else (0.0, 0.0)
    if shift is None:
        return None
    largest += max(map(abs, shift))
    return -largest, largest


def _largest_sum(weight: np.ndarray, axes: tuple[int, ...]) -> float:
    """The largest sum of magnitudes along some axes; large weights are read in pieces."""
    kept = next(axis for axis in range(weight.ndim) if axis not in axes)
    count = max(1, _CHUNK // max(1, weight.size // max(weight.shape[kept], 1)))
    largest = 0.0
    for start in range(0, weight.shape[kept], count):
        piece = weight[(slice(None),) * kept + (slice(start, start + count),)]
        largest = max(largest, float(np.abs(piece).sum(axis=axes, dtype=np.float64).max(initial=0.0)))
    return largest


def _cast(bounds: Bounds, node: onnx_ir.Node) -> Interval | None:
    source = bounds.dtype(node.inputs[0])
    if source == onnx_ir.DataType.BOOL:
        return 0.0, 1.0
    if source in (onnx_ir.DataType.INT8, onnx_ir.DataType.UINT8):
        return -128.0, 255.0
    return bounds.interval(node.inputs[0]) if source is not None and source.is_floating_point() else None


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Softmax", "Sigmoid", "HardSigmoid"), _fixed(0.0, 1.0)),
    **dict.fromkeys(("Tanh", "Erf", "Sin", "Cos", "Softsign", "LpNormalization"), _fixed(-1.0, 1.0)),
    **dict.fromkeys(
        (
            *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Gather"),
            *("GatherElements", "GatherND", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Compress"),
            *("MaxPool", "GlobalMaxPool", "GlobalAveragePool", "ReduceMean", "ReduceMax", "ReduceMin"),
        ),
        _same,
    ),
    "Trilu": lambda bounds, node: _with_zero(bounds.interval(node.inputs[0])),
    "Cast": _cast,
    "Concat": _hull,
    "Max": _hull,
    "Min": _hull,
    "Where": _where,
    "Relu": _relu,
    "Gelu": _below_identity(-0.2),
    "FastGelu": _below_identity(-0.2),
    "Abs": _abs,
    "Neg": _neg,
    "Clip": _clip,
    "Add": _binary(lambda a, b: (a[0] + b[0], a[1] + b[1])),
    "Sub": _binary(lambda a, b: (a[0] - b[1], a[1] - b[0])),
    "Mul": _binary(_times),
    "Div": _binary(_quotient),
    "LayerNormalization": _norm(centered=True),
    "SkipLayerNormalization": _norm(centered=True),
    "SimplifiedLayerNormalization": _norm(centered=False),
    "SkipSimplifiedLayerNormalization": _norm(centered=False),
    "RMSNormalization": _norm(centered=False),
    "MatMul": _product,
    "Gemm": _product,
    "Conv": _product,
}


def _with_zero(found: Interval | None) -> Interval | None:
    return None if found is None else (min(found[0], 0.0), max(found[1], 0.0))
