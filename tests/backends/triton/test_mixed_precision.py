"""Graphs of two types: single precision at the ends, half precision between them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import optc
from optc.backends.triton.artifact import open_artifact

BODY = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[4,12,32] x) => (float[4,12,32] y)
    <float root = {1.4142135}, float one = {1}, float half = {0.5}, float two = {2}, float tiny = {0.00001},
     int64[4] split = {4, 12, 2, 16}, int64[3] join = {4, 12, 32}, float scale = {0.25}>
    {
        m = ReduceMean <axes = [-1]> (x)
        c = Sub (x, m)
        q = Pow (c, two)
        v = ReduceMean <axes = [-1]> (q)
        s = Add (v, tiny)
        r = Sqrt (s)
        n = Div (c, r)
        g = Mul (n, gamma)
        h = Add (g, beta)
        ql = MatMul (h, w_q)  qs = Reshape (ql, split)  qt = Transpose <perm = [0, 2, 1, 3]> (qs)
        kl = MatMul (h, w_k)  ks = Reshape (kl, split)  kt = Transpose <perm = [0, 2, 3, 1]> (ks)
        vl = MatMul (h, w_v)  vs = Reshape (vl, split)  vt = Transpose <perm = [0, 2, 1, 3]> (vs)
        sc = MatMul (qt, kt)  ss = Mul (sc, scale)  sm = Softmax <axis = -1> (ss)
        o = MatMul (sm, vt)   ot = Transpose <perm = [0, 2, 1, 3]> (o)  oj = Reshape (ot, join)
        p = MatMul (oj, w_o)
        a = Add (x, p)
        u = MatMul (a, w_u)
        d = Div (u, root)
        e = Erf (d)
        e1 = Add (e, one)
        e2 = Mul (u, e1)
        ge = Mul (e2, half)
        y = MatMul (ge, w_d)
    }
"""


@pytest.mark.parametrize("calibrated", [True, False])
def test_level_3_compiles_tensor_core_kernels_inside_the_budget(tmp_path, calibrated):
    rng = np.random.default_rng(0)
    shapes = dict.fromkeys(("w_q", "w_k", "w_v", "w_o"), (32, 32)) | {"w_u": (32, 64), "w_d": (64, 32)}
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {name: rng.normal(base, 0.1, 32).astype(np.float32) for name, base in (("gamma", 1), ("beta", 0))}
    proto = onnx.parser.parse_model(BODY)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    feeds = {"x": rng.normal(size=(4, 12, 32)).astype(np.float32)}
    result = optc.compile(
        proto,
        level=3,
        target="a100",
        backend="triton",
        output=tmp_path / "m.optc",
        calib={"x": rng.normal(size=(16, 12, 32)).astype(np.float32)} if calibrated else None,
        calib_cache="off",
    )
    assert result.report.verification.status == "passed", result.report.verification.reason
    (decision,) = [one for one in result.report.decisions if one.kept]
    assert decision.what == "mixed-precision-fp16"
    plan = open_artifact(tmp_path / "m.optc").plan
    products = [entry for entry in plan.kernels.values() if entry.kernel in ("matmul", "matmul_splitk", "attention")]
    assert products and all(variant.mma for entry in products for variant in entry.variants.values())
    weights_types = [buffer.type for buffer in plan.buffers if buffer.weight and int(buffer.elements) >= 1024]
    assert weights_types and set(weights_types) == {"fp16"}
    found = optc.load(tmp_path / "m.optc", device="interpreter").run(feeds)["y"]
    wanted = optc.load(_saved(proto, tmp_path)).run(feeds)["y"]
    assert found.dtype == np.float32
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 3e-3


def _saved(proto: onnx.ModelProto, folder) -> str:
    onnx.save(proto, folder / "m.onnx")
    return str(folder / "m.onnx")
