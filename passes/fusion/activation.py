"""Activations that exporters write as several nodes."""

from __future__ import annotations

import math
from typing import Any

from optc.ir.matcher import Match
from optc.passes.fusion.common import is_bias_of, stays_float
from optc.passes.rule import fusion

_SQRT_HALF = math.sqrt(0.5)
_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


@fusion("gelu", "Gelu", same_shape_as="x", check=stays_float)
def gelu(p, x):
    """x times the standard normal distribution's CDF (Hendrycks and Gimpel, 2016)."""
    x = p.through("Cast", x)
    return 0.5 * x * (1 + p.Erf(_SQRT_HALF * x))


@fusion("fast-gelu", "FastGelu", same_shape_as="x", check=stays_float)
def fast_gelu(p, x):
    """Gelu's approximation by tanh, in the forms of BERT, of GPT-2 and of Megatron."""
    x = p.through("Cast", x)

    def power(factor: float, exponent: int):
        return p.one_of(factor * p.Pow(x, float(exponent)), math.prod([x] * exponent, start=factor))

    summed = _SQRT_2_OVER_PI * (x + power(_CUBIC, 3))
    factored = _SQRT_2_OVER_PI * x * (1 + power(_CUBIC, 2))
    expanded = x * (_SQRT_2_OVER_PI + power(_SQRT_2_OVER_PI * _CUBIC, 2))
    return 0.5 * x * (1 + p.Tanh(p.one_of(summed, factored, expanded)))


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


def _sigmoid_slope(found: Match) -> dict[str, Any] | str:
    alpha = found.scalar("alpha") if "alpha" in found.bindings else 1.0
    return stays_float(found) or {"alpha": float(alpha)}


@fusion("quick-gelu", "QuickGelu", inputs=("x",), same_shape_as="x", attributes=_sigmoid_slope)
def quick_gelu(p, x):
    """x * sigmoid(alpha * x): CLIP's gelu with alpha 1.702, SiLU (Swish) with alpha 1."""
    return x * p.Sigmoid(p.one_of(p.scalar("alpha") * x, x))


@fusion("hard-sigmoid", "HardSigmoid", same_shape_as="x", check=stays_float, attributes=lambda found: _HARD_SIGMOID)
def hard_sigmoid(p, x):
    """max(0, min(1, x / 6 + 1 / 2)), as MobileNet's clipped x + 3."""
    shifted = x + 3.0
    clipped = p.one_of(p.Clip(shifted, 0.0, 6.0), p.Clip(shifted, min=0.0, max=6.0), p.Min(p.Relu(shifted), 6.0))
    return clipped * (1 / 6)


_HARD_SIGMOID: dict[str, Any] = {"alpha": 1 / 6, "beta": 0.5}


@fusion("hard-swish", "HardSwish", same_shape_as="x", check=stays_float)
def hard_swish(p, x):
    """x times its hard sigmoid (Howard et al., 2019)."""
    native = p.HardSigmoid(x, alpha=1 / 6, beta=0.5)
    shifted = x + 3.0
    clipped = p.one_of(p.Clip(shifted, 0.0, 6.0), p.Clip(shifted, min=0.0, max=6.0))
    return p.one_of(x * p.one_of(p.op("optc::HardSigmoid", x), native), x * clipped * (1 / 6))


RULES = (gelu, fast_gelu, bias_gelu, bias_fast_gelu, quick_gelu, hard_sigmoid, hard_swish)
