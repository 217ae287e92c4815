"""The shapes pass: rules on single nodes, equal contents, rebuilding, and random shape programs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.ir.dims import symbol
from optc.ir.ops import reshape_target
from optc.passes.clean.shapes import Shapes
from optc.passes.clean.simplify import Simplify

from .programs import program
from .rulecheck import check

_N, _M, _P = symbol("N"), symbol("M"), symbol("P")


# targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "wanted", "nonzero", "target"),
    [
        ((_N, _M, 12), (_N, _M, 3, 4), (), (0, 0, 3, 4)),
        ((_N, _M, 12), (_N * _M, 12), (), (-1, 12)),
        ((_N, 12), (3, _N, 4), (), (3, -1, 4)),
        ((_N, 12), (_N, 12), (), (0, 12)),
        ((_N, _M), (), (), ()),
        ((_N + 1, _M), (_N + 1, 1, _M), (), (0, 1, -1)),
        # M would be inferred beside N, which may be 0
        ((_N, 12, _M), (_N, _M, 12), (), None),
        ((_N, 12, _M), (_N, _M, 12), (_N,), (0, -1, 12)),
        ((_N, _M), (_M, _N), (), None),
        # 0 is no integer that a target can hold, but it may be copied or inferred
        ((0, _N), (0, _N, 1), (), (0, 0, 1)),
        ((_N, 0), (0, 3), (), (-1, 3)),
    ],
)
def test_reshape_targets(source, wanted, nonzero, target):
    assert reshape_target(source, wanted, nonzero) == target


def _heads(opset: int) -> str:
    """The reshape to attention heads and back as TorchScript writes it."""

    def dim(name: str, source: str, index: int) -> str:
        axes = "<axes = [0]> (g_%s)" if opset < 13 else "(g_%s, zero)"
        return (
            f"s_{name} = Shape({source}) g_{name} = Gather <axis = 0> (s_{name}, i{index}) "
            f"{name} = Unsqueeze {axes % name} "
        )

    return (
        "g (float[N,M,12] x) => (float[A,B,C] y) <int64[1] zero = {0}, int64 i0 = {0}, int64 i1 = {1}, "
        "int64[1] four = {4}, int64[1] minus = {-1}> { "
        + dim("b", "x", 0)
        + dim("l", "x", 1)
        + "t = Concat <axis = 0> (b, l, four, minus) h = Reshape(x, t) r = Relu(h) "
        + dim("c", "r", 0)
        + dim("m", "r", 1)
        + "u = Concat <axis = 0> (c, m, minus) y = Reshape(r, u) }"
    )


@pytest.mark.parametrize("opset", [9, 11, 13, 14, 17, 21])
def test_shape_chains_of_reshapes_die(opset):
    outcome = check(_heads(opset), Shapes(), opset=opset)
    assert outcome.ops == {"Reshape": 2, "Relu": 1}
    assert outcome.runs > 8


def test_an_unknown_target_stays():
    text = "g (float[N,M] x, int64[2] t) => (float[A,B] y) { y = Reshape(x, t) }"
    feeds = [{"x": np.ones((2, 3), np.float32), "t": np.array(t)} for t in ([3, 2], [-1, 1], [0, 3], [6, 1])]
    assert check(text, Shapes(), feeds=feeds).ops == {"Reshape": 1}


def test_allowzero_is_not_mistaken_for_a_copy():
    text = """g (float[N,M] x) => (float[A,B] y) {
        s = Shape(x) y = Reshape <allowzero = 1> (x, s)
    }"""
    assert check(text, Shapes()).ops == {"Identity": 1}


# nodes that do nothing --------------------------------------------------------------------------------------------

_CONSTANTS = (
    "<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] far = {9223372036854775807}, "
    "int64[2] ones = {1,1}, int64[4] none = {0,0,0,0}, int64[4] back = {-1,0,1,0}, int64[1] minus = {-1}, "
    "float[2] unit = {1,1}, float[2] double = {2,1}, int64[2] ends = {3,9}, int64[2] zeros = {0,0}, "
    "int64[2] both = {0,1}, int64[2] keep = {0,-1}>"
)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("s = Shape(x) a = Reshape(x, s) y = Neg(a)", {"Neg": 1}),
        ("s = Shape(x) a = Expand(x, s) y = Neg(a)", {"Neg": 1}),
        ("a = Expand(x, ones) y = Neg(a)", {"Neg": 1}),
        ("a = Tile(x, ones) y = Neg(a)", {"Neg": 1}),
        ("a = Flatten <axis = 1> (x) y = Neg(a)", {"Neg": 1}),
        ("a = Reshape(x, keep) y = Neg(a)", {"Neg": 1}),
        ("a = Slice(x, zero, far, one) y = Neg(a)", {"Neg": 1}),
        ("s = Shape <start = 0, end = 1> (x) a = Slice(x, zero, s, zero) y = Neg(a)", {"Neg": 1}),
        ("a = Slice(x, zeros, ends, both) y = Neg(a)", {"Slice": 1, "Neg": 1}),
        ("a = Slice(x, minus, far, one, minus) y = Neg(a)", {"Slice": 1, "Neg": 1}),
        (
            "s = Shape <start = 0, end = 1> (x) a = Slice(x, one, s, zero) y = Neg(a)",
            {"Shape": 1, "Slice": 1, "Neg": 1},
        ),
        ("a = Pad(x, none) y = Neg(a)", {"Neg": 1}),
        ("a = Pad(x, back) y = Neg(a)", {"Pad": 1, "Neg": 1}),
        ("a = Resize(x, , unit) y = Neg(a)", {"Neg": 1}),
        ("s = Shape(x) a = Resize(x, , , s) y = Neg(a)", {"Neg": 1}),
        ("a = Resize(x, , double) y = Neg(a)", {"Resize": 1, "Neg": 1}),
    ],
)
def test_what_does_nothing_goes(body, left):
    outcome = check(f"g (float[N,3] x) => (float[A,B] y) {_CONSTANTS} {{ {body} }}", Shapes())
    assert outcome.ops == left
    assert outcome.runs > 0


def test_the_full_axes_of_a_slice_are_not_named():
    text = f"g (float[N,3] x) => (float[A,B] y) {_CONSTANTS} {{ y = Slice(x, both, ends, both) }}"
    text = text.replace("int64[2] ends = {3,9}", "int64[2] ends = {9223372036854775807,9}")
    assert check(text, Shapes()).hits == {"full-axes-of-slice": 1}


def test_a_slice_up_to_another_dim_stays():
    text = """g (float[N,3] x, float[M,3] z) => (float[A,B] y) <int64[1] zero = {0}> {
        s = Shape <start = 0, end = 1> (z) y = Slice(x, zero, s, zero)
    }"""
    assert check(text, Shapes()).ops["Slice"] == 1


# expands ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("s = Shape(z) a = Expand(x, s) y = Add(a, z)", {"Add": 1}),
        ("s = Shape(z) a = Expand(x, s) b = Add(a, z) y = Mul(b, a)", {"Add": 1, "Mul": 1}),
        ("s = Shape(z) a = ConstantOfShape(s) y = Max(z, a)", {"Max": 1}),
        # a reader that needs the shape, or no other operand that brings it
        (
            "s = Shape(z) a = Expand(x, s) b = Add(a, z) y = Concat <axis = 0> (b, a)",
            {"Shape": 1, "Expand": 1, "Add": 1, "Concat": 1},
        ),
        ("s = Shape(z) a = Expand(x, s) y = Add(a, x)", {"Shape": 1, "Expand": 1, "Add": 1}),
        ("s = Shape(z) a = Expand(x, s) y = Add(a, a)", {"Shape": 1, "Expand": 1, "Add": 1}),
        ("s = Shape(z) a = Expand(x, s) y = MatMul(a, z)", {"Shape": 1, "Expand": 1, "MatMul": 1}),
        ("s = Shape(w) a = Expand(z, s) y = Add(a, z)", {"Shape": 1, "Expand": 1, "Add": 1}),
    ],
)  # fmt: skip
def test_expands_that_broadcasting_makes_up_for(body, left):
    text = f"g (float[1,M] x, float[M,M] z, float[N,M] w) => (float[A,B] y) {{ {body} }}"
    outcome = check(text, Shapes())
    assert outcome.ops == left
    assert outcome.runs > 0


# equal contents and rebuilding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 13, 15, 18])
def test_one_target_for_all_tensors(opset):
    """Targets that no constant can say, computed from three tensors: one computation, from the input."""

    def target(index: int, source: str) -> str:
        axes = "<axes = [0]> (%s)" if opset < 13 else "(%s, zero)"
        parts = [
            f"d{index}{axis} = Gather <axis = 0> (s{index}, i{axis}) u{index}{axis} = Unsqueeze "
            + axes % f"d{index}{axis}"
            for axis in (0, 1)
        ]
        return f"s{index} = Shape({source}) {' '.join(parts)} t{index} = Concat <axis = 0> (u{index}1, u{index}0, six) "

    text = (
        "g (float[N,M,6] x) => (float[A,B,C] y) "
        "<int64[1] zero = {0}, int64 i0 = {0}, int64 i1 = {1}, int64[1] six = {6}> { "
        + "a0 = Neg(x) " + target(0, "a0") + "b0 = Reshape(x, t0) "
        + "a1 = Abs(x) " + target(1, "a1") + "b1 = Reshape(a1, t1) "
        + "a2 = Relu(x) " + target(2, "a2") + "b2 = Reshape(a2, t2) "
        + "c = Add(b0, b1) d = Add(b2, c) e = Reshape(a0, t0) y = Add(d, e) }"
    )  # fmt: skip
    outcome = check(text, Shapes(), opset=opset)
    dims = {"Shape": 2} if opset >= 15 else {"Shape": 1, "Gather": 2}
    assert outcome.ops == {"Reshape": 4, "Add": 3, "Neg": 1, "Abs": 1, "Relu": 1, "Concat": 1, **dims}


def test_arithmetic_on_dims_is_rebuilt_from_inputs():
    text = """g (float[N,M,6] x) => (float[A,B] y)
        <int64 i0 = {0}, int64 i1 = {1}, int64[1] zero = {0}, int64[1] three = {3}> {
        a = Neg(x) s = Shape(a) d = Gather <axis = 0> (s, i0) e = Gather <axis = 0> (s, i1)
        f = Mul(d, e) b = Unsqueeze(f, zero) t = Concat <axis = 0> (b, three) y = ConstantOfShape(t)
    }"""
    outcome = check(text, Shapes())
    assert outcome.ops == {"Shape": 2, "Mul": 1, "Concat": 1, "ConstantOfShape": 1}
    assert "a" not in {name for node in outcome.model.graph.node for name in node.output}


def test_scalars_and_int32_are_rebuilt_too():
    text = """g (float[N,M] x) => (int32[A] y) <int64 i1 = {1}, int32 a = {0}, int32 b = {1}> {
        z = Neg(x) s = Shape(z) d = Gather <axis = 0> (s, i1) e = Cast <to = 6> (d) y = Range(a, e, b)
    }"""
    outcome = check(text, Shapes())
    assert outcome.ops == {"Shape": 1, "Squeeze": 1, "Cast": 1, "Range": 1}


def test_shapes_inside_sub_graphs_are_read_where_they_can_be():
    text = """g (float[N,M] x, bool c) => (float[A,B] y) <int64 i0 = {0}, int64 i1 = {1}, int64[1] zero = {0}> {
        y = If(c) <
            then_branch = t () => (float[P,Q] u) {
                a = Neg(x) s = Shape(a) d = Gather <axis = 0> (s, i1) e = Unsqueeze(d, zero)
                f = Gather <axis = 0> (s, i0) k = Unsqueeze(f, zero) t = Concat <axis = 0> (e, k)
                u = Reshape(a, t)
            },
            else_branch = e () => (float[P,Q] v) { v = Identity(x) }
        >
    }"""
    outcome = check(text, Shapes())
    assert outcome.ops == {"If": 1, "Neg": 1, "Shape": 2, "Concat": 1, "Reshape": 1, "Identity": 1}


def test_a_shape_that_is_an_output_keeps_its_name():
    text = "g (float[N,M] x) => (int64[2] y, int64[2] z) { y = Shape(x) a = Neg(x) z = Shape(a) }"
    outcome = check(text, Shapes())
    assert [info.name for info in outcome.model.graph.output] == ["y", "z"]


def test_dims_handed_over_as_contents_are_sources():
    text = """g (float[N,1] x, float[1] z, int64[1] t) => (float[A,B] y, float[C] w)
        <int64[1] four = {4}, int64 i = {0}, int64[1] zero = {0}> {
        both = Concat <axis = 0> (four, t) y = Expand(x, both)
        back = Concat <axis = 0> (t, four) d = Gather <axis = 0> (back, i) e = Unsqueeze(d, zero) w = Expand(z, e)
    }"""
    feeds = [
        {"x": np.ones((1, 1), np.float32), "z": np.ones(1, np.float32), "t": np.array([size])} for size in (3, 1, 0)
    ]
    outcome = check(text, Shapes(), feeds=feeds)
    assert outcome.ops == {"Concat": 1, "Expand": 2}
    assert outcome.runs == 3


# random -----------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_random_shape_programs(data):
    check(program(data.draw, "shapes", steps=7), Shapes(), sizes=(5, 3, 1))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_random_shape_programs_on_empty_tensors(data):
    check(program(data.draw, "empty-shapes", steps=6), Shapes(), sizes=(0, 5, 1))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_programs_of_all_families(data):
    model = program(data.draw, "all", steps=10)
    simplified = check(model, Simplify(), sizes=(5, 2, 1))
    check(simplified.model, Shapes(), sizes=(5, 2, 1))
