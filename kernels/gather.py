"""Rows of a table, as in an embedding."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from optc.kernels.base import Kernel


@triton.jit
def gather(
    args,
    ROWS,
    COLUMNS,
    TABLE,
    LOAD_INDEX: tl.constexpr,
    LOAD: tl.constexpr,
    STORE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS_PER: tl.constexpr,
):
    """``out[row, j] = table[index[row], j]`` for a table of TABLE rows; a tile is ROWS_PER rows by BLOCK columns.

    LOAD_INDEX(args, row, mask) returns integers of any width, (ROWS_PER, 1). LOAD(args, index, j, mask) reads the
    table at int32 indices and may return any type, which STORE(args, row, j, value, mask) gets. Indices from -TABLE to
    -1 count from the end. Others out of range are errors in ONNX; here nothing is read for them, and what LOAD returns
    where the mask is not set is stored.
    """
    tiles = tl.cdiv(COLUMNS, BLOCK)
    row = (tl.program_id(0) // tiles * ROWS_PER + tl.arange(0, ROWS_PER))[:, None]
    j = (tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK))[None, :]
    index, there = checked(LOAD_INDEX(args, row, row < ROWS), TABLE)
    mask = (row < ROWS) & (j < COLUMNS)
    STORE(args, row, j, LOAD(args, index, j, mask & there), mask)


@triton.jit
def checked(index, EXTENT):
    """An index as ONNX counts it -> its int32 place on an axis of EXTENT elements, and whether it is on the axis."""
    place = tl.where(index < 0, index + EXTENT, index)
    there = (place >= 0) & (place < EXTENT)
    return tl.where(there, place, 0).to(tl.int32), there


def reference(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(TABLE, COLUMNS), (ROWS,) -> (ROWS, COLUMNS), of the table's type."""
    return np.take(table, index, axis=0)


GATHER = Kernel(
    name="gather",
    function=gather,
    grid=("ceildiv(ROWS, ROWS_PER) * ceildiv(COLUMNS, BLOCK)",),
    sizes=("ROWS", "COLUMNS", "TABLE"),
    hooks={"LOAD_INDEX": ("row",), "LOAD": ("index", "j"), "STORE": ("row", "j")},
    constants={"BLOCK": None, "ROWS_PER": 1},
    reference=reference,
)
