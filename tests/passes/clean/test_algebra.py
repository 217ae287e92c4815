"""Constants of sums and products of floats, constants in tables, reductions of reductions."""

from __future__ import annotations

import numpy as np
import pytest

from optc.passes.fusion.fuse import Fuse

from .rulecheck import check, random_array

_RULES = ("constant-sums", "constant-products", "constant-into-table", "reduction-chain")
_HEAD = """g (float[N,M,4] x, int64[N,M] i) => (float[A,B,C] y)
<float one = {1}, float two = {2}, float big = {1e30}, float tiny = {1e-30}, float million = {1e6},
 float[4] row = {1,2,3,4}, float[4] back = {-1,-2,-3,-4}, float[3,1] column = {1,2,3}, float zero = {0},
 float[1,1,4] wide = {1,2,3,4}, float less = {-1e6}, float[2,4] table = {1,2,3,4,5,6,7,8}, int64[1] v0 = {0},
 float[1,4] short = {5,6,7,8}, int64[1] v1 = {1}, int64[1] v2 = {2}, int64[1] v3 = {3}, int64[2] a12 = {1,2}>
{ """

CASES = [
    ("a = Add(x, row) y = Add(a, two)", {"Add": 1}),
    ("a = Sub(x, row) y = Add(one, a)", {"Add": 1}),
    ("a = Add(x, row) y = Sub(a, row)", {"Add": 1}),
    ("a = Mul(x, row) y = Div(a, two)", {"Mul": 1}),
    ("a = Div(x, two) y = Mul(two, a)", {"Mul": 1}),
    ("a = Add(x, wide) y = Add(a, back)", {"Add": 1}),
    # not where it shows, or where it costs
    ("a = Add(x, million) y = Add(a, less)", {"Add": 2}),
    ("a = Mul(x, big) y = Mul(a, tiny)", {"Mul": 2}),
    ("a = Mul(x, two) y = Div(a, zero)", {"Mul": 1, "Div": 1}),
    ("a = Sub(row, x) y = Add(a, two)", {"Sub": 1, "Add": 1}),
    ("a = Add(x, two) b = Add(a, one) y = Mul(a, b)", {"Add": 2, "Mul": 1}),
    ("a = Add(x, two) y = Mul(a, two)", {"Add": 1, "Mul": 1}),
    # a constant beside rows of a table
    ("a = Gather(table, i) b = Add(a, row) y = Add(b, x)", {"Gather": 1, "Add": 1}),
    ("a = Gather(table, i) b = Add(x, row) y = Add(b, a)", {"Gather": 1, "Add": 1}),
    ("a = Gather(table, i) y = Add(a, wide)", {"Gather": 1, "Add": 1}),
    ("a = Gather(table, i) y = Add(a, short)", {"Gather": 1}),
    (
        "s = Slice(table, v0, v1, v0) u = Unsqueeze(s, v0) b = Add(x, u) y = Add(b, row)",
        {"Slice": 1, "Unsqueeze": 1, "Add": 1},
    ),
    ("a = Gather(table, i) b = Add(a, two) y = Add(b, x)", {"Gather": 1, "Add": 2}),
    ("a = Gather(table, i) b = Add(a, row) c = Neg(a) y = Add(b, c)", {"Gather": 1, "Add": 2, "Neg": 1}),
    # reductions
    ("a = ReduceSum(x, v1) b = ReduceSum(a, v2) y = Add(b, x)", {"ReduceSum": 1, "Add": 1}),
    ("a = ReduceSum(x, v2) b = ReduceSum(a, v0) y = Add(b, x)", {"ReduceSum": 1, "Add": 1}),
    (
        "a = ReduceMax <axes = [1], keepdims = 0> (x) b = ReduceMax <axes = [1], keepdims = 0> (a) "
        "c = Unsqueeze(b, a12) y = Add(c, x)",
        {"ReduceMax": 1, "Unsqueeze": 1, "Add": 1},
    ),
    ("a = ReduceMean <axes = [2]> (x) b = ReduceMean <axes = [1]> (a) y = Add(b, x)", {"ReduceMean": 1, "Add": 1}),
    (
        "a = ReduceMax <axes = [2], keepdims = 0> (x) b = ReduceMax <axes = [1]> (a) "
        "c = Unsqueeze(b, v2) y = Add(c, x)",
        {"ReduceMax": 2, "Unsqueeze": 1, "Add": 1},
    ),
    (
        "a = ReduceMax <axes = [2]> (x) b = ReduceMin <axes = [1]> (a) y = Add(b, x)",
        {"ReduceMax": 1, "ReduceMin": 1, "Add": 1},
    ),
]


@pytest.mark.parametrize(("body", "left"), CASES)
def test_rule(body, left):
    rng, feeds = np.random.default_rng(5), []
    for n, m in ((3, 2), (1, 1), (1, 5), (0, 2)):
        x = rng.standard_normal((n, m, 4)).astype(np.float32)
        if "tiny" in body:
            x = random_array(rng, [n, m, 4], "float")
        feeds.append({"x": x, "i": rng.integers(0, 2, (n, m))})
    outcome = check(f"{_HEAD} {body} }}", Fuse(only=_RULES), feeds=feeds, tolerance=1e-5)
    assert outcome.ops == left
    assert outcome.runs > 0


def test_integers_are_left_to_exact_rules():
    outcome = check("g (int64[N] x) => (int64[N] y) <int64 c = {3}> { a = Add(x, c) y = Add(a, c) }", Fuse(only=_RULES))
    assert outcome.ops == {"Add": 2}
