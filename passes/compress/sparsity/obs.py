"""SparseGPT: what is lost with every weight that goes is made good, as inputs are correlated, by those still to come.

Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (2023): the columns of
the weight are passed once, as in GPTQ (:mod:`optc.passes.compress.weights.gptq`, whose factor of the inverse Gram
matrix this is). When a group is reached, of every row the weights go whose removal costs least by the optimal brain
surgeon, w^2 / U_jj^2; the others take over what they can.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optc.ir.sparsity import Pattern
from optc.passes.compress.weights.gptq import Correlation

#: Columns after which what was lost is spread over all that follow; within, over these columns only.
_LAZY = 128


def sparsegpt(weight: np.ndarray, correlation: Correlation, groups: Sequence[slice], pattern: Pattern) -> np.ndarray:
    """``weight`` with a pattern of zeros, the rest of it moved to make good for them.

    Args:
        weight: (N, K), finite.
        correlation: Of the inputs, in the order of the columns.
        groups: Ranges of columns that cover all of them in order.
        pattern: How many of each group are left.

    Returns:
        (N, K) float32.
    """
    factor = correlation.factor
    work = np.ascontiguousarray(weight.T, np.float32)  # (K, N): a column of the weight is a contiguous row
    for block in _blocks(groups):
        start, end = block[0].start, block[-1].stop
        errors = np.empty((end - start, work.shape[1]), np.float32)
        for group in block:
            strength = np.diagonal(factor)[group]
            keep = pattern.largest(np.square(work[group] / strength[:, None]).T).T
            for index in range(group.start, group.stop):
                left = keep[index - group.start]
                error = np.where(left, np.float32(0), work[index]) / factor[index, index]
                work[index] *= left
                work[index + 1 : end] -= factor[index, index + 1 : end, None] * error
                errors[index - start] = error
        if end < len(work):
            work[end:] -= factor[start:end, end:].T @ errors
    return np.ascontiguousarray(work.T)


def _blocks(groups: Sequence[slice]) -> list[list[slice]]:
    """Runs of groups of about :data:`_LAZY` columns each."""
    blocks: list[list[slice]] = []
    for group in groups:
        if not blocks or group.stop - blocks[-1][0].start > _LAZY:
            blocks.append([])
        blocks[-1].append(group)
    return blocks
