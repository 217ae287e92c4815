"""Casts: which chains lose nothing, and random chains."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.passes.clean.rules_casts import lossless
from optc.passes.clean.simplify import Simplify

from .programs import program
from .rulecheck import check

DType = onnx_ir.DataType
_FLOAT, _INT32, _INT64, _BOOL, _HALF, _DOUBLE, _INT8 = 1, 6, 7, 9, 10, 11, 3


def _chain(source: str, first: int, second: int, result: str) -> str:
    return f"g ({source}[N] x) => ({result}[N] y) {{ a = Cast <to = {first}> (x) y = Cast <to = {second}> (a) }}"


@pytest.mark.parametrize(
    ("source", "first", "second", "result", "casts"),
    [
        ("float", _DOUBLE, _FLOAT, "float", 0),
        ("float16", _FLOAT, _HALF, "float16", 0),
        ("int32", _INT64, _INT32, "int32", 0),
        ("bool", _FLOAT, _BOOL, "bool", 0),
        ("bool", _INT64, _FLOAT, "float", 1),
        ("int32", _DOUBLE, _INT64, "int64", 1),
        ("float", _HALF, _FLOAT, "float", 2),
        ("int64", _INT32, _INT64, "int64", 2),
        ("int32", _FLOAT, _INT32, "int32", 2),
        ("int32", _BOOL, _INT32, "int32", 2),
    ],
)
def test_cast_chains(source, first, second, result, casts):
    outcome = check(_chain(source, first, second, result), Simplify())
    assert outcome.ops["Cast"] == casts
    assert outcome.runs > 0


def test_a_cast_to_the_same_type_goes():
    outcome = check("g (float[N] x) => (float[N] y) { a = Cast <to = 1> (x) y = Neg(a) }", Simplify())
    assert outcome.hits == {"cast-to-same": 1}


def test_cast_like_lets_go_of_the_other_value():
    text = "g (int32[N] x, float[M] z) => (float[N] y) { a = Exp(z) y = CastLike(x, a) }"
    outcome = check(text, Simplify())
    assert outcome.ops == {"Cast": 1}
    same = "g (float[N] x, float[M] z) => (float[N] y) { a = CastLike(x, z) y = Neg(a) }"
    assert check(same, Simplify()).ops == {"Neg": 1}


def _all_values(dtype: onnx_ir.DataType) -> np.ndarray | None:
    kind = np.dtype(dtype.numpy())
    if kind.itemsize > 2:
        return None
    return np.arange(2 ** (8 * kind.itemsize), dtype=np.uint32).astype(f"u{kind.itemsize}").view(kind)


@pytest.mark.parametrize("source", [DType.UINT8, DType.INT8, DType.UINT16, DType.INT16, DType.FLOAT16, DType.BFLOAT16])
def test_lossless_agrees_with_the_values_themselves(source):
    """Both ways over all values of every small type: a conversion is lossless just if it can be undone."""
    values = _all_values(source)
    assert values is not None
    for to in (DType.INT8, DType.INT16, DType.INT32, DType.UINT16, DType.UINT32, DType.FLOAT16, DType.BFLOAT16):
        if (source in (DType.FLOAT16, DType.BFLOAT16)) and to not in (DType.FLOAT16, DType.BFLOAT16):
            assert not lossless(source, to)
            continue
        finite = values[np.isfinite(values.astype(np.float64))]
        with np.errstate(all="ignore"):
            moved = finite.astype(to.numpy())
            kept = bool(np.all(moved.astype(np.float64) == finite.astype(np.float64)))
        assert lossless(source, to) == kept, (source, to)
    assert lossless(source, DType.DOUBLE)


def test_no_type_that_saturates_is_lossless():
    assert not lossless(DType.FLOAT8E4M3FN, DType.FLOAT)
    assert not lossless(None, DType.FLOAT)
    assert ml_dtypes.finfo(DType.BFLOAT16.numpy()).bits == 16


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_programs(data):
    check(program(data.draw, "casts"), Simplify(), sizes=(3, 0))
