"""Sums and keys that several programs share: when, and that the numbers are those of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

pytest.importorskip("triton")

import optc
from optc.backends.triton.artifact import open_artifact
from optc.ir.targets import builtin_targets
from optc.kernels.splits import attention_splits, product_splits

from .models import agrees, model

A100 = builtin_targets()["a100"]
#: Inputs, outputs, body, usual sizes, the kernels, sizes to run.
CASES = {
    "before a norm": ("float[B,2000] x, float[2000,24] w_1, float[24] w_b, float[B,24] r, float[24] w_g",
        "float[B,24] s, float[B,24] y", """
        h = MatMul (x, w_1)
        a = Add (h, w_b)
        s = Add (a, r)
        y = LayerNormalization <axis = -1> (s, w_g)""",
        {"B": 30}, ["matmul_split", "rows_norm"], [{"B": 1}, {"B": 17}]),
    "alone": ("float[B,6001] x, float[9,6001] w_1, float[9] w_b", "float[B,9] y", """
        h = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w_1, w_b)
        y = Relu (h)""", {"B": 3}, ["matmul_split", "pointwise"], [{"B": 2}, {"B": 18}]),
    "a batch": ("float[2,B,4500] x, float[2,4500,7] z", "float[2,B,7] y", "y = MatMul (x, z)",
        {"B": 5}, ["matmul_split", "pointwise"], [{"B": 3}]),
    "one row": ("float16[1,8200] x, float16[8200,19] w_1, float16[1,19] r", "float16[1,19] y", """
        h = MatMul (x, w_1)
        y = Add (h, r)""", {}, ["gemv_split", "pointwise"], [{}]),
    "a convolution": ("float[B,900,5,4] x, float[6,900,3,3] w_1, float[6] w_b, float[B,6,3,2] r",
        "float[B,6,3,2] y", """
        c = Conv <kernel_shape = [3, 3]> (x, w_1, w_b)
        s = Add (c, r)
        y = Relu (s)""", {"B": 1}, ["matmul_split", "pointwise"], [{"B": 1}, {"B": 2}]),
    "a convolution before a norm of its places": ("float[1,900,5,4] x, float[6,900,3,3] w_1", "float[1,6,6] y", """
        c = Conv <kernel_shape = [3, 3]> (x, w_1)
        three = Constant <value = int64[3] {1, 6, 6}> ()
        f = Reshape (c, three)
        y = Softmax <axis = -1> (f)""", {}, None, [{}]),
}  # fmt: skip


def compiled(name: str, tmp_path, target="a100"):
    inputs, outputs, body, sizes, *_ = CASES[name]
    source = model(f'<ir_version: 8, opset_import: ["": 17]>\ng ({inputs}) => ({outputs}) {{{body}\n}}')
    options = {"verify": "off", "level": 1, "shapes": sizes}
    return source, optc.compile(source, target=target, output=tmp_path / f"{len(name)}.optc", **options).artifact


def kernels(artifact):
    plan = open_artifact(artifact).plan
    return [plan.kernels[launch.kernel].kernel for launch in plan.launches]


@pytest.mark.parametrize("name", CASES)
def test_products_in_parts(name, tmp_path):
    source, artifact = compiled(name, tmp_path)
    wanted, runs = CASES[name][4:]
    if wanted is not None:
        assert kernels(artifact) == wanted
    plan, rng = open_artifact(artifact).plan, np.random.default_rng(0)
    for dims in runs:
        feeds = {
            spec.name: rng.normal(size=[dims.get(dim, dim) for dim in spec.shape]).astype(spec.dtype.numpy())
            for spec in plan.specs()
        }
        agrees(source, artifact, feeds, 5e-3 if name == "one row" else 1e-5)


def test_every_architecture(tmp_path):
    for name in ("before a norm", "one row"):
        _, artifact = compiled(name, tmp_path, "a100,l4,h100")
        for entry in open_artifact(artifact).plan.kernels.values():
            assert entry.variants.keys() == {"sm_80", "sm_89", "sm_90"}
            for variant in entry.variants.values():
                assert variant.spills == 0
                assert bool(variant.mma) == (entry.kernel == "matmul_split")


def test_what_fills_a_device_is_left_whole():
    def parts(m, n, k, free=False, kernel="matmul"):
        return product_splits(kernel, {"M": m, "N": n, "K": k, "BATCH": 1}, 2, [A100], free)

    assert parts(4096, 4096, 65536) == 1
    assert parts(49, 512, 256) == 1, "a short sum"
    assert parts(49, 512, 8192) > 1
    assert parts(128, 768, 3072) == 1 < parts(128, 768, 3072, free=True), "a launch is worth it only if it is there"
    assert parts(1, 64, 16384, kernel="gemv") > 1
    assert parts(1, 50257, 768, kernel="gemv") == 1
    assert parts(0, 512, 8192) == 1
    assert product_splits("matmul", {"M": 49, "N": 512, "K": 8192, "BATCH": 1}, 2, [], False) == 1


def test_where_keys_are_split():
    def parts(queries, keys, heads=8, batch=1, group=1):
        sizes = {"QUERIES": queries, "KEYS": keys, "HEADS": heads, "BATCH": batch}
        return attention_splits(sizes, group, [A100])

    assert parts(1, 4096) > 1
    assert parts(1, 100) == 1, "few keys"
    assert parts(128, 4096) == 1, "many queries"
    assert parts(1, 4096, heads=32, batch=64) == 1, "a full device"
    assert parts(1, 4096, group=4) > parts(1, 4096), "heads that share keys are one program"


DECODER = """
<ir_version: 8, opset_import: ["": 17]>
g (float[B,4,M,16] q, float[B,2,M,16] new_k, float[B,2,M,16] new_v, float[B,2,P,16] k, float[B,2,P,16] v,
   float[B,1,1,T] mask) => (float[B,M,64] y, float[B,2,T,16] all_k, float[B,2,T,16] all_v)
<float root = {4}, int64[3] join = {0, 0, 64}, int64[4] heads = {0, 4, -1, 16}, int64[1] two = {2},
 int64[5] twice = {1, 1, 2, 1, 1}>
{
    all_k = Concat <axis = 2> (k, new_k)
    all_v = Concat <axis = 2> (v, new_v)
    k4 = Unsqueeze (all_k, two)
    k5 = Expand (k4, twice)
    kr = Reshape (k5, heads)
    v4 = Unsqueeze (all_v, two)
    v5 = Expand (v4, twice)
    vr = Reshape (v5, heads)
    kt = Transpose <perm = [0, 1, 3, 2]> (kr)
    s0 = MatMul (q, kt)
    s1 = Div (s0, root)
    s2 = Add (s1, mask)
    p = Softmax <axis = -1> (s2)
    c = MatMul (p, vr)
    t = Transpose <perm = [0, 2, 1, 3]> (c)
    y = Reshape (t, join)
}
"""


def test_one_token_and_many_keys(tmp_path):
    source = model(DECODER)
    for value in (*source.graph.inputs, *source.graph.outputs):
        value.shape = onnx_ir.Shape(["P + M" if str(dim) == "T" else dim for dim in value.shape])
    sizes = {"B": 2, "M": 1, "P": 1000}
    artifact = optc.compile(
        source, target="a100,l4,h100", output=tmp_path / "m.optc", verify="off", level=2, shapes=sizes
    ).artifact
    assert kernels(artifact) == ["pointwise"] * 2 + ["attention_split", "attention_combine"], "keys are written once"
    for entry in open_artifact(artifact).plan.kernels.values():
        assert all(variant.spills == 0 for variant in entry.variants.values())
    rng = np.random.default_rng(0)
    for batch, new, past in ((1, 1, 0), (2, 1, 300), (1, 3, 129)):
        total = past + new
        mask = np.where(rng.random((batch, 1, 1, total)) < 0.3, -np.inf, 0).astype(np.float32)
        mask[..., 0] = 0
        shapes = {"q": (4, new), "new_k": (2, new), "new_v": (2, new), "k": (2, past), "v": (2, past)}
        feeds = {name: rng.normal(size=(batch, *shape, 16)).astype(np.float32) for name, shape in shapes.items()}
        agrees(source, artifact, {**feeds, "mask": mask}, 2e-5)
