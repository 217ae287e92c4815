"""Every operator whose gradient is known computes what ONNX Runtime computes.

``pytest -m recover`` runs this, and fails where PyTorch is missing.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx_ir
import pytest

from optc.backends.ort import OnnxRuntimeBackend
from optc.ir.facts import Facts
from tests.optc.recovery.operator_cases import CASES, MS, Case

pytestmark = pytest.mark.recover


@pytest.fixture
def engine() -> Any:
    return importlib.import_module("optc.recovery.engine.program")


def model_of(case: Case) -> onnx_ir.Model:
    """A model of the one node."""
    values, fed, constants = [], [], []
    for index, array in enumerate(case.inputs):
        if array is None:
            values.append(None)
            continue
        tensor = onnx_ir.tensor(array, name=f"i{index}")
        value = onnx_ir.Value(name=f"i{index}", type=onnx_ir.TensorType(tensor.dtype), shape=onnx_ir.Shape(array.shape))
        values.append(value)
        if index in case.constant:
            value.const_value = tensor
            constants.append(value)
        else:
            fed.append(value)
    attributes = [onnx_ir.convenience.convert_attribute(*pair) for pair in case.attributes.items()]
    node = onnx_ir.Node(case.domain, case.op, values, attributes, num_outputs=case.outputs)
    shown = range(case.outputs) if case.compared is None else case.compared
    for index, value in enumerate(node.outputs):
        value.name = f"o{index}" if index in shown else ""
    outputs = [node.outputs[index] for index in shown]
    imports = {"": case.opset, MS: 1}
    graph = onnx_ir.Graph(fed, outputs, nodes=[node], initializers=constants, opset_imports=imports, name="g")
    return onnx_ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_an_operator_computes_what_onnxruntime_computes(case: Case, engine: Any) -> None:
    model = model_of(case)
    (node,) = model.graph
    feeds = {value.name: case.inputs[int(value.name[1:])] for value in model.graph.inputs}
    session = OnnxRuntimeBackend().runner(model, plain=True, few_runs=True)
    expected = session.run(feeds)
    device = engine.torch.device("cpu")
    program = engine.Program([node], Facts(model), model.graph.opset_imports, device)
    tensors = {name: engine.tensor_of(array, device) for name, array in feeds.items()}
    found = program.run(tensors, {}, model.graph.outputs)
    for value, tensor in zip(model.graph.outputs, found, strict=True):
        right, got = expected[value.name], tensor.numpy()
        assert got.shape == right.shape
        scale = max(float(np.abs(right.astype(np.float64)).max(initial=0)), 1e-9)
        assert np.abs(got.astype(np.float64) - right).max(initial=0) <= case.at * scale


def test_every_operator_has_a_case(engine: Any) -> None:
    assert {(case.domain, case.op) for case in CASES} == set(engine.OPERATORS)


def test_what_is_not_known_is_refused_by_name(engine: Any) -> None:
    model = model_of(Case("Pad", (np.zeros((2, 3), np.float32), np.array([0, 1, 0, 1])), {"mode": "reflect"}))
    program = engine.Program(list(model.graph), Facts(model), {"": 21}, engine.torch.device("cpu"))
    feeds = {"i0": engine.torch.zeros(2, 3), "i1": engine.torch.tensor([0, 1, 0, 1])}
    with pytest.raises(engine.NodeFailed, match="Pad in the mode 'reflect' is not known"):
        program.run(feeds, {}, model.graph.outputs)
    unknown = model_of(Case("Det", (np.zeros((2, 2), np.float32),), {}))
    assert "the gradient of Det is not known" in engine.why_not(next(iter(unknown.graph)))
