"""The matrix product against NumPy, and as compiled."""

from __future__ import annotations

import math

import numpy as np
import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from optc.kernels.base import Specialization  # noqa: E402
from optc.kernels.matmul import MATMUL, reference  # noqa: E402

from .harness import ARCHITECTURES, assert_close, build, drawn, interpret, unwritten  # noqa: E402

# args: a, b, out, bias, residual, second, M, N, K


@triton.jit
def load_a(args, z, m, k, mask):
    return tl.load(args[0] + (z * args[6] + m) * args[8] + k, mask=mask, other=0.0)


@triton.jit
def load_a_transposed(args, z, m, k, mask):
    return tl.load(args[0] + (z * args[8] + k) * args[6] + m, mask=mask, other=0.0)


@triton.jit
def load_b(args, z, k, n, mask):
    return tl.load(args[1] + (z * args[8] + k) * args[7] + n, mask=mask, other=0.0)


@triton.jit
def store(args, z, m, n, acc, mask):
    tl.store(args[2] + (z * args[6] + m) * args[7] + n, acc.to(args[2].dtype.element_ty), mask=mask)


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))


@triton.jit
def store_fused(args, z, m, n, acc, mask):
    """Bias, activation and residual; the activation alone is a second output."""
    place = (z * args[6] + m) * args[7] + n
    bias = tl.load(args[3] + n, mask=n < args[7], other=0.0).to(tl.float32)
    activated = gelu(acc + bias)
    residual = tl.load(args[4] + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(args[2] + place, (activated + residual).to(args[2].dtype.element_ty), mask=mask)
    tl.store(args[5] + place, activated.to(args[5].dtype.element_ty), mask=mask)


def spec(dtype: str, sizes: dict[str, int | None], tile=(32, 16, 16), warps=4, stages=2, **hooks) -> Specialization:
    return Specialization(
        MATMUL,
        (f"*{dtype}",) * 6 + ("i32",) * 3,
        sizes,
        {"LOAD_A": load_a, "LOAD_B": load_b, "STORE": store, **hooks},
        {**dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), tile, strict=True)), "PRECISION": "ieee"},
        num_warps=warps,
        num_stages=stages,
    )


SHAPES = [(1, 1, 1, 1), (1, 37, 29, 51), (3, 64, 48, 16), (2, 5, 131, 7), (1, 33, 17, 0)]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("static", [True, False], ids=["static", "symbolic"])
def test_products(dtype, shape, static):
    batch, m, n, k = shape
    a, b, out = drawn((batch, m, k), dtype), drawn((batch, k, n), dtype, 1), unwritten((batch, m, n), dtype)
    sizes = {"M": m, "N": n, "K": k, "BATCH": batch}
    made = spec(dtype, sizes if static else dict.fromkeys(sizes))
    interpret(made, a, b, out, out, out, out, m, n, k, **({} if static else sizes))
    assert_close(out, reference(a, b), dtype)


def test_a_hook_decides_the_layout():
    a, b, out = drawn((1, 21, 34), "fp32"), drawn((1, 21, 18), "fp32", 1), unwritten((1, 34, 18), "fp32")
    made = spec("fp32", {"M": 34, "N": 18, "K": 21, "BATCH": 1}, LOAD_A=load_a_transposed)
    interpret(made, a, b, out, out, out, out, 34, 18, 21)
    assert_close(out, reference(a.transpose(0, 2, 1), b), "fp32")


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_an_epilogue_with_two_outputs(dtype):
    m, n, k = 45, 39, 24
    a, b = drawn((1, m, k), dtype), drawn((1, k, n), dtype, 1)
    bias, residual = drawn((n,), dtype, 2), drawn((1, m, n), dtype, 3)
    out, second = unwritten((1, m, n), dtype), unwritten((1, m, n), dtype)
    made = spec(dtype, {"M": m, "N": n, "K": k, "BATCH": 1}, STORE=store_fused)
    interpret(made, a, b, out, bias, residual, second, m, n, k)
    x = reference(a, b) + bias.astype(np.float32)
    activated = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    assert_close(second, activated, dtype)
    assert_close(out, activated + residual.astype(np.float32), dtype)


# The same as a plan's hooks are, with strides as literals: args are a, b, out, bias, residual.


@triton.jit
def load_rows(args, z, m, k, mask):
    return tl.load(args[0] + m * 768 + k, mask=mask, other=0.0)


@triton.jit
def load_weights(args, z, k, n, mask):
    return tl.load(args[1] + k * 3072 + n, mask=mask, other=0.0)


@triton.jit
def store_gelu_residual(args, z, m, n, acc, mask):
    bias = tl.load(args[3] + n, mask=n < 3072, other=0.0).to(tl.float32)
    residual = tl.load(args[4] + m * 3072 + n, mask=mask, other=0.0).to(tl.float32)
    tl.store(args[2] + m * 3072 + n, (gelu(acc + bias) + residual).to(args[2].dtype.element_ty), mask=mask)


HOOKS = {"LOAD_A": load_rows, "LOAD_B": load_weights, "STORE": store_gelu_residual}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("tile", "warps", "stages"), [((128, 128, 32), 8, 3), ((64, 64, 64), 4, 4)], ids=["large", "small"]
)
def test_compiled_with_an_epilogue(arch, dtype, tile, warps, stages):
    made = build(spec(dtype, {"M": None, "N": 3072, "K": 768, "BATCH": 1}, tile, warps, stages, **HOOKS), arch)
    assert made.parameters == (8,) * 6 + (4,) * 3 + (4,) + (8, 8)
    assert made.resources.instructions["mma"] > 0, "no tensor cores"
    assert made.resources.instructions["async_copy"] > 0, "operands are not copied ahead of time"
