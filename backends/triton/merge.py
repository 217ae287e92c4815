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
    """A product with a constant matrix, and the constant vector that is added to it, if one is."""

    node: onnx_ir.Node
    weight: onnx_ir.Value
    bias: onnx_ir.Value | None
    result: onnx_ir.Value


def merge_projections(rewriter: Rewriter) -> None:
    """Merge the products of each tensor that attention reads."""
    sources = {node.inputs[0]: None for node in rewriter.model.graph if ops.is_op(node, "MatMul")}
    for source in sources:
        if source is not None:
            found = [p for node in users(source) if (p := _projection(rewriter, node, source)) is not None]
            if len(found) > 1 and len({(p.bias is None, rewriter.facts.dtype(p.weight)) for p in found}) == 1:
                _merge(rewriter, source, found)


def _projection(rewriter: Rewriter, node: onnx_ir.Node, source: onnx_ir.Value) -> _Projection | None:
    facts = rewriter.facts
    if not ops.is_op(node, "MatMul") or node.inputs[0] is not source:
        return None
    weight, result, bias = node.inputs[1], node.outputs[0], None
    shape = facts.shape(weight)
    if (
        weight is None
        or shape is None
        or len(shape) != 2
        or not facts.is_const(weight)
        or (facts.rank(source) or 0) < 2
    ):
        return None
    if ops.only_use(result) and ops.is_op(users(result)[0], "Add"):
        add = users(result)[0]
        other = add.inputs[1] if add.inputs[0] is result else add.inputs[0]
        if other is not None and facts.is_const(other) and facts.shape(other) == (shape[1],):
            bias, result = other, add.outputs[0]
    return _Projection(node, weight, bias, result) if _feeds_attention(result) else None


def _feeds_attention(value: onnx_ir.Value) -> bool:
    """Whether all that becomes of a value, but for its shape, is an operand of attention."""
    readers = users(value)
    if value.is_graph_output() or not readers:
        return False
    for node in readers:
        if ops.is_op(node, "Reshape", "Transpose") and node.inputs[0] is value:
            if not _feeds_attention(node.outputs[0]):
                return False
        elif not (node.domain == FUSED_DOMAIN and node.op_type == "Attention" and value in node.inputs[:_OPERANDS]):
            return False
    return True


def _merge(rewriter: Rewriter, source: onnx_ir.Value, found: Sequence[_Projection]) -> None:
    facts = rewriter.facts

    def joined(values: Sequence[onnx_ir.Value | None], axis: int, name: str) -> onnx_ir.Value:
        arrays = [array for value in values if (array := facts.const(value)) is not None]
        return rewriter.constant(np.concatenate(arrays, axis), name)

    with rewriter.at(found[0].node, "merge-projections", [p.node for p in found]):
        made = rewriter.op("MatMul", source, joined([p.weight for p in found], 1, "projections"))
        assert isinstance(made, onnx_ir.Value)
        if found[0].bias is not None:
            total = rewriter.op("Add", made, joined([p.bias for p in found], 0, "projection_biases"))
            assert isinstance(total, onnx_ir.Value)
            made = total
        sizes = [int(facts.shape(p.weight)[1]) for p in found]  # type: ignore[index, arg-type]
        parts = ops.split(rewriter, made, sizes, -1)
        for projection, part in zip(found, parts, strict=True):
            rewriter.replace(projection.result, part)
            for node in (projection.result.producer(), projection.node):
                if node is not None and node.graph is not None and not any(value.uses() for value in node.outputs):
                    rewriter.erase(node)
