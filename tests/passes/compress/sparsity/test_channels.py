"""Channels in another order: the same function, and only where it is."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.backends.ort import Session
from optc.ir.rewriter import Rewriter
from optc.ir.verify import verify_structure
from optc.passes.compress.prune.axes import structure_of
from optc.passes.compress.sparsity.channels import movable, reorder
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return (RANDOM.standard_normal(shape) / 4).astype(np.float32)


def moved(text: str, weights: dict[str, np.ndarray], x: np.ndarray) -> list[tuple[str, int]]:
    """Turn all groups that may be moved around; the function must be the same. The groups, with their sizes."""
    model = parse(text, weights)
    original = model.clone()
    structure = structure_of(model.graph, Rewriter(model).facts)
    groups = movable(structure)
    orders = {group: RANDOM.permutation(len(group)) for group in groups}
    reorder(Rewriter(model), structure, orders)
    assert verify_structure(model) == []
    before, after = (Session(one, optimization="off").run({"x": x})["y"] for one in (original, model))
    assert np.allclose(before, after, atol=1e-5 * np.abs(before).max())
    if groups:
        assert any(not np.array_equal(a, b) for a, b in zip(_weights(original), _weights(model), strict=True))
    return [(group.kind, len(group)) for group in groups]


def _weights(model: onnx_ir.Model) -> list[np.ndarray]:
    return [value.const_value.numpy() for node in model.graph for value in node.inputs if value.const_value is not None]


IMAGE, ROWS = draw(2, 4, 6, 6), draw(3, 8)


def test_products_with_what_lies_between_them():
    text = """g (float[N, 8] x) => (float[N, 4] y) {
        a = MatMul (x, w) b = Add (a, bias) c = Relu (b) d = Mul (c, scale) y = Gemm <transB = 1> (d, v) }"""
    weights = {"w": draw(8, 12), "bias": draw(12), "scale": draw(1, 12), "v": draw(4, 12)}
    assert moved(text, weights, ROWS) == [("ffn", 12)]


def test_convolutions_with_a_depthwise_one_between_them():
    text = """g (float[N, 4, 6, 6] x) => (float[N, 4, Q, P] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b) c = Relu (a) d = Conv <group = 8, pads = [1, 1, 1, 1]> (c, k)
        e = BatchNormalization (d, s, t, m, v) y = Conv (e, u) }"""
    weights = {"w": draw(8, 4, 3, 3), "b": draw(8), "k": draw(8, 1, 3, 3), "u": draw(4, 8, 3, 3)}
    weights |= {"s": draw(8), "t": draw(8), "m": draw(8), "v": np.abs(draw(8)) + 1}
    assert moved(text, weights, IMAGE) == [("conv", 8)]


def test_a_residual_sum_moves_all_that_adds_to_it():
    text = """g (float[N, 8] x) => (float[N, 4] y) {
        a = MatMul (x, w) b = MatMul (a, v) c = Relu (b) d = Add (a, c) y = MatMul (d, u) }"""
    weights = {"w": draw(8, 6), "v": draw(6, 6), "u": draw(6, 4)}
    assert moved(text, weights, ROWS) == [("residual", 6)]


@pytest.mark.parametrize(
    "middle",
    [
        "c = LayerNormalization <axis = -1> (a, s)",
        "p, q = Split <axis = 1> (a) c = Concat <axis = 1> (q, p)",
        "p, q = Split <axis = 1> (a) r = Relu (p) c = Concat <axis = 1> (r, q)",
        "c = Gather <axis = 1> (a, turned)",
        "p = Slice (a, begin, end, axis) q = Relu (p) r = Slice (a, end, last, axis) c = Concat <axis = 1> (q, r)",
        "c = CumSum (a, axis)",
    ],
    ids=["norm", "halves", "relu-of-half", "gather", "slices", "cumsum"],
)
def test_what_tells_positions_apart_keeps_their_order(middle):
    text = f"g (float[N, 8] x) => (float[N, 4] y) {{ a = MatMul (x, w) {middle} y = MatMul (c, v) }}"
    weights = {"w": draw(8, 8), "v": draw(8, 4), "s": draw(8), "turned": np.arange(8)[::-1].copy()}
    weights |= {"begin": np.array([0]), "end": np.array([4]), "last": np.array([8]), "axis": np.array([1])}
    if "CumSum" in middle:
        weights["axis"] = np.array(1)
    assert moved(text, {name: array for name, array in weights.items() if name in text}, ROWS) == []


def test_channels_that_are_spread_over_pixels_keep_their_order():
    text = """g (float[N, 4, 6, 6] x) => (float[N, 3] y) { a = Conv (x, w) f = Flatten (a) y = MatMul (f, v) }"""
    assert moved(text, {"w": draw(5, 4, 3, 3), "v": draw(5 * 16, 3)}, IMAGE) == []


def test_a_grouped_convolution_keeps_the_order_of_its_channels():
    text = """g (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y) {
        a = Conv (x, w) b = Conv <group = 2> (a, k) y = Conv (b, v) }"""
    weights = {"w": draw(8, 4, 1, 1), "k": draw(8, 4, 1, 1), "v": draw(3, 8, 1, 1)}
    assert moved(text, weights, IMAGE) == []
