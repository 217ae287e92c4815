"""What OpenVINO makes of graphs that were placed for it: the precision in which its layers run, and the numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir
import pytest

from optc.backends.openvino import OpenVinoBackend
from optc.backends.openvino_library import installed_version
from optc.passes.compress.integer.placement import OPENVINO
from tests.passes.compress.texts import parse

from .graphs import error, quantized, run
from .test_ort_cpu import CONV, IMAGE, IMAGES, PRODUCTS, ROWS, B, M, N, U, V, W

pytestmark = pytest.mark.skipif(
    installed_version() is None, reason="OpenVINO is not installed (pip install 'optc[openvino]')"
)

#: name -> (head, body, weights, the layers that run, all of them on integers)
CASES = {
    "conv": (IMAGES, f"y = {CONV} (x, w, b)", {"w": W, "b": B}, {"Convolution": 1}),
    "two convs": (
        IMAGES,
        f"a = {CONV} (x, w, b) c = Relu (a) y = Conv (c, v)",
        {"w": W, "b": B, "v": V},
        {"Convolution": 2},
    ),
    "depthwise": (
        IMAGES,
        f"a = {CONV} (x, w, b) y = Conv <group = 16> (a, u)",
        {"w": W, "b": B, "u": U},
        {"Convolution": 2},
    ),
    "residual": (
        IMAGES,
        f"a = {CONV} (x, w, b) c = Relu (a) d = Conv (c, v) e = Add (d, c) f = Relu (e) y = Conv (f, t)",
        {"w": W, "b": B, "v": V, "t": V + 0.1},
        {"Convolution": 3},
    ),
    "pool": (
        IMAGES,
        f"a = {CONV} (x, w, b) c = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a) y = Conv (c, v)",
        {"w": W, "b": B, "v": V},
        {"Convolution": 2, "Pooling": 1},
    ),
    "two products": (
        PRODUCTS,
        "a = MatMul (x, m) c = Add (a, k) d = Relu (c) y = MatMul (d, n)",
        {"m": M, "n": N, "k": np.ones(48, np.float32)},
        {"FullyConnected": 2},
    ),
}


def layers(model: onnx_ir.Model) -> Counter[tuple[str, str]]:
    """Layers and pools as OpenVINO runs them: what they are, and the type of their inputs."""
    found: Counter[tuple[str, str]] = Counter()
    for node in OpenVinoBackend().runner(model).executed():
        if node.kind in ("Convolution", "FullyConnected", "Pooling"):
            found[node.kind, node.precision] += 1
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_layer_runs_on_integers(name: str) -> None:
    head, body, weights, wanted = CASES[name]
    model, feeds = parse(f"{head} {{ {body} }}", weights), IMAGE if head == IMAGES else ROWS
    pairs, _ = quantized(model, feeds, OPENVINO)
    assert layers(pairs) == {(kind, "u8"): count for kind, count in wanted.items()}
    (found,) = OpenVinoBackend().runner(pairs).run(feeds).values()
    assert error(found, run(model, feeds)[0]) < 0.04
    kept = {kind for kind, precision in layers(model) if precision != "f32"}
    assert not kept, "and none of its own accord"
