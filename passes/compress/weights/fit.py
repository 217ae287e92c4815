"""Scales and zero points of blocks: by their extremes, or by a search for the least squared error.

Clipping a block's range below its extremes makes its steps finer; how far is best is found by trying (the MSE
calibration of Choukroun et al., "Low-bit Quantization of Neural Networks for Efficient Inference", 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optc.passes.compress.weights.codes import Grid

#: The whole range, and nothing else.
EXTREMES = (1.0,)
#: Shares of the range that a search tries. More than all of it: a grid that does not end at an extreme can fit better.
SEARCHED = tuple(float(share) for share in np.linspace(1.1, 0.5, 25))


def fit(
    blocks: np.ndarray, grid: Grid, importance: np.ndarray | None = None, shares: Sequence[float] = EXTREMES
) -> tuple[np.ndarray, np.ndarray | None]:
    """The scale and zero point of every block.

    Args:
        blocks: (..., width) float32.
        grid: What is wanted.
        importance: Weights of the squared errors, broadcast against ``blocks``; None for equal ones.
        shares: Shares of the range to try.

    Returns:
        Scales (...) float32, 0 for a block of zeros, and zero points (...) float32 or None.
    """
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    scale, zero = _spanning(low, high, grid)
    if tuple(shares) == EXTREMES:
        return scale, zero
    best = np.full(scale.shape, np.inf, np.float32)
    for share in shares:
        tried, start = _spanning(low * np.float32(share), high * np.float32(share), grid)
        error = _squared_error(blocks, tried, start, grid, importance)
        better = error < best
        best = np.where(better, error, best)
        scale = np.where(better, tried, scale)
        zero = None if zero is None or start is None else np.where(better, start, zero)
    return scale, zero


def encode(blocks: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, grid: Grid) -> np.ndarray:
    """The nearest codes of blocks (..., width), as float32; a block with scale 0 gets its zero point."""
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    codes = blocks * inverse[..., None]
    codes += np.float32(grid.middle) if zero is None else zero[..., None]
    np.rint(codes, out=codes)
    return np.clip(codes, 0, grid.top, out=codes)


def decode(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, grid: Grid) -> np.ndarray:
    """The numbers that codes (..., width) stand for, float32."""
    shifted = codes - (np.float32(grid.middle) if zero is None else zero[..., None])
    shifted *= scale[..., None]
    return shifted


def _spanning(low: np.ndarray, high: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray | None]:
    """Scale and zero point of a grid from ``low`` <= 0 to ``high`` >= 0."""
    if grid.zeros == "none":
        if grid.positive:
            # One code more lies below zero than above.
            return np.maximum(-low / grid.middle, high / (grid.middle - 1)).astype(np.float32), None
        return np.where(high > -low, high, low).astype(np.float32) / np.float32(-grid.middle), None
    scale = ((high - low) / np.float32(grid.top)).astype(np.float32)
    zero = np.divide(-low, scale, out=np.zeros_like(scale), where=scale > 0)
    return scale, np.rint(zero) if grid.zeros == "integer" else zero


def _squared_error(
    blocks: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, grid: Grid, importance: np.ndarray | None
) -> np.ndarray:
    error = decode(encode(blocks, scale, zero, grid), scale, zero, grid)
    error -= blocks
    if importance is None:
        return np.einsum("...i,...i->...", error, error)
    return np.einsum("...i,...i,...i->...", error, error, np.broadcast_to(importance, error.shape))
