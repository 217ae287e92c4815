"""Grids of 8-bit integers for activations, weights and biases.

A float x is stored as the integer ``clip(round(x / scale) + zero, low, high)``. Rounding is to even, as ONNX has it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from optc.passes.clean.rules_quantized import RANGES, Grid

DType = onnx_ir.DataType
#: Scales smaller than this are not told from 0: what they would resolve is not there.
_TINY = 1e-30
#: A bias takes at most this share of the 32 bits of a sum; the products need the rest.
_BIAS_LIMIT = 1 << 29


def activation_grid(low: float, high: float, dtype: DType, symmetric: bool = False) -> Grid:
    """The grid for a tensor whose elements lie in [low, high].

    Args:
        low, high: The range; it is widened to contain 0, which integers must be able to say exactly (padding, Relu).
        dtype: INT8 or UINT8.
        symmetric: Whether the zero point must be in the middle (0, or 128 of UINT8).

    Returns:
        A grid with one scale.
    """
    least, most = RANGES[dtype]
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if symmetric:
        zero = (least + most + 1) // 2
        scale = max(-low, high) / (most - zero)
        return Grid(dtype, (_scale(scale),), (zero,), None)
    scale = _scale((high - low) / (most - least))
    zero = int(np.clip(np.rint(least - low / scale), least, most))
    return Grid(dtype, (scale,), (zero,), None)


def weight_grid(
    weight: np.ndarray, axis: int | None, limit: int = 127, bias: np.ndarray | None = None, x_scale: float = 1.0
) -> Grid:
    """The symmetric INT8 grid of a weight.

    Channels whose bias would not fit 32 bits at the scale of the products get a coarser grid: their weights are tiny
    beside the bias. A channel of zeros takes the scale at which its bias is best told.

    Args:
        weight: Any shape, float.
        axis: The axis along which every index has a scale of its own; None for one scale.
        limit: The largest integer used: 63 where sums of two products saturate 16 bits (x86 without VNNI).
        bias: What is added per index of ``axis``, if anything.
        x_scale: The scale of the activations that the weight is multiplied with.
    """
    others = tuple(one for one in range(weight.ndim) if one != axis) if axis is not None else None
    scale = np.abs(weight).max(axis=others, initial=0).reshape(-1) / limit
    if bias is not None:
        needed = np.abs(bias.astype(np.float64)).reshape(-1) / (x_scale * _BIAS_LIMIT)
        scale = np.maximum(scale, needed if axis is not None else needed.max(initial=0))
    return Grid(DType.INT8, tuple(_scale(float(one)) for one in scale), (0,) * scale.size, axis)


def quantize(array: np.ndarray, grid: Grid) -> np.ndarray:
    """The integers of an array."""
    scale, zero = _along(grid, array.ndim)
    least, most = RANGES[grid.dtype]
    return np.clip(np.rint(array / scale) + zero, least, most).astype(grid.dtype.numpy())


def dequantize(codes: np.ndarray, grid: Grid) -> np.ndarray:
    """What integers stand for, float32."""
    scale, zero = _along(grid, codes.ndim)
    return ((codes.astype(np.float32) - zero) * scale).astype(np.float32)


def rounded(array: np.ndarray, grid: Grid) -> np.ndarray:
    """An array, rounded to a grid and saturated at its ends."""
    return dequantize(quantize(array, grid), grid)


def bias_grid(x_scale: float, weight: Grid) -> Grid:
    """The grid of a bias that is added to sums of products of integers."""
    scale = np.float32(x_scale) * np.asarray(weight.scale, np.float32)
    return Grid(DType.INT32, tuple(map(float, scale)), (0,) * scale.size, 0 if scale.size > 1 else None)


def bias_codes(bias: np.ndarray, grid: Grid) -> np.ndarray:
    """The int32 of a bias on the grid of :func:`bias_grid`."""
    limits = np.iinfo(np.int32)
    codes = np.rint(bias.astype(np.float64) / np.asarray(grid.scale, np.float64))
    return np.clip(codes, limits.min, limits.max).astype(np.int32)


def _along(grid: Grid, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point in a shape that broadcasts along the grid's axis."""
    shape = [1] * rank
    if grid.axis is not None:
        shape[grid.axis] = -1
    return np.asarray(grid.scale, np.float32).reshape(shape), np.asarray(grid.zero, np.int32).reshape(shape)


def _scale(scale: float) -> float:
    """A scale in single precision; where there is nothing to resolve, any will do."""
    return float(np.float32(scale)) if scale > _TINY else 1.0
