"""Operators on single elements."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import onnx_ir
import torch
import torch.nn.functional as F
from torch import Tensor

from optc.recovery.engine.table import MS, OPERATORS, Call, operator

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": lambda x: F.softplus(x, threshold=50.0),
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Mul": torch.mul,
    "Sub": torch.sub,
}
_FOLDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}


def _of_one(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda call, x: function(x)


def _of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda call, a, b: function(a, b)


def _of_many(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda call, *parts: functools.reduce(function, parts)


OPERATORS |= {("", name): _of_one(function) for name, function in _UNARY.items()}
OPERATORS |= {("", name): _of_two(function) for name, function in _BINARY.items()}
OPERATORS |= {("", name): _of_many(function) for name, function in _FOLDED.items()}


@operator("Mean")
def mean(call: Call, *parts: Tensor) -> Tensor:
    return functools.reduce(torch.add, parts) / len(parts)


@operator("Div")
def div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Pow")
def power(call: Call, a: Tensor, b: Tensor) -> Tensor:
    # A number as exponent has an exact derivative at 0, where a tensor as exponent has the logarithm of 0 in it.
    return a.pow(b.item()) if b.numel() == 1 else a.pow(b)


@operator("Where")
def where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition.bool(), a, b)


@operator("Clip")
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    lowest = call.real("min", -math.inf) if low is None else low.item()
    highest = call.real("max", math.inf) if high is None else high.item()
    return torch.clamp(x, lowest, highest)


@operator("Cast", "CastLike")
def cast(call: Call, x: Tensor, like: Tensor | None = None) -> Tensor:
    if like is not None:
        return x.float() if like.is_floating_point() else x.detach().to(like.dtype)
    dtype = onnx_ir.DataType(call.integer("to", 1))
    if dtype in (onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE):
        return x.float()
    # Halves are rounded to, but held in single precision.
    narrow = {onnx_ir.DataType.FLOAT16: torch.float16, onnx_ir.DataType.BFLOAT16: torch.bfloat16}.get(dtype)
    if narrow is None:
        raise call.refuse(f"to {dtype.name.lower()} has no gradient")
    return x.to(narrow).float()


@operator("Dropout")
def dropout(call: Call, x: Tensor, *others: Tensor | None) -> Tensor:
    return x


@operator("PRelu")
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    return F.leaky_relu(x, call.real("alpha", 0.01))


@operator("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    return F.elu(x, call.real("alpha", 1.0))


@operator("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    alpha, gamma = call.real("alpha", 1.67326319217681884765625), call.real("gamma", 1.05070102214813232421875)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0.0)))


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.real("alpha", 0.2) * x + call.real("beta", 0.5), 0.0, 1.0)


@operator("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(call.real("alpha", 1.0) * x)


@operator("QuickGelu", domain=MS)
def quick_gelu(call: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(call.real("alpha", 1.702) * x)


@operator("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call.text("approximate", "none"))


@operator("Gelu", domain=MS)
def ms_gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x)


@operator("BiasGelu", domain=MS)
def bias_gelu(call: Call, x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


@operator("FastGelu", domain=MS)
def fast_gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def activate(call: Call, x: Tensor) -> Tensor:
    """What operators with an activation of their own (attributes ``activation`` and ``activation_params``) end with."""
    kind = call.text("activation", "")
    given = call.reals("activation_params") or []
    if kind == "LeakyRelu":
        return F.leaky_relu(x, *(given or [call.real("activation_alpha", 0.01)]))
    if kind == "Clip":
        return torch.clamp(x, *given)
    if kind == "HardSigmoid":
        alpha, beta = given or (0.2, 0.5)
        return torch.clamp(alpha * x + beta, 0.0, 1.0)
    plain = _UNARY.get(kind) if kind else _UNARY["Identity"]
    if plain is None:
        raise call.refuse(f"with the activation {kind} is not known")
    return plain(x)
