"""Half-quadratic quantization: zero points that leave the large errors to the few weights that are outliers.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (Mobius Labs, 2023): minimizes an l_p
norm (p < 1) of the error by turns over a sparse part of it, by generalized soft thresholding, and over the zero points,
in closed form. Needs no data.
"""

from __future__ import annotations

import numpy as np

from optc.passes.compress.weights.codes import Codes, Grid, in_blocks
from optc.passes.compress.weights.fit import decode, encode, fit
from optc.passes.compress.weights.rtn import pack_up

_NORM, _BETA, _GROWTH = 0.7, 10.0, 1.01


def hqq(weight: np.ndarray, grid: Grid, rounds: int = 20) -> Codes:
    """Quantize ``weight`` (N, K) with zero points; integer ones are rounded at the end and their scales fitted again.

    Args:
        weight: (N, K), finite.
        grid: With zero points, "integer" or "float".
        rounds: At most this many; it ends where the mean error no longer falls.
    """
    if grid.zeros == "none":
        raise ValueError("HQQ moves zero points, so its grid must have them")
    blocks = in_blocks(weight, grid.block)
    scale, zero = fit(blocks, Grid(grid.bits, grid.block, "float"))
    safe = np.where(scale > 0, scale, 1)[..., None]
    start, beta, before = zero, _BETA, np.inf
    for _ in range(rounds):
        codes = encode(blocks, scale, zero, grid)
        error = blocks - decode(codes, scale, zero, grid)
        mean = float(np.abs(error).mean())
        if mean >= before:
            break
        before, start = mean, zero
        sparse = _shrink(error, beta)
        zero = (codes - (blocks - sparse) / safe).mean(-1)
        beta *= _GROWTH
    zero = start
    if grid.zeros == "integer":
        zero = np.clip(np.rint(zero), 0, grid.top)
        scale = _refit(blocks, encode(blocks, scale, zero, grid) - zero[..., None], scale)
    return pack_up(encode(blocks, scale, zero, grid), scale, zero, grid, weight.shape[1])


def _shrink(error: np.ndarray, beta: float) -> np.ndarray:
    size = np.abs(error)
    with np.errstate(divide="ignore"):
        size -= size ** (_NORM - 1) / np.float32(beta)
    return np.sign(error) * np.maximum(size, 0)


def _refit(blocks: np.ndarray, steps: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The scales that fit ``blocks`` best in the sense of least squares, given their codes less the zero points."""
    length = np.einsum("...i,...i->...", steps, steps)
    fitted = np.einsum("...i,...i->...", blocks, steps)
    return np.divide(fitted, length, out=scale.copy(), where=length > 0)
