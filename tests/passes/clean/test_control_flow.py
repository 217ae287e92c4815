"""Control flow whose course is known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from .pipelines import check, floats

X = {"x": floats(2, 3)}


@pytest.mark.parametrize("value", [0, 1])
def test_an_if_with_a_constant_condition_becomes_its_branch(value: int) -> None:
    branches = """
        then_branch = t{0} () => (p{0}) {{ u{0} = Exp (x)  p{0} = Add (u{0}, x) }},
        else_branch = e{0} () => (q{0}) {{ u{0} = Neg (x)  q{0} = Mul (u{0}, x) }}"""
    done = check(
        f"""agraph (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) <bool c = {{{value}}}> {{
            a = If (c) <{branches.format(0)}>
            y = If (c) <{branches.format(1)}>
            z = Neg (a)
        }}""",
        "control-flow",
        X,
    )
    assert done.ops == ({"Exp": 2, "Add": 2, "Neg": 1} if value else {"Neg": 3, "Mul": 2})


def test_a_condition_that_is_known_without_being_constant() -> None:
    done = check(
        """agraph (float[2, 3] x) => (float[2, 3] y) <int64 two = {2}, int64 axis = {0}> {
            shape = Shape (x)
            rows = Gather <axis = 0> (shape, axis)
            c = Equal (rows, two)
            y = If (c) <then_branch = t () => (p) { p = Exp (x) }, else_branch = e () => (q) { q = Neg (x) }>
        }""",
        "control-flow,dce",
        X,
    )
    assert done.ops == {"Exp": 1}


def test_nested_ifs_and_captured_values() -> None:
    done = check(
        """agraph (float[2, 3] x, bool d) => (float[2, 3] y) <bool c = {1}> {
            outer = Abs (x)
            y = If (d) <
                then_branch = t () => (p) {
                    m = Exp (outer)
                    p = If (c) <
                        then_branch = tt () => (r) { r = Add (m, outer) },
                        else_branch = te () => (s) { s = Sub (m, outer) }
                    >
                },
                else_branch = e () => (q) { q = Neg (outer) }
            >
        }""",
        "control-flow",
        {**X, "d": np.array(True)},
    )
    assert done.ops == {"Abs": 1, "If": 1, "Exp": 1, "Add": 1, "Neg": 1}


def test_an_inner_if_that_outlives_its_branch() -> None:
    done = check(
        """agraph (float[2, 3] x, bool d) => (float[2, 3] y) <bool c = {1}> {
            y = If (c) <
                then_branch = t () => (p) {
                    p = If (d) <
                        then_branch = tt () => (r) { k = Exp (x)  r = Add (k, x) },
                        else_branch = te () => (s) { k = Neg (x)  s = Sub (k, x) }
                    >
                },
                else_branch = e () => (q) { q = Neg (x) }
            >
        }""",
        "control-flow",
        {**X, "d": np.array(False)},
    )
    assert done.ops["If"] == 1


def test_an_if_with_equal_branches() -> None:
    text = """agraph (float[2, 3] x, bool c) => (float[2, 3] y) {{
        y = If (c) <
            then_branch = t () => (p) {{ u = Exp (x)  p = Add (u, x) }},
            else_branch = e () => (q) {{ v = Exp (x)  q = {} (v, x) }}
        >
    }}"""
    feeds = {**X, "c": np.array(False)}
    assert check(text.format("Add"), "control-flow", feeds).ops == {"Exp": 1, "Add": 1}
    assert check(text.format("Sub"), "control-flow", feeds).ops["If"] == 1


def test_branches_with_initializers_of_one_name() -> None:
    branches = {}
    for name, value in (("then_branch", 2.0), ("else_branch", 3.0)):
        out = [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [2, 3])]
        weight = numpy_helper.from_array(np.array(value, np.float32), "k")
        node = helper.make_node("Mul", ["x", "k"], [f"{name}_out"])
        branches[name] = helper.make_graph([node], name, [], out, [weight])
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], **branches)],
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(np.array(False), "c")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert check(proto, "control-flow", X).ops == {"Mul": 1}


# loops ------------------------------------------------------------------------------------------------------------


def loop(trips: str, condition: str, goes_on: str = "co = Identity (ci)", inputs: str = "") -> str:
    return f"""agraph (float[2, 3] x{inputs}) => (float[2, 3] y, float[k, 2, 3] z)
        <int64 zero = {{0}}, int64 one = {{1}}, int64 five = {{5}},
         bool yes = {{1}}, bool no = {{0}}, float two = {{2.0}}>
    {{
        a = Exp (x)
        y, z = Loop ({trips}, {condition}, a) <
            body = b (int64 i, bool ci, float[2, 3] s) => (bool co, float[2, 3] so, float[2, 3] scan) {{
                {goes_on}
                f = Cast <to = 1> (i)
                g = Add (f, s)
                so = Mul (g, two)
                scan = Add (s, x)
            }}
        >
    }}"""


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        (loop("zero", "yes"), 0),
        (loop("five", "no"), 0),
        (loop("zero", ""), 0),
        (loop("one", "yes"), 0),
        (loop("one", ""), 0),
        (loop("five", "yes", "co = Identity (no)"), 0),
        (loop("five", "yes", "co = Constant <value = bool {0}> ()"), 0),
        (loop("", "yes", "co = Constant <value = bool {0}> ()"), 0),
        (loop("five", "yes"), 1),
    ],
)
def test_a_loop_that_runs_never_or_once(text: str, loops: int) -> None:
    done = check(text, "control-flow", X)
    assert done.ops["Loop"] == loops


def test_a_loop_that_may_stop_or_not_stays() -> None:
    done = check(loop("one", "c", inputs=", bool c"), "control-flow", {**X, "c": np.array(True)})
    assert done.ops["Loop"] == 1
    done = check(loop("n", "yes", inputs=", int64 n"), "control-flow", {**X, "n": np.array(2)})
    assert done.ops["Loop"] == 1


def test_a_loop_that_hands_its_state_on() -> None:
    done = check(
        """agraph (float[2, 3] x, float[2, 3] w) => (float[2, 3] y, float[2, 3] z) <int64 one = {1}, bool yes = {1}> {
            y, z = Loop (one, yes, x, w) <
                body = b (int64 i, bool c, float[2, 3] s, float[2, 3] r) => (bool co, float[2, 3] so, float[2, 3] ro) {
                    co = Identity (c)
                    so = Identity (r)
                    ro = Identity (s)
                }
            >
        }""",
        "control-flow",
        {**X, "w": floats(2, 3, seed=1)},
    )
    assert "Loop" not in done.ops


# scans ------------------------------------------------------------------------------------------------------------


def scan(length: int, axis: int, out_axis: int) -> onnx.ModelProto:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["s", "e"], ["so"]),
            helper.make_node("Mul", ["so", "e"], ["eo"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("s", "e")],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("so", "eo")],
    )
    shape = [length, 2] if axis == 0 else [2, length]
    node = helper.make_node(
        "Scan",
        ["x", "w"],
        ["y", "z"],
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[axis],
        scan_output_axes=[out_axis],
    )
    graph = helper.make_graph(
        [node],
        "main",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, shape),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, None),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(("axis", "out_axis"), [(0, 0), (1, 1), (1, 0), (-1, 1)])
def test_a_scan_over_one_element(axis: int, out_axis: int) -> None:
    for length, scans in ((1, 0), (3, 1)):
        shape = (length, 2) if axis == 0 else (2, length)
        feeds = {"x": floats(2), "w": floats(*shape, seed=1)}
        assert check(scan(length, axis, out_axis), "control-flow", feeds).ops["Scan"] == scans
