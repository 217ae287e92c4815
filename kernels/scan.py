"""Running sums of rows; what rows and columns are is said in :mod:`optc.kernels.rows`."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from optc.kernels.base import Kernel


@triton.jit
def rows_scan(
    args,
    ROWS,
    COLUMNS,
    LOAD: tl.constexpr,
    STORE: tl.constexpr,
    BLOCK: tl.constexpr,
    EXCLUSIVE: tl.constexpr,
    REVERSE: tl.constexpr,
    ROWS_PER: tl.constexpr,
):
    """``out[row, j] = sum over i <= j of x[row, i]``, BLOCK columns at a time.

    EXCLUSIVE leaves the element itself out, REVERSE adds from the end. LOAD(args, row, j, mask) returns
    (ROWS_PER, BLOCK) of float32, int32 or int64; STORE(args, row, j, value, mask) gets the same type. Elements are
    loaded once, but EXCLUSIVE never loads the last one.
    """
    row = (tl.program_id(0) * ROWS_PER + tl.arange(0, ROWS_PER))[:, None]
    lane = tl.arange(0, BLOCK)[None, :]
    # The first elements are added to nothing, so that the sum so far has the type of what is loaded.
    so_far = tl.sum(_part(args, ROWS, COLUMNS, row, lane + COLUMNS, LOAD, EXCLUSIVE, REVERSE), axis=1, keep_dims=True)
    for start in range(0, COLUMNS, BLOCK):
        j = start + lane
        x = _part(args, ROWS, COLUMNS, row, j, LOAD, EXCLUSIVE, REVERSE)
        sums = tl.cumsum(x, axis=1) + so_far
        STORE(args, row, COLUMNS - 1 - j if REVERSE else j, sums, (row < ROWS) & (j < COLUMNS))
        so_far += tl.sum(x, axis=1, keep_dims=True)


@triton.jit
def _part(args, ROWS, COLUMNS, row, j, LOAD: tl.constexpr, EXCLUSIVE: tl.constexpr, REVERSE: tl.constexpr):
    """What is added at some columns, counted in the order of the sum; 0 where there is nothing."""
    mask = (row < ROWS) & (j < COLUMNS)
    if EXCLUSIVE:
        j = j - 1
        mask = mask & (j >= 0)
    x = LOAD(args, row, COLUMNS - 1 - j if REVERSE else j, mask)
    return tl.where(mask, x, tl.zeros_like(x))


def reference(x: np.ndarray, exclusive: bool = False, reverse: bool = False) -> np.ndarray:
    """(ROWS, COLUMNS) -> running sums of the same type."""
    x = x[:, ::-1] if reverse else x
    sums = np.cumsum(x, axis=1, dtype=x.dtype)
    if exclusive:
        sums = np.concatenate([np.zeros_like(sums[:, :1]), sums[:, :-1]], axis=1)
    return sums[:, ::-1] if reverse else sums


SCAN = Kernel(
    name="rows_scan",
    function=rows_scan,
    grid=("ceildiv(ROWS, ROWS_PER)",),
    sizes=("ROWS", "COLUMNS"),
    hooks={"LOAD": ("row", "j"), "STORE": ("row", "j")},
    constants={"BLOCK": None, "EXCLUSIVE": False, "REVERSE": False, "ROWS_PER": 1},
    reference=reference,
)
