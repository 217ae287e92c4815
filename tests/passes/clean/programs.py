"""Random models: short programs of a family of operators, of any opset, on inputs whose dims may be symbolic.

Programs of a family with Concat must not be fed empty tensors: ONNX Runtime joins an empty tensor with one that it does
not fit, and leaves the result uninitialized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.helper as oh
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

#: The sizes that stand for the symbols when shapes are computed, unlike all others; feeds may have other sizes.
_SYMBOLS = {"N": 5, "M": 7}
_OPSETS = (9, 11, 12, 13, 15, 17, 18, 20, 21)
_CAST_TYPES = ["FLOAT", "DOUBLE", "FLOAT16", "INT8", "UINT8", "INT32", "INT64", "BOOL"]


@dataclass(frozen=True)
class Value:
    """A value of the program, with the shape that it has when N is 5 and M is 7."""

    name: str
    shape: tuple[int, ...]
    dtype: int


class Program:
    """A model under construction."""

    def __init__(self, draw: Callable, opset: int) -> None:
        self.draw, self.opset = draw, opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.values: list[Value] = []

    def pick(self, options: Sequence):
        return self.draw(st.sampled_from(list(options)))

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def input(self, dims: Sequence[str | int], dtype: int) -> Value:
        name = f"x{len(self.inputs)}"
        self.inputs.append(oh.make_tensor_value_info(name, dtype, dims))
        value = Value(name, tuple(_SYMBOLS.get(dim, dim) for dim in dims), dtype)
        self.values.append(value)
        return value

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def emit(self, op: str, inputs: Sequence[str], shape: Sequence[int], dtype: int, **attributes) -> Value:
        name = f"v{len(self.nodes)}"
        self.nodes.append(oh.make_node(op, inputs, [name], **attributes))
        value = Value(name, tuple(shape), dtype)
        self.values.append(value)
        return value

    def with_axes(self, op: str, x: Value, axes: list[int], since: int, shape: Sequence[int], **attributes) -> Value:
        """A node whose axes are an input from an opset on."""
        if self.opset < since:
            return self.emit(op, [x.name], shape, x.dtype, axes=axes, **attributes)
        return self.emit(op, [x.name, self.constant(np.array(axes, np.int64))], shape, x.dtype, **attributes)

    def model(self) -> onnx.ModelProto:
        """The model, whose outputs are the last value and those that nothing reads."""
        read = {name for node in self.nodes for name in node.input}
        made = [v for v in self.values if v.name.startswith("v") and (v.name not in read or v is self.values[-1])]
        outputs = [
            oh.make_tensor_value_info(v.name, v.dtype, [f"{v.name}_{i}" for i in range(len(v.shape))]) for v in made
        ]
        graph = oh.make_graph(self.nodes, "g", self.inputs, outputs, self.initializers)
        return oh.make_model(graph, opset_imports=[oh.make_opsetid("", self.opset)], ir_version=8)


def program(draw: Callable, family: str, steps: int = 6) -> onnx.ModelProto:
    """A random model of a family of :data:`FAMILIES`."""
    made = Program(draw, draw(st.sampled_from(_OPSETS)))
    dtype = TensorProto.FLOAT if family != "casts" else getattr(TensorProto, made.pick(_CAST_TYPES))
    if family == "integers":
        dtype = made.pick([TensorProto.INT32, TensorProto.INT64])
    for _ in range(made.integer(1, 2)):
        made.input([made.pick(["N", "M", 1, 2, 3, 4]) for _ in range(made.integer(1, 4))], dtype)
    for _ in range(made.integer(2, steps)):
        recent = made.values[-3:]
        made.pick(FAMILIES[family])(made, made.pick(recent))
    if not made.nodes:
        _unary(made, made.values[-1])
    return made.model()


# elementwise ------------------------------------------------------------------------------------------------------


def _unary(p: Program, x: Value) -> None:
    ops = ["Neg", "Abs", "Identity"] + (["Relu", "Floor", "Ceil"] if x.dtype == TensorProto.FLOAT else [])
    p.emit(p.pick(ops), [x.name], x.shape, x.dtype)


def _with_constant(p: Program, x: Value) -> None:
    op = p.pick(["Add", "Sub", "Mul"] + (["Div", "Min", "Max"] if x.dtype == TensorProto.FLOAT else []))
    shape = p.pick([(), (1,), x.shape[-1:], (1,) * len(x.shape), (3, *(1,) * len(x.shape)), tuple(x.shape)])
    array = np.full(shape, p.pick([0, 1, -1, 2]), oh.tensor_dtype_to_np_dtype(x.dtype))
    operands = [x.name, p.constant(array)]
    if op != "Div" and p.draw(st.booleans()):  # 1 / x would tell -0.0 from 0.0, which rules may exchange
        operands.reverse()
    p.emit(op, operands, np.broadcast_shapes(x.shape, shape), x.dtype)


def _binary(p: Program, x: Value) -> None:
    others = [v for v in p.values if v.dtype == x.dtype and _broadcasts(v.shape, x.shape)]
    y = p.pick(others)
    ops = ["Add", "Sub", "Mul"] + (["Max", "Min"] if x.dtype == TensorProto.FLOAT else [])
    p.emit(p.pick(ops), [x.name, y.name], np.broadcast_shapes(x.shape, y.shape), x.dtype)


def _broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    try:
        np.broadcast_shapes(a, b)
    except ValueError:
        return False
    return True


def _clip(p: Program, x: Value) -> None:
    bounds = sorted([p.pick([-2.0, 0.0, 1.0]), p.pick([0.0, 2.0, 6.0])])
    if p.opset < 11:
        p.emit("Clip", [x.name], x.shape, x.dtype, min=bounds[0], max=bounds[1])
        return
    given = [p.constant(np.array(bound, np.float32)) if p.draw(st.booleans()) else "" for bound in bounds]
    p.emit("Clip", [x.name, *given], x.shape, x.dtype)


def _where(p: Program, x: Value) -> None:
    shape = p.pick([(), (1,), x.shape])
    condition = p.constant(np.full(shape, p.draw(st.booleans())))
    y = p.pick([v for v in p.values if v.dtype == x.dtype and _broadcasts(v.shape, x.shape)])
    p.emit("Where", [condition, x.name, y.name], np.broadcast_shapes(shape, x.shape, y.shape), x.dtype)


# casts ------------------------------------------------------------------------------------------------------------


def _cast(p: Program, x: Value) -> None:
    to = getattr(TensorProto, p.pick(_CAST_TYPES))
    p.emit("Cast", [x.name], x.shape, to, to=to)


# views ------------------------------------------------------------------------------------------------------------


def _reshape(p: Program, x: Value) -> None:
    total = math.prod(x.shape)
    if total == 0:
        return
    wanted: list[int] = []
    for _ in range(p.integer(0, 3)):
        divisors = [d for d in range(1, total + 1) if total % d == 0]
        wanted.append(p.pick(divisors))
        total //= wanted[-1]
    wanted.append(total)
    if math.prod(x.shape) == 1 and p.draw(st.booleans()):
        wanted = []
    target = list(wanted)
    if target and p.draw(st.booleans()):
        target[p.integer(0, len(target) - 1)] = -1
    for place, dim in enumerate(wanted):
        if place < len(x.shape) and x.shape[place] == dim and target[place] != -1 and p.draw(st.booleans()):
            target[place] = 0
    p.emit("Reshape", [x.name, p.constant(np.array(target, np.int64))], wanted, x.dtype)


def _squeeze(p: Program, x: Value) -> None:
    units = [axis for axis, dim in enumerate(x.shape) if dim == 1]
    if units:
        axes = p.draw(st.lists(st.sampled_from(units), min_size=1, unique=True))
        shape = [dim for axis, dim in enumerate(x.shape) if axis not in axes]
        written = [axis - len(x.shape) if p.opset >= 11 and p.draw(st.booleans()) else axis for axis in axes]
        p.with_axes("Squeeze", x, written, 13, shape)


def _unsqueeze(p: Program, x: Value) -> None:
    if len(x.shape) < 5:
        rank = len(x.shape) + p.integer(1, 2)
        axes = p.draw(
            st.lists(st.integers(0, rank - 1), min_size=rank - len(x.shape), max_size=rank - len(x.shape), unique=True)
        )
        rest = iter(x.shape)
        shape = [1 if axis in axes else next(rest) for axis in range(rank)]
        p.with_axes("Unsqueeze", x, axes, 13, shape)


def _flatten(p: Program, x: Value) -> None:
    axis = p.integer(0, len(x.shape))
    p.emit("Flatten", [x.name], (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])), x.dtype, axis=axis)


def _transpose(p: Program, x: Value) -> None:
    if x.shape:
        perm = p.draw(st.permutations(range(len(x.shape))))
        p.emit("Transpose", [x.name], [x.shape[axis] for axis in perm], x.dtype, perm=perm)


def _swap(p: Program, x: Value) -> None:
    """A Transpose that undoes itself, so that pairs meet."""
    if len(x.shape) > 1:
        perm = [*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2]
        p.emit("Transpose", [x.name], [x.shape[axis] for axis in perm], x.dtype, perm=perm)


def _reduce(p: Program, x: Value) -> None:
    if x.shape:
        axes = p.draw(st.lists(st.integers(0, len(x.shape) - 1), min_size=1, unique=True))
        keep = p.draw(st.booleans())
        shape = [1 if axis in axes else dim for axis, dim in enumerate(x.shape) if keep or axis not in axes]
        p.with_axes("ReduceMax", x, axes, 18, shape, keepdims=int(keep))


def _expand(p: Program, x: Value) -> None:
    shape = [p.pick([2, 3]) if dim == 1 else dim for dim in x.shape]
    target = [1 if p.draw(st.booleans()) and dim == old else dim for dim, old in zip(shape, x.shape, strict=True)]
    p.emit("Expand", [x.name, p.constant(np.array(target, np.int64))], shape, x.dtype)


# cutting and joining ----------------------------------------------------------------------------------------------


def _slice(p: Program, x: Value) -> None:
    if not x.shape:
        return
    axes = p.draw(st.lists(st.integers(0, len(x.shape) - 1), min_size=1, unique=True))
    starts = [p.integer(-4, 4) for _ in axes]
    ends = [p.pick([-1, 1, 2, 3, 100, 2**31 - 1, 2**63 - 1]) for _ in axes]
    steps = [p.pick([1, 1, 1, 2, -1]) if p.opset >= 10 else 1 for _ in axes]
    cut = [slice(None)] * len(x.shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        low = max(start, -x.shape[axis]) if step < 0 else start
        cut[axis] = slice(low, end, step)
    shape = np.empty(x.shape)[tuple(cut)].shape
    if p.opset < 10:
        p.emit("Slice", [x.name], shape, x.dtype, starts=starts, ends=ends, axes=axes)
    else:
        operands = [p.constant(np.array(column, np.int64)) for column in (starts, ends, axes, steps)]
        p.emit("Slice", [x.name, *operands], shape, x.dtype)


def _gather(p: Program, x: Value) -> None:
    if x.shape and 0 not in x.shape:
        axis = p.integer(0, len(x.shape) - 1)
        dim = x.shape[axis]
        indices = np.array(p.pick([0, dim - 1, [0], list(range(dim)), [dim - 1, 0], [-1]]), np.int64)
        shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
        p.emit("Gather", [x.name, p.constant(indices)], shape, x.dtype, axis=axis)


def _concat(p: Program, x: Value) -> None:
    if x.shape:
        axis = p.integer(0, len(x.shape) - 1)
        fits = [v for v in p.values if v.dtype == x.dtype and _joins(v.shape, x.shape, axis)]
        parts = p.draw(st.lists(st.sampled_from(fits), min_size=1, max_size=3))
        shape = list(x.shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        if shape[axis] <= 24:
            p.emit("Concat", [part.name for part in parts], shape, x.dtype, axis=axis - p.pick([0, len(shape)]))


def _joins(a: tuple[int, ...], b: tuple[int, ...], axis: int) -> bool:
    return len(a) == len(b) and a[:axis] == b[:axis] and a[axis + 1 :] == b[axis + 1 :]


def _split(p: Program, x: Value) -> None:
    axes = [axis for axis, dim in enumerate(x.shape) if dim > 1]
    if not axes:
        return
    axis = p.pick(axes)
    sizes = [1, x.shape[axis] - 1]
    names = [f"v{len(p.nodes)}", f"v{len(p.nodes)}b"]
    if p.opset < 13:
        p.nodes.append(oh.make_node("Split", [x.name], names, axis=axis, split=sizes))
    else:
        p.nodes.append(oh.make_node("Split", [x.name, p.constant(np.array(sizes, np.int64))], names, axis=axis))
    for name, size in zip(names, sizes, strict=True):
        p.values.append(Value(name, (*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype))
    if p.draw(st.booleans()):
        p.emit("Concat", names, x.shape, x.dtype, axis=axis)


# shapes -----------------------------------------------------------------------------------------------------------


def _dim(p: Program, x: Value, axis: int) -> str:
    """A vector of one dim, computed as exporters do."""
    index = len(p.nodes)
    if p.opset >= 15 and p.draw(st.booleans()):
        p.nodes.append(oh.make_node("Shape", [x.name], [f"d{index}"], start=axis, end=axis + 1))
        return f"d{index}"
    p.nodes.append(oh.make_node("Shape", [x.name], [f"s{index}"]))
    if p.draw(st.booleans()):
        p.nodes.append(oh.make_node("Gather", [f"s{index}", p.constant(np.array([axis], np.int64))], [f"d{index}"]))
        return f"d{index}"
    p.nodes.append(oh.make_node("Gather", [f"s{index}", p.constant(np.array(axis, np.int64))], [f"g{index}"]))
    if p.opset < 13:
        p.nodes.append(oh.make_node("Unsqueeze", [f"g{index}"], [f"d{index}"], axes=[0]))
    else:
        axes = p.constant(np.array([0], np.int64))
        p.nodes.append(oh.make_node("Unsqueeze", [f"g{index}", axes], [f"d{index}"]))
    return f"d{index}"


def _computed_shape(p: Program, wanted: Sequence[tuple[int, str | None]], inferred: int | None) -> str:
    parts = []
    for place, (dim, name) in enumerate(wanted):
        parts.append(name if name is not None else p.constant(np.array([-1 if place == inferred else dim], np.int64)))
    name = f"t{len(p.nodes)}"
    p.nodes.append(oh.make_node("Concat", parts, [name], axis=0))
    return name


def _computed_reshape(p: Program, x: Value) -> None:
    """Merges, splits or keeps the dims of a value by a computed target.

    Not for empty tensors: a computed 0 is read as "copy the dim at this place", and where that is another dim which is
    not 0, the empty result has a shape that is disregarded on purpose.
    """
    if not x.shape or 0 in x.shape:
        return
    wanted: list[tuple[int, str | None]] = []
    axis = 0
    while axis < len(x.shape):
        kind = p.pick(["keep", "keep", "merge", "split"])
        if kind == "merge" and axis + 1 < len(x.shape):
            name = f"m{len(p.nodes)}"
            a, b = _dim(p, x, axis), _dim(p, x, axis + 1)
            p.nodes.append(oh.make_node("Mul", [a, b], [name]))
            wanted.append((x.shape[axis] * x.shape[axis + 1], name))
            axis += 2
            continue
        if kind == "split" and x.shape[axis] == 4:
            wanted += [(2, None), (2, None)]
        else:
            wanted.append((x.shape[axis], _dim(p, x, axis)))
        axis += 1
    _reshape_to(p, x, wanted)


def _aligned_reshape(p: Program, x: Value) -> None:
    """Splits the last dim into heads by a computed target, which is right for empty tensors too."""
    if x.shape and 0 not in x.shape:
        wanted = [(dim, _dim(p, x, axis)) for axis, dim in enumerate(x.shape)]
        if x.shape[-1] == 4:
            wanted[-1:] = [(2, None), (2, None)]
        _reshape_to(p, x, wanted)


def _reshape_to(p: Program, x: Value, wanted: Sequence[tuple[int, str | None]]) -> None:
    free = [place for place, (_, name) in enumerate(wanted) if name is None]
    inferred = p.pick(free) if free and p.draw(st.booleans()) else None
    target = _computed_shape(p, wanted, inferred)
    p.emit("Reshape", [x.name, target], [dim for dim, _ in wanted], x.dtype)


def _computed_expand(p: Program, x: Value) -> None:
    others = [v for v in p.values if v.shape and _broadcasts(v.shape, x.shape)]
    if others:
        y = p.pick(others)
        name = f"s{len(p.nodes)}"
        p.nodes.append(oh.make_node("Shape", [y.name], [name]))
        p.emit("Expand", [x.name, name], np.broadcast_shapes(x.shape, y.shape), x.dtype)


def _computed_slice(p: Program, x: Value) -> None:
    if x.shape and p.opset >= 10:
        axis = p.integer(0, len(x.shape) - 1)
        end = _dim(p, x, axis)
        start, axes = (p.constant(np.array([item], np.int64)) for item in (p.pick([0, 0, 1]), axis))
        kept = len(range(*slice(int(p.initializers[-2].raw_data[0]), x.shape[axis]).indices(x.shape[axis])))
        p.emit("Slice", [x.name, start, end, axes], (*x.shape[:axis], kept, *x.shape[axis + 1 :]), x.dtype)


_ELEMENTWISE = (_unary, _with_constant, _binary)
_VIEWS = (_reshape, _squeeze, _unsqueeze, _flatten)
FAMILIES: dict[str, tuple[Callable[[Program, Value], None], ...]] = {
    "elementwise": (*_ELEMENTWISE, _clip, _where, _reduce),
    "casts": (_cast,),
    "views": (*_VIEWS, _transpose, _reduce, _gather, _expand),
    "transposes": (_transpose, _swap, _swap, *_ELEMENTWISE, _concat),
    "slicing": (_slice, _slice, _gather, _concat, _split),
    "integers": (_with_constant, _with_constant, _binary),
    "shapes": (_computed_reshape, _computed_reshape, _computed_expand, _computed_slice, *_ELEMENTWISE, _transpose),
    "empty-shapes": (_aligned_reshape, _computed_expand, _computed_slice, *_ELEMENTWISE),
    "all": (
        *_ELEMENTWISE,
        _clip,
        _where,
        _reduce,
        *_VIEWS,
        _transpose,
        _swap,
        _gather,
        _expand,
        _slice,
        _concat,
        _split,
        _computed_reshape,
        _computed_expand,
        _computed_slice,
    ),
}
