"""Constants of integer sums and products brought together: exact, as integers wrap around the same way in any order.

Floats are left alone, since every operation on them rounds.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.rewriter import Rewriter
from optc.passes.clean.common import INTEGERS, MAX_SCANNED, inner
from optc.passes.rule import node_rule


def _sum_with_constant(facts: Facts, node: onnx_ir.Node) -> tuple[onnx_ir.Value, np.ndarray] | None:
    """The (x, c) of which a node is ``x + c`` or ``x - c`` (then with ``-c``)."""
    a, b = node.inputs
    constant = _small(facts, b)
    if constant is not None and a is not None:
        return a, -constant if node.op_type == "Sub" else constant
    constant = _small(facts, a)
    return (b, constant) if constant is not None and b is not None and node.op_type == "Add" else None


def _product_with_constant(facts: Facts, node: onnx_ir.Node) -> tuple[onnx_ir.Value, np.ndarray] | None:
    a, b = node.inputs
    for x, other in ((a, b), (b, a)):
        constant = _small(facts, other)
        if constant is not None and x is not None:
            return x, constant
    return None


def _small(facts: Facts, value: onnx_ir.Value | None) -> np.ndarray | None:
    size = facts.const_size(value)
    return facts.const(value) if size is not None and size <= MAX_SCANNED else None


@node_rule("integer-sums", "Add", "Sub")
def integer_sums(rw: Rewriter, node: onnx_ir.Node):
    """(x + a) + b is x + (a + b) for integers."""
    return _merged(rw, node, ("Add", "Sub"), _sum_with_constant, np.add, "Add")


@node_rule("integer-products", "Mul")
def integer_products(rw: Rewriter, node: onnx_ir.Node):
    """(x * a) * b is x * (a * b) for integers."""
    return _merged(rw, node, ("Mul",), _product_with_constant, np.multiply, "Mul")


def _merged(rw: Rewriter, node: onnx_ir.Node, ops, split, combine, op: str):
    if rw.facts.dtype(node.outputs[0]) not in INTEGERS:
        return None
    outer = split(rw.facts, node)
    before = None if outer is None else inner(outer[0], *ops)
    first = None if before is None else split(rw.facts, before)
    if outer is None or first is None:
        return None
    (_, b), (x, a) = outer, first
    with np.errstate(over="ignore"):
        constant = np.asarray(combine(a, b))
    if constant.size > max(a.size, b.size):
        return None
    return rw.op(op, x, rw.constant(constant.astype(b.dtype), "constant"))


RULES = (integer_sums, integer_products)
