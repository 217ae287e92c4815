"""The integers of a layer's weights: to nearest, or chosen so that errors make good for each other (GPTQ)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from optc.passes.clean.rules_quantized import Grid
from optc.passes.compress.integer import grids
from optc.passes.compress.weights.codes import Grid as Blocks
from optc.passes.compress.weights.gptq import Correlation, gptq

#: Few rows tell little of how inputs are correlated. A share of K / rows of the mean energy, added to each input's,
#: never made unseen data worse than rounding to nearest, and keeps most of the gain where inputs are correlated: tried
#: with 64 to 2048 rows of 128 and 512 columns, independent and of an eighth of the rank.
_DAMPING, _LEAST, _MOST = 0.3, 0.01, 1.0
#: GPTQ gains nothing to speak of over fewer columns (depthwise convolutions), and has to be run for each group.
_FEWEST = 16


class Codes(NamedTuple):
    """INT8 weights in the layout of the float ones, and what they mean."""

    codes: np.ndarray
    grid: Grid

    def floats(self) -> np.ndarray:
        return grids.dequantize(self.codes, self.grid)


def to_nearest(
    weight: np.ndarray, axis: int | None, limit: int, bias: np.ndarray | None = None, x_scale: float = 1.0
) -> Codes:
    """Every weight rounded by itself; arguments as for :func:`grids.weight_grid`."""
    grid = grids.weight_grid(weight, axis, limit, bias, x_scale)
    return Codes(np.clip(grids.quantize(weight, grid), -limit, limit).astype(np.int8), grid)


def by_correlation(
    weight: np.ndarray,
    axis: int,
    limit: int,
    gram: np.ndarray,
    rows: int,
    bias: np.ndarray | None = None,
    x_scale: float = 1.0,
) -> Codes | None:
    """Weights rounded so that correlated inputs cancel each other's errors.

    Args:
        weight: (N, ...) for axis 0, (K, N) for axis 1.
        axis: That of the output channels.
        limit: As for :func:`to_nearest`.
        gram: (groups, K, K) of the inputs of each group of output channels, or (K, K).
        rows: How many rows it is the mean of.
        bias, x_scale: As for :func:`to_nearest`.

    Returns:
        None where it would not pay, or a bias would not fit beside scales so fine.
    """
    matrix = weight.reshape(weight.shape[0], -1) if axis == 0 else weight.T
    grams = gram if gram.ndim == 3 else gram[None]
    if matrix.shape[1] < _FEWEST:
        return None
    bits = (limit + 1).bit_length()
    damping = min(max(_DAMPING * matrix.shape[1] / max(rows, 1), _LEAST), _MOST)
    parts = [
        gptq(np.ascontiguousarray(part, np.float32), _correlation(own, damping), Blocks(bits, 0, positive=True))
        for part, own in zip(np.split(matrix, len(grams)), grams, strict=True)
    ]
    scale = np.concatenate([part.scales[:, 0] for part in parts])
    nearest = grids.weight_grid(weight, axis, limit, bias, x_scale)
    plain = grids.weight_grid(weight, axis, limit)
    widened = np.asarray(nearest.scale) > np.asarray(plain.scale)
    if widened.any() or not (scale > 0).all():
        return None
    middle = 1 << (bits - 1)
    codes = np.concatenate([part.codes.reshape(len(part.codes), -1)[:, : matrix.shape[1]] for part in parts])
    signed = (codes.astype(np.int16) - middle).astype(np.int8)
    laid_out = signed.reshape(weight.shape) if axis == 0 else np.ascontiguousarray(signed.T)
    return Codes(laid_out, nearest._replace(scale=tuple(map(float, scale))))


def _correlation(gram: np.ndarray, damping: float) -> Correlation:
    """Of activations of any size: its inverse must not leave single precision."""
    mean = float(np.diagonal(gram).mean())
    return Correlation.of(gram / mean if mean > 0 else gram, damping)
