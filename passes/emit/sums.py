"""Sums of several values by one operator."""

from __future__ import annotations

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import made_by, only_use
from optc.ir.rewriter import Rewriter
from optc.passes.rule import node_rule

_PRODUCTS = ("MatMul", "FusedMatMul")
_MOST_OPERANDS = 4


@node_rule("sum-of-sums", "Add", "Sum")
def sum_of_sums(rw: Rewriter, node: onnx_ir.Node):
    """A sum of a sum is one Sum, which adds from left to right as well.

    CPU, onnxruntime 1.31, hidden 768, 1 to 512 rows: 0.98 to 1.02 of the speed of Adds of wholes, 0.99 to 1.01 with the
    product whose bias is one of the operands; 0.88 where a vector is added to something else, which is left alone.
    """
    facts, result = rw.facts, node.outputs[0]
    if facts.dtype(result) != onnx_ir.DataType.FLOAT:
        return None
    for value in node.inputs:
        inner = made_by(value, "Add", "Sum")
        if inner is None or value is None or not only_use(value) or inner.graph is not node.graph:
            continue
        others = list(node.inputs)
        others.remove(value)
        operands = [*inner.inputs, *others]
        if len(operands) > _MOST_OPERANDS:
            continue
        if not all(_covers(facts, x, result) or _is_bias(inner, x) for x in operands):
            return "a vector is added to something else than a product, which two Adds do faster"
        with rw.at(node, "sum-of-sums", [inner]):
            return rw.op("Sum", *operands)
    return None


def _covers(facts: Facts, value: onnx_ir.Value | None, result: onnx_ir.Value) -> bool:
    """Whether an operand has the last two dims of the result, so that long runs of it are added at once."""
    shape, wanted = facts.shape(value), facts.shape(result)
    return shape is not None and wanted is not None and len(shape) >= min(2, len(wanted)) and shape[-2:] == wanted[-2:]


def _is_bias(inner: onnx_ir.Node, value: onnx_ir.Value | None) -> bool:
    """Whether a value is added to a product."""
    return any(other is not value and made_by(other, *_PRODUCTS) is not None for other in inner.inputs) and any(
        one is value for one in inner.inputs
    )
