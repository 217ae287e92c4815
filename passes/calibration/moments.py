"""Running statistics of a stream of arrays: moments, Gram matrices and a fair draw of rows.

Each part takes one array after the other in bounded memory, and can be written down (``state``) and taken up again
(``restore``) between two arrays with nothing lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from optc.passes.calibration.histogram import BLOCK

State = dict[str, np.ndarray]
#: Rows that are added up in single precision.
_SUMMED = 64
#: Rows that are multiplied at once, and columns of the triangle that are.
ROWS_AT_ONCE, _COLUMNS = 1024, 512


class Unfit(ValueError):
    """An array does not fit those before it; the text says how."""


class Moments:
    """Extremes, sums and oddities of all elements.

    Attributes:
        count: Finite elements.
        nan, infinite: Elements that are not; they count nowhere else.
        minimum, maximum: Of the finite elements; inf and -inf where there are none.
        total, squares: Sums of them and of their squares.
    """

    def __init__(self) -> None:
        self.count = self.nan = self.infinite = 0
        self.minimum, self.maximum = float("inf"), float("-inf")
        self.total = self.squares = 0.0

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def mean_square(self) -> float:
        return self.squares / self.count if self.count else 0.0

    @property
    def absmax(self) -> float:
        return max(-self.minimum, self.maximum) if self.count else 0.0

    def add(self, flat: np.ndarray) -> np.ndarray:
        """Add the elements of a 1-D float array, and return those that are finite."""
        if not flat.size:
            return flat
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            finite = np.isfinite(flat)
            nan = int(np.isnan(flat).sum())
            self.nan += nan
            self.infinite += int(flat.size - finite.sum()) - nan
            return self.add(flat[finite])
        self.count += flat.size
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK].astype(np.float64)
            self.total += float(block.sum())
            block *= block
            self.squares += float(block.sum())
        return flat

    def state(self) -> State:
        numbers = (self.count, self.nan, self.infinite, self.minimum, self.maximum, self.total, self.squares)
        return {"moments": np.array(numbers, np.float64)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        count, nan, infinite, self.minimum, self.maximum, self.total, self.squares = map(float, state["moments"])
        self.count, self.nan, self.infinite = int(count), int(nan), int(infinite)


class ChannelMoments:
    """Extremes and means along one axis; what is not finite is left out.

    Attributes:
        axis: The axis.
        count: Finite elements per channel, (C,) int64; None before the first array, as are the others.
        minimum, maximum: (C,) float32.
        total: Sums, (C,) float64.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.count: np.ndarray | None = None
        self.minimum = self.maximum = np.zeros(0, np.float32)
        self.total = np.zeros(0)

    @property
    def mean(self) -> np.ndarray:
        """(C,) float64."""
        return self.total / np.maximum(0 if self.count is None else self.count, 1)

    @property
    def absmax(self) -> np.ndarray:
        """(C,) float32; 0 for channels without elements."""
        largest = np.maximum(-self.minimum, self.maximum)
        return np.where(np.isfinite(largest), largest, 0).astype(np.float32)

    def add(self, array: np.ndarray, finite: bool) -> None:
        """Add a float array; ``finite`` says that all of it is."""
        axis = self.axis + array.ndim if self.axis < 0 else self.axis
        if not 0 <= axis < array.ndim:
            raise Unfit(f"it has {array.ndim} dims, and so no axis {self.axis}")
        channels = array.shape[axis]
        if self.count is None:
            self.count = np.zeros(channels, np.int64)
            self.minimum = np.full(channels, np.inf, np.float32)
            self.maximum = np.full(channels, -np.inf, np.float32)
            self.total = np.zeros(channels)
        if len(self.count) != channels:
            raise Unfit(f"axis {self.axis} has {len(self.count)} channels in one sample and {channels} in another")
        if not array.size:
            return
        # (before, channels, behind): neighbouring axes as one are reduced faster.
        array = array.reshape(math.prod(array.shape[:axis]), channels, -1)
        low = high = array
        if finite:
            self.count += array.size // channels
        else:
            inside = np.isfinite(array)
            self.count += inside.sum(axis=(0, 2))
            low, high = np.where(inside, array, np.inf), np.where(inside, array, -np.inf)
            array = np.where(inside, array, 0)
        np.minimum(self.minimum, _last(np.min, low).min(axis=0), out=self.minimum)
        np.maximum(self.maximum, _last(np.max, high).max(axis=0), out=self.maximum)
        # Single precision is added in pairs along the last axis, and only few at a time along the first.
        sums = _last(np.sum, array)
        for start in range(0, len(sums), _SUMMED):
            self.total += sums[start : start + _SUMMED].sum(axis=0)

    def state(self) -> State:
        if self.count is None:
            return {}
        return {"count": self.count, "minimum": self.minimum, "maximum": self.maximum, "total": self.total}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        if "count" in state:
            self.count, self.minimum = state["count"], state["minimum"]
            self.maximum, self.total = state["maximum"], state["total"]


def _last(reduce: Callable[..., np.ndarray], array: np.ndarray) -> np.ndarray:
    """An array of three axes reduced along the last."""
    return array[:, :, 0] if array.shape[2] == 1 else reduce(array, axis=2)


class Gram:
    """The sum of ``x x^T`` over rows, in blocks of columns that do not mix.

    Rows are collected and multiplied many at once. Only the upper triangle is added up.

    Args:
        groups: Blocks of columns.

    Attributes:
        rows: How many rows were added.
    """

    def __init__(self, groups: int = 1) -> None:
        self.groups = groups
        self.rows = 0
        self._total = np.zeros((groups, 0, 0), np.float32)
        self._room: np.ndarray | None = None
        self._filled = 0

    @property
    def mean(self) -> np.ndarray:
        """X^T X / n in float64, (K, K), or (groups, K, K) where there are several."""
        self._multiply()
        upper = np.triu(self._total.astype(np.float64) / max(self.rows, 1))
        whole = upper + np.triu(upper, 1).transpose(0, 2, 1)
        return whole[0] if self.groups == 1 else whole

    def add(self, rows: np.ndarray) -> None:
        """Add finite rows, (n, groups * K) float32."""
        if self._room is None:
            self._start(rows.shape[1])
        assert self._room is not None
        if self._room.shape[1] != rows.shape[1]:
            raise Unfit(f"its rows have {self._room.shape[1]} columns in one sample and {rows.shape[1]} in another")
        self.rows += len(rows)
        while len(rows):
            fitting = rows[: len(self._room) - self._filled]
            self._room[self._filled : self._filled + len(fitting)] = fitting
            self._filled += len(fitting)
            rows = rows[len(fitting) :]
            if self._filled == len(self._room):
                self._multiply()

    def _start(self, width: int) -> None:
        size = width // self.groups
        self._total = np.zeros((self.groups, size, size), np.float32)
        self._room = np.empty((ROWS_AT_ONCE, width), np.float32)

    def _multiply(self) -> None:
        """Add the rows collected so far to the sum."""
        if self._room is None or not self._filled:
            return
        size = self._total.shape[1]
        parts = self._room[: self._filled].reshape(self._filled, self.groups, size).transpose(1, 0, 2)
        turned = np.ascontiguousarray(parts.transpose(0, 2, 1))
        for at in range(0, size, _COLUMNS):
            self._total[:, at : at + _COLUMNS, at:] += turned[:, at : at + _COLUMNS] @ parts[:, :, at:]
        self._filled = 0

    def state(self) -> State:
        if self._room is None:
            return {}
        return {"gram": self._total, "rows": np.array(self.rows), "pending": self._room[: self._filled]}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        if "gram" in state:
            pending = state["pending"]
            self._start(pending.shape[1])
            assert self._room is not None
            self._total, self.rows, self._filled = state["gram"], int(state["rows"]), len(pending)
            self._room[: self._filled] = pending


class Reservoir:
    """A fair draw of a stream's rows: every row is in it with the same probability (Vitter, 1985, algorithm R).

    Attributes:
        size: Rows kept at most.
        seen: Rows that came by.
        rows: (at most size, K) float32; None before the first row.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen = 0
        self._room: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray | None:
        return None if self._room is None else self._room[: min(self.seen, self.size)]

    def add(self, rows: np.ndarray, rng: np.random.Generator) -> None:
        """Add rows, (n, K)."""
        if self._room is None:
            self._room = np.zeros((self.size, rows.shape[1]), np.float32)
        if self._room.shape[1] != rows.shape[1]:
            raise Unfit(f"its rows have {self._room.shape[1]} columns in one sample and {rows.shape[1]} in another")
        direct = min(max(self.size - self.seen, 0), len(rows))
        self._room[self.seen : self.seen + direct] = rows[:direct]
        numbers = np.arange(self.seen + direct, self.seen + len(rows))
        slots = (rng.random(len(numbers)) * (numbers + 1)).astype(np.int64)
        # Of several rows for one slot the last one stays.
        last = {int(slots[at]): at for at in np.flatnonzero(slots < self.size)}
        if last:
            self._room[list(last)] = rows[direct + np.fromiter(last.values(), np.intp)]
        self.seen += len(rows)

    def state(self) -> State:
        return {} if self.rows is None else {"sample": self.rows, "seen": np.array(self.seen)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        if "sample" in state:
            kept = state["sample"]
            self.seen = int(state["seen"])
            self._room = np.zeros((self.size, kept.shape[1]), np.float32)
            self._room[: len(kept)] = kept
