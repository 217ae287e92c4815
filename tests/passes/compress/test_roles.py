"""Roles of layers: found by what surrounds them, with names that say nothing."""

from __future__ import annotations

import numpy as np

from optc.ir.rewriter import Rewriter
from optc.passes.compress.layers import weighted_layers
from optc.passes.compress.roles import ROLES, roles_of
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(0)


def roles(body: str, **shapes: tuple[int, ...]) -> dict[str, set[str]]:
    """Roles by the name of the layer's output."""
    model = parse(body, {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})
    facts = Rewriter(model).facts
    layers = list(weighted_layers(model.graph, facts))
    found = roles_of(layers, facts)
    assert all(own <= set(ROLES) for own in found)
    return {layer.node.outputs[0].name: set(own) for layer, own in zip(layers, found, strict=True)}


def test_a_transformer_block():
    found = roles(
        """g (float[N, 4, 64] x) => (float[N, 4, 64] y) {
        q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c)
        kt = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, kt) p = Softmax(s) o = MatMul(p, v)
        t = MatMul(o, d) r = Add(t, x)
        u = MatMul(r, e) g1 = Sigmoid(u) g2 = Mul(g1, u) w = MatMul(r, f) m = Mul(g2, w) z = MatMul(m, h) r2 = Add(z, r)
        y = MatMul(r2, i)
    }""",
        **{name: (64, 64) for name in "abcdefi"},
        h=(64, 64),
    )
    for name in "qkv":
        assert found[name] == {"matmul", "attention", "attention.in", "first"}
    assert found["t"] == {"matmul", "attention", "attention.out"}
    assert found["u"] == found["w"] == {"matmul", "ffn", "ffn.up"}
    assert found["z"] == {"matmul", "ffn", "ffn.down"}
    assert found["y"] == {"matmul", "last"}


def test_sizes_are_no_flow():
    found = roles(
        """g (float[N, 64] x) => (float[N, 64] y, float[M] e) {
        q = MatMul(x, a) k = MatMul(x, b) n = Shape(k) e = ConstantOfShape(n) y = MatMul(q, c)
    }""",
        a=(64, 64),
        b=(64, 64),
        c=(64, 64),
    )
    assert found["k"] == {"matmul", "first", "last"}


def test_convolutions():
    found = roles(
        """g (float[N, 8, 9, 9] x) => (float[N, 8, 7, 7] y) {
        a = Conv(x, p) r = Relu(a) b = Conv<group = 8>(r, d) y = Conv(b, f)
    }""",
        p=(8, 8, 1, 1),
        d=(8, 1, 3, 3),
        f=(8, 8, 1, 1),
    )
    assert found == {
        "a": {"conv", "conv.pointwise", "first"},
        "b": {"conv", "conv.depthwise"},
        "y": {"conv", "conv.pointwise", "last"},
    }
