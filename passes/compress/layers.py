"""Weighted layers: what ``x @ W`` looks like in a graph, however it is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir

from optc.ir.facts import Facts

#: Weights with fewer elements than this are left alone: a kernel of their size costs next to nothing.
MIN_WEIGHTS = 1 << 12
#: The operators, and the attributes that must have these values for the node to be x @ W + bias.
_FORMS: dict[tuple[str, str], dict[str, float]] = {
    ("", "MatMul"): {},
    ("", "Gemm"): {"alpha": 1.0, "beta": 1.0, "transA": 0},
    ("com.microsoft", "FusedMatMul"): {"alpha": 1.0, "transA": 0, "transBatchA": 0, "transBatchB": 0},
}


@dataclass(frozen=True)
class Layer:
    """A node that multiplies by a constant matrix.

    Attributes:
        node: The MatMul, Gemm or FusedMatMul.
        x: The activations, (..., K) float32, of rank 2 or more and not constant.
        weight: The constant, (K, N), or (N, K) if ``transposed``.
        rows, columns: K and N.
    """

    node: onnx_ir.Node
    x: onnx_ir.Value
    weight: onnx_ir.Value
    transposed: bool
    rows: int
    columns: int

    def matrix(self, facts: Facts) -> np.ndarray:
        """The weight as a float32 array of shape (K, N)."""
        array = facts.const(self.weight)
        assert array is not None
        return np.ascontiguousarray(array.T if self.transposed else array, dtype=np.float32)


def weighted_layers(graph: onnx_ir.Graph, facts: Facts) -> Iterator[Layer]:
    """The layers of a graph that could be quantized, in order; fp32, two-dimensional constant weights only."""
    for node in graph:
        layer = _layer(node, facts)
        if layer is not None and layer.rows * layer.columns >= MIN_WEIGHTS:
            yield layer


def _layer(node: onnx_ir.Node, facts: Facts) -> Layer | None:
    form = _FORMS.get((node.domain, node.op_type))
    if form is None or len(node.inputs) < 2:
        return None
    x, weight = node.inputs[0], node.inputs[1]
    shape = facts.shape(weight)
    if x is None or weight is None or shape is None or len(shape) != 2 or not facts.is_const(weight):
        return None
    if facts.dtype(weight) != onnx_ir.DataType.FLOAT or (facts.rank(x) or 0) < 2 or facts.is_const(x):
        return None
    if any(_value(node, name, default) != default for name, default in form.items()):
        return None
    transposed = bool(_value(node, "transB", 0))
    rows, columns = (int(n) for n in (reversed(shape) if transposed else shape))
    return Layer(node, x, weight, transposed, rows, columns)


def _value(node: onnx_ir.Node, name: str, default: float) -> float:
    attr = node.attributes.get(name)
    return default if attr is None else attr.value
