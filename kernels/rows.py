"""Work on rows: normalizations, softmax, reductions, and the place of the largest element.

A row is whatever the hooks make of it: ``row`` counts everything that is kept, ``j`` everything that is reduced, and
both may stand for several axes in any order. A program takes ROWS_PER rows and looks at BLOCK columns at a time.
LOAD(args, row, j, mask) returns a tile of (ROWS_PER, BLOCK); ``row`` is (ROWS_PER, 1), ``j`` is (1, BLOCK), and what
it returns where the mask is not set does not matter. Few long rows are reduced in two steps by the hooks: first parts
of rows (``row`` counts row and part), then the parts.

NORM and SOFTMAX keep a whole row in registers (BLOCK >= COLUMNS) and call LOAD once per element, so that a LOAD may
have a side effect (the sum of a residual connection as a second output). NORM_LOOP and SOFTMAX_LOOP take rows of any
length and call it twice. REDUCE and ARG take rows of any length and call it once.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from optc.kernels.base import Kernel

_LOG2E = tl.constexpr(1.4426950408889634)
_INF = tl.constexpr(float("inf"))
#: A number of columns that no column has.
_NOWHERE = tl.constexpr(2**31 - 1)


@triton.jit
def _rows(ROWS_PER: tl.constexpr):
    """The rows of this program, as a column of indices."""
    return (tl.program_id(0) * ROWS_PER + tl.arange(0, ROWS_PER))[:, None]


# Normalization


@triton.jit
def rows_norm(
    args,
    ROWS,
    COLUMNS,
    LOAD: tl.constexpr,
    STORE: tl.constexpr,
    BLOCK: tl.constexpr,
    EPSILON: tl.constexpr,
    CENTER: tl.constexpr,
    ROWS_PER: tl.constexpr,
):
    """``y[j] = (x[j] - mean) / sqrt(mean((x - mean)^2) + EPSILON)``; without CENTER the mean is 0 (root mean square).

    The variance is taken of the centered row, in a second pass over registers (Ba et al. 2016; Zhang and Sennrich
    2019). STORE(args, row, j, y, mask) gets float32; scale and shift are its matter.
    """
    row, j = _rows(ROWS_PER), tl.arange(0, BLOCK)[None, :]
    mask = (row < ROWS) & (j < COLUMNS)
    x = tl.where(mask, LOAD(args, row, j, mask).to(tl.float32), 0.0)
    if CENTER:
        x = tl.where(mask, x - tl.sum(x, axis=1, keep_dims=True) / COLUMNS, 0.0)
    variance = tl.sum(x * x, axis=1, keep_dims=True) / COLUMNS
    STORE(args, row, j, x * tl.rsqrt(variance + EPSILON), mask)


@triton.jit
def rows_norm_loop(
    args,
    ROWS,
    COLUMNS,
    LOAD: tl.constexpr,
    STORE: tl.constexpr,
    BLOCK: tl.constexpr,
    EPSILON: tl.constexpr,
    CENTER: tl.constexpr,
    ROWS_PER: tl.constexpr,
):
    """The same for rows of any length: every lane keeps a running mean and sum of squares (Welford 1962), and those
    of the lanes are put together at the end (Chan et al. 1979)."""
    row, lane = _rows(ROWS_PER), tl.arange(0, BLOCK)[None, :]
    mean = tl.zeros((ROWS_PER, BLOCK), tl.float32)
    squares = tl.zeros((ROWS_PER, BLOCK), tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        j = start + lane
        mask = (row < ROWS) & (j < COLUMNS)
        x = LOAD(args, row, j, mask).to(tl.float32)
        if CENTER:
            moved = mean + (x - mean) / (start // BLOCK + 1)
            squares += tl.where(mask, (x - mean) * (x - moved), 0.0)
            mean = tl.where(mask, moved, mean)
        else:
            squares += tl.where(mask, x * x, 0.0)
    count = ((COLUMNS - lane + BLOCK - 1) // BLOCK).to(tl.float32)
    count = tl.where(lane < COLUMNS, count, 0.0)
    middle = tl.sum(mean * count, axis=1, keep_dims=True) / COLUMNS
    squares += count * (mean - middle) * (mean - middle)
    scale = tl.rsqrt(tl.sum(squares, axis=1, keep_dims=True) / COLUMNS + EPSILON)
    for start in range(0, COLUMNS, BLOCK):
        j = start + lane
        mask = (row < ROWS) & (j < COLUMNS)
        STORE(args, row, j, (LOAD(args, row, j, mask).to(tl.float32) - middle) * scale, mask)


# Softmax


@triton.jit
def rows_softmax(
    args,
    ROWS,
    COLUMNS,
    LOAD: tl.constexpr,
    STORE: tl.constexpr,
    BLOCK: tl.constexpr,
    LOG: tl.constexpr,
    ROWS_PER: tl.constexpr,
):
    """``y[j] = exp(x[j]) / sum(exp(x))``, or its logarithm with LOG; a row of nothing but -inf gives NaN, as in ONNX.

    STORE(args, row, j, y, mask) gets float32.
    """
    row, j = _rows(ROWS_PER), tl.arange(0, BLOCK)[None, :]
    mask = (row < ROWS) & (j < COLUMNS)
    x = tl.where(mask, LOAD(args, row, j, mask).to(tl.float32), -_INF)
    x = (x - tl.max(x, axis=1, keep_dims=True)) * _LOG2E
    power = tl.exp2(x)
    total = tl.sum(power, axis=1, keep_dims=True)
    if LOG:
        STORE(args, row, j, (x - tl.log2(total)) / _LOG2E, mask)
    else:
        STORE(args, row, j, power * (1.0 / total), mask)


@triton.jit
def rows_softmax_loop(
    args,
    ROWS,
    COLUMNS,
    LOAD: tl.constexpr,
    STORE: tl.constexpr,
    BLOCK: tl.constexpr,
    LOG: tl.constexpr,
    ROWS_PER: tl.constexpr,
):
    """The same for rows of any length: the largest element and the sum are found in one pass (Milakov and Gimelshein
    2018)."""
    row, lane = _rows(ROWS_PER), tl.arange(0, BLOCK)[None, :]
    top = tl.full((ROWS_PER, BLOCK), -_INF, tl.float32)
    total = tl.zeros((ROWS_PER, BLOCK), tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        mask = (row < ROWS) & (start + lane < COLUMNS)
        x = tl.where(mask, LOAD(args, row, start + lane, mask).to(tl.float32), -_INF)
        top, total = _add_power(top, total, x)
    peak = tl.max(top, axis=1, keep_dims=True)
    total = tl.sum(total * tl.exp2((top - peak) * _LOG2E), axis=1, keep_dims=True)
    for start in range(0, COLUMNS, BLOCK):
        j = start + lane
        mask = (row < ROWS) & (j < COLUMNS)
        x = (LOAD(args, row, j, mask).to(tl.float32) - peak) * _LOG2E
        if LOG:
            STORE(args, row, j, (x - tl.log2(total)) / _LOG2E, mask)
        else:
            STORE(args, row, j, tl.exp2(x) * (1.0 / total), mask)


@triton.jit
def _add_power(top, total, x):
    """``total * e^top + e^x``, again as the larger exponent and what it is multiplied with: one power, not two."""
    gap = tl.where(x == top, 1.0, tl.exp2(-tl.abs(x - top) * _LOG2E))  # where both are infinite, too
    return tl.maximum(top, x), tl.where(x > top, total * gap + 1.0, total + gap)


# Reductions


@triton.jit
def rows_reduce(
    args,
    ROWS,
    COLUMNS,
    LOAD: tl.constexpr,
    STORE: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    ROWS_PER: tl.constexpr,
):
    """One value per row. KIND is "sum", "mean", "max", "min", "prod", "sumsquare", "l1", "l2" or "logsumexp".

    STORE(args, row, value, mask) gets vectors of ROWS_PER. Floats are reduced in float32, integers in their own type
    (of 32 bits at least), but "mean", "l2" and "logsumexp" always in float32. A NaN wins; an empty row gives what
    leaves others as they are (0, 1, -inf, inf; NaN for "mean").
    """
    row, lane = _rows(ROWS_PER), tl.arange(0, BLOCK)[None, :]
    acc = _terms(args, ROWS, COLUMNS, row, lane, LOAD, KIND)
    total = tl.full(acc.shape, 1.0, tl.float32)  # for "logsumexp": the sum is total * e^acc
    for start in range(BLOCK, COLUMNS, BLOCK):
        terms = _terms(args, ROWS, COLUMNS, row, start + lane, LOAD, KIND)
        if KIND == "logsumexp":
            acc, total = _add_power(acc, total, terms)
        elif KIND == "max":
            acc = _larger(acc, terms)
        elif KIND == "min":
            acc = _smaller(acc, terms)
        elif KIND == "prod":
            acc = acc * terms
        else:
            acc += terms
    if KIND == "logsumexp":
        peak = tl.max(acc, axis=1, keep_dims=True)
        peak = tl.where(tl.abs(peak) == _INF, 0.0, peak)
        value = peak + tl.log2(tl.sum(total * tl.exp2((acc - peak) * _LOG2E), axis=1, keep_dims=True)) / _LOG2E
    elif KIND == "max":
        value = tl.reduce(acc, 1, _larger, keep_dims=True)
    elif KIND == "min":
        value = tl.reduce(acc, 1, _smaller, keep_dims=True)
    elif KIND == "prod":
        value = tl.reduce(acc, 1, _product, keep_dims=True)
    else:
        value = tl.sum(acc, axis=1, keep_dims=True)
    if KIND == "mean":
        value = value / COLUMNS
    elif KIND == "l2":
        value = tl.sqrt(value)
    STORE(args, tl.reshape(row, (ROWS_PER,)), tl.reshape(value, (ROWS_PER,)), tl.reshape(row < ROWS, (ROWS_PER,)))


@triton.jit
def _terms(args, ROWS, COLUMNS, row, j, LOAD: tl.constexpr, KIND: tl.constexpr):
    """What a tile adds to a reduction; where it ends, what changes nothing."""
    mask = (row < ROWS) & (j < COLUMNS)
    x = LOAD(args, row, j, mask)
    if x.dtype.is_floating() or KIND == "mean" or KIND == "l2" or KIND == "logsumexp":
        x = x.to(tl.float32)
    elif x.dtype.primitive_bitwidth < 32:
        x = x.to(tl.int32)
    if KIND == "sumsquare" or KIND == "l2":
        x = x * x
    elif KIND == "l1":
        x = tl.abs(x)
    return tl.where(mask, x, _neutral(x.dtype, KIND)).to(x.dtype)


@triton.constexpr_function
def _neutral(dtype, kind):
    """What a reduction may be given without a change of its result."""
    if kind not in ("max", "min", "logsumexp"):
        return 1 if kind == "prod" else 0
    if dtype.is_floating():
        return float("inf") if kind == "min" else float("-inf")
    bits = dtype.primitive_bitwidth
    if dtype.is_int_unsigned():
        return 2**bits - 1 if kind == "min" else 0
    return 2 ** (bits - 1) - 1 if kind == "min" else -(2 ** (bits - 1))


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _product(a, b):
    return a * b


@triton.jit
def rows_arg(
    args,
    ROWS,
    COLUMNS,
    LOAD: tl.constexpr,
    STORE: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    SELECT_LAST: tl.constexpr,
    ROWS_PER: tl.constexpr,
):
    """The column of the largest (KIND "argmax") or smallest ("argmin") element; of equal ones the first or the last.

    STORE(args, row, column, mask) gets vectors of ROWS_PER, int32. A NaN wins. COLUMNS is at least 1.
    """
    row, lane = _rows(ROWS_PER), tl.arange(0, BLOCK)[None, :]
    best, place = _candidates(args, ROWS, COLUMNS, row, lane, LOAD, KIND, SELECT_LAST)
    for start in range(BLOCK, COLUMNS, BLOCK):
        x, j = _candidates(args, ROWS, COLUMNS, row, start + lane, LOAD, KIND, SELECT_LAST)
        best, place = _winner(best, place, x, j)
    best, place = tl.reduce((best, place), 1, _winner)
    column = -place if SELECT_LAST else place
    STORE(args, tl.reshape(row, (ROWS_PER,)), column, tl.reshape(row < ROWS, (ROWS_PER,)))


@triton.jit
def _candidates(args, ROWS, COLUMNS, row, j, LOAD: tl.constexpr, KIND: tl.constexpr, SELECT_LAST: tl.constexpr):
    """A tile and its columns, such that the largest element at the smallest place is what is looked for."""
    mask = (row < ROWS) & (j < COLUMNS)
    x = LOAD(args, row, j, mask)
    if x.dtype.is_floating():
        x = x.to(tl.float32)
    elif x.dtype.primitive_bitwidth < 32:
        x = x.to(tl.int32)
    if KIND == "argmin":
        x = -x if x.dtype.is_floating() else ~x  # both turn the order round
    place = tl.where(mask, -j if SELECT_LAST else j, _NOWHERE)
    return tl.where(mask, x, _neutral(x.dtype, "max")).to(x.dtype), place


@triton.jit
def _winner(x, i, y, j):
    """The larger of two elements, at the smaller place where they are equal."""
    equal = (x == y) | ((x != x) & (y != y))
    first = (x > y) | ((x != x) & (y == y)) | (equal & (i < j))
    return tl.where(first, x, y), tl.where(first, i, j)


# In NumPy


def reference_norm(x: np.ndarray, epsilon: float, center: bool = True) -> np.ndarray:
    """Rows with mean 0 (with ``center``) and mean square 1: (ROWS, COLUMNS) of any float type -> float32."""
    x = x.astype(np.float32)
    if center:
        x = x - x.mean(axis=1, keepdims=True)
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + epsilon), np.float32)


def reference_softmax(x: np.ndarray, log: bool = False) -> np.ndarray:
    """Softmax along rows, or its logarithm: (ROWS, COLUMNS) of any float type -> float32."""
    x = x.astype(np.float32)
    x = x - x.max(axis=1, keepdims=True)
    total = np.exp(x).sum(axis=1, keepdims=True)
    return np.asarray(x - np.log(total) if log else np.exp(x) / total, np.float32)


def reference_reduce(x: np.ndarray, kind: str) -> np.ndarray:
    """One value per row: (ROWS, COLUMNS) -> (ROWS,), float32, or the type of integers."""
    if np.issubdtype(x.dtype, np.integer) and kind not in ("mean", "l2", "logsumexp"):
        x = {"sumsquare": x * x, "l1": np.abs(x)}.get(kind, x)
        reduce = {"max": np.maximum, "min": np.minimum, "prod": np.multiply}.get(kind, np.add)
        return np.asarray(reduce.reduce(x, axis=1), x.dtype)
    x = x.astype(np.float64)
    found = {
        "sum": lambda: x.sum(1),
        "mean": lambda: x.mean(1),
        "max": lambda: x.max(1, initial=-np.inf),
        "min": lambda: x.min(1, initial=np.inf),
        "prod": lambda: x.prod(1),
        "sumsquare": lambda: (x * x).sum(1),
        "l1": lambda: np.abs(x).sum(1),
        "l2": lambda: np.sqrt((x * x).sum(1)),
        "logsumexp": lambda: np.logaddexp.reduce(x, axis=1, initial=-np.inf),
    }[kind]()
    return np.asarray(found, np.float32)


def reference_arg(x: np.ndarray, kind: str, select_last: bool = False) -> np.ndarray:
    """The column of the largest or smallest element: (ROWS, COLUMNS) -> (ROWS,), int32."""
    find = {"argmax": np.argmax, "argmin": np.argmin}[kind]
    found = x.shape[1] - 1 - find(x[:, ::-1], axis=1) if select_last else find(x, axis=1)
    return np.asarray(found, np.int32)


_GRID = ("ceildiv(ROWS, ROWS_PER)",)
_SIZES = ("ROWS", "COLUMNS")
_ELEMENTS = {"LOAD": ("row", "j"), "STORE": ("row", "j")}
_VALUES = {"LOAD": ("row", "j"), "STORE": ("row",)}
_NORM_CONSTANTS = {"BLOCK": None, "EPSILON": None, "CENTER": True, "ROWS_PER": 1}
_SOFTMAX_CONSTANTS = {"BLOCK": None, "LOG": False, "ROWS_PER": 1}

NORM = Kernel("rows_norm", rows_norm, _GRID, _SIZES, _ELEMENTS, _NORM_CONSTANTS, reference_norm)
NORM_LOOP = Kernel("rows_norm_loop", rows_norm_loop, _GRID, _SIZES, _ELEMENTS, _NORM_CONSTANTS, reference_norm)
SOFTMAX = Kernel("rows_softmax", rows_softmax, _GRID, _SIZES, _ELEMENTS, _SOFTMAX_CONSTANTS, reference_softmax)
SOFTMAX_LOOP = Kernel(
    "rows_softmax_loop", rows_softmax_loop, _GRID, _SIZES, _ELEMENTS, _SOFTMAX_CONSTANTS, reference_softmax
)
REDUCE = Kernel(
    "rows_reduce",
    rows_reduce,
    _GRID,
    _SIZES,
    _VALUES,
    {"BLOCK": None, "KIND": None, "ROWS_PER": 1},
    reference_reduce,
)
ARG = Kernel(
    "rows_arg",
    rows_arg,
    _GRID,
    _SIZES,
    _VALUES,
    {"BLOCK": None, "KIND": None, "SELECT_LAST": False, "ROWS_PER": 1},
    reference_arg,
)
