"""The search of llama.cpp's "k-quants": many trial scales, each with scale and offset fitted by least squares.

ggml's make_qkx quantizers (I. Kawrakow, llama.cpp, 2023). Weights count by their size, or by the energy of the input
channel that they meet ("importance matrix").
"""

from __future__ import annotations

import numpy as np

from optc.passes.compress.weights.codes import Codes, Grid, in_blocks, vector_in_blocks
from optc.passes.compress.weights.fit import decode, encode, fit
from optc.passes.compress.weights.rtn import pack_up

#: Trial inverse scales are (levels - 1 + t) / range for t in this range.
_TRIALS = np.linspace(-1.0, 0.9, 20)


def kquant(weight: np.ndarray, grid: Grid, importance: np.ndarray | None = None) -> Codes:
    """Quantize ``weight`` (N, K) with zero points.

    Args:
        weight: (N, K), finite.
        grid: With zero points, "integer" or "float".
        importance: Mean square of each input channel, (K,); None to work without data.
    """
    if grid.zeros == "none":
        raise ValueError("k-quant fits offsets, so its grid must have zero points")
    blocks = in_blocks(weight, grid.block)
    weights = np.sqrt(np.mean(blocks**2, -1, keepdims=True)) + np.abs(blocks)
    given = vector_in_blocks(importance, grid.block)
    if given is not None:
        weights *= given + np.float32(1e-6) * (given.mean() or 1)
    low = np.minimum(blocks.min(-1), 0)
    span = np.maximum(blocks.max(-1), 0) - low
    sum_w, sum_x = weights.sum(-1), (weights * blocks).sum(-1)
    scale, zero = fit(blocks, grid)
    assert zero is not None, "the grid has zero points"
    best = _error(blocks, weights, scale, zero, grid)
    for trial in _TRIALS:
        inverse = np.divide(grid.top + np.float32(trial), span, out=np.zeros_like(span), where=span > 0)
        codes = np.clip(np.rint((blocks - low[..., None]) * inverse[..., None]), 0, grid.top)
        fitted, offset = _line(codes, blocks, weights, sum_w, sum_x)
        moved = np.divide(-offset, fitted, out=np.zeros_like(fitted), where=fitted > 0)
        if grid.zeros == "integer":
            moved = np.clip(np.rint(moved), 0, grid.top)
        error = _error(blocks, weights, fitted, moved, grid)
        better = (fitted > 0) & (error < best)
        for kept, new in ((best, error), (scale, fitted), (zero, moved)):
            np.copyto(kept, new, where=better)
    return pack_up(encode(blocks, scale, zero, grid), scale, zero, grid, weight.shape[1])


def _line(
    codes: np.ndarray, blocks: np.ndarray, weights: np.ndarray, sum_w: np.ndarray, sum_x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset with the least weighted error of ``scale * codes + offset``; a scale of 0 for none."""
    weighted = weights * codes
    sum_l, sum_ll, sum_xl = weighted.sum(-1), (weighted * codes).sum(-1), (weighted * blocks).sum(-1)
    determinant = sum_w * sum_ll - sum_l**2
    there = determinant > 0
    scale = np.divide(sum_w * sum_xl - sum_x * sum_l, determinant, out=np.zeros_like(determinant), where=there)
    offset = np.divide(sum_ll * sum_x - sum_l * sum_xl, determinant, out=np.zeros_like(determinant), where=there)
    return scale, offset


def _error(
    blocks: np.ndarray, weights: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, grid: Grid
) -> np.ndarray:
    error = decode(encode(blocks, scale, zero, grid), scale, zero, grid) - blocks
    return np.einsum("...i,...i,...i->...", error, error, weights)
