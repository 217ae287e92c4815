"""Matrix products with what stands before and behind them."""

from __future__ import annotations

from typing import Any

import onnx_ir

from optc.ir.matcher import Match
from optc.ir.ops import made_by, perm_of
from optc.ir.rewriter import Rewriter
from optc.passes.base import Numerics
from optc.passes.fusion.common import FLOATS, node_attribute
from optc.passes.fusion.conv import activation, activation_attributes
from optc.passes.rule import fusion, node_rule, rule


@rule("matmul-add", Numerics.ROUNDING)
def matmul_add(p, x, w, bias):
    """x @ W + b on matrices is one Gemm."""
    return x @ w + bias


@matmul_add.check
def _(found: Match) -> str | None:
    facts = found.facts
    if facts.rank(found.x) != 2 or facts.rank(found.w) != 2:
        return "both operands must be matrices"
    if facts.dtype(found.x) not in FLOATS:
        return "the operands must be floats"
    if not facts.is_const(found.bias):
        return "the bias must be constant"
    shape, out = facts.shape(found.bias), facts.shape(found.w)
    if shape is None or out is None or shape not in ((out[1],), (1, out[1])):
        return "the bias must be a vector with one element per column"
    return None


@matmul_add.build
def _(rw: Rewriter, found: Match) -> onnx_ir.Value:
    return rw.op("Gemm", found.x, found.w, found.bias)


@node_rule("gemm-transpose", "Gemm")
def gemm_transpose(rw: Rewriter, node: onnx_ir.Node):
    """A Gemm reads a transposed operand as it was before."""
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    inputs = list(node.inputs)
    for index, name in enumerate(("transA", "transB")):
        transpose = made_by(inputs[index], "Transpose")
        if transpose is not None and perm_of(transpose, rw.facts) == (1, 0):
            inputs[index] = transpose.inputs[0]
            attributes[name] = 1 - attributes.get(name, 0)
    return rw.op("Gemm", *inputs, **attributes) if inputs != list(node.inputs) else None


def _swaps_last_two(found: Match, name: str) -> bool:
    """Whether the operand's Transpose swaps the last two axes and no other."""
    perm = perm_of(found[name].producer(), found.facts)
    return perm is not None and perm == (*range(len(perm) - 2), len(perm) - 1, len(perm) - 2)


def _product_attributes(found: Match) -> dict[str, Any] | str:
    facts, alpha, attributes = found.facts, 1.0, {}
    if facts.dtype(found.output) not in FLOATS:
        return "the operands must be floats"
    for side in "ab":
        transposed = f"{side}_transposed" in found.bindings
        if transposed and not _swaps_last_two(found, f"{side}_transposed"):
            return f"the transpose of operand {side} must swap its last two axes and no others"
        rank = facts.rank(found[side])
        if rank is None or rank < 2:
            return f"operand {side} must be known to have at least 2 dims"
        attributes[f"trans{side.upper()}"] = int(transposed)
    for name in ("a_scale", "b_scale", "scale"):
        if name in found.bindings:
            alpha *= float(found.scalar(name))
    for name in ("a_divisor", "b_divisor", "divisor"):
        if name in found.bindings:
            alpha /= float(found.scalar(name))
    if alpha == 1.0 and not any(attributes.values()):
        return "there is nothing to fuse"
    return {"alpha": alpha, **attributes}


def _operand(p, side: str, x):
    plain = p.one_of(p.bind(f"{side}_transposed", p.Transpose(x)), x)
    scaled = _scaled(p, f"{side}_", plain)
    return p.one_of(*scaled, p.bind(f"{side}_transposed", p.Transpose(p.one_of(*_scaled(p, f"{side}_", x)))), plain)


def _scaled(p, prefix: str, x):
    return p.scalar(f"{prefix}scale") * x, p.Div(x, p.scalar(f"{prefix}divisor"))


def _product(p, a, b):
    return _operand(p, "a", a) @ _operand(p, "b", b)


@fusion("scaled-matmul", "FusedMatMul", inputs=("a", "b"), same_shape_as=None, attributes=_product_attributes)
def scaled_matmul(p, a, b):
    """A matrix product times a scalar."""
    return p.one_of(*_scaled(p, "", _product(p, a, b)))


@fusion("transposed-matmul", "FusedMatMul", inputs=("a", "b"), attributes=_product_attributes)
def transposed_matmul(p, a, b):
    """A matrix product of transposed or scaled operands."""
    return _product(p, a, b)


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
