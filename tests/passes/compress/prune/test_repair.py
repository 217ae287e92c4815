"""What removing units costs is predicted, and fitting is least squares."""

from __future__ import annotations

import numpy as np
import pytest

from optc.ir.facts import Facts
from optc.passes.compress.prune.axes import structure_of
from optc.passes.compress.prune.importance import COLUMNS, Reader, Second, by_damage, by_magnitude, readable
from optc.passes.compress.prune.repair import fitted
from tests.passes.compress.prune.test_axes import weights
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(0)
#: Numbers that have much in common, one of which is the sum of two others.
ROWS = RANDOM.standard_normal((2000, 5)) @ RANDOM.standard_normal((5, 12)) + 0.3 * RANDOM.standard_normal((2000, 12))
ROWS[:, 7] = ROWS[:, 2] + ROWS[:, 3]
KNOWN = Second(ROWS.T @ ROWS / len(ROWS), len(ROWS))
TEXT = """g (float[n, 6] x) => (float[n, 5] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"""


def ranked():
    model = parse(TEXT, weights(w=(6, 12), v=(12, 5)))
    structure = structure_of(model.graph, Facts(model))
    (group,) = structure.groups
    reader = readable(group.readers[0], structure.facts, 16)
    assert isinstance(reader, Reader) and reader.view is COLUMNS
    return structure, group, reader, by_damage(structure, group, [reader], {0: KNOWN})


def loss(weight: np.ndarray, keep: np.ndarray, matrix: np.ndarray) -> float:
    wanted = ROWS @ weight
    return float(np.linalg.norm(ROWS[:, keep] @ matrix - wanted) / np.linalg.norm(wanted))


def test_a_fit_is_the_least_squares_solution() -> None:
    weight = RANDOM.standard_normal((12, 5))
    keep = np.ones(12, bool)
    keep[[1, 4, 9]] = False
    best = np.linalg.lstsq(ROWS[:, keep], ROWS @ weight, rcond=None)[0]
    assert loss(weight, keep, fitted(weight, KNOWN, keep)) == pytest.approx(loss(weight, keep, best), rel=0.02)
    assert loss(weight, keep, fitted(weight, KNOWN, keep)) < 0.8 * loss(weight, keep, weight[keep])


def test_what_is_the_sum_of_others_goes_for_nothing() -> None:
    _, _, _, ranking = ranked()
    assert ranking.order[0] in (2, 3, 7)
    assert ranking.errors is not None and ranking.errors[0] == 0 and ranking.errors[1] < 0.02


def test_the_predicted_error_is_what_the_fitted_layer_has() -> None:
    structure, _, reader, ranking = ranked()
    weight = reader.matrix(structure.facts)
    assert ranking.errors is not None
    for count in (1, 3, 6, 9):
        keep = np.ones(12, bool)
        keep[ranking.order[:count]] = False
        actual = loss(weight, keep, fitted(weight, KNOWN, keep))
        assert ranking.errors[count] == pytest.approx(actual, rel=0.05, abs=0.015)


def test_units_in_order_cost_less_than_units_at_random() -> None:
    structure, group, reader, ranking = ranked()
    weight = reader.matrix(structure.facts)
    chosen, drawn = np.ones((2, 12), bool)
    chosen[ranking.order[:5]] = False
    losses = []
    for seed in range(20):
        drawn = np.ones(12, bool)
        drawn[np.random.default_rng(seed).choice(12, 5, replace=False)] = False
        losses.append(loss(weight, drawn, fitted(weight, KNOWN, drawn)))
    assert loss(weight, chosen, fitted(weight, KNOWN, chosen)) <= min(losses) * 1.05
    guess = by_magnitude(structure, group, "a guess")
    assert guess.errors is None and sorted(guess.order) == list(range(12))


def test_columns_of_convolutions_lie_by_channel() -> None:
    text = "g (float[n, 3, 6, 6] x) => (float[n, 4, 4, 4] y) { a = Conv(x, w) y = Conv<kernel_shape = [3, 3]>(a, v) }"
    model = parse(text, weights(w=(8, 3, 1, 1), v=(4, 8, 3, 3)))
    structure = structure_of(model.graph, Facts(model))
    reader = readable(structure.groups[0].readers[0], structure.facts, 16)
    assert isinstance(reader, Reader) and reader.taps == 9
    array = structure.facts.const(reader.weight.value)
    matrix = reader.matrix(structure.facts)
    assert matrix.shape == (72, 4)
    np.testing.assert_array_equal(reader.stored(matrix, array), array)
    keep = np.arange(8) % 2 == 0
    np.testing.assert_array_equal(reader.stored(matrix[reader.columns(keep)], array), array[:, keep])
