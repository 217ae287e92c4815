"""Running statistics against NumPy's over everything at once, whatever the pieces."""

from __future__ import annotations

import numpy as np
import pytest

from optc.passes.calibration import moments as module
from optc.passes.calibration.moments import ChannelMoments, Gram, Moments, Reservoir, Unfit


def pieces(array: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(array), 7))
    return np.split(array, cuts)


def drawn(*shape) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal(shape) + 0.5).astype(np.float32)


def resumed(part, fresh):
    """A part that was written down and taken up again."""
    fresh.restore({name: array.copy() for name, array in part.state().items()})
    return fresh


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    values = drawn(1000)
    values[[3, 500]], values[7], values[8] = np.nan, np.inf, -np.inf
    finite = values[np.isfinite(values)]
    moments = Moments()
    for piece in pieces(values):
        kept = moments.add(piece)
        assert np.isfinite(kept).all()
        moments = resumed(moments, Moments())
    assert (moments.nan, moments.infinite, moments.count) == (2, 2, 996)
    assert (moments.minimum, moments.maximum) == (finite.min(), finite.max())
    assert moments.mean == pytest.approx(finite.mean(dtype=float), rel=1e-9)
    assert moments.mean_square == pytest.approx(np.mean(finite.astype(float) ** 2), rel=1e-9)
    assert moments.absmax == abs(finite).max()


def test_moments_of_nothing() -> None:
    moments = Moments()
    assert moments.add(np.zeros(0, np.float32)).size == 0
    assert (moments.mean, moments.mean_square, moments.absmax, moments.count) == (0, 0, 0, 0)


@pytest.mark.parametrize("axis, others", [(-1, (0, 1, 2)), (1, (0, 2, 3)), (0, (1, 2, 3))])
def test_channels(axis, others) -> None:
    whole = drawn(12, 5, 4, 6)
    whole[0, 2, 1, 3], whole[3, 1, 0, 0] = np.nan, np.inf
    parts = [whole] if axis == 0 else pieces(whole)
    channels = ChannelMoments(axis)
    for piece in parts:
        channels.add(piece, bool(np.isfinite(piece).all()))
        channels = resumed(channels, ChannelMoments(axis))
    odd = np.where(np.isfinite(whole), whole, np.nan)
    np.testing.assert_array_equal(channels.minimum, np.nanmin(odd, axis=others))
    np.testing.assert_array_equal(channels.maximum, np.nanmax(odd, axis=others))
    np.testing.assert_array_equal(channels.absmax, np.nanmax(abs(odd), axis=others))
    np.testing.assert_allclose(channels.mean, np.nanmean(odd.astype(float), axis=others), rtol=1e-6)
    np.testing.assert_array_equal(channels.count, np.isfinite(whole).sum(axis=others))


def test_channels_must_not_change() -> None:
    channels = ChannelMoments(1)
    channels.add(drawn(2, 3), True)
    with pytest.raises(Unfit, match="3 channels in one sample and 4 in another"):
        channels.add(drawn(2, 4), True)
    with pytest.raises(Unfit, match="no axis 1"):
        channels.add(drawn(3), True)


@pytest.mark.parametrize("groups, width", [(1, 7), (3, 12), (1, 600)])
def test_gram(groups, width, monkeypatch) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 64)
    rows = drawn(300, width)
    gram = Gram(groups)
    for piece in pieces(rows):
        gram.add(piece)
        gram = resumed(gram, Gram(groups))
    size = width // groups
    wide = rows.astype(float)
    expected = [wide[:, g * size : g * size + size] for g in range(groups)]
    found = gram.mean.reshape(groups, size, size)
    assert gram.rows == 300 and found.dtype == np.float64
    for part, block in zip(expected, found, strict=True):
        np.testing.assert_allclose(block, part.T @ part / 300, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(block, block.T)
    with pytest.raises(Unfit, match="columns"):
        gram.add(drawn(2, width + groups))


def test_a_gram_that_was_written_down_goes_on_exactly() -> None:
    one, two = Gram(), Gram()
    for piece in pieces(drawn(5000, 9)):
        one.add(piece)
        two.add(piece)
        two = resumed(two, Gram())
    np.testing.assert_array_equal(one.mean, two.mean)


def test_every_row_has_the_same_chance() -> None:
    hits = np.zeros(60)
    for seed in range(2000):
        reservoir, rng = Reservoir(6), np.random.default_rng(seed)
        for piece in pieces(np.arange(60, dtype=np.float32)[:, None], seed):
            reservoir.add(piece, rng)
            reservoir = resumed(reservoir, Reservoir(6))
        kept = reservoir.rows[:, 0].astype(int)
        assert len(set(kept)) == 6
        hits[kept] += 1
    # 2000 draws with probability 0.1: 200 each, standard deviation 13.4.
    assert abs(hits - 200).max() < 5 * 13.4
    assert ((hits - 200) ** 2).sum() / 180 < 110  # chi-square, 59 degrees of freedom


def test_few_rows_are_all_kept_in_order() -> None:
    reservoir = Reservoir(100)
    assert reservoir.rows is None
    rows = drawn(30, 4)
    for piece in pieces(rows):
        reservoir.add(piece, np.random.default_rng(0))
    np.testing.assert_array_equal(reservoir.rows, rows)
    with pytest.raises(Unfit, match="columns"):
        reservoir.add(drawn(1, 5), np.random.default_rng(0))
