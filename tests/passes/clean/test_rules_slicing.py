"""Slices of slices, pieces of what was joined, and joined pieces."""

from __future__ import annotations

from collections import Counter

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


PIECES = [
    # slices that cover an axis, in any order, counted from either end, of any size; one of them twice
    (
        "a = Slice(w, v0, v2, v1) b = Slice(w, v2, far, v1) c = Neg(b) y = Concat <axis = 1> (c, a)",
        {"Split": 1, "Neg": 1},
    ),
    (
        "a = Slice(w, mone, far, v1) b = Slice(w, v0, v1, v1) c = Slice(w, v1, v3, mone) d = Neg(c) "
        "y = Concat <axis = 1> (a, d, b)",
        {"Split": 1, "Neg": 1},
    ),
    (
        "a = Slice(w, v0, v2, v1) b = Slice(w, v2, v4, v1) d = Slice(w, v2, far, mone) c = Add(a, b) y = Mul(c, d)",
        {"Split": 1, "Add": 1, "Mul": 1},
    ),
    ("a = Slice(w, v0, v1, v1) b = Slice(w, v2, v4, v1) c = Add(a, b) y = Neg(c)", {"Slice": 2, "Add": 1, "Neg": 1}),
    ("a = Slice(w, v0, v3, v1) b = Slice(w, v1, v4, v1) c = Add(a, b) y = Neg(c)", {"Slice": 2, "Add": 1, "Neg": 1}),
    (
        "a = Slice(x, v0, v2, v1) b = Slice(x, v2, far, v1) c = Neg(b) y = Concat <axis = 1> (c, a)",
        {"Slice": 2, "Neg": 1},
    ),
    ("a = Slice(w, v0, v2, v1) b = Slice(w, v2, v4, v1) y = Concat <axis = 1> (b, a)", {"Slice": 2}),
    # pieces joined again, all or some of them
    ("a = Slice(w, v0, v2, v1) b = Slice(w, v2, v4, v1) c = Concat <axis = 1> (a, b) y = Neg(c)", {"Neg": 1}),
    (
        "a = Slice(w, v0, v1, v1) b = Slice(w, v1, v3, v1) c = Concat <axis = 1> (a, b) y = Neg(c)",
        {"Slice": 1, "Neg": 1},
    ),
    (
        "a, b, c = Split <axis = 1> (w, s112) d = Concat <axis = 1> (b, c) e = Concat <axis = 1> (d, a) y = Neg(e)",
        {"Split": 1, "Neg": 1},
    ),
    (
        "a, b, c = Split <axis = 1> (w, s112) d = Concat <axis = 1> (b, c) y = Add(d, a)",
        {"Split": 1, "Add": 1},
    ),
    ("a, b = Split <axis = 1> (w) c = Concat <axis = 1> (a, b, p) y = Neg(c)", {"Neg": 1}),
    (
        "a = Slice(w, v0, v1, v1) b = Slice(w, v1, v3, v1) c = Concat <axis = 1> (p, a, b) y = Neg(c)",
        {"Slice": 1, "Neg": 1},
    ),
    ("a = Slice(w, v0, v1, v0) b = Slice(w, v1, far, v0) c = Concat <axis = 1> (a, b) y = Neg(c)", None),
    ("a, b = Split <axis = 1> (e6) c = Concat <axis = 1> (a, b) y = Neg(c)", {"Neg": 1}),
    # parts joined and cut at the same places
    (
        "a = Concat <axis = 1> (p, q) b, c = Split <axis = 1> (a, s23) d = Neg(c) y = Concat <axis = 1> (d, b)",
        {"Neg": 1},
    ),
    (
        "a = Concat <axis = 1> (p, q, p) b, c = Split <axis = 1> (a, s52) d = Neg(c) y = Concat <axis = 1> (d, b)",
        {"Neg": 1},
    ),
    (
        "a = Concat <axis = 1> (p, q) b, c = Split <axis = 1> (a, s32) d = Neg(c) y = Concat <axis = 1> (d, b)",
        {"Split": 1, "Neg": 1, "Concat": 2},
    ),
    ("a = Concat <axis = -1> (x, w) b, c = Split <axis = 1> (a, sm4) d = Neg(c) y = Concat <axis = 1> (d, b)", None),
    # one piece of a Split
    ("a, b, c = Split <axis = 1> (w, s112) y = Neg(b)", {"Slice": 1, "Neg": 1}),
    ("a, b, c = Split <axis = 1> (w, s112) d = Neg(b) e = Mul(d, a) y = Neg(e)", {"Split": 1, "Neg": 2, "Mul": 1}),
    # a Slice of a Pad
    ("a = Pad(x, p0101) y = Slice(a, v1, far, v1)", {"Pad": 1}),
    ("a = Pad(x, p0101) b = Slice(a, v1, mone, v1) y = Neg(b)", {"Neg": 1}),
    ('a = Pad <mode = "edge"> (w, p0202) y = Slice(a, v1, mone, v1)', {"Pad": 1}),
    ("a = Pad(x, p0101) y = Slice(a, v2, far, v1)", {"Pad": 1, "Slice": 1}),
    ("a = Pad(w, p0101) y = Slice(a, v0, v4, v1)", {"Pad": 1, "Slice": 1}),
    ("a = Pad(w, p0101) y = Slice(a, v0, v5, v1)", {"Pad": 1}),
    ("a = Pad(x, p0101) y = Slice(a, v0, v1, v0)", {"Pad": 1, "Slice": 1}),
]
_PIECE_CONSTANTS = (
    "<int64[1] v0 = {0}, int64[1] v1 = {1}, int64[1] v2 = {2}, int64[1] v3 = {3}, int64[1] v4 = {4}, "
    "int64[1] v5 = {5}, "
    "int64[1] mone = {-1}, int64[1] far = {9223372036854775807}, int64[3] s112 = {1,1,2}, "
    "int64[2] s23 = {2,3}, "
    "int64[2] s52 = {5,2}, int64[2] s32 = {3,2}, int64[4] p0101 = {0,1,0,1}, int64[4] p0202 = {0,2,0,2}>"
)


@pytest.mark.parametrize(("body", "left"), PIECES)
def test_pieces(body, left):
    constants = _PIECE_CONSTANTS
    if "sm4" in body:
        body = "s = Shape(x) m = Gather(s, v1) sm4 = Concat <axis = 0> (m, v4) " + body
    text = (
        f"g (float[N,M] x, float[N,2] p, float[N,3] q, float[N,4] w, float[N,E] e6) => (float[A,B] y) {constants} "
        f"{{ {body} }}"
    )
    outcome = check(text, Simplify(), sizes=(3, 2, 6, 0))
    ops = outcome.ops
    if left is None:
        assert ops["Concat"] <= 2
    else:
        assert ops - Counter({"Concat": ops["Concat"] if "Concat" not in left else 0}) == left
    assert outcome.runs > 0


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_random_programs(data):
    check(program(data.draw, "slicing"), Simplify(), sizes=(5, 3, 1))
