"""Products in parts and products of few rows against NumPy, and as compiled."""

from __future__ import annotations

import numpy as np
import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from optc.kernels.base import Kernel, Specialization  # noqa: E402
from optc.kernels.gemv import GEMV, GEMV_SPLIT  # noqa: E402
from optc.kernels.matmul import reference  # noqa: E402
from optc.kernels.splitk import MATMUL_SPLIT, SPLIT_REDUCE  # noqa: E402

from .harness import ARCHITECTURES, assert_close, build, drawn, interpret, unwritten  # noqa: E402

# args: a, b, out, bias, parts, M, N, K, BATCH


@triton.jit
def load_a(args, z, m, k, mask):
    return tl.load(args[0] + (z * args[5] + m) * args[7] + k, mask=mask, other=0.0)


@triton.jit
def load_b(args, z, k, n, mask):
    return tl.load(args[1] + (z * args[7] + k) * args[6] + n, mask=mask, other=0.0)


@triton.jit
def store(args, z, m, n, acc, mask):
    tl.store(args[2] + (z * args[5] + m) * args[6] + n, acc.to(args[2].dtype.element_ty), mask=mask)


@triton.jit
def store_fused(args, z, m, n, acc, mask):
    """Bias and activation."""
    bias = tl.load(args[3] + n, mask=n < args[6], other=0.0).to(tl.float32)
    tl.store(args[2] + (z * args[5] + m) * args[6] + n, tl.maximum(acc + bias, 0.0).to(args[2].dtype.element_ty), mask)


@triton.jit
def store_part(args, split, z, m, n, acc, mask):
    tl.store(args[4] + ((split * args[8] + z) * args[5] + m) * args[6] + n, acc, mask=mask)


@triton.jit
def load_part(args, split, z, m, n, mask):
    return tl.load(args[4] + ((split * args[8] + z) * args[5] + m) * args[6] + n, mask=mask, other=7.0)


def multiply(kernel: Kernel, a, b, dtype, splits=0, static=True, bias=None, **constants):
    """The product, by one kernel or by two."""
    batch, m, k = a.shape
    n = b.shape[2]
    out, parts = unwritten((batch, m, n), dtype), unwritten((max(splits, 1), batch, m, n), "fp32")
    sizes = {"M": m, "N": n, "K": k, "BATCH": batch}
    loads = {"LOAD_A": load_a, "LOAD_B": load_b}
    finish = {"STORE": store if bias is None else store_fused}

    def launch(kernel, hooks, constants):
        known = {name: sizes[name] for name in kernel.sizes}
        kinds = (*(f"*{dtype}",) * 4, "*fp32", *("i32",) * 4)
        spec = Specialization(kernel, kinds, known if static else dict.fromkeys(known), hooks, constants)
        data = (a, b, out, a if bias is None else bias, parts, m, n, k, batch)
        interpret(spec, *data, **({} if static else known))

    if not splits:
        launch(kernel, loads | finish, constants)
    else:
        launch(kernel, loads | {"STORE_PARTIAL": store_part}, constants | {"SPLITS": splits})
        tile = {"SPLITS": splits, "BLOCK_M": 2, "BLOCK_N": 64}
        launch(SPLIT_REDUCE, {"LOAD_PARTIAL": load_part} | finish, tile)
    return out


TYPES = pytest.mark.parametrize(("dtype", "static"), [("fp32", True), ("fp32", False), ("fp16", True), ("bf16", False)])
TILE = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "PRECISION": "ieee"}


@TYPES
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 17, 29, 100), (1, 16, 32, 64), (1, 5, 7, 0), (1, 3, 20, 33)], ids=str
)
@pytest.mark.parametrize("splits", [1, 3, 8])
def test_products_in_parts(shape, splits, dtype, static):
    batch, m, n, k = shape
    a, b = drawn((batch, m, k), dtype), drawn((batch, k, n), dtype, 1)
    assert_close(multiply(MATMUL_SPLIT, a, b, dtype, splits, static, **TILE), reference(a, b), dtype, 2)


@TYPES
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("splits", [0, 1, 5])
def test_products_of_few_rows(rows, splits, dtype, static):
    for batch, n, k in ((1, 1, 1), (2, 13, 150), (1, 8, 64), (1, 9, 0)):
        a, b = drawn((batch, rows, k), dtype), drawn((batch, k, n), dtype, 1)
        tile = {"ROWS": 1 << (rows - 1).bit_length(), "BLOCK_N": 4, "BLOCK_K": 32}
        kernel = GEMV_SPLIT if splits else GEMV
        assert_close(multiply(kernel, a, b, dtype, splits, static, **tile), reference(a, b), dtype, 2)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_epilogues(dtype):
    a, b, bias = drawn((2, 3, 70), dtype), drawn((2, 70, 21), dtype, 1), drawn((21,), dtype, 2)
    wanted = np.maximum(reference(a, b) + bias.astype(np.float32), 0)
    few = {"ROWS": 4, "BLOCK_N": 8, "BLOCK_K": 16}
    for kernel, splits, tile in ((MATMUL_SPLIT, 3, TILE), (GEMV_SPLIT, 2, few), (GEMV, 0, few)):
        assert_close(multiply(kernel, a, b, dtype, splits, bias=bias, **tile), wanted, dtype, 2)


# As a plan has them, with strides as literals; of weights, the elements of a sum lie side by side.


@triton.jit
def load_row(args, z, m, k, mask):
    return tl.load(args[0] + m * 4096 + k, mask=mask, other=0.0)


@triton.jit
def load_weights(args, z, k, n, mask):
    return tl.load(args[1] + n * 4096 + k, mask=mask, other=0.0)


@triton.jit
def store_row(args, z, m, n, acc, mask):
    tl.store(args[2] + m * 1024 + n, acc.to(args[2].dtype.element_ty), mask=mask)


@triton.jit
def store_row_part(args, split, z, m, n, acc, mask):
    tl.store(args[4] + (split * 16 + m) * 1024 + n, acc, mask=mask)


@triton.jit
def load_row_part(args, split, z, m, n, mask):
    return tl.load(args[4] + (split * 16 + m) * 1024 + n, mask=mask, other=0.0)


def compiled(kernel: Kernel, arch: int, constants, warps=4, stages=4):
    sizes = {"M": 1 if "ROWS" in constants else 16, "N": 1024, "K": 4096, "BATCH": 1}
    hooks = {"LOAD_A": load_row, "LOAD_B": load_weights, "STORE": store_row}
    hooks |= {"STORE_PARTIAL": store_row_part, "LOAD_PARTIAL": load_row_part}
    spec = Specialization(
        kernel,
        (*("*fp16",) * 4, "*fp32"),
        {name: sizes[name] for name in kernel.sizes},
        {name: hooks[name] for name in kernel.hooks},
        constants,
        warps,
        stages,
    )
    return build(spec, arch)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiled(arch):
    made = compiled(MATMUL_SPLIT, arch, {"SPLITS": 4, "BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 128})
    assert made.resources.instructions["mma"] > 0, "no tensor cores"
    assert made.resources.instructions["async_copy"] > 0, "operands are not copied ahead of time"
    compiled(SPLIT_REDUCE, arch, {"SPLITS": 4, "BLOCK_M": 1, "BLOCK_N": 512})
    few = {"ROWS": 1, "BLOCK_N": 4, "BLOCK_K": 1024}
    for kernel, tile in ((GEMV, few), (GEMV_SPLIT, few | {"SPLITS": 4}), (GEMV, few | {"ROWS": 4, "BLOCK_K": 512})):
        made = compiled(kernel, arch, tile)
        assert made.resources.instructions["mma"] == 0
