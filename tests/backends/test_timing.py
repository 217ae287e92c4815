"""Fair timing, with a clock that the test turns."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optc.backends.timing import Spread, compare


class Clock:
    """Time passes only when something says so."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def takes(self, name, durations):
        durations = itertools.cycle(durations)

        def call():
            self.calls.append(name)
            self.now += next(durations)

        return call


def test_medians_and_ratios():
    clock = Clock()
    result = compare({"a": clock.takes("a", [2.0]), "b": clock.takes("b", [1.0])}, budget=1000, clock=clock)
    assert result["a"].seconds == Spread(2.0, 2.0, 2.0)
    assert result["b"].seconds.median == 1.0
    assert result["a"].ratio.median == 1.0
    assert result["b"].ratio.median == 0.5
    assert result.timings[0].name == "a"


def test_candidates_take_turns_and_the_first_place_rotates():
    clock = Clock()
    calls = {name: clock.takes(name, [1.0]) for name in "abc"}
    compare(calls, budget=0, warmup=1, min_rounds=3, clock=clock)
    assert "".join(clock.calls[3:]) == "abcbcacab"


def test_drift_does_not_change_the_ratio():
    """Everything becomes slower by half while running: medians move, ratios within a round do not."""
    clock = Clock()

    def slowing(name, base):
        def call():
            clock.calls.append(name)
            clock.now += base * (1 + 0.5 * (len(clock.calls) > 40))

        return call

    result = compare(
        {"a": slowing("a", 2.0), "b": slowing("b", 1.0)}, budget=1e9, min_rounds=40, max_rounds=40, clock=clock
    )
    assert result["b"].ratio.median == pytest.approx(0.5)
    assert result["a"].seconds.iqr > 0.5


def test_stops_early_when_stable_but_not_before_a_tenth_of_the_budget():
    clock = Clock()
    result = compare({"a": clock.takes("a", [1.0])}, budget=200, clock=clock)
    assert result.stable
    assert 20 <= result.elapsed <= 23


def test_the_budget_ends_noisy_runs():
    clock = Clock()
    result = compare({"a": clock.takes("a", [1.0, 9.0, 2.0, 30.0])}, budget=500, precision=1e-6, clock=clock)
    assert not result.stable
    assert 500 <= result.elapsed < 550


def test_at_least_the_minimum_of_rounds_whatever_the_budget():
    clock = Clock()
    result = compare({"a": clock.takes("a", [50.0])}, budget=1, min_rounds=5, clock=clock)
    assert result.rounds == 5
    assert len(result["a"].samples) == 5


def test_quick_calls_are_repeated_until_the_clock_resolves_them():
    clock = Clock()
    result = compare({"a": clock.takes("a", [1e-4])}, budget=0.1, min_sample=1e-3, clock=clock)
    assert result["a"].calls == 10
    assert result["a"].seconds.median == pytest.approx(1e-4)


def test_a_clock_that_stands_still():
    result = compare({"a": lambda: None, "b": lambda: None}, max_rounds=8, clock=lambda: 0.0)
    assert result["b"].ratio.median == 1.0


def test_one_outlier_moves_neither_median_nor_quartiles():
    clock = Clock()
    durations = [1.0] * 19 + [500.0]
    result = compare(
        {"a": clock.takes("a", durations)}, budget=1e9, min_rounds=20, max_rounds=20, warmup=0, clock=clock
    )
    assert result["a"].seconds == Spread(1.0, 1.0, 1.0)


def test_nothing_to_time():
    with pytest.raises(ValueError, match="nothing"):
        compare({})


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40))
def test_spread_is_ordered_and_within_the_samples(samples):
    spread = Spread.of(samples)
    slack = 1e-9 * max(samples)
    assert min(samples) - slack <= spread.low <= spread.median + slack
    assert spread.median <= spread.high + slack
    assert spread.high <= max(samples) + slack
    assert math.isfinite(spread.iqr)
