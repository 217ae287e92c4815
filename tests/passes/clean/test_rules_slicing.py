"""Slices of slices, pieces of what was joined, and joined pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.passes.clean.simplify import Simplify

from .programs import program
from .rulecheck import check

_CONSTANTS = (
    "<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4}, int64[1] minus = {-1}, "
    "int64[1] far = {9223372036854775807}, int64 s1 = {1}, int64 s4 = {4}, int64[2] i23 = {2,3}, int64[2] i02 = {0,2}>"
)

CASES = [
    # different axes; the same axis counted from the front, with a step, to the end
    ("a = Slice(x, zero, two, zero) y = Slice(a, one, four, one)", {"Slice": 1}),
    ("a = Slice(x, one, four, one) y = Slice(a, one, two, one)", {"Slice": 1}),
    ("a = Slice(x, one, far, one) y = Slice(a, one, far, one, two)", {"Slice": 1}),
    ("a = Slice(x, one, minus, one) y = Slice(a, one, two, one)", {"Slice": 2}),
    ("a = Slice(x, zero, far, one, two) y = Slice(a, one, two, one)", {"Slice": 2}),
    # parts of dims 2 and 3 and N
    ("a = Concat <axis = 1> (p, q) y = Gather <axis = 1> (a, s1)", {"Gather": 1}),
    ("a = Concat <axis = 1> (p, q) b = Gather <axis = -1> (a, i23) y = Neg(b)", {"Gather": 1, "Neg": 1}),
    ("a = Concat <axis = 1> (p, q) b = Slice(a, two, far, one) y = Neg(b)", {"Neg": 1}),
    ("a = Concat <axis = 1> (p, q) b = Slice(a, zero, two, one) y = Neg(b)", {"Neg": 1}),
    ("a = Concat <axis = 1> (p, q) y = Slice(a, minus, far, one)", {"Slice": 1}),
    ("a = Concat <axis = 1> (p, q) y = Gather <axis = 1> (a, i02)", {"Concat": 1, "Gather": 1}),
    ("a = Concat <axis = 1> (p, q) y = Slice(a, one, four, one)", {"Concat": 1, "Slice": 1}),
    ("a = Concat <axis = 1> (p, q) y = Gather <axis = 0> (a, s1)", {"Concat": 1, "Gather": 1}),
    ("a = Concat <axis = 1> (x, q) y = Gather <axis = 1> (a, s4)", {"Concat": 1, "Gather": 1}),
    # all pieces again, or not
    ("a, b = Split <axis = 1> (w) c = Concat <axis = -1> (a, b) y = Neg(c)", {"Neg": 1}),
    ("a, b = Split <axis = 1> (w) y = Concat <axis = 1> (b, a)", {"Split": 1, "Concat": 1}),
    ("a, b = Split <axis = 1> (w) y = Concat <axis = 0> (a, b)", {"Split": 1, "Concat": 1}),
]


@pytest.mark.parametrize(("body", "left"), CASES)
def test_rule(body, left):
    text = f"g (float[N,M] x, float[N,2] p, float[N,3] q, float[N,4] w) => (y) {_CONSTANTS} {{ {body} }}"
    text = text.replace("=> (y)", "=> (float[A] y)" if "(a, s1)" in body or "(a, s4)" in body else "=> (float[A,B] y)")
    outcome = check(text, Simplify(), sizes=(3, 2, 5, 0))
    assert outcome.ops == left
    assert outcome.runs > 0


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_random_programs(data):
    check(program(data.draw, "slicing"), Simplify(), sizes=(5, 3, 1))
