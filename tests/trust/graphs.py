"""A generator of valid ONNX graphs: random operators, shapes, types, symbolic dims, sub-graphs and functions.

The generator grows a graph node by node. It knows the type and dims of every value, so that what it makes is valid by
construction, and whether a value is *steady*: computed without rounding. Only steady values go where a rounding
difference could change the result altogether (comparisons, Floor, ArgMax, indices).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dim: TypeAlias = "int | str"

OPSET = 18
FLOAT, INT64, BOOL, HALF, DOUBLE, INT32 = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.BOOL,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT32,
)
_NUMPY = {
    FLOAT: np.float32,
    INT64: np.int64,
    BOOL: np.bool_,
    HALF: np.float16,
    DOUBLE: np.float64,
    INT32: np.int32,
}
_SIZES = (1, 1, 2, 3, 4, 4, 6, 8)
_SYMBOLS = ("N", "S")


@dataclass(frozen=True)
class Value:
    """A value of the graph that grows.

    Attributes:
        name: Its name.
        dtype: ONNX element type.
        shape: Its dims; a text is a symbolic dim of an input, which is the same wherever it stands.
        steady: Whether it is computed without rounding.
        constant: Its contents, if it is a constant.
    """

    name: str
    dtype: int
    shape: tuple[Dim, ...]
    steady: bool = True
    constant: np.ndarray | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def static(self) -> bool:
        return all(isinstance(dim, int) for dim in self.shape)


@dataclass
class Builder:
    """A graph that grows; inner graphs have builders of their own, which see the values of the outer ones."""

    rng: random.Random
    outer: Builder | None = None
    values: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    count: list[int] = field(default_factory=lambda: [0])

    def name(self, stem: str) -> str:
        self.count[0] += 1
        return f"{stem}{self.count[0]}"

    def visible(self) -> list[Value]:
        return self.values + (self.outer.visible() if self.outer is not None else [])

    def pick(self, *conditions: Callable[[Value], bool]) -> Value | None:
        """A value that fits; later ones are likelier, so that graphs grow deep."""
        fitting = [value for value in self.visible() if all(condition(value) for condition in conditions)]
        return fitting[int(len(fitting) * self.rng.random() ** 0.5)] if fitting else None

    def constant(self, array: Any, dtype: int = FLOAT) -> Value:
        array = np.asarray(array, _NUMPY[dtype])
        value = Value(self.name("c"), dtype, array.shape, True, array)
        if self.rng.random() < 0.25:
            self.nodes.append(
                helper.make_node("Constant", [], [value.name], value=numpy_helper.from_array(array, value.name))
            )
        else:
            self.initializers.append(numpy_helper.from_array(array, value.name))
        return value

    def weights(self, *shape: int, scale: float = 0.5, dtype: int = FLOAT) -> Value:
        """A constant of floats; now and then one of those that rules look for."""
        kind = self.rng.random()
        array = np.random.default_rng(self.rng.getrandbits(32)).normal(size=shape) * scale
        if kind < 0.06:
            array = np.zeros(shape)
        elif kind < 0.15:
            array = np.ones(shape)
        elif kind < 0.25:
            array = np.full(shape, self.rng.choice([0.5, 2.0, -1.0, 0.125]))
        return self.constant(array, dtype)

    def ints(self, items: Sequence[int]) -> Value:
        return self.constant(np.array(items, np.int64), INT64)

    def add(
        self,
        op: str,
        inputs: Sequence[Value | None],
        shape: Sequence[Dim],
        dtype: int | None = None,
        steady: bool = False,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> Value:
        """One more node with one output."""
        first = next(value for value in inputs if value is not None)
        value = Value(
            self.name(op.lower()), first.dtype if dtype is None else dtype, tuple(shape), steady and _all_steady(inputs)
        )
        names = ["" if given is None else given.name for given in inputs]
        self.nodes.append(helper.make_node(op, names, [value.name], name=self.name("n"), domain=domain, **attributes))
        self.values.append(value)
        return value


def _all_steady(inputs: Sequence[Value | None]) -> bool:
    return all(value is None or value.steady for value in inputs)


def is_float(value: Value) -> bool:
    return value.dtype == FLOAT


def small(value: Value) -> bool:
    return all(not isinstance(dim, int) or dim <= 64 for dim in value.shape)


Template = Callable[[Builder], "Value | None"]
TEMPLATES: list[tuple[Template, float]] = []


def template(weight: float = 1.0) -> Callable[[Template], Template]:
    def decorate(function: Template) -> Template:
        TEMPLATES.append((function, weight))
        return function

    return decorate


# elementwise ----------------------------------------------------------------------------------------------------------

_UNARY = (
    *("Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Erf", "Softplus", "LeakyRelu", "Elu", "HardSigmoid", "HardSwish"),
    *("Identity", "Softsign", "Selu", "Celu", "Sin", "Cos", "Mish", "ThresholdedRelu"),
)
_STEADY_UNARY = frozenset({"Relu", "Neg", "Abs", "Identity"})


@template(4)
def unary(b: Builder) -> Value | None:
    x = b.pick(is_float)
    op = b.rng.choice(_UNARY)
    return x and b.add(op, [x], x.shape, steady=op in _STEADY_UNARY)


@template()
def rounding(b: Builder) -> Value | None:
    x = b.pick(is_float, lambda v: v.steady)
    return x and b.add(b.rng.choice(["Floor", "Ceil", "Round", "Sign"]), [x], x.shape, steady=True)


@template()
def positive(b: Builder) -> Value | None:
    """Functions that want positive operands, on those."""
    x = b.pick(is_float)
    if x is None:
        return None
    eased = b.add("Add", [b.add("Abs", [x], x.shape), b.constant(np.float32(0.5))], x.shape)
    return b.add(b.rng.choice(["Sqrt", "Log", "Reciprocal"]), [eased], x.shape)


@template(6)
def binary(b: Builder) -> Value | None:
    x = b.pick(is_float)
    if x is None:
        return None
    y = _partner(b, x)
    op = b.rng.choice(["Add", "Sub", "Mul", "Add", "Mul", "Max", "Min", "Sum"])
    pair = [x, y] if b.rng.random() < 0.5 else [y, x]
    return b.add(op, pair, _broadcast(x.shape, y.shape), steady=op in ("Max", "Min"))


def _partner(b: Builder, x: Value) -> Value:
    """Something that broadcasts with ``x``: another value, or a constant of fewer or shorter axes."""
    if b.rng.random() < 0.5:
        y = b.pick(lambda v: v.dtype == x.dtype and _broadcasts(x.shape, v.shape))
        if y is not None:
            return y
    keep = b.rng.randrange(x.rank + 1)
    shape = [dim if isinstance(dim, int) and b.rng.random() < 0.7 else 1 for dim in x.shape[x.rank - keep :]]
    return b.weights(*shape)


def _broadcasts(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    pairs = zip(reversed(a), reversed(b), strict=False)
    return all(x == y or 1 in (x, y) for x, y in pairs)


def _broadcast(a: Sequence[Dim], b: Sequence[Dim]) -> tuple[Dim, ...]:
    rank = max(len(a), len(b))
    left, right = ((1,) * (rank - len(s)) + tuple(s) for s in (a, b))
    return tuple(y if x == 1 else x for x, y in zip(left, right, strict=True))


@template()
def division(b: Builder) -> Value | None:
    x = b.pick(is_float)
    if x is None:
        return None
    op = b.rng.choice(["Div", "Pow"])
    y = b.constant(np.float32(b.rng.choice([1.0, 2.0, 0.5, 4.0] if op == "Div" else [1.0, 2.0, 3.0])))
    return b.add(op, [x, y], x.shape)


@template()
def clip(b: Builder) -> Value | None:
    x = b.pick(is_float)
    low, high = b.rng.choice([(0.0, 6.0), (-1.0, 1.0), (None, 0.5), (0.0, None), (0.0, 1.0)])
    bounds = [None if bound is None else b.constant(np.float32(bound)) for bound in (low, high)]
    return x and b.add("Clip", [x, *bounds], x.shape, steady=True)


@template(2)
def comparison(b: Builder) -> Value | None:
    x = b.pick(is_float, lambda v: v.steady)
    if x is None:
        return None
    y = b.weights(*[1] * b.rng.randrange(2))
    op = b.rng.choice(["Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"])
    return b.add(op, [x, y], _broadcast(x.shape, y.shape), BOOL, steady=True)


@template()
def logic(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype == BOOL)
    if x is None:
        return None
    if b.rng.random() < 0.3:
        return b.add("Not", [x], x.shape, steady=True)
    y = b.pick(lambda v: v.dtype == BOOL and _broadcasts(x.shape, v.shape))
    y = y if y is not None and b.rng.random() < 0.7 else b.constant(b.rng.random() < 0.5, BOOL)
    return b.add(b.rng.choice(["And", "Or", "Xor"]), [x, y], _broadcast(x.shape, y.shape), steady=True)


@template(2)
def where(b: Builder) -> Value | None:
    condition = b.pick(lambda v: v.dtype == BOOL)
    if condition is None:
        return None
    x = b.pick(is_float, lambda v: _broadcasts(condition.shape, v.shape))
    if x is None:
        return None
    y = b.constant(np.float32(b.rng.choice([0.0, 1.0, -1e4, float(np.finfo(np.float32).min)])))
    shape = _broadcast(condition.shape, x.shape)
    return b.add("Where", [condition, *((x, y) if b.rng.random() < 0.5 else (y, x))], shape, FLOAT, steady=True)


@template()
def cast(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.steady)
    to = b.rng.choice([FLOAT, FLOAT, DOUBLE, INT32, INT64, BOOL])
    if x is None or (x.dtype in (FLOAT, DOUBLE) and to in (INT32, INT64)):
        return None
    y = b.add("Cast", [x], x.shape, to, steady=True, to=to)
    return b.add("Cast", [y], x.shape, FLOAT, steady=True, to=FLOAT) if b.rng.random() < 0.5 else y


# movement -------------------------------------------------------------------------------------------------------------


@template(4)
def transpose(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.rank > 1)
    if x is None:
        return None
    perm = list(range(x.rank))
    b.rng.shuffle(perm)
    return b.add("Transpose", [x], [x.shape[axis] for axis in perm], steady=True, perm=perm)


@template(4)
def reshape(b: Builder) -> Value | None:
    """Static axes are regrouped; a symbolic one stays in its place, copied by 0 or left to -1."""
    x = b.pick(lambda v: v.rank > 0 and sum(isinstance(d, str) for d in v.shape) <= 1)
    if x is None:
        return None
    lead = next((axis for axis, dim in enumerate(x.shape) if isinstance(dim, str)), None)
    if lead not in (None, 0):
        return None
    rest = [dim for dim in x.shape if isinstance(dim, int)]
    new = _regrouped(b.rng, int(np.prod(rest, dtype=int)))
    shape: list[Dim] = [*([x.shape[0]] if lead == 0 else []), *new]
    target = [0 if isinstance(dim, str) else dim for dim in shape]
    if lead == 0 and b.rng.random() < 0.5:
        target[0] = -1
    elif b.rng.random() < 0.3 and new and 0 not in new:
        target[b.rng.randrange(lead == 0, len(target))] = -1
    return b.add("Reshape", [x, b.ints(target)], shape, steady=True)


def _regrouped(rng: random.Random, count: int) -> list[int]:
    dims, left = [], count
    while left > 1 and len(dims) < 4:
        factors = [f for f in range(1, left + 1) if left % f == 0]
        dims.append(rng.choice(factors))
        left //= dims[-1]
    return [*dims, left] if left > 1 or rng.random() < 0.3 or not dims else dims


@template(2)
def unsqueeze(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.rank < 5)
    if x is None:
        return None
    axis = b.rng.randrange(x.rank + 1)
    shape = [*x.shape[:axis], 1, *x.shape[axis:]]
    return b.add("Unsqueeze", [x, b.ints([axis if b.rng.random() < 0.5 else axis - x.rank - 1])], shape, steady=True)


@template(2)
def squeeze(b: Builder) -> Value | None:
    x = b.pick(lambda v: 1 in v.shape)
    if x is None:
        return None
    axis = b.rng.choice([a for a, dim in enumerate(x.shape) if dim == 1])
    return b.add("Squeeze", [x, b.ints([axis])], [*x.shape[:axis], *x.shape[axis + 1 :]], steady=True)


@template()
def flatten(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.rank > 0 and all(isinstance(d, int) for d in v.shape[1:]))
    return x and b.add("Flatten", [x], [x.shape[0], int(np.prod(x.shape[1:], dtype=int))], steady=True, axis=1)


@template(4)
def slice_(b: Builder) -> Value | None:
    x = b.pick(lambda v: any(isinstance(d, int) and d > 1 for d in v.shape))
    if x is None:
        return None
    axis = b.rng.choice([a for a, dim in enumerate(x.shape) if isinstance(dim, int) and dim > 1])
    size = x.shape[axis]
    assert isinstance(size, int)
    start, step = b.rng.randrange(size), b.rng.choice([1, 1, 1, 2, -1])
    end = b.rng.choice([size, 2**40, start + 1, size // 2]) if step > 0 else b.rng.choice([-(2**40), -size - 1])
    count = len(range(size)[slice(start, None if step < 0 else end, step)])
    told = start - size if b.rng.random() < 0.3 else start
    inputs = [x, b.ints([told]), b.ints([end]), b.ints([axis]), b.ints([step])]
    return b.add("Slice", inputs, [*x.shape[:axis], count, *x.shape[axis + 1 :]], steady=True)


@template(2)
def gather(b: Builder) -> Value | None:
    x = b.pick(lambda v: any(isinstance(d, int) and d > 0 for d in v.shape))
    if x is None:
        return None
    axis = b.rng.choice([a for a, dim in enumerate(x.shape) if isinstance(dim, int) and dim > 0])
    size = x.shape[axis]
    assert isinstance(size, int)
    shape = [b.rng.choice([1, 2, 3]) for _ in range(b.rng.randrange(3))]
    index = np.array([b.rng.randrange(-size, size) for _ in range(int(np.prod(shape, dtype=int)))]).reshape(shape)
    if b.rng.random() < 0.3 and index.ndim == 1:
        index = np.arange(min(size, len(index)))
    shape = list(index.shape)
    return b.add(
        "Gather", [x, b.constant(index, INT64)], [*x.shape[:axis], *shape, *x.shape[axis + 1 :]], steady=True, axis=axis
    )


@template(3)
def concat(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.rank > 0 and any(isinstance(d, int) for d in v.shape), small)
    if x is None:
        return None
    axis = b.rng.choice([a for a, dim in enumerate(x.shape) if isinstance(dim, int)])

    def fits(v: Value) -> bool:
        same = v.rank == x.rank and v.dtype == x.dtype and isinstance(v.shape[axis], int)
        return same and all(a == axis or p == q for a, (p, q) in enumerate(zip(v.shape, x.shape, strict=True)))

    parts = [x, *(b.pick(fits) or x for _ in range(b.rng.randrange(1, 3)))]
    b.rng.shuffle(parts)
    total = sum(int(part.shape[axis]) for part in parts)
    told = axis if b.rng.random() < 0.7 else axis - x.rank
    return b.add("Concat", parts, [*x.shape[:axis], total, *x.shape[axis + 1 :]], steady=True, axis=told)


@template(2)
def split(b: Builder) -> Value | None:
    x = b.pick(lambda v: any(isinstance(d, int) and d > 1 for d in v.shape))
    if x is None:
        return None
    axis = b.rng.choice([a for a, dim in enumerate(x.shape) if isinstance(dim, int) and dim > 1])
    size = x.shape[axis]
    assert isinstance(size, int)
    at = b.rng.randrange(1, size)
    parts = [
        Value(b.name("split"), x.dtype, (*x.shape[:axis], count, *x.shape[axis + 1 :]), x.steady)
        for count in (at, size - at)
    ]
    names = [part.name for part in parts]
    b.nodes.append(helper.make_node("Split", [x.name, b.ints([at, size - at]).name], names, axis=axis))
    b.values += parts
    return parts[0]


@template(2)
def expand(b: Builder) -> Value | None:
    x = b.pick(lambda v: 1 in v.shape, small)
    if x is None:
        return None
    shape = [b.rng.choice(_SIZES) if dim == 1 else dim for dim in x.shape]
    told = [dim if isinstance(dim, int) and x.shape[axis] == 1 else 1 for axis, dim in enumerate(shape)]
    return b.add("Expand", [x, b.ints(told)], shape, steady=True)


@template()
def expand_to_shape(b: Builder) -> Value | None:
    """An Expand to the shape of another value, as exporters of masks write it."""
    x = b.pick(is_float)
    y = x and b.pick(lambda v: _broadcasts(x.shape, v.shape) and _broadcast(x.shape, v.shape) == v.shape)
    if x is None or y is None:
        return None
    shape = b.add("Shape", [y], [y.rank], INT64, steady=True)
    return b.add("Expand", [x, shape], y.shape, steady=True)


@template()
def tile(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.rank > 0, small)
    if x is None:
        return None
    repeats = [b.rng.choice([1, 1, 2]) if isinstance(dim, int) else 1 for dim in x.shape]
    shape = [dim * count if isinstance(dim, int) else dim for dim, count in zip(x.shape, repeats, strict=True)]
    return b.add("Tile", [x, b.ints(repeats)], shape, steady=True)


@template(2)
def pad(b: Builder) -> Value | None:
    x = b.pick(is_float, lambda v: v.rank > 0, small)
    if x is None:
        return None
    pads = [[b.rng.choice([0, 0, 1, 2]) if isinstance(dim, int) else 0 for dim in x.shape] for _ in range(2)]
    shape = [dim + low + high if isinstance(dim, int) else dim for dim, low, high in zip(x.shape, *pads, strict=True)]
    value = b.constant(np.float32(b.rng.choice([0.0, 0.0, 1.0, -1.0])))
    return b.add("Pad", [x, b.ints([*pads[0], *pads[1]]), value], shape, steady=True)


@template()
def reshape_by_shape(b: Builder) -> Value | None:
    """Flatten and restore through Shape, Slice and Concat, as exporters do with dynamic dims."""
    x = b.pick(is_float, lambda v: v.rank > 1 and isinstance(v.shape[-1], int) and 0 not in v.shape)
    if x is None:
        return None
    width = x.shape[-1]
    assert isinstance(width, int)
    flat = b.add("Reshape", [x, b.ints([-1, width])], ["?", width], steady=True)
    b.values.remove(flat)
    y = b.add(b.rng.choice(["Relu", "Neg", "Identity", "Abs"]), [flat], ["?", width], steady=True)
    b.values.remove(y)
    shape = b.add("Shape", [x], [x.rank], INT64, steady=True)
    if b.rng.random() < 0.5:
        head = b.add("Slice", [shape, b.ints([0]), b.ints([x.rank - 1])], [x.rank - 1], steady=True)
        shape = b.add("Concat", [head, b.ints([width])], [x.rank], steady=True, axis=0)
    return b.add("Reshape", [y, shape], x.shape, steady=True)


# reductions, products, layers -----------------------------------------------------------------------------------------


@template(2)
def reduction(b: Builder) -> Value | None:
    x = b.pick(is_float, lambda v: v.rank > 0 and 0 not in v.shape)
    if x is None:
        return None
    axis, keep = b.rng.randrange(x.rank), b.rng.random() < 0.6
    op = b.rng.choice(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"])
    shape = [*x.shape[:axis], *([1] if keep else []), *x.shape[axis + 1 :]]
    axes = b.ints([axis if b.rng.random() < 0.6 else axis - x.rank])
    return b.add(op, [x, axes], shape, steady=op in ("ReduceMax", "ReduceMin"), keepdims=int(keep))


@template()
def normalized(b: Builder) -> Value | None:
    x = b.pick(is_float, lambda v: v.rank > 0 and 0 not in v.shape)
    op = b.rng.choice(["Softmax", "LogSoftmax", "Softmax"])
    return x and b.add(op, [x], x.shape, axis=b.rng.randrange(-x.rank, x.rank))


@template()
def arg(b: Builder) -> Value | None:
    x = b.pick(is_float, lambda v: v.steady and v.rank > 0 and 0 not in v.shape)
    if x is None:
        return None
    axis = b.rng.randrange(x.rank)
    shape = [*x.shape[:axis], 1, *x.shape[axis + 1 :]]
    return b.add(b.rng.choice(["ArgMax", "ArgMin"]), [x], shape, INT64, steady=True, axis=axis, keepdims=1)


@template(4)
def matmul(b: Builder) -> Value | None:
    x = b.pick(is_float, lambda v: v.rank > 1 and isinstance(v.shape[-1], int) and v.shape[-1] > 0, small)
    if x is None:
        return None
    inner = x.shape[-1]
    assert isinstance(inner, int)
    y = b.pick(is_float, lambda v: v.rank == x.rank and v.shape[-2] == inner and v.shape[:-2] == x.shape[:-2])
    if y is None or b.rng.random() < 0.6:
        y = b.weights(inner, b.rng.choice(_SIZES))
    return b.add("MatMul", [x, y], [*x.shape[:-1], y.shape[-1]])


@template()
def self_product(b: Builder) -> Value | None:
    """x @ x^T, as attention scores are."""
    x = b.pick(is_float, lambda v: v.rank > 1 and 0 not in v.shape, small)
    if x is None:
        return None
    perm = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    turned = b.add("Transpose", [x], [x.shape[a] for a in perm], perm=perm)
    product = b.add("MatMul", [x, turned], [*x.shape[:-1], x.shape[-2]])
    return b.add("Mul", [product, b.constant(np.float32(0.125))], product.shape)


@template(2)
def gemm(b: Builder) -> Value | None:
    x = b.pick(is_float, lambda v: v.rank == 2 and all(isinstance(d, int) and d > 0 for d in v.shape[1:]), small)
    if x is None:
        return None
    inner, width, turned = x.shape[1], b.rng.choice(_SIZES), b.rng.random() < 0.5
    assert isinstance(inner, int)
    w = b.weights(width, inner) if turned else b.weights(inner, width)
    c = b.rng.choice([None, b.weights(width), b.weights(1, width), b.weights(1)])
    alpha, beta = b.rng.choice([(1.0, 1.0), (1.0, 1.0), (0.5, 2.0)])
    return b.add("Gemm", [x, w, c], [x.shape[0], width], transB=int(turned), alpha=alpha, beta=beta)


@template(3)
def conv(b: Builder) -> Value | None:
    x = b.pick(is_float, lambda v: v.rank in (3, 4) and all(isinstance(d, int) and d > 0 for d in v.shape[1:]), small)
    if x is None:
        return None
    channels, spatial = x.shape[1], x.shape[2:]
    assert isinstance(channels, int)
    group = b.rng.choice([1, 1, channels])
    out = channels * b.rng.choice([1, 2]) if group > 1 else b.rng.choice(_SIZES)
    kernel = [b.rng.choice([1, 3]) if int(size) >= 1 else 1 for size in spatial]
    pads = [k // 2 for k in kernel]
    w = b.weights(out, channels // group, *kernel)
    bias = b.weights(out) if b.rng.random() < 0.5 else None
    y = b.add("Conv", [x, w, bias], [x.shape[0], out, *spatial], pads=[*pads, *pads], kernel_shape=kernel, group=group)
    if b.rng.random() < 0.4:
        scale, offset, mean = (b.weights(out) for _ in range(3))
        variance = b.constant(np.random.default_rng(b.rng.getrandbits(32)).uniform(0.5, 2.0, out))
        y = b.add("BatchNormalization", [y, scale, offset, mean, variance], y.shape)
    return b.add(b.rng.choice(["Relu", "Sigmoid", "HardSwish"]), [y], y.shape) if b.rng.random() < 0.5 else y


@template()
def pool(b: Builder) -> Value | None:
    x = b.pick(is_float, lambda v: v.rank == 4 and all(isinstance(d, int) and d > 0 for d in v.shape[1:]))
    if x is None:
        return None
    op = b.rng.choice(["MaxPool", "AveragePool", "GlobalAveragePool"])
    if op == "GlobalAveragePool":
        return b.add(op, [x], [*x.shape[:2], 1, 1])
    more = {"count_include_pad": b.rng.randrange(2)} if op == "AveragePool" else {}
    return b.add(op, [x], x.shape, steady=op == "MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], **more)


@template()
def layer_norm(b: Builder) -> Value | None:
    """Layer normalization, as one node or in parts."""
    x = b.pick(is_float, lambda v: v.rank > 1 and isinstance(v.shape[-1], int) and v.shape[-1] > 1 and 0 not in v.shape)
    if x is None:
        return None
    width = x.shape[-1]
    assert isinstance(width, int)
    gamma, beta = b.weights(width), b.weights(width)
    if b.rng.random() < 0.4:
        return b.add("LayerNormalization", [x, gamma, beta], x.shape, axis=-1)
    reduced, last = [*x.shape[:-1], 1], b.ints([-1])
    centered = b.add("Sub", [x, b.add("ReduceMean", [x, last], reduced)], x.shape)
    variance = b.add("ReduceMean", [b.add("Mul", [centered, centered], x.shape), last], reduced)
    eased = b.add("Add", [variance, b.constant(np.float32(b.rng.choice([1e-5, 1e-2])))], reduced)
    scaled = b.add("Div", [centered, b.add("Sqrt", [eased], reduced)], x.shape)
    return b.add("Add", [b.add("Mul", [scaled, gamma], x.shape), beta], x.shape)


@template()
def gelu(b: Builder) -> Value | None:
    x = b.pick(is_float)
    if x is None:
        return None
    inner = b.add("Mul", [x, b.constant(np.float32(b.rng.choice([0.5**0.5, 0.5**0.5, 0.7])))], x.shape)
    raised = b.add("Add", [b.add("Erf", [inner], x.shape), b.constant(np.float32(1.0))], x.shape)
    return b.add("Mul", [b.add("Mul", [x, raised], x.shape), b.constant(np.float32(0.5))], x.shape)


@template()
def einsum(b: Builder) -> Value | None:
    x = b.pick(is_float, lambda v: v.rank == 3 and isinstance(v.shape[-1], int) and v.shape[-1] > 0, small)
    if x is None:
        return None
    width, out = x.shape[-1], b.rng.choice(_SIZES)
    assert isinstance(width, int)
    equation, shape = b.rng.choice(
        [("abc,cd->abd", (*x.shape[:2], out)), ("abc,cd->adb", (x.shape[0], out, x.shape[1])), ("abc,cd->dab", None)]
    )
    result = shape if shape is not None else (out, *x.shape[:2])
    return b.add("Einsum", [x, b.weights(width, out)], result, equation=equation)


@template()
def quantized(b: Builder) -> Value | None:
    """Integers and back; the quantizer works on a steady value only."""
    x = b.pick(is_float, lambda v: v.steady)
    if x is None:
        return None
    scale, zero = b.constant(np.float32(0.0625)), Value(b.name("z"), TensorProto.UINT8, (), True)
    b.initializers.append(numpy_helper.from_array(np.uint8(128), zero.name))
    q = b.add("QuantizeLinear", [x, scale, zero], x.shape, TensorProto.UINT8, steady=True)
    return b.add("DequantizeLinear", [q, scale, zero], x.shape, FLOAT, steady=True)


# graphs inside of graphs ----------------------------------------------------------------------------------------------


@template(0.7)
def branch(b: Builder) -> Value | None:
    """An If on a constant or a computed condition; both branches make the same shape."""
    x = b.pick(is_float)
    if x is None or _depth(b) > 1:
        return None
    flag = b.pick(lambda v: v.dtype == BOOL and v.shape == ())
    if flag is None or b.rng.random() < 0.3:
        flag = b.constant(b.rng.random() < 0.5, BOOL)
    graphs = []
    for name in ("then_branch", "else_branch"):
        inner = Builder(b.rng, b, functions=b.functions, count=b.count)
        for _ in range(b.rng.randrange(3)):
            _grow(inner)
        y = inner.add(b.rng.choice(["Neg", "Relu", "Abs", "Identity"]), [x], x.shape, steady=True)
        graphs.append(helper.make_graph(inner.nodes, name, [], [_info(y)], inner.initializers))
    return b.add("If", [flag], x.shape, FLOAT, then_branch=graphs[0], else_branch=graphs[1])


@template(0.4)
def loop(b: Builder) -> Value | None:
    """A Loop that carries one value."""
    x = b.pick(is_float)
    if x is None or _depth(b) > 1:
        return None
    inner = Builder(b.rng, b, functions=b.functions, count=b.count)
    index, go, carried = (inner.name(stem) for stem in ("i", "go", "carried"))
    state = Value(carried, FLOAT, x.shape, False)
    inner.values.append(state)
    for _ in range(b.rng.randrange(3)):
        _grow(inner)
    y = inner.add("Mul", [state, b.rng.choice([inner.constant(np.float32(0.5)), inner.weights()])], x.shape)
    on = inner.name("on")
    inner.nodes.append(helper.make_node("Identity", [go], [on]))
    infos = [helper.make_tensor_value_info(index, INT64, []), helper.make_tensor_value_info(go, BOOL, []), _info(state)]
    body = helper.make_graph(
        inner.nodes, "body", infos, [helper.make_tensor_value_info(on, BOOL, []), _info(y)], inner.initializers
    )
    trips = b.constant(np.int64(b.rng.choice([0, 1, 2, 3])), INT64)
    return b.add("Loop", [trips, b.constant(True, BOOL), x], x.shape, FLOAT, body=body)


@template(0.7)
def call(b: Builder) -> Value | None:
    """A call of a model-local function."""
    x = b.pick(is_float)
    if x is None:
        return None
    if not b.functions or b.rng.random() < 0.5:
        ops = [b.rng.choice(["Relu", "Neg", "Tanh", "Abs"]) for _ in range(b.rng.randrange(1, 4))]
        names = ["x", *(f"v{at}" for at in range(len(ops)))]
        nodes = [helper.make_node(op, [names[at]], [names[at + 1]]) for at, op in enumerate(ops)]
        imports = [helper.make_opsetid("", OPSET)]
        b.functions.append(helper.make_function("fuzz", b.name("F"), ["x"], [names[-1]], nodes, imports))
    return b.add(b.rng.choice(b.functions).name, [x], x.shape, domain="fuzz")


def _depth(b: Builder) -> int:
    return 0 if b.outer is None else 1 + _depth(b.outer)


def _info(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, value.dtype, [None if d == "?" else d for d in value.shape])


def _grow(b: Builder) -> None:
    functions, weights = zip(*TEMPLATES, strict=True)
    (chosen,) = b.rng.choices(functions, weights)
    chosen(b)


def graph(seed: int, nodes: int = 14) -> onnx.ModelProto:
    """A random model.

    Args:
        seed: Another seed is another model.
        nodes: About how many nodes it has.
    """
    rng = random.Random(seed)
    b = Builder(rng)
    inputs = []
    for _ in range(rng.randrange(1, 4)):
        shape: list[Dim] = [rng.choice(_SIZES) for _ in range(rng.choice([2, 3, 3, 4]))]
        if rng.random() < 0.5:
            shape[0] = rng.choice(_SYMBOLS)
        inputs.append(Value(b.name("x"), FLOAT, tuple(shape)))
    b.values += inputs
    while len(b.nodes) < nodes:
        _grow(b)
    read = {name for node in b.nodes for name in node.input}
    made = {name for node in b.nodes for name in node.output}
    ends = [value for value in b.values if value.name in made and value.name not in read]
    extra = [value for value in b.values if value.name in made and value.name in read and rng.random() < 0.08]
    outputs = [_info(value) for value in (*ends, *extra)]
    model = helper.make_model(
        helper.make_graph(b.nodes, "fuzz", [_info(value) for value in inputs], outputs, b.initializers),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("fuzz", 1)],
        functions=b.functions,
        ir_version=9,
    )
    return model
