"""Elementwise operators."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import onnx

from .builder import (
    BOOL,
    DOUBLE,
    INT32,
    INT64,
    NUMPY,
    REALS,
    Builder,
    Unfit,
    Value,
    broadcast,
    broadcasts,
    grow,
    schema_of,
    template,
    type_text,
)

_UNARY = (
    *("Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Erf", "Softplus", "LeakyRelu", "Elu", "HardSigmoid", "HardSwish"),
    *("Identity", "Softsign", "Selu", "Celu", "Sin", "Cos", "Mish", "ThresholdedRelu"),
)
_STEADY_UNARY = frozenset({"Relu", "Neg", "Abs", "Identity"})


@template(4)
def unary(b: Builder) -> Value | None:
    x = b.pick(b.is_real)
    op = b.rng.choice(_UNARY)
    return x and b.add(op, [x], x.shape, steady=op in _STEADY_UNARY)


@template()
def rounding(b: Builder) -> Value | None:
    x = b.pick(b.is_real, lambda v: v.steady)
    return x and b.add(b.rng.choice(["Floor", "Ceil", "Round", "Sign"]), [x], x.shape, steady=True)


@template()
def positive(b: Builder) -> Value | None:
    """Functions that want positive operands, on those."""
    x = b.pick(b.is_real)
    if x is None:
        return None
    eased = b.add("Add", [b.add("Abs", [x], x.shape), b.constant(0.5)], x.shape)
    return b.add(b.rng.choice(["Sqrt", "Log", "Reciprocal"]), [eased], x.shape)


@template(6)
def binary(b: Builder) -> Value | None:
    x = b.pick(b.is_real)
    if x is None:
        return None
    y = _partner(b, x)
    op = b.rng.choice(["Add", "Sub", "Mul", "Add", "Mul", "Max", "Min", "Sum"])
    pair = [x, y] if b.chance(0.5) else [y, x]
    return b.add(op, pair, broadcast(x.shape, y.shape), steady=op in ("Max", "Min"))


def _partner(b: Builder, x: Value) -> Value:
    """Something that broadcasts with ``x``: another value, or a constant of fewer or shorter axes."""
    if b.chance(0.5):
        y = b.pick(lambda v: v.dtype == x.dtype and broadcasts(x.shape, v.shape))
        if y is not None:
            return y
    keep = b.rng.randrange(x.rank + 1)
    shape = [dim if isinstance(dim, int) and b.chance(0.7) else 1 for dim in x.shape[x.rank - keep :]]
    return b.weights(*shape)


@template()
def division(b: Builder) -> Value | None:
    x = b.pick(b.is_real)
    if x is None:
        return None
    op = b.rng.choice(["Div", "Pow"])
    y = b.constant(b.rng.choice([1.0, 2.0, 0.5, 4.0] if op == "Div" else [1.0, 2.0, 3.0]))
    return b.add(op, [x, y], x.shape)


@template()
def clip(b: Builder) -> Value | None:
    x = b.pick(b.is_real)
    low, high = b.rng.choice([(0.0, 6.0), (-1.0, 1.0), (None, 0.5), (0.0, None), (0.0, 1.0)])
    bounds = [None if bound is None else b.constant(bound) for bound in (low, high)]
    return x and b.add("Clip", [x, *bounds], x.shape, steady=True)


@template(2)
def comparison(b: Builder) -> Value | None:
    x = b.pick(b.is_real, lambda v: v.steady)
    if x is None:
        return None
    y = b.weights(*[1] * b.rng.randrange(2))
    op = b.rng.choice(["Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"])
    return b.add(op, [x, y], broadcast(x.shape, y.shape), BOOL, steady=True)


@template()
def logic(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype == BOOL)
    if x is None:
        return None
    if b.chance(0.3):
        return b.add("Not", [x], x.shape, steady=True)
    y = b.pick(lambda v: v.dtype == BOOL and broadcasts(x.shape, v.shape))
    y = y if y is not None and b.chance(0.7) else b.constant(b.chance(0.5), BOOL)
    return b.add(b.rng.choice(["And", "Or", "Xor"]), [x, y], broadcast(x.shape, y.shape), steady=True)


@template(2)
def where(b: Builder) -> Value | None:
    condition = b.pick(lambda v: v.dtype == BOOL)
    if condition is None:
        return None
    x = b.pick(b.is_real, lambda v: broadcasts(condition.shape, v.shape))
    if x is None:
        return None
    y = b.constant(b.rng.choice([0.0, 1.0, -1e4, _lowest(b.real)]))
    shape = broadcast(condition.shape, x.shape)
    return b.add("Where", [condition, *((x, y) if b.chance(0.5) else (y, x))], shape, b.real, steady=True)


def _lowest(real: int) -> float:
    return float(ml_dtypes.finfo(NUMPY[real]).min)


@template()
def cast(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.steady and v.dtype in NUMPY)
    to = b.rng.choice([b.real, b.real, DOUBLE, INT32, INT64, BOOL])
    if x is None or (x.dtype in REALS and to in (INT32, INT64)):
        return None
    y = b.add("Cast", [x], x.shape, to, steady=True, to=to)
    return b.add("Cast", [y], x.shape, b.real, steady=True, to=b.real) if b.chance(0.5) else y


@template(0.6)
def mixed(b: Builder) -> Value | None:
    """A part of the graph that computes in another float type, as mixed precision does."""
    x = b.pick(b.is_real)
    outside, b.real = b.real, b.rng.choice([real for real in REALS if real != b.real])
    if x is None:
        return None
    y = b.add("Cast", [x], x.shape, b.real, to=b.real)
    for _ in range(b.rng.randrange(1, 4)):
        grow(b)
    y = b.pick(b.is_real) or y
    return b.add("Cast", [y], y.shape, outside, to=outside)


# any operator of the schemas that works element by element -----------------------------------------------------------

#: Not the same twice, or not for any operand: a remainder or quotient of integers needs others than zero.
_NOT_ANY = frozenset({"Bernoulli", "RandomNormalLike", "RandomUniformLike", "Div", "Mod", "Pow", "BitShift", "Dropout"})
#: Constant over large pieces, or with a sign that hangs on the last bit: they want what was computed without rounding.
_STEP = frozenset(
    {
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "Not",
        "IsNaN",
        "IsInf",
        "Equal",
        "Greater",
        "Less",
        "ThresholdedRelu",
        "Shrink",
        "Cast",
    }
)
#: Undefined, or steep, for some operands.
_DOMAIN = frozenset(
    {"Acos", "Asin", "Acosh", "Atanh", "Log", "Sqrt", "Reciprocal", "Tan", "Exp", "Cosh", "Sinh", "Det"}
)
_SHAPED = frozenset({"Softmax", "LogSoftmax", "Hardmax", "CumSum"})


@functools.cache
def _elementwise(opset: int, operands: int) -> tuple[str, ...]:
    """Operators whose schema has so many inputs of one type, and one output of the same or of bool, in that shape."""
    found = []
    for name in sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}):
        schema = schema_of(name, opset)
        if schema is None or schema.deprecated or name in _NOT_ANY | _SHAPED or len(schema.outputs) != 1:
            continue
        variadic = bool(schema.inputs) and "Variadic" in str(schema.inputs[-1].option) and operands > 1
        inputs = [*schema.inputs[:1]] * operands if variadic else [*schema.inputs]
        if len(inputs) != operands or len({one.type_str for one in inputs}) != 1:
            continue
        if any(attribute.required for attribute in schema.attributes.values()):
            continue
        if set(schema.outputs[0].types) <= {"tensor(bool)"} or schema.outputs[0].type_str == inputs[0].type_str:
            found.append(name)
    return tuple(name for name in found if _keeps_shape(name, opset, operands))


def _keeps_shape(op: str, opset: int, operands: int) -> bool:
    """Whether shape inference gives the operator the shape of its operands."""
    schema = schema_of(op, opset)
    assert schema is not None
    kind = next((dtype for dtype in (*REALS, BOOL, INT32, INT64) if type_text(dtype) in schema.inputs[0].types), None)
    if kind is None:
        return False
    names = [f"x{at}" for at in range(operands)]
    node = onnx.helper.make_node(op, names, ["y"])
    imports = [onnx.helper.make_opsetid("", opset)]
    for shape in ([1, 2, 3], [4], [2, 1, 2, 2]):
        types = {name: onnx.helper.make_tensor_type_proto(kind, shape) for name in names}
        try:
            (made,) = onnx.shape_inference.infer_node_outputs(schema, node, types, opset_imports=imports).values()
        except Exception:
            return False
        if [dim.dim_value for dim in made.tensor_type.shape.dim] != shape:
            return False
    return True


@template(3)
def unary_of_schemas(b: Builder) -> Value | None:
    """Any operator of one operand, on any type that it takes."""
    return _any_of_schemas(b, 1)


@template(3)
def binary_of_schemas(b: Builder) -> Value | None:
    """Any operator that broadcasts two or three operands, on any type that it takes."""
    return _any_of_schemas(b, b.rng.choice([2, 2, 3]))


def _any_of_schemas(b: Builder, operands: int) -> Value | None:
    op = b.rng.choice(_elementwise(b.opset, operands))
    schema = schema_of(op, b.opset)
    assert schema is not None
    types = schema.inputs[0].types
    careful = op in _STEP or set(schema.outputs[0].types) <= {"tensor(bool)"}
    x = b.pick(lambda v: type_text(v.dtype) in types and v.dtype in NUMPY and (v.steady or not careful))
    if x is None:
        raise Unfit
    if op in _DOMAIN:
        x = b.add("Sigmoid", [x], x.shape) if x.dtype in REALS else x
    given, shape = [x], x.shape
    for _ in range(1, operands):
        y = b.pick(
            lambda v, shape=shape: v.dtype == x.dtype and broadcasts(shape, v.shape) and (v.steady or not careful)
        )
        if y is None or b.chance(0.4):
            size = [
                dim if isinstance(dim, int) and b.chance(0.6) else 1 for dim in shape[b.rng.randrange(len(shape) + 1) :]
            ]
            y = (
                b.weights(*size, dtype=x.dtype)
                if x.dtype in REALS
                else b.constant(
                    np.random.default_rng(b.rng.getrandbits(32)).integers(0, 2 if x.dtype == BOOL else 5, size), x.dtype
                )
            )
        given.append(y)
        shape = broadcast(shape, y.shape)
    b.rng.shuffle(given)
    same = schema.outputs[0].type_str == schema.inputs[0].type_str
    exact = op in {"Relu", "Neg", "Abs", "Identity", "Max", "Min"} or x.dtype not in REALS or careful
    return b.add(op, given, shape, x.dtype if same else BOOL, steady=exact)
