"""Graphs inside of graphs: If, Loop, Scan, and calls of the model's own functions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from .builder import BFLOAT, BOOL, INT64, Builder, Value, grow, info, template

_DEEPEST = 1


def _body(b: Builder, states: Sequence[Value], steps: int = 3) -> Builder:
    """A graph inside of ``b`` that has grown a little, and sees ``states`` besides what ``b`` sees."""
    inner = b.inner()
    inner.values += states
    for _ in range(b.rng.randrange(steps)):
        grow(inner)
    return inner


def _state(b: Builder, like: Value, shape: Sequence[int | str] | None = None) -> Value:
    return Value(b.name("state"), like.dtype, like.shape if shape is None else tuple(shape), False)


def _graph(
    inner: Builder, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
) -> onnx.GraphProto:
    return helper.make_graph(inner.nodes, name, inputs, outputs, inner.initializers)


@template(0.7)
def branch(b: Builder) -> Value | None:
    """An If on a constant or a computed condition; both branches make the same shape."""
    x = b.pick(b.is_real)
    if x is None or b.depth > _DEEPEST:
        return None
    flag = b.pick(lambda v: v.dtype == BOOL and v.shape == ())
    if flag is None or b.chance(0.3):
        flag = b.constant(b.chance(0.5), BOOL)
    graphs = []
    for name in ("then_branch", "else_branch"):
        inner = _body(b, [])
        last = inner.pick(lambda v: v.dtype == x.dtype and v.shape == x.shape) or x
        y = inner.add(b.rng.choice(["Neg", "Relu", "Abs", "Identity"]), [last], x.shape, steady=True)
        graphs.append(_graph(inner, name, [], [info(y)]))
    return b.add("If", [flag], x.shape, x.dtype, then_branch=graphs[0], else_branch=graphs[1])


@template(0.6)
def loop(b: Builder) -> Value | None:
    """A Loop that carries one value and may collect one per iteration, for a count or until a condition ends it."""
    x = b.pick(b.is_real)
    if x is None or b.depth > _DEEPEST:
        return None
    state = _state(b, x)
    index, go = Value(b.name("i"), INT64, ()), Value(b.name("go"), BOOL, ())
    inner = _body(b, [state, index])
    factor = inner.constant(0.5) if b.chance(0.5) else inner.weights()
    y = inner.add("Mul", [state, factor], x.shape)
    if b.chance(0.3):
        on = inner.add("Less", [index, inner.constant(b.rng.randrange(3), INT64)], (), BOOL, steady=True)
    else:
        on = inner.add("Identity", [go], (), steady=True)
    collected = []
    if b.chance(0.4):
        each = inner.pick(inner.is_real) or y
        collected = [inner.add("Neg", [each], each.shape)]
    body = _graph(inner, "body", list(map(info, (index, go, state))), list(map(info, (on, y, *collected))))
    trips = b.constant(b.rng.choice([0, 1, 2, 3]), INT64)
    result, rest = Value(b.name("loop"), x.dtype, x.shape, False), [b.name("all") for _ in collected]
    b.node("Loop", [trips, b.constant(True, BOOL), x], [result.name, *rest], body=body)
    b.values.append(result)
    b.ends += [
        helper.make_tensor_value_info(name, x.dtype, [None] * (1 + each.rank))
        for name, each in zip(rest, collected, strict=True)
    ]
    return result


@template(0.5)
def scan(b: Builder) -> Value | None:
    """A Scan along the first axis, which carries one slice and gives all of them."""
    x = b.pick(b.is_real, lambda v: v.rank > 1 and isinstance(v.shape[0], int) and v.shape[0] > 0)
    if x is None or b.depth > _DEEPEST:
        return None
    rest = x.shape[1:]
    if not all(isinstance(dim, int) for dim in rest):
        return None
    start = b.weights(*(int(dim) for dim in rest), dtype=x.dtype)
    state, piece = _state(b, x, rest), _state(b, x, rest)
    inner = _body(b, [state, piece])
    y = inner.add(b.rng.choice(["Add", "Max", "Sub"]), [state, piece], rest)
    each = inner.add(b.rng.choice(["Tanh", "Neg", "Relu"]), [y], rest)
    body = _graph(inner, "body", [info(state), info(piece)], [info(y), info(each)])
    last, every = Value(b.name("last"), x.dtype, rest, False), Value(b.name("scan"), x.dtype, x.shape, False)
    backwards = b.rng.randrange(2)
    b.node("Scan", [start, x], [last.name, every.name], body=body, num_scan_inputs=1, scan_input_directions=[backwards])
    b.values += [last, every]
    return every


@template(0.7)
def call(b: Builder) -> Value | None:
    """A call of a model-local function, which may call another one and have an attribute."""
    x = b.pick(b.is_real)
    if x is None:
        return None
    if not b.functions or b.chance(0.5):
        others = [function.name for function in b.functions]
        ops = [b.rng.choice(["Relu", "Neg", "Tanh", "Abs", *others[-1:]]) for _ in range(b.rng.randrange(1, 4))]
        names = ["x", *(f"v{at}" for at in range(len(ops)))]
        nodes = [
            helper.make_node(op, [names[at]], [names[at + 1]], domain="fuzz" if op in others else "")
            for at, op in enumerate(ops)
        ]
        attributes = []
        if x.dtype != BFLOAT and b.chance(0.4):
            leaky = helper.make_node("LeakyRelu", [names[-1]], ["leaky"])
            leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
            nodes.append(leaky)
            names.append("leaky")
            attributes = ["slope"]
        imports = [helper.make_opsetid("", b.opset), helper.make_opsetid("fuzz", 1)]
        b.functions.append(
            helper.make_function("fuzz", b.name("F"), ["x"], [names[-1]], nodes, imports, attributes=attributes)
        )
    plain = [function for function in b.functions if not function.attribute or x.dtype != BFLOAT]
    if not plain:
        return None
    chosen = b.rng.choice(plain)
    given = {name: b.rng.choice([0.1, 0.5]) for name in chosen.attribute}
    return b.add(chosen.name, [x], x.shape, domain="fuzz", **given)
