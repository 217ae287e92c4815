"""Normalizations over the last axes, and the residual sums in front of them."""

from __future__ import annotations

from typing import Any

from optc.ir.matcher import Match
from optc.ir.ops import axes_of
from optc.passes.fusion.common import is_bias_of, node_attribute, stays_float
from optc.passes.rule import fusion

_LAYER_NORM = ("optc::LayerNormalization", "LayerNormalization")
_RMS_NORM = ("optc::SimplifiedLayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")


def _over_deviation(p, centered, variance):
    """``centered`` over the root of the variance, in the forms in which exporters write the division."""
    eased = variance + p.scalar("epsilon")
    inverse = p.one_of(p.Reciprocal(p.Sqrt(eased)), p.Pow(eased, -0.5), p.Div(1.0, p.Sqrt(eased)))
    return p.one_of(p.Div(centered, p.Sqrt(eased)), centered * inverse)


def _standardized(p, x):
    """(x - mean) / sqrt(variance + epsilon); the difference may be computed once or twice."""
    x = p.through("Cast", x)
    centered = p.through("Cast", p.Sub(x, p.bind("mean", p.ReduceMean(x, ..., keepdims=1))))
    variance = p.bind("variance", p.ReduceMean(p.square(centered), ..., keepdims=1))
    return p.through("Cast", _over_deviation(p, centered, variance))


def _scaled_to_one(p, x):
    """x / sqrt(mean square + epsilon)."""
    x = p.through("Cast", x)
    mean_square = p.bind("variance", p.ReduceMean(p.square(x), ..., keepdims=1))
    return p.through("Cast", _over_deviation(p, x, mean_square))


def _axis_and_epsilon(found: Match) -> dict[str, Any] | str:
    """The attributes of a normalization, or why the match is none."""
    facts, shape = found.facts, found.facts.shape(found.x)
    if shape is None:
        return "the rank of x must be known"
    reduced = {
        name: axes_of(found.bindings[name].producer(), facts) for name in ("mean", "variance") if name in found.bindings
    }
    axes = reduced["variance"]
    if not axes or axes != tuple(range(axes[0], len(shape))):
        return f"the axes must be constant and the last ones (the variance is taken over {axes})"
    if reduced.get("mean", axes) != axes:
        return f"mean and variance must be over the same axes (not {reduced['mean']} and {axes})"
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
    return _standardized(p, x) * scale + bias


@_norm("layer-norm-no-bias", "LayerNormalization", "x", "scale")
def layer_norm_no_bias(p, x, scale):
    """Layer normalization without a bias."""
    return _standardized(p, x) * scale


@_norm("layer-norm-plain", "LayerNormalization", "x")
def layer_norm_plain(p, x):
    """Layer normalization without learned parameters, or with some that are no vectors (adaptive norms)."""
    return _standardized(p, x)


@_norm("rms-norm", "SimplifiedLayerNormalization", "x", "scale")
def rms_norm(p, x, scale):
    """Root mean square normalization (Zhang and Sennrich, 2019)."""
    return _scaled_to_one(p, x) * scale


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
    return {"epsilon": float(node_attribute(norm, "epsilon", 1e-5))}


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
