"""Integers that stand for real numbers, and the scale and zero point by which they do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class IntFormat:
    """An integer that stands for ``(q - zero_point) * scale``.

    Attributes:
        low, high: The least and the largest ``q`` in use.
        signed: Whether it is stored as int8, or as uint8.
        symmetric: Whether zero lies in the middle: the zero point is fixed, and the range as wide on both sides.
    """

    low: int
    high: int
    signed: bool
    symmetric: bool = False

    @property
    def zero(self) -> int:
        """The zero point of a symmetric range."""
        return 0 if self.signed else (self.low + self.high + 1) // 2

    @property
    def steps(self) -> int:
        """How many steps lie between the least and the largest."""
        return self.high - self.low

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.int8 if self.signed else np.uint8)


#: Formats by name: u8 and s8, symmetric ones ("-sym"), and with 7 bits, whose products cannot overflow 16 bits on
#: processors that add pairs of them with saturation (ONNX Runtime, "reduce_range").
FORMATS = {
    "u8": IntFormat(0, 255, False),
    "s8": IntFormat(-128, 127, True),
    "u8-sym": IntFormat(1, 255, False, True),
    "s8-sym": IntFormat(-127, 127, True, True),
    "u7": IntFormat(0, 127, False),
    "s7": IntFormat(-64, 63, True),
    "u7-sym": IntFormat(1, 127, False, True),
    "s7-sym": IntFormat(-63, 63, True, True),
}


@dataclass(frozen=True)
class Parameters:
    """Scale and zero point: scalars, or one per channel.

    Attributes:
        scale: float32, positive.
        zero_point: Of the format's type.
    """

    scale: np.ndarray
    zero_point: np.ndarray


def parameters(low: float | np.ndarray, high: float | np.ndarray, format: IntFormat) -> Parameters:
    """The parameters by which a format covers ``[low, high]`` and holds zero exactly.

    Args:
        low, high: Ends of the range, numbers or one per channel. The range is widened to hold zero.
        format: The integer.
    """
    low = np.minimum(np.asarray(low, np.float64), 0)
    high = np.maximum(np.asarray(high, np.float64), 0)
    scale = (2 * np.maximum(-low, high) if format.symmetric else high - low) / format.steps
    # A range of zero holds zeros only, for which any scale will do.
    scale = np.where(scale > 0, np.clip(scale, np.finfo(np.float32).tiny, np.finfo(np.float32).max), 1.0)
    if format.symmetric:
        zero = np.full(scale.shape, format.zero)
    else:
        zero = np.clip(np.rint(format.low - low / scale), format.low, format.high)
    return Parameters(scale.astype(np.float32), zero.astype(format.dtype))


def rounded(values: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, format: IntFormat) -> np.ndarray:
    """What values become when they are quantized and read back, in float64; arguments are broadcast."""
    zero = np.asarray(zero_point, np.float64)
    steps = np.clip(np.rint(values / np.asarray(scale, np.float64)), format.low - zero, format.high - zero)
    return steps * scale
