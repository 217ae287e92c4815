"""Products of quantized matrices, as tools for dynamic quantization write them."""

from __future__ import annotations

import onnx_ir

from optc.ir.dims import Dim, provably_positive
from optc.ir.matcher import Match
from optc.passes.fusion.common import trailing
from optc.passes.rule import fusion

_FLOAT = int(onnx_ir.DataType.FLOAT)


def _fits(found: Match) -> str | None:
    facts = found.facts
    columns: tuple[Dim, ...] | None = trailing(facts, found.b, 1)
    if facts.rank(found.b) != 2 or columns is None:
        return "the second operand must be a matrix"
    matrix = trailing(facts, found.b, 2)
    if matrix is None or not provably_positive(matrix[0]):
        return "the matrices must have a column in common: the kernel leaves sums of nothing as they are"
    if facts.dtype(found.b_scale) != onnx_ir.DataType.FLOAT:
        return "the scales must be single precision"
    shapes = {name: facts.shape(found[name]) for name in ("a_scale", "a_zero") if name in found.bindings}
    if any(shape not in ((), (1,)) for shape in shapes.values()):
        return "the first operand must have one scale and one zero point"
    scales = facts.shape(found.b_scale)
    if scales not in ((), (1,), columns):
        return "the scales must be one, or one per column"
    zeros = facts.shape(found.b_zero) if "b_zero" in found.bindings else scales
    if zeros != scales:
        return "there must be as many zero points as scales"
    if "bias" in found.bindings and facts.shape(found.bias) != columns:
        return "the bias must be a vector with one element per column"
    return None


def _scaled(p, a, a_scale, a_zero, b, b_scale):
    """(a - a_zero) @ (b - b_zero) in integers, times both scales."""
    zero = p.one_of(p.MatMulInteger(a, b, a_zero, p.bind("b_zero", p.any())), p.MatMulInteger(a, b, a_zero))
    return p.Cast(zero, to=_FLOAT) * a_scale * b_scale


def _quantized(p, x):
    return tuple(p.op("DynamicQuantizeLinear", x, output=index) for index in range(3))


def _dynamic(name: str):
    return fusion(name, "DynamicQuantizeMatMul", inputs=("x", "b", "b_scale", "b_zero", "bias"), check=_fits)


def _integer(name: str):
    inputs = ("a", "b", "a_scale", "b_scale", "a_zero", "b_zero", "bias")
    return fusion(name, "MatMulIntegerToFloat", inputs=inputs, check=_fits)


@_dynamic("dynamic-quantize-matmul-bias")
def dynamic_matmul_bias(p, x, b, b_scale):
    """A product of floats with quantized weights and a bias: the activations are quantized when they arrive."""
    a, a_scale, a_zero = _quantized(p, x)
    return _scaled(p, a, a_scale, a_zero, b, b_scale) + p.const("bias")


@_dynamic("dynamic-quantize-matmul")
def dynamic_matmul(p, x, b, b_scale):
    """The same without a bias."""
    a, a_scale, a_zero = _quantized(p, x)
    return _scaled(p, a, a_scale, a_zero, b, b_scale)


@_integer("integer-matmul-to-float-bias")
def integer_matmul_bias(p, a, a_scale, a_zero, b, b_scale):
    """A product of integers, scaled back and biased, where others read the quantized activations too."""
    return _scaled(p, a, a_scale, a_zero, b, b_scale) + p.const("bias")


@_integer("integer-matmul-to-float")
def integer_matmul(p, a, a_scale, a_zero, b, b_scale):
    """The same without a bias."""
    return _scaled(p, a, a_scale, a_zero, b, b_scale)


#: In phases: a bias belongs to the larger match, and so do activations that nobody else reads.
PHASES = ((dynamic_matmul_bias,), (dynamic_matmul,), (integer_matmul_bias,), (integer_matmul,))
