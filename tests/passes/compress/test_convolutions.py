"""Fused convolutions are taken apart into what computes the same, and fused again."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir
import pytest

from optc.backends import ort_kernels
from optc.backends.ort import Session
from optc.ir.rewriter import Rewriter
from optc.ir.targets import builtin_targets
from optc.passes.compress.convolutions import split_convolution
from optc.passes.manager import PassManager
from optc.passes.pipeline import parse_pipeline
from optc.passes.registry import pass_registry

CASES = {
    "Relu": ("", {"Conv": 1, "Relu": 1}),
    "Sigmoid": ("", {"Conv": 1, "Sigmoid": 1}),
    "Tanh": ("", {"Conv": 1, "Tanh": 1}),
    "LeakyRelu": (", activation_params = [0.3]", {"Conv": 1, "LeakyRelu": 1}),
    "HardSigmoid": (", activation_params = [0.3, 0.4]", {"Conv": 1, "HardSigmoid": 1}),
    "Clip": (", activation_params = [-0.5, 1.5]", {"Conv": 1, "Clip": 1}),
}
X = np.random.default_rng(0).standard_normal((2, 2, 6, 6)).astype(np.float32)


def model(activation: str, parameters: str, summand: bool) -> onnx_ir.Model:
    attributes = f'<activation = "{activation}", pads = [1, 1, 1, 1], strides = [1, 1]{parameters}>'
    weights = ", ".join(str(round(0.05 * n - 0.9, 2)) for n in range(36))
    return onnx_ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[N, 2, H, W] x) => (float[N, 2, H, W] y)
        <float[2, 2, 3, 3] w = {{{weights}}}, float[2] b = {{0.5, -0.5}}>
        {{ y = com.microsoft.FusedConv {attributes} (x, w, b{", x" if summand else ""}) }}"""
    )


@pytest.mark.parametrize("summand", [False, True])
@pytest.mark.parametrize("activation", CASES)
def test_split_and_fused_again(activation, summand):
    parameters, wanted = CASES[activation]
    whole = model(activation, parameters, summand)
    parts = whole.clone()
    rewriter = Rewriter(parts)
    assert split_convolution(rewriter, next(iter(parts.graph)))
    assert Counter(n.op_type for n in parts.graph) == {**wanted, **({"Add": 1} if summand else {})}
    assert [v.name for v in parts.graph.outputs] == ["y"]
    expected = Session(whole).run({"x": X})["y"]
    assert np.allclose(Session(parts, optimization="off").run({"x": X})["y"], expected, atol=1e-5)
    again = "fuse{only=[conv-activation,conv-add-activation,conv-add],guard=false},emit"
    manager = PassManager(builtin_targets()["cpu"], {"kernels": ort_kernels})
    result = manager.run(parts, parse_pipeline(again, pass_registry())).model
    assert [node.op_type for node in result.graph] == ["FusedConv"]


def test_other_nodes_are_left_alone():
    other = onnx_ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { y = Relu (x) }'
    )
    assert not split_convolution(Rewriter(other), next(iter(other.graph)))
