"""Attention against NumPy, and as compiled."""

from __future__ import annotations

import numpy as np
import pytest

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from optc.kernels.attention import (  # noqa: E402
    ATTENTION,
    ATTENTION_COMBINE,
    ATTENTION_SPLIT,
    no_bias,
    reference,
)
from optc.kernels.base import Specialization  # noqa: E402

from .harness import ARCHITECTURES, DTYPES, assert_close, build, drawn, interpret, unwritten  # noqa: E402

# args: q, k, v, bias, out, partial, state, QUERIES, KEYS, HEADS, KEY_HEADS, DIM, V_DIM, SPLITS


@triton.jit
def load_q(args, b, h, m, d, mask):
    return tl.load(args[0] + ((b * args[9] + h) * args[7] + m) * args[11] + d, mask=mask, other=0.0)


@triton.jit
def load_k(args, b, hk, n, d, mask):
    return tl.load(args[1] + ((b * args[10] + hk) * args[8] + n) * args[11] + d, mask=mask, other=0.0)


@triton.jit
def load_v(args, b, hk, n, d, mask):
    return tl.load(args[2] + ((b * args[10] + hk) * args[8] + n) * args[12] + d, mask=mask, other=0.0)


@triton.jit
def load_bias(args, b, h, m, n, mask):
    return tl.load(args[3] + ((b * args[9] + h) * args[7] + m) * args[8] + n, mask=mask, other=0.0)


@triton.jit
def load_padding(args, b, h, m, n, mask):
    """Keys that every query of a batch element sees, as a boolean mask of (BATCH, KEYS)."""
    return tl.where(tl.load(args[3] + b * args[8] + n, mask=mask, other=1) != 0, 0.0, -float("inf"))


@triton.jit
def store(args, b, h, m, d, value, mask):
    place = ((b * args[9] + h) * args[7] + m) * args[12] + d
    tl.store(args[4] + place, value.to(args[4].dtype.element_ty), mask=mask)


@triton.jit
def store_merged(args, b, h, m, d, value, mask):
    """Heads side by side, (BATCH, QUERIES, HEADS * V_DIM), as the next product wants them."""
    place = ((b * args[7] + m) * args[9] + h) * args[12] + d
    tl.store(args[4] + place, value.to(args[4].dtype.element_ty), mask=mask)


@triton.jit
def place_of_state(args, b, h, split, m):
    return ((b * args[9] + h) * args[13] + split) * args[7] + m


@triton.jit
def store_partial(args, b, h, split, m, d, value, mask):
    tl.store(args[5] + place_of_state(args, b, h, split, m) * args[12] + d, value, mask=mask)


@triton.jit
def store_top(args, b, h, split, m, value, mask):
    tl.store(args[6] + place_of_state(args, b, h, split, m) * 2, value, mask=mask)


@triton.jit
def store_total(args, b, h, split, m, value, mask):
    tl.store(args[6] + place_of_state(args, b, h, split, m) * 2 + 1, value, mask=mask)


@triton.jit
def load_partial(args, b, h, split, m, d, mask):
    return tl.load(args[5] + place_of_state(args, b, h, split, m) * args[12] + d, mask=mask, other=0.0)


@triton.jit
def load_top(args, b, h, split, m, mask):
    return tl.load(args[6] + place_of_state(args, b, h, split, m) * 2, mask=mask, other=0.0)


@triton.jit
def load_total(args, b, h, split, m, mask):
    return tl.load(args[6] + place_of_state(args, b, h, split, m) * 2 + 1, mask=mask, other=0.0)


def attend(
    q,
    k,
    v,
    dtype,
    bias=None,
    bias_hook=None,
    causal=False,
    offset=0,
    softcap=0.0,
    scale=0.3,
    splits=0,
    static=True,
    blocks=(16, 16),
    merged=False,
):
    """Attention by the kernels; ``splits`` > 0: by the two of them."""
    batch, heads, queries, dim = q.shape
    key_heads, keys, v_dim = v.shape[1:]
    out = unwritten((batch, queries, heads, v_dim) if merged else (batch, heads, queries, v_dim), dtype)
    parts = max(splits, 1)
    partial = unwritten((batch, heads, parts, queries, v_dim), "fp32")
    state = unwritten((batch, heads, parts, queries, 2), "fp32")
    data = [q, k, v, q if bias is None else bias, out, partial, state]
    data += [queries, keys, heads, key_heads, dim, v_dim, parts]
    kinds = (*(f"*{dtype}",) * 3, f"*{_kind(bias, dtype)}", f"*{dtype}", "*fp32", "*fp32", *("i32",) * 7)
    sizes = {"QUERIES": queries, "KEYS": keys, "HEADS": heads, "BATCH": batch, "OFFSET": offset}
    bias_hook = bias_hook or (no_bias if bias is None else load_bias)
    loads = {"LOAD_Q": load_q, "LOAD_K": load_k, "LOAD_V": load_v, "LOAD_BIAS": bias_hook}
    width = {"BLOCK_D": _padded(dim), "BLOCK_V": _padded(v_dim)}
    constants = {"DIM": dim, "V_DIM": v_dim, "SCALE": scale, "CAUSAL": causal, "HAS_BIAS": bias is not None} | width
    constants |= {"SOFTCAP": softcap, "GROUP": heads // key_heads, "PRECISION": "ieee"}
    constants |= {"BLOCK_M": blocks[0], "BLOCK_N": blocks[1]}
    finish = {"STORE": store_merged if merged else store}

    def launch(kernel, hooks, constants):
        known = {name: sizes[name] for name in kernel.sizes}
        spec = Specialization(kernel, kinds, known if static else dict.fromkeys(known), hooks, constants)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            interpret(spec, *data, **({} if static else known))

    if not splits:
        launch(ATTENTION, loads | finish, constants)
        return out
    launch(
        ATTENTION_SPLIT,
        loads | {"STORE_PARTIAL": store_partial, "STORE_TOP": store_top, "STORE_TOTAL": store_total},
        constants | {"SPLITS": splits},
    )
    launch(
        ATTENTION_COMBINE,
        {"LOAD_PARTIAL": load_partial, "LOAD_TOP": load_top, "LOAD_TOTAL": load_total} | finish,
        {"V_DIM": v_dim, "SPLITS": splits, "BLOCK_M": 4, "BLOCK_V": width["BLOCK_V"]},
    )
    return out


def _kind(array, otherwise):
    return otherwise if array is None else next(k for k, t in DTYPES.items() if array.dtype == t)


def _padded(dim):
    return max(16, 1 << (dim - 1).bit_length())


def operands(batch, heads, key_heads, queries, keys, dim, v_dim, dtype):
    return (
        drawn((batch, heads, queries, dim), dtype),
        drawn((batch, key_heads, keys, dim), dtype, 1),
        drawn((batch, key_heads, keys, v_dim), dtype, 2),
    )


#: batch, heads, heads of keys, queries, keys, dim, v_dim
SHAPES = [
    (1, 1, 1, 1, 1, 16, 16),
    (2, 3, 3, 17, 37, 16, 16),
    (1, 4, 2, 32, 64, 24, 40),
    (1, 6, 1, 5, 33, 7, 32),
    (1, 2, 2, 3, 0, 16, 16),
    (0, 2, 2, 3, 5, 16, 16),
]
TYPES = pytest.mark.parametrize(("dtype", "static"), [("fp32", True), ("fp32", False), ("fp16", True), ("bf16", False)])


@TYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("splits", [0, 3])
def test_attention(shape, dtype, static, splits):
    q, k, v = operands(*shape, dtype)
    masks = [(True, shape[4] - shape[3]), (False, 0), (True, 0), (True, -4)]
    for causal, offset in masks if dtype == "fp32" else masks[:1]:
        out = attend(q, k, v, dtype, causal=causal, offset=offset, splits=splits, static=static)
        assert_close(out, reference(q, k, v, 0.3, causal=causal, offset=offset), dtype, 2)


@TYPES
@pytest.mark.parametrize("splits", [0, 2])
def test_with_a_bias(dtype, static, splits):
    q, k, v = operands(2, 4, 2, 19, 41, 16, 24, dtype)
    bias = drawn((2, 4, 19, 41), "fp32", 3)
    bias[0, 0, 3], bias[1, 2, :, ::2], bias[0, 1, 5, 1:] = -np.inf, -np.inf, -np.inf
    for causal in (False, True):
        out = attend(q, k, v, dtype, bias, causal=causal, offset=7, splits=splits, static=static)
        wanted = reference(q, k, v, 0.3, bias, causal=causal, offset=7)
        assert_close(out, wanted, dtype, 2)
        assert not out[0, 0, 3].astype(np.float32).any(), "a query that sees no key gets 0"


@pytest.mark.parametrize("splits", [0, 3])
def test_a_row_of_the_lowest_number_is_not_a_row_of_nothing(splits):
    """Exporters mask with the lowest finite float: where all keys have it, softmax weighs them equally."""
    q, k, v = operands(1, 1, 1, 3, 37, 16, 16, "fp32")
    bias = np.zeros((1, 1, 3, 37), np.float32)
    bias[0, 0, 1] = np.finfo(np.float32).min
    out = attend(q, k, v, "fp32", bias, splits=splits)
    assert_close(out, reference(q, k, v, 0.3, bias), "fp32", 2)
    assert_close(out[0, 0, 1], v[0, 0].mean(0), "fp32", 2)


@pytest.mark.parametrize("splits", [0, 2])
def test_with_a_mask_of_padding_that_is_boolean(splits):
    q, k, v = operands(2, 2, 2, 9, 30, 16, 16, "fp32")
    seen = np.ones((2, 30), np.bool_)
    seen[1, 11:] = False
    out = attend(q, k, v, "fp32", seen, load_padding, splits=splits)
    assert_close(out, reference(q, k, v, 0.3, np.where(seen, 0.0, -np.inf)[:, None, None]), "fp32", 2)


@pytest.mark.parametrize("splits", [0, 2])
@pytest.mark.parametrize(("scale", "softcap"), [(0.3, 2.0), (-0.5, 0.0), (0.0, 0.0), (40.0, 0.0)])
def test_scales_and_caps(scale, softcap, splits):
    q, k, v = operands(1, 2, 1, 20, 50, 16, 16, "fp32")
    out = attend(q, k, v, "fp32", scale=scale, softcap=softcap, splits=splits)
    assert_close(out, reference(q, k, v, scale, softcap=softcap), "fp32", 10 if scale == 40 else 3)


@pytest.mark.parametrize("splits", [0, 2])
def test_the_store_decides_the_layout(splits):
    q, k, v = operands(2, 3, 3, 10, 20, 16, 16, "fp32")
    out = attend(q, k, v, "fp32", splits=splits, merged=True)
    assert_close(out, reference(q, k, v, 0.3).transpose(0, 2, 1, 3), "fp32", 2)


def test_tiles_of_every_size():
    q, k, v = operands(1, 2, 2, 70, 130, 32, 32, "fp32")
    for blocks in ((16, 64), (64, 16), (64, 64), (128, 128)):
        for splits in (0, 2):
            out = attend(q, k, v, "fp32", causal=True, offset=60, blocks=blocks, splits=splits)
            assert_close(out, reference(q, k, v, 0.3, causal=True, offset=60), "fp32", 2)


# As a plan has them, with strides as literals: one (batch, sequence, 3, heads, dim) tensor holds q, k and v.


@triton.jit
def load_packed(args, b, h, m, d, mask, WHICH: tl.constexpr, DIM: tl.constexpr):
    return tl.load(args[0] + (b * 512 + m) * (36 * DIM) + WHICH * (12 * DIM) + h * DIM + d, mask=mask, other=0.0)


@triton.jit
def load_packed_q(args, b, h, m, d, mask):
    return load_packed(args, b, h, m, d, mask, 0, 64)


@triton.jit
def load_packed_k(args, b, h, m, d, mask):
    return load_packed(args, b, h, m, d, mask, 1, 64)


@triton.jit
def load_packed_v(args, b, h, m, d, mask):
    return load_packed(args, b, h, m, d, mask, 2, 64)


@triton.jit
def load_packed_q_128(args, b, h, m, d, mask):
    return load_packed(args, b, h, m, d, mask, 0, 128)


@triton.jit
def load_packed_k_128(args, b, h, m, d, mask):
    return load_packed(args, b, h, m, d, mask, 1, 128)


@triton.jit
def load_packed_v_128(args, b, h, m, d, mask):
    return load_packed(args, b, h, m, d, mask, 2, 128)


@triton.jit
def load_bias_512(args, b, h, m, n, mask):
    return tl.load(args[1] + b * 512 + n, mask=mask, other=0.0)


@triton.jit
def store_packed(args, b, h, m, d, value, mask):
    tl.store(args[2] + ((b * 512 + m) * 12 + h) * 64 + d, value.to(args[2].dtype.element_ty), mask=mask)


@triton.jit
def store_packed_128(args, b, h, m, d, value, mask):
    tl.store(args[2] + ((b * 512 + m) * 12 + h) * 128 + d, value.to(args[2].dtype.element_ty), mask=mask)


LOADS = {
    64: {"LOAD_Q": load_packed_q, "LOAD_K": load_packed_k, "LOAD_V": load_packed_v, "STORE": store_packed},
    128: {
        "LOAD_Q": load_packed_q_128,
        "LOAD_K": load_packed_k_128,
        "LOAD_V": load_packed_v_128,
        "STORE": store_packed_128,
    },
}


def compiled(arch, dtype, dim, tile, warps, stages, causal=False, bias=False, keys=512, kernel=ATTENTION, **more):
    hooks = {**LOADS[dim], "LOAD_BIAS": load_bias_512 if bias else no_bias}
    if kernel is ATTENTION_SPLIT:
        del hooks["STORE"]
        hooks |= {"STORE_PARTIAL": store_partial_512, "STORE_TOP": store_top_512, "STORE_TOTAL": store_total_512}
    constants = {"DIM": dim, "V_DIM": dim, "SCALE": dim**-0.5, "CAUSAL": causal, "HAS_BIAS": bias, **more}
    constants |= dict(zip(("BLOCK_M", "BLOCK_N"), tile, strict=True)) | {"BLOCK_D": dim, "BLOCK_V": dim}
    sizes = {"QUERIES": 1 if kernel is ATTENTION_SPLIT else 512, "KEYS": keys, "HEADS": 12, "BATCH": None}
    spec = Specialization(
        kernel,
        (f"*{dtype}",) * 3 + ("*fp32",),
        {**sizes, "OFFSET": 0 if kernel is ATTENTION else None},
        hooks,
        constants,
        warps,
        stages,
    )
    made = build(spec, arch)
    assert made.resources.instructions["mma"] > 0, "no tensor cores"
    assert made.resources.instructions["async_copy"] > 0, "keys are not copied ahead of time"
    return made


@triton.jit
def store_partial_512(args, b, h, split, m, d, value, mask):
    tl.store(args[3] + ((b * 12 + h) * 8 + split) * 64 + d, value, mask=mask)


@triton.jit
def store_top_512(args, b, h, split, m, value, mask):
    tl.store(args[3] + ((b * 12 + h) * 8 + split) * 2, value, mask=mask)


@triton.jit
def store_total_512(args, b, h, split, m, value, mask):
    tl.store(args[3] + ((b * 12 + h) * 8 + split) * 2 + 1, value, mask=mask)


@triton.jit
def load_partial_512(args, b, h, split, m, d, mask):
    return tl.load(args[3] + ((b * 12 + h) * 8 + split) * 64 + d, mask=mask, other=0.0)


@triton.jit
def load_top_512(args, b, h, split, m, mask):
    return tl.load(args[3] + ((b * 12 + h) * 8 + split) * 2, mask=mask, other=0.0)


@triton.jit
def load_total_512(args, b, h, split, m, mask):
    return tl.load(args[3] + ((b * 12 + h) * 8 + split) * 2 + 1, mask=mask, other=0.0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dim", "tile", "warps", "causal", "bias"),
    [(64, (128, 64), 4, False, False), (64, (128, 64), 8, True, True), (128, (128, 64), 8, True, False)],
)
def test_compiled(arch, dim, tile, warps, causal, bias):
    compiled(arch, "fp16", dim, tile, warps, 2, causal, bias)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiled_in_parts(arch):
    tile = {"GROUP": 4, "SPLITS": 8, "keys": None}
    compiled(arch, "bf16", 64, (16, 64), 4, 3, True, kernel=ATTENTION_SPLIT, **tile)
    spec = Specialization(
        ATTENTION_COMBINE,
        ("*bf16", "*fp32", "*bf16", "*fp32"),
        {"QUERIES": 1, "HEADS": 12, "BATCH": None},
        {
            "LOAD_PARTIAL": load_partial_512,
            "LOAD_TOP": load_top_512,
            "LOAD_TOTAL": load_total_512,
            "STORE": store_packed,
        },
        {"V_DIM": 64, "SPLITS": 8, "BLOCK_M": 1, "BLOCK_V": 64},
        num_warps=1,
    )
    build(spec, arch)
