"""Low rank on arrays: errors are foretold exactly, nothing of the same rank is better, and no Gram matrix does harm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.passes.compress.lowrank.patches import Kernel
from optc.passes.compress.lowrank.spectrum import evened, least_error, output_error, spectrum

SIZES = st.integers(2, 40)


def inputs(rng: np.random.Generator, groups: int, rows: int, width: int, rank: int) -> np.ndarray:
    """Correlated activations of a rank, with channels of very different energy and a mean."""
    mixed = rng.standard_normal((groups, rows, rank)) @ rng.standard_normal((groups, rank, width))
    return (mixed + 0.5) * np.exp(rng.standard_normal(width)) if rank == width else mixed


def gram_of(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, 1, 2) @ x / x.shape[1]


def measured(x: np.ndarray, weight: np.ndarray, other: np.ndarray) -> float:
    """Relative L2 error of the output, from the outputs themselves."""
    expected, actual = (x @ np.swapaxes(one.astype(np.float64), 1, 2) for one in (weight, other))
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(1, 3), st.floats(0.2, 1), st.sampled_from([0.0, 1e-3, 0.3]), st.integers(0, 1000))
def test_errors_are_foretold(count: int, width: int, groups: int, share: float, damping: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((groups, count, width)).astype(np.float32)
    x = inputs(rng, groups, 64, width, max(1, round(share * width)))
    known, plain = spectrum(weight, gram_of(x), damping), spectrum(weight)
    errors = [known.error(rank) for rank in range(known.full + 1)]
    assert errors[0] == pytest.approx(1) and errors[-1] == 0 and np.all(np.diff(errors) <= 1e-12)
    for rank in {1, known.full // 3, known.full // 2, known.full - 1} - {0}:
        up, down = known.factors(weight, rank)
        assert up.shape == (groups, count, rank) and down.shape == (groups, rank, width)
        assert np.isfinite(up).all() and np.isfinite(down).all()
        error = measured(x, weight, up.astype(np.float64) @ down)
        assert error == pytest.approx(known.error(rank), rel=0.01, abs=1e-5)
        assert output_error(weight, up.astype(np.float64) @ down, gram_of(x)) == pytest.approx(
            error, rel=0.01, abs=1e-5
        )
        up, down = plain.factors(weight, rank)
        assert known.error(rank) <= measured(x, weight, up.astype(np.float64) @ down) + 1e-6
        assert known.rank(known.error(rank)) <= rank
        assert known.error(known.rank(0.1)) <= 0.1 * (1 + 1e-6)


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES, st.integers(0, 1000))
def test_without_data_it_is_the_plain_svd(count: int, width: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((1, count, width))
    plain = spectrum(weight)
    values = np.linalg.svd(weight[0], compute_uv=False)
    assert np.allclose(np.sqrt(plain.energy[0]), values, atol=1e-6 * values[0])
    rank = max(1, plain.full // 2)
    up, down = plain.factors(weight, rank)
    assert measured(np.eye(width)[None], weight, up.astype(np.float64) @ down) == pytest.approx(
        plain.error(rank), rel=1e-3, abs=1e-5
    )


def test_correlated_inputs_make_a_large_difference() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1, 64, 48))
    x = inputs(rng, 1, 500, 48, 8)
    up, down = spectrum(weight).factors(weight, 8)
    assert spectrum(weight, gram_of(x)).error(8) < 1e-6 < 0.5 < measured(x, weight, up.astype(np.float64) @ down)


def test_inputs_of_zeros_and_weights_of_zeros_do_no_harm() -> None:
    weight = np.random.default_rng(0).standard_normal((2, 8, 6))
    for one, gram in ((weight, np.zeros((2, 6, 6))), (0 * weight, np.eye(6)[None].repeat(2, 0))):
        known = spectrum(one, gram, 0.1)
        up, down = known.factors(one, 3)
        assert known.error(3) == 0 and np.isfinite(up).all() and np.isfinite(down).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 60), st.integers(10, 40), st.integers(1, 8), st.integers(0, 1000))
def test_the_bound_is_one(count: int, width: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((1, count, width))
    gram = gram_of(inputs(rng, 1, 80, width, width))
    bound, error = least_error(weight, rank, 3 * rank, gram), spectrum(weight, gram).error(rank)
    assert 0 <= bound <= error + 1e-9
    assert least_error(weight, rank, count, gram) == pytest.approx(error, rel=1e-6, abs=1e-7)


def test_the_bound_is_of_use() -> None:
    weight = np.random.default_rng(0).standard_normal((1, 400, 300))
    assert 0.6 < least_error(weight, 50, 150) / spectrum(weight).error(50) <= 1


def test_layers_of_one_input_share_a_factor() -> None:
    """With the same number of components in all, one factor for all loses less where weights have much in common."""
    rng = np.random.default_rng(1)
    common = rng.standard_normal((1, 12, 40))
    weights = [
        scale * (rng.standard_normal((1, n, 12)) @ common + 0.1 * rng.standard_normal((1, n, 40)))
        for n, scale in ((24, 1.0), (30, 50.0), (16, 0.02))
    ]
    gram = gram_of(inputs(rng, 1, 200, 40, 40))
    stack, norms = evened(weights, gram)
    joint = spectrum(stack, gram)
    up, down = joint.factors(stack, 12)
    ups = np.split(up, np.cumsum([24, 30]), axis=1)
    errors = [
        output_error(one, norm * part.astype(np.float64) @ down, gram)
        for one, norm, part in zip(weights, norms, ups, strict=True)
    ]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(joint.error(12), rel=0.01)
    assert max(errors) < 2 * min(errors), "none is left out because its numbers are small"
    alone = [spectrum(one, gram).error(4) for one in weights]
    assert max(errors) < 0.5 * min(alone)


# -- kernels of convolutions ----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 2), st.integers(2, 10), st.integers(2, 8), st.integers(2, 6), st.floats(0.3, 1), st.booleans(),
    st.sampled_from([0.0, 1e-2]), st.integers(0, 1000),
)  # fmt: skip
def test_errors_of_chains_are_foretold(
    groups: int, count: int, channels: int, taps: int, share: float, tucker: bool, damping: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((groups, count, channels, taps)).astype(np.float32)
    width = channels * taps
    x = inputs(rng, groups, 120, width, max(1, round(share * width)))
    kernel = Kernel(weight, gram_of(x), damping)
    mixed, outputs = max(1, channels // 2), max(1, count // 2) if tucker else None
    chain = kernel.chain(mixed, outputs)
    flat = weight.reshape(groups, count, -1)
    error = measured(x, flat, chain.kernel().reshape(flat.shape))
    assert error == pytest.approx(chain.error, rel=0.01, abs=1e-5)
    if outputs is not None:
        assert chain.error >= kernel.outputs.error(outputs) - 1e-6


@pytest.mark.parametrize("data", [True, False])
def test_chains_of_full_rank_are_exact(data: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2, 9, 6, 4))
    gram = gram_of(inputs(rng, 2, 300, 24, 10)) if data else None
    for chain in (Kernel(weight, gram, 1e-3).chain(6), Kernel(weight, gram, 1e-3).chain(6, 9)):
        assert np.allclose(chain.kernel(), weight, atol=1e-9) and chain.error < 1e-6


def test_the_core_is_fitted_to_what_it_sees() -> None:
    """Taps that the mixed channels predict make good for what was mixed away."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1, 16, 12, 9))
    x = inputs(rng, 1, 2000, 108, 20)
    known, blind = Kernel(weight, gram_of(x), 1e-4).chain(6), Kernel(weight).chain(6)
    flat = weight.reshape(1, 16, -1)
    assert known.error < 0.2 * measured(x, flat, blind.kernel().reshape(flat.shape))


def test_chains_lose_less_the_more_they_keep() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1, 12, 10, 9))
    kernel = Kernel(weight, gram_of(inputs(rng, 1, 400, 90, 90)), 1e-3)
    errors = [kernel.chain(rank).error for rank in range(1, 11)]
    assert np.all(np.diff(errors) < 1e-3) and errors[-1] < 1e-6
