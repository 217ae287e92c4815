"""What a tensor holds, where few numbers say it: one number everywhere, numbers in equal steps, or bounds of integers.

These are facts about computed tensors of any size, derived when asked for from the operators that make them (masks and
positions are made of Range, ConstantOfShape and comparisons). They hold in every run that succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir

from optc.ir.dims import Dim, SymDim, provably_ge
from optc.ir.dims import bounds as dim_bounds
from optc.ir.facts import Facts
from optc.ir.infer_base import INT_RANGES
from optc.ir.ops import axes_of, operand, perm_of
from optc.passes.clean.common import INTEGERS, MAX_SCANNED, DType

#: How many nodes deep contents are followed.
_DEPTH = 12
#: Operators that only take elements of their first input, in another order, shape or number.
_TAKING = ("Expand", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Tile", "Slice", "Identity", "Split")
_PICKING = ("Gather", "GatherElements", "GatherND")

Number = bool | int | float


class Grid(NamedTuple):
    """Contents ``start + sum(steps[axis] * index[axis])``; the step along an axis of dim 1 is 0."""

    start: Dim
    steps: tuple[Dim, ...]

    def axes(self) -> tuple[int, ...]:
        """The axes along which the contents change."""
        return tuple(axis for axis, step in enumerate(self.steps) if step != 0)


class Bounds(NamedTuple):
    """What all elements of an integer tensor lie between, both included; None where nothing is known."""

    low: Dim | None = None
    high: Dim | None = None


# one number -------------------------------------------------------------------------------------------------------


def uniform(facts: Facts, value: onnx_ir.Value | None, depth: int = _DEPTH) -> Number | None:
    """The number that all elements are; an empty tensor may be said to hold anything."""
    if value is None or depth == 0:
        return None
    if facts.is_const(value):
        return _uniform_constant(facts, value)
    ints = facts.ints(value)
    if ints and len(set(ints)) == 1:
        return bool(ints[0]) if facts.dtype(value) == DType.BOOL else ints[0]
    node = value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type in _TAKING or node.op_type in _PICKING:
        return uniform(facts, node.inputs[0], depth - 1)
    rule = _UNIFORM.get(node.op_type)
    return None if rule is None else rule(facts, node, depth - 1)


def _uniform_constant(facts: Facts, value: onnx_ir.Value) -> Number | None:
    size = facts.const_size(value)
    if facts.dtype(value) == DType.STRING or not size:
        return None
    if size == 1:
        return facts.scalar(value)
    if size > MAX_SCANNED:
        return None
    array = facts.const(value)
    if array is None or array.dtype.kind not in "biufV":
        return None
    first = array.reshape(-1)[0]
    if not np.all(array == first):
        return None
    return first.item() if array.dtype.kind in "biu" else float(first)


def _uniform_fill(facts: Facts, node: onnx_ir.Node, depth: int) -> Number | None:
    attr = node.attributes.get("value")
    if attr is None:
        return 0.0
    tensor = attr.as_tensor()
    if tensor.dtype not in INT_RANGES and tensor.dtype not in (DType.FLOAT, DType.DOUBLE, DType.FLOAT16):
        return None
    return tensor.numpy().reshape(-1)[0].item() if tensor.size == 1 else None


def _uniform_join(facts: Facts, node: onnx_ir.Node, depth: int) -> Number | None:
    found = {uniform(facts, part, depth) for part in node.inputs}
    return found.pop() if len(found) == 1 else None


def _uniform_choice(facts: Facts, node: onnx_ir.Node, depth: int) -> Number | None:
    condition = uniform(facts, node.inputs[0], depth)
    if condition is not None:
        return uniform(facts, node.inputs[1 if condition else 2], depth)
    found = {uniform(facts, value, depth) for value in node.inputs[1:]}
    return found.pop() if len(found) == 1 else None


def _uniform_cast(facts: Facts, node: onnx_ir.Node, depth: int) -> Number | None:
    number, dtype = uniform(facts, node.inputs[0], depth), facts.dtype(node.outputs[0])
    if isinstance(number, float) or number is None or dtype is None:
        return None
    if dtype == DType.BOOL:
        return bool(number)
    if dtype in INTEGERS:
        low, high = INT_RANGES[dtype]
        return int(number) if low <= number <= high else None
    return float(number) if dtype in (DType.FLOAT, DType.DOUBLE) and abs(number) < 1 << 24 else None


def _uniform_and(facts: Facts, node: onnx_ir.Node, depth: int) -> Number | None:
    absorbing = node.op_type == "Or"
    found = [uniform(facts, value, depth) for value in node.inputs]
    if absorbing in found:
        return absorbing
    return None if None in found else not absorbing


def _uniform_not(facts: Facts, node: onnx_ir.Node, depth: int) -> Number | None:
    found = uniform(facts, node.inputs[0], depth)
    return None if found is None else not found


def _compared(facts: Facts, node: onnx_ir.Node, depth: int) -> bool | None:
    """A comparison of integers that is the same for all elements in every run."""
    if any(facts.dtype(value) not in INTEGERS for value in node.inputs):
        return None
    a, b = (bounds(facts, value, depth) for value in node.inputs)
    if node.op_type in ("Less", "LessOrEqual"):
        a, b = b, a
    strict = int(node.op_type in ("Less", "Greater"))
    if node.op_type == "Equal":
        apart = _at_least(a.low, b.high, 1) or _at_least(b.low, a.high, 1)
        same = _at_least(a.low, b.high, 0) and _at_least(b.low, a.high, 0)
        return False if apart else True if same else None
    if _at_least(a.low, b.high, strict):
        return True
    return False if _at_least(b.low, a.high, 1 - strict) else None


def _at_least(a: Dim | None, b: Dim | None, more: int) -> bool:
    return a is not None and b is not None and provably_ge(a, b + more)


_UNIFORM: dict[str, Callable[[Facts, onnx_ir.Node, int], Number | None]] = {
    "ConstantOfShape": _uniform_fill,
    "Concat": _uniform_join,
    "Where": _uniform_choice,
    "Cast": _uniform_cast,
    "And": _uniform_and,
    "Or": _uniform_and,
    "Not": _uniform_not,
    **dict.fromkeys(("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"), _compared),
}


# bounds -----------------------------------------------------------------------------------------------------------


def bounds(facts: Facts, value: onnx_ir.Value | None, depth: int = _DEPTH) -> Bounds:
    """Bounds of an integer tensor's elements."""
    dtype = facts.dtype(value)
    if value is None or depth == 0 or dtype not in INT_RANGES:
        return Bounds()
    elements = facts.elements(value)
    if elements:
        return _hull([Bounds(element, element) for element in elements])
    size = facts.const_size(value)
    if size is not None:
        array = facts.const(value) if 0 < size <= MAX_SCANNED else None
        return Bounds() if array is None else Bounds(int(array.min()), int(array.max()))
    node = value.producer()
    if node is None or node.domain != "":
        return Bounds()
    if node.op_type in _TAKING or node.op_type in _PICKING:
        return bounds(facts, node.inputs[0], depth - 1)
    if node.op_type in ("Concat", "Where"):
        parts = node.inputs[1:] if node.op_type == "Where" else node.inputs
        return _hull([bounds(facts, part, depth - 1) for part in parts])
    if node.op_type == "Range":
        return _range_bounds(facts, node)
    if node.op_type == "Cast":
        return _cast_bounds(facts, node, depth - 1)
    if (found := grid(facts, value, depth - 1)) is not None:
        return _grid_bounds(facts, value, found)
    number = uniform(facts, value, depth - 1)
    return Bounds(int(number), int(number)) if number is not None else Bounds()


def _hull(parts: list[Bounds]) -> Bounds:
    """What holds of all parts."""
    lows, highs = {part.low for part in parts}, {part.high for part in parts}
    return Bounds(_extreme(lows, least=True), _extreme(highs, least=False))


def _extreme(dims: set[Dim | None], least: bool) -> Dim | None:
    if None in dims:
        return None
    if len(dims) == 1:
        return dims.pop()
    ends = [dim_bounds(dim)[0 if least else 1] for dim in dims if dim is not None]
    if not all(isinstance(end, int) for end in ends):
        return None
    return min(ends) if least else max(ends)  # type: ignore[return-value]


def _range_bounds(facts: Facts, node: onnx_ir.Node) -> Bounds:
    ends = [facts.elements(value) for value in node.inputs]
    if any(end is None or len(end) != 1 for end in ends):
        return Bounds()
    ((start,), (limit,), (delta,)) = ends  # type: ignore[misc]
    if not isinstance(delta, int) or delta == 0:
        return Bounds()
    return Bounds(start, limit - 1) if delta > 0 else Bounds(limit + 1, start)


def _cast_bounds(facts: Facts, node: onnx_ir.Node, depth: int) -> Bounds:
    source, dtype = facts.dtype(node.inputs[0]), facts.dtype(node.outputs[0])
    found = Bounds(0, 1) if source == DType.BOOL else bounds(facts, node.inputs[0], depth)
    if dtype == DType.INT64:
        return found
    low, high = INT_RANGES[dtype]  # type: ignore[index]
    fits = _at_least(found.low, low, 0) and _at_least(high, found.high, 0)
    # contents that come from dims do not overflow: an assumption of all facts
    return found if fits or (dtype == DType.INT32 and isinstance(found.high, SymDim) and found.low == 0) else Bounds()


def _grid_bounds(facts: Facts, value: onnx_ir.Value, found: Grid) -> Bounds:
    shape = facts.shape(value)
    if shape is None:
        return Bounds()
    low = high = found.start
    for axis in found.axes():
        span = found.steps[axis] * (shape[axis] - 1)
        if provably_ge(found.steps[axis], 0):
            high = high + span
        elif provably_ge(0, found.steps[axis]):
            low = low + span
        else:
            return Bounds()
    return Bounds(low, high)


# equal steps ------------------------------------------------------------------------------------------------------


def grid(facts: Facts, value: onnx_ir.Value | None, depth: int = _DEPTH) -> Grid | None:
    """The steps of an integer tensor whose elements count up or down along its axes."""
    if value is None or depth == 0 or facts.dtype(value) not in (DType.INT64, DType.INT32):
        return None
    shape, size, node = facts.shape(value), facts.const_size(value), value.producer()
    if shape is None:
        return None
    if size is not None:
        return _constant_grid(facts.const(value)) if 1 < size <= MAX_SCANNED else _single(facts, value)
    if node is None or node.domain != "":
        return _single(facts, value)
    rule = _GRIDS.get(node.op_type)
    found = None if rule is None else rule(facts, node, depth - 1)
    return _single(facts, value) if found is None else _settled(found, shape)


def _settled(found: Grid, shape: tuple[Dim, ...]) -> Grid:
    return found._replace(steps=tuple(0 if dim == 1 else step for step, dim in zip(found.steps, shape, strict=True)))


def _single(facts: Facts, value: onnx_ir.Value) -> Grid | None:
    elements, rank = facts.elements(value), facts.rank(value)
    return Grid(elements[0], (0,) * (rank or 0)) if elements is not None and len(elements) == 1 else None


def _constant_grid(array: np.ndarray | None) -> Grid | None:
    if array is None:
        return None
    start = int(array.reshape(-1)[0])
    steps = tuple(
        int(array.take(1, axis).reshape(-1)[0]) - start if dim > 1 else 0 for axis, dim in enumerate(array.shape)
    )
    counted = np.array(start)
    for axis, (step, dim) in enumerate(zip(steps, array.shape, strict=True)):
        counted = counted + step * np.arange(dim).reshape(-1, *(1,) * (array.ndim - axis - 1))
    return Grid(start, steps) if np.array_equal(np.broadcast_to(counted, array.shape), array) else None


def _range_grid(facts: Facts, node: onnx_ir.Node, depth: int) -> Grid | None:
    start, delta = facts.elements(node.inputs[0]), facts.elements(node.inputs[2])
    return Grid(start[0], (delta[0],)) if start and delta else None


def _viewed_grid(facts: Facts, node: onnx_ir.Node, depth: int) -> Grid | None:
    """Views keep the order of the elements; the axes along which these change stay whole."""
    before = grid(facts, node.inputs[0], depth)
    old, new = facts.shape(node.inputs[0]), facts.shape(node.outputs[0])
    if before is None or old is None or new is None:
        return None
    moved = [(dim, step) for dim, step in zip(old, before.steps, strict=True) if dim != 1]
    places = [axis for axis, dim in enumerate(new) if dim != 1]
    if [dim for dim, _ in moved] != [new[axis] for axis in places]:
        return None
    steps: list[Dim] = [0] * len(new)
    for axis, (_, step) in zip(places, moved, strict=True):
        steps[axis] = step
    return Grid(before.start, tuple(steps))


def _unsqueezed_grid(facts: Facts, node: onnx_ir.Node, depth: int) -> Grid | None:
    before, made, rank = grid(facts, node.inputs[0], depth), axes_of(node, facts), facts.rank(node.outputs[0])
    if before is None or made is None or rank is None:
        return None
    rest = iter(before.steps)
    return Grid(before.start, tuple(0 if axis in made else next(rest) for axis in range(rank)))


def _expanded_grid(facts: Facts, node: onnx_ir.Node, depth: int) -> Grid | None:
    before, old, new = grid(facts, node.inputs[0], depth), facts.shape(node.inputs[0]), facts.shape(node.outputs[0])
    if before is None or old is None or new is None:
        return None
    wide = _aligned(before, old, new)
    return None if wide is None else Grid(before.start, wide)


def _aligned(found: Grid, old: tuple[Dim, ...], new: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """The steps once a tensor is broadcast to a shape."""
    leading = len(new) - len(old)
    if any(step != 0 and old[axis] != new[leading + axis] for axis, step in enumerate(found.steps)):
        return None
    return (*(0,) * leading, *found.steps)


def _transposed_grid(facts: Facts, node: onnx_ir.Node, depth: int) -> Grid | None:
    before, perm = grid(facts, node.inputs[0], depth), perm_of(node, facts)
    return None if before is None or perm is None else before._replace(steps=tuple(before.steps[axis] for axis in perm))


def _cut_grid(facts: Facts, node: onnx_ir.Node, depth: int) -> Grid | None:
    """A Slice from known places on; it may end anywhere."""
    before = grid(facts, node.inputs[0], depth)
    if before is None or facts.opset() < 10:
        return None
    starts, axes, strides = (facts.ints(operand(node, index)) for index in (1, 3, 4))
    if starts is None or min(starts, default=0) < 0 or (operand(node, 3) is not None and axes is None):
        return None
    if operand(node, 4) is not None and (strides is None or min(strides) < 1):
        return None
    start, steps = before.start, list(before.steps)
    for place, first in enumerate(starts):
        axis = place if axes is None else axes[place] % len(steps)
        start = start + steps[axis] * first
        steps[axis] = steps[axis] * (1 if strides is None else strides[place])
    return Grid(start, tuple(steps))


def _summed_grid(facts: Facts, node: onnx_ir.Node, depth: int) -> Grid | None:
    shape, shapes = facts.shape(node.outputs[0]), [facts.shape(value) for value in node.inputs]
    parts = [grid(facts, value, depth) for value in node.inputs]
    sign = -1 if node.op_type == "Sub" else 1
    (a, b), (old_a, old_b) = parts, shapes
    if a is None or b is None or shape is None or old_a is None or old_b is None:
        return None
    left, right = _aligned(a, old_a, shape), _aligned(b, old_b, shape)
    if left is None or right is None:
        return None
    return Grid(a.start + b.start * sign, tuple(x + y * sign for x, y in zip(left, right, strict=True)))


def _scaled_grid(facts: Facts, node: onnx_ir.Node, depth: int) -> Grid | None:
    shape = facts.shape(node.outputs[0])
    for value, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        factor, old = facts.elements(other), facts.shape(value)
        if factor is None or len(factor) != 1 or old is None or shape is None or len(old) < len(shape):
            continue
        if (found := grid(facts, value, depth)) is not None:
            return Grid(found.start * factor[0], tuple(step * factor[0] for step in found.steps))
    return None


def _same_grid(facts: Facts, node: onnx_ir.Node, depth: int) -> Grid | None:
    return grid(facts, node.inputs[0], depth)


_GRIDS: dict[str, Callable[[Facts, onnx_ir.Node, int], Grid | None]] = {
    "Range": _range_grid,
    **dict.fromkeys(("Reshape", "Squeeze", "Flatten"), _viewed_grid),
    "Unsqueeze": _unsqueezed_grid,
    "Expand": _expanded_grid,
    "Transpose": _transposed_grid,
    "Slice": _cut_grid,
    **dict.fromkeys(("Identity", "Cast"), _same_grid),
    **dict.fromkeys(("Add", "Sub"), _summed_grid),
    "Mul": _scaled_grid,
}
