"""What a graph becomes: how many launches, and the right numbers, operator by operator and block by block."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("triton")

import optc
from optc.backends.ort import Session
from optc.backends.triton.artifact import open_artifact
from optc.backends.triton.interpreter_device import InterpreterDevice

from .models import agrees, model

BLOCK = """
<ir_version: 8, opset_import: ["": 17]>
block (int64[B,S] ids, int64[B,S] mask, float[50,32] w_words, float[64,32] w_places, float[32] w_g0, float[32] w_b0,
       float[32,32] w_q, float[32] w_qb, float[32,32] w_k, float[32] w_kb, float[32,32] w_v, float[32] w_vb,
       float[32,32] w_o, float[32] w_ob, float[32] w_g1, float[32] w_b1, float[32,48] w_f1, float[48] w_fb1,
       float[48,32] w_f2, float[32] w_fb2)
  => (float[B,S,32] y)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[2] axes = {1, 2}, float unit = {1},
 float low = {-10000}, int64[4] heads = {0, 0, 2, 16}, int64[3] flat = {0, 0, 32}, float root = {4}>
{
    words = Gather (w_words, ids)
    shape = Shape (ids)
    length = Slice (shape, one, two)
    places = Slice (w_places, zero, length, zero)
    e = Add (words, places)
    x = LayerNormalization <axis = -1> (e, w_g0, w_b0)
    shown = Cast <to = 1> (mask)
    hidden = Sub (unit, shown)
    additive = Mul (hidden, low)
    bias = Unsqueeze (additive, axes)
    q0 = MatMul (x, w_q)
    q1 = Add (q0, w_qb)
    q2 = Reshape (q1, heads)
    q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k0 = MatMul (x, w_k)
    k1 = Add (k0, w_kb)
    k2 = Reshape (k1, heads)
    k = Transpose <perm = [0, 2, 3, 1]> (k2)
    v0 = MatMul (x, w_v)
    v1 = Add (v0, w_vb)
    v2 = Reshape (v1, heads)
    v = Transpose <perm = [0, 2, 1, 3]> (v2)
    s0 = MatMul (q, k)
    s1 = Div (s0, root)
    s2 = Add (s1, bias)
    p = Softmax <axis = -1> (s2)
    a0 = MatMul (p, v)
    a1 = Transpose <perm = [0, 2, 1, 3]> (a0)
    a2 = Reshape (a1, flat)
    o0 = MatMul (a2, w_o)
    o1 = Add (o0, w_ob)
    r = Add (o1, x)
    n = LayerNormalization <axis = -1> (r, w_g1, w_b1)
    f0 = MatMul (n, w_f1)
    f1 = Add (f0, w_fb1)
    f2 = Tanh (f1)
    f3 = MatMul (f2, w_f2)
    f4 = Add (f3, w_fb2)
    y = Add (f4, n)
}
"""


def build(source, tmp_path, **options):
    """An artifact for one device."""
    return optc.compile(source, target="a100", output=tmp_path / "m.optc", verify="off", **options).artifact


def kernels(artifact) -> Counter[str]:
    """How often each kernel is launched."""
    plan = open_artifact(artifact).plan
    return Counter(plan.kernels[launch.kernel].kernel for launch in plan.launches)


def test_a_transformer_block(tmp_path):
    source = model(BLOCK)
    artifact = build(source, tmp_path, shapes={"B": 2, "S": 7})
    # Embeddings and norm; projections; mask; attention; output and residual; norm; two products.
    assert kernels(artifact) == {"rows_norm": 2, "matmul": 4, "attention": 1, "pointwise": 1}
    rng = np.random.default_rng(0)
    for batch, length in ((1, 1), (2, 7), (3, 19)):
        mask = np.ones((batch, length), np.int64)
        mask[-1, (length + 1) // 2 :] = 0
        ids = rng.integers(-50, 50, (batch, length))
        agrees(source, artifact, {"ids": ids, "mask": mask}, 2e-5)
    with pytest.raises(optc.OptcError, match=r"dim 'S' of input 'ids' is 65; the artifact was built for 0\.\.64"):
        optc.load(artifact, device="interpreter").run({name: np.zeros((1, 65), np.int64) for name in ("ids", "mask")})


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_attention_with_capped_scores_and_with_heads_left_apart(tmp_path, capped, joined):
    cap = "f = Div (d, cap)  g = Tanh (f)  m = Mul (g, cap)" if capped else "m = Identity (d)"
    end = "t = Transpose <perm = [0, 2, 1, 3]> (c)  y = Reshape (t, join)" if joined else "y = Relu (c)"
    result = "float[B,S,32]" if joined else "float[B,2,S,16]"
    source = model(f"""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[B,2,S,16] q, float[B,2,S,16] k, float[B,2,S,16] v) => ({result} y)
        <int64[3] join = {{0, 0, 32}}, float cap = {{1.5}}, float two = {{0.5}}>
        {{
            kt = Transpose <perm = [0, 1, 3, 2]> (k)
            s = MatMul (q, kt)
            d = Mul (s, two)
            {cap}
            p = Softmax <axis = -1> (m)
            c = MatMul (p, v)
            {end}
        }}
    """)
    artifact = build(source, tmp_path, shapes={"B": 2, "S": 20})
    assert kernels(artifact)["attention"] == 1
    rng = np.random.default_rng(0)
    agrees(source, artifact, {name: rng.normal(size=(2, 2, 20, 16)).astype(np.float32) for name in "qkv"}, 2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path, dtype):
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        g (TYPE[B,24] x, TYPE[24,40] w_1, TYPE[40] w_b, TYPE[40,24] w_2) => (TYPE[B,24] y)
        {
            h = MatMul (x, w_1)
            s = Add (h, w_b)
            a = Gelu (s)
            o = MatMul (a, w_2)
            y = Add (o, x)
        }
    """.replace("TYPE", dtype)
    source = model(text)
    artifact = build(source, tmp_path)
    assert kernels(artifact) == {"matmul": 2}
    plan = open_artifact(artifact).plan
    assert all(variant.mma for entry in plan.kernels.values() for variant in entry.variants.values())
    x = np.random.default_rng(0).normal(size=(5, 24)).astype(source.graph.inputs[0].dtype.numpy())
    found = InterpreterDevice(open_artifact(artifact))
    result = optc.load(artifact, device="interpreter").run({"x": x})["y"]
    assert result.dtype == x.dtype
    wide = model(text.replace(dtype, "float"))
    for value in wide.graph.initializers.values():
        value.const_value = type(value.const_value)(
            np.asarray(source.graph.initializers[value.name].const_value.numpy()).astype(np.float32), name=value.name
        )
    wanted = Session(wide).run({"x": x.astype(np.float32)})["y"]
    tolerance = {"float16": 4e-3, "bfloat16": 3e-2}[dtype]
    assert found is not None
    np.testing.assert_allclose(result.astype(np.float32), wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


#: Graphs of one or a few operators: inputs, results, body; drawn inputs are (2, 3, 6, 5) unless they say otherwise.
SMALL = {
    "movement": ("float[B,3,6,5] x", "float[B,5,18] y", """
        t = Transpose <perm = [0, 3, 1, 2]> (x)
        r = Relu (t)
        shape = Constant <value = int64[3] {0, 5, 18}> ()
        y = Reshape (r, shape)"""),
    "slices": ("float[B,3,6,5] x", "float[B,3,2,3] y", """
        starts = Constant <value = int64[2] {-1, 1}> ()
        ends = Constant <value = int64[2] {0, 100}> ()
        axes = Constant <value = int64[2] {2, 3}> ()
        steps = Constant <value = int64[2] {-3, 2}> ()
        s = Slice (x, starts, ends, axes, steps)
        pads = Constant <value = int64[8] {0, 0, 0, 0, 0, 0, 0, 1}> ()
        p = Pad (s, pads)
        y = Abs (p)"""),
    "concat": ("float[B,3,6,5] x", "float[B,9,6,5] y", """
        a = Exp (x)
        b = Neg (x)
        c = Concat <axis = 1> (a, x, b)
        y = Mul (c, c)"""),
    "split": ("float[B,3,6,5] x", "float[B,3,2,5] y", """
        sizes = Constant <value = int64[3] {1, 2, 3}> ()
        a, b, c = Split <axis = 2> (x, sizes)
        d = Add (a, b)
        two = Constant <value = int64 {2}> ()
        e = Gather <axis = 2> (c, two)
        axis = Constant <value = int64[1] {2}> ()
        f = Unsqueeze (e, axis)
        y = Sub (d, f)"""),
    "reductions": ("float[B,3,6,5] x", "float[B,1,6,1] y, float[3] z", """
        y = ReduceMax <axes = [1, 3], keepdims = 1> (x)
        m = ReduceMean <axes = [0, 2, 3], keepdims = 0> (x)
        z = Sqrt (m)"""),
    "integer sums": ("float[B,3,6,5] x", "int32[B,3] y, int64[B,3,6] z", """
        three = Constant <value = float {3}> ()
        f = Mul (x, three)
        i = Cast <to = 6> (f)
        axes = Constant <value = int64[2] {2, 3}> ()
        y = ReduceSum <keepdims = 0> (i, axes)
        l = Cast <to = 7> (f)
        z = ReduceMin <axes = [3], keepdims = 0> (l)"""),
    "softmax": ("float[B,3,6,5] x", "float[B,3,6,5] y", """
        s = Softmax <axis = 1> (x)
        y = Log (s)"""),
    "pooling": ("float[B,3,6,5] x", "float[B,3,3,3] y, float[B,3,3,2] z", """
        y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)
        z = AveragePool <kernel_shape = [2, 3], strides = [2, 2], pads = [0, 0, 0, 1]> (x)"""),
    "convolution": ("float[B,3,6,5] x, float[4,3,3,2] w_1, float[4] w_b, float[6,2,3,3] w_2", "float[B,6,3,4] y", """
        c = Conv <kernel_shape = [3, 2], pads = [1, 0, 1, 0], dilations = [1, 1]> (x, w_1, w_b)
        r = Relu (c)
        y = Conv <kernel_shape = [3, 3], group = 2, pads = [1, 1, 1, 1], strides = [2, 1]> (r, w_2)"""),
    "depthwise": ("float[B,3,6,5] x, float[3,1,3,3] w_1", "float[B,3,6,5] y", """
        y = Conv <kernel_shape = [3, 3], group = 3, pads = [1, 1, 1, 1]> (x, w_1)"""),
    "one dimension": ("float[B,3,6,5] x, float[4,3,3] w_1", "float[B,4,28] y", """
        shape = Constant <value = int64[3] {0, 3, 30}> ()
        r = Reshape (x, shape)
        y = Conv <kernel_shape = [3]> (r, w_1)"""),
    "integers": ("float[B,3,6,5] x", "int64[B,3,6,5] y, bool[B,3,6,5] z", """
        four = Constant <value = float {4}> ()
        f = Mul (x, four)
        i = Cast <to = 7> (f)
        three = Constant <value = int64 {3}> ()
        q = Div (i, three)
        m = Mod (i, three)
        y = Add (q, m)
        z = Greater (i, three)"""),
    "batched products": ("float[B,3,6,5] x", "float[B,3,6,6] y", """
        t = Transpose <perm = [0, 1, 3, 2]> (x)
        a = Sigmoid (x)
        y = MatMul (a, t)"""),
    "residuals": ("float[B,3,6,5] x, float[5,5] w_1", "float[B,3,6,5] y, float[B,3,6,5] z", """
        a = MatMul (x, w_1)
        b = Softplus (a)
        y = Add (b, x)
        z = Sub (a, y)"""),
    "channels last": ("float[B,3,6,5] x, float[4,3,1,1] w_1, float[4] w_g, float[4] w_b", "float[B,6,5,4] y", """
        c = Conv <kernel_shape = [1, 1]> (x, w_1)
        t = Transpose <perm = [0, 2, 3, 1]> (c)
        y = LayerNormalization <axis = -1> (t, w_g, w_b)"""),
    "long rows": ("float[B,3,6,5] x", "float[B,3,30,30] y", """
        shape = Constant <value = int64[3] {0, 3, 30}> ()
        r = Reshape (x, shape)
        axis = Constant <value = int64[1] {3}> ()
        c = Unsqueeze (r, axis)
        four = Constant <value = int64[1] {2}> ()
        d = Unsqueeze (r, four)
        p = Mul (c, d)
        y = Softmax <axis = -1> (p)"""),
    "nothing to compute": ("float[B,3,6,5] x", "float[B,3,6,5] y, float[B,90] z", """
        y = Identity (x)
        z = Flatten <axis = 1> (x)"""),
}  # fmt: skip


def test_an_input_with_a_default_is_that_default(tmp_path):
    source = model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[B,4] x, float[4] w_shift) => (float[B,4] y) { y = Add (x, w_shift) }
    """)
    source.graph.inputs.append(source.graph.initializers["w_shift"])
    artifact = build(source, tmp_path, level=0)
    assert [tensor.name for tensor in open_artifact(artifact).plan.inputs] == ["x"]
    agrees(source, artifact, {"x": np.ones((3, 4), np.float32)})


@pytest.mark.parametrize("mode", [True, None])
def test_dropout_that_may_train_is_refused(tmp_path, mode):
    training = "flag" if mode is None else "on"
    source = model(f"""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[B,4] x, bool flag) => (float[B,4] y)
        <float ratio = {{0.5}}, bool on = {{1}}>
        {{ y = Dropout (x, ratio, {training}) }}
    """)
    with pytest.raises(optc.OptcError, match="may drop something"):
        build(source, tmp_path, level=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SMALL)
def test_operators(name, tmp_path):
    inputs, outputs, body = SMALL[name]
    head = '<ir_version: 8, opset_import: ["": 17]>'
    source = model(f"{head} g ({inputs}) => ({outputs}) {{ {body} }}")
    artifact = build(source, tmp_path, level=0)
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 5)).astype(np.float32)
    agrees(source, artifact, {"x": np.abs(x) if name == "reductions" else x})


def test_rows_of_what_was_computed_in_another_order(tmp_path):
    source = model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[4,6] x, float[6] w_b, float[4] w_g) => (float[6,4] y, float[4,6] u)
        {
            v = Add (x, w_b)
            a = Exp (v)
            t = Transpose <perm = [1, 0]> (a)
            y = LayerNormalization <axis = -1> (t, w_g)
            u = Mul (a, a)
        }
    """)
    artifact = build(source, tmp_path, level=1)
    assert kernels(artifact) == {"rows_norm": 1}
    agrees(source, artifact, {"x": np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)})
