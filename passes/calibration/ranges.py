"""From statistics to the range that integers should cover.

Clipping a few large values costs little where most are small and the steps become finer. Four calibrators weigh that
differently; which of them is best differs from tensor to tensor, and :func:`choose` asks the layer's own output.

Sources: KL, S. Migacz, "8-bit inference with TensorRT" (2017), here with 2048 and more bins and without rounding counts
to integers; percentile and MSE, H. Wu et al., "Integer quantization for deep learning inference" (2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from optc.passes.calibration.formats import IntFormat, parameters, rounded
from optc.passes.calibration.histogram import SIDE, Histogram
from optc.passes.calibration.moments import ChannelMoments, Moments
from optc.passes.calibration.store import Statistics

Range = tuple[float, float]

#: Share of the values that the default percentile covers, in percent.
PERCENTILE = 99.99
#: KL does not clip more than the values beyond this share, and looks at every so many bins.
_KL_COVERAGE, _KL_STRIDE = 0.999, 8
#: Floor of a level's count, where nothing was seen but something is clipped to it.
_KL_FLOOR = 1e-4
#: Shares of the whole range that MSE tries, first over all magnitudes, then around the best one.
_MSE_COARSE = np.geomspace(1 / 128, 1, 60)
_MSE_FINE = np.linspace(0.9, 1.1, 41)


def min_max(moments: Moments | ChannelMoments) -> tuple[np.ndarray, np.ndarray]:
    """Everything that was seen, a number each or one per channel; zeros where nothing was."""
    low, high = np.asarray(moments.minimum, np.float64), np.asarray(moments.maximum, np.float64)
    seen = low <= high
    return np.where(seen, low, 0.0), np.where(seen, high, 0.0)


def percentile(moments: Moments, histogram: Histogram, format: IntFormat, percent: float = PERCENTILE) -> Range:
    """The least range of whole bins that covers a percentage of the values, on each side.

    A symmetric format covers that share of the magnitudes.
    """
    total = histogram.total
    if not total:
        return 0.0, 0.0
    wanted = total * percent / 100
    if format.symmetric:
        cut = float(np.searchsorted(np.cumsum(histogram.magnitudes()), wanted) + 1) * histogram.width
        return _within(-cut, cut, moments)
    above = int(np.searchsorted(np.cumsum(histogram.counts), wanted))
    below = int(np.searchsorted(np.cumsum(histogram.counts[::-1]), wanted))
    return _within((SIDE - 1 - below) * histogram.width, (above + 1 - SIDE) * histogram.width, moments)


def kl(moments: Moments, histogram: Histogram, format: IntFormat) -> Range:
    """The range whose quantized distribution of magnitudes tells least from the original: least relative entropy.

    With levels that are evenly spread over their bins, the relative entropy of a candidate takes sums over its levels
    only; cumulative sums give those of all candidates at once.
    """
    counts = histogram.magnitudes().astype(np.float64)
    counts[0] = counts[1]  # zeros, of which a ReLU makes any number, say nothing about the range
    total = counts.sum()
    last = int(np.flatnonzero(counts)[-1]) + 1 if total else 0
    one_sided = moments.minimum >= 0 or moments.maximum <= 0
    levels = (format.steps if one_sided and not format.symmetric else format.steps // 2) + 1
    if last <= levels:
        return _within(-math.inf, math.inf, moments)
    first = max(levels, int(np.searchsorted(np.cumsum(counts), _KL_COVERAGE * total)) + 1)
    ends = np.unique(np.append(np.arange(first, last, _KL_STRIDE), last))
    # P: counts below the end, what lies beyond added to the last bin. Q: the same without that, level by level.
    inside = np.concatenate([[0], np.cumsum(counts)])
    filled = np.concatenate([[0], np.cumsum(counts > 0)])
    entropy = np.concatenate([[0], np.cumsum(_times_log(counts))])
    tail = total - inside[ends]
    edges = np.rint(np.arange(levels + 1) * (ends[:, None] / levels)).astype(np.intp)
    mass, bins = np.diff(inside[edges], axis=1), np.diff(filled[edges], axis=1)
    bins[:, -1] += (tail > 0) & (counts[ends - 1] == 0)  # what is clipped fills the last bin of P
    level = np.maximum(mass, _KL_FLOOR) / np.maximum(bins, 1)
    mass[:, -1] += tail
    own = entropy[ends] - _times_log(counts[ends - 1]) + _times_log(counts[ends - 1] + tail)
    divergence = (own - (mass * np.log(level)).sum(axis=1)) / total - math.log(total) + np.log(inside[ends])
    cut = float(ends[int(np.argmin(divergence))]) * histogram.width
    return _within(-cut, cut, moments)


def mse(moments: Moments, histogram: Histogram, format: IntFormat) -> Range:
    """The range with the least mean square of what rounding and clipping change, over the middles of the bins."""
    low, high = (float(end) for end in min_max(moments))
    filled = np.flatnonzero(histogram.counts)
    if not filled.size:
        return 0.0, 0.0
    values = np.clip(histogram.centres[filled], low, high)
    counts = histogram.counts[filled].astype(np.float64)

    def best(lows: np.ndarray, highs: np.ndarray) -> Range:
        found = parameters(lows[:, None], highs[:, None], format)
        errors = (rounded(values, found.scale, found.zero_point, format) - values) ** 2 @ counts
        at = int(np.argmin(errors))
        return float(lows[at]), float(highs[at])

    low, high = best(low * _MSE_COARSE, high * _MSE_COARSE)
    low, high = best(low * _MSE_FINE, high * _MSE_FINE)
    if not format.symmetric:  # the two ends may want to be cut differently
        low, high = best(low * _MSE_FINE, np.full(len(_MSE_FINE), high))
        low, high = best(np.full(len(_MSE_FINE), low), high * _MSE_FINE)
    return _within(low, high, moments)


def mse_per_channel(weight: np.ndarray, axis: int | None, format: IntFormat) -> tuple[np.ndarray, np.ndarray]:
    """The ranges with the least mean square error of a constant, each of 100 shares of its channel's own range tried.

    Args:
        weight: Any shape, float.
        axis: The axis of the channels; None for one range over all.
        format: The integer.

    Returns:
        Lows and highs, (C,) float64, or scalars without an axis.
    """
    rows = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    if not rows.size:
        return np.zeros(rows.shape[0]), np.zeros(rows.shape[0])
    low, high = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
    least, share = np.full(len(rows), np.inf), np.ones(len(rows))
    for candidate in np.linspace(1.0, 0.2, 100):
        found = parameters(low * candidate, high * candidate, format)
        scale, zero = found.scale[:, None], found.zero_point[:, None]
        errors = np.mean((rounded(rows, scale, zero, format) - rows) ** 2, axis=1)
        better = errors < least
        least, share = np.where(better, errors, least), np.where(better, candidate, share)
    return (low * share, high * share) if axis is not None else ((low * share)[0], (high * share)[0])


@dataclass(frozen=True)
class Calibrator:
    """A way to find the range of a tensor.

    Attributes:
        find: From moments, histogram and format.
        values: How many values it must have seen for its answer to mean anything.
    """

    find: Callable[[Moments, Histogram, IntFormat], Range]
    values: int


def _whole(moments: Moments, histogram: Histogram, format: IntFormat) -> Range:
    low, high = min_max(moments)
    return float(low), float(high)


#: Calibrators by name. A percentile needs some values beyond it, KL several in a bin.
CALIBRATORS = {
    "min-max": Calibrator(_whole, 1),
    "percentile": Calibrator(percentile, round(10 / (1 - PERCENTILE / 100))),
    "kl": Calibrator(kl, 10 * SIDE // 2),
    "mse": Calibrator(mse, 1000),
}


def too_few(method: str, statistics: Statistics, name: str) -> str | None:
    """Why a calibrator has seen too little of a value, and how many samples it needs; None if it has enough."""
    wanted, seen = CALIBRATORS[method].values, statistics.moments(name).count
    if seen >= wanted:
        return None
    text = f"{method} needs {wanted:,} values of {name!r}, and {statistics.samples} samples gave {seen:,}"
    return f"{text}: at least {-(-wanted * statistics.samples // seen)} samples like these" if seen else text


def candidates(
    statistics: Statistics, name: str, format: IntFormat, methods: Mapping[str, Calibrator] = CALIBRATORS
) -> dict[str, Range]:
    """The ranges by all calibrators that have seen enough of a value; needs its histogram."""
    moments, histogram = statistics.moments(name), statistics.histogram(name)
    enough = (method for method in methods if too_few(method, statistics, name) is None)
    return {method: methods[method].find(moments, histogram, format) for method in enough}


@dataclass(frozen=True)
class Chosen:
    """A range that was chosen.

    Attributes:
        method: The calibrator's name.
        low, high: The range.
        error: Its score.
    """

    method: str
    low: float
    high: float
    error: float


def choose(ranges: Mapping[str, Range], score: Callable[[float, float], float]) -> Chosen | None:
    """The range with the least error of the layer's output, the first of equals; None if none has a finite one.

    Args:
        ranges: Candidates by method, see :func:`candidates`.
        score: The error of the quantized layer's output on sample rows, for a range.
    """
    tried: dict[Range, float] = {}
    best: Chosen | None = None
    for method, (low, high) in ranges.items():
        if (low, high) not in tried:
            tried[low, high] = score(low, high)
        error = tried[low, high]
        if math.isfinite(error) and (best is None or error < best.error):
            best = Chosen(method, low, high, error)
    return best


def _within(low: float, high: float, moments: Moments) -> Range:
    """The part of a range in which there were values."""
    least, largest = (float(end) for end in min_max(moments))
    return min(max(low, least), largest), max(min(high, largest), least)


def _times_log(counts: np.ndarray) -> np.ndarray:
    """n log n, 0 for 0."""
    return counts * np.log(np.maximum(counts, 1e-300))
