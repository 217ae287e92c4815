"""Weighted layers: what ``x @ W`` looks like in a graph, however it is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.matcher import attribute

#: Weights with fewer elements than this are left alone: a kernel of their size costs next to nothing.
MIN_WEIGHTS = 1 << 12


@dataclass(frozen=True)
class Layer:
    """A node that multiplies by a constant matrix.

    Attributes:
        node: The MatMul or Gemm.
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
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    x, weight = node.inputs[0], node.inputs[1]
    shape = facts.shape(weight)
    if x is None or weight is None or shape is None or len(shape) != 2 or not facts.is_const(weight):
        return None
    if facts.dtype(weight) != onnx_ir.DataType.FLOAT or (facts.rank(x) or 0) < 2 or facts.is_const(x):
        return None
    transposed = False
    if node.op_type == "Gemm":
        plain = (attribute(node, "alpha", facts), attribute(node, "beta", facts), attribute(node, "transA", facts))
        if plain != (1.0, 1.0, 0):
            return None
        transposed = bool(attribute(node, "transB", facts))
    rows, columns = (int(n) for n in (reversed(shape) if transposed else shape))
    return Layer(node, x, weight, transposed, rows, columns)
