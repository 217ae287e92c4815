"""Convolutions with the activation and the residual sum behind them."""

from __future__ import annotations

from typing import Any

import numpy as np

from optc.ir.matcher import Match
from optc.passes.fusion.common import node_attribute
from optc.passes.rule import fusion

#: Activations that fused kernels know -> their attributes with the operator's defaults.
_PARAMETERS = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": (("alpha", 0.01),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
}
#: Operators that fused kernels take in.
ACTIVATIONS = frozenset({*_PARAMETERS, "Clip"})
_LIMITS = np.finfo(np.float32)
_CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def activation(p, x):
    """A pattern: one of the activations that fused kernels know, of ``x``."""
    low, high = p.scalar("low"), p.scalar("high")
    clips = (p.Clip(x, low, high), p.Clip(x, None, high), p.Clip(x, low), p.Clip(x))
    return p.one_of(p.op(tuple(_PARAMETERS), x), *clips)


def activation_attributes(found: Match) -> dict[str, Any] | str:
    """``activation`` and ``activation_params`` of com.microsoft's fused ops."""
    node = found.root
    if node.op_type == "Clip":
        low = found.scalar("low") if "low" in found.bindings else node_attribute(node, "min", _LIMITS.min)
        high = found.scalar("high") if "high" in found.bindings else node_attribute(node, "max", _LIMITS.max)
        parameters = [float(low), float(high)]
    else:
        parameters = [float(node_attribute(node, name, default)) for name, default in _PARAMETERS[node.op_type]]
    return {"activation": node.op_type, **({"activation_params": parameters} if parameters else {})}


def _conv_attributes(found: Match) -> dict[str, Any] | str:
    own = activation_attributes(found)
    if isinstance(own, str):
        return own
    attributes = found.conv.producer().attributes
    return {**own, **{name: attributes[name].value for name in _CONV_ATTRIBUTES if name in attributes}}


def _conv(p, x, w, b):
    return p.bind("conv", p.one_of(p.Conv(x, w, b), p.Conv(x, w)))


@fusion("conv-activation", "FusedConv", inputs=("x", "w", "b"), attributes=_conv_attributes)
def conv_activation(p, x, w, b):
    """An activation behind a convolution."""
    return activation(p, _conv(p, x, w, b))


def _same_shape(found: Match) -> str | None:
    shape = found.facts.shape(found.conv)
    return None if shape is not None and shape == found.facts.shape(found.z) else "the summands' shapes must be equal"


@fusion("conv-add-activation", "FusedConv", inputs=("x", "w", "b", "z"), attributes=_conv_attributes, check=_same_shape)
def conv_add_activation(p, x, w, b, z):
    """A residual sum and an activation behind a convolution (the blocks of ResNet and RegNet)."""
    return activation(p, _conv(p, x, w, b) + z)


def _sum_attributes(found: Match) -> dict[str, Any]:
    attributes = found.conv.producer().attributes
    return {name: attributes[name].value for name in _CONV_ATTRIBUTES if name in attributes}


@fusion("conv-add", "ConvAdd", inputs=("x", "w", "b", "z"), attributes=_sum_attributes, check=_same_shape)
def conv_add(p, x, w, b, z):
    """A residual sum behind a convolution (MobileNet's inverted residual block)."""
    return _conv(p, x, w, b) + z


RULES = (conv_add_activation, conv_activation)
