"""Integer constants brought together; floats left alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.passes.clean.simplify import Simplify

from .programs import program
from .rulecheck import check


@pytest.mark.parametrize(
    ("dtype", "body", "left"),
    [
        ("int32", "p = Add(x, a) y = Add(b, p)", {"Add": 1}),
        ("int64", "p = Sub(x, a) y = Add(p, b)", {"Add": 1}),
        ("int64", "p = Mul(a, x) y = Mul(p, b)", {"Mul": 1}),
        ("int32", "p = Add(x, a) q = Sub(p, b) y = Sub(q, a)", {"Add": 1}),
        ("int32", "p = Sub(a, x) y = Add(p, b)", {"Sub": 1, "Add": 1}),
        ("int32", "p = Add(x, a) q = Add(p, b) y = Mul(p, q)", {"Add": 2, "Mul": 1}),
        ("float", "p = Add(x, a) y = Add(p, b)", {"Add": 2}),
        ("double", "p = Mul(x, a) y = Mul(p, b)", {"Mul": 2}),
    ],
)
def test_rule(dtype, body, left):
    text = f"g ({dtype}[N,3] x) => ({dtype}[N,3] y) <{dtype} a = {{3}}, {dtype}[3] b = {{2,7,2}}> {{ {body} }}"
    outcome = check(text, Simplify())
    assert outcome.ops == left
    assert outcome.runs > 0


def test_sums_wrap_around():
    text = """g (int32[N] x) => (int32[N] y) <int32 a = {2147483647}, int32 b = {2147483647}> {
        p = Add(x, a) y = Add(p, b)
    }"""
    assert check(text, Simplify()).ops == {"Add": 1}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_programs(data):
    check(program(data.draw, "integers"), Simplify(), sizes=(2, 0))
