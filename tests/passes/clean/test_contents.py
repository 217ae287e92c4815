"""What is said of the contents of computed tensors, held against what they are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from optc.ir.dims import evaluate
from optc.ir.facts import Facts
from optc.ir.model import load
from optc.passes.clean.contents import bounds, grid, uniform

from .rulecheck import model_of, session

_HEAD = """g (float[N,M] x) => (T[R] y)
<int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64 three = {3}, int64 minus = {-1}, int64[1] v0 = {0},
 int64[1] v1 = {1}, int64[1] v2 = {2}, int64[1] vm = {-1}, int64[2] v01 = {0,1}, int64[1] far = {9223372036854775807},
 int64[1,6] table = {3,4,5,6,7,8}, int64[6] odd = {1,2,4,5,6,7}, int64[2,3] rows = {5,6,7,15,16,17},
 int64[2] v12 = {1,2}, int64[2,2] ones = {1,1,1,1}>
{ s = Shape(x) n = Gather(s, zero) m = Gather(s, one) r = Range(zero, n, one) q = Range(one, m, two) """

#: body, number of dims of y, and what is known: (uniform, steps of the grid as text, low and high as text)
CASES = [
    ("y = Identity(r)", 1, None, "0 (1,)", "0 N - 1"),
    ("y = Range(n, zero, minus)", 1, None, "N (-1,)", "1 N"),
    ("y = Add(r, n)", 1, None, "N (1,)", "N 2*N - 1"),
    ("y = Sub(n, r)", 1, None, "N (-1,)", "1 N"),
    ("a = Unsqueeze(r, v1) y = Mul(a, two)", 2, None, "0 (2, 0)", "0 2*N - 2"),
    ("a = Unsqueeze(r, v1) b = Mul(m, a) c = Range(zero, m, one) y = Add(b, c)", 2, None, "0 (M, 1)", None),
    ("a = Unsqueeze(r, v0) b = Expand(a, s2) y = Transpose(b)", 2, None, "0 (1, 0)", "0 N - 1"),
    ("a = Unsqueeze(r, vm) y = Reshape(a, vm)", 1, None, "0 (1,)", "0 N - 1"),
    ("y = Slice(q, v2, far, v0, v2)", 1, None, "5 (4,)", None),
    ("y = Slice(table, v2, far, v1)", 2, None, "5 (0, 1)", "5 8"),
    ("y = Add(rows, n)", 2, None, "N + 5 (10, 1)", "5 None"),
    ("y = Add(odd, n)", 1, None, None, None),
    ("y = Cast <to = 6> (r)", 1, None, "0 (1,)", "0 N - 1"),
    # one number everywhere
    ("y = Expand(three, s)", 2, 3, None, "3 3"),
    ("a = GatherElements(ones, zz) y = Gather(a, r0)", 2, 1, None, "1 1"),
    ("y = GreaterOrEqual(r, zero)", 1, True, None, None),
    ("y = Less(r, n)", 1, True, None, None),
    ("y = Greater(r, n)", 1, False, None, None),
    ("y = Equal(r, minus)", 1, False, None, None),
    ("y = LessOrEqual(r, three)", 1, None, None, None),
    ("y = LessOrEqual(n, r)", 1, False, None, None),
    ("a = Less(r, n) b = Not(a) c = Or(a, b) y = And(c, a)", 1, True, None, None),
    ("a = Less(r, n) y = Where(a, three, r)", 1, 3, None, None),
    ("a = Less(r, n) b = Cast <to = 7> (a) y = Concat <axis = 0> (b, v1)", 1, 1, None, "0 1"),
    ("a = Less(r, n) y = Cast <to = 1> (a)", 1, 1.0, None, None),
    ("y = ConstantOfShape <value = int32[1] {7}> (s)", 2, 7, None, "7 7"),
    ("y = ConstantOfShape(s)", 2, 0.0, None, None),
    ("a = Less(r, three) y = And(a, a)", 1, None, None, None),
]


@pytest.mark.parametrize(("body", "rank", "number", "steps", "limits"), CASES)
def test_contents(body, rank, number, steps, limits):
    extra = "s2 = Concat <axis = 0> (v2, v1) " if "s2" in body else ""
    extra += "zz = Expand(zero, v12) r0 = Slice(v01, v0, v1) " if "zz" in body else ""
    if "s2" in body:
        extra = "n1 = Unsqueeze(n, v0) s2 = Concat <axis = 0> (v2, n1) "
    text = f"{_HEAD} {extra} {body} }}".replace("T[R]", f"int64[{','.join('ABC'[:rank])}]")
    model = load(model_of(text))
    facts, y = Facts(model), model.graph.outputs[0]
    found, ends, same = grid(facts, y), bounds(facts, y), uniform(facts, y)
    assert same == number and type(same) is type(number)
    assert steps is None or f"{found.start} {_text(found.steps)}" == steps
    assert limits is None or f"{ends.low} {ends.high}" == limits
    runner = _session(text)
    for n, m in itertools.product((0, 1, 2, 5), (1, 4, 9)):
        (array,) = runner.run(None, {"x": np.zeros((n, m), np.float32)})
        dims = {"N": n, "M": m}
        if same is not None:
            assert np.all(array == same)
        if found is not None and len(found.steps) == array.ndim:
            wanted = np.full(array.shape, evaluate(found.start, dims))
            for step, index in zip(found.steps, np.indices(array.shape), strict=True):
                wanted = wanted + evaluate(step, dims) * index
            np.testing.assert_array_equal(array, wanted)
        if array.size and ends.low is not None:
            assert array.min() >= evaluate(ends.low, dims)
        if array.size and ends.high is not None:
            assert array.max() <= evaluate(ends.high, dims)


def _text(steps) -> str:
    return "(" + ", ".join(map(str, steps)) + ("," if len(steps) == 1 else "") + ")"


def _session(text: str):
    """A session, whatever the type of the output is."""
    for kind in ("int64", "bool", "float", "int32"):
        try:
            return session(model_of(text.replace("=> (int64[", f"=> ({kind}[")))
        except Exception as error:
            last = error
    raise last
