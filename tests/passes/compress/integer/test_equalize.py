"""Cross-layer equalization preserves the function and evens out ranges, wherever it applies, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter
from optc.passes.compress.equalize import chains, equalize
from tests.passes.compress.texts import parse

from .graphs import draw, error, ops, run

IMAGE = {"x": draw(2, 6, 9, 9)}
ROWS = {"x": draw(2, 5, 6)}
SPREAD = np.exp(np.random.default_rng(1).normal(0, 2, 12)).astype(np.float32)
W, B = draw(12, 6, 3, 3) * SPREAD[:, None, None, None], draw(12) * SPREAD
U, D = draw(12, 1, 3, 3), draw(12)
V = draw(5, 12, 1, 1) / SPREAD[None, :, None, None]
M, N = draw(6, 12) * SPREAD, draw(12, 4) / SPREAD[:, None]
IMAGES = "g (float[N, 6, H, K] x) => (float[N, C, P, Q] y)"
PRODUCTS = "g (float[A, B, 6] x) => (float[A, B, C] y)"

#: name -> (head, body, weights, how many chains)
CASES = {
    "a pair": (IMAGES, "a = Conv (x, w, b) y = Conv (a, v)", {"w": W, "b": B, "v": V}, 1),
    "through a relu": (IMAGES, "a = Conv (x, w, b) r = Relu (a) y = Conv (r, v)", {"w": W, "b": B, "v": V}, 1),
    "through a leaky relu": (
        IMAGES,
        "a = Conv (x, w) r = LeakyRelu <alpha = 0.3> (a) y = Conv (r, v)",
        {"w": W, "v": V},
        1,
    ),
    "a triple": (
        IMAGES,
        "a = Conv (x, w, b) r = Relu (a) c = Conv <group = 12> (r, u, d) s = Relu (c) y = Conv (s, v)",
        {"w": W, "b": B, "u": U, "d": D, "v": V},
        1,
    ),
    "a row of pairs": (
        IMAGES,
        "a = Conv (x, w, b) c = Conv (a, t) r = Relu (c) y = Conv (r, v)",
        {"w": W, "b": B, "t": draw(12, 12, 1, 1), "v": V},
        2,
    ),
    "products": (PRODUCTS, "a = MatMul (x, m) r = Relu (a) y = MatMul (r, n)", {"m": M, "n": N}, 1),
    "gemms": (
        "g (float[A, 6] x) => (float[A, C] y)",
        "a = Gemm (x, m, b) r = Relu (a) y = Gemm <transB = 1> (r, n)",
        {"m": M, "b": B, "n": np.ascontiguousarray(N.T)},
        1,
    ),
    "a sigmoid between": (IMAGES, "a = Conv (x, w, b) r = Sigmoid (a) y = Conv (r, v)", {"w": W, "b": B, "v": V}, 0),
    "a clip between": (
        IMAGES,
        "a = Conv (x, w, b) r = Clip (a, low, high) y = Conv (r, v)",
        {"w": W, "b": B, "v": V, "low": np.float32(0), "high": np.float32(6)},
        0,
    ),
    "read twice": (
        IMAGES,
        "a = Conv (x, w, b) c = Conv (a, v) e = Conv (a, v) y = Add (c, e)",
        {"w": W, "b": B, "v": V},
        0,
    ),
    "groups that are not depthwise": (
        IMAGES,
        "a = Conv (x, w, b) y = Conv <group = 2> (a, v)",
        {"w": W, "b": B, "v": draw(4, 6, 1, 1)},
        0,
    ),
    "a product over another axis": (
        "g (float[N, 6, H, 14] x) => (float[N, C, P, 4] y)",
        "a = Conv (x, w, b) y = MatMul (a, n)",
        {"w": W, "b": B, "n": N},
        0,
    ),
}


def feeds_of(head: str) -> dict[str, np.ndarray]:
    if "[A, 6]" in head:
        return {"x": draw(7, 6)}
    if "14" in head:
        return {"x": draw(2, 6, 9, 14)}
    return ROWS if head is PRODUCTS else IMAGE


def reach(model: onnx_ir.Model, index: int, axis: int) -> np.ndarray:
    """The largest weight per channel of the layer of an index."""
    nodes = [node for node in model.graph if node.op_type in ("Conv", "MatMul", "Gemm")]
    weight = nodes[index].inputs[1].const_value.numpy()
    return np.abs(weight).max(axis=tuple(one for one in range(weight.ndim) if one != axis))


@pytest.mark.parametrize("name", CASES)
def test_the_function_is_preserved(name):
    head, body, weights, count = CASES[name]
    model, feeds = parse(f"{head} {{ {body} }}", weights), feeds_of(head)
    before, old = run(model, feeds)[0], ops(model)
    assert equalize(Rewriter(model)) == count
    assert ops(model) == old and error(run(model, feeds)[0], before) < 3e-6
    assert (len(list(chains(model.graph, Facts(model)))) == count) and equalize(Rewriter(model)) == count
    assert error(run(model, feeds)[0], before) < 3e-6, "a second time neither"


def test_ranges_are_even_afterwards():
    head, body, weights, _ = CASES["a pair"]
    model = parse(f"{head} {{ {body} }}", weights)
    assert not np.allclose(reach(model, 0, 0), reach(model, 1, 1), rtol=0.5)
    equalize(Rewriter(model))
    assert np.allclose(reach(model, 0, 0), reach(model, 1, 1), rtol=1e-5)


def test_all_three_of_a_triple_are_even():
    head, body, weights, _ = CASES["a triple"]
    model = parse(f"{head} {{ {body} }}", weights)
    equalize(Rewriter(model))
    assert np.allclose(reach(model, 0, 0), reach(model, 1, 0), rtol=1e-5)
    assert np.allclose(reach(model, 0, 0), reach(model, 2, 1), rtol=1e-5)


def test_dead_channels_are_left_alone():
    weight = W.copy()
    weight[3] = 0
    model = parse(f"{IMAGES} {{ a = Conv (x, w, b) y = Conv (a, v) }}", {"w": weight, "b": B, "v": V})
    before = run(model, IMAGE)[0]
    equalize(Rewriter(model))
    assert error(run(model, IMAGE)[0], before) < 3e-6
    assert np.array_equal(reach(model, 1, 1)[3], np.abs(V[:, 3]).max())
