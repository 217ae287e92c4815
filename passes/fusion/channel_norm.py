"""Normalizations of images and sequences of channels: over groups of channels, each channel by itself, all channels.

Channels lie on axis 1. Exporters write GroupNorm as an InstanceNormalization of the groups, or by means and variances;
the scale and the bias per channel follow as a product and a sum.
"""

from __future__ import annotations

from typing import Any

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.matcher import Match
from optc.passes.fusion.common import node_attribute, stays_float
from optc.passes.fusion.norm import standardized, statistics_axes
from optc.passes.rule import fusion

_SINGLE = "a single number is its own mean: what is left of it is rounding, which a scale would raise"


def _group_attributes(found: Match) -> dict[str, Any] | str:
    facts, shape = found.facts, found.facts.shape(found.x)
    if "native" in found.bindings:
        if facts.opset() < _PER_CHANNEL_SINCE:
            return f"before opset {_PER_CHANNEL_SINCE} the scale was per group"
        channels = shape[1] if shape is not None else None
        if not isinstance(channels, int) or any(facts.shape(v) != (channels,) for v in (found.scale, found.bias)):
            return "the number of channels must be known"
        node = found.native.producer()
        groups, epsilon = node_attribute(node, "num_groups", 0), node_attribute(node, "epsilon", 1e-5)
        return stays_float(found) or {"num_groups": groups, "epsilon": float(epsilon)}
    parts = facts.shape(found.groups)
    if shape is None or parts is None or len(shape) < 2 or len(parts) < 3:
        return "the shapes of x and of its groups must be known"
    if facts.shape(found.output) != shape or facts.shape(found.joined) != shape:
        return "the result must provably have the shape of x"
    channels, groups = shape[1], parts[1]
    if not isinstance(channels, int) or not isinstance(groups, int) or not groups or channels % groups:
        return f"the channels must be split into groups (x is {shape}, its groups {parts})"
    if all(dim == 1 for dim in parts[2:]):
        return _SINGLE
    if parts[0] != shape[0] or (len(parts) > 3 and parts[2:] != (channels // groups, *shape[2:])):
        return f"the groups must be of channels of one sample (x is {shape}, its groups {parts})"
    reason = _statistics(found, found.groups) or _per_channel(found, channels, len(shape))
    if reason is not None:
        return reason
    return stays_float(found) or {"num_groups": groups, "epsilon": _epsilon(found)}


def _instance_attributes(found: Match) -> dict[str, Any] | str:
    shape = found.facts.shape(found.x)
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        return "the number of channels must be known, and x must have axes behind them"
    if all(dim == 1 for dim in shape[2:]):
        return _SINGLE
    reason = _statistics(found, found.x) or _per_channel(found, shape[1], len(shape))
    if reason is not None:
        return reason
    return stays_float(found) or {"epsilon": _epsilon(found)}


def _axis_attributes(found: Match) -> dict[str, Any] | str:
    shape = found.facts.shape(found.x)
    if shape is None or len(shape) < 2:
        return "the rank of x must be known"
    axes = statistics_axes(found, "variance"), statistics_axes(found, "mean")
    if axes[0] != axes[1] or isinstance(axes[0], str) or len(axes[0]) != 1 or axes[0] == (len(shape) - 1,):
        return f"mean and variance must be over one axis before the last (not {axes[1]} and {axes[0]})"
    (axis,) = axes[0]
    size = shape[axis]
    if not isinstance(size, int):
        return "the size of the normalized axis must be known"
    reason = _per_channel(found, size, len(shape), axis)
    return reason or stays_float(found) or {"axis": axis, "epsilon": _epsilon(found)}


def _statistics(found: Match, x: onnx_ir.Value) -> str | None:
    """Why mean and variance are not those of all entries behind axis 1."""
    facts = found.facts
    if "instance" in found.bindings:
        same = all((facts.const(found[name]) == value).all() for name, value in (("ones", 1), ("zeros", 0)))
        return None if same else "the groups have a scale or a bias of their own"
    wanted = tuple(range(2, facts.rank(x) or 0))
    for name in ("mean", "variance"):
        axes = statistics_axes(found, name)
        if axes != wanted:
            return axes if isinstance(axes, str) else f"the {name} must be over all axes behind the second, not {axes}"
    return None


def _per_channel(found: Match, channels: int, rank: int, axis: int = 1) -> str | None:
    for name in ("scale", "bias"):
        if not _is_per_channel(found.facts, found[name], channels, rank, axis):
            return f"the {name} must be constant, one number per channel"
        if found.facts.dtype(found[name]) != found.facts.dtype(found.x):
            return f"the {name} must have the type of x"
    return None


def _is_per_channel(facts: Facts, value: onnx_ir.Value, channels: int, rank: int, axis: int) -> bool:
    shape = facts.shape(value)
    if shape is None or not facts.is_const(value) or len(shape) > rank:
        return False
    return (*[1] * (rank - len(shape)), *shape) == (*[1] * axis, channels, *[1] * (rank - axis - 1))


def _epsilon(found: Match) -> float:
    if "instance" in found.bindings:
        return float(node_attribute(found.instance.producer(), "epsilon", 1e-5))
    return float(found.scalar("epsilon"))


#: The opset from which on GroupNormalization has a scale and a bias per channel.
_PER_CHANNEL_SINCE = 21


@fusion(
    "group-norm",
    "GroupNormalization",
    inputs=("x", "scale", "bias", "grouped", "joined_shape"),
    attributes=_group_attributes,
)
def group_norm(p, x, scale, bias, grouped, joined_shape):
    """Group normalization (Wu and He, 2018)."""
    groups = p.bind("groups", p.Reshape(x, grouped))
    instance = p.bind("instance", p.InstanceNormalization(groups, p.const("ones"), p.const("zeros")))
    joined = p.bind("joined", p.Reshape(p.one_of(instance, standardized(p, groups)), joined_shape))
    native = p.bind("native", p.GroupNormalization(x, scale, bias))
    return p.one_of(joined * scale + bias, native)


@fusion("instance-norm", "InstanceNormalization", inputs=("x", "scale", "bias"), attributes=_instance_attributes)
def instance_norm(p, x, scale, bias):
    """Instance normalization (Ulyanov, Vedaldi and Lempitsky, 2016)."""
    instance = p.bind("instance", p.InstanceNormalization(x, p.const("ones"), p.const("zeros")))
    return p.one_of(instance, standardized(p, x)) * scale + bias


@fusion("axis-norm", "AxisNormalization", inputs=("x", "scale", "bias"), attributes=_axis_attributes)
def axis_norm(p, x, scale, bias):
    """Layer normalization over an axis that is not the last one: the channels of an image (ConvNeXt, SAM)."""
    return standardized(p, x) * scale + bias


RULES = (group_norm, instance_norm, axis_norm)
