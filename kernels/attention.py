"""Attention, ``softmax(q k^T * SCALE + bias) v``, without the matrix of scores in memory.

ATTENTION is for many queries: a program keeps a tile of queries and walks over the keys (Dao 2023, FlashAttention-2).
ATTENTION_SPLIT and ATTENTION_COMBINE are for few queries and many keys, as when a decoder writes one token: programs
share the keys of a head, write partial results, and a second kernel adds them up in a fixed order (Dao et al. 2023,
Flash-Decoding).

What the hooks see. ``b`` counts the batch, ``h`` heads of queries, ``hk`` heads of keys (GROUP heads of queries share
one: Ainslie et al. 2023), ``m`` queries, ``n`` keys, ``d`` the DIM elements of a query or the V_DIM of a value.

* LOAD_Q(args, b, h, m, d, mask), LOAD_K(args, b, hk, n, d, mask), LOAD_V(args, b, hk, n, d, mask): tiles of one dtype,
  0 where the mask is not set. Of keys, ``d`` is the first axis: what is asked for is k transposed.
* LOAD_BIAS(args, b, h, m, n, mask): what is added to the scores, -inf where a query must not see a key. What it returns
  where the mask is not set does not matter; ``m`` is in range anyway, so that the mask has no rows and a bias for all
  queries is read once, not once per query. Asked only if HAS_BIAS; :func:`no_bias` stands in for it.
* STORE(args, b, h, m, d, value, mask): float32.

With CAUSAL, query ``m`` sees the keys ``n <= m + OFFSET``; OFFSET is the number of keys that were there before the
first query (0 aligns the mask to the top left, KEYS - QUERIES to the bottom right). A query that sees no key gets 0, as
ONNX's Attention has it. SOFTCAP > 0 bounds the scores: ``SOFTCAP * tanh(score / SOFTCAP)`` before the bias.
BLOCK_D and BLOCK_V are the powers of two, at least 16, that hold DIM and V_DIM.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from optc.kernels.base import Kernel

_LOG2E = tl.constexpr(1.4426950408889634)
_INF = tl.constexpr(float("inf"))


@triton.jit
def no_bias(args, b, h, m, n, mask):
    """The LOAD_BIAS of an attention without one."""
    return 0.0


@triton.jit
def attention(
    args,
    QUERIES,
    KEYS,
    HEADS,
    BATCH,
    OFFSET,
    LOAD_Q: tl.constexpr,
    LOAD_K: tl.constexpr,
    LOAD_V: tl.constexpr,
    LOAD_BIAS: tl.constexpr,
    STORE: tl.constexpr,
    DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program computes BLOCK_M queries of one head, BLOCK_N keys at a time; see the module for the hooks.

    Keys that all of these queries see are taken first, without masks, then those at the diagonal and at the end.
    """
    tiles = tl.cdiv(QUERIES, BLOCK_M)
    tile = tl.program_id(0) % tiles
    if CAUSAL:
        tile = tiles - 1 - tile  # those with the most keys first
    h = (tl.program_id(0) // tiles) % HEADS
    b = tl.program_id(0) // (tiles * HEADS)
    first = tile * BLOCK_M
    m = (first + tl.arange(0, BLOCK_M))[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    v = tl.arange(0, BLOCK_V)[None, :]
    q = LOAD_Q(args, b, h, m, d, (m < QUERIES) & (d < DIM))

    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    total = tl.zeros((BLOCK_M, 1), tl.float32)
    top = tl.full((BLOCK_M, 1), -_INF, tl.float32)
    inside = tl.minimum(m, QUERIES - 1)
    inner = KEYS // BLOCK_N * BLOCK_N
    end = KEYS
    if CAUSAL:
        inner = tl.minimum(inner, tl.maximum(first + OFFSET + 1, 0) // BLOCK_N * BLOCK_N)
        end = tl.minimum(end, tl.maximum(first + BLOCK_M + OFFSET, 0))
    for start in range(0, inner, BLOCK_N):
        acc, total, top = _attend(
            args, b, h, h // GROUP, inside, start, q, acc, total, top, KEYS, OFFSET, LOAD_K, LOAD_V, LOAD_BIAS,
            DIM, V_DIM, SCALE, CAUSAL, HAS_BIAS, SOFTCAP, BLOCK_N, BLOCK_D, BLOCK_V, PRECISION, False,
        )  # fmt: skip
    for start in range(inner, end, BLOCK_N):
        acc, total, top = _attend(
            args, b, h, h // GROUP, inside, start, q, acc, total, top, KEYS, OFFSET, LOAD_K, LOAD_V, LOAD_BIAS,
            DIM, V_DIM, SCALE, CAUSAL, HAS_BIAS, SOFTCAP, BLOCK_N, BLOCK_D, BLOCK_V, PRECISION, True,
        )  # fmt: skip
    STORE(args, b, h, m, v, acc / tl.where(total == 0.0, 1.0, total), (m < QUERIES) & (v < V_DIM))


@triton.jit
def _attend(
    args,
    b,
    h,
    hk,
    m,
    start,
    q,
    acc,
    total,
    top,
    KEYS,
    OFFSET,
    LOAD_K: tl.constexpr,
    LOAD_V: tl.constexpr,
    LOAD_BIAS: tl.constexpr,
    DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
    EDGE: tl.constexpr,
):
    """Take BLOCK_N more keys: ``top`` is the largest score so far, ``acc`` and ``total`` sums of ``e^(score - top)``.

    EDGE: some of the keys are not there, or not seen by all queries.
    """
    n = start + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)[:, None]
    v = tl.arange(0, BLOCK_V)[None, :]
    there = (n < KEYS) if EDGE else tl.full((BLOCK_N,), True, tl.int1)
    scores = tl.dot(q, LOAD_K(args, b, hk, n[None, :], d, there[None, :] & (d < DIM)), input_precision=PRECISION)
    RAW: tl.constexpr = _stays_raw(SCALE, HAS_BIAS, SOFTCAP)
    if SOFTCAP > 0.0:
        scores = SOFTCAP - 2.0 * SOFTCAP / (tl.exp2(scores * (2.0 * SCALE / SOFTCAP * _LOG2E)) + 1.0)
    elif not RAW:
        scores = scores * SCALE
    if HAS_BIAS:
        scores += LOAD_BIAS(args, b, h, m, n[None, :], there[None, :]).to(tl.float32)
    if EDGE:
        seen = there[None, :]
        if CAUSAL:
            seen = seen & (n[None, :] <= m + OFFSET)
        scores = tl.where(seen, scores, -_INF)
    larger = tl.maximum(top, tl.max(scores, axis=1, keep_dims=True))
    base = larger
    if HAS_BIAS or (EDGE and CAUSAL):
        base = tl.where(larger == -_INF, 0.0, larger)  # a query that has seen no key yet
    if RAW:
        power = tl.exp2(scores * (SCALE * _LOG2E) - base * (SCALE * _LOG2E))  # one fused operation per element
        shrink = tl.exp2((top - base) * (SCALE * _LOG2E))
    else:
        power = tl.exp2((scores - base) * _LOG2E)
        shrink = tl.exp2((top - base) * _LOG2E)
    values = LOAD_V(args, b, hk, n[:, None], v, there[:, None] & (v < V_DIM))
    acc = tl.dot(power.to(values.dtype), values, acc * shrink, input_precision=PRECISION)
    return acc, total * shrink + tl.sum(power, axis=1, keep_dims=True), larger


@triton.constexpr_function
def _stays_raw(scale, has_bias, softcap):
    """Whether scores are scaled only in the exponent: the order of the products is that of the scores."""
    return scale > 0 and not has_bias and softcap == 0


@triton.jit
def attention_split(
    args,
    QUERIES,
    KEYS,
    HEADS,
    BATCH,
    OFFSET,
    LOAD_Q: tl.constexpr,
    LOAD_K: tl.constexpr,
    LOAD_V: tl.constexpr,
    LOAD_BIAS: tl.constexpr,
    STORE_PARTIAL: tl.constexpr,
    STORE_TOP: tl.constexpr,
    STORE_TOTAL: tl.constexpr,
    DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    GROUP: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program computes what one of SPLITS parts of the keys gives to BLOCK_M rows.

    A row is a query of one of the GROUP heads that share a head of keys, so that keys are read once for all of them;
    ``h`` and ``m`` are columns of indices here. STORE_PARTIAL(args, b, h, split, m, d, value, mask) gets the sum of
    ``e^(score - top) * v`` over the part; STORE_TOP(args, b, h, split, m, value, mask) and STORE_TOTAL, called the same
    way, get columns: the largest score (-inf where no key is seen), and the sum of ``e^(score - top)``. All are to be
    kept as float32.
    """
    tiles = tl.cdiv(QUERIES * GROUP, BLOCK_M)
    groups = HEADS // GROUP
    split = tl.program_id(1)
    hk = (tl.program_id(0) // tiles) % groups
    b = tl.program_id(0) // (tiles * groups)
    row = ((tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    live = row < QUERIES * GROUP
    row = tl.minimum(row, QUERIES * GROUP - 1)
    h = hk * GROUP + row // QUERIES
    m = row % QUERIES
    d = tl.arange(0, BLOCK_D)[None, :]
    v = tl.arange(0, BLOCK_V)[None, :]
    q = LOAD_Q(args, b, h, m, d, live & (d < DIM))

    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    total = tl.zeros((BLOCK_M, 1), tl.float32)
    top = tl.full((BLOCK_M, 1), -_INF, tl.float32)
    part = tl.cdiv(tl.cdiv(KEYS, SPLITS), BLOCK_N) * BLOCK_N
    begin = split * part
    end = tl.minimum(KEYS, begin + part)
    inner = tl.maximum(begin, end // BLOCK_N * BLOCK_N)
    if CAUSAL:
        inner = tl.maximum(begin, tl.minimum(inner, tl.maximum(OFFSET + 1, 0) // BLOCK_N * BLOCK_N))
        end = tl.minimum(end, QUERIES + OFFSET)
    for start in range(begin, inner, BLOCK_N):
        acc, total, top = _attend(
            args, b, h, hk, m, start, q, acc, total, top, KEYS, OFFSET, LOAD_K, LOAD_V, LOAD_BIAS,
            DIM, V_DIM, SCALE, CAUSAL, HAS_BIAS, SOFTCAP, BLOCK_N, BLOCK_D, BLOCK_V, PRECISION, False,
        )  # fmt: skip
    for start in range(inner, end, BLOCK_N):
        acc, total, top = _attend(
            args, b, h, hk, m, start, q, acc, total, top, KEYS, OFFSET, LOAD_K, LOAD_V, LOAD_BIAS,
            DIM, V_DIM, SCALE, CAUSAL, HAS_BIAS, SOFTCAP, BLOCK_N, BLOCK_D, BLOCK_V, PRECISION, True,
        )  # fmt: skip
    if _stays_raw(SCALE, HAS_BIAS, SOFTCAP):
        top = top * SCALE
    STORE_PARTIAL(args, b, h, split, m, v, acc, live & (v < V_DIM))
    STORE_TOP(args, b, h, split, m, top, live)
    STORE_TOTAL(args, b, h, split, m, total, live)


@triton.jit
def attention_combine(
    args,
    QUERIES,
    HEADS,
    BATCH,
    LOAD_PARTIAL: tl.constexpr,
    LOAD_TOP: tl.constexpr,
    LOAD_TOTAL: tl.constexpr,
    STORE: tl.constexpr,
    V_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Put the parts of ATTENTION_SPLIT together, in the order of the keys.

    LOAD_PARTIAL(args, b, h, split, m, d, mask), LOAD_TOP(args, b, h, split, m, mask) and LOAD_TOTAL read what was
    written, 0 where the mask is not set; STORE is that of ATTENTION, with ``b``, ``h`` and ``m`` as columns of indices.
    """
    row = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    live = row < QUERIES * HEADS * BATCH
    m = row % QUERIES
    h = row // QUERIES % HEADS
    b = row // (QUERIES * HEADS)
    v = tl.arange(0, BLOCK_V)[None, :]
    mask = live & (v < V_DIM)
    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    total = tl.zeros((BLOCK_M, 1), tl.float32)
    top = tl.full((BLOCK_M, 1), -_INF, tl.float32)
    for split in range(0, SPLITS):
        part_top, part_total = LOAD_TOP(args, b, h, split, m, live), LOAD_TOTAL(args, b, h, split, m, live)
        larger = tl.maximum(top, part_top)
        base = tl.where(larger == -_INF, 0.0, larger)
        grow, shrink = tl.exp2((part_top - base) * _LOG2E), tl.exp2((top - base) * _LOG2E)
        acc = acc * shrink + LOAD_PARTIAL(args, b, h, split, m, v, mask) * grow
        total = total * shrink + part_total * grow
        top = larger
    STORE(args, b, h, m, v, acc / tl.where(total == 0.0, 1.0, total), mask)


def reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    bias: np.ndarray | None = None,
    causal: bool = False,
    offset: int = 0,
    softcap: float = 0.0,
) -> np.ndarray:
    """Attention in float32.

    Args:
        q: (BATCH, HEADS, QUERIES, DIM).
        k: (BATCH, HEADS // GROUP, KEYS, DIM).
        v: (BATCH, HEADS // GROUP, KEYS, V_DIM).
        scale: What products of queries and keys are multiplied with.
        bias: What broadcasts to (BATCH, HEADS, QUERIES, KEYS).
        causal: Whether query ``m`` sees the keys up to ``m + offset`` only.
        offset: Keys before the first query.
        softcap: Bound of the scores; 0 for none.

    Returns:
        (BATCH, HEADS, QUERIES, V_DIM), float32; 0 for a query that sees no key.
    """
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.astype(np.float32) for x in (q, np.repeat(k, group, 1), np.repeat(v, group, 1)))
    scores = q @ k.swapaxes(2, 3) * np.float32(scale)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if causal:
        queries, keys = scores.shape[2:]
        scores = np.where(np.arange(keys) <= np.arange(queries)[:, None] + offset, scores, -np.inf)
    top = scores.max(axis=3, keepdims=True, initial=-np.inf)
    power = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = power.sum(axis=3, keepdims=True)
    return np.asarray(power / np.where(total == 0, 1, total) @ v, np.float32)


_CONSTANTS = {
    "DIM": None,
    "V_DIM": None,
    "SCALE": None,
    "CAUSAL": False,
    "HAS_BIAS": False,
    "SOFTCAP": 0.0,
    "GROUP": 1,
}
_TILE = {"BLOCK_M": None, "BLOCK_N": None, "BLOCK_D": None, "BLOCK_V": None, "PRECISION": "tf32"}
_SIZES = ("QUERIES", "KEYS", "HEADS", "BATCH", "OFFSET")
_LOADS = {
    "LOAD_Q": ("b", "h", "m", "d"),
    "LOAD_K": ("b", "hk", "n", "d"),
    "LOAD_V": ("b", "hk", "n", "d"),
    "LOAD_BIAS": ("b", "h", "m", "n"),
}

ATTENTION = Kernel(
    name="attention",
    function=attention,
    grid=("ceildiv(QUERIES, BLOCK_M) * HEADS * BATCH",),
    sizes=_SIZES,
    hooks={**_LOADS, "STORE": ("b", "h", "m", "d")},
    constants={**_CONSTANTS, **_TILE},
    reference=reference,
)
ATTENTION_SPLIT = Kernel(
    name="attention_split",
    function=attention_split,
    grid=("ceildiv(QUERIES * GROUP, BLOCK_M) * (HEADS // GROUP) * BATCH", "SPLITS"),
    sizes=_SIZES,
    hooks={
        **_LOADS,
        "STORE_PARTIAL": ("b", "h", "split", "m", "d"),
        "STORE_TOP": ("b", "h", "split", "m"),
        "STORE_TOTAL": ("b", "h", "split", "m"),
    },
    constants={**_CONSTANTS, "SPLITS": None, **_TILE},
)
ATTENTION_COMBINE = Kernel(
    name="attention_combine",
    function=attention_combine,
    grid=("ceildiv(QUERIES * HEADS * BATCH, BLOCK_M)",),
    sizes=("QUERIES", "HEADS", "BATCH"),
    hooks={
        "LOAD_PARTIAL": ("b", "h", "split", "m", "d"),
        "LOAD_TOP": ("b", "h", "split", "m"),
        "LOAD_TOTAL": ("b", "h", "split", "m"),
        "STORE": ("b", "h", "m", "d"),
    },
    constants={"V_DIM": None, "SPLITS": None, "BLOCK_M": 1, "BLOCK_V": None},
)
