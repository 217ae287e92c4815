"""Choosing zeros: the pattern holds for any shape, and what knows more of the inputs errs less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.ir.sparsity import Pattern
from optc.passes.compress.integer.weights import by_correlation, to_nearest
from optc.passes.compress.lowrank.inputs import Seen
from optc.passes.compress.sparsity.columns import Columns
from optc.passes.compress.sparsity.methods import METHODS, sparsify
from optc.passes.compress.sparsity.permute import best_order, kept
from optc.passes.compress.sparsity.repair import repaired
from optc.passes.compress.weights.codes import Grid, energy
from optc.passes.compress.weights.gptq import gptq

TWO_OF_FOUR = Pattern(2, 4)


def inputs(rng: np.random.Generator, columns: int, rows: int = 256) -> np.ndarray:
    """Rows whose columns are correlated and of unlike size."""
    mix = rng.standard_normal((max(columns // 3, 1), columns)) * np.exp(rng.standard_normal(columns))
    return rng.standard_normal((rows, len(mix))) @ mix + 0.1 * rng.standard_normal((rows, columns))


def seen(rows: np.ndarray, groups: int = 1) -> Seen:
    parts = rows.reshape(len(rows), groups, -1)
    return Seen(np.einsum("ngi,ngj->gij", parts, parts) / len(rows), 0.01)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(METHODS)),
    st.sampled_from([Pattern(2, 4), Pattern(1, 4), Pattern(4, 8), Pattern(2, 3)]),
    st.integers(1, 23),
    st.sampled_from([1, 2, 9]),
    st.integers(1, 3),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 1 << 30),
)
def test_the_pattern_holds_for_any_shape(method, pattern, channels, taps, groups, outputs, repair, seed):
    rng = np.random.default_rng(seed)
    columns = Columns(channels, taps)
    weight = rng.standard_normal((groups * outputs, channels * taps)).astype(np.float32)
    known = seen(inputs(rng, groups * channels * taps, 32), groups)
    found = sparsify(weight, columns, pattern, method, known, repair)
    laid_out = columns.channels_last(found.weight)
    assert laid_out.shape == (groups * outputs, taps, channels) and pattern.holds(laid_out)
    wanted = sum(min(pattern.kept, channels - start) for start in range(0, channels, pattern.group))
    assert ((laid_out != 0).sum(axis=-1) == wanted).all(), "no more than the pattern asks for is gone"
    assert found.error is not None and np.isfinite(found.error)


def test_what_knows_more_errs_less():
    errors: dict[str, list[float]] = {}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        known, weight = seen(inputs(rng, 64)), rng.standard_normal((32, 64)).astype(np.float32)
        for method in METHODS:
            for repair in (False, True):
                found = sparsify(weight, Columns(64), TWO_OF_FOUR, method, known, repair)
                errors.setdefault(f"{method}{'+' if repair else ''}", []).append(found.error)
    mean = {name: float(np.mean(found)) for name, found in errors.items()}
    assert mean["sparsegpt"] < 0.7 * mean["wanda"] < 0.7 * mean["magnitude"]
    assert mean["sparsegpt+"] < mean["sparsegpt"] and mean["magnitude+"] < 0.8 * mean["magnitude"]
    assert all(a <= b * 1.001 for a, b in zip(errors["sparsegpt+"], errors["sparsegpt"], strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_the_error_foretold_is_the_error_measured(method):
    rng = np.random.default_rng(3)
    rows, weight = inputs(rng, 40), rng.standard_normal((24, 40)).astype(np.float32)
    found = sparsify(weight, Columns(40), TWO_OF_FOUR, method, seen(rows), True)
    expected = rows @ weight.T
    measured = np.linalg.norm(rows @ found.weight.T - expected) / np.linalg.norm(expected)
    assert found.error == pytest.approx(measured, rel=1e-3)


def test_repair_is_least_squares_row_by_row():
    rng = np.random.default_rng(4)
    rows, weight = inputs(rng, 24, 2000), rng.standard_normal((5, 24)).astype(np.float32)
    gram = rows.T @ rows / len(rows)
    start = np.where(rng.random(weight.shape) < 0.5, weight, 0)
    found = repaired(weight, start, gram, 0.01)
    assert ((found != 0) <= (start != 0)).all()
    whole = gram + 0.01 * np.diagonal(gram).mean() * np.eye(24)
    for row, mask, mine in zip(weight, start != 0, found, strict=True):
        exact = np.zeros(24)
        exact[mask] = np.linalg.solve(whole[np.ix_(mask, mask)], whole[mask] @ row)
        assert energy((row - mine)[None], whole) < 1.01 * energy((row - exact)[None], whole)
    assert energy(weight - found, gram) < 0.5 * energy(weight - start, gram)


def test_inputs_that_are_zero_or_that_are_few_do_no_harm():
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((6, 16)).astype(np.float32)
    few, dead = rng.standard_normal((3, 16)), rng.standard_normal((50, 16))
    dead[:, 4:9] = 0
    for rows in (few, dead, np.zeros((5, 16))):
        for method in METHODS:
            found = sparsify(weight, Columns(16), TWO_OF_FOUR, method, seen(rows), True)
            assert np.isfinite(found.weight).all() and TWO_OF_FOUR.holds(found.weight)
            assert np.abs(found.weight).max() < 20 * np.abs(weight).max()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.sampled_from([Pattern(2, 4), Pattern(1, 4), Pattern(3, 8)]), st.integers(0, 1 << 30))
def test_an_order_of_channels_is_one_and_keeps_more(channels, pattern, seed):
    rng = np.random.default_rng(seed)
    scores = np.square(rng.standard_normal((7, channels)) * np.exp(rng.standard_normal(channels)))
    order = best_order(scores, pattern)
    if order is not None:
        assert sorted(order.tolist()) == list(range(channels))
        assert kept(scores[:, order], pattern) > kept(scores, pattern)


def test_large_channels_are_spread_over_the_groups():
    scores = np.ones((3, 16), np.float32)
    scores[:, :8] = 100  # the first two groups have all that matters
    order = best_order(scores, TWO_OF_FOUR)
    assert order is not None and kept(scores[:, order], TWO_OF_FOUR) == pytest.approx(3 * 8 * 100)


def test_integers_keep_the_zeros():
    rng = np.random.default_rng(6)
    rows = inputs(rng, 48)
    known, weight = seen(rows), rng.standard_normal((20, 48)).astype(np.float32)
    sparse = sparsify(weight, Columns(48), TWO_OF_FOUR, "sparsegpt", known, True).weight
    assert known.gram is not None
    for codes in (to_nearest(sparse, 0, 127), by_correlation(sparse, 0, 127, known.gram, len(rows))):
        assert codes is not None and TWO_OF_FOUR.holds(codes.codes) and not codes.codes[sparse == 0].any()
    turned = by_correlation(np.ascontiguousarray(sparse.T), 1, 127, known.gram, len(rows))
    assert turned is not None and TWO_OF_FOUR.holds(turned.codes, axis=0)


@pytest.mark.parametrize("block", [0, 16])
def test_gptq_of_sparse_weights_is_better_than_rounding_them_to_nearest(block):
    rng = np.random.default_rng(7)
    rows = inputs(rng, 64)
    known, weight = seen(rows), rng.standard_normal((32, 64)).astype(np.float32)
    assert known.gram is not None
    sparse = sparsify(weight, Columns(64), TWO_OF_FOUR, "sparsegpt", known, True).weight
    grid = Grid(4, block)
    found = gptq(sparse, known.gram[0], grid)
    floats = found.dequantize()
    assert not floats[sparse == 0].any()
    scale = np.abs(sparse).reshape(32, -1, grid.width(64)).max(axis=-1, keepdims=True) / 8
    nearest = np.rint(sparse.reshape(32, -1, grid.width(64)) / scale).clip(-8, 7) * scale
    gram = known.gram[0]
    assert energy(floats - sparse, gram) < energy(nearest.reshape(32, 64) - sparse, gram)
