"""GPTQ: each column's rounding error is made good, as far as inputs are correlated, by the columns not yet rounded.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022), in blocks of
columns and with the Cholesky factor of the inverse Hessian, as there. The codes that the loop chose are what is
returned: nothing is rounded a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optc.passes.compress.weights.codes import Codes, Grid
from optc.passes.compress.weights.fit import SEARCHED, decode, encode, fit
from optc.passes.compress.weights.rtn import pack_up

#: Columns after which the errors are spread over all that follow; within, over these columns only.
_LAZY = 128
#: Blocks of more columns have their scales fitted to the original weights.
_LARGEST_MOVING = 256
#: Below this order a triangular matrix is inverted in one piece.
_SMALL = 64


@dataclass(frozen=True)
class Correlation:
    """What GPTQ needs of the inputs, made once for all layers that read them.

    Attributes:
        order: (K,), the order in which columns are rounded.
        factor: U, (K, K) float32, upper triangular with (G + damping)^-1 = U^T U, in that order.
    """

    order: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, gram: np.ndarray, damp: float = 0.01, act_order: bool = False) -> Correlation:
        """Factor a Gram matrix.

        Args:
            gram: X^T X of the inputs up to a factor, (K, K). It may be singular; a channel that is always zero is
                rounded to nearest.
            damp: Share of the mean of the diagonal that is added to it. It is raised tenfold while the matrix is not
                positive definite in double precision.
            act_order: Round the channels of the largest energy first.
        """
        matrix = gram.astype(np.float64)
        diagonal = np.diagonal(matrix).copy()
        mean = float(diagonal[diagonal > 0].mean()) if (diagonal > 0).any() else 1.0
        matrix[np.diag_indices_from(matrix)] = np.where(diagonal > 0, diagonal, mean)
        order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(len(matrix))
        if act_order:
            matrix = matrix[np.ix_(order, order)]
        while True:
            try:
                return cls(order, _inverse_factor(matrix, damp * mean).astype(np.float32))
            except np.linalg.LinAlgError:
                damp = max(damp, 1e-6) * 10


def gptq(
    weight: np.ndarray, correlation: Correlation | np.ndarray, grid: Grid, shares: Sequence[float] = SEARCHED
) -> Codes:
    """Quantize ``weight`` (N, K) for inputs with that correlation.

    Scales of a block are fitted when its first column is due, by the squared errors as the loop weighs them. With
    another order than that of the columns, and for long blocks, they are fitted to the original weights before ("static
    groups"), so that blocks stay as they lie. A weight that is 0 was pruned and stays 0, as far as the grid has it (all
    grids without zero points do); what it would have taken over of others' errors goes to those behind it.

    Args:
        weight: (N, K), finite.
        correlation: Of the inputs, or their Gram matrix (K, K).
        grid: Bits, blocks and zero points.
        shares: Shares of a block's range to try.
    """
    if isinstance(correlation, np.ndarray):
        correlation = Correlation.of(correlation)
    rows, columns = weight.shape
    width = grid.width(columns)
    order, factor = correlation.order, correlation.factor
    importance = np.empty(columns, np.float32)
    importance[order] = 1 / np.diagonal(factor) ** 2
    count = -(-columns // width)
    scale = np.zeros((count, rows), np.float32)
    zero = None if grid.zeros == "none" else np.zeros((count, rows), np.float32)

    def settle(block: int, part: np.ndarray) -> None:
        first = block * width
        fitted, offset = fit(np.ascontiguousarray(part.T), grid, importance[first : first + width], shares)
        scale[block] = fitted
        if zero is not None and offset is not None:
            zero[block] = offset

    moving = width <= _LARGEST_MOVING and bool((order[1:] > order[:-1]).all())
    lazy = width * max(1, _LAZY // width) if moving else _LAZY
    if not moving:
        for block in range(count):
            settle(block, weight.T[block * width : (block + 1) * width])
    work = np.ascontiguousarray(weight.T[order], np.float32)  # (K, N): a column of the weight is a contiguous row
    pruned = work == 0
    sparse = pruned.any(axis=1)
    codes = np.zeros((count * width, rows), np.uint8)
    for start in range(0, columns, lazy):
        end = min(start + lazy, columns)
        errors = np.empty((end - start, rows), np.float32)
        for index in range(start, end):
            block = int(order[index]) // width
            if moving and index % width == 0:
                due = slice(index, index + width)
                settle(block, np.where(pruned[due], 0, work[due]) if sparse[due].any() else work[due])
            own = None if zero is None else zero[block]
            wanted = np.where(pruned[index], 0, work[index]) if sparse[index] else work[index]
            code = encode(wanted[:, None], scale[block], own, grid)
            error = (work[index] - decode(code, scale[block], own, grid)[:, 0]) / factor[index, index]
            work[index + 1 : end] -= factor[index, index + 1 : end, None] * error
            codes[order[index]], errors[index - start] = code[:, 0], error
        if end < columns:
            work[end:] -= factor[start:end, end:].T @ errors
    if count * width > columns:
        codes[columns:] = grid.middle if zero is None else np.rint(zero[-1])
    shaped = np.ascontiguousarray(codes.T).reshape(rows, count, width)
    return pack_up(shaped, scale.T, None if zero is None else zero.T, grid, columns)


def _inverse_factor(matrix: np.ndarray, damping: float) -> np.ndarray:
    """The upper triangular U with (A + damping)^-1 = U^T U.

    A = R R^T with R upper triangular (a Cholesky factor from the last row up) has U = R^-1, which spares the inverse of
    A itself.
    """
    flipped = matrix[::-1, ::-1].copy()
    flipped[np.diag_indices_from(flipped)] += damping
    lower = np.linalg.cholesky(flipped)
    return _inverted_lower(lower)[::-1, ::-1]


def _inverted_lower(lower: np.ndarray) -> np.ndarray:
    """The inverse of a lower triangular matrix, by halves."""
    size = len(lower)
    if size <= _SMALL:
        return np.linalg.inv(lower)
    half = size // 2
    result = np.zeros_like(lower)
    result[:half, :half] = first = _inverted_lower(lower[:half, :half])
    result[half:, half:] = second = _inverted_lower(lower[half:, half:])
    result[half:, :half] = -second @ (lower[half:, :half] @ first)
    return result
