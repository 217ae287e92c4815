"""Emitted attention computes what its parts did, whatever the mask hides; judged by running both."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from optc.backends import ort_kernels
from optc.ir.facts import Facts
from optc.ir.model import load
from optc.ir.saving import to_proto
from optc.ir.targets import builtin_targets
from optc.passes.emit.masks import interval
from optc.passes.manager import PassManager
from optc.passes.pipeline import parse_pipeline
from optc.passes.registry import pass_registry

N, H = 2, 4
LOWEST = np.finfo(np.float32).min

_HEADS = """
  a = Reshape ({q}, split)  b = Transpose <perm = [0, 2, 1, 3]> (a)
  c = Reshape ({k}, split)  d = Transpose <perm = [0, 2, 3, 1]> (c)
  e = Reshape ({v}, split)  f = Transpose <perm = [0, 2, 1, 3]> (e)
  g = MatMul (b, d)  {scores} = Mul (g, scale)
  {mask}
  w = Softmax <axis = -1> (s)
  {guard}
  o = MatMul ({weights}, f)  t = Transpose <perm = [0, 2, 1, 3]> (o)  y = Reshape (t, join)
"""
_MASKS = {"none": "", "add": "s = Add (h, m)", "where": "s = Where (m, h, fill)"}
_GUARD = "n = IsNaN (w)  z = Where (n, zero, w)"


def attention(
    inputs: str, mask: str = "none", guard: bool = False, before: str = "", q="q", k="k", v="v", opset=17, **weights
) -> onnx.ModelProto:
    """A model of the parts of attention; ``weights`` become initializers."""
    body = _HEADS.format(
        q=q,
        k=k,
        v=v,
        scores="h" if _MASKS[mask] else "s",
        mask=_MASKS[mask],
        guard=_GUARD if guard else "",
        weights="z" if guard else "w",
    )
    constants = f"int64[4] split = {{0, 0, {N}, {H}}}, int64[3] join = {{0, 0, {N * H}}}, float scale = {{0.5}}"
    text = f"""<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => (float[B,S,{N * H}] y)
        <{constants}, float zero = {{0}}> {{ {before} {body} }}"""
    model = onnx.parser.parse_model(text)
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


def emitted(model: onnx.ModelProto, pipeline="fuse,emit,fixpoint<8>(fold,cse,dce)", target="cpu"):
    manager = PassManager(builtin_targets()[target], {"kernels": ort_kernels}, strict=True)
    result = manager.run(load(model), parse_pipeline(pipeline, pass_registry()))
    return to_proto(result.model), result


def ops(model: onnx.ModelProto) -> list[str]:
    return [f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in model.graph.node]


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], optimized: bool = False) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    (result,) = session.run(["y"], feeds)
    return result


def same(model: onnx.ModelProto, result: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    """NaN only where the original has NaN."""
    wanted = run(model, feeds)
    for optimized in (False, True):
        np.testing.assert_allclose(run(result, feeds, optimized), wanted, rtol=1e-4, atol=1e-5)


def draw(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


FLAT = f"float[B,S,{N * H}] q, float[B,T,{N * H}] k, float[B,T,{N * H}] v"
#: Dims of the mask in the model, and of one that is fed.
SHAPES = {"[B,1,1,T]": (2, 1, 1, 5), "[1,1,S,T]": (1, 1, 3, 5), "[B,1,S,T]": (2, 1, 3, 5), "[B,2,S,T]": (2, 2, 3, 5)}
SHAPES |= {"[S,T]": (3, 5), "[1,T]": (1, 5), "[2,S,T]": (2, 3, 5), "[T]": (5,)}


@pytest.mark.parametrize("value", [-np.inf, LOWEST, -1e9, -3e38], ids=str)
@pytest.mark.parametrize("dims", SHAPES)
@pytest.mark.parametrize("guard", [False, True])
def test_added_masks(dims, value, guard):
    """Of any shape, with rows that are hidden in part or altogether, by several numbers at once too."""
    if guard and dims.startswith(("[B,2", "[2,")):
        pytest.skip("a guard is only taken over with a mask for all heads")
    model = attention(f"{FLAT}, float{dims} m", "add", guard)
    result, _ = emitted(model)
    assert "Attention" in ops(result)
    assert not {"com.microsoft::MultiHeadAttention", "IsNaN"} & set(ops(result))
    shape = SHAPES[dims]
    rng = np.random.default_rng(1)
    feeds = draw(q=(2, 3, N * H), k=(2, 5, N * H), v=(2, 5, N * H))
    everything = np.full(shape, value, np.float32)
    for mask in (everything, np.where(rng.random(shape) < 0.5, np.float32(value), 0).astype(np.float32)):
        same(model, result, {**feeds, "m": mask})
    mixed = everything.copy()
    mixed[..., 0], mixed[..., 1:2] = -np.inf, LOWEST
    same(model, result, {**feeds, "m": mixed})


@pytest.mark.parametrize("fill", [-np.inf, LOWEST, -1e30], ids=str)
@pytest.mark.parametrize(("dims", "guard"), itertools.product(["[B,1,1,T]", "[B,1,S,T]", "[S,T]"], [False, True]))
def test_boolean_masks(dims, guard, fill):
    model = attention(f"{FLAT}, bool{dims} m", "where", guard, fill=np.float32(fill))
    result, _ = emitted(model)
    assert "Attention" in ops(result)
    if guard and np.isinf(fill):
        assert not {"Where", "Not"} & set(ops(result)), "the kernel guards by itself"
    rng, shape = np.random.default_rng(1), SHAPES[dims]
    feeds = draw(q=(2, 3, N * H), k=(2, 5, N * H), v=(2, 5, N * H))
    for mask in (rng.random(shape) < 0.5, np.zeros(shape, bool), np.ones(shape, bool)):
        same(model, result, {**feeds, "m": mask})


@pytest.mark.parametrize(("batch", "queries", "keys"), [(1, 1, 1), (3, 1, 7), (1, 9, 2), (2, 33, 65)])
def test_sizes(batch, queries, keys):
    model = attention(FLAT)
    result, _ = emitted(model)
    assert ops(result) == ["Attention"]
    width = N * H
    same(model, result, draw(q=(batch, queries, width), k=(batch, keys, width), v=(batch, keys, width)))


WEIGHTS = {name: array / 3 for name, array in draw(7, wq=(6, N * H), wk=(6, N * H), wv=(6, N * H)).items()}
BIASES = draw(8, bq=(N * H,), bk=(N * H,), bv=(N * H,))
PRODUCTS = "pq = MatMul (x, wq)  pk = MatMul (x, wk)  pv = MatMul (x, wv)"


@pytest.mark.parametrize("mask", ["none", "add", "guard"])
@pytest.mark.parametrize("biased", ["", "kv", "qkv"])
def test_projections_are_merged(mask, biased):
    """Three products of one value become one operator; with the same meaning of the mask as the parts."""
    sums = " ".join(f"f{c} = Add (p{c}, b{c})" for c in biased)
    names = {c: f"f{c}" if c in biased else f"p{c}" for c in "qkv"}
    inputs = "float[B,S,6] x" + ("" if mask == "none" else ", float[B,1,1,S] m")
    biases = {name: array for name, array in BIASES.items() if name[1] in biased}
    kind = "none" if mask == "none" else "add"
    model = attention(inputs, kind, mask == "guard", f"{PRODUCTS} {sums}", **names, **WEIGHTS, **biases)
    result, _ = emitted(model)
    assert "com.microsoft::Attention" in ops(result)
    assert not {"MatMul", "Add"} & set(ops(result))
    assert {entry.domain: entry.version for entry in result.opset_import}[""] == 17
    for value in (0, -1e9, LOWEST, -np.inf):
        feeds = draw(x=(2, 5, 6))
        if mask != "none":
            feeds["m"] = np.zeros((2, 1, 1, 5), np.float32)
            feeds["m"][0] = value
            feeds["m"][1, ..., :2] = value
        same(model, result, feeds)


def test_projections_merged_before():
    """One product that is split: its matrix is taken as it is."""
    before = "p = MatMul (x, whole)  pb = Add (p, bias)  fq, fk, fv = Split <axis = 2> (pb, sizes)"
    weights = draw(whole=(6, 3 * N * H), bias=(3 * N * H,)) | {"sizes": np.array([N * H] * 3)}
    model = attention("float[B,S,6] x", before=before, q="fq", k="fk", v="fv", **weights)
    result, _ = emitted(model)
    assert ops(result) == ["com.microsoft::Attention"]
    same(model, result, draw(x=(2, 5, 6)))


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("pq = MatMul (x, wq)  pk = MatMul (z, wk)  pv = MatMul (z, wv)", "products of one value"),
        ("pq = MatMul (x, wq)  pk = MatMul (x, wq)  pv = MatMul (x, wv)", "stored twice"),
        (f"{PRODUCTS} u = Neg (pk)  used = ReduceSum (u)", "read here only"),
    ],
)
def test_projections_that_stay(before, reason):
    names = {name: WEIGHTS[name] for name in WEIGHTS if name in before}
    model = attention("float[B,S,6] x, float[B,S,6] z", before=before, q="pq", k="pk", v="pv", **names)
    if "used" in before:
        model.graph.output.append(onnx.helper.make_tensor_value_info("used", 1, [1, 1, 1]))
    result, _ = emitted(model, "fuse,emit")
    assert "Attention" in ops(result)
    assert "com.microsoft::Attention" not in ops(result)
    same(model, result, draw(x=(2, 5, 6), z=(2, 5, 6)))


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("u = Softmax <axis = 1> (k)  i = ReduceSum <keepdims = 0> (u)", "Softmax"),
        ("u = Erf (k)  i = ReduceSum <keepdims = 0> (u)", None),
    ],
)
def test_the_opset_is_raised_or_the_reason_told(extra, reason):
    model = attention(FLAT, before=extra, opset=12)
    model.graph.output.append(onnx.helper.make_tensor_value_info("i", 1, []))
    result, record = emitted(model, "fuse,emit")
    remarks = [f"{r.what}: {r.reason}" for one in record.records for r in one.remarks if "opset" in r.what]
    hits = [hit for one in record.records for hit in one.hits]
    version = {entry.domain: entry.version for entry in result.opset_import}[""]
    if reason is None:
        assert version == 23
        assert "opset 12 to 23" in hits
        assert not remarks
        assert "Attention" in ops(result)
    else:
        assert version == 12
        assert any(reason in remark and "ai.onnx::Attention" in remark for remark in remarks)
        assert "com.microsoft::MultiHeadAttention" in ops(result)
    same(model, result, draw(q=(2, 3, N * H), k=(2, 5, N * H), v=(2, 5, N * H)))


def test_other_targets_keep_the_opset():
    result, _ = emitted(attention(FLAT), target="a100")
    assert ops(result) == ["com.microsoft::MultiHeadAttention"]
    assert {entry.domain: entry.version for entry in result.opset_import}[""] == 17


def test_negative_scales_have_no_kernel_of_opset_23():
    model = attention(FLAT)
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "scale")
    scale.CopyFrom(numpy_helper.from_array(np.float32(-0.5), "scale"))
    result, _ = emitted(model)
    assert "Attention" not in ops(result)
    same(model, result, draw(q=(2, 3, N * H), k=(2, 5, N * H), v=(2, 5, N * H)))


@pytest.mark.parametrize(
    ("body", "low", "high"),
    [
        ("y = Mul (d, c)", LOWEST, 0),
        ("y = Where (b, c, o)", LOWEST, 1),
        ("f = Cast <to = 1> (i)  e = Sub (o, f)  y = Mul (e, t)", -(2.0**63) * 1e4 - 1e4, (2.0**63) * 1e4 + 1e4),
        ("f = Cast <to = 1> (i)  e = Sub (o, f)  y = Mul (e, c)", -np.inf, np.inf),
        ("e = Neg (d)  y = Add (e, d)", -1, 1),
        ("y = Max (x, o)", 1, np.inf),
        ("y = Sqrt (d)", -np.inf, np.inf),
    ],
)
def test_intervals(body, low, high):
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        g (bool[S] b, int64[S] i, float[S] x) => (float[S] y)
        <float c = {{-3.4028235e38}}, float t = {{-10000.0}}, float o = {{1}}>
        {{ d = Cast <to = 1> (b)  {body} }}""")
    loaded = load(model)
    got = interval(Facts(loaded), loaded.graph.outputs[0])
    np.testing.assert_allclose(got, (low, high), rtol=1e-6)
