"""The best approximations of a weight by those of lower rank, as its inputs see them.

For inputs of Gram matrix G = X^T X / n, the rank-r matrix nearest to W in the layer's output, ``|X W^T - X W'^T|``, is
W' = U U^T W, where U holds the r leading eigenvectors of W G W^T: the projection of the output onto its principal
components. That is the whitened SVD of Wang et al., "SVD-LLM" (2024), and reduced-rank regression (Izenman, 1975), in a
form that needs neither a root of G nor its inverse, so that a singular G does no harm. The squared error is the sum of
the other eigenvalues. Without G it is the plain SVD (Eckart and Young, 1936).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: Components that carry less than this share of the largest get no larger scale than that.
_FAINT = 1e-8
#: An error is as good as one that is larger by this share.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Spectrum:
    """The principal components of a layer's output; of each group of a convolution by itself.

    Attributes:
        basis: Orthonormal columns, the most important first, (groups, N, m).
        energy: Mean square of the output along each, (groups, m).
    """

    basis: np.ndarray
    energy: np.ndarray

    @cached_property
    def _tails(self) -> np.ndarray:
        """What lies behind the first r components of every group, for r from 0 to m."""
        tails = np.cumsum(self.energy.sum(axis=0)[::-1])[::-1]
        return np.append(tails, 0.0)

    @property
    def total(self) -> float:
        """Mean square of the whole output."""
        return float(self._tails[0])

    @property
    def full(self) -> int:
        """The largest rank."""
        return self.energy.shape[1]

    def error(self, rank: int) -> float:
        """Relative L2 error of the layer's output with ``rank`` components per group: exact where G is."""
        return float(np.sqrt(self._tails[min(rank, self.full)] / self.total)) if self.total > 0 else 0.0

    def rank(self, error: float) -> int:
        """The least rank whose error is at most this."""
        return int(np.searchsorted(-self._tails, -(error**2) * self.total * (1 + _ROUNDING)))

    def kept(self, rank: int) -> Spectrum:
        """The same without the directions behind the first ``rank``, and those in single precision: far smaller."""
        return Spectrum(self.basis[:, :, :rank].astype(np.float32), self.energy)

    def factors(self, weight: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """W' of a rank as ``up @ down``, both float32.

        The scale of a component is shared evenly between the two, so that neither is hard to quantize.

        Args:
            weight: W, (groups, N, K).
            rank: At most :attr:`full`.

        Returns:
            ``up`` (groups, N, rank) and ``down`` (groups, rank, K).
        """
        up = self.basis[:, :, :rank]
        down = np.swapaxes(up, 1, 2) @ weight.astype(np.float64)
        energy = np.maximum(self.energy[:, :rank], _FAINT * self.energy.max(initial=0.0))
        scale = np.where(energy > 0, energy, 1.0) ** 0.25
        return (up * scale[:, None, :]).astype(np.float32), (down / scale[:, :, None]).astype(np.float32)


def spectrum(weight: np.ndarray, gram: np.ndarray | None = None, damping: float = 0.0) -> Spectrum:
    """The principal components of ``X @ weight.T``.

    Args:
        weight: (groups, N, K), any real type, finite.
        gram: X^T X / n of each group's inputs, (groups, K, K), finite; None for the plain SVD.
        damping: Share of the inputs' mean energy that each input is taken to have beside what G says, when directions
            are chosen: few rows say little of directions that they hardly have. The error stays that under G, and is
            never above that of the plain SVD.
    """
    weight = weight.astype(np.float64)
    count, width = weight.shape[1:]
    frame = None
    if count > width:  # the output lies in a space of K dimensions
        frame, weight = np.linalg.qr(weight)
    if gram is None:
        seen = chosen = weight @ np.swapaxes(weight, 1, 2)
    else:
        seen = weight @ gram @ np.swapaxes(weight, 1, 2)
        chosen = seen + added_energy(gram, damping)[:, None, None] * (weight @ np.swapaxes(weight, 1, 2))
    _, vectors = np.linalg.eigh((chosen + np.swapaxes(chosen, 1, 2)) / 2)
    vectors = vectors[:, :, ::-1]
    energy = np.maximum(np.einsum("gnm,gnm->gm", vectors, seen @ vectors), 0.0)
    return Spectrum(vectors if frame is None else frame @ vectors, energy)


def added_energy(gram: np.ndarray, damping: float) -> np.ndarray:
    """What a damping adds to every input's energy, (groups,)."""
    return damping * np.trace(gram, axis1=1, axis2=2) / gram.shape[-1]


def output_error(weight: np.ndarray, other: np.ndarray, gram: np.ndarray | None = None) -> float:
    """Relative L2 error of the output with another weight; arguments as for :func:`spectrum`."""
    weight = weight.astype(np.float64)
    lost, whole = (_energy(one, gram) for one in (weight - other, weight))
    return float(np.sqrt(lost / whole)) if whole > 0 else 0.0


def _energy(weight: np.ndarray, gram: np.ndarray | None) -> float:
    seen = weight if gram is None else weight @ gram
    return max(float(np.einsum("gnk,gnk->", seen, weight)), 0.0)


def least_error(weight: np.ndarray, rank: int, rows: int, gram: np.ndarray | None = None) -> float:
    """A bound below which no approximation of this rank gets: far cheaper than the spectrum of a large weight.

    Some rows of an approximation of rank r have no higher rank, so what single blocks of rows lose adds up to no more
    than what all of them do together.

    Args:
        weight, gram: As for :func:`spectrum`, with one group.
        rank: The rank.
        rows: Rows of a block, more than the rank; more are closer and dearer.
    """
    (matrix,) = weight
    blocks = [matrix[None, start : start + rows] for start in range(0, len(matrix), rows)]
    lost = 0.0
    for block in blocks:
        if block.shape[1] > rank:
            parts = spectrum(block, gram)
            lost += parts.total * parts.error(rank) ** 2
    whole = _energy(weight.astype(np.float64), gram)
    return float(np.sqrt(lost / whole)) if whole > 0 else 0.0


def evened(weights: Sequence[np.ndarray], gram: np.ndarray | None = None) -> tuple[np.ndarray, list[float]]:
    """Weights that read one input, stacked so that the relative errors of their outputs count alike.

    Args:
        weights: (1, N_i, K) each.
        gram: (1, K, K) of their common input.

    Returns:
        The stack, (1, sum of N_i, K), and what each was divided by.
    """
    norms = [np.sqrt(_energy(one.astype(np.float64), gram)) or 1.0 for one in weights]
    return np.concatenate([one / norm for one, norm in zip(weights, norms, strict=True)], axis=1), norms
