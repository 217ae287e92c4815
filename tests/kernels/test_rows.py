"""Normalizations, softmax and reductions of rows against NumPy, and as compiled."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from optc.kernels.base import Kernel, Specialization  # noqa: E402
from optc.kernels.rows import (  # noqa: E402
    ARG,
    NORM,
    NORM_LOOP,
    REDUCE,
    SOFTMAX,
    SOFTMAX_LOOP,
    reference_arg,
    reference_norm,
    reference_reduce,
    reference_softmax,
)

from .harness import ARCHITECTURES, DTYPES, assert_close, build, drawn, interpret, unwritten  # noqa: E402

# args: in, out, residual, second, gamma, beta, ROWS, COLUMNS


@triton.jit
def load(args, row, j, mask):
    return tl.load(args[0] + row * args[7] + j, mask=mask, other=7.0)


@triton.jit
def load_columns(args, row, j, mask):
    return tl.load(args[0] + j * args[6] + row, mask=mask, other=7.0)


@triton.jit
def load_sum(args, row, j, mask):
    """The sum of two tensors, which is an output of its own."""
    place = row * args[7] + j
    x = tl.load(args[0] + place, mask=mask, other=7.0).to(tl.float32) + tl.load(args[2] + place, mask=mask, other=7.0)
    tl.store(args[3] + place, x.to(args[3].dtype.element_ty), mask=mask)
    return x


@triton.jit
def store(args, row, j, y, mask):
    tl.store(args[1] + row * args[7] + j, y.to(args[1].dtype.element_ty), mask=mask)


@triton.jit
def store_affine(args, row, j, y, mask):
    gamma = tl.load(args[4] + j, mask=j < args[7], other=0.0)
    beta = tl.load(args[5] + j, mask=j < args[7], other=0.0)
    tl.store(args[1] + row * args[7] + j, (y * gamma + beta).to(args[1].dtype.element_ty), mask=mask)


@triton.jit
def store_value(args, row, value, mask):
    tl.store(args[1] + row, value.to(args[1].dtype.element_ty), mask=mask)


def run(
    kernel: Kernel, x: np.ndarray, out: np.ndarray, dtype: str, to: str, extra=None, static=True, load=load, **constants
):
    """One launch; ``extra``: residual, second, gamma, beta."""
    rows, columns = x.shape if load is not load_columns else x.shape[::-1]
    sizes = {"ROWS": rows, "COLUMNS": columns}
    hooks = {"LOAD": load, "STORE": store_value if "j" not in kernel.hooks["STORE"] else store}
    if extra is not None and extra[2] is not None:
        hooks["STORE"] = store_affine
    spec = Specialization(
        kernel,
        (f"*{dtype}", f"*{to}", f"*{dtype}", f"*{to}", "*fp32", "*fp32", "i32", "i32"),
        sizes if static else dict.fromkeys(sizes),
        hooks,
        constants,
    )
    given = [x if a is None else a for a in (extra or (None,) * 4)]
    with np.errstate(invalid="ignore", divide="ignore"):
        interpret(spec, x, out, *given, rows, columns, **({} if static else sizes))


SHAPES = [(1, 1), (5, 37), (3, 64), (7, 131), (0, 8)]
#: Element types, and whether the sizes are known when the kernel is compiled.
TYPES = pytest.mark.parametrize(("dtype", "static"), [("fp32", True), ("fp32", False), ("fp16", True), ("bf16", False)])
#: How wide, how many rows a program has, whether the rows are looped over.
TILES = [(256, 1, False), (256, 4, False), (32, 1, True), (16, 2, True)]


@TYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("block", "rows", "loop"), TILES)
def test_norm(dtype, shape, block, rows, loop, static):
    for center in (True, False):
        x, out = drawn(shape, dtype) + DTYPES[dtype](3), unwritten(shape, dtype)
        kernel = NORM_LOOP if loop else NORM
        run(kernel, x, out, dtype, dtype, static=static, BLOCK=block, EPSILON=1e-5, CENTER=center, ROWS_PER=rows)
        assert_close(out, reference_norm(x, 1e-5, center), dtype, 3)


def test_norm_of_a_row_far_from_zero():
    x, out = drawn((2, 1000), "fp32") + np.float32(1e4), unwritten((2, 1000), "fp32")
    for kernel, block in ((NORM, 1024), (NORM_LOOP, 128)):
        run(kernel, x, out, "fp32", "fp32", BLOCK=block, EPSILON=1e-5)
        assert_close(out, reference_norm(x.astype(np.float64) - 1e4, 1e-5), "fp32", 500)  # E[x^2] - E[x]^2 is off by 1


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_norm_of_a_sum_that_is_an_output_too(dtype):
    shape = (5, 77)
    x, residual = drawn(shape, dtype), drawn(shape, dtype, 1)
    gamma, beta = drawn(shape[1:], "fp32", 2), drawn(shape[1:], "fp32", 3)
    out, second = unwritten(shape, dtype), unwritten(shape, dtype)
    run(
        NORM,
        x,
        out,
        dtype,
        dtype,
        (residual, second, gamma, beta),
        load=load_sum,
        BLOCK=128,
        EPSILON=1e-5,
        ROWS_PER=2,
    )
    total = x.astype(np.float32) + residual.astype(np.float32)
    assert_close(second, total, dtype)
    assert_close(out, reference_norm(total, 1e-5) * gamma + beta, dtype)


@TYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("block", "rows", "loop"), TILES)
def test_softmax(dtype, shape, block, rows, loop, static):
    for log in (False, True):
        x, out = drawn(shape, dtype) * DTYPES[dtype](4), unwritten(shape, "fp32")
        kernel = SOFTMAX_LOOP if loop else SOFTMAX
        run(kernel, x, out, dtype, "fp32", static=static, BLOCK=block, LOG=log, ROWS_PER=rows)
        assert_close(out, reference_softmax(x, log), "fp32", 3)


@pytest.mark.parametrize(("kernel", "block"), [(SOFTMAX, 64), (SOFTMAX_LOOP, 16)])
def test_softmax_of_masked_rows(kernel, block):
    """Elements of -inf have no part; a row of nothing else is undefined, and so is one with a NaN."""
    x, out = drawn((4, 50), "fp32"), unwritten((4, 50), "fp32")
    x[0, ::2], x[1, :49], x[2], x[3, 11] = -np.inf, -np.inf, -np.inf, np.nan
    run(kernel, x, out, "fp32", "fp32", BLOCK=block)
    with np.errstate(invalid="ignore"):
        wanted = reference_softmax(x)
    assert np.isnan(out[2:]).all()
    assert np.array_equal(out[1], np.eye(50)[49])
    assert_close(out[:2], wanted[:2], "fp32")


KINDS = ["sum", "mean", "max", "min", "prod", "sumsquare", "l1", "l2", "logsumexp"]


@pytest.mark.parametrize("kind", KINDS)
@TYPES
def test_reductions(kind, dtype, static):
    for shape in SHAPES:
        for block, rows in ((256, 1), (16, 4)):
            x, out = drawn(shape, dtype), unwritten(shape[:1], "fp32")
            run(REDUCE, x, out, dtype, "fp32", static=static, BLOCK=block, KIND=kind, ROWS_PER=rows)
            assert_close(out, reference_reduce(x, kind), "fp32", 10)


@pytest.mark.parametrize("kind", ["sum", "max", "min", "prod", "sumsquare", "l1"])
@pytest.mark.parametrize("dtype", ["i8", "i32", "i64"])
def test_integers_are_reduced_exactly(kind, dtype):
    wide = "i32" if dtype == "i8" else dtype
    limit = {"i8": 100, "i32": 2**28, "i64": 2**60}[dtype] if kind in ("max", "min") else 3
    x = np.random.default_rng(0).integers(-limit, limit, (6, 21)).astype(DTYPES[dtype])
    x[0], x[1] = np.iinfo(x.dtype).min if kind == "max" else 1, np.iinfo(x.dtype).max if kind == "min" else 1
    out = unwritten((6,), wide)
    run(REDUCE, x, out, dtype, wide, BLOCK=16, KIND=kind, ROWS_PER=2)
    assert np.array_equal(out, reference_reduce(x.astype(DTYPES[wide]), kind))


def test_a_mean_of_integers_is_a_float():
    x, out = np.arange(12, dtype=np.int64).reshape(2, 6), unwritten((2,), "fp32")
    run(REDUCE, x, out, "i64", "fp32", BLOCK=8, KIND="mean")
    assert out.tolist() == [2.5, 8.5]


@pytest.mark.parametrize("kind", KINDS)
def test_reductions_of_nothing_and_of_what_is_not_finite(kind):
    out = unwritten((3,), "fp32")
    run(REDUCE, np.zeros((3, 0), np.float32), out, "fp32", "fp32", BLOCK=16, KIND=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mean of nothing
        wanted = reference_reduce(np.zeros((3, 0)), kind)
    assert np.array_equal(out, wanted, equal_nan=True)
    x, out = drawn((4, 40), "fp32"), unwritten((4,), "fp32")
    x[0, 33], x[1, 3], x[2], x[3, 20] = np.nan, np.inf, -np.inf, -np.inf
    run(REDUCE, x, out, "fp32", "fp32", BLOCK=16, KIND=kind)
    with np.errstate(invalid="ignore"):
        assert np.array_equal(np.isfinite(out), np.isfinite(reference_reduce(x, kind)))
        strange = ~np.isfinite(out)
        assert np.array_equal(out[strange], reference_reduce(x, kind)[strange], equal_nan=True)


def test_reduction_over_the_outer_axis():
    x, out = drawn((45, 70), "fp32"), unwritten((70,), "fp32")
    run(REDUCE, x, out, "fp32", "fp32", load=load_columns, BLOCK=16, KIND="max", ROWS_PER=32)
    assert_close(out, x.max(0), "fp32")


@pytest.mark.parametrize("kind", ["argmax", "argmin"])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "i8", "i64"])
@pytest.mark.parametrize(("block", "rows"), [(64, 1), (16, 4)])
def test_places(kind, last, dtype, block, rows):
    for shape in ((1, 1), (6, 45), (3, 64)):
        x = np.random.default_rng(1).integers(-3, 4, shape).astype(DTYPES[dtype])  # many are equal
        if dtype == "i64":
            x += 2**60
        elif dtype != "i8" and shape[0] > 1:
            x[0], x[1, 5], x[1, 40], x[2, 7] = -np.inf, np.nan, np.nan, np.inf
        elif dtype == "i8":
            x[0] = -128
        for static in (True, False):
            out = unwritten(shape[:1], "i32")
            constants = {"BLOCK": block, "KIND": kind, "SELECT_LAST": last, "ROWS_PER": rows}
            run(ARG, x, out, dtype, "i32", static=static, **constants)
            plain = x if dtype[0] == "i" else x.astype(np.float32)
            assert np.array_equal(out, reference_arg(plain, kind, last))


# As a plan has them, with strides as literals: args are in, out, residual, second, gamma, beta.


@triton.jit
def load_sum_768(args, row, j, mask):
    place = row * 768 + j
    x = tl.load(args[0] + place, mask=mask).to(tl.float32) + tl.load(args[2] + place, mask=mask).to(tl.float32)
    tl.store(args[3] + place, x.to(args[3].dtype.element_ty), mask=mask)
    return x


@triton.jit
def store_affine_768(args, row, j, y, mask):
    gamma, beta = tl.load(args[4] + j, mask=j < 768, other=0.0), tl.load(args[5] + j, mask=j < 768, other=0.0)
    tl.store(args[1] + row * 768 + j, (y * gamma + beta).to(args[1].dtype.element_ty), mask=mask)


@triton.jit
def load_wide(args, row, j, mask):
    return tl.load(args[0] + row * 32000 + j, mask=mask)


@triton.jit
def store_wide(args, row, j, y, mask):
    tl.store(args[1] + row * 32000 + j, y.to(args[1].dtype.element_ty), mask=mask)


@triton.jit
def load_outer(args, row, j, mask):
    return tl.load(args[0] + (row // 2048) * (49 * 2048) + j * 2048 + row % 2048, mask=mask)


def compiled(kernel: Kernel, arch: int, dtype: str, columns: int, hooks, warps: int, **constants):
    args = (*(f"*{dtype}",) * 4, "*fp32", "*fp32")
    hooks = dict(zip(("LOAD", "STORE"), hooks, strict=True))
    return build(Specialization(kernel, args, {"ROWS": None, "COLUMNS": columns}, hooks, constants, warps), arch)


WIDE = (load_wide, store_wide)
VALUE = (load_wide, store_value)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiled(arch):
    hooks = (load_sum_768, store_affine_768)
    norm = compiled(NORM, arch, "fp16", 768, hooks, 4, BLOCK=1024, EPSILON=1e-5)
    assert norm.parameters == (8,) * 6 + (4,) + (8, 8)
    assert norm.resources.instructions["load"] == 6, "16 bytes at a time: two of halves, two each of scale and shift"
    compiled(NORM_LOOP, arch, "fp16", 32000, WIDE, 8, BLOCK=4096, EPSILON=1e-5)
    compiled(SOFTMAX, arch, "fp16", 1000, WIDE, 4, BLOCK=1024)
    compiled(SOFTMAX, arch, "fp16", 49, WIDE, 4, BLOCK=64, ROWS_PER=8)
    compiled(SOFTMAX_LOOP, arch, "fp16", 32000, WIDE, 8, BLOCK=4096, LOG=True)
    compiled(REDUCE, arch, "fp16", 49, (load_outer, store_value), 4, BLOCK=8, KIND="mean", ROWS_PER=128)
    compiled(REDUCE, arch, "fp16", 32000, VALUE, 8, BLOCK=4096, KIND="mean")
    compiled(ARG, arch, "fp16", 32000, VALUE, 8, BLOCK=4096, KIND="argmin", SELECT_LAST=True)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_reductions(kind):
    compiled(REDUCE, 80, "fp32", 32000, VALUE, 8, BLOCK=4096, KIND=kind)


@pytest.mark.parametrize("kind", ["sum", "max", "min"])
def test_compiled_for_integers(kind):
    compiled(REDUCE, 80, "i64", 32000, VALUE, 8, BLOCK=1024, KIND=kind)
