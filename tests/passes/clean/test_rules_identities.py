"""Identities: each rule where it must fire, where it must not, and random programs of elementwise operators."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.passes.clean.simplify import Simplify

from .programs import program
from .rulecheck import check

#: rule, graph, whether it fires; optionally the opset
CASES = [
    ("identity", "g (float[N] x) => (float[N] y) { a = Identity(x) y = Neg(a) }", True),
    ("identity", "g (float[N] x) => (float[N] y) { y = Identity(x) }", False),
    ("dropout", "g (float[N] x) => (float[N] y) { a = Dropout(x) y = Neg(a) }", True),
    ("dropout", "g (float[N] x) => (float[N] y) { a, m = Dropout <ratio: float = 0.3> (x) y = Neg(a) }", True, 10),
    ("dropout", "g (float[N] x) => (float[N] y, bool[N] m) { a, m = Dropout(x) y = Neg(a) }", False),
    (
        "dropout",
        "g (float[N] x, bool t) => (float[N] y) <float r = {0.0}> { a = Dropout(x, r, t) y = Neg(a) }",
        False,
    ),
    ("neutral-operand", "g (float[N,3] x) => (float[N,3] y) <float z = {0.0}> { a = Add(x, z) y = Neg(a) }", True),
    ("neutral-operand", "g (float[N,3] x) => (float[N,3] y) <float[3] z = {0,0,0}> { a = Add(z, x) y = Neg(a) }", True),
    ("neutral-operand", "g (float[N,3] x) => (float[N,3] y) <float[1,1] z = {0}> { a = Sub(x, z) y = Neg(a) }", True),
    ("neutral-operand", "g (float[N,3] x) => (float[N,3] y) <float z = {0.0}> { a = Sub(z, x) y = Neg(a) }", False),
    ("neutral-operand", "g (float[N] x) => (float[A,N] y) <float[1,1] z = {0}> { a = Add(x, z) y = Neg(a) }", False),
    ("neutral-operand", "g (float[N] x) => (float[A] y) <float[3] z = {0,0,0}> { a = Add(x, z) y = Neg(a) }", False),
    ("neutral-operand", "g (float[N] x) => (float[N] y) <float[1] z = {1}> { a = Mul(x, z) y = Neg(a) }", True),
    ("neutral-operand", "g (float[N] x) => (float[N] y) <float[1] z = {0}> { a = Mul(x, z) y = Neg(a) }", False),
    ("neutral-operand", "g (int32[N] x) => (int32[N] y) <int32 z = {1}> { a = Div(x, z) y = Neg(a) }", True),
    ("neutral-operand", "g (float[N] x) => (float[N] y) <float z = {1.0}> { a = Div(z, x) y = Neg(a) }", False),
    ("neutral-operand", "g (float[N] x) => (float[N] y) <int64 z = {1}> { a = Pow(x, z) y = Neg(a) }", True),
    ("neutral-operand", "g (bool[N] x) => (bool[N] y) <bool z = {0}> { a = Or(z, x) y = Not(a) }", True),
    ("neutral-operand", "g (bool[N] x) => (bool[N] y) <bool z = {1}> { a = And(x, z) y = Not(a) }", True),
    ("neutral-operand", "g (bool[N] x) => (bool[N] y) <bool z = {0}> { a = Xor(x, z) y = Not(a) }", True),
    ("absorbing-operand", "g (bool[2] x) => (bool[2] y) <bool[2] z = {0,0}> { a = And(x, z) y = Not(a) }", True),
    ("absorbing-operand", "g (bool[N,2] x) => (bool[N,2] y) <bool[2] z = {0,0}> { a = And(x, z) y = Not(a) }", False),
    ("absorbing-operand", "g (bool[2] x) => (bool[2] y) <bool[2] z = {1,1}> { a = Or(z, x) y = Not(a) }", True),
    ("same-operands", "g (bool[N] x) => (bool[N] y) { a = And(x, x) y = Not(a) }", True),
    ("same-operands", "g (float[N] x) => (float[N] y) { a = Max(x, x, x) y = Neg(a) }", True),
    ("same-operands", "g (bool[N] c, float[N] x) => (float[N] y) { a = Where(c, x, x) y = Neg(a) }", True),
    ("same-operands", "g (bool[N,M] c, float[M] x) => (float[N,M] y) { a = Where(c, x, x) y = Neg(a) }", False),
    ("single-operand", "g (float[N] x) => (float[N] y) { a = Sum(x) y = Neg(a) }", True),
    ("single-operand", "g (float[N] x, float[N] z) => (float[N] y) { a = Mean(x, z) y = Neg(a) }", False),
    ("involution", "g (float[N] x) => (float[N] y) { a = Neg(x) b = Neg(a) y = Abs(b) }", True),
    ("involution", "g (bool[N] x) => (bool[N] y) { a = Not(x) b = Not(a) y = Identity(b) }", True),
    ("involution", "g (float[N] x) => (float[N] y) { a = Reciprocal(x) b = Reciprocal(a) y = Abs(b) }", False),
    ("idempotent", "g (float[N] x) => (float[N] y) { a = Abs(x) y = Abs(a) }", True),
    ("idempotent", "g (float[N] x) => (float[N] y) { a = Relu(x) y = Relu(a) }", True),
    ("idempotent", "g (float[N] x) => (float[N] y) { a = Floor(x) y = Ceil(a) }", True),
    ("idempotent", "g (float[N] x) => (float[N] y) { a = Neg(x) y = Abs(a) }", False),
    ("negated-operand", "g (float[N] x, float[N] z) => (float[N] y) { a = Neg(z) y = Add(x, a) }", True),
    ("negated-operand", "g (float[N] x, float[N] z) => (float[N] y) { a = Neg(x) y = Add(a, z) }", True),
    ("negated-operand", "g (float[N] x, float[N] z) => (float[N] y) { a = Neg(z) y = Sub(x, a) }", True),
    ("negated-operand", "g (float[N] x, float[N] z) => (float[N] y) { a = Neg(x) y = Sub(a, z) }", False),
    ("negated-operand", "g (float[N] x, float[N] z) => (float[N] y) { a = Neg(x) b = Neg(z) y = Mul(a, b) }", True),
    ("negated-operand", "g (float[N] x, float[N] z) => (float[N] y, float[N] a) { a = Neg(z) y = Add(x, a) }", False),
    ("boolean-comparison", "g (bool[N] x) => (bool[N] y) <bool z = {1}> { a = Equal(x, z) y = Not(a) }", True),
    ("boolean-comparison", "g (bool[N] x) => (bool[N] y) <bool[1] z = {0}> { y = Equal(z, x) }", True),
    ("boolean-comparison", "g (int32[N] x) => (bool[N] y) <int32 z = {1}> { y = Equal(x, z) }", False),
    ("flipped-xor", "g (bool[N] x) => (bool[N] y) <bool z = {1}> { y = Xor(x, z) }", True),
    ("negated-comparison", "g (int32[N] x, int32[N] z) => (bool[N] y) { a = Less(x, z) y = Not(a) }", True),
    ("negated-comparison", "g (float[N] x, float[N] z) => (bool[N] y) { a = Less(x, z) y = Not(a) }", False),
    ("where-constant", "g (float[N] a, float[N] b) => (float[N] y) <bool c = {1}> { y = Where(c, a, b) }", True),
    ("where-constant", "g (float[3] a, float[3] b) => (float[3] y) <bool[3] c = {0,0,0}> { y = Where(c, a, b) }", True),
    (
        "where-constant",
        "g (float[3] a, float[3] b) => (float[3] y) <bool[3] c = {1,0,1}> { y = Where(c, a, b) }",
        False,
    ),
    ("where-constant", "g (float a, float[3] b) => (float[3] y) <bool c = {1}> { y = Where(c, a, b) }", False),
    (
        "where-not",
        "g (bool[N] c, float[N] a, float[N] b) => (float[N] y) { d = Not(c) y = Where(d, a, b) }",
        True,
    ),
    (
        "trivial-reduction",
        "g (float[N,1] x) => (float[N,1] y) <int64[1] t = {1}> { a = ReduceSum(x, t) y = Neg(a) }",
        True,
    ),
    ("trivial-reduction", "g (float[N,1] x) => (float[N] y) { y = ReduceMax <axes = [1], keepdims = 0> (x) }", True),
    ("trivial-reduction", "g (float[N,M] x) => (float[N] y) { y = ReduceMax <axes = [1], keepdims = 0> (x) }", False),
    (
        "trivial-reduction",
        "g (float[N] x) => (float[N] y) { a = ReduceSum <noop_with_empty_axes = 1> (x) y = Neg(a) }",
        True,
    ),
    ("trivial-reduction", "g (float[N] x) => (float[1] y) { a = ReduceSum(x) y = Neg(a) }", False),
    ("clip-integers", "g (int32[N] x) => (int32[N] y) { a = Clip(x) y = Neg(a) }", True),
    (
        "clip-integers",
        "g (int8[N] x) => (int8[N] y) <int8 l = {-128}, int8 h = {127}> { a = Clip(x, l, h) y = Abs(a) }",
        True,
    ),
    ("clip-integers", "g (int8[N] x) => (int8[N] y) <int8 l = {-127}> { a = Clip(x, l) y = Abs(a) }", False),
    ("clip-integers", "g (float[N] x) => (float[N] y) { a = Clip(x) y = Neg(a) }", False),
    (
        "clip-chain",
        "g (float[N] x) => (float[N] y) <float l = {-2}, float h = {6}> { a = Relu(x) y = Clip(a, l, h) }",
        True,
    ),
    (
        "clip-chain",
        "g (float[N] x) => (float[N] y) <float l = {1}, float h = {2}> { a = Clip(x, l, h) y = Relu(a) }",
        True,
    ),
    (
        "clip-chain",
        "g (float[N] x) => (float[N] y) <float l = {1}, float h = {2}, float k = {-3}> "
        "{ a = Clip(x, l, h) y = Clip(a, , k) }",
        True,
    ),
    ("clip-chain", "g (float[N] x) => (float[N] y) <float l = {0.25}> { a = Clip(x) y = Clip(a, l) }", True),
    (
        "clip-chain",
        "g (float[N] x, float l) => (float[N] y) { a = Relu(x) y = Clip(a, l) }",
        False,
    ),
    (
        "clip-chain",
        "g (float[N] x) => (float[N] y) <float l = {3}, float h = {2}> { a = Clip(x, l, h) y = Relu(a) }",
        False,
    ),
    ("concat-parts", "g (float[N] x) => (float[N] y) { a = Concat <axis = 0> (x) y = Neg(a) }", True),
    (
        "concat-parts",
        "g (float[N] x, float[0] e) => (float[N] y) { a = Concat <axis = -1> (e, x, e) y = Neg(a) }",
        True,
    ),
    (
        "concat-parts",
        "g (float[N,2] x, float[M,2] z) => (float[A,2] y) "
        "{ a = Concat <axis = -2> (x, z) y = Concat <axis = 0> (z, a, x) }",
        True,
    ),
    (
        "concat-parts",
        "g (float[2,2] x, float[2,2] z) => (float[A,B] y) "
        "{ a = Concat <axis = 0> (x, z) b = Concat <axis = 0> (z, x) y = Concat <axis = 1> (a, b) }",
        False,
    ),
    ("split-in-one", "g (float[N] x) => (float[N] y) { a = Split <axis = 0> (x) y = Neg(a) }", True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{'fires' if case[2] else 'refuses'}")
def test_rule(case):
    rule, text, fires, *rest = case
    outcome = check(text, Simplify(only=(rule,)), opset=rest[0] if rest else 17)
    assert (rule in outcome.hits) == fires
    assert outcome.runs > 0


def test_an_initializer_that_is_an_input_is_no_constant():
    text = "g (float[N] x, float z = {0.0}) => (float[N] y) { a = Add(x, z) y = Neg(a) }"
    assert not check(text, Simplify()).hits


def test_values_of_outer_graphs_are_simplified_inside():
    text = """g (float[N] x, bool c) => (float[N] y) <float z = {0.0}> {
        a = Identity(x)
        y = If(c) <then_branch = t () => (float[N] u) { u = Add(a, z) },
                   else_branch = e () => (float[N] v) { b = Neg(a) v = Neg(b) }>
    }"""
    outcome = check(text, Simplify())
    assert outcome.hits == {"identity": 1, "neutral-operand": 1, "involution": 1}
    assert outcome.ops == {"If": 1, "Identity": 2}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_programs(data):
    check(program(data.draw, "elementwise"), Simplify(), sizes=(5, 0, 1))
