"""Which kernel a node becomes by its shapes; each computes what ONNX Runtime does."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton")

import optc
from optc.backends.triton.artifact import open_artifact

from .models import agrees, model

#: Inputs, outputs, body, the kernels.
CASES = {
    "one row": ("float[1,40] x, float[40,50] w_1, float[50] w_b", "float[1,50] y", """
        h = MatMul (x, w_1)
        s = Add (h, w_b)
        y = Relu (s)""", ["gemv"]),
    "two outputs": ("float[1,40] x, float[70,40] w_1, float[70] w_b", "float[1,70] y, float[1,70] z", """
        y = Gemm <alpha = 0.5, transB = 1> (x, w_1, w_b)
        z = Tanh (y)""", ["gemv"]),
    "two rows": ("float[2,40] x, float[40,5] w_1", "float[2,5] y", "y = MatMul (x, w_1)", ["matmul"]),
    "any number of rows": ("float[B,40] x, float[40,5] w_1", "float[B,5] y", "y = MatMul (x, w_1)", ["matmul"]),
    "a query for each head": ("float[B,6,1,8] q, float[B,6,T,8] k", "float[B,6,1,T] y", """
        t = Transpose <perm = [0, 1, 3, 2]> (k)
        y = MatMul (q, t)""", ["gemv"]),
    "half precision": ("float16[1,40] x, float16[40,50] w_1, float16[50,9] w_2", "float16[1,9] y", """
        h = MatMul (x, w_1)
        r = Relu (h)
        y = MatMul (r, w_2)""", ["gemv", "gemv"]),
    "depthwise": ("float[B,6,7,5] x, float[6,1,3,3] w_1, float[6] w_b", "float[B,6,7,5] y", """
        c = Conv <kernel_shape = [3, 3], group = 6, pads = [1, 1, 1, 1]> (x, w_1, w_b)
        r = Relu (c)
        y = Add (r, x)""", ["depthwise"]),
    "depthwise, one image": ("float[1,4,9,6] x, float[8,1,3,2] w_1", "float[1,8,4,7] y", """
        y = Conv <kernel_shape = [3, 2], group = 4, pads = [1, 2, 0, 1], strides = [2, 1], dilations = [1, 2]> (x, w_1)
        """, ["depthwise"]),
    "depthwise, a row of pixels": ("float16[B,4,1,W] x, float16[4,1,1,11] w_1", "float16[B,4,1,W] y", """
        y = Conv <kernel_shape = [1, 11], group = 4, pads = [0, 5, 0, 5]> (x, w_1)""", ["depthwise"]),
    "depthwise, a column of pixels": ("float[1,4,H,1] x, float[4,1,7,3] w_1", "float[1,4,H,1] y", """
        y = Conv <kernel_shape = [7, 3], group = 4, pads = [3, 1, 3, 1]> (x, w_1)""", ["depthwise"]),
    "groups of two": ("float[B,4,7,5] x, float[6,2,3,3] w_1", "float[B,6,5,3] y", """
        y = Conv <kernel_shape = [3, 3], group = 2> (x, w_1)""", ["matmul"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_kernels_of_a_model(name, tmp_path):
    inputs, outputs, body, kernels = CASES[name]
    source = model(f'<ir_version: 8, opset_import: ["": 17]>\ng ({inputs}) => ({outputs}) {{{body}\n}}')
    artifact = optc.compile(source, target="a100", output=tmp_path / "m.optc", verify="off", level=1).artifact
    plan = open_artifact(artifact).plan
    assert [plan.kernels[launch.kernel].kernel for launch in plan.launches] == kernels
    rng = np.random.default_rng(0)
    feeds = {
        spec.name: rng.normal(size=[{"B": 2, "T": 5, "H": 9, "W": 13}.get(dim, dim) for dim in spec.shape]).astype(
            spec.dtype.numpy()
        )
        for spec in plan.specs()
    }
    half = any(array.dtype == np.float16 for array in feeds.values())
    agrees(source, artifact, feeds, 2e-3 if half else 1e-5)
    for entry in plan.kernels.values():
        assert all(variant.spills == 0 for variant in entry.variants.values())
