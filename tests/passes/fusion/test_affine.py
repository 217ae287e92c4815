"""Scales and shifts around layers: whatever is drawn, what is folded computes the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .formulas import Formula, close, evaluate, fired, rewrite

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**16)
_TOLERANCE = {np.float32: 1e-5, np.float16: 5e-3}


def _drawn(rng: np.random.Generator, shape: list[int], dtype: type) -> np.ndarray:
    return rng.uniform(0.3, 1.7, shape).astype(dtype)


@quick
@given(
    st.data(),
    st.sampled_from(["Mul", "Div", "Add", "Sub", "BatchNormalization"]),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.booleans(),
    seeds,
)
def test_before_a_convolution(data, op, group, padded, biased, seed):
    rng = np.random.default_rng(seed)
    formula = Formula(data.draw)
    if op == "BatchNormalization":
        parameters = [formula.weight(_drawn(rng, [4], np.float32)) for _ in range(4)]
        x = formula.op(op, "x", *parameters, epsilon=0.01)
    else:
        x = formula.op(op, "x", formula.weight(_drawn(rng, [4, 1, 1], np.float32)))
    weights = [_drawn(rng, [8, 4 // group, 3, 2], np.float32), *([_drawn(rng, [8], np.float32)] if biased else [])]
    pads = [1, 0, 1, 1] if padded else [0] * 4
    model = formula.model(
        {"x": [2, 4, 7, 6]}, formula.op("Conv", x, *map(formula.weight, weights), group=group, pads=pads)
    )
    result = rewrite(model)
    fits = not padded or op in ("Mul", "Div")
    assert fired(result) == ({"affine-into-next-conv": 1} if fits else {})
    feeds = {"x": rng.standard_normal([2, 4, 7, 6]).astype(np.float32)}
    assert close(evaluate(result, feeds), evaluate(model, feeds))


@quick
@given(
    st.data(),
    st.sampled_from(["Mul", "Div", "Add", "Sub"]),
    st.sampled_from(["MatMul", "Gemm"]),
    st.booleans(),
    st.sampled_from([[5], [1], [], [1, 5]]),
    seeds,
)
def test_before_a_dense_layer(data, op, layer, trans_b, shape, seed):
    rng = np.random.default_rng(seed)
    formula = Formula(data.draw)
    x = formula.op(op, "x", formula.weight(_drawn(rng, shape, np.float32)))
    trans_b = trans_b and layer == "Gemm"
    w = formula.weight(_drawn(rng, [6, 5] if trans_b else [5, 6], np.float32))
    y = formula.op("Gemm", x, w, transB=1) if trans_b else formula.op(layer, x, w)
    model = formula.model({"x": [3, 5]}, y)
    result = rewrite(model)
    hits = fired(result)
    if layer == "MatMul" and op in ("Mul", "Div") and shape != [5] and shape != [1, 5]:
        assert sum(hits.values()) == 1, "a scalar goes into the product, one way or the other"
    else:
        fits = op in ("Mul", "Div") or layer == "Gemm"
        assert hits == ({"affine-into-next-dense": 1} if fits else {})
    feeds = {"x": rng.standard_normal([3, 5]).astype(np.float32)}
    assert close(evaluate(result, feeds), evaluate(model, feeds))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@quick
@given(st.data(), st.sampled_from(["Mul", "Div"]), st.sampled_from([[6], [1], [1, 1, 6]]), st.booleans(), seeds)
def test_a_layer_scale_behind_a_bias(dtype, data, op, shape, swapped, seed):
    rng = np.random.default_rng(seed)
    formula = Formula(data.draw, dtype=dtype)
    product = formula.op("MatMul", "x", formula.weight(_drawn(rng, [5, 6], dtype)))
    total = formula.joined("Add", [product, formula.weight(_drawn(rng, [6], dtype))])
    gamma = formula.weight(_drawn(rng, shape, dtype))
    y = formula.op(op, gamma, total) if swapped and op == "Mul" else formula.op(op, total, gamma)
    model = formula.model({"x": [2, 3, 5]}, y)
    result = rewrite(model)
    assert fired(result) == {"scale-into-layer": 1}
    feeds = {"x": rng.standard_normal([2, 3, 5]).astype(dtype)}
    assert close(evaluate(result, feeds), evaluate(model, feeds), _TOLERANCE[dtype])


def test_the_scale_of_a_normalization_stays_its_own():
    formula = Formula(lambda strategy: False)
    one, gamma = (formula.weight(np.full(shape, 2, np.float32)) for shape in ([4], [4, 1, 1]))
    x = formula.op("Mul", formula.op("InstanceNormalization", "x", one, one), gamma)
    w = formula.weight(np.ones([4, 4, 1, 1], np.float32))
    result = rewrite(formula.model({"x": [2, 4, 3, 3]}, formula.op("Conv", x, w)))
    assert "affine-into-next-conv" not in fired(result)
    assert "normalization" in result.misses["affine-into-next-conv"][0].wanted


def test_what_is_read_twice_is_not_folded():
    formula = Formula(lambda strategy: False)
    scaled = formula.op("Mul", "x", formula.weight(np.full([4, 1, 1], 2, np.float32)))
    w = formula.weight(np.ones([4, 4, 1, 1], np.float32))
    y = formula.op("Add", formula.op("Conv", scaled, w), scaled)
    model = formula.model({"x": [2, 4, 3, 3]}, y)
    assert "affine-into-next-conv" not in fired(rewrite(model))
