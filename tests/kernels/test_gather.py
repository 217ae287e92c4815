"""Rows of a table against NumPy, and as compiled."""

from __future__ import annotations

import numpy as np
import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from optc.kernels.base import Specialization  # noqa: E402
from optc.kernels.gather import GATHER, reference  # noqa: E402

from .harness import ARCHITECTURES, DTYPES, assert_close, build, drawn, interpret, unwritten  # noqa: E402

# args: table, index, out, positions, COLUMNS


@triton.jit
def load_index(args, row, mask):
    return tl.load(args[1] + row, mask=mask, other=0)


@triton.jit
def load(args, index, j, mask):
    return tl.load(args[0] + index * args[4] + j, mask=mask, other=0)


@triton.jit
def store(args, row, j, value, mask):
    tl.store(args[2] + row * args[4] + j, value.to(args[2].dtype.element_ty), mask=mask)


@triton.jit
def store_with_positions(args, row, j, value, mask):
    position = tl.load(args[3] + row * args[4] + j, mask=mask, other=0.0).to(tl.float32)
    tl.store(args[2] + row * args[4] + j, (value + position).to(args[2].dtype.element_ty), mask=mask)


def run(table, index, out, dtype, kind="i64", static=True, positions=None, block=32, rows=1):
    sizes = {"ROWS": len(index), "COLUMNS": table.shape[1], "TABLE": len(table)}
    hooks = {"LOAD_INDEX": load_index, "LOAD": load, "STORE": store if positions is None else store_with_positions}
    kinds = (f"*{dtype}", f"*{kind}", f"*{dtype}", f"*{dtype}", "i32")
    known = sizes if static else dict.fromkeys(sizes)
    spec = Specialization(GATHER, kinds, known, hooks, {"BLOCK": block, "ROWS_PER": rows})
    data = (table, index, out, table if positions is None else positions, table.shape[1])
    interpret(spec, *data, **({} if static else sizes))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "i64", "i1"])
@pytest.mark.parametrize("kind", ["i32", "i64"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "symbolic"])
def test_rows(dtype, kind, static):
    for rows, columns, table in ((1, 1, 1), (7, 45, 11), (6, 64, 300), (0, 4, 3), (4, 0, 3)):
        for block, per in ((16, 1), (64, 4)):
            data = drawn((table, columns), dtype)
            index = np.random.default_rng(1).integers(-table, table, rows).astype(DTYPES[kind])
            out = unwritten((rows, columns), dtype)
            run(data, index, out, dtype, kind, static, block=block, rows=per)
            assert np.array_equal(out, reference(data, index))


def test_indices_out_of_range_read_nothing():
    table, out = drawn((5, 8), "fp32"), unwritten((6, 8), "fp32")
    index = np.array([5, -6, 2**40, -(2**40), 4, -5])
    run(table, index, out, "fp32")
    assert not out[:4].any()
    assert np.array_equal(out[4:], table[[4, 0]])


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_an_epilogue_that_adds_positions(dtype):
    table, positions, out = drawn((30, 20), dtype), drawn((9, 20), dtype, 1), unwritten((9, 20), dtype)
    index = np.arange(9)[::-1] * 3
    run(table, index.copy(), out, dtype, positions=positions, rows=2)
    assert_close(out, reference(table, index).astype(np.float32) + positions.astype(np.float32), dtype)


@triton.jit
def load_768(args, index, j, mask):
    return tl.load(args[0] + index * 768 + j, mask=mask, other=0)


@triton.jit
def store_768(args, row, j, value, mask):
    tl.store(args[2] + row * 768 + j, value, mask=mask)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiled(arch):
    hooks = {"LOAD_INDEX": load_index, "LOAD": load_768, "STORE": store_768}
    sizes = {"ROWS": None, "COLUMNS": 768, "TABLE": 30522}
    made = build(Specialization(GATHER, ("*fp16", "*i64", "*fp16"), sizes, hooks, {"BLOCK": 1024}), arch)
    assert made.resources.instructions["store"] == 1, "16 bytes at a time"
