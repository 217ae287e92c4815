"""The integer forms of a layer: what is encoded is what ONNX Runtime's kernels read."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.backends.ort import Session
from optc.ir.rewriter import Rewriter
from optc.passes.compress.schemes import SCHEMES, encode_blocks, encode_per_column

RANDOM = np.random.default_rng(0)


def layer(scheme: str, weight: np.ndarray) -> Session:
    """y = x @ weight in a scheme's form."""
    rows, columns = weight.shape
    model = onnx_ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"g (float[B, M, {rows}] x) => (float[B, M, {columns}] y) {{ y = Identity(x) }}"
    )
    rewriter, node = Rewriter(model), model.graph[0]
    with rewriter.at(node, scheme):
        y = SCHEMES[scheme].emit(rewriter, node.inputs[0], SCHEMES[scheme].encode(weight), "w")
    node.replace_input_with(0, y)
    return Session(model)


def decoded(scheme: str, weight: np.ndarray) -> np.ndarray:
    """The weight that a scheme's arrays stand for, (K, N)."""
    arrays = SCHEMES[scheme].encode(weight)
    if scheme == "dynamic-int8":
        return arrays["weight"].astype(np.float32) * arrays["scale"]
    blocks = (arrays["weight"].astype(np.float32) - 128) * arrays["scale"][..., None]
    return blocks.reshape(weight.shape[1], weight.shape[0]).T


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(128, 64), (256, 48), (384, 33)])
def test_the_kernels_compute_what_was_encoded(scheme, shape):
    weight = RANDOM.standard_normal(shape).astype(np.float32)
    x = RANDOM.standard_normal((2, 5, shape[0])).astype(np.float32)
    y = layer(scheme, weight).run({"x": x})["y"]
    exact, stored = x @ weight, x @ decoded(scheme, weight)
    assert y.shape == exact.shape
    scale = np.abs(exact).mean()
    assert np.abs(stored - exact).mean() / scale < 0.01, "the weights"
    assert np.abs(y - stored).mean() / scale < 0.02, "the activations"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_identities_come_through(scheme):
    """A permutation matrix times 3: a wrong layout, scale or zero point could not be overlooked."""
    permutation = RANDOM.permutation(128)
    weight = 3 * np.eye(128, dtype=np.float32)[permutation]
    x = np.zeros((1, 128, 128), np.float32)
    x[0] = np.eye(128)
    y = layer(scheme, weight).run({"x": x})["y"][0]
    np.testing.assert_allclose(y, weight, atol=0.03)


def test_encodings():
    weight = np.array([[1.0, 0.0, -4.0], [-2.0, 0.0, 2.0]], np.float32)
    arrays = encode_per_column(weight)
    np.testing.assert_array_equal(arrays["weight"], [[64, 0, -127], [-127, 0, 64]])
    np.testing.assert_allclose(arrays["scale"], [2 / 127, 1.0, 4 / 127], rtol=1e-6)
    assert (arrays["weight"].dtype, arrays["scale"].dtype) == (np.int8, np.float32)
    blocks = encode_blocks(np.arange(-32, 32, dtype=np.float32).reshape(64, 1), 32)
    assert blocks["weight"].shape == (1, 2, 32) and blocks["scale"].shape == (1, 2)
    assert blocks["weight"].dtype == np.uint8 and blocks["weight"].min() == 1
    np.testing.assert_allclose(blocks["scale"][0], [32 / 127, 31 / 127], rtol=1e-6)
    assert blocks["weight"][0, 1, 0] == 128, "zero is stored exactly"
    assert encode_blocks(np.zeros((33, 4), np.float32), 32) is None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_of_zeros_stays_one(scheme):
    weight = np.zeros((128, 8), np.float32)
    x = RANDOM.standard_normal((1, 3, 128)).astype(np.float32)
    np.testing.assert_array_equal(layer(scheme, weight).run({"x": x})["y"], np.zeros((1, 3, 8)))
