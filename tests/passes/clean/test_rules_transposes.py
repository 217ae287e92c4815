"""Transposes that meet, directly and through elementwise operators."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.passes.clean.rules_transposes import compose, inverse, is_identity
from optc.passes.clean.simplify import Simplify

from .programs import program
from .rulecheck import check

CASES = [
    ("a = Transpose <perm = [0,1,2]> (x) y = Neg(a)", {"Neg": 1}),
    ("a = Transpose <perm = [1,2,0]> (x) b = Transpose <perm = [2,0,1]> (a) y = Neg(b)", {"Neg": 1}),
    ("a = Transpose <perm = [1,2,0]> (x) y = Transpose <perm = [1,2,0]> (a)", {"Transpose": 1}),
    ("a = Transpose(x) b = Transpose(a) y = Neg(b)", {"Neg": 1}),
    (
        "a = Transpose <perm = [0,2,1]> (x) b = Neg(a) c = Abs(b) y = Transpose <perm = [0,2,1]> (c)",
        {"Neg": 1, "Abs": 1},
    ),
    ("a = Transpose <perm = [0,2,1]> (x) b = Neg(a) y = Transpose <perm = [1,2,0]> (b)", {"Neg": 1, "Transpose": 1}),
    (
        "a = Transpose <perm = [0,2,1]> (x) b = Transpose <perm = [0,2,1]> (z) c = Add(a, b) "
        "y = Transpose <perm = [0,2,1]> (c)",
        {"Add": 1},
    ),
    # per-channel and scalar constants follow
    (
        "a = Transpose <perm = [1,2,0]> (x) b = Mul(a, k) c = Sub(one, b) y = Transpose <perm = [2,0,1]> (c)",
        {"Mul": 1, "Sub": 1},
    ),
    ("a = Transpose <perm = [1,2,0]> (x) b = Clip(a, one) y = Transpose <perm = [2,0,1]> (b)", {"Clip": 1}),
    # both operands transposed alike: one Transpose of the result
    ("a = Transpose <perm = [0,2,1]> (x) b = Transpose <perm = [0,2,1]> (z) y = Add(a, b)", {"Add": 1, "Transpose": 1}),
    (
        "a = Transpose <perm = [1,0,2]> (x) b = Transpose <perm = [1,0,2]> (z) y = Concat <axis = 0> (a, b)",
        {"Concat": 1, "Transpose": 1},
    ),
    # one operand is not transposed: it is now, instead of the other one and of the result
    (
        "a = Transpose <perm = [0,2,1]> (x) b = Add(a, z) y = Transpose <perm = [0,2,1]> (b)",
        {"Add": 1, "Transpose": 1},
    ),
    # refused: as many Transposes as before, another reader, other permutations
    (
        "a = Abs(x) b = Add(a, z) y = Transpose <perm = [0,2,1]> (b)",
        {"Abs": 1, "Add": 1, "Transpose": 1},
    ),
    (
        "a = Transpose <perm = [0,2,1]> (x) b = Add(a, z) c = Mul(z, b) y = Transpose <perm = [0,2,1]> (c)",
        {"Add": 1, "Mul": 1, "Transpose": 2},
    ),
    (
        "a = Transpose <perm = [0,2,1]> (x) b = Add(a, z) c = Abs(a) d = Transpose <perm = [0,2,1]> (b) y = Add(c, d)",
        {"Add": 2, "Abs": 1, "Transpose": 2},
    ),
    (
        "a = Transpose <perm = [0,2,1]> (x) b = Neg(a) c = Transpose <perm = [0,2,1]> (b) d = ReduceSum(b) "
        "y = Add(c, d)",
        {"Neg": 1, "Transpose": 2, "ReduceSum": 1, "Add": 1},
    ),
    (
        "a = Transpose <perm = [0,2,1]> (x) b = Transpose <perm = [2,1,0]> (z) y = Add(a, b)",
        {"Add": 1, "Transpose": 2},
    ),
]


@pytest.mark.parametrize(("body", "left"), CASES)
def test_rule(body, left):
    text = (
        f"g (float[N,N,N] x, float[N,N,N] z) => (float[A,B,C] y) <float one = {{1}}, float[2] k = {{2,3}}> {{ {body} }}"
    )
    outcome = check(text, Simplify(), sizes=(2, 1, 0))
    assert outcome.ops == left
    assert outcome.runs > 0


def test_permutations():
    perm = (2, 0, 3, 1)
    assert is_identity(compose(perm, inverse(perm)))
    assert compose((1, 2, 0), (1, 2, 0)) == (2, 0, 1)
    assert not is_identity((1, 0))


def test_layouts_are_followed_only_so_far():
    """A long chain of unary operators between two Transposes: left alone beyond the depth, never wrong."""
    body = "a0 = Transpose <perm = [1,0]> (x) " + " ".join(f"a{i + 1} = Neg(a{i})" for i in range(21))
    text = f"g (float[N,M] x) => (float[A,B] y) {{ {body} y = Transpose <perm = [1,0]> (a21) }}"
    assert check(text, Simplify(skip=("involution",))).ops["Neg"] == 21


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_random_programs(data):
    check(program(data.draw, "transposes"), Simplify(), sizes=(5, 2, 1))


@pytest.mark.parametrize(
    ("between", "result", "left"),
    [
        ("b = Softmax <axis = 1> (a)", "float[N, 3, 2]", {"Softmax": 1}),
        ("b = ReduceMean <axes = [1], keepdims = 1> (a)", "float[N, 3, 1]", {"ReduceMean": 1}),
        ("b = ReduceSum (a, two)", "float[N, 1, 2]", {"ReduceSum": 1}),
        ("b = Slice (a, one, end, two)", "float[N, 2, 2]", {"Slice": 1}),
        (
            "c = Exp (a) d = Softmax <axis = -2> (c) b = Sub (d, k)",
            "float[N, 3, 2]",
            {"Exp": 1, "Softmax": 1, "Sub": 1},
        ),
    ],
)
def test_axes_that_are_worked_along_move(between, result, left):
    text = f"""g (float[N, 3, 2] x) => ({result} y) <int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] end = {{9}},
        float[2, 1] k = {{1, 2}}>
        {{ a = Transpose <perm = [0, 2, 1]> (x) {between} y = Transpose <perm = [0, 2, 1]> (b) }}"""
    outcome = check(text, Simplify())
    assert outcome.ops == left


@pytest.mark.parametrize("between", ["b = Softmax <axis = -1> (a)", "b = ReduceMax <axes = [2], keepdims = 0> (a)"])
def test_operators_that_transposes_do_not_pass(between):
    end = "y = Transpose <perm = [0, 2, 1]> (b)" if "Softmax" in between else "y = Transpose <perm = [1, 0]> (b)"
    result = "float[N, 3, 2]" if "Softmax" in between else "float[K, M]"
    text = f"g (float[N, 3, 2] x) => ({result} y) {{ a = Transpose <perm = [0, 2, 1]> (x) {between} {end} }}"
    assert check(text, Simplify()).ops["Transpose"] == 2
