"""Matrix products that one Gemm can do with what stands around them."""

from __future__ import annotations

from typing import Any

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.matcher import Match
from optc.ir.ops import made_by, only_use, operand, perm_of
from optc.ir.rewriter import Rewriter
from optc.passes.base import Numerics
from optc.passes.fusion.common import FLOATS, node_attribute
from optc.passes.fusion.conv import activation, activation_attributes
from optc.passes.rule import fusion, node_rule, rule

#: The opset from which on a Gemm may do without its third input.
_OPTIONAL_SUMMAND_SINCE = 11


def _is_summand(facts: Facts, summand: onnx_ir.Value, product: onnx_ir.Value) -> bool:
    """Whether a value broadcasts to the shape of a product of matrices, and not the other way round."""
    shape, wanted = facts.shape(summand), facts.shape(product)
    if shape is None or wanted is None or len(wanted) != 2 or len(shape) > 2:
        return False
    return all(dim in (1, size) for dim, size in zip(shape, wanted[2 - len(shape) :], strict=True))


@rule("matmul-add", Numerics.ROUNDING)
def matmul_add(p, x, w, bias):
    """x @ W + b on matrices is one Gemm."""
    return p.bind("product", x @ w) + bias


@matmul_add.check
def _(found: Match) -> str | None:
    facts = found.facts
    if facts.rank(found.x) != 2 or facts.rank(found.w) != 2:
        return "both operands must be matrices"
    if facts.dtype(found.x) not in FLOATS:
        return "the operands must be floats"
    if not _is_summand(facts, found.bias, found["product"]):
        return "the bias must provably broadcast to the shape of the product"
    return None


@matmul_add.build
def _(rw: Rewriter, found: Match) -> onnx_ir.Value:
    return rw.op("Gemm", found.x, found.w, found.bias)


@node_rule("gemm-sum", "Add", "Sum", numerics=Numerics.ROUNDING)
def gemm_sum(rw: Rewriter, node: onnx_ir.Node):
    """A Gemm that adds nothing yet adds what is added to it."""
    reason = None
    if len(node.inputs) != 2:
        return None
    for product, summand in (node.inputs, node.inputs[::-1]):
        gemm = made_by(product, "Gemm")
        if gemm is None or gemm.graph is not node.graph or product is summand:
            continue
        if operand(gemm, 2) is not None:
            reason = "the Gemm has a summand already"
        elif not only_use(product):
            reason = "the Gemm's result is also used elsewhere"
        elif not _is_summand(rw.facts, summand, product):
            reason = "the summand must provably broadcast to the shape of the product"
        else:
            attributes = {name: attr for name, attr in gemm.attributes.items() if name != "beta"}
            with rw.at(node, "gemm-sum", [gemm]):
                return rw.op("Gemm", *gemm.inputs[:2], summand, **attributes)
    return reason


@node_rule("gemm-transpose", "Gemm")
def gemm_transpose(rw: Rewriter, node: onnx_ir.Node):
    """A Gemm reads a transposed operand as it was before."""
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    inputs = list(node.inputs)
    for index, name in enumerate(("transA", "transB")):
        transpose = made_by(inputs[index], "Transpose")
        if transpose is not None and perm_of(transpose, rw.facts) == (1, 0):
            inputs[index] = transpose.inputs[0]
            attributes[name] = int(not attributes.get(name, 0))
    return rw.op("Gemm", *inputs, **attributes) if inputs != list(node.inputs) else None


@node_rule("transposed-gemm", "Transpose", numerics=Numerics.ROUNDING)
def transposed_gemm(rw: Rewriter, node: onnx_ir.Node):
    """(A @ B)' is B' @ A', which a Gemm computes without a transpose."""
    product = made_by(node.inputs[0], "Gemm", "MatMul")
    if product is None or product.graph is not node.graph or perm_of(node, rw.facts) != (1, 0):
        return None
    if not only_use(node.inputs[0]):
        return "the product is also used elsewhere"
    a, b = product.inputs[:2]
    attributes = {name: attr.value for name, attr in product.attributes.items() if name != "beta"}
    if operand(product, 2) is not None:
        return "the Gemm's summand would have to be transposed too"
    if product.op_type == "MatMul":
        if rw.facts.rank(a) != 2 or rw.facts.rank(b) != 2 or rw.facts.dtype(a) not in FLOATS:
            return "both operands must be matrices of floats"
        if rw.facts.is_const(b):
            return "the weights of a MatMul are packed once, those of its transpose in every run"
        if rw.opset() < _OPTIONAL_SUMMAND_SINCE:
            return f"below opset {_OPTIONAL_SUMMAND_SINCE} a Gemm must have a summand"
    flags = {"transA": int(not attributes.get("transB", 0)), "transB": int(not attributes.get("transA", 0))}
    with rw.at(node, "transposed-gemm", [product]):
        return rw.op("Gemm", b, a, **{**attributes, **flags})


def _gemm_attributes(found: Match) -> dict[str, Any] | str:
    own = activation_attributes(found)
    if isinstance(own, str):
        return own
    gemm = found.product.producer()
    values = {name: node_attribute(gemm, name, 1.0) for name in ("alpha", "beta")}
    return {**own, **values, **{name: node_attribute(gemm, name, 0) for name in ("transA", "transB")}}


@fusion("gemm-activation", "FusedGemm", inputs=("a", "b", "c"), attributes=_gemm_attributes)
def gemm_activation(p, a, b, c):
    """An activation behind a Gemm."""
    return activation(p, p.bind("product", p.one_of(p.Gemm(a, b, c), p.Gemm(a, b))))


#: What makes one Gemm of several nodes; an activation comes last.
RULES = (matmul_add, gemm_sum, gemm_transpose, transposed_gemm)
