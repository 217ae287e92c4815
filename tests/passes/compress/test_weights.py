"""Weight-only quantization on arrays: what the algorithms promise of each other, by the exact error of the output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from optc.passes.compress.weights.awq import awq_clip, awq_scale
from optc.passes.compress.weights.codes import Codes, Grid, in_blocks, relative_error
from optc.passes.compress.weights.fit import SEARCHED
from optc.passes.compress.weights.gptq import Correlation, gptq
from optc.passes.compress.weights.hqq import hqq
from optc.passes.compress.weights.kquant import kquant
from optc.passes.compress.weights.methods import METHODS, Inputs, quantize
from optc.passes.compress.weights.packing import pack, unpack
from optc.passes.compress.weights.rtn import rtn

ROWS, COLUMNS = 96, 160


def correlated(columns: int = COLUMNS, samples: int = 2000) -> np.ndarray:
    """Rows of activations with a spectrum that falls, and channels of very different sizes."""
    random = np.random.default_rng(1)
    mixing = random.standard_normal((columns, columns)) * np.exp(-np.arange(columns) / 20)
    x = (random.standard_normal((samples, columns)) @ mixing.T) * np.exp(random.standard_normal(columns))
    return x.astype(np.float32)


WEIGHT = (np.random.default_rng(0).standard_t(5, (ROWS, COLUMNS)) * 0.02).astype(np.float32)
X = correlated()
GRAM = X.T @ X / len(X)
GRIDS = [
    Grid(bits, block, zeros) for bits in (4, 8) for block in (16, 32, 64, 0) for zeros in ("none", "integer", "float")
]


def algorithms(grid: Grid, weight: np.ndarray = WEIGHT) -> dict[str, Callable[[], Codes]]:
    every: dict[str, Callable[[], Codes]] = {
        "rtn": lambda: rtn(weight, grid),
        "rtn-mse": lambda: rtn(weight, grid, shares=SEARCHED),
        "gptq": lambda: gptq(weight, GRAM, grid),
        "gptq-act": lambda: gptq(weight, Correlation.of(GRAM, act_order=True), grid),
        "awq-clip": lambda: awq_clip(weight, GRAM, grid),
    }
    if grid.zeros != "none":
        every |= {"hqq": lambda: hqq(weight, grid), "k-quant": lambda: kquant(weight, grid)}
    return every


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_codes_are_on_their_grid(grid: Grid) -> None:
    for name, run in algorithms(grid).items():
        codes = run()
        width = grid.block or COLUMNS
        assert codes.codes.shape == (ROWS, -(-COLUMNS // width), width), name
        assert codes.codes.dtype == np.uint8 and codes.codes.max() <= grid.top, name
        assert codes.scales.shape == codes.codes.shape[:2] and codes.scales.dtype == np.float32, name
        assert (codes.zeros is None) == (grid.zeros == "none"), name
        if grid.zeros == "integer":
            assert codes.zeros is not None and codes.zeros.dtype == np.uint8 and codes.zeros.max() <= grid.top, name
        assert codes.dequantize().shape == WEIGHT.shape, name
        assert relative_error(WEIGHT, codes, GRAM) < (0.30 if grid.bits == 4 else 0.02), name


def test_symmetric_grids_use_all_codes() -> None:
    codes = rtn(WEIGHT, Grid(4, 32))
    assert codes.codes.min() == 0, "the code -8 is used"
    # The extreme of each block is met exactly, whatever its sign.
    blocks, restored = in_blocks(WEIGHT, 32), in_blocks(codes.dequantize(), 32)
    extreme = np.abs(blocks).argmax(-1)[..., None]
    np.testing.assert_allclose(
        np.take_along_axis(restored, extreme, 2), np.take_along_axis(blocks, extreme, 2), rtol=1e-6
    )
    assert (rtn(WEIGHT, Grid(4, 32, positive=True)).scales > 0).all()


def test_rounding_is_to_nearest() -> None:
    for grid in GRIDS:
        codes = rtn(WEIGHT, grid)
        middle = np.float32(grid.middle) if codes.zeros is None else codes.zeros.astype(np.float32)[..., None]
        low, high = ((limit - middle) * codes.scales[..., None] for limit in (0, grid.top))
        blocks = in_blocks(WEIGHT, grid.block)
        inside = (blocks >= np.minimum(low, high)) & (blocks <= np.maximum(low, high))
        error = np.abs(in_blocks(codes.dequantize(), grid.block) - blocks)
        assert (error <= np.abs(codes.scales[..., None]) * 0.5001)[inside].all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_searching_the_range_beats_taking_all_of_it(grid: Grid) -> None:
    plain, searched = (relative_error(WEIGHT, rtn(WEIGHT, grid, shares=s)) for s in ((1.0,), SEARCHED))
    assert searched < plain if grid.bits == 4 else searched <= plain


@pytest.mark.parametrize("block", [16, 32, 64, 0])
@pytest.mark.parametrize("zeros", ["none", "integer", "float"])
def test_gptq_and_awq_beat_rounding_on_correlated_inputs(block: int, zeros: str) -> None:
    grid = Grid(4, block, zeros)  # type: ignore[arg-type]
    plain = relative_error(WEIGHT, rtn(WEIGHT, grid), GRAM)
    scale = awq_scale([WEIGHT], GRAM, np.abs(X).mean(0), grid)
    scaled = awq_clip(WEIGHT * scale, GRAM / np.outer(scale, scale), grid)
    errors = {
        "gptq": relative_error(WEIGHT, gptq(WEIGHT, GRAM, grid), GRAM),
        "gptq-act": relative_error(WEIGHT, gptq(WEIGHT, Correlation.of(GRAM, act_order=True), grid), GRAM),
        "awq": relative_error(WEIGHT, scaled.dequantize() / scale, GRAM),
        "awq-clip": relative_error(WEIGHT, awq_clip(WEIGHT, GRAM, grid), GRAM),
    }
    assert errors["gptq"] < 0.75 * plain and errors["gptq-act"] < errors["gptq"]
    assert errors["awq"] < 0.9 * plain and errors["awq-clip"] < plain


def test_the_error_is_that_of_the_output() -> None:
    codes = gptq(WEIGHT, GRAM, Grid(4, 32))
    expected, actual = X @ WEIGHT.T, X @ codes.dequantize().T
    measured = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert relative_error(WEIGHT, codes, GRAM) == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize("zeros", ["integer", "float"])
def test_methods_without_data_beat_rounding(zeros: str) -> None:
    grid = Grid(4, 64, zeros)  # type: ignore[arg-type]
    plain = rtn(WEIGHT, grid)
    assert relative_error(WEIGHT, kquant(WEIGHT, grid)) < relative_error(WEIGHT, plain)
    # HQQ looks at the many small errors, not at the mean of their squares.
    fine, coarse = (np.abs(WEIGHT - codes.dequantize()) ** 0.7 for codes in (hqq(WEIGHT, grid), plain))
    assert fine.mean() < coarse.mean()
    weighted = kquant(WEIGHT, grid, np.diagonal(GRAM))
    assert relative_error(WEIGHT, weighted, GRAM) < relative_error(WEIGHT, kquant(WEIGHT, grid), GRAM)


def test_gptq_is_rounding_where_inputs_are_not_correlated() -> None:
    grid = Grid(4, 32)
    alone = gptq(WEIGHT, np.eye(COLUMNS, dtype=np.float32), grid, shares=(1.0,))
    np.testing.assert_array_equal(alone.codes, rtn(WEIGHT, grid).codes)


def test_gptq_takes_singular_and_dead_inputs() -> None:
    x = X[:50].copy()  # fewer rows than columns
    x[:, 7] = 0
    gram = x.T @ x
    codes = gptq(WEIGHT, gram, Grid(4, 32))
    assert relative_error(WEIGHT, codes, gram) < relative_error(WEIGHT, rtn(WEIGHT, Grid(4, 32)), gram)
    off = np.abs(WEIGHT - codes.dequantize())[:, 7]
    assert (off <= np.abs(codes.scales[:, 0]) * 0.5001 + 1e-6).mean() > 0.9, "a dead column is rounded to nearest"
    nothing = gptq(WEIGHT, np.zeros_like(gram), Grid(4, 32))
    assert relative_error(WEIGHT, nothing) < 0.2


@pytest.mark.parametrize("columns", [100, 48, 31])
def test_blocks_need_not_divide_the_columns(columns: int) -> None:
    weight, gram = WEIGHT[:, :columns], GRAM[:columns, :columns]
    for grid in (Grid(4, 32), Grid(4, 32, "integer"), Grid(8, 64, "float")):
        every = [rtn(weight, grid), gptq(weight, gram, grid), awq_clip(weight, gram, grid)]
        every += [] if grid.zeros == "none" else [hqq(weight, grid), kquant(weight, grid)]
        for codes in every:
            assert codes.dequantize().shape == weight.shape
            assert relative_error(weight, codes, gram) < 0.2


@pytest.mark.parametrize("grid", GRIDS[:12], ids=str)
def test_zeros_and_constants_survive(grid: Grid) -> None:
    weight = WEIGHT.copy()
    weight[:4] = 0
    weight[4] = 0.5
    for name, run in algorithms(grid, weight).items():
        restored = run().dequantize()
        assert not restored[:4].any() and np.isfinite(restored).all(), name
        if not name.startswith("gptq"):  # which moves weights on purpose
            np.testing.assert_allclose(restored[4], 0.5, rtol=0.1, err_msg=name)


def test_rows_do_not_depend_on_each_other() -> None:
    for grid in (Grid(4, 32), Grid(4, 0, "integer")):
        whole = gptq(WEIGHT, GRAM, grid)
        parts = [gptq(part, GRAM, grid).dequantize() for part in np.array_split(WEIGHT, 3)]
        # Sums of another order move a few weights across the middle between two codes.
        assert (np.abs(whole.dequantize() - np.concatenate(parts)) < 1e-6).mean() > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_pieces_make_the_whole(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, inputs = Grid(4, 32, "integer"), Inputs(GRAM)
    monkeypatch.setitem(METHODS, method, dataclasses.replace(METHODS[method], piece=20 * COLUMNS))
    codes = quantize(WEIGHT, method, grid, inputs)
    parts = [METHODS[method].run(WEIGHT[start : start + 20], grid, inputs) for start in range(0, ROWS, 20)]
    for index, array in enumerate(codes.arrays):
        assert array is not None
        np.testing.assert_array_equal(array, np.concatenate([part.arrays[index] for part in parts]))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_goes_both_ways(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 5, 13)).astype(np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, 5, -(-13 * bits // 8))
    np.testing.assert_array_equal(unpack(packed, bits, 13), codes)
    if bits == 4:
        assert packed[0, 0, 0] == codes[0, 0, 0] | codes[0, 0, 1] << 4, "the first code is in the low half"


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in (
        lambda: Grid(1),
        lambda: Grid(9),
        lambda: Grid(4, -1),
        lambda: hqq(WEIGHT, Grid()),
        lambda: kquant(WEIGHT, Grid()),
    ):
        with pytest.raises(ValueError):
            wrong()
