"""Products of one tensor with several weights, as one product: what feeds an attention is computed by one kernel.

Only what attention reads as it comes is merged. Elsewhere products do better apart, as each takes the pointwise work
behind it along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from optc.ir import ops
from optc.ir.functions import FUSED_DOMAIN
from optc.ir.rewriter import Rewriter, users

_OPERANDS = 3  # queries, keys, values


@dataclass(frozen=True)
class _Projection:
    """A product with a constant matrix, times a number, and the constant vector that is added to it, if one is."""

    nodes: tuple[onnx_ir.Node, ...]
    weight: onnx_ir.Value | None
    factor: float
    bias: onnx_ir.Value | None
    result: onnx_ir.Value


def merge_projections(rewriter: Rewriter) -> None:
    """Merge the products of each tensor that attention reads."""
    sources = {node.inputs[0]: None for node in rewriter.model.graph if ops.is_op(node, "MatMul")}
    for source in sources:
        if source is not None:
            found = [p for node in users(source) if (p := _projection(rewriter, node, source)) is not None]
            order = {node: place for place, node in enumerate(rewriter.model.graph)}
            found.sort(key=lambda p: order[p.nodes[0]])  # the first one's place is before all that read the others
            if len(found) > 1 and len({(p.bias is None, rewriter.facts.dtype(p.weight)) for p in found}) == 1:
                _merge(rewriter, source, found)


def _projection(rewriter: Rewriter, node: onnx_ir.Node, source: onnx_ir.Value) -> _Projection | None:
    facts = rewriter.facts
    if not ops.is_op(node, "MatMul") or node.inputs[0] is not source:
        return None
    weight, result, bias, factor, nodes = node.inputs[1], node.outputs[0], None, 1.0, [node]
    shape = facts.shape(weight)
    if shape is None or len(shape) != 2 or (facts.rank(source) or 0) < 2 or _matrix(rewriter, weight) is None:
        return None
    for op in ("Mul", "Add"):
        after = users(result)[0] if ops.only_use(result) else None
        if after is None or not ops.is_op(after, op):
            continue
        other = after.inputs[1] if after.inputs[0] is result else after.inputs[0]
        scalar = facts.scalar(other)
        if op == "Mul" and scalar is not None and facts.rank(other) in (0, 1):
            factor = float(scalar)
        elif op == "Add" and facts.is_const(other) and facts.shape(other) == (shape[1],):
            bias = other
        else:
            continue
        nodes.append(after)
        result = after.outputs[0]
    return _Projection(tuple(nodes), weight, factor, bias, result) if _feeds_attention(result) else None


def _matrix(rewriter: Rewriter, value: onnx_ir.Value | None) -> np.ndarray | None:
    """The contents of a constant, or of one that is transposed."""
    transpose = ops.made_by(value, "Transpose")
    if transpose is None:
        return rewriter.facts.const(value)
    array = rewriter.facts.const(transpose.inputs[0])
    perm = ops.perm_of(transpose, rewriter.facts)
    return None if array is None or perm is None else array.transpose(perm)


def _feeds_attention(value: onnx_ir.Value) -> bool:
    """Whether all that becomes of a value, but for its shape and for its angles, is an operand of attention."""
    readers = users(value)
    if value.is_graph_output() or not readers:
        return False
    for node in readers:
        if _passes(node) and node.inputs[0] is value:
            if not _feeds_attention(node.outputs[0]):
                return False
        elif not (node.domain == FUSED_DOMAIN and node.op_type == "Attention" and value in node.inputs[:_OPERANDS]):
            return False
    return True


def _passes(node: onnx_ir.Node) -> bool:
    """Whether a node stands between a projection and attention as the kernels have it: it reads from anywhere."""
    turns = node.domain == FUSED_DOMAIN and node.op_type == "RotaryEmbedding"
    return turns or ops.is_op(node, "Reshape", "Transpose")


def _merge(rewriter: Rewriter, source: onnx_ir.Value, found: Sequence[_Projection]) -> None:
    facts = rewriter.facts

    def contents(value: onnx_ir.Value | None, factor: float = 1.0) -> np.ndarray:
        array = _matrix(rewriter, value)
        assert array is not None
        return array if factor == 1.0 else (array.astype(np.float64) * factor).astype(array.dtype)

    nodes = [node for p in found for node in p.nodes]
    with rewriter.at(nodes[0], "merge-projections", nodes):
        weights = np.concatenate([contents(p.weight, p.factor) for p in found], 1)
        made = rewriter.op("MatMul", source, rewriter.constant(weights, "projections"))
        assert isinstance(made, onnx_ir.Value)
        if found[0].bias is not None:
            biases = rewriter.constant(np.concatenate([contents(p.bias) for p in found]), "projection_biases")
            total = rewriter.op("Add", made, biases)
            assert isinstance(total, onnx_ir.Value)
            made = total
        sizes = [int(facts.shape(p.weight)[1]) for p in found]  # type: ignore[index, arg-type]
        parts = ops.split(rewriter, made, sizes, -1)
        for projection, part in zip(found, parts, strict=True):
            rewriter.replace(projection.result, part)
            for node in reversed(projection.nodes):
                rewriter.erase(node)
