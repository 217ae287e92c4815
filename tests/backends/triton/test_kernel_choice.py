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
        spec.name: rng.normal(size=[{"B": 2, "T": 5}.get(dim, dim) for dim in spec.shape]).astype(spec.dtype.numpy())
        for spec in plan.specs()
    }
    half = any(array.dtype == np.float16 for array in feeds.values())
    agrees(source, artifact, feeds, 2e-3 if half else 1e-5)
    for entry in plan.kernels.values():
        assert all(variant.spills == 0 for variant in entry.variants.values())
