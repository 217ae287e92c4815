"""Which units there are, operator by operator: removing them is the same as reading nothing of them."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.ir.facts import Facts
from optc.passes.compress.prune.axes import Structure, structure_of
from tests.passes.compress.prune.silence import check
from tests.passes.compress.texts import parse


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: (rng.standard_normal(shape) / np.sqrt(max(int(np.prod(shape[1:])), 1))).astype(np.float32)
        for name, shape in shapes.items()
    }


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


#: Name: (text, weights, sizes of the groups that are to be found, opset).
GRAPHS: dict[str, tuple[str, dict[str, np.ndarray], list[int], int]] = {
    "products": (
        """g (float[n, 6] x) => (float[n, 5] y) { a = MatMul(x, w) b = Add(a, c) r = Relu(b)
            y = Gemm<transB = 1>(r, v, d) }""",
        weights(w=(6, 8), c=(8,), v=(5, 8), d=(5,)),
        [8],
        17,
    ),
    "a gated unit": (
        """g (float[n, s, 6] x) => (float[n, s, 6] y) {
            a = MatMul(x, w) b = MatMul(x, u) h = Sigmoid(a) i = Mul(a, h) j = Mul(i, b) y = MatMul(j, v) }""",
        weights(w=(6, 8), u=(6, 8), v=(8, 6)),
        [8],
        17,
    ),
    "a fused gate that is split": (
        """g (float[n, s, 6] x) => (float[n, s, 6] y) {
            a = MatMul(x, w) l, r = Split<axis = -1>(a, halves) h = Tanh(l) j = Mul(h, r) y = MatMul(j, v) }""",
        weights(w=(6, 16), v=(8, 6)) | {"halves": ints(8, 8)},
        [8],
        17,
    ),
    "convolutions": (
        """g (float[n, 3, 8, 8] x) => (float[n, 4] y) {
            a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w, c) b = BatchNormalization(a, s, o, m, q)
            r = Relu(b)
            d = Conv<kernel_shape = [3, 3], group = 8>(r, e) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(d)
            f = Conv(p, v) k = GlobalAveragePool(f) l = Flatten(k) y = Gemm(l, z) }""",
        weights(w=(8, 3, 3, 3), c=(8,), s=(8,), o=(8,), m=(8,), e=(8, 1, 3, 3), v=(10, 8, 1, 1), z=(10, 4))
        | {"q": np.linspace(1, 2, 8, dtype=np.float32)},
        [8, 10],
        17,
    ),
    "a flattened image": (
        """g (float[n, 3, 4, 4] x) => (float[n, 4] y) {
            a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w) r = Relu(a)
            l = Reshape(r, t) y = Gemm(l, z) }""",
        weights(w=(8, 3, 3, 3), z=(128, 4)) | {"t": ints(0, 128)},
        [8],
        17,
    ),
    "whole groups of a convolution": (
        """g (float[n, 3, 6, 6] x) => (float[n, 4, 4, 4] y) {
            a = Conv(x, w) r = Relu(a) d = Conv<kernel_shape = [3, 3], group = 4>(r, e, c) y = Conv(d, v) }""",
        weights(w=(16, 3, 1, 1), e=(8, 4, 3, 3), c=(8,), v=(4, 8, 1, 1)),
        [4],
        17,
    ),
    "a transposed convolution": (
        """g (float[n, 3, 6, 6] x) => (float[n, 4, a, b] y) {
            a = Conv(x, w) d = ConvTranspose<strides = [2, 2]>(a, e, c) r = LeakyRelu(d) y = Conv(r, v) }""",
        weights(w=(8, 3, 1, 1), e=(8, 6, 2, 2), c=(6,), v=(4, 6, 1, 1)),
        [6, 8],
        17,
    ),
    "a residual sum": (
        """g (float[n, 3, 6, 6] x) => (float[n, 4, 6, 6] y) {
            a = Conv(x, w) b = Conv(a, i) r = Relu(b) c = Conv(r, o) s = Add(a, c) y = Conv(s, v) }""",
        weights(w=(8, 3, 1, 1), i=(6, 8, 1, 1), o=(8, 6, 1, 1), v=(4, 8, 1, 1)),
        [6, 8],
        17,
    ),
    "what is joined, and cut apart again": (
        """g (float[n, 3, 6, 6] x) => (float[n, 4, 6, 6] y) {
            a = Conv(x, w) b = Conv(x, i) s = Concat<axis = 1>(a, x, b) t = Relu(s) c = Slice(t, from, to, axis)
            y1 = Conv(t, v) y2 = Conv(c, u) y = Add(y1, y2) }""",
        weights(w=(8, 3, 1, 1), i=(6, 3, 1, 1), v=(4, 17, 1, 1), u=(4, 9, 1, 1))
        | {"from": ints(5), "to": ints(14), "axis": ints(1)},
        [3, 3, 3, 5],
        17,
    ),
    "groups that are normalized": (
        """g (float[n, 3, 6, 6] x) => (float[n, 4, 6, 6] y) {
            a = Conv(x, w) b = GroupNormalization<num_groups = 4>(a, s, o) c = Conv(b, i)
            d = InstanceNormalization(c, s2, o2) y = Conv(d, v) }""",
        weights(w=(12, 3, 1, 1), s=(12,), o=(12,), i=(6, 12, 1, 1), s2=(6,), o2=(6,), v=(4, 6, 1, 1)),
        [4, 6],
        21,
    ),
    "shuffled channels": (
        """g (float[n, 3, 6, 6] x) => (float[n, 4, 6, 6] y) {
            a = Conv(x, w) b = Reshape(a, t) c = Transpose<perm = [0, 2, 1, 3, 4]>(b) d = Reshape(c, u)
            y = Conv(d, v) }""",
        weights(w=(12, 3, 1, 1), v=(4, 12, 1, 1)) | {"t": ints(0, 3, 4, 6, 6), "u": ints(0, -1, 6, 6)},
        [3],
        17,
    ),
    "pixels made of channels": (
        """g (float[n, 3, 6, 6] x) => (float[n, 4, 12, 12] y) {
            a = Conv(x, w) b = DepthToSpace<blocksize = 2>(a) c = Conv(b, v) d = SpaceToDepth<blocksize = 2>(c)
            e = DepthToSpace<blocksize = 2, mode = "CRD">(d) y = Conv(e, u) }""",
        weights(w=(24, 3, 1, 1), v=(8, 6, 1, 1), u=(4, 8, 1, 1)),
        [2, 6],
        17,
    ),
    "images of other sizes": (
        """g (float[n, 3, 6, 6] x) => (float[n, 4, 12, 12] y) {
            a = Conv(x, w) b = Resize<mode = "nearest">(a, , scales) c = Conv(b, i)
            d = Resize<mode = "linear">(c, , , sizes) y = Conv(d, v) }""",
        weights(w=(8, 3, 1, 1), i=(6, 8, 1, 1), v=(4, 6, 1, 1))
        | {"scales": np.array([1, 1, 2, 2], np.float32), "sizes": ints(2, 6, 12, 12)},
        [6, 8],
        17,
    ),
    "heads": (
        """g (float[b, s, 12] x) => (float[b, s, 12] y) {
            q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
            q4 = Reshape(q, t) k4 = Reshape(k, t) v4 = Reshape(v, t)
            qt = Transpose<perm = [0, 2, 1, 3]>(q4) kt = Transpose<perm = [0, 2, 3, 1]>(k4)
            vt = Transpose<perm = [0, 2, 1, 3]>(v4)
            a = MatMul(qt, kt) m = Mul(a, scale) p = Softmax(m) o = MatMul(p, vt)
            ot = Transpose<perm = [0, 2, 1, 3]>(o) r = Reshape(ot, u) y = MatMul(r, wo) }""",
        weights(wq=(12, 12), wk=(12, 12), wv=(12, 12), wo=(12, 12))
        | {"t": ints(0, 0, 3, 4), "u": ints(0, 0, 12), "scale": np.float32(0.5)},
        [3],
        17,
    ),
    "packed heads, shapes computed": (
        """g (float[b, s, 12] x) => (float[b, s, 12] y) {
            qkv = MatMul(x, w) sh = Shape(x) bs = Slice(sh, zero, two) t = Concat<axis = 0>(bs, parts)
            u = Concat<axis = 0>(bs, width) five = Reshape(qkv, t) h = Transpose<perm = [2, 0, 3, 1, 4]>(five)
            q = Gather<axis = 0>(h, i0) k = Gather<axis = 0>(h, i1) v = Gather<axis = 0>(h, i2)
            kt = Transpose<perm = [0, 1, 3, 2]>(k) a = MatMul(q, kt) p = Softmax(a) o = MatMul(p, v)
            ot = Transpose<perm = [0, 2, 1, 3]>(o) r = Reshape(ot, u) y = MatMul(r, wo) }""",
        weights(w=(12, 36), wo=(12, 12))
        | {"zero": ints(0), "two": ints(2), "parts": ints(3, 3, 4), "width": ints(12)}
        | {"i0": np.int64(0), "i1": np.int64(1), "i2": np.int64(2)},
        [3],
        17,
    ),
    "queries that share keys": (
        """g (float[b, s, 16] x) => (float[b, s, 16] y) {
            q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
            q4 = Reshape(q, tq) k4 = Reshape(k, tk) v4 = Reshape(v, tk)
            qt = Transpose<perm = [0, 2, 1, 3]>(q4) kt = Transpose<perm = [0, 2, 1, 3]>(k4)
            vt = Transpose<perm = [0, 2, 1, 3]>(v4)
            ku = Unsqueeze(kt, two) vu = Unsqueeze(vt, two) ke = Expand(ku, many) ve = Expand(vu, many)
            kf = Reshape(ke, all) vf = Reshape(ve, all) kT = Transpose<perm = [0, 1, 3, 2]>(kf)
            a = MatMul(qt, kT) p = Softmax(a) o = MatMul(p, vf)
            ot = Transpose<perm = [0, 2, 1, 3]>(o) r = Reshape(ot, u) y = MatMul(r, wo) }""",
        weights(wq=(16, 16), wk=(16, 8), wv=(16, 8), wo=(16, 16))
        | {"tq": ints(0, 0, 4, 4), "tk": ints(0, 0, 2, 4), "two": ints(2), "many": ints(1, 1, 2, 1, 1)}
        | {"all": ints(0, 4, -1, 4), "u": ints(0, 0, 16)},
        [2],
        17,
    ),
    "an operator of attention": (
        """g (float[b, s, 12] x) => (float[b, s, 12] y) {
            q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
            o = com.microsoft.MultiHeadAttention<num_heads = 3>(q, k, v, bias) y = MatMul(o, wo) }""",
        weights(wq=(12, 12), wk=(12, 12), wv=(12, 12), bias=(36,), wo=(12, 12)),
        [3],
        17,
    ),
    "an operator of attention with its projections": (
        """g (float[b, s, 12] x) => (float[b, s, 12] y) {
            o = com.microsoft.Attention<num_heads = 3>(x, w, bias) y = MatMul(o, wo) }""",
        weights(w=(12, 36), bias=(36,), wo=(12, 12)),
        [3],
        17,
    ),
    "ONNX's attention": (
        """g (float[b, s, 16] x) => (float[b, s, 16] y) {
            q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
            o = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v) y = MatMul(o, wo) }""",
        weights(wq=(16, 16), wk=(16, 8), wv=(16, 8), wo=(16, 16)),
        [2],
        23,
    ),
    "grouped queries": (
        """g (float[b, s, 32] x) => (float[b, s, 32] y) {
            q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
            o = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(q, k, v, , , lens, total)
            y = MatMul(o, wo) }""",
        weights(wq=(32, 32), wk=(32, 16), wv=(32, 16), wo=(32, 32))
        | {"lens": np.full((2, 1), 8, np.int32), "total": np.int32(9)},
        [2],
        17,
    ),
    "experts": (
        """g (float[n, 6] x, float[n, 3] r) => (float[n, 6] y) {
            y = com.microsoft.MoE<k = 2, activation_type = "relu">(x, r, f1, b1, f2, b2) }""",
        weights(f1=(3, 8, 6), b1=(3, 8), f2=(3, 6, 8), b2=(3, 6)),
        [8],
        17,
    ),
    "experts and their router": (
        """g (float[n, 6] x) => (float[n, 6] y) {
            l = MatMul(x, r) m = Add(l, c)
            y = com.microsoft.MoE<k = 2, activation_type = "relu", normalize_routing_weights = 1>(
                x, m, f1, b1, f2, b2) }""",
        weights(r=(6, 5), c=(5,), f1=(5, 8, 6), b1=(5, 8), f2=(5, 6, 8), b2=(5, 6)),
        [5, 8],
        17,
    ),
    "rotated heads": (
        """g (float[b, s, 12] x) => (float[b, s, 12] y) {
            q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
            qr = RotaryEmbedding<num_heads = 3>(q, cos, sin, at) kr = RotaryEmbedding<num_heads = 3>(k, cos, sin, at)
            o = Attention<q_num_heads = 3, kv_num_heads = 3>(qr, kr, v) y = MatMul(o, wo) }""",
        weights(wq=(12, 12), wk=(12, 12), wv=(12, 12), wo=(12, 12), cos=(16, 2), sin=(16, 2))
        | {"at": np.tile(np.arange(9), (2, 1))},
        [3],
        23,
    ),
    "an embedding": (
        """g (int64[n] i) => (float[n, 5] y) { e = Gather(table, i) r = Tanh(e) y = MatMul(r, v) }""",
        weights(table=(7, 8), v=(8, 5)),
        [8],
        17,
    ),
    "a table that is the last layer, too": (
        """g (int64[n] i, float[n, 7] z) => (float[n, 7] y) {
            e = Gather(table, i) r = Tanh(e) t = Transpose(table) l = MatMul(r, t) y = Add(l, z) }""",
        weights(table=(7, 8)),
        [],
        17,
    ),
    "channels that are looked up": (
        """g (float[n, 3, 6, 6] x) => (float[n, 4, 6, 6] y) {
            a = Conv(x, w) b = Gather<axis = 1>(a, order) y = Conv(b, v) }""",
        weights(w=(8, 3, 1, 1), v=(4, 8, 1, 1)) | {"order": ints(7, 6, 5, 4, -5, 2, 1, 0)},
        [8],
        17,
    ),
    "repeated and padded": (
        """g (float[n, 3, 6, 6] x) => (float[n, 4, 8, 8] y) {
            a = Conv(x, w) t = Tile(a, twice) p = Pad(t, pads) y = Conv(p, v) }""",
        weights(w=(8, 3, 1, 1), v=(4, 16, 1, 1)) | {"twice": ints(1, 2, 1, 1), "pads": ints(0, 0, 1, 1, 0, 0, 1, 1)},
        [8],
        17,
    ),
    "weights on grids": (
        """g (float[n, 6] x) => (float[n, 5] y) {
            w = DequantizeLinear<axis = 1>(wq, ws, wz) a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }""",
        weights(v=(8, 5))
        | {"wq": np.arange(48, dtype=np.int8).reshape(6, 8), "ws": np.linspace(0.1, 0.2, 8, dtype=np.float32)}
        | {"wz": np.zeros(8, np.int8)},
        [],
        17,
    ),
}


def structure(name: str) -> tuple[onnx_ir.Model, Structure]:
    text, arrays, _, opset = GRAPHS[name]
    model = parse(text, arrays, opset)
    return model, structure_of(model.graph, Facts(model))


@pytest.mark.parametrize("name", GRAPHS)
def test_groups_are_found(name: str) -> None:
    _, found = structure(name)
    assert sorted(len(group) for group in found.groups) == GRAPHS[name][2], found.declined


@pytest.mark.parametrize("name", GRAPHS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
def test_removing_units_is_reading_nothing_of_them(name: str, share: float, seed: int) -> None:
    text, arrays, _, opset = GRAPHS[name]
    _ = check(parse(text, arrays, opset), share, seed)


DECLINED = {
    "an output": ("g (float[n, 6] x) => (float[n, 8] y) { y = MatMul(x, w) }", "an output of the model"),
    "a normalized axis": (
        "g (float[n, 6] x) => (float[n, 5] y) { a = MatMul(x, w) b = LayerNormalization(a, s) y = MatMul(b, v) }",
        "LayerNormalization normalizes over it",
    ),
    "a mixed axis": (
        "g (float[n, 6] x) => (float[n, 5] y) { a = MatMul(x, w) b = Softmax(a) y = MatMul(b, v) }",
        "Softmax mixes all of it",
    ),
    "an unknown operator": (
        "g (float[n, 6] x) => (float[n, 5] y) { a = MatMul(x, w) b = com.microsoft.Nothing(a) y = MatMul(b, v) }",
        "nothing is known of how Nothing uses it",
    ),
    "a size that is computed with": (
        """g (float[n, 6] x) => (float[n, 5] y, int64[2] z) { a = MatMul(x, w) z = Shape(a) y = MatMul(a, v) }""",
        "its size is computed with",
    ),
    "a symbolic dim": (
        """g (float[n, 6] x, float[n, k] e) => (float[n, 5] y) { a = MatMul(x, w) b = Add(a, e) y = MatMul(b, v) }""",
        "broadcasts it with a dim that is no number",
    ),
    "an input": (
        """g (float[n, 6] x, float[n, 8] e) => (float[n, 5] y) { a = MatMul(x, w) b = Add(a, e) y = MatMul(b, v) }""",
        "an input of the model",
    ),
    "no reader": (
        """g (float[n, 6] x) => (float[n] y) { a = MatMul(x, w) y = ReduceSum<keepdims = 0>(a, axes) }""",
        "ReduceSum mixes all of it",
    ),
    "all experts": (
        """g (float[n, 6] x) => (float[n, 6] y) { l = MatMul(x, u)
            y = com.microsoft.MoE<k = 3, activation_type = "relu", swiglu_fusion = 0>(x, l, f1, , f2) }""",
        "each row takes 3 of 3 experts",
    ),
    "a router whose choice is handed on": (
        """g (float[n, 6] x) => (float[n, 2] y, int64[n, 2] i) { a = MatMul(x, w) y, i = TopK(a, two) }""",
        "TopK hands on positions of it",
    ),
    "a sub-graph": (
        """g (float[n, 6] x, bool c) => (float[n, 8] y) { a = MatMul(x, w)
            y = If(c) <then_branch = t () => (float[n, 8] u) { u = Identity(a) },
                       else_branch = e () => (float[n, 8] u) { u = Neg(a) }> }""",
        "a sub-graph reads it",
    ),
}


EXPERTS = {"u": (6, 3), "f1": (3, 8, 6), "f2": (3, 6, 8)}


@pytest.mark.parametrize("name", DECLINED)
def test_what_cannot_be_removed_is_named_with_its_reason(name: str) -> None:
    text, words = DECLINED[name]
    model = parse(text, weights(w=(6, 8), v=(8, 5), s=(8,), **EXPERTS) | {"axes": ints(1), "two": ints(2)})
    found = structure_of(model.graph, Facts(model))
    assert not [group for group in found.groups if group.kind != "ffn" or "MoE" not in text]
    assert words in next(iter(found.declined.values()))


def test_only_the_axis_that_cannot_be_removed_is_declined() -> None:
    text = """g (float[n, 6] x) => (float[n, 5] y) {
        a = MatMul(x, w) b = LayerNormalization(a, s) c = MatMul(b, u) r = Relu(c) y = MatMul(r, v) }"""
    model = parse(text, weights(w=(6, 8), s=(8,), u=(8, 9), v=(9, 5)))
    found = structure_of(model.graph, Facts(model))
    assert [len(group) for group in found.groups] == [9]
    assert len(found.declined) == 2 and any("LayerNormalization" in reason for reason in found.declined.values())


@pytest.mark.parametrize(
    "name, kind",
    [
        *(("products", "ffn"), ("convolutions", "conv"), ("a residual sum", "residual"), ("heads", "heads")),
        *(("packed heads, shapes computed", "heads"), ("ONNX's attention", "heads"), ("an embedding", "embedding")),
        ("experts and their router", "experts"),
    ],
)
def test_groups_know_what_they_are(name: str, kind: str) -> None:
    _, found = structure(name)
    assert kind in {group.kind for group in found.groups}
