"""SmoothQuant preserves the function exactly (to rounding), wherever it is folded, and refuses where it would not."""

from __future__ import annotations

import numpy as np
import pytest

from optc.ir.rewriter import Rewriter
from optc.passes.compress.layers import Layer, weighted_layers
from optc.passes.compress.smooth import ALPHAS, best_factors, divide, factors, fold_scale, why_not_folded
from tests.passes.compress.texts import parse

from .graphs import draw, error, ops, run

K = 64
X = {"x": draw(5, K)}
W, V = draw(K, K) / 8, draw(K, K, seed=1) / 8
NORM = {"s": draw(K, seed=2), "o": draw(K, seed=3)}
HEAD = "g (float[N, 64] x) => (float[N, 64] y)"

#: name -> (body in which h is read by products, weights)
FOLDED = {
    "layer norm": ("h = LayerNormalization (x, s, o) y = MatMul (h, w)", NORM),
    "layer norm without bias": ("h = LayerNormalization (x, s) y = MatMul (h, w)", NORM),
    "two products": (
        "h = LayerNormalization (x, s, o) a = MatMul (h, w) c = Gemm <transB = 1> (h, t) y = Add (a, c)",
        {**NORM, "t": V},
    ),
    "a product before": ("h = MatMul (x, v) y = MatMul (h, w)", {"v": V}),
    "a gemm before": ("h = Gemm (x, v, b) y = MatMul (h, w)", {"v": V, "b": draw(K)}),
    "a transposed gemm and a relu": (
        "g = Gemm <transB = 1> (x, v, b) h = Relu (g) y = MatMul (h, w)",
        {"v": V, "b": draw(K)},
    ),
}
REFUSED = {
    "it is an input": ("y = MatMul (x, w)", {}, "x"),
    "a sum reads it too": ("h = LayerNormalization (x, s, o) a = MatMul (h, w) y = Add (a, h)", NORM, "h"),
    "tanh is not homogeneous": ("g = MatMul (x, v) h = Tanh (g) y = MatMul (h, w)", {"v": V}, "h"),
    "the relu's input is read elsewhere": (
        "g = MatMul (x, v) h = Relu (g) a = MatMul (h, w) y = Add (a, g)",
        {"v": V},
        "h",
    ),
    "the norm is over other axes": ("h = LayerNormalization <axis = 0> (x, s, o) y = MatMul (h, w)", NORM, "h"),
    "its scale is computed": ("r = Relu (s) h = LayerNormalization (x, r, o) y = MatMul (h, w)", NORM, "h"),
}


def layers_of(rewriter: Rewriter, name: str) -> list[Layer]:
    return [layer for layer in weighted_layers(rewriter.model.graph, rewriter.facts) if layer.x.name == name]


def scale_for(seed: int) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0, 2, K)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FOLDED)
def test_folding_preserves_the_function(name, seed):
    body, weights = FOLDED[name]
    model = parse(f"{HEAD} {{ {body} }}", {"w": W, **weights})
    before, rewriter = run(model, X)[0], Rewriter(model)
    layers = layers_of(rewriter, "h")
    assert why_not_folded(layers[0].x, layers, rewriter.facts) is None
    scale, old = scale_for(seed), ops(model)
    inner = run(_with_output(model, "h"), X)[1]
    fold_scale(rewriter, layers[0].x, scale, layers)
    assert ops(model) == old
    assert error(run(model, X)[0], before) < 2e-6
    assert error(run(_with_output(model, "h"), X)[1] * scale, inner) < 2e-6, "the activations are divided"


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    body, weights, value = REFUSED[name]
    model = parse(f"{HEAD} {{ {body} }}", {"w": W, **weights})
    rewriter = Rewriter(model)
    layers = layers_of(rewriter, value)
    assert why_not_folded(layers[0].x, layers, rewriter.facts)


def test_an_output_is_not_divided():
    model = parse(
        "g (float[N, 64] x) => (float[N, 64] y, float[N, 64] h) { h = MatMul (x, v) y = MatMul (h, w) }",
        {"w": W, "v": V},
    )
    rewriter = Rewriter(model)
    layers = layers_of(rewriter, "h")
    assert "output" in (why_not_folded(layers[0].x, layers, rewriter.facts) or "")


def test_a_product_of_its_own_preserves_the_function_and_others_read_what_they_read():
    body, weights, _ = REFUSED["a sum reads it too"]
    model = parse(f"{HEAD} {{ {body} }}", {"w": W, **weights})
    before, rewriter = run(model, X)[0], Rewriter(model)
    layers = layers_of(rewriter, "h")
    divide(rewriter, layers[0].x, scale_for(0), layers)
    assert ops(model)["Mul"] == 1
    assert error(run(model, X)[0], before) < 2e-6


def test_factors():
    absmax = np.array([100.0, 1.0, 1.0, 0.0], np.float32)
    weight = np.array([[1.0, -1.0]] * 4, np.float32)
    scale = factors(absmax, [weight, weight / 2], 0.5)
    assert scale.shape == (4,) and scale[0] > scale[1] == scale[2]
    assert np.log(scale).mean() == pytest.approx(0, abs=1e-5)
    assert scale[0] / scale[1] == pytest.approx(10), "alpha 0.5: the square root of the spread"
    assert np.array_equal(factors(absmax, [weight], 0.0), np.ones(4, np.float32))


def test_the_best_strength_is_found():
    absmax, weight = np.array([9.0, 1.0], np.float32), np.ones((2, 1), np.float32)
    wanted = factors(absmax, [weight], 0.7)
    alpha, scale, error_ = best_factors(absmax, [weight], lambda one: float(np.abs(one - wanted).max()))
    assert alpha == 0.7 and alpha in ALPHAS and error_ == 0 and np.array_equal(scale, wanted)


def _with_output(model, name):
    copy = model.clone()
    value = next(v for node in copy.graph for v in node.outputs if v.name == name)
    copy.graph.outputs.append(value)
    return copy
