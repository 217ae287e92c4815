"""Attention and rotary embedding fuse in any spelling; the numbers stay at every size and under every mask."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .formulas import Formula, close, evaluate, fired, rewrite

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**16)
_LOWEST = float(np.finfo(np.float32).min)


def _heads(formula: Formula, x: str, heads: int, perm=(0, 2, 1, 3)) -> str:
    split = formula.op("Reshape", x, formula.weight(np.array([0, 0, heads, -1], np.int64)))
    return formula.op("Transpose", split, perm=list(perm))


def _attention(formula: Formula, heads: int, size: int, mask: str | None, guard: bool) -> str:
    """softmax(q k^T / sqrt(size) + mask) v, the scale and the transpose of k wherever they may stand."""
    q, v = _heads(formula, "q", heads), _heads(formula, "v", heads)
    if formula.draw(st.booleans()):
        k = _heads(formula, "k", heads, (0, 2, 3, 1))
    else:
        k = formula.op("Transpose", _heads(formula, "k", heads), perm=[0, 1, 3, 2])
    place = formula.draw(st.sampled_from(["q", "k", "both", "scores"]))
    if place == "both":
        q, k = (formula.scaled(x, size**-0.25) for x in (q, k))
    elif place == "q":
        q = formula.scaled(q, size**-0.5)
    elif place == "k":
        k = formula.scaled(k, size**-0.5)
    scores = formula.op("MatMul", q, k)
    if place == "scores":
        scores = formula.scaled(scores, size**-0.5)
    if mask is not None:
        scores = formula.joined("Add", [scores, mask])
    weights = formula.op("Softmax", scores, axis=formula.draw(st.sampled_from([-1, 3])))
    if guard:
        weights = formula.op("Where", formula.op("IsNaN", weights), formula.constant(0.0), weights)
    joined = formula.op("Transpose", formula.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    return formula.op("Reshape", joined, formula.weight(np.array([0, 0, heads * size], np.int64)))


def _same(result, model, feeds: dict[str, np.ndarray]) -> bool:
    """Without a guard a row that is hidden by minus infinity is NaN, before and after."""
    got, want = evaluate(result, feeds), evaluate(model, feeds)
    return np.array_equal(np.isnan(got), np.isnan(want)) and close(np.nan_to_num(got), np.nan_to_num(want), 1e-4)


def _masks(shape: tuple[int, ...], seed: int, hidden: float) -> np.ndarray:
    """A random mask whose first row hides everything."""
    mask = np.where(np.random.default_rng(seed).random(shape) < 0.4, np.float32(hidden), np.float32(0))
    mask[..., 0, :] = hidden
    return mask


@quick
@given(
    st.data(),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(1, 7),
    st.sampled_from([None, "all", "head", "row", "batch"]),
    st.sampled_from([_LOWEST, -np.inf, -3.0]),
    st.booleans(),
    seeds,
)
def test_attention_in_any_spelling(data, batch, heads, size, queries, keys, kind, hidden, guard, seed):
    formula = Formula(data.draw)
    shape = {
        "all": (batch, heads, queries, keys),
        "head": (batch, 1, queries, keys),
        "row": (batch, 1, 1, keys),
        "batch": (1, 1, queries, keys),
    }.get(kind)
    width = heads * size
    shapes = {"q": [batch, queries, width], "k": [batch, keys, width], "v": [batch, keys, width]}
    if shape is not None:
        shapes["m"] = list(shape)
    model = formula.model(shapes, _attention(formula, heads, size, None if shape is None else "m", guard))
    result = rewrite(model)
    if guard and kind == "all" and heads > 1:
        assert "attention" not in fired(result)
    else:
        assert fired(result).get("attention") == 1
    rng = np.random.default_rng(seed)
    feeds = {name: rng.standard_normal(dims).astype(np.float32) for name, dims in shapes.items()}
    if shape is not None:
        feeds["m"] = _masks(shape, seed, hidden)
    assert _same(result, model, feeds)


@quick
@given(st.data(), st.sampled_from(["scale", "axis", "perm", "mask"]), seeds)
def test_what_is_near_attention_is_none(data, which, seed):
    """A scale per key, a softmax over queries, heads that stay apart, a mask of too many batches."""
    formula = Formula(data.draw)
    q, k, v = _heads(formula, "q", 2), _heads(formula, "k", 2, (0, 2, 3, 1)), _heads(formula, "v", 2)
    if which == "scale":
        k = formula.op("Mul", k, formula.weight(np.arange(1, 4, dtype=np.float32)))
    scores = formula.op("MatMul", q, k)
    if which == "mask":
        scores = formula.op("Add", scores, "m")
    weights = formula.op("Softmax", scores, axis=2 if which == "axis" else 3)
    order = [0, 1, 2, 3] if which == "perm" else [0, 2, 1, 3]
    joined = formula.op("Transpose", formula.op("MatMul", weights, v), perm=order)
    shapes = {"q": [1, 3, 4], "k": [1, 3, 4], "v": [1, 3, 4], "m": [2, 1, 3, 3]}
    end = formula.op("Reshape", joined, formula.weight(np.array([0, 0, -1], np.int64)))
    if which != "mask":
        end = formula.op("Add", end, formula.op("ReduceMax", "m", keepdims=0))
    model = formula.model(shapes, end)
    result = rewrite(model)
    assert fired(result).get("attention", 0) == 0
    feeds = {n: np.random.default_rng(seed).standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    assert close(evaluate(result, feeds), evaluate(model, feeds), 1e-4)


@quick
@given(
    st.data(),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(0, 3),
    st.booleans(),
    seeds,
)
def test_rotary_embedding(data, batch, heads, length, half, kept, flat, seed):
    """The heads as a whole or, before some numbers that are kept, their first ones."""
    formula = Formula(data.draw)
    x = whole = _heads(formula, "x", heads) if flat else "x"

    def cut(start: int, end: int) -> str:
        bounds = (formula.weight(np.array([bound], np.int64)) for bound in (start, end, -1))
        return formula.op("Slice", x, *bounds)

    size = 2 * half + kept
    if kept:
        x = cut(0, formula.draw(st.sampled_from([2 * half, -kept])))
    if formula.draw(st.booleans()):
        low, high = cut(0, half), cut(half, 2**31 - 1)
    else:
        low, high = cut(0, -half), cut(-half, 2 * half)
    turned = formula.op("Concat", formula.op("Neg", high), low, axis=-1)
    angles = formula.op("Concat", "f", "f", axis=-1)
    cos, sin = formula.op("Cos", angles), formula.op("Sin", angles)
    scaled, moved = formula.joined("Mul", [x, cos]), formula.joined("Mul", [turned, sin])
    result = formula.joined("Add", [scaled, moved])
    if kept:
        x = whole
        result = formula.op("Concat", result, cut(formula.draw(st.sampled_from([2 * half, -kept])), size), axis=-1)
    shapes = {"x": [batch, length, heads * size] if flat else [batch, heads, length, size], "f": [length, half]}
    model = formula.model(shapes, result)
    result = rewrite(model)
    assert fired(result)["partial-rotary-embedding" if kept else "rotary-embedding"] == 1
    rng = np.random.default_rng(seed)
    feeds = {name: rng.standard_normal(dims).astype(np.float32) for name, dims in shapes.items()}
    assert close(evaluate(result, feeds), evaluate(model, feeds), 1e-4)


@quick
@given(
    st.data(),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 4),
    st.sampled_from([_LOWEST, -np.inf]),
    st.booleans(),
    seeds,
)
def test_grouped_heads_with_a_past(data, batch, shared, times, size, length, past, hidden, twice, seed):
    """Repeated heads, a past, a bias and a mask that hides the first row, in every mixture."""
    formula = Formula(data.draw)
    heads = shared * times
    q = _heads(formula, "q", heads)
    k, v = _heads(formula, "k", shared), _heads(formula, "v", shared)
    if past:
        k, v = formula.op("Concat", "pk", k, axis=2), formula.op("Concat", "pv", v, axis=-2)
    if times > 1:
        k, v = (_repeated(formula, x, shared, times, size) for x in (k, v))
    scores = formula.scaled(formula.op("MatMul", q, formula.op("Transpose", k, perm=[0, 1, 3, 2])), size**-0.5)
    if twice:
        scores = formula.joined("Add", [scores, "b"])
    scores = formula.op("Where", "m", formula.constant(hidden), scores)
    context = formula.op("MatMul", formula.op("Softmax", scores, axis=-1), v)
    joined = formula.op("Transpose", context, perm=[0, 2, 1, 3])
    end = formula.op("Reshape", joined, formula.weight(np.array([0, 0, heads * size], np.int64)))
    keys = past + length
    shapes = {
        "q": [batch, length, heads * size],
        **{name: [batch, length, shared * size] for name in ("k", "v")},
        **({name: [batch, shared, past, size] for name in ("pk", "pv")} if past else {}),
        **({"b": [1, heads, length, keys]} if twice else {}),
        "m": [batch, 1, length, keys],
    }
    model = formula.model(shapes, end)
    next(value for value in model.graph.input if value.name == "m").type.tensor_type.elem_type = onnx.TensorProto.BOOL
    result = rewrite(model)
    wanted = {"attention": 1, "attention-grouped": times > 1, "attention-past": past > 0, "one-mask": twice}
    assert {name: fired(result).get(name, 0) for name in wanted} == wanted
    rng = np.random.default_rng(seed)
    feeds = {name: rng.standard_normal(dims).astype(np.float32) for name, dims in shapes.items()}
    feeds["m"] = rng.random(shapes["m"]) < 0.4
    feeds["m"][..., 0, :] = True
    assert _same(result, model, feeds)


def _repeated(formula: Formula, heads: str, count: int, times: int, size: int) -> str:
    """Each head several times in a row, by one of the ways that exporters know."""
    if formula.draw(st.booleans()):
        return formula.op("Gather", heads, formula.weight(np.repeat(np.arange(count), times)), axis=1)
    wide = formula.op("Unsqueeze", heads, formula.weight(np.array([2], np.int64)))
    if formula.draw(st.booleans()):
        copies = formula.op("Concat", *[wide] * times, axis=2)
    else:
        shape = formula.weight(np.array([1, 1, times, 1, 1], np.int64))
        copies = formula.op(formula.draw(st.sampled_from(["Expand", "Tile"])), wide, shape)
    return formula.op("Reshape", copies, formula.weight(np.array([0, count * times, -1, size], np.int64)))


@pytest.mark.parametrize(("target", "made"), [("cpu", "Softmax"), ("cuda", "MultiHeadAttention")])
def test_half_precision_needs_a_kernel(target, made):
    """The CPU has no kernel for float16; the CUDA provider has one."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float16[B,S,8] q, float16[B,S,8] k, float16[B,S,8] v) => (float16[B,S,8] y)
        <int64[4] split = {0, 0, 2, 4}, int64[3] join = {0, 0, 8}> {
           a = Reshape (q, split)  b = Transpose <perm = [0, 2, 1, 3]> (a)
           c = Reshape (k, split)  d = Transpose <perm = [0, 2, 3, 1]> (c)
           e = Reshape (v, split)  f = Transpose <perm = [0, 2, 1, 3]> (e)
           s = MatMul (b, d)  p = Softmax <axis = -1> (s)  o = MatMul (p, f)
           t = Transpose <perm = [0, 2, 1, 3]> (o)  y = Reshape (t, join)
        }""")
    result = rewrite(model, target=target)
    assert fired(result) == {"attention": 1}
    assert made in [node.op_type for node in result.model.graph]
