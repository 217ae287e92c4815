"""Chains of views, and reductions, gathers and slices around them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.passes.clean.simplify import Simplify

from .programs import program
from .rulecheck import check

#: rule, graph, the operators that are left; optionally the opset
CASES = [
    (
        "view-chain",
        "g (float[N,6] x) => (float[A,B,C] y) <int64[2] s = {-1,3}, int64[3] t = {0,3,1}> "
        "{ a = Reshape(x, s) y = Reshape(a, t) }",
        {"Reshape": 1},
    ),
    (
        "view-chain",  # the outer 0 copies a dim of the inner tensor, which is no dim of x at that place
        "g (float[N,M,6] x) => (float[A,B] y) <int64[2] s = {6,-1}, int64[2] t = {0,-1}> "
        "{ a = Reshape(x, s) y = Reshape(a, t) }",
        {},
    ),
    (
        "view-chain",
        "g (float[N,M,P] x) => (float[A,B] y) <int64[2] s = {-1,4}, int64[3] t = {0,2,2}, int64[2] u = {0,-1}> "
        "{ a = Reshape(x, s) b = Reshape(a, t) y = Reshape(b, u) }",
        {"Reshape": 1},
    ),
    (
        "view-chain",  # N may be 0, beside which nothing can be inferred
        "g (float[N,1,M,P] x) => (float[A,B,C] y) <int64[1] s = {1}> "
        "{ a = Squeeze(x, s) b = Shape <start = 0, end = 1> (x) c = Shape <start = 2, end = 3> (x) "
        "d = Shape <start = 3, end = 4> (x) e = Mul(c, d) f = Concat <axis = 0> (b, e, s) y = Reshape(a, f) }",
        {"Squeeze": 1, "Shape": 3, "Mul": 1, "Concat": 1, "Reshape": 1},
    ),
    (
        "view-chain",
        "g (float[N,M] x) => (float[A,B] y) <int64[1] s = {1}> { a = Unsqueeze(x, s) b = Squeeze(a, s) y = Neg(b) }",
        {"Neg": 1},
    ),
    (
        "view-chain",
        "g (float[N,M] x) => (float[A,B,C,D] y) <int64[1] s = {1}, int64[1] t = {-1}> "
        "{ a = Unsqueeze(x, s) y = Unsqueeze(a, t) }",
        {"Unsqueeze": 1},
    ),
    (
        "view-chain",
        "g (float[N,1,M,1] x) => (float[A,B] y) { a = Squeeze <axes = [1]> (x) y = Squeeze <axes = [2]> (a) }",
        {"Squeeze": 1},
        11,
    ),
    (
        "view-chain",
        "g (float[N,3,1,1] x) => (float[N,3] y) <int64[1] s = {3}> { a = Squeeze(x, s) y = Flatten(a) }",
        {"Reshape": 1},
    ),
    (
        "view-chain",
        "g (float[N,3,1,1] x) => (float[A,B] y) <int64[2] s = {-1,3}> "
        "{ a = Transpose <perm = [0,2,3,1]> (x) y = Reshape(a, s) }",
        {"Reshape": 1},
    ),
    (
        "view-chain",
        "g (float[N,3,2,1] x) => (float[A,B] y) <int64[2] s = {-1,3}> "
        "{ a = Transpose <perm = [0,2,3,1]> (x) y = Reshape(a, s) }",
        {"Reshape": 1, "Transpose": 1},
    ),
    (
        "reduce-squeeze",
        "g (float[N,M,3] x) => (float[A] y) <int64[2] s = {-1,1}> "
        "{ a = ReduceMean <axes = [1,2], keepdims = 1> (x) y = Squeeze(a, s) }",
        {"ReduceMean": 1},
    ),
    (
        "reduce-squeeze",
        "g (float[N,1,3] x) => (float[A,B] y) <int64[1] s = {1}> "
        "{ a = ReduceMean <axes = [1,2], keepdims = 1> (x) y = Squeeze(a, s) }",
        {"ReduceMean": 1, "Squeeze": 1},
    ),
    (
        "reduce-squeeze",
        "g (float[N,3] x) => (int64[A] y) <int64[1] s = {1}> { a = ArgMax <axis = -1> (x) y = Squeeze(a, s) }",
        {"ArgMax": 1},
    ),
    (
        "reduce-unsqueeze",
        "g (float[N,3] x) => (float[A,B] y) <int64[1] t = {1}, int64[1] s = {-1}> "
        "{ a = ReduceSum <keepdims = 0> (x, t) y = Unsqueeze(a, s) }",
        {"ReduceSum": 1},
    ),
    (
        "reduce-unsqueeze",
        "g (float[N,3] x) => (float[A,B] y) <int64[1] t = {1}, int64[1] s = {0}> "
        "{ a = ReduceSum <keepdims = 0> (x, t) y = Unsqueeze(a, s) }",
        {"ReduceSum": 1, "Unsqueeze": 1},
    ),
    (
        "gather-unsqueeze",
        "g (float[N,3] x) => (float[A,B] y) <int64 i = {2}, int64[1] s = {1}> "
        "{ a = Gather <axis = 1> (x, i) y = Unsqueeze(a, s) }",
        {"Gather": 1},
    ),
    (
        "gather-unsqueeze",
        "g (float[N,3] x) => (float[A,B] y) <int64 i = {2}, int64[1] s = {0}> "
        "{ a = Gather <axis = 1> (x, i) y = Unsqueeze(a, s) }",
        {"Gather": 1, "Unsqueeze": 1},
    ),
    (
        "gather-squeeze",
        "g (float[N,3] x) => (float[A] y) <int64[1] i = {2}, int64[1] s = {1}> "
        "{ a = Gather <axis = -1> (x, i) y = Squeeze(a, s) }",
        {"Gather": 1},
    ),
    (
        "gather-squeeze",
        "g (float[N,3] x) => (float[A] y) <int64[1] i = {-1}, int64[1] e = {2147483647}, int64[1] s = {0}> "
        "{ a = Slice(x, i, e, s) y = Squeeze(a, s) }",
        {"Gather": 1},
    ),
    (
        "gather-squeeze",  # two entries, of which the run must fail unless there is just one
        "g (float[N,3] x) => (float[A] y) <int64[1] i = {0}, int64[1] e = {2}, int64[1] s = {0}> "
        "{ a = Slice(x, i, e, s) y = Squeeze(a, s) }",
        {"Slice": 1, "Squeeze": 1},
    ),
    (
        "expand-chain",
        "g (float[1,3] x) => (float[A,B,C] y) <int64[2] s = {4,3}, int64[3] t = {2,4,1}> "
        "{ a = Expand(x, s) y = Expand(a, t) }",
        {"Expand": 1},
    ),
    (
        "expand-chain",
        "g (float[1,3] x) => (float[A,B,C] y) <int64[2] s = {4,3}, int64[3] t = {2,1,1}> "
        "{ a = Expand(x, s) y = Expand(a, t) }",
        {"Expand": 2},
    ),
    (
        "identity-gather",
        "g (float[N,3] x) => (float[N,3] y) <int64[3] i = {0,1,2}> { a = Gather <axis = 1> (x, i) y = Neg(a) }",
        {"Neg": 1},
    ),
    (
        "identity-gather",
        "g (float[N,3] x) => (float[A,B] y) <int64[3] i = {0,1,2}> { a = Gather <axis = 0> (x, i) y = Neg(a) }",
        {"Gather": 1, "Neg": 1},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_rule(case):
    rule, text, left, *rest = case
    outcome = check(text, Simplify(only=(rule,)), opset=rest[0] if rest else 17)
    assert outcome.runs > 0
    if left:
        assert outcome.ops == left


def test_a_shared_view_stays():
    text = """g (float[N,6] x) => (float[A,B,C] y, float[D,E] z) <int64[2] s = {-1,3}, int64[3] t = {-1,3,1}> {
        z = Reshape(x, s) y = Reshape(z, t)
    }"""
    assert check(text, Simplify()).ops == {"Reshape": 2}


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_random_programs(data):
    check(program(data.draw, "views"), Simplify(), sizes=(5, 1, 0))
