"""Channels that are zero whatever the input, and channels that nothing reads, go; the function stays."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.backends.ort import Session
from optc.inputs import draw_inputs, usual_bindings
from optc.ir.rewriter import Rewriter
from optc.ir.targets import builtin_targets
from optc.passes.base import PassContext
from optc.passes.compress.prune.dead import DeadChannels
from tests.passes.compress.prune.silence import SIZES
from tests.passes.compress.prune.test_axes import weights
from tests.passes.compress.texts import parse

CONVOLUTIONS = """g (float[n, 3, 6, 6] x) => (float[n, 4, 6, 6] y) {
    a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w, c) r = Relu(a) p = Add(r, o) t = Tanh(p)
    d = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8>(t, e) y = Conv(d, v) }"""
ARRAYS = weights(w=(8, 3, 3, 3), c=(8,), e=(8, 1, 3, 3), v=(4, 8, 1, 1)) | {"o": np.zeros((8, 1, 1), np.float32)}


def run(model: onnx_ir.Model) -> PassContext:
    ctx = PassContext(Rewriter(model), builtin_targets()["cpu"])
    DeadChannels().run(ctx)
    return ctx


def channels(model: onnx_ir.Model) -> int:
    return next(iter(model.graph)).inputs[1].const_value.shape.numpy()[0]


def same(model: onnx_ir.Model, original: onnx_ir.Model) -> None:
    feeds = draw_inputs(original, usual_bindings(original, SIZES), 0)
    expected, found = (Session(one, optimization="off").run(feeds)["y"] for one in (original, model))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(unmade=st.sets(st.integers(0, 7)), unread=st.sets(st.integers(0, 7)))
def test_what_is_not_made_or_not_read_goes(unmade: set[int], unread: set[int]) -> None:
    arrays = {name: array.copy() for name, array in ARRAYS.items()}
    arrays["w"][list(unmade)] = 0
    arrays["c"][list(unmade)] = 0
    arrays["v"][:, list(unread)] = 0
    model = parse(CONVOLUTIONS, arrays)
    original = model.clone()
    run(model)
    assert channels(model) == max(1, 8 - len(unmade | unread))
    same(model, original)


@pytest.mark.parametrize("name, number", [("c", 0.5), ("o", 0.5), ("w", 0.5), ("w", np.nan)])
def test_what_is_made_stays(name: str, number: float) -> None:
    arrays = {key: array.copy() for key, array in ARRAYS.items()}
    arrays["w"][2] = 0
    arrays["c"][2] = 0
    arrays[name][2] = number
    model = parse(CONVOLUTIONS, arrays)
    run(model)
    assert channels(model) == 8


def test_one_of_two_that_are_added_is_not_enough() -> None:
    text = """g (float[n, 6] x) => (float[n, 5] y) {
        a = MatMul(x, w) b = MatMul(x, u) s = Add(a, b) m = Mul(s, a) y = MatMul(READ, v) }"""
    arrays = weights(w=(6, 8), u=(6, 8), v=(8, 5))
    arrays["w"][:, :3] = 0
    arrays["u"][:, 2:4] = 0
    for read, left in (("s", 7), ("m", 5)):
        model = parse(text.replace("READ", read), arrays)
        original = model.clone()
        run(model)
        width = next(node for node in model.graph if node.op_type == "MatMul").inputs[1].const_value.shape.numpy()[1]
        assert width == left
        same(model, original)


@pytest.mark.parametrize("product", ["t = Transpose(s) q = MatMul(s, t)", "q = Gemm<transB = 1>(s, s)"])
def test_a_product_without_weights_reads_what_is_not_zero(product: str) -> None:
    text = f"""g (float[6, 6] x) => (float[6, 6] y) {{
        a = MatMul(x, w) s = ADDED {product} z = MatMul(s, v) y = Add(q, z) }}"""
    arrays = weights(w=(6, 8), v=(8, 6), o=(8,))
    arrays["w"][:, :3] = 0
    arrays["v"][:3] = 0
    for added, left in (("Add(a, o)", 8), ("Relu(a)", 5)):
        model = parse(text.replace("ADDED", added), arrays)
        original = model.clone()
        run(model)
        width = next(node for node in model.graph if node.op_type == "MatMul").inputs[1].const_value.shape.numpy()[1]
        assert width == left
        same(model, original)


def test_what_stands_before_dead_channels_dies_with_them() -> None:
    text = """g (float[n, 6] x) => (float[n, 5] y) {
        a = MatMul(x, w) r = Relu(a) b = MatMul(r, u) s = Relu(b) y = MatMul(s, v) }"""
    arrays = weights(w=(6, 8), u=(8, 7), v=(7, 5))
    arrays["u"][3, 1:] = 0  # channel 3 is read for channel 0 alone, which nobody reads
    arrays["v"][0] = 0
    model = parse(text, arrays)
    original = model.clone()
    ctx = run(model)
    assert ctx.hits == {"dead-ffn": 2}
    same(model, original)
