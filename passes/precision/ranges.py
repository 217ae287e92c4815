"""What is known of the size of numbers: from constants, from proofs, and from the user's data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.mapped import release
from optc.passes.calibration.moments import Moments
from optc.passes.calibration.store import Request, Statistics
from optc.passes.precision.bounds import Bounds
from optc.passes.precision.narrow import Narrow

#: How much larger than what was seen a number may become: on the user's data, and on inputs that were drawn.
MARGIN, DRAWN_MARGIN = 4.0, 16.0
#: A number this large stands for infinity: no activation comes near it, and no such constant is meant to be exact.
ENDLESS = 1e9
#: Largest share of the nonzero weights of one constant that may become zero.
_FLUSHED = 0.5
#: Constants are looked at so many elements at a time.
_CHUNK = 1 << 22


@dataclass
class Ranges:
    """Says of values whether they fit into a narrow type.

    Attributes:
        graph: The main graph.
        facts: What is known of it.
        narrow: The narrow type.
        statistics: What values were like; None where nothing was run.
        masking: Values of which only what is added to scores or taken instead of them is very large: it may become the
            lowest number of the type.
    """

    graph: onnx_ir.Graph
    facts: Facts
    narrow: Narrow
    statistics: Statistics | None = None
    masking: frozenset[onnx_ir.Value] = frozenset()
    _told: dict[onnx_ir.Value, str | None] = field(default_factory=dict, init=False)

    @property
    def real(self) -> bool:
        """Whether the statistics are of the user's data."""
        return self.statistics is not None and self.statistics.real

    def problem(self, value: onnx_ir.Value) -> str | None:
        """Why a value must not be narrow, or None if nothing is known against it."""
        if value not in self._told:
            self._told[value] = self._constant(value) if self.facts.is_const(value) else self._activation(value)
            release(self.facts.tensor(value))
        return self._told[value]

    def fits(self, value: onnx_ir.Value) -> bool:
        """Whether a value is known to fit: it is constant, bounded, or was looked at on the user's data."""
        if self.problem(value) is not None:
            return False
        if self.narrow.as_wide or self.facts.is_const(value) or self._seen(value) is not None:
            return True
        bounds = self._bounds.interval(value)
        return bounds is not None and max(map(abs, bounds)) <= self.narrow.largest

    def within(self, value: onnx_ir.Value, largest: float) -> bool:
        """Whether the magnitude of a value is known to stay below a number."""
        low, high = self._extremes(value)
        return max(abs(low), abs(high)) <= largest

    def away_from_zero(self, value: onnx_ir.Value) -> bool:
        """Whether all of a value is known to be a normal number of the type, on one side of zero."""
        low, high = self._extremes(value)
        return low >= self.narrow.smallest or high <= -self.narrow.smallest

    def _extremes(self, value: onnx_ir.Value) -> tuple[float, float]:
        """The least and the largest number, as far as they are known."""
        seen = self._seen(value)
        if seen is not None and not self.facts.is_const(value):
            # What comes next may be larger, and nearer to zero.
            low, high = seen.minimum, seen.maximum
            return (low * MARGIN if low < 0 else low / MARGIN), (high * MARGIN if high > 0 else high / MARGIN)
        return self._bounds.interval(value) or (-np.inf, np.inf)

    def _seen(self, value: onnx_ir.Value) -> Moments | None:
        """What a value was like on the user's data."""
        return self._moments(value) if self.real else None

    def _moments(self, value: onnx_ir.Value) -> Moments | None:
        name = value.name or ""
        if self.statistics is None or self.statistics.why_not(Request(name)) is not None:
            return None
        found = self.statistics.moments(name)
        return found if found.count else None

    @cached_property
    def _bounds(self) -> Bounds:
        return Bounds(self.graph, self.facts)

    # -- activations ------------------------------------------------------------------------------------------------

    def _activation(self, value: onnx_ir.Value) -> str | None:
        found = self._moments(value)
        if found is None:
            return None
        real, name = self.real, self.narrow.name
        margin = MARGIN if real else DRAWN_MARGIN
        largest = found.maximum if value in self.masking else found.absmax
        where = "on the calibration data" if real else "on drawn inputs"
        if largest * margin > self.narrow.largest:
            return f"{value.name!r} reaches {largest:.3g} {where}, too near to the {self.narrow.largest:.5g} of {name}"
        rms = found.mean_square**0.5
        if 0 < rms < 4 * self.narrow.step / self.narrow.unit and self.narrow.step / rms > self.narrow.unit:
            return f"the numbers of {value.name!r} are so small ({rms:.3g}) {where} that {name} would lose them"
        return None

    # -- constants --------------------------------------------------------------------------------------------------

    def _constant(self, value: onnx_ir.Value) -> str | None:
        array = self.facts.const(value)
        assert array is not None
        wrong = lost = nonzero = 0
        squares = errors = largest = 0.0
        for piece in pieces(array):
            kept = piece.astype(np.float32, copy=False).reshape(-1)
            reaches = float(max(-kept.min(initial=0), kept.max(initial=0)))
            if not reaches <= self.narrow.largest:
                # What is too large is looked at as what it would become, or stands for infinity.
                finite = kept[np.isfinite(kept)]
                huge = np.abs(finite) > self.narrow.largest
                wrong += int(np.count_nonzero(huge & ((finite > 0) | (value not in self.masking))))
                reaches = float(np.abs(finite).max(initial=0.0))
                kept = finite[~huge]
            largest = max(largest, reaches)
            rounded = self.narrow.rounded(kept).astype(np.float32)
            many = int(np.count_nonzero(kept))
            nonzero, lost = nonzero + many, lost + many - int(np.count_nonzero(rounded))
            rounded -= kept
            errors, squares = errors + float(np.vdot(rounded, rounded)), squares + float(np.vdot(kept, kept))
        name, told = self.narrow.name, f"the constant {value.name!r}"
        if wrong:
            return f"{told} reaches {largest:.3g}, more than the {self.narrow.largest:.5g} of {name}"
        if array.size == 1 and lost:
            return f"{told} is {largest:.3g}, which is 0 in {name}"
        if lost > nonzero * _FLUSHED:
            return f"{lost / nonzero:.0%} of {told} would be 0 in {name}"
        if errors > squares * (2 * self.narrow.unit) ** 2:
            return f"{told} holds numbers so small that {name} would round them by {(errors / squares) ** 0.5:.1%}"
        if self._counts(array):
            return f"{told} holds integers that {name} would round"
        return None

    def _counts(self, array: np.ndarray) -> bool:
        """Whether a constant of several numbers is one of positions that the type cannot tell apart."""
        if array.size < 2 or array.size > _CHUNK:
            return False
        array = array.astype(np.float64)
        largest = np.abs(array).max()
        if not self.narrow.integers < largest < ENDLESS or np.any(array != np.rint(array)):
            return False
        return bool(np.any(self.narrow.rounded(array).astype(np.float64) != array))


def requests(values: Iterable[onnx_ir.Value]) -> list[Request]:
    """What has to be known of values."""
    return [Request(value.name or "") for value in dict.fromkeys(values) if value.name]


def pieces(array: np.ndarray) -> Iterable[np.ndarray]:
    """A large array in parts of bounded size, without copying it as a whole."""
    if array.size <= _CHUNK or not array.ndim:
        yield array
        return
    rows = max(1, _CHUNK * array.shape[0] // array.size)
    for start in range(0, array.shape[0], rows):
        yield array[start : start + rows]
