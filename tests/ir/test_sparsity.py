"""N:M patterns: exactly so many of every group, and seen as such along any axis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optc.ir.sparsity import Pattern

PATTERNS = st.integers(2, 9).flatmap(lambda group: st.builds(Pattern, st.integers(1, group - 1), st.just(group)))


@given(PATTERNS, st.integers(0, 5), st.integers(0, 40), st.integers(0, 1 << 30))
def test_exactly_so_many_of_every_group_are_kept_and_they_are_the_largest(pattern, rows, columns, seed):
    scores = np.random.default_rng(seed).integers(0, 4, (rows, columns)).astype(np.float32)
    mask = pattern.largest(scores)
    assert mask.shape == scores.shape and pattern.holds(mask)
    for start in range(0, columns, pattern.group):
        group, own = scores[:, start : start + pattern.group], mask[:, start : start + pattern.group]
        assert (own.sum(axis=1) == min(pattern.kept, group.shape[1])).all()
        for values, keep in zip(group, own, strict=True):
            assert values[keep].min(initial=9) >= values[~keep].max(initial=-1)


def test_the_axis_matters():
    weight = np.zeros((8, 6), np.float32)
    weight[::2] = 1
    pattern = Pattern(2, 4)
    assert pattern.holds(weight, axis=0) and not pattern.holds(weight, axis=1)
    assert pattern.holds(weight.T, axis=-1) and not pattern.holds(weight.T, axis=0)
    assert pattern.holds(np.zeros((0, 4)), axis=1)


def test_a_group_that_is_shorter_may_be_full():
    assert Pattern(2, 4).holds(np.array([1, 0, 0, 1, 5, 6])) and not Pattern(2, 4).holds(np.array([1, 0, 1, 1, 5]))


def test_text():
    assert Pattern.of(" 2:4 ") == Pattern(2, 4) and str(Pattern(1, 3)) == "1:3" and Pattern.of("4:8").density == 0.5
    for text in ("2", "2:4:8", "4:4", "0:4", "a:b", "-1:4"):
        with pytest.raises(ValueError, match=r"pattern|keeps"):
            Pattern.of(text)
