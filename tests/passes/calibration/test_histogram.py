"""Histograms of streams: what they count is what a second look at all the data would, whatever came when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optc.passes.calibration.histogram import BLOCK, SIDE, Histogram

NUMBERS = st.floats(-(2.0**60), 2.0**60, width=32)
ARRAYS = st.lists(hnp.arrays(np.float32, st.integers(0, 20), elements=NUMBERS), max_size=6)


def histogram_of(arrays) -> Histogram:
    histogram = Histogram()
    for array in arrays:
        histogram.add(array)
    return histogram


def check(histogram: Histogram, values: np.ndarray) -> None:
    expected, _ = np.histogram(values.astype(np.float64), histogram.edges)
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.total == values.size and (abs(values.astype(np.float64)) < histogram.limit).all()


@settings(deadline=None)
@given(ARRAYS)
def test_counts_are_those_of_the_final_edges(arrays) -> None:
    check(histogram_of(arrays), np.concatenate([np.zeros(0, np.float32), *arrays]))


@settings(deadline=None)
@given(ARRAYS, st.randoms())
def test_the_order_does_not_matter(arrays, random) -> None:
    one = histogram_of(arrays)
    random.shuffle(arrays)
    two = histogram_of(arrays)
    assert one.exponent == two.exponent
    np.testing.assert_array_equal(one.counts, two.counts)


@settings(deadline=None)
@given(ARRAYS, ARRAYS)
def test_merging_is_adding(first, second) -> None:
    merged, other = histogram_of(first), histogram_of(second)
    before = other.counts.copy()
    merged.merge(other)
    whole = histogram_of([*first, *second])
    assert merged.exponent == whole.exponent
    np.testing.assert_array_equal(merged.counts, whole.counts)
    np.testing.assert_array_equal(other.counts, before)


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-30, 1e-3, 1.0, 1e4, 3e38])
def test_ranges_of_every_magnitude(scale) -> None:
    values = (np.random.default_rng(0).uniform(-1, 1, 1000) * scale).astype(np.float32)
    small = values[:1] * np.float32(1e-3)
    check(histogram_of([small, values]), np.append(values, small))


def test_long_arrays_are_counted_in_blocks() -> None:
    values = np.random.default_rng(0).standard_normal(2 * BLOCK + 17).astype(np.float32)
    check(histogram_of([values[:-1].reshape(2, -1)]), values[:-1])


def test_powers_of_two_lie_in_the_bin_that_they_begin() -> None:
    values = np.array([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0], np.float32)
    histogram = histogram_of([values])
    check(histogram, values)
    assert histogram.limit == 8.0


def test_magnitudes() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    histogram = histogram_of([values])
    edges = np.arange(SIDE + 1) * histogram.width
    np.testing.assert_array_equal(histogram.magnitudes(), np.histogram(abs(values.astype(float)), edges)[0])


def test_state() -> None:
    histogram = histogram_of([np.arange(10, dtype=np.float32)])
    other = Histogram()
    other.restore({name: array.copy() for name, array in histogram.state().items()})
    for each in (histogram, other):
        each.add(np.arange(100, dtype=np.float32))
    np.testing.assert_array_equal(histogram.counts, other.counts)
