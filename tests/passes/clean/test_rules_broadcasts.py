"""Narrowing tensors for readers that broadcast, and gathers that are slices."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest

from optc.passes.clean.shapes import Shapes

from .rulecheck import check

_HEAD = """g (float[N,M] x, float[1,M] row, bool[N,1] mask) => (float[A,B] y)
<int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64[1] v0 = {0}, int64[1] v1 = {1}, int64[1] v2 = {2},
 int64[2] v01 = {0,1}, float f0 = {0}, float f1 = {1}, float[3,2] grid = {1,2,3,4,5,6}, int64[2] v22 = {2,2},
 int64[1] last = {-1}, int64[1] far = {9223372036854775807}, int64 minus = {-1}, int64 five = {5},
 float[4] line = {1,2,3,4}, int64[2] i10 = {1,0}, int64[2] v21 = {2,1}>
{ s = Shape(x) n = Gather(s, zero) m = Gather(s, one) n1 = Unsqueeze(n, v0) m1 = Unsqueeze(m, v0) """

CASES = [
    # Expand, directly and through what works on single elements
    ("a = Expand(row, s) y = Add(x, a)", {"Add": 1}),
    ("a = Expand(row, s) b = Neg(a) c = Mul(b, row) y = Add(x, c)", {"Neg": 1, "Mul": 1, "Add": 1}),
    ("a = Expand(mask, s) b = Where(a, f0, f1) y = Mul(b, x)", {"Where": 1, "Mul": 1}),
    ("a = Expand(mask, s) b = Where(a, f0, f1) y = Expand(b, s)", {"Where": 1, "Expand": 1, "Shape": 1}),
    ("a = Expand(row, s) b = Neg(a) c = Add(a, b) y = Add(c, x)", {"Neg": 1, "Add": 2}),
    # seen in the end, or needed by something that does not broadcast
    ("a = Expand(row, s) y = Neg(a)", {"Shape": 1, "Expand": 1, "Neg": 1}),
    ("a = Expand(row, s) b = Add(a, a) y = Neg(b)", {"Shape": 1, "Expand": 1, "Add": 1, "Neg": 1}),
    ("a = Expand(row, s) b = Softmax(a) y = Add(x, b)", {"Shape": 1, "Expand": 1, "Softmax": 1, "Add": 1}),
    # one number
    ("a = ConstantOfShape(s) y = Add(x, a)", {"Add": 1}),
    (
        "r = Range(zero, n, one) u = Unsqueeze(r, v1) a = GreaterOrEqual(u, zero) b = And(a, mask) c = Where(b, x, f0) "
        "y = Add(c, x)",
        {"And": 1, "Where": 1, "Add": 1},
    ),
    # leading axes and tiles
    ("a = Squeeze(row, v0) b = Neg(a) c = Unsqueeze(b, v0) y = Add(x, c)", {"Squeeze": 1, "Neg": 1, "Add": 1}),
    ("t = Concat <axis = 0> (n1, v1) a = Tile(row, t) y = Add(x, a)", {"Add": 1}),
    ("a = Tile(row, v21) b = Slice(a, v0, v1, v0) y = Add(x, b)", {"Tile": 1, "Slice": 1, "Add": 1}),
    # rows of tables: at one index, at expanded ones, at indices in order
    (
        "t = Gather(s, v0) i = ConstantOfShape <value = int64[1] {2}> (t) a = Gather(grid, i) b = Slice(x, v0, v2, v1) "
        "y = Add(b, a)",
        {"Gather": 1, "Slice": 1, "Add": 1},
    ),
    (
        "t = Gather(s, v0) i = ConstantOfShape <value = int64[1] {5}> (t) a = Gather(grid, i) b = Slice(x, v0, v2, v1) "
        "y = Add(b, a)",
        {"Shape": 1, "ConstantOfShape": 1, "Gather": 1, "Slice": 1, "Add": 1},
    ),
    ("r = Range(zero, m, one) y = Gather <axis = 1> (x, r)", {}),
    ("r = Range(one, m, one) y = Gather <axis = 1> (x, r)", {"Shape": 1, "Slice": 1}),
    ("r = Range(zero, n, one) y = Gather(grid, r)", {"Shape": 1, "Slice": 1}),
    ("r = Range(zero, n, one) u = Unsqueeze(r, v0) a = Gather(grid, u) y = Squeeze(a, v0)", None),
    ("r = Range(minus, n, one) y = Gather(grid, r)", {"Shape": 1, "Gather": 2, "Range": 1}),
    ("r = Range(zero, n, two) y = Gather(grid, r)", {"Shape": 1, "Gather": 2, "Range": 1}),
    ("y = Gather(grid, v01)", {"Slice": 1}),
    ("y = Gather(grid, i10)", {"Gather": 1}),
    # a matrix flattened and gathered in its own order
    (
        "f = Reshape(x, last) i = Range(zero, n, one) j = Range(zero, m, one) u = Unsqueeze(i, v1) w = Mul(u, m) "
        "k = Add(w, j) y = Gather(f, k)",
        {},
    ),
    (
        "f = Reshape(x, last) i = Range(zero, n, one) j = Range(zero, m, one) u = Unsqueeze(i, v1) w = Mul(u, two) "
        "k = Add(w, j) y = Gather(f, k)",
        None,
    ),
    # all pairs of a row and a column, of some of them
    (
        "i = Range(zero, n, one) j = Range(zero, m, one) u = Unsqueeze(i, v1) e = Expand(u, s) w = Unsqueeze(j, v0) "
        "d = Expand(w, s) e1 = Unsqueeze(e, last) d1 = Unsqueeze(d, last) k = Concat <axis = -1> (e1, d1) "
        "y = GatherND(x, k)",
        {},
    ),
    (
        "i = Range(zero, n, one) j = Range(zero, m, one) u = Unsqueeze(i, v1) e = Expand(u, s) w = Unsqueeze(j, v0) "
        "d = Expand(w, s) e1 = Unsqueeze(e, last) d1 = Unsqueeze(d, last) k = Concat <axis = -1> (e1, d1) "
        "y = GatherND(grid, k)",
        None,
    ),
]


@pytest.mark.parametrize(("body", "left"), CASES)
def test_rule(body, left):
    outcome = check(f"{_HEAD} {body} }}", Shapes(), sizes=(3, 1, 2, 0))
    ops = live(outcome.model)
    assert left is None or ops == left
    assert outcome.runs > 0


def live(model: onnx.ModelProto) -> Counter[str]:
    """The operators that the output needs."""
    needed, ops = {value.name for value in model.graph.output}, Counter[str]()
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            ops[node.op_type] += node.op_type not in ("Constant", "Identity")
    return +ops
