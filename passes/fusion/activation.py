"""Activations that exporters write as several nodes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir

from optc.ir.matcher import Match
from optc.ir.pattern import Var
from optc.ir.rewriter import Rewriter
from optc.passes.base import Numerics
from optc.passes.fusion.common import is_bias_of, stays_float
from optc.passes.rule import fusion, rule

_SQRT_HALF = math.sqrt(0.5)
_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def _half_and(p, x, odd):
    """x * (1 + odd) / 2, multiplied out or not."""
    half = 0.5 * x
    return p.one_of(0.5 * x * (1 + odd), x * (0.5 + 0.5 * odd), half + half * odd, half + 0.5 * x * odd)


@fusion("gelu", "Gelu", same_shape_as="x", check=stays_float)
def gelu(p, x):
    """x times the standard normal distribution's CDF (Hendrycks and Gimpel, 2016)."""
    x = p.through("Cast", x)
    return _half_and(p, x, p.Erf(_SQRT_HALF * x))


def _tanh_argument(p, x, factor: float):
    """factor * sqrt(2 / pi) * (x + 0.044715 x^3), factored or not."""

    def power(scale: float, exponent: int):
        written = [scale * p.Pow(x, float(exponent)), math.prod([x] * exponent, start=scale)]
        return p.one_of(*written, *([scale * x * p.square(x)] if exponent == 3 else []))

    root = factor * _SQRT_2_OVER_PI
    summed = root * (x + power(_CUBIC, 3))
    factored = root * x * (1 + power(_CUBIC, 2))
    expanded = x * (root + power(root * _CUBIC, 2))
    return p.one_of(summed, factored, expanded)


@fusion("fast-gelu", "FastGelu", same_shape_as="x", check=stays_float)
def fast_gelu(p, x):
    """Gelu's approximation by tanh, in the forms of BERT, of GPT-2 and of Megatron; (1 + tanh z) / 2 = sigmoid 2 z."""
    x = p.through("Cast", x)
    return p.one_of(_half_and(p, x, p.Tanh(_tanh_argument(p, x, 1))), x * p.Sigmoid(_tanh_argument(p, x, 2)))


def _bias_fits(found: Match) -> str | None:
    if is_bias_of(found.facts, found.bias, found.x):
        return None
    return "the bias must be a vector as long as the last axis of x"


def _gelu_of(p, x, approximate: str):
    fused = {"none": "Gelu", "tanh": "FastGelu"}[approximate]
    return p.one_of(p.op([f"optc::{fused}", f"com.microsoft::{fused}"], x), p.Gelu(x, approximate=approximate))


@fusion("bias-gelu", "BiasGelu", same_shape_as="x", check=_bias_fits)
def bias_gelu(p, x, bias):
    """Gelu of a sum with a vector."""
    return _gelu_of(p, x + bias, "none")


@fusion("bias-fast-gelu", "BiasFastGelu", same_shape_as="x", check=_bias_fits)
def bias_fast_gelu(p, x, bias):
    """FastGelu of a sum with a vector."""
    return _gelu_of(p, x + bias, "tanh")


def _slope(found: Match) -> float:
    """The number that x is multiplied by."""
    if "slope" in found.bindings:
        return float(found.scalar("slope"))
    return 1 / float(found.scalar("divisor")) if "divisor" in found.bindings else 1.0


def _scaled(p, x):
    return p.one_of(p.scalar("slope") * x, p.Div(x, p.scalar("divisor")), x)


def _quick_gelu_attributes(found: Match) -> dict[str, Any] | str:
    alpha = found.alpha if "alpha" in found.bindings else _slope(found)
    return stays_float(found) or {"alpha": float(alpha)}


@fusion("quick-gelu", "QuickGelu", inputs=("x",), same_shape_as="x", attributes=_quick_gelu_attributes)
def quick_gelu(p, x):
    """x * sigmoid(alpha * x): CLIP's gelu with alpha 1.702, SiLU (Swish) with alpha 1."""
    return p.one_of(x * p.Sigmoid(_scaled(p, x)), p.Swish(x, alpha=Var("alpha")))


def _hard_sigmoid_attributes(found: Match) -> dict[str, Any] | str:
    if "offset" not in found.bindings:
        return stays_float(found) or {"alpha": 1 / 6, "beta": 0.5}
    return stays_float(found) or {"alpha": _slope(found), "beta": float(found.scalar("offset"))}


def _clipped(p, x, high: float):
    """x, but at least 0 and at most ``high``."""
    relu = p.one_of(p.Relu(x), p.Max(x, 0.0))
    return p.one_of(p.Clip(x, 0.0, high), p.Clip(x, min=0.0, max=high), p.Min(relu, high), p.Max(p.Min(x, high), 0.0))


@fusion("hard-sigmoid", "HardSigmoid", inputs=("x",), same_shape_as="x", attributes=_hard_sigmoid_attributes)
def hard_sigmoid(p, x):
    """max(0, min(1, alpha * x + beta)), also as MobileNet's clipped (x + 3) / 6."""
    return p.one_of(_clipped(p, x + 3.0, 6.0) * (1 / 6), _clipped(p, _scaled(p, x) + p.scalar("offset"), 1.0))


@fusion("hard-swish", "HardSwish", same_shape_as="x", check=stays_float)
def hard_swish(p, x):
    """x times its hard sigmoid (Howard et al., 2019)."""
    native = p.op(["optc::HardSigmoid", "HardSigmoid"], x, alpha=1 / 6, beta=0.5)
    return p.one_of(x * native, x * _clipped(p, x + 3.0, 6.0) * (1 / 6))


@fusion("mish", "Mish", same_shape_as="x", check=stays_float)
def mish(p, x):
    """x tanh(softplus(x)) (Misra, 2019)."""
    return p.one_of(x * p.Tanh(p.Softplus(x)), p.Mish(x))


RULES = (gelu, fast_gelu, bias_gelu, bias_fast_gelu, quick_gelu, hard_sigmoid, hard_swish, mish)


def _like_x(found: Match) -> str | None:
    facts = found.facts
    if facts.rank(found.x) is None or facts.rank(found.x) != facts.rank(found.output):
        return "the result must provably have the rank of x"
    return stays_float(found)


@rule("sigmoid", numerics=Numerics.ROUNDING)
def sigmoid(p, x):
    """1 / (1 + exp(-x))."""
    eased = 1 + p.Exp(p.one_of(p.Neg(x), -1.0 * x))
    return p.one_of(p.Reciprocal(eased), p.Div(1.0, eased))


@sigmoid.build
def _(rw: Rewriter, found: Match):
    return rw.op("Sigmoid", found.x)


sigmoid.check(_like_x)


@rule("silu", numerics=Numerics.ROUNDING)
def silu(p, x):
    """x / (1 + exp(-x))."""
    return p.Div(x, 1 + p.Exp(p.one_of(p.Neg(x), -1.0 * x)))


@silu.build
def _(rw: Rewriter, found: Match):
    return rw.op("Mul", found.x, rw.op("Sigmoid", found.x))


silu.check(_like_x)


def _leak(found: Match) -> float:
    return float(found.scalar("slope" if "slope" in found.bindings else "leak"))


def _leaks(found: Match) -> str | None:
    if "slope" in found.bindings and not 0 <= found.scalar("slope") <= 1:
        return f"a slope of {found.scalar('slope'):g} makes the other operand the larger one"
    if found.facts.dtype(found.x) == onnx_ir.DataType.DOUBLE and float(np.float32(_leak(found))) != _leak(found):
        return "the slope is an attribute in single precision"
    return _like_x(found)


@rule("leaky-relu")
def leaky_relu(p, x):
    """The larger one of x and a part of it, or the choice by the sign."""
    positive = p.one_of(p.Greater(x, 0.0), p.GreaterOrEqual(x, 0.0))
    return p.one_of(p.Max(x, p.scalar("slope") * x), p.Where(positive, x, p.scalar("leak") * x))


@leaky_relu.build
def _(rw: Rewriter, found: Match):
    return rw.op("LeakyRelu", found.x, alpha=_leak(found))


leaky_relu.check(_leaks)

#: Standard operators written with others; they come first, as other rules look for the operators.
SPELLINGS = (sigmoid, silu, leaky_relu)
