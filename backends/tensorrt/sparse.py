"""Layers whose weights sparse tensor cores can multiply: 2:4 along the input channels.

TensorRT looks for them itself if it is told to (BuilderFlag.SPARSE_WEIGHTS), and takes a sparse kernel where that is
the faster one ("Structured Sparsity" in its documentation). Without such weights looking costs time and finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import int_attr, is_op, made_by, operand
from optc.ir.sparsity import Pattern

#: What sparse tensor cores take, and what a target with them says that it has.
PATTERN = Pattern(2, 4)
CAPABILITY = f"sparse-{PATTERN}"
#: Outputs that are looked at before all of them are: dense weights show at once.
_FIRST = 8


def sparse_layers(model: onnx_ir.Model) -> list[str]:
    """Names of the convolutions and products with constant weights of the pattern, floats or codes."""
    facts = Facts(model)
    return [node.name or node.outputs[0].name or "" for node in _layers(model) if _is_sparse(node, facts)]


def _layers(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    return (node for node in model.graph.all_nodes() if is_op(node, "Conv", "Gemm", "MatMul"))


def _is_sparse(node: onnx_ir.Node, facts: Facts) -> bool:
    weight = operand(node, 1)
    codes = made_by(weight, "DequantizeLinear")
    array = facts.const(codes.inputs[0] if codes is not None else weight)
    if array is None or array.ndim < 2:
        return False
    axis, outputs = _axes(node, array.ndim)
    if array.shape[axis] < PATTERN.group:
        return False
    first = array.take(range(min(_FIRST, array.shape[outputs])), axis=outputs)
    return PATTERN.holds(first, axis) and PATTERN.holds(array, axis)


def _axes(node: onnx_ir.Node, rank: int) -> tuple[int, int]:
    """The axes of a layer's weight along which its inputs and its outputs lie."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and int_attr(node, "transB", 0)):
        return 1, 0
    return rank - 2, rank - 1
