"""N:M sparsity of weights: of every group of M numbers along an axis at most N differ from zero.

Sparse tensor cores multiply such weights at up to twice the rate (2:4; Mishra et al., "Accelerating Sparse Deep Neural
Networks", 2021). Groups begin at the start of the axis; what is left at its end is a shorter group, which a kernel sees
filled up with zeros, and so may keep as many numbers as the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pattern:
    """At most ``kept`` of every ``group`` numbers.

    Attributes:
        kept: N, at least 1 and less than ``group``.
        group: M.
    """

    kept: int
    group: int

    def __post_init__(self) -> None:
        if not 0 < self.kept < self.group:
            raise ValueError(f"{self} keeps either nothing or all of it")

    @classmethod
    def of(cls, text: str) -> Pattern:
        """A pattern from text such as "2:4".

        Raises:
            ValueError: It is none; the message says why.
        """
        found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
        if found is None:
            raise ValueError(f"{text!r} is no pattern such as 2:4")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"

    @property
    def density(self) -> float:
        """The share of numbers that is left."""
        return self.kept / self.group

    def largest(self, scores: np.ndarray) -> np.ndarray:
        """Where the largest scores of every group are: exactly N of each, fewer only in a shorter group.

        Args:
            scores: (..., K), real, no NaN; groups lie along the last axis. Of equal ones the first counts.

        Returns:
            (..., K) bool.
        """
        groups = self._groups(scores, -np.inf)
        order = np.argsort(-groups, axis=-1, kind="stable")
        mask = np.zeros(groups.shape, bool)
        np.put_along_axis(mask, order[..., : self.kept], True, axis=-1)
        return mask.reshape(*scores.shape[:-1], groups.shape[-2] * self.group)[..., : scores.shape[-1]]

    def holds(self, array: np.ndarray, axis: int = -1) -> bool:
        """Whether an array is of the pattern along an axis; one without elements is."""
        present = np.moveaxis(np.asarray(array) != 0, axis, -1)
        return bool((self._groups(present, False).sum(axis=-1) <= self.kept).all())

    def _groups(self, array: np.ndarray, filling: float | bool) -> np.ndarray:
        """(..., K) as (..., groups, M), the last group filled up."""
        missing = -array.shape[-1] % self.group
        if missing:
            widths = [(0, 0)] * (array.ndim - 1) + [(0, missing)]
            array = np.pad(array, widths, constant_values=filling)
        return array.reshape(*array.shape[:-1], array.shape[-1] // self.group, self.group)
