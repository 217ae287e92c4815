"""Models that hold fused operators already, of a runtime or of the standard, and operators that nobody knows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import optc
from optc.backends.ort import Session

_FUSED = """<ir_version: 10, opset_import: ["": 17, "com.microsoft": 1]>
g (float[B,S,8] x, float[B,S,8] z) => (float[B,S,8] y, float[B,S,8] r)
<float[8] bias, float[8] gamma, float[8] beta, float[8,8] w, float two = {2}>
{
  [gelu] a = com.microsoft.BiasGelu (x, bias)
  [quick] b = com.microsoft.QuickGelu <alpha = 1.702> (a)
  [skip] c, mean, deviation, r = com.microsoft.SkipLayerNormalization <epsilon = 1e-5> (b, z, gamma, beta)
  [product] d = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (c, w)
  [attention] y = com.microsoft.MultiHeadAttention <num_heads = 2> (d, d, c)
}
"""
_STANDARD = """<ir_version: 10, opset_import: ["": 23]>
g (float[B,S,8] x, float[B,S,8] z) => (float[B,S,8] y, float[B,S,8] r)
<float[8] gamma, float[8] beta>
{
  [gelu] a = Gelu <approximate = "tanh"> (x)
  [rms] b = RMSNormalization <axis = -1> (a, gamma)
  [norm] r = LayerNormalization <axis = -1> (b, gamma, beta)
  [attention] y = Attention <q_num_heads = 2, kv_num_heads = 2> (r, z, b)
}
"""
_UNKNOWN = """<ir_version: 8, opset_import: ["": 17, "com.example": 3]>
g (float[N,8] x) => (float[N,8] y)
<float root = {1.4142135}, float one = {1}, float half = {0.5}, float zero = {0}>
{
  [before] b = Add (x, zero)
  [first] p, q = com.example.Frobnicate <strength = 0.25, modes = ["a", "b"]> (b, , one)
  [second] s = com.example.Frobnicate <strength = 0.25, modes = ["a", "b"]> (b, , one)
  [third] t = com.example.Gelu (s)
  [div] d = Div (b, root)
  [erf] e = Erf (d)
  [add] a = Add (e, one)
  [mul] m = Mul (b, a)
  [end] g = Mul (m, half)
  [join] u = Sum (g, p, q, t)
  [last] y = com.example.Frobnicate (u)
}
"""


def _model(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    made = {name for node in model.graph.node for name in node.output} | {value.name for value in model.graph.input}
    rng = np.random.default_rng(3)
    for value in [value for value in model.graph.value_info if value.name not in made]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        model.graph.initializer.append(numpy_helper.from_array(rng.random(shape, np.float32) + 0.5, value.name))
        model.graph.value_info.remove(value)
    return model


def _ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(f"{node.domain}::{node.op_type}" for node in model.graph.node)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("text", [_FUSED, _STANDARD], ids=["com.microsoft", "opset 23"])
def test_fused_operators_pass_unharmed(text: str, level: int) -> None:
    model = _model(text)
    result = optc.optimize(model, level=level, verify="off")
    assert list(result.graph.output) == list(model.graph.output)
    before, after = Session(model, optimization="off", threads=1), Session(result, optimization="off", threads=1)
    for batch, sequence in ((1, 1), (2, 5), (3, 2)):
        rng = np.random.default_rng(batch)
        feeds = {name: rng.standard_normal((batch, sequence, 8)).astype(np.float32) for name in "xz"}
        for name, want in before.run(feeds).items():
            np.testing.assert_allclose(after.run(feeds)[name], want, rtol=1e-4, atol=1e-5)
    if level == 1:
        assert _ops(result) == _ops(model)
    assert sum(_ops(result).values()) <= sum(_ops(model).values()) + 1
    again = optc.optimize(result, level=level, verify="off")
    assert _ops(again) == _ops(result)


@pytest.mark.parametrize("level", [1, 2])
def test_operators_that_nobody_knows_are_left_as_they_are(level: int) -> None:
    """They keep attributes, empty inputs and all outputs, and are never merged; what is beside them is fused."""
    model = _model(_UNKNOWN)
    result = optc.optimize(model, level=level, verify="off")
    given, kept = ({node.name: node for node in m.graph.node if node.domain == "com.example"} for m in (model, result))
    assert set(kept) == set(given)
    for name, node in given.items():
        now = kept[name]
        assert (now.op_type, list(now.output)) == (node.op_type, list(node.output))
        assert sorted(a.SerializeToString() for a in now.attribute) == sorted(
            a.SerializeToString() for a in node.attribute
        )
        assert [bool(i) for i in now.input] == [bool(i) for i in node.input]
    assert {entry.domain: entry.version for entry in result.opset_import}["com.example"] == 3
    assert "before" not in {node.name for node in result.graph.node}
    assert ("com.microsoft::Gelu" in _ops(result)) == (level == 2)
