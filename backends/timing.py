"""Timing several things against each other, fairly.

Machines drift: clocks change, neighbours come and go. So candidates take turns (A B C, B C A, ...) instead of running
one after the other, and are compared by the ratio *within* a round, where the drift is the same for all of them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @property
    def iqr(self) -> float:
        """The interquartile range."""
        return self.high - self.low

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """The spread of samples; quartiles are interpolated linearly (inclusive method)."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Timing:
    """The result for one candidate.

    Attributes:
        name: Its name.
        seconds: Time per call, in seconds.
        ratio: Its time over the first candidate's time in the same round; below 1 is faster.
        samples: Time per call of each round, in seconds, in order.
        calls: Calls per sample.
    """

    name: str
    seconds: Spread
    ratio: Spread
    samples: tuple[float, ...]
    calls: int


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`compare`.

    Attributes:
        timings: One per candidate, in the order given; the first is the reference.
        rounds: How many rounds were run.
        elapsed: Seconds in all, warm-up included.
        stable: Whether the wanted precision was reached before the budget ran out.
    """

    timings: tuple[Timing, ...]
    rounds: int
    elapsed: float
    stable: bool

    def __getitem__(self, name: str) -> Timing:
        return next(timing for timing in self.timings if timing.name == name)


def compare(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    budget: float = 5.0,
    warmup: int = 2,
    min_rounds: int = 7,
    max_rounds: int = 1000,
    precision: float = 0.01,
    min_sample: float = 1e-3,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time ``candidates`` in turns.

    Args:
        candidates: What to call, by name; the first is the reference of all ratios. Threads of one that spin while
            another runs would falsify the result: open sessions with spinning off.
        budget: Seconds after which no new round begins. Warm-up and ``min_rounds`` happen in any case.
        warmup: Calls of each candidate before anything is counted.
        min_rounds: Rounds before stopping early.
        max_rounds: Rounds after which to stop.
        precision: Stop once every median and every ratio is known this well, relative (standard error of the median),
            but not before a tenth of the budget is spent: a short quiet spell proves little.
        min_sample: Candidates quicker than this many seconds are called several times per sample.
        clock: Seconds as a float, monotonic.

    Raises:
        ValueError: There are no candidates.
    """
    if not candidates:
        raise ValueError("nothing to time")
    start = clock()
    calls = {name: _calls_per_sample(call, warmup, min_sample, clock) for name, call in candidates.items()}
    names = list(candidates)
    samples: dict[str, list[float]] = {name: [] for name in names}
    rounds, stable = 0, False
    while rounds < max_rounds and not stable and (rounds < min_rounds or clock() - start < budget):
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(_sample(candidates[name], calls[name], clock))
        rounds += 1
        stable = (
            rounds >= min_rounds
            and clock() - start >= budget / 10
            and all(
                _error(series) <= precision
                for name in names
                for series in (samples[name], _ratios(samples[name], samples[names[0]]))
            )
        )
    timings = tuple(
        Timing(
            name,
            Spread.of(samples[name]),
            Spread.of(_ratios(samples[name], samples[names[0]])),
            tuple(samples[name]),
            calls[name],
        )
        for name in names
    )
    return Comparison(timings, rounds, clock() - start, stable)


def _calls_per_sample(call: Callable[[], Any], warmup: int, min_sample: float, clock: Callable[[], float]) -> int:
    """Warm up, and find out how many calls make a sample that the clock resolves."""
    took = math.inf
    for _ in range(max(warmup, 1)):
        took = min(took, _sample(call, 1, clock))
    return max(1, math.ceil(min_sample / took)) if took > 0 else 1000


def _sample(call: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


def _ratios(samples: Sequence[float], reference: Sequence[float]) -> list[float]:
    return [a / b if b > 0 else (1.0 if a == b else math.inf) for a, b in zip(samples, reference, strict=True)]


def _error(samples: Sequence[float]) -> float:
    """The relative standard error of the median, from the IQR as if the samples were normally distributed."""
    spread = Spread.of(samples)
    if spread.iqr == 0:
        return 0.0
    if not spread.median or not math.isfinite(spread.median):
        return math.inf
    return 1.2533 * (spread.iqr / 1.349) / math.sqrt(len(samples)) / spread.median
