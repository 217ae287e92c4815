"""Common sub-expression elimination."""

from __future__ import annotations

import numpy as np
import pytest

from .pipelines import check, floats, optimize

X = {"x": floats(2, 3), "w": floats(2, 3, seed=1)}
HEAD = "agraph (float[2, 3] x, float[2, 3] w) => "


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Add (x, w)  b = Add (w, x)  y = Mul (a, b)", {"Add": 1, "Mul": 1}),
        ("a = Sub (x, w)  b = Sub (w, x)  y = Mul (a, b)", {"Sub": 2, "Mul": 1}),
        ("a = Max (x, w)  b = Max (w, x)  y = Mul (a, b)", {"Max": 2, "Mul": 1}),
        ("a = Exp (x) b = Exp (x) c = Neg (a) d = Neg (b) y = Add (c, d)", {"Exp": 1, "Neg": 1, "Add": 1}),
        ("a = LeakyRelu <alpha = 0.1> (x) b = LeakyRelu <alpha = 0.2> (x) y = Add (a, b)", {"LeakyRelu": 2, "Add": 1}),
        ("a = LeakyRelu <alpha = 0.01> (x) b = LeakyRelu (x) y = Add (a, b)", {"LeakyRelu": 1, "Add": 1}),
        ("a = Softmax <axis = -1> (x) b = Softmax (x) y = Add (a, b)", {"Softmax": 1, "Add": 1}),
        ("a = Clip (x, k) b = Clip (x, , k) y = Add (a, b)", {"Clip": 2, "Add": 1}),
    ],
)
def test_what_is_merged(body: str, left: dict[str, int]) -> None:
    assert check(f"{HEAD}(float[2, 3] y) <float k = {{0.5}}> {{ {body} }}", "cse,dce", X).ops == left


def test_equal_constants_are_equal_operands() -> None:
    done = check(
        HEAD
        + """(float[2, 3] y) <float[1] k = {2.0}, float[1] l = {2.0}, float[1] m = {-0.0}, float[1] n = {0.0}> {
            c = Constant <value = float[1] {2.0}> ()
            a = Mul (x, k) b = Mul (x, l) d = Mul (x, c) e = Mul (x, m) f = Mul (x, n)
            y = Sum (a, b, d, e, f)
        }""",
        "cse",
        X,
    )
    assert done.ops == {"Mul": 3, "Sum": 1}


def test_random_draws_and_unknown_operators_are_left_alone() -> None:
    done = optimize(
        '<ir_version: 10, opset_import: ["" : 21, "plugin" : 1]>'
        + HEAD
        + """(float[2, 3] y) {
            a = RandomNormalLike (x) b = RandomNormalLike (x)
            c = plugin.Sample (x) d = plugin.Sample (x)
            y = Sum (a, b, c, d)
        }""",
        "cse",
    )
    assert done.ops == {"RandomNormalLike": 2, "Sample": 2, "Sum": 1}


def test_dropout_is_merged_unless_it_may_drop() -> None:
    body = "a = Dropout (x, r, t) b = Dropout (x, r, t) y = Add (a, b)"
    done = check(f"{HEAD}(float[2, 3] y) <float r = {{0.5}}, bool t = {{0}}> {{ {body} }}", "cse", X)
    assert done.ops == {"Dropout": 1, "Add": 1}
    done = optimize(f"{HEAD}(float[2, 3] y) <float r = {{0.5}}, bool t = {{1}}> {{ {body} }}", "cse")
    assert done.ops == {"Dropout": 2, "Add": 1}


def test_outputs_keep_their_names() -> None:
    done = check(HEAD + "(float[2, 3] y, float[2, 3] z) { a = Exp (x) y = Exp (x) z = Neg (a) }", "cse", X)
    assert done.ops == {"Exp": 1, "Neg": 1}
    done = check(HEAD + "(float[2, 3] y, float[2, 3] z) { y = Exp (x) z = Exp (x) }", "fixpoint<8>(cse,dce)", X)
    assert done.ops == {"Exp": 2}
    done = check(HEAD + "(float[2, 3] y, float[2, 3] z) { y = Identity (x) z = Identity (x) }", "cse", X)
    assert done.ops == {"Identity": 2}


def test_what_is_read_beside_an_output_is_merged() -> None:
    body = "a, y = Split <axis = 1, num_outputs = 2> (x) b, z = Split <axis = 1, num_outputs = 2> (x) w = Add (a, b)"
    text = f"agraph (float[2, 4] x) => (float[2, 2] y, float[2, 2] z, float[2, 2] w) {{ {body} }}"
    done = check(text, "fixpoint<8>(cse,dce)", {"x": floats(2, 4)})
    assert done.ops == {"Split": 1, "Identity": 1, "Add": 1}


def test_an_outer_node_serves_inner_graphs_and_not_the_other_way() -> None:
    done = check(
        """agraph (float[2, 3] x, bool c) => (float[2, 3] y) {
            a = Exp (x)
            b = If (c) <
                then_branch = t () => (p) { u = Exp (x)  p = Neg (u) },
                else_branch = e () => (q) { v = Abs (x)  q = Neg (v) }
            >
            d = Abs (x)
            y = Sum (a, b, d)
        }""",
        "cse",
        {"x": X["x"], "c": np.array(True)},
    )
    assert done.ops == {"Exp": 1, "Abs": 2, "Neg": 2, "If": 1, "Sum": 1}


def test_nodes_with_equal_subgraphs_are_merged() -> None:
    branches = "then_branch = t{0} () => (p{0}) {{ u{0} = Exp (x)  p{0} = Neg (u{0}) }}, "
    branches += "else_branch = e{0} () => (q{0}) {{ q{0} = {1} (x) }}"
    text = """agraph (float[2, 3] x, bool c) => (float[2, 3] y) {{
        a = If (c) <{}>
        b = If (c) <{}>
        y = Add (a, b)
    }}"""
    feeds = {"x": X["x"], "c": np.array(True)}
    done = check(text.format(branches.format(1, "Abs"), branches.format(2, "Abs")), "cse", feeds)
    assert done.ops["If"] == 1
    done = check(text.format(branches.format(1, "Abs"), branches.format(2, "Sqrt")), "cse", feeds)
    assert done.ops["If"] == 2


def test_large_constants_are_told_apart_by_identity() -> None:
    x = {"x": floats(2, 300)}
    ones = ", ".join(["1.0"] * 300)
    twos = ", ".join(["2.0"] * 300)
    done = check(
        f"""agraph (float[2, 300] x) => (float[2, 300] y) <float[300] k = {{{ones}}}, float[300] l = {{{twos}}}> {{
            a = Mul (x, k) b = Mul (x, l) c = Mul (k, x) d = Add (a, b) y = Add (c, d)
        }}""",
        "cse",
        x,
    )
    assert done.ops == {"Mul": 2, "Add": 2}
