"""Dense layers between Reshapes to matrices and back."""

from __future__ import annotations

import pytest

from optc.passes.fusion.fuse import Fuse

from .rulecheck import check

_WEIGHTS = (
    "<int64[2] rows8 = {-1,8}, int64[2] rows4 = {-1,4}, int64[3] back4 = {2,-1,4}, int64[3] back8 = {2,-1,8}, "
    "int64[4] heads = {2,-1,2,2}, int64[3] other = {-1,2,4}, int64[1] last = {1}, int64[1] from = {0}, "
    "int64[1] to = {2}, int64[2] halves = {4,4}, float half = {0.5}, "
    "float[4] b4 = {1,2,-3,0.5}, float[1,4] row4 = {1,2,-3,0.5}, float[8] b8 = {1,2,-3,0.5,1,2,3,4}, "
    "float[1] one = {1}, "
    "float[4,4] w44 = {1,2,3,4,5,6,7,8,-1,-2,-3,-4,0.5,0.25,1,2}, "
    "float[8,4] w84 = {1,2,3,4,5,6,7,8,-1,-2,-3,-4,0.5,0.25,1,2,1,2,3,4,5,6,7,8,-1,-2,-3,-4,0.5,0.25,1,2}>"
)
CASES = [
    # one layer; its bias in several forms; the transposed weights
    ("a = Reshape(x, rows8) b = Gemm(a, w84, b4) y = Reshape(b, back4)", {"MatMul": 1, "Add": 1}),
    ("a = Reshape(x, rows8) b = Gemm(a, w84, row4) y = Reshape(b, back4)", {"MatMul": 1, "Add": 1}),
    ("a = Reshape(x, rows8) b = Gemm(a, w84, one) y = Reshape(b, back4)", {"MatMul": 1, "Add": 1}),
    ("a = Reshape(x, rows8) b = Gemm(a, w84) y = Reshape(b, back4)", {"MatMul": 1}),
    (
        "a = Reshape(z, rows4) b = Gemm <transB = 1> (a, w84, b8) y = Reshape(b, back8)",
        {"Transpose": 1, "MatMul": 1, "Add": 1},
    ),
    ("a = Reshape(x, rows8) b = MatMul(a, w84) c = Add(b, b4) y = Reshape(c, back4)", {"MatMul": 1, "Add": 1}),
    # a residual sum as the summand of a Gemm
    (
        "r = Reshape(z, rows4) a = Reshape(x, rows8) b = Gemm(a, w84, r) y = Reshape(b, back4)",
        {"MatMul": 1, "Add": 1},
    ),
    # chains: elementwise with scalars and rows, norms, softmax, splits, joins, cuts, reductions
    (
        "a = Reshape(x, rows8) b = Gemm(a, w84, b4) c = Mul(half, b) d = Tanh(c) e = Add(d, row4) f = Gemm(e, w44, b4) "
        "g = Reshape(f, back4) y = Add(g, z)",
        {"MatMul": 2, "Add": 4, "Mul": 1, "Tanh": 1},
    ),
    (
        "a = Reshape(z, rows4) b = LayerNormalization(a, b4, b4) c = Softmax(b) y = Reshape(c, back4)",
        {"LayerNormalization": 1, "Softmax": 1},
    ),
    (
        "a = Reshape(x, rows8) p, q = Split <axis = 1> (a, halves) c = Mul(p, q) d = Concat <axis = -1> (c, p) "
        "y = Reshape(d, back8)",
        {"Split": 1, "Mul": 1, "Concat": 1},
    ),
    (
        "a = Reshape(x, rows8) b = Slice(a, from, to, last) c = ReduceSum(b, last) d = Add(c, b8) "
        "y = Reshape(d, back8)",
        {"Slice": 1, "ReduceSum": 1, "Add": 1},
    ),
    # the same matrix as what stays a matrix: the products of rows with rows
    (
        "a = Reshape(x, rows8) b = Gemm(a, w84) c = Transpose(b) d = MatMul(b, c) e = MatMul(d, b) "
        "y = Reshape(e, back4)",
        {"MatMul": 3, "Reshape": 1, "Transpose": 1},
    ),
    # a Reshape of another shape in front, and one of heads behind
    (
        "v = Reshape(x, heads16) t = Transpose <perm = [0,2,1,3]> (v) a = Reshape(t, rows8) b = Gemm(a, w84, b4) "
        "c = Reshape(b, back4) y = Add(c, z)",
        {"Reshape": 2, "Transpose": 1, "MatMul": 1, "Add": 2},
    ),
    # nothing to gain, or not of rows alone
    ("a = Reshape(x, rows8) b = Gemm(a, w84, b4) y = Neg(b)", {"Reshape": 1, "Gemm": 1, "Neg": 1}),
    (
        "a = Reshape(x, rows8) b = Gemm(a, w84, b4) c = Relu(b) d = Gemm(c, w44, b4) e = Relu(d) y = Reshape(e, back4)",
        {"Reshape": 2, "Gemm": 2, "Relu": 2},
    ),
    (
        "a = Reshape(x, rows8) b = Gemm(a, w84, b4) c = Gemm(b, w44, b4) y = Reshape(c, back4)",
        {"Gemm": 2, "Reshape": 2},
    ),
    ("a = Reshape(x, rows8) b = Softmax <axis = 0> (a) y = Reshape(b, back8)", {"Reshape": 2, "Softmax": 1}),
    ("a = Reshape(x, rows8) b = Gemm <alpha = 2.0> (a, w84, b4) y = Reshape(b, back4)", {"Reshape": 2, "Gemm": 1}),
    ("a = Reshape(x, rows8) b = CumSum(a, c0) y = Reshape(b, back8)", {"Reshape": 2, "CumSum": 1}),
    ("a = Reshape(x, rows8) b = Add(a, w18) y = Reshape(b, back8)", {"Add": 1}),
    ("a = Reshape(x, rows8) b = Add(a, m) y = Reshape(b, back8)", {"Reshape": 2, "Add": 1}),
]


@pytest.mark.parametrize(("body", "left"), CASES)
def test_rule(body, left):
    weights = _WEIGHTS.replace(
        ">", ", int64[4] heads16 = {2,-1,2,4}, int64 c0 = {0}, float[1,8] w18 = {1,2,3,4,5,6,7,8}>"
    )
    rank = 2 if "y = Neg" in body else 3
    dims = ",".join("ABC"[:rank])
    text = f"g (float[2,S,8] x, float[2,S,4] z, float[M,8] m) => (float[{dims}] y) {weights} {{ {body} }}"
    outcome = check(text, Fuse(only=("lift-rows",)), sizes=(3, 1, 5, 0), tolerance=1e-5)
    assert outcome.ops == left
    assert outcome.runs > 0


def test_residual_stream_of_matrices():
    """A chain of layers on matrices is lifted as a whole; what else is read as a matrix stays one."""
    text = """g (float[B,S,4] x) => (float[B,S,4] y, float[R,4] m)
        <int64[2] rows = {-1,4}, float[4] b, float[4,4] w>
        {
            shape = Shape(x)
            a = Reshape(x, rows) c = Gemm(a, w, b) d = Add(a, c) e = Tanh(d) f = Gemm(e, w, b) m = Add(d, f)
            y = Reshape <allowzero = 1> (m, shape)
        }""".replace("float[4] b", "float[4] b = {1,2,3,4}").replace(
        "float[4,4] w", "float[4,4] w = {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}"
    )
    outcome = check(text, Fuse(only=("lift-rows",)), tolerance=1e-5)
    assert outcome.ops == {"MatMul": 2, "Add": 4, "Tanh": 1, "Reshape": 1}


@pytest.mark.parametrize("opset", [7, 11, 13, 18])
def test_opsets(opset):
    body = (
        "a = Reshape(x, rows8) b = Gemm(a, w84, b4) p, q = Split <axis = 1> (b) c = Concat <axis = 1> (q, p) "
        "d = Softmax <axis = 1> (c) y = Reshape(d, back4)"
    )
    if opset >= 18:
        body = body.replace("<axis = 1> (b)", "<axis = 1, num_outputs = 2> (b)")
    text = f"g (float[2,S,8] x) => (float[A,B,C] y) {_WEIGHTS} {{ {body} }}"
    outcome = check(text, Fuse(only=("lift-rows",)), opset=opset, tolerance=1e-5)
    assert outcome.ops == {"MatMul": 1, "Add": 1, "Split": 1, "Concat": 1, "Softmax": 1}
