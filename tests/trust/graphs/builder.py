"""A graph that grows node by node: the type and dims of every value are known, so it is valid by construction.

It is known too whether a value is *steady*: computed without rounding. Only steady values go where a rounding
difference could change the result altogether (comparisons, Floor, ArgMax, indices).

All chance comes from one ``random.Random``. Hypothesis hands out such an object whose draws it can shrink
(``st.randoms(use_true_random=False)``), so one generator serves property tests and long runs by seed.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, helper, numpy_helper

from optc.backends import ort_kernels
from optc.backends.base import OpSignature

Dim: TypeAlias = "int | str"

FLOAT, INT64, BOOL, HALF, DOUBLE, INT32, BFLOAT = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.BOOL,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT32,
    TensorProto.BFLOAT16,
)
UINT8, INT8 = TensorProto.UINT8, TensorProto.INT8
#: Element types of inputs and constants, all of which NumPy can hold.
NUMPY: dict[int, Any] = {
    FLOAT: np.float32,
    INT64: np.int64,
    BOOL: np.bool_,
    HALF: np.float16,
    DOUBLE: np.float64,
    INT32: np.int32,
    BFLOAT: ml_dtypes.bfloat16,
    UINT8: np.uint8,
    INT8: np.int8,
}
REALS = (FLOAT, HALF, DOUBLE, BFLOAT)
SIZES = (1, 1, 2, 3, 4, 4, 6, 8)
SYMBOLS = ("N", "S")


class Unfit(Exception):
    """Something cannot stand where it was to be put; the graph is as it was before."""


@dataclass(frozen=True)
class Value:
    """A value of the graph that grows.

    Attributes:
        name: Its name.
        dtype: ONNX element type.
        shape: Its dims; a text is a symbolic dim of an input, which is the same wherever it stands. None where they
            are not known: then nothing reads the value any more.
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


@dataclass
class Builder:
    """A graph that grows; inner graphs have builders of their own, which see the values of the outer ones.

    Attributes:
        rng: All chance.
        opset: Of the default domain.
        real: The float type that the graph computes in, at this moment.
    """

    rng: random.Random
    opset: int = 18
    real: int = FLOAT
    outer: Builder | None = None
    inputs: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)
    ends: list[onnx.ValueInfoProto] = field(default_factory=list)
    count: list[int] = field(default_factory=lambda: [0])

    def inner(self) -> Builder:
        """The builder of a graph inside of this one."""
        return Builder(
            self.rng, self.opset, self.real, self, functions=self.functions, domains=self.domains, count=self.count
        )

    @property
    def depth(self) -> int:
        """How many graphs this one is inside of."""
        return 0 if self.outer is None else 1 + self.outer.depth

    def grow(self, step: Callable[[Builder], object]) -> bool:
        """Take a step, or none at all if something does not fit."""
        lists = (self.inputs, self.values, self.nodes, self.initializers, self.functions, self.ends)
        before, real = [len(items) for items in lists], self.real
        try:
            return step(self) is not None
        except Unfit:
            for items, length in zip(lists, before, strict=True):
                del items[length:]
            return False
        finally:
            self.real = real

    def name(self, stem: str) -> str:
        self.count[0] += 1
        return f"{stem}{self.count[0]}"

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def visible(self) -> list[Value]:
        return self.values + (self.outer.visible() if self.outer is not None else [])

    def is_real(self, value: Value) -> bool:
        """Whether a value is of the float type that is computed in."""
        return value.dtype == self.real

    def pick(self, *conditions: Callable[[Value], bool]) -> Value | None:
        """A value that fits; later ones are likelier, so that graphs grow deep."""
        fitting = [value for value in self.visible() if all(condition(value) for condition in conditions)]
        at = int(len(fitting) * self.rng.random() ** 0.5)
        return fitting[min(at, len(fitting) - 1)] if fitting else None

    def input(self, dtype: int, shape: Sequence[Dim]) -> Value:
        """One more input of the whole graph."""
        if self.outer is not None:
            raise Unfit
        value = Value(self.name("x"), dtype, tuple(shape))
        self.inputs.append(value)
        self.values.append(value)
        return value

    def constant(self, array: Any, dtype: int | None = None) -> Value:
        """A constant: an initializer, or a node."""
        array = np.asarray(array).astype(NUMPY[self.real if dtype is None else dtype])
        return self.tensor(numpy_helper.from_array(array, self.name("c")), array)

    def tensor(self, tensor: onnx.TensorProto, array: np.ndarray | None) -> Value:
        """A constant as a tensor; ``array`` are its contents, if anybody may want to know them."""
        if self.chance(0.25):
            self.nodes.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            self.initializers.append(tensor)
        return Value(tensor.name, tensor.data_type, tuple(tensor.dims), True, array)

    def weights(self, *shape: int, scale: float = 0.5, dtype: int | None = None) -> Value:
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
        """One more node with one output, written as its opset wants it.

        Inputs that were attributes in the opset of the graph (axes, most often) become those again.

        Raises:
            Unfit: The operator does not exist there, or does not take these types or attributes.
        """
        taken = list(inputs)
        if domain == "":
            attributes |= self._as_attributes(op, taken)
        first = next(value for value in inputs if value is not None)
        value = Value(
            self.name(op.lower()), first.dtype if dtype is None else dtype, tuple(shape), steady and all_steady(inputs)
        )
        self.node(op, taken, [value.name], domain, **attributes)
        self.values.append(value)
        return value

    def node(
        self, op: str, inputs: Sequence[Value | None], outputs: Sequence[str], domain: str = "", **attributes: Any
    ) -> None:
        """One more node, if the opset has it."""
        if domain == "":
            schema = schema_of(op, self.opset)
            if schema is None or not set(attributes) <= set(schema.attributes):
                raise Unfit
            for at, given in enumerate(inputs):
                formal = schema.inputs[min(at, len(schema.inputs) - 1)]
                if given is not None and type_text(given.dtype) not in formal.types:
                    raise Unfit
        elif domain != "fuzz":
            self.domains.add(domain)
        if domain != "fuzz" and not attributes.keys() & {"body", "then_branch"}:
            types = tuple(None if given is None else onnx_ir.DataType(given.dtype) for given in inputs)
            if not _runs(OpSignature(domain, op, 1 if domain else self.opset, types)):
                raise Unfit
        names = ["" if given is None else given.name for given in inputs]
        self.nodes.append(helper.make_node(op, names, list(outputs), name=self.name("n"), domain=domain, **attributes))

    def _as_attributes(self, op: str, inputs: list[Value | None]) -> dict[str, Any]:
        schema, newest = schema_of(op, self.opset), schema_of(op, onnx.defs.onnx_opset_version())
        if schema is None or newest is None:
            raise Unfit
        if newest.inputs and newest.inputs[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic:
            return {}
        found = {}
        for at in range(len(schema.inputs), len(inputs)):
            given, name = inputs[at], newest.inputs[at].name
            if given is None:
                continue
            if given.constant is None or name not in schema.attributes:
                raise Unfit
            found[name] = given.constant.tolist()
        del inputs[len(schema.inputs) :]
        return found


@functools.cache
def _runs(op: OpSignature) -> bool:
    """Whether ONNX Runtime has an operator for these types."""
    return ort_kernels.how(op) is not None


def schema_of(op: str, opset: int) -> onnx.defs.OpSchema | None:
    """The operator in an opset of the default domain; None if there is none."""
    try:
        return onnx.defs.get_schema(op, opset)
    except onnx.defs.SchemaError:
        return None


def type_text(dtype: int) -> str:
    """An element type as schemas write tensors of it."""
    name = {"BFLOAT16": "bfloat16", "FLOAT": "float", "DOUBLE": "double"}.get(TensorProto.DataType.Name(dtype))
    return f"tensor({name or TensorProto.DataType.Name(dtype).lower()})"


def all_steady(inputs: Sequence[Value | None]) -> bool:
    return all(value is None or value.steady for value in inputs)


def info(value: Value) -> onnx.ValueInfoProto:
    """The declaration of a value."""
    return helper.make_tensor_value_info(value.name, value.dtype, [None if d == "?" else d for d in value.shape])


def small(value: Value) -> bool:
    return all(not isinstance(dim, int) or dim <= 64 for dim in value.shape)


def broadcasts(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    pairs = zip(reversed(a), reversed(b), strict=False)
    return all(x == y or 1 in (x, y) for x, y in pairs)


def broadcast(a: Sequence[Dim], b: Sequence[Dim]) -> tuple[Dim, ...]:
    rank = max(len(a), len(b))
    left, right = ((1,) * (rank - len(s)) + tuple(s) for s in (a, b))
    return tuple(y if x == 1 else x for x, y in zip(left, right, strict=True))


# what a graph can grow by ---------------------------------------------------------------------------------------------

Template = Callable[[Builder], "Value | None"]
TEMPLATES: list[tuple[Template, float]] = []


def template(weight: float = 1.0) -> Callable[[Template], Template]:
    """Register something that a graph can grow by, so many times as likely as others."""

    def decorate(function: Template) -> Template:
        TEMPLATES.append((function, weight))
        return function

    return decorate


def grow(b: Builder) -> None:
    """Let a graph grow by something."""
    functions, weights = zip(*TEMPLATES, strict=True)
    (chosen,) = b.rng.choices(functions, weights)
    b.grow(chosen)
