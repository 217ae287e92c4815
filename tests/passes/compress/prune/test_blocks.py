"""Residual blocks: those that add least go first, and the model is the one without them."""

from __future__ import annotations

import numpy as np
import pytest

from optc.backends.ort import Session
from optc.ir.verify import verify_structure
from optc.passes.compress.prune.blocks import blocks_of
from optc.passes.compress.prune.prune import Prune
from tests.passes.compress.prune.test_prune import X, prune
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(1)


def square(scale: float) -> np.ndarray:
    return (scale * RANDOM.standard_normal((16, 16)) / 4).astype(np.float32)


WEIGHTS = {
    "a": square(1),
    "b": square(0.01),
    "c": square(1),
    "d": square(1),
    "v": square(1),
    "one": np.ones(16, np.float32),
}
BODY = """g (float[N, 16] x) => (float[N, 16] y) {
    f = MatMul(x, a) g = Relu(f) s = Add(x, g)
    h = MatMul(s, b) i = Relu(h) t = Sum(i, s, one)
    j = MatMul(t, c) k = Tanh(j) l = MatMul(k, d) m = Mul(l, k) u = Add(m, t)
    y = MatMul(u, v) }"""


def test_blocks_are_found() -> None:
    model = parse(BODY, WEIGHTS)
    blocks = list(blocks_of(model.graph, prune(model, Prune(ratio=0.0)).facts))
    assert [(block.kept.name, block.branch.name, len(block.body)) for block in blocks] == [
        ("x", "g", 2),
        ("s", "i", 2),
        ("t", "m", 4),
    ]


def test_the_one_that_adds_least_goes_first() -> None:
    model = parse(BODY, WEIGHTS)
    ctx = prune(model, Prune(ratio=0.34, granularity=("block",)))
    assert verify_structure(model) == []
    (decision,) = ctx.decisions
    assert decision.kept and len(decision.where) == 1
    x = X @ np.zeros((16, 16), np.float32) + X
    s = x + np.maximum(x @ WEIGHTS["a"], 0)
    k = np.tanh(s @ WEIGHTS["c"])
    expected = (k @ WEIGHTS["d"] * k + s) @ WEIGHTS["v"]
    np.testing.assert_allclose(Session(model).run({"x": X})["y"], expected, rtol=1e-4, atol=1e-4)


def test_all_of_them_may_go() -> None:
    model = parse(BODY, WEIGHTS)
    prune(model, Prune(ratio=0.99, granularity=("block",)))
    assert [node.op_type for node in model.graph] == ["MatMul"]


def test_what_others_read_is_no_block() -> None:
    model = parse(BODY.replace("=> (float[N, 16] y)", "=> (float[N, 16] y, float[N, 16] i)"), WEIGHTS)
    found = list(blocks_of(model.graph, prune(model, Prune(ratio=0.0)).facts))
    assert [block.branch.name for block in found] == ["g", "m"]


@pytest.mark.parametrize("data", [True, False])
def test_without_data_no_block_goes(data: bool) -> None:
    model = parse(BODY, WEIGHTS)
    ctx = prune(model, Prune(ratio=0.5, granularity=("block",)), data=data)
    assert ctx.decisions[0].kept is data
    assert data or "calibration data" in ctx.decisions[0].reason


def test_sums_that_are_normalized() -> None:
    text = """g (float[N, 16] x) => (float[N, 16] y) {
        f = MatMul(x, b) n, , , s = com.microsoft.SkipLayerNormalization(x, f, one, zero) y = Mul(n, s) }"""
    model = parse(text, WEIGHTS | {"zero": np.zeros(16, np.float32)})
    prune(model, Prune(ratio=0.99, granularity=("block",)))
    assert [node.op_type for node in model.graph] == ["LayerNormalization", "Mul"]
    centred = X - X.mean(1, keepdims=True)
    expected = X * centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(Session(model).run({"x": X})["y"], expected, rtol=1e-4, atol=1e-4)
