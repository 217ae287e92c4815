"""Projections come out of ONNX Runtime's Attention again, with the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from optc.backends import ort_kernels
from optc.ir.model import load
from optc.ir.saving import to_proto
from optc.ir.targets import builtin_targets
from optc.passes.manager import PassManager
from optc.passes.pipeline import parse_pipeline
from optc.passes.registry import pass_registry


def _split(model: onnx.ModelProto) -> onnx.ModelProto:
    manager = PassManager(builtin_targets()["cpu"], {"kernels": ort_kernels}, strict=True)
    return to_proto(manager.run(load(model), parse_pipeline("split-projections", pass_registry())).model)


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def _model(inputs: str, node: str, widths: int = 24) -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'
    model = onnx.parser.parse_model(f"{head} g ({inputs}) => (float[B,S,W] y) {{ y = com.microsoft.{node} }}")
    rng = np.random.default_rng(0)
    for name, shape in (("w", (6, widths)), ("bias", (widths,))):
        if f", {name}" in node:
            array = rng.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize(
    ("node", "widths"),
    [
        ("Attention <num_heads = 2> (x, w, bias)", 24),
        ("Attention <num_heads = 2, scale = 0.3> (x, w, bias)", 24),
        ("Attention <num_heads = 2, qkv_hidden_sizes = [8, 8, 4]> (x, w, bias)", 20),
        ('Attention <num_heads = 2> (x, w, bias, "", "", m)', 24),
    ],
)
def test_projections_are_a_product_again(node, widths):
    model = _model("float[B,S,6] x" + (", float[1,1,S,S] m" if ", m" in node else ""), node, widths)
    result = _split(model)
    assert [n.op_type for n in result.graph.node] == ["MatMul", "Split", "MultiHeadAttention"]
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((2, 5, 6)).astype(np.float32)}
    if ", m" in node:
        feeds["m"] = np.triu(np.full((1, 1, 5, 5), -np.inf, np.float32), 1)
    np.testing.assert_allclose(_run(result, feeds), _run(model, feeds), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "node",
    [
        "Attention <num_heads = 2, unidirectional = 1> (x, w, bias)",
        "Attention <num_heads = 2> (x, w, bias, k)",
    ],
)
def test_what_emission_does_not_write_stays(node):
    model = _model("float[B,S,6] x, int32[B,S] k", node)
    assert [n.op_type for n in _split(model).graph.node] == ["Attention"]
