"""Functions of one point that Triton does not have, for hooks. All work on float32 (and float64) of any shape.

Written with what the interpreter has as well: no calls of libdevice.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def maximum(x, y):
    """The larger; NaN where one is NaN, as ONNX has it."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    """The smaller; NaN where one is NaN."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clip(x, low, high):
    """``x`` within bounds."""
    return minimum(maximum(x, low), high)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow on either side."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def tanh(x):
    """By exp(-2|x|), which cannot overflow; by its series where the difference would cancel."""
    e = tl.exp(-2.0 * tl.abs(x))
    large = tl.where(x < 0, -1.0, 1.0) * (1.0 - e) / (1.0 + e)
    square = x * x
    small = x * (1.0 - square * (0.3333333333333333 - square * (0.13333333333333333 - square * 0.05396825396825397)))
    return tl.where(square < 0.01, small, large)


@triton.jit
def sinh(x):
    """(exp(x) - exp(-x)) / 2, by its series where the difference would cancel."""
    square = x * x
    small = x * (1.0 + square * (0.16666666666666666 + square * (0.008333333333333333 + square / 5040.0)))
    return tl.where(square < 0.25, small, 0.5 * (tl.exp(x) - tl.exp(-x)))


@triton.jit
def cosh(x):
    """(exp(x) + exp(-x)) / 2."""
    return 0.5 * (tl.exp(x) + tl.exp(-x))


@triton.jit
def softplus(x):
    """log(1 + exp(x)), without overflow."""
    return tl.where(x > 0, x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def gelu(x):
    """x times the standard normal distribution's CDF (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    """Its approximation by tanh, which is x times a logistic function."""
    return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def power(x, y):
    """x to the y by exp2 and log2; negative x where y is a whole number."""
    size = tl.exp2(y * tl.log2(tl.abs(x)))
    whole = tl.floor(y) == y
    odd = (tl.floor(y * 0.5) * 2.0 != y) & whole
    signed = tl.where(x < 0, tl.where(whole, tl.where(odd, -size, size), float("nan")), size)
    return tl.where(y == 0, 1.0, signed)


@triton.jit
def round_half_even(x):
    """To the nearest whole number, halves to the even one."""
    down = tl.floor(x)
    rest = x - down
    odd = tl.floor(down * 0.5) * 2.0 != down
    return tl.where((rest > 0.5) | ((rest == 0.5) & odd), down + 1.0, down)


@triton.jit
def modulo(x, y):
    """The remainder with the sign of the divisor, as in Python."""
    rest = x % y
    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)
