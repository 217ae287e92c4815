"""Calibrators against brute force, and what is known of them."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.passes.calibration.formats import FORMATS, parameters, rounded
from optc.passes.calibration.histogram import SIDE, Histogram
from optc.passes.calibration.moments import ChannelMoments, Moments
from optc.passes.calibration.ranges import CALIBRATORS, choose, kl, min_max, mse, mse_per_channel, percentile

U8, S8 = FORMATS["u8"], FORMATS["s8-sym"]


def seen(values) -> tuple[Moments, Histogram]:
    moments, histogram = Moments(), Histogram()
    values = np.asarray(values, np.float32).reshape(-1)
    moments.add(values)
    histogram.add(values)
    return moments, histogram


def drawn(kind: str, count: int = 100_000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    makers = {
        "normal": lambda: rng.standard_normal(count),
        "relu": lambda: np.maximum(rng.standard_normal(count), 0),
        "student": lambda: rng.standard_t(3, count),
        "shifted": lambda: rng.standard_normal(count) * 0.1 + 3,
        "outlier": lambda: np.append(rng.standard_normal(count), 300.0),
        "negative": lambda: -np.abs(rng.standard_t(4, count)),
        "uniform": lambda: rng.uniform(-1, 2, count),
    }
    return makers[kind]().astype(np.float32)


KINDS = ["normal", "relu", "student", "shifted", "outlier", "negative", "uniform"]


# formats -----------------------------------------------------------------------------------------------------------


@given(
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(0, 2.0**100, width=32),
    st.sampled_from(sorted(FORMATS)),
)
def test_the_whole_range_is_covered_to_half_a_step_and_zero_is_exact(low, span, name) -> None:
    format, high = FORMATS[name], low + span
    found = parameters(low, high, format)
    assert found.scale.dtype == np.float32 and found.scale > 0 and found.zero_point.dtype == format.dtype
    assert format.low <= int(found.zero_point) <= format.high
    if format.symmetric:
        assert int(found.zero_point) == format.zero
    ends = np.array([low, 0.0, high])
    back = rounded(ends, found.scale, found.zero_point, format)
    assert back[1] == 0
    # Rounding the zero point shifts an asymmetric range by up to half a step.
    assert (abs(back - ends) <= float(found.scale) * 1.01 + 1e-37).all()


def test_formats_with_seven_bits_use_half_of_the_integers() -> None:
    for name, format in FORMATS.items():
        assert format.steps == {"8": (255, 254), "7": (127, 126)}[name[1]][format.symmetric]
        if format.symmetric:
            assert format.zero - format.low == format.high - format.zero


def test_parameters_per_channel() -> None:
    found = parameters(np.array([-1.0, 0, 0]), np.array([1.0, 2.55, 0]), U8)
    np.testing.assert_allclose(found.scale, [2 / 255, 0.01, 1], rtol=1e-6)
    assert found.zero_point.tolist() == [128, 0, 0]


# calibrators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(CALIBRATORS))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", [U8, S8], ids=["u8", "s8-sym"])
def test_ranges_lie_within_what_was_seen(method, kind, format) -> None:
    values = drawn(kind, 30_000)
    low, high = CALIBRATORS[method].find(*seen(values), format)
    assert values.min() <= low <= high <= values.max()


@pytest.mark.parametrize("method", sorted(CALIBRATORS))
def test_nothing_and_constants(method) -> None:
    find = CALIBRATORS[method].find
    assert find(*seen([]), U8) == (0, 0)
    for constant in (0.0, 2.0, -3.5):
        low, high = find(*seen(np.full(100, constant)), U8)
        assert low <= constant <= high and high - low <= abs(constant)


def test_min_max_per_channel() -> None:
    channels = ChannelMoments(-1)
    channels.add(np.array([[1, -2, 3], [4, -5, -6]], np.float32), True)
    low, high = min_max(channels)
    assert low.tolist() == [1, -5, -6] and high.tolist() == [4, -2, 3]


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(KINDS), st.integers(0, 99), st.sampled_from([90.0, 99.0, 99.9, 99.99]))
def test_percentiles_cover_what_they_say_and_no_bin_more(kind, seed, percent) -> None:
    values = drawn(kind, 5000, seed)
    moments, histogram = seen(values)
    width = histogram.width
    low, high = percentile(moments, histogram, U8, percent)
    wanted = len(values) * percent / 100
    assert (values <= high).sum() >= wanted and (values >= low).sum() >= wanted
    assert (values < high - 1.0001 * width).sum() < wanted and (values > low + 1.0001 * width).sum() < wanted
    low, high = percentile(moments, histogram, S8, percent)
    cut = max(-low, high)
    assert (abs(values) <= cut).sum() >= wanted > (abs(values) < cut - 1.0001 * width).sum()


def slow_kl(histogram: Histogram, levels: int) -> float:
    """The same, candidate by candidate and bin by bin."""
    counts = histogram.magnitudes().astype(float)
    counts[0] = counts[1]
    total, last = counts.sum(), np.flatnonzero(counts)[-1] + 1
    first = max(levels, int(np.searchsorted(np.cumsum(counts), 0.999 * total)) + 1)
    best, cut = np.inf, last
    for end in sorted({*range(first, last, 8), last}):
        p, q = counts[:end].copy(), np.zeros(end)
        p[-1] += counts[end:].sum()
        edges = np.rint(np.arange(levels + 1) * (end / levels)).astype(int)
        for start, stop in itertools.pairwise(edges):
            filled = p[start:stop] > 0
            q[start:stop][filled] = max(counts[start:stop].sum(), 1e-4) / max(filled.sum(), 1)
        p, q = p[p > 0] / p.sum(), q[p > 0] / counts[:end].sum()
        divergence = (p * np.log(p / q)).sum()
        if divergence < best - 1e-12:
            best, cut = divergence, end
    return cut * histogram.width


@pytest.mark.parametrize("kind", ["normal", "student", "outlier"])
def test_kl_is_what_brute_force_finds(kind) -> None:
    values = drawn(kind, 50_000)
    moments, histogram = seen(values)
    low, high = kl(moments, histogram, S8)
    cut = slow_kl(histogram, 128)
    assert (low, high) == (max(-cut, values.min()), min(cut, values.max()))


def test_kl_clips_heavy_tails_and_keeps_flat_ones() -> None:
    values = drawn("student", 200_000)
    low, high = kl(*seen(values), S8)
    assert max(-low, high) < 0.5 * abs(values).max()
    assert (abs(values) <= max(-low, high)).mean() >= 0.999
    flat = drawn("uniform")
    assert kl(*seen(flat), S8) == pytest.approx((flat.min(), flat.max()), rel=0.01)


def test_kl_takes_less_than_20_ms() -> None:
    moments, histogram = seen(drawn("student", 500_000))
    taken = []
    for _ in range(5):
        start = time.process_time()
        kl(moments, histogram, S8)
        taken.append(time.process_time() - start)
    assert min(taken) < 0.02


def mean_square(values: np.ndarray, low: float, high: float, format) -> float:
    found = parameters(low, high, format)
    return float(np.mean((rounded(values.astype(float), found.scale, found.zero_point, format) - values) ** 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", [U8, S8, FORMATS["u7"]], ids=["u8", "s8-sym", "u7"])
def test_mse_is_as_good_as_brute_force(kind, format) -> None:
    values = drawn(kind, 20_000)
    error = mean_square(values, *mse(*seen(values), format), format)
    low, high = float(values.min()), float(values.max())
    shares = np.geomspace(1 / 128, 1, 400)
    best = min(mean_square(values, low * share, high * share, format) for share in shares)
    assert error <= best * 1.03
    assert error <= mean_square(values, low, high, format) * 1.001


@pytest.mark.parametrize("axis", [0, 1, None])
def test_mse_of_a_weight_is_never_worse_than_its_whole_range(axis) -> None:
    weight = np.random.default_rng(0).standard_t(3, (16, 300)).astype(np.float32)
    low, high = mse_per_channel(weight, axis, S8)
    rows = {0: weight, 1: weight.T, None: weight.reshape(1, -1)}[axis]
    assert np.shape(low) == (() if axis is None else (len(rows),))
    for row, a, b in zip(rows, np.atleast_1d(low), np.atleast_1d(high), strict=True):
        tried = [mean_square(row, row.min() * s, row.max() * s, S8) for s in np.linspace(1.0, 0.2, 100)]
        assert mean_square(row, a, b, S8) == pytest.approx(min(tried), rel=1e-6)


# choosing ----------------------------------------------------------------------------------------------------------


def test_the_choice_is_the_layers() -> None:
    ranges = {"min-max": (-10.0, 10.0), "kl": (-3.0, 3.0), "same": (-3.0, 3.0), "nan": (0.0, 0.0)}
    asked = []

    def score(low, high):
        asked.append((low, high))
        return np.nan if high == 0 else abs(high - 3.5)

    found = choose(ranges, score)
    assert (found.method, found.low, found.high, found.error) == ("kl", -3.0, 3.0, 0.5)
    assert len(asked) == 3
    assert choose({"nan": (0.0, 0.0)}, score) is None and choose({}, score) is None


def test_at_least_2048_bins_cover_the_data() -> None:
    for largest in (1.0, 1.0001, 3.0, 1e-5, 4.0):
        _, histogram = seen([largest])
        assert SIDE >= largest / histogram.width >= 2048
