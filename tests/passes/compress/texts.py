"""Models written as text, with weights from arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir

from optc.ir.model import load


def parse(body: str, weights: Mapping[str, np.ndarray], opset: int = 17) -> onnx_ir.Model:
    """A model of a text whose weights come from arrays."""
    model = onnx_ir.from_onnx_text(f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> {body}')
    for name, array in weights.items():
        uses = [
            (node, i) for node in model.graph for i, v in enumerate(node.inputs) if v is not None and v.name == name
        ]
        value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
        model.graph.register_initializer(value)
        for node, index in uses:
            node.replace_input_with(index, value)
    return load(model)
