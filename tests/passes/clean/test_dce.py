"""Dead code elimination."""

from __future__ import annotations

import numpy as np

from .pipelines import check, floats, optimize

X = {"x": floats(2, 3)}


def test_nodes_initializers_functions_and_imports_go() -> None:
    done = check(
        """<ir_version: 10, opset_import: ["" : 21, "local" : 1, "com.microsoft" : 1]>
        agraph (float[2, 3] x) => (float[2, 3] y) <float k = {1.0}, float l = {2.0}> {
            a = Add (x, k)  b = local.f (a)  c = Exp (b)
            y = Mul (x, l)
        }
        <domain: "local", opset_import: ["" : 21]> f (a) => (b) { b = Abs (a) }
        """,
        "dce",
        X,
    )
    assert done.ops == {"Mul": 1}
    assert list(done.model.graph.initializers) == ["l"]
    assert not done.model.functions and done.model.graph.opset_imports == {"": 21}
    assert done.hits["dce"] == {"node": 3, "initializer": 1, "function": 1, "opset import": 2}


def test_dead_nodes_of_subgraphs_go_with_what_only_they_read() -> None:
    done = check(
        """agraph (float[2, 3] x, bool c) => (float[2, 3] y) {
            outer = Exp (x)
            y = If (c) <
                then_branch = t () => (p) { dead = Add (outer, outer)  p = Neg (x) },
                else_branch = e () => (q) { q = Abs (x) }
            >
        }""",
        "dce",
        {**X, "c": np.array(True)},
    )
    assert done.ops == {"If": 1, "Neg": 1, "Abs": 1}


def test_the_interface_stays() -> None:
    text = "agraph (float[2, 3] x, float[4] unused) => (float[2, 3] y) { y = Neg (x) }"
    done = check(text, "dce", {**X, "unused": floats(4)})
    assert [value.name for value in done.model.graph.inputs] == ["x", "unused"]


def test_initializers_that_are_inputs_stay() -> None:
    done = optimize("agraph (float[2, 3] x, float k = {1.0}) => (float[2, 3] y) { y = Neg (x) }", "dce")
    assert [value.name for value in done.model.graph.inputs] == ["x", "k"]
    assert list(done.model.graph.initializers) == ["k"]


def test_unused_optional_outputs_are_left_out() -> None:
    done = check(
        """agraph (float[2, 3] x) => (float[2, 3] y) <float[3] s = {1.0, 2.0, 3.0}> {
            a, mask = Dropout (x)
            y, mean, inverse = LayerNormalization (a, s)
        }""",
        "dce",
        X,
    )
    assert [len(node.outputs) for node in done.model.graph] == [1, 1]
    assert done.hits["dce"] == {"output": 3}


def test_a_used_output_keeps_its_place_when_those_before_it_are_left_out() -> None:
    w, r = ", ".join(["0.1"] * 24), ", ".join(["0.2"] * 36)
    done = check(
        f"""agraph (float[4, 1, 2] x) => (float[1, 1, 3] y)
            <float[1, 12, 2] w = {{{w}}}, float[1, 12, 3] r = {{{r}}}> {{
            all, last, cell = LSTM <hidden_size = 3> (x, w, r)
            y = Neg (cell)
        }}""",
        "dce",
        {"x": floats(4, 1, 2)},
    )
    assert [bool(value.name) for value in done.model.graph[0].outputs] == [False, False, True]


def test_positional_outputs_stay() -> None:
    done = check(
        "agraph (float[2, 3] x) => (float[2, 3] y) { a, b = Split <axis = 0, num_outputs = 2> (x)  y = Add (x, a) }",
        "dce",
        X,
    )
    assert len(done.model.graph[0].outputs) == 2
