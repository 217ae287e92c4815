"""A histogram of a stream of numbers whose range is not known in advance.

The range is a power of two on both sides of zero. When a value falls outside, it doubles as often as needed and
neighbouring bins are added in pairs. As widths are powers of two, the bin of a value never depends on when it came:
the counts are those of a second look at all data with the final edges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

#: Bins on each side of zero. The largest magnitude lies in the upper half, so at least half of them cover the data.
SIDE = 4096
#: Ranges below 2**_SMALLEST are not resolved further.
_SMALLEST = -100
#: Elements worked on at once: what stays in a core's cache.
BLOCK = 1 << 16


class Histogram:
    """Counts of finite values in ``2 * SIDE`` equal bins over ``[-limit, limit)``.

    Attributes:
        exponent: ``limit`` is ``2 ** exponent``; every value's magnitude is below it.
        counts: Values in each bin, (2 * SIDE,) int64. Bins are closed below and open above.
    """

    def __init__(self, exponent: int = _SMALLEST, counts: np.ndarray | None = None) -> None:
        self.exponent = exponent
        self.counts = np.zeros(2 * SIDE, np.int64) if counts is None else counts

    @property
    def limit(self) -> float:
        return math.ldexp(1.0, self.exponent)

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent) / SIDE

    @property
    def edges(self) -> np.ndarray:
        """(2 * SIDE + 1,) float64."""
        return np.arange(-SIDE, SIDE + 1) * self.width

    @property
    def centres(self) -> np.ndarray:
        """(2 * SIDE,) float64."""
        return (np.arange(-SIDE, SIDE) + 0.5) * self.width

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def magnitudes(self) -> np.ndarray:
        """Counts of absolute values in SIDE bins over ``[0, limit)``, (SIDE,) int64.

        A negative value that is an exact multiple of the width counts one bin too low; no more can be told.
        """
        return self.counts[SIDE:] + self.counts[SIDE - 1 :: -1]

    def add(self, values: np.ndarray, largest: float | None = None) -> None:
        """Count finite values.

        Args:
            values: Any shape, float.
            largest: Their largest magnitude, if it is known.
        """
        flat = values.reshape(-1)
        if not flat.size:
            return
        if largest is None:
            largest = max(-float(flat.min()), float(flat.max()))
        self.reach(largest)
        scale = math.ldexp(SIDE, -self.exponent)
        room = np.empty(min(flat.size, BLOCK), np.float64)
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK]
            bins = room[: block.size]
            # In double precision a product of a single with a power of two is exact, so floor is too.
            np.multiply(block, scale, out=bins, dtype=np.float64)
            np.floor(bins, out=bins)
            bins += SIDE
            self.counts += np.bincount(bins.astype(np.intp), minlength=2 * SIDE)

    def reach(self, largest: float) -> None:
        """Double the range until a magnitude lies inside."""
        _, exponent = math.frexp(largest)
        if exponent > self.exponent:
            self._double(exponent - self.exponent)
            self.exponent = exponent

    def _double(self, times: int) -> None:
        for _ in range(min(times, SIDE.bit_length())):
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[SIDE // 2 : SIDE + SIDE // 2] = pairs

    def merge(self, other: Histogram) -> None:
        """Add another's counts."""
        both = Histogram(other.exponent, other.counts.copy())
        exponent = max(self.exponent, both.exponent)
        for each in (self, both):
            each._double(exponent - each.exponent)
            each.exponent = exponent
        self.counts += both.counts

    def state(self) -> dict[str, np.ndarray]:
        return {"exponent": np.array(self.exponent), "counts": self.counts}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.exponent, self.counts = int(state["exponent"]), state["counts"]
