"""Code moves out of loops where that cannot be noticed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import optc
from optc.backends.ort import Session
from optc.ir.model import load

LOOP = """
<ir_version: 9, opset_import: ["": 18]>
g (int64 trips, float[4,4] x, float[4,4] a, int64 at) => (float[4,4] y)
<float[4,4] w, bool go = {{1}}>
{{
   y = Loop (trips, go, x) <body = body (int64 i, bool on, float[4,4] state) => (bool more, float[4,4] next) {{
      more = Identity (on)
      {lines}
   }}>
}}
"""
TOTAL = """fixed = MatMul (a, a)
      squashed = Tanh (fixed)
      step = MatMul (state, squashed)
      next = Add (step, a)"""
MAY_FAIL = """row = Gather <axis = 0> (a, at)
      next = Add (state, row)"""


def model(lines: str, trips: int | None = None) -> onnx.ModelProto:
    made = onnx.parser.parse_model(LOOP.format(lines=lines))
    for info in list(made.graph.value_info):
        if info.name == "w":
            array = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
            made.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    if trips is not None:
        del made.graph.input[0]
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.int64(trips), "trips"))
    return made


def bodies(result: onnx.ModelProto) -> list[list[str]]:
    """The operators in the body of every loop, outer ones first."""
    found: list[list[str]] = []

    def visit(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    found.append([inner.op_type for inner in attribute.g.node if inner.op_type != "Constant"])
                    visit(attribute.g)

    visit(result.graph)
    return found


def run(proto: onnx.ModelProto, **feeds: object) -> np.ndarray:
    session = Session(load(proto), optimization="off")
    known = {spec.name for spec in session.inputs}
    return session.run({name: np.asarray(value) for name, value in feeds.items() if name in known})["y"]


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=(4, 4)).astype(np.float32) * 0.3 for name in "xa"} | {"at": np.int64(2)}


@pytest.mark.parametrize("trips", [0, 1, 3])
def test_what_cannot_fail_leaves_even_a_loop_that_may_not_run(trips: int, feeds: dict[str, np.ndarray]) -> None:
    given = model(TOTAL)
    result = optc.optimize(given, level=1)
    assert bodies(result) == [["Identity", "MatMul", "Add"]]
    assert [node.op_type for node in result.graph.node] == ["MatMul", "Tanh", "Loop"]
    np.testing.assert_allclose(
        run(result, trips=np.int64(trips), **feeds), run(given, trips=np.int64(trips), **feeds), rtol=1e-6
    )


def test_what_may_fail_stays_in_a_loop_that_may_not_run(feeds: dict[str, np.ndarray]) -> None:
    given = model(MAY_FAIL)
    result = optc.optimize(given, level=1)
    assert bodies(result) == [["Identity", "Gather", "Add"]]
    feeds["at"] = np.int64(99)  # out of bounds, and never read
    np.testing.assert_array_equal(run(result, trips=np.int64(0), **feeds), feeds["x"])


def test_what_may_fail_leaves_a_loop_that_runs(feeds: dict[str, np.ndarray]) -> None:
    given = model(MAY_FAIL, trips=3)
    result = optc.optimize(given, level=1)
    assert bodies(result) == [["Identity", "Add"]]
    np.testing.assert_allclose(run(result, **feeds), run(given, **feeds), rtol=1e-6)


def test_constants_of_the_body_and_further_nodes_follow(feeds: dict[str, np.ndarray]) -> None:
    lines = """half = Constant <value = float {0.5}> ()
      scaled = Mul (a, half)
      turned = Transpose <perm = [1,0]> (scaled)
      next = MatMul (state, turned)"""
    given = model(lines)
    result = optc.optimize(given, level=1)
    assert bodies(result) == [["Identity", "MatMul"]]
    np.testing.assert_allclose(
        run(result, trips=np.int64(2), **feeds), run(given, trips=np.int64(2), **feeds), rtol=1e-6
    )


def test_random_draws_and_results_of_the_body_stay() -> None:
    lines = """noise = RandomNormal <shape = [4,4]> ()
      drawn = Add (state, noise)
      next = Mul (drawn, a)"""
    assert bodies(optc.optimize(model(lines, trips=2), level=1)) == [["Identity", "RandomNormal", "Add", "Mul"]]
    assert bodies(optc.optimize(model("next = Tanh (a)", trips=2), level=1)) == [["Identity", "Tanh"]]


def test_it_leaves_both_of_two_nested_loops(feeds: dict[str, np.ndarray]) -> None:
    lines = """count = Constant <value = int64 {2}> ()
      yes = Constant <value = bool {1}> ()
      next = Loop (count, yes, state) <body = inner (int64 j, bool go_on, float[4,4] s) => (bool again, float[4,4] t) {
         again = Identity (go_on)
         fixed = Tanh (a)
         half = Mul (state, fixed)
         t = Add (s, half)
      }>"""
    given = model(lines, trips=2)
    result = optc.optimize(given, level=1)
    assert bodies(result) == [["Identity", "Mul", "Loop"], ["Identity", "Add"]]
    np.testing.assert_allclose(run(result, **feeds), run(given, **feeds), rtol=1e-6)


def test_a_scan(feeds: dict[str, np.ndarray]) -> None:
    text = """
    <ir_version: 9, opset_import: ["": 18]>
    g (float[4,4] x, float[4,4] a) => (float[4,4] y)
    {
       y = Scan <num_scan_inputs = 1, body = body (float[4] row) => (float[4] out) {
          fixed = Sigmoid (a)
          out = MatMul (row, fixed)
       }> (x)
    }
    """
    given = onnx.parser.parse_model(text)
    result = optc.optimize(given, level=1)
    assert bodies(result) == [["MatMul"]]
    np.testing.assert_allclose(run(result, **feeds), run(given, **feeds), rtol=1e-6)
