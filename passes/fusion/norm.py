"""Normalizations over the last axes, and the residual sums in front of them."""

from __future__ import annotations

import math
from typing import Any

from optc.ir.matcher import Match
from optc.ir.ops import axes_of
from optc.ir.pattern import Var
from optc.passes.fusion.common import is_bias_of, node_attribute, stays_float
from optc.passes.rule import fusion

_LAYER_NORM = ("optc::LayerNormalization", "LayerNormalization")
_RMS_NORM = ("optc::SimplifiedLayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")

#: How far the number that a sum is divided by may be off, relative to the number of terms: the rounding of its inverse.
_COUNT_TOLERANCE = 1e-5


def _root(p, x):
    return p.one_of(p.Sqrt(x), p.Pow(x, 0.5))


def _inverse(p, variance):
    """1 / sqrt(variance + epsilon)."""
    eased = variance + p.scalar("epsilon")
    return p.one_of(p.Reciprocal(_root(p, eased)), p.Pow(eased, -0.5), p.Div(1.0, _root(p, eased)))


def _over_deviation(p, centered, variance):
    """``centered`` over the root of the variance, in the forms in which exporters write the division."""
    eased = variance + p.scalar("epsilon")
    return p.one_of(p.Div(centered, _root(p, eased)), centered * _inverse(p, variance))


def _mean(p, name: str, x, *sums):
    """The mean over the last axes: a ReduceMean, or a sum times one over the number of terms."""
    summed = p.bind(f"{name}_sum", p.one_of(p.ReduceSum(x, ..., keepdims=1), *sums))
    shared = p.one_of(p.scalar(f"{name}_share") * summed, p.Div(summed, p.scalar(f"{name}_count")))
    return p.one_of(p.bind(name, p.ReduceMean(x, ..., keepdims=1)), shared)


def _mean_square(p, x):
    """The mean of the squares."""
    return _mean(p, "variance", p.square(x), p.ReduceSumSquare(x, ..., keepdims=1))


def standardized(p, x):
    """(x - mean) / sqrt(variance + epsilon); the difference may be computed once or twice."""
    x = p.through("Cast", x)
    centered = p.through("Cast", p.Sub(x, _mean(p, "mean", x)))
    return p.through("Cast", _over_deviation(p, centered, _mean_square(p, centered)))


def _standardized_and_scaled(p, x, scale):
    """The same times the scale, which may be joined with the inverse first (Flax)."""
    centered = p.Sub(x, _mean(p, "mean", x))
    return p.one_of(standardized(p, x) * scale, centered * _inverse(p, _mean_square(p, centered)) * scale)


def _premultiplied(p, x, scale, bias):
    """The same with scale and bias as ``x * m + (bias - mean * m)``, where m = scale / deviation: TensorFlow's form."""
    mean = _mean(p, "mean", x)
    m = p.bind("m", _inverse(p, _mean_square(p, p.Sub(x, mean))) * scale)
    return x * m + p.Sub(bias, mean * Var("m"))


def _scaled_to_one(p, x):
    """x / sqrt(mean square + epsilon)."""
    x = p.through("Cast", x)
    return p.through("Cast", _over_deviation(p, x, _mean_square(p, x)))


def statistics_axes(found: Match, name: str) -> tuple[int, ...] | str:
    """The axes of a mean that was matched under a name; none if there was no such mean; or why it is no mean."""
    facts = found.facts
    if name in found.bindings:
        return axes_of(found[name].producer(), facts) or "the axes of the mean must be known"
    if f"{name}_sum" not in found.bindings:
        return ()
    summed = found[f"{name}_sum"].producer()
    axes, shape = axes_of(summed, facts), facts.shape(summed.inputs[0])
    if not axes or shape is None:
        return "the axes of the sum and its shape must be known"
    dims = [shape[axis] for axis in axes]
    if not all(isinstance(dim, int) for dim in dims):
        return "the number of terms of the sum must be known"
    terms = math.prod(dims)
    count = found.scalar(f"{name}_count") if f"{name}_count" in found.bindings else 1 / found.scalar(f"{name}_share")
    if not math.isclose(count, terms, rel_tol=_COUNT_TOLERANCE):
        return f"a sum must be divided by the number of its terms, {terms} (not by {count:g})"
    return axes


def _axis_and_epsilon(found: Match) -> dict[str, Any] | str:
    """The attributes of a normalization, or why the match is none."""
    facts, shape = found.facts, found.facts.shape(found.x)
    if shape is None:
        return "the rank of x must be known"
    axes = statistics_axes(found, "variance")
    if isinstance(axes, str):
        return axes
    if axes != tuple(range(axes[0], len(shape))):
        return f"the axes must be constant and the last ones (the variance is taken over {axes})"
    mean = statistics_axes(found, "mean")
    if isinstance(mean, str):
        return mean
    if mean not in ((), axes):
        return f"mean and variance must be over the same axes (not {mean} and {axes})"
    for name in ("scale", "bias"):
        value = found.get(name)
        if value is not None and facts.shape(value) != shape[axes[0] :]:
            return f"the {name} must have the shape of the normalized axes"
        if value is not None and facts.dtype(value) != facts.dtype(found.x):
            return f"the {name} must have the type of x"
    return stays_float(found) or {"axis": axes[0] - len(shape), "epsilon": float(found.scalar("epsilon"))}


def _norm(name: str, op: str, *inputs: str):
    return fusion(name, op, inputs=inputs, attributes=_axis_and_epsilon)


@_norm("layer-norm", "LayerNormalization", "x", "scale", "bias")
def layer_norm(p, x, scale, bias):
    """Layer normalization (Ba, Kiros and Hinton, 2016)."""
    return p.one_of(_standardized_and_scaled(p, x, scale) + bias, _premultiplied(p, x, scale, bias))


@_norm("layer-norm-no-bias", "LayerNormalization", "x", "scale")
def layer_norm_no_bias(p, x, scale):
    """Layer normalization without a bias."""
    return _standardized_and_scaled(p, x, scale)


@_norm("layer-norm-plain", "LayerNormalization", "x")
def layer_norm_plain(p, x):
    """Layer normalization without learned parameters, or with some that are no vectors (adaptive norms)."""
    return standardized(p, x)


@_norm("rms-norm", "SimplifiedLayerNormalization", "x", "scale")
def rms_norm(p, x, scale):
    """Root mean square normalization (Zhang and Sennrich, 2019)."""
    return p.one_of(_scaled_to_one(p, x) * scale, x * _inverse(p, _mean_square(p, x)) * scale)


@_norm("rms-norm-plain", "SimplifiedLayerNormalization", "x")
def rms_norm_plain(p, x):
    """Root mean square normalization without a scale."""
    return _scaled_to_one(p, x)


def _skip_attributes(found: Match) -> dict[str, Any] | str:
    facts, norm = found.facts, found.root
    shape = facts.shape(found.x)
    if shape is None or shape != facts.shape(found.skip):
        return "x and skip must provably have the same shape"
    if len(shape) not in (2, 3):
        return f"x must have 2 or 3 dims, not {len(shape)}"
    if node_attribute(norm, "axis", -1) not in (-1, len(shape) - 1):
        return "the normalization must be over the last axis"
    for name in ("gamma", "beta", "bias"):
        value = found.get(name)
        if value is None:
            continue
        if not facts.is_const(value) or not is_bias_of(facts, value, found.x):
            return f"{name} must be a constant vector as long as the last axis"
    types = {facts.dtype(found[name]) for name in ("x", "skip", "gamma", "beta", "bias") if name in found.bindings}
    if len(types) != 1 or types != {facts.dtype(found.output)}:
        return "all inputs and the result must have one type"
    epsilon = float(node_attribute(norm, "epsilon", 1e-5))
    return {"epsilon": epsilon} if epsilon >= 0 else "the fused kernel takes no negative epsilon"


def _skip(name: str, op: str, *inputs: str):
    return fusion(name, op, inputs=inputs, exports=("sum",), attributes=_skip_attributes)


def _residual(p, x, skip):
    """The sum in front of a normalization, which the next block reads as well."""
    return p.export("sum", p.one_of(x + skip + p.const("bias"), x + skip))


@_skip("skip-layer-norm", "SkipLayerNormalization", "x", "skip", "gamma", "beta", "bias")
def skip_layer_norm(p, x, skip, gamma, beta):
    """Layer normalization of a residual sum."""
    total = _residual(p, x, skip)
    norms = ((total, gamma, beta), (total, gamma), (total,))
    return p.one_of(*(p.op(_LAYER_NORM, *inputs) for inputs in norms))


@_skip("skip-rms-norm", "SkipSimplifiedLayerNormalization", "x", "skip", "gamma", "bias")
def skip_rms_norm(p, x, skip, gamma):
    """RMS normalization of a residual sum."""
    total = _residual(p, x, skip)
    return p.one_of(p.op(_RMS_NORM, total, gamma), p.op(_RMS_NORM, total))
