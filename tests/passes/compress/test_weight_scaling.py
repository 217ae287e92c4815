"""AWQ's scales are folded where they cost nothing, change nothing by themselves, and make rounding better."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from optc.backends.ort import Session
from optc.compiler import compile as compile_model
from optc.ir.model import load
from optc.ir.rewriter import Rewriter
from optc.ir.saving import save
from optc.passes.calibration.store import Request, Statistics
from optc.passes.compress.layers import weighted_layers
from optc.passes.compress.weights.codes import Grid
from optc.passes.compress.weights.inputs import KnownInputs, gram_request
from optc.passes.compress.weights.scaling import scale_inputs

RANDOM = np.random.default_rng(0)
SIZE, INNER = 64, 128
WEIGHTS = {
    "gamma": 1 + 0.1 * RANDOM.standard_normal(SIZE),
    "q": RANDOM.standard_normal((SIZE, SIZE)) / 8,
    "gate": RANDOM.standard_normal((SIZE, INNER)) / 8,
    "up": RANDOM.standard_normal((INNER, SIZE)) / 8,
    "down": RANDOM.standard_normal((INNER, SIZE)) / 11,
    "shared": RANDOM.standard_normal((SIZE, SIZE)) / 8,
}
#: A gated unit behind a norm; what reads the residual sum cannot be scaled.
BODY = f"""g (float[B, T, {SIZE}] x) => (float[B, T, {SIZE}] y) {{
    h = LayerNormalization<axis = -1>(x, w_gamma)
    g = MatMul(h, w_gate) s = Sigmoid(g) a = Mul(g, s)
    u = com.microsoft.FusedMatMul<transB = 1>(h, w_up) m = Mul(a, u)
    d = MatMul(m, w_down) q = MatMul(h, w_q) e = Add(d, q) r = Add(x, e)
    z = MatMul(r, w_shared) y = Add(z, r)
}}"""
#: A few channels that are much larger than the others, as language models have them.
X = (RANDOM.standard_normal((6, 20, SIZE)) * np.where(np.arange(SIZE) % 16 == 3, 12, 1)).astype(np.float32)


def model() -> onnx_ir.Model:
    text = f'<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> {BODY}'
    parsed = onnx_ir.from_onnx_text(text)
    for name, array in WEIGHTS.items():
        value = onnx_ir.Value(name=f"w_{name}", const_value=onnx_ir.tensor(array.astype(np.float32), name=f"w_{name}"))
        parsed.graph.register_initializer(value)
        for node in parsed.graph:
            for index, given in enumerate(node.inputs):
                if given is not None and given.name == f"w_{name}":
                    node.replace_input_with(index, value)
    return load(parsed)


def outputs(one: onnx_ir.Model) -> np.ndarray:
    return Session(one, optimization="off").run({"x": X})["y"]


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


class Given(Statistics):
    """Gram matrices that were computed here."""

    def __init__(self, grams: Mapping[str, np.ndarray]) -> None:
        super().__init__({}, {}, samples=1, real=True)
        self._grams = grams

    def why_not(self, request: Request) -> str | None:
        return None if request.value in self._grams else "it was not asked for"

    def gram(self, name: str, view: object = None) -> np.ndarray:
        return self._grams[name]


def test_scales_are_folded_where_the_producer_can() -> None:
    one = model()
    before = outputs(one)
    rewriter = Rewriter(one)
    layers = list(weighted_layers(one.graph, rewriter.facts))
    grams = {}
    for name in {layer.x.name for layer in layers}:
        copy = one.clone()
        value = next(v for node in copy.graph for v in node.outputs if v.name == name)
        copy.graph.outputs.append(value)
        array = Session(copy, optimization="off").run({"x": X})[name]
        rows = array.reshape(-1, array.shape[-1])
        grams[name] = rows.T @ rows / len(rows)
    known = KnownInputs(Given(grams))
    left = scale_inputs(rewriter, layers, known, Grid(4, 32), lambda tensor: tensor)
    assert list(left) == ["r"] and "something else" in left["r"]
    assert relative(outputs(one), before) < 1e-5, "nothing is rounded yet"
    changed = {layer.weight.name for layer in layers if "smooth" in (layer.weight.name or "")}
    assert len(changed) == 4, "q, gate, up and down were scaled, up on both sides"
    for layer in layers:
        inputs, request = known.of(layer), gram_request(layer)
        assert request is not None and not isinstance(inputs, str | None)
        scaled = not np.allclose(inputs.gram, grams[request.value])
        assert scaled == (request.value != "r")


@pytest.mark.parametrize("zeros", ["none", "integer"])
def test_awq_beats_rounding_in_a_graph(zeros: str, tmp_path: Path) -> None:
    one = model()
    before, errors = outputs(one), {}
    save(one, tmp_path / "model.onnx")
    for method in ("rtn", "awq"):
        options = {"verify": "off", "calib": {"x": X}, "output": tmp_path / "out.onnx", "target": "cpu"}
        passes = f"quantize-weights{{method={method},block=32,zeros={zeros}}}"
        compile_model(tmp_path / "model.onnx", passes=passes, **options)
        errors[method] = relative(outputs(load(tmp_path / "out.onnx")), before)
    assert 0 < errors["awq"] < 0.85 * errors["rtn"]
