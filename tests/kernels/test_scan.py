"""Running sums against NumPy, and as compiled."""

from __future__ import annotations

import numpy as np
import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from optc.kernels.base import Specialization  # noqa: E402
from optc.kernels.scan import SCAN, reference  # noqa: E402

from .harness import ARCHITECTURES, assert_close, build, drawn, interpret, unwritten  # noqa: E402

# args: x, out, COLUMNS


@triton.jit
def load(args, row, j, mask):
    return tl.load(args[0] + row * args[2] + j, mask=mask, other=5)


@triton.jit
def store(args, row, j, value, mask):
    tl.store(args[1] + row * args[2] + j, value, mask=mask)


def spec(dtype, sizes, block, rows_per, exclusive, reverse):
    constants = {"BLOCK": block, "ROWS_PER": rows_per, "EXCLUSIVE": exclusive, "REVERSE": reverse}
    return Specialization(SCAN, (f"*{dtype}", f"*{dtype}", "i32"), sizes, {"LOAD": load, "STORE": store}, constants)


@pytest.mark.parametrize("dtype", ["fp32", "i32", "i64"])
@pytest.mark.parametrize(("exclusive", "reverse"), [(False, False), (True, False), (False, True), (True, True)])
def test_running_sums(dtype, exclusive, reverse):
    for rows, columns, block, rows_per in ((1, 1, 16, 1), (3, 16, 16, 2), (5, 37, 16, 4), (2, 100, 32, 1)):
        drawn_ints = np.random.default_rng(0).integers(-9, 9, (rows, columns))
        x = drawn((rows, columns), dtype) if dtype == "fp32" else drawn_ints.astype({"i32": "i4", "i64": "i8"}[dtype])
        out = unwritten(x.shape, dtype)
        sizes = {"ROWS": rows, "COLUMNS": columns}
        interpret(spec(dtype, dict.fromkeys(sizes), block, rows_per, exclusive, reverse), x, out, columns, **sizes)
        wanted = reference(x, exclusive, reverse)
        if dtype == "fp32":
            assert_close(out, wanted, dtype, 4)
        else:
            np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiled(arch):
    for dtype, exclusive in (("fp32", False), ("i64", True)):
        build(spec(dtype, {"ROWS": None, "COLUMNS": None}, 1024, 1, exclusive, False), arch)
