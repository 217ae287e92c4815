"""AWQ: input channels that carry much are scaled up before rounding, and down again in what produces them.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (2023). Errors are those of
the layer's output, from the Gram matrix of its inputs, so that no model is run. Whether the inverse scale can be folded
into the producer is a question to the graph; the clipping of ranges needs no fold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optc.passes.compress.weights.codes import Codes, Grid, energy, in_blocks
from optc.passes.compress.weights.fit import decode, encode, fit
from optc.passes.compress.weights.rtn import pack_up, rtn

#: Exponents of the activations' magnitudes that are tried.
_EXPONENTS = tuple(float(a) for a in np.linspace(0, 1, 21))
#: Shares of a block's range that are tried.
_SHARES = tuple(float(c) for c in np.linspace(1, 0.5, 11))
#: Rows of each weight that take part in the search for a scale.
_ROWS = 256
_LEAST, _MOST = 1e-4, 1e4


def awq_scale(weights: Sequence[np.ndarray], gram: np.ndarray, magnitude: np.ndarray, grid: Grid) -> np.ndarray:
    """The scale (K,) float32 by which the columns of all weights that read one input are multiplied.

    Args:
        weights: The matrices, each (N, K), of all readers of the input.
        gram: X^T X of the input, (K, K).
        magnitude: The mean of |x| for each channel, (K,).
        grid: What the weights are rounded to.

    Returns:
        The best of the trials; ones if none is better than not scaling at all.
    """
    weights = [weight[:: -(-len(weight) // _ROWS)] for weight in weights]
    normal = np.mean([_share_of_block(weight, grid) for weight in weights], axis=0)
    active = (magnitude > 0) & (normal > 0)
    best, least = np.ones(len(magnitude), np.float32), np.inf
    for exponent in _EXPONENTS:
        trial = np.ones(len(magnitude))
        trial[active] = magnitude[active] ** exponent / normal[active] ** (1 - exponent) if exponent else 1.0
        trial = np.clip(trial, _LEAST, _MOST)
        trial = (trial / np.sqrt(trial.max() * trial.min())).astype(np.float32)
        error = sum(energy(weight - rtn(weight * trial, grid).dequantize() / trial, gram) for weight in weights)
        if error < least:
            best, least = trial, error
    return best


def awq_clip(weight: np.ndarray, gram: np.ndarray, grid: Grid, shares: Sequence[float] = _SHARES) -> Codes:
    """Quantize ``weight`` (N, K), the range of each block being what serves the block's part of the output best.

    Args:
        weight: (N, K), its columns scaled already where they are to be.
        gram: X^T X of the input that goes with it, (K, K): G / (s s^T) after scaling by s.
        grid: Bits, blocks and zero points.
        shares: Shares of a block's range to try.
    """
    blocks = in_blocks(weight, grid.block)
    own = _diagonal_blocks(gram, grid)
    scale, zero = fit(blocks, grid)
    best = np.full(scale.shape, np.inf, np.float32)
    for share in shares:
        tried, start = fit(blocks * np.float32(share), grid)
        error = decode(encode(blocks, tried, start, grid), tried, start, grid) - blocks
        image = np.matmul(error.transpose(1, 0, 2), own).transpose(1, 0, 2)
        loss = np.einsum("nbi,nbi->nb", image, error)
        better = loss < best
        best, scale = np.where(better, loss, best), np.where(better, tried, scale)
        zero = None if zero is None or start is None else np.where(better, start, zero)
    return pack_up(encode(blocks, scale, zero, grid), scale, zero, grid, weight.shape[1])


def _share_of_block(weight: np.ndarray, grid: Grid) -> np.ndarray:
    """The mean over rows of |w| relative to the largest weight of its block, (K,)."""
    blocks = np.abs(in_blocks(weight, grid.block))
    largest = blocks.max(-1, keepdims=True)
    share = np.divide(blocks, largest, out=np.zeros_like(blocks), where=largest > 0)
    return share.mean(0).reshape(-1)[: weight.shape[1]].astype(np.float64)


def _diagonal_blocks(gram: np.ndarray, grid: Grid) -> np.ndarray:
    """The blocks of a Gram matrix on its diagonal, (blocks, width, width) float32."""
    columns = len(gram)
    width = grid.width(columns)
    result = np.zeros((-(-columns // width), width, width), np.float32)
    for index, block in enumerate(result):
        part = gram[index * width : (index + 1) * width, index * width : (index + 1) * width]
        block[: len(part), : len(part)] = part
    return result
