"""The interpreter: right where Triton's own is not, and gone without a trace."""

from __future__ import annotations

import numpy as np
import pytest

triton = pytest.importorskip("triton")
import ml_dtypes  # noqa: E402
import triton.language as tl  # noqa: E402

from optc.kernels.base import Kernel, Specialization  # noqa: E402
from optc.kernels.compile import compile_kernel  # noqa: E402
from optc.kernels.pointwise import POINTWISE  # noqa: E402

from .harness import drawn, interpret, unwritten  # noqa: E402


@triton.jit
def square(x):
    return x * x


@triton.jit
def squared(args, i, mask):
    x = tl.load(args[0] + i, mask=mask, other=0.0)
    tl.store(args[1] + i, square(x), mask=mask)


@triton.jit
def to_bfloat16(args, i, mask):
    tl.store(args[1] + i, tl.load(args[0] + i, mask=mask).to(tl.bfloat16), mask=mask)


@triton.jit
def rows(args, COLUMNS, BODY: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    x = tl.load(args[0] + row * COLUMNS + j, mask=j < COLUMNS, other=-float("inf")).to(tl.float32)
    top = tl.max(x, axis=0)
    e = tl.exp(x - top)
    total = tl.sum(e, axis=0)
    if COLUMNS > 3:
        total = total * BODY(1.0)
    tl.store(args[1] + row * COLUMNS + j, e / total, mask=j < COLUMNS)
    tl.store(args[2] + row, tl.sum(tl.where(j < COLUMNS, x, 0.0), axis=0) / tl.cdiv(COLUMNS, 1))


@triton.jit
def same(x):
    return x


ROWS = Kernel("rows", rows, ("4",), ("COLUMNS",), {"BODY": ("x",)}, {"BLOCK": None})


def spec(kinds, body, count, block=64) -> Specialization:
    return Specialization(POINTWISE, kinds, {"COUNT": count}, {"BODY": body}, {"BLOCK": block})


@pytest.mark.parametrize("count", [1, 64, 129])
def test_programs_cover_the_grid_and_nothing_more(count):
    x, y = drawn((count + 5,), "fp32"), unwritten((count + 5,), "fp32")
    interpret(spec(("*fp32", "*fp32"), squared, count), x, y)
    np.testing.assert_array_equal(y[:count], x[:count] ** 2)
    assert np.isnan(y[count:]).all()


def test_arithmetic_in_bfloat16_is_arithmetic():
    x, y = drawn((100,), "bf16"), unwritten((100,), "bf16")
    interpret(spec(("*bf16", "*bf16"), squared, 100), x, y)
    np.testing.assert_array_equal(y.astype(np.float32), (x * x).astype(np.float32))


def test_rounding_to_bfloat16_is_to_the_nearest_even():
    x = np.concatenate([drawn((500,), "fp32"), np.float32([1.99999, 1.00390625, 1.01171875, 0, -0.0, np.inf, 3e38])])
    y = unwritten(x.shape, "bf16")
    interpret(spec(("*fp32", "*bf16"), to_bfloat16, x.size), x, y)
    np.testing.assert_array_equal(y.view(np.uint16), x.astype(ml_dtypes.bfloat16).view(np.uint16))


@pytest.mark.parametrize("static", [True, False])
def test_library_functions_and_branches(static):
    x, y, mean = drawn((4, 13), "fp32"), unwritten((4, 13), "fp32"), unwritten((4,), "fp32")
    made = Specialization(ROWS, ("*fp32",) * 3, {"COLUMNS": 13 if static else None}, {"BODY": same}, {"BLOCK": 16})
    interpret(made, x, y, mean, **({} if static else {"COLUMNS": 13}))
    e = np.exp(x - x.max(axis=1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(axis=1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(mean, x.mean(axis=1), rtol=1e-5, atol=1e-6)


def test_triton_is_as_it_was_afterwards():
    before = {name: id(value) for name, value in vars(tl).items()}
    made = spec(("*fp32", "*fp32"), squared, 10)
    first = compile_kernel(made, 80)
    x, y = drawn((10,), "fp32"), unwritten((10,), "fp32")
    interpret(made, x, y)
    assert {name: id(value) for name, value in vars(tl).items()} == before
    assert compile_kernel(made, 80) == first


def test_an_error_leaves_triton_as_it_was():
    before = {name: id(value) for name, value in vars(tl).items()}
    with pytest.raises(KeyError):
        interpret(spec(("*fp32", "*fp32"), squared, None), *(drawn((4,), "fp32"),) * 2)
    assert {name: id(value) for name, value in vars(tl).items()} == before
