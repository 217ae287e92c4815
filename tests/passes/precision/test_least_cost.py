"""Casts are where they cost least: small graphs against all their divisions, and counted after they were written."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.ir.model import load
from optc.ir.rewriter import Rewriter
from optc.ir.saving import to_proto
from optc.passes.precision.plan import Plan, Planner
from optc.passes.precision.write import write
from tests.passes.precision.plans import casts, planner

_OPS = ("MatMul", "Add", "Relu", "Exp", "Transpose", "Identity")


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A graph of a few operators, some of which stay; values are read by several."""
    values, lines = ["x"], []
    for index in range(draw(st.integers(2, 7))):
        op, name = draw(st.sampled_from(_OPS)), f"v{index}"
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        operands = {"MatMul": f"{a}, w", "Add": f"{a}, {b}"}.get(op, a)
        lines.append(f"{name} = {op} ({operands})")
        values.append(name)
    outputs = {values[-1], draw(st.sampled_from(values[1:]))}
    results = ", ".join(f"float[N,N] {name}" for name in sorted(outputs))
    text = f"""<ir_version: 8, opset_import: ["": 17]> g (float[N,N] x) => ({results}) {{ {"  ".join(lines)} }}"""
    model = onnx.parser.parse_model(text)
    for value in (model.graph.input[0], *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = 32
    weight = np.random.default_rng(0).normal(0, 0.1, (32, 32)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return model


def cost(made: Planner, low: frozenset[onnx_ir.Node]) -> float:
    """What a division costs, by its definition."""
    slots = made._slots
    total = sum(made.costs.gain(node, slots[node]) for node in slots if node not in low)
    values = [made.graph.inputs[0], *(node.outputs[0] for node in made.graph)]
    return total + sum(made.costs.cast(value) * len(needed(value, low)) for value in values)


def needed(value: onnx_ir.Value, low: frozenset[onnx_ir.Node]) -> set[bool]:
    """The types (narrow or not) in which a value is read and not made."""
    read = {use.node in low for use in value.uses()} | ({False} if value.is_graph_output() else set())
    return read - {value.producer() in low}


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_no_other_plan_costs_less_and_each_value_is_cast_once(proto):
    model = load(proto)
    rewriter = Rewriter(model)
    made = planner(model, rewriter=rewriter)
    plan = made.plan()
    every = itertools.chain.from_iterable(
        itertools.combinations(made.candidates, size) for size in range(len(made.candidates) + 1)
    )
    least = min(cost(made, frozenset(low)) for low in every)
    low = frozenset(plan.slots)
    assert cost(made, low) == pytest.approx(least, rel=1e-9)
    expected = sum(len(needed(v, low)) for v in [model.graph.inputs[0], *(n.outputs[0] for n in model.graph)])
    write(rewriter, plan)
    assert casts(model) == expected
    onnx.checker.check_model(to_proto(model), full_check=True)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("y = MatMul (x, w)", 2),
        ("a = MatMul (x, w)  b = Relu (a)  y = MatMul (b, w)", 2),
        ("a = MatMul (x, w)  b = MatMul (x, w)  y = Add (a, b)", 2),
        ("a = MatMul (x, w)  b = Exp (a)  y = MatMul (b, w)", 4),
        ("a = MatMul (x, w)  b = Exp (a)  c = Transpose (b)  d = Exp (c)  y = MatMul (d, w)", 4),
        ("a = MatMul (x, w)  b = Exp (a)  c = Add (a, b)  y = MatMul (c, w)", 4),
        ("a = Exp (x)  y = Relu (a)", 0),
    ],
)
def test_casts_of_small_graphs(body: str, count: int):
    signature = "(float[32,32] x) => (float[32,32] y)"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {signature} {{ {body} }}')
    weight = np.random.default_rng(0).normal(0, 0.1, (32, 32)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model = load(proto)
    rewriter = Rewriter(model)
    plan: Plan = planner(model, rewriter=rewriter).plan()
    write(rewriter, plan)
    assert casts(model) == count
