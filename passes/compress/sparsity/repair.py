"""Least squares on the weights that are left, every row with zeros at places of its own.

Which weights are zero is given; of all weights on the other places, those whose outputs are nearest to the dense
layer's. Every row has its own normal equations, whose matrices are parts of one Gram matrix: conjugate gradients
(Hestenes and Stiefel, 1952) solve all rows at once with one product per step and form none of them.
"""

from __future__ import annotations

import numpy as np

#: Steps at most, and the residual, as a share of that at the start, at which it is enough.
_STEPS, _ENOUGH = 40, 1e-3


def repaired(weight: np.ndarray, start: np.ndarray, gram: np.ndarray, damping: float) -> np.ndarray:
    """The weights on the places where ``start`` is not zero that are best for the inputs.

    Args:
        weight: The dense weight, (N, K).
        start: The same with zeros, (N, K): where to begin. The result is not worse by the objective.
        gram: X^T X / n of the inputs, (K, K).
        damping: Share of the mean of the diagonal that is added to it: what the data do not tell stays as it was.

    Returns:
        (N, K) float32, zero wherever ``start`` is.
    """
    mean = float(np.diagonal(gram).mean())
    if not mean > 0:
        return start.astype(np.float32)
    matrix = (gram / mean).astype(np.float32)
    matrix[np.diag_indices_from(matrix)] += np.float32(damping)
    inverse = 1 / np.diagonal(matrix)  # Jacobi's preconditioner
    keep = start != 0
    found = start.astype(np.float32)
    residual = np.where(keep, (weight.astype(np.float32) - found) @ matrix, 0)
    reduced = residual * inverse
    direction = reduced.copy()
    energy = np.sum(residual * reduced, axis=1)
    first = float(energy.sum())
    for _ in range(_STEPS):
        if not energy.sum() > _ENOUGH**2 * first:
            break
        curved = np.where(keep, direction @ matrix, 0)
        step = _ratio(energy, np.sum(direction * curved, axis=1))[:, None]
        found += step * direction
        residual -= step * curved
        reduced = residual * inverse
        before, energy = energy, np.sum(residual * reduced, axis=1)
        direction = reduced + _ratio(energy, before)[:, None] * direction
    return found


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Quotients; 0 for rows that are solved."""
    return np.divide(over, under, out=np.zeros_like(over), where=under > 0)
