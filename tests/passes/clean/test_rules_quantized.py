"""Quantizers: what undoes what, and bounds that the quantizer has itself."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.passes.clean.rules_quantized import RANGES
from optc.passes.clean.simplify import Simplify

from .rulecheck import check

_NAMES = {"int8": "INT8", "uint8": "UINT8", "int16": "INT16", "uint16": "UINT16"}


def _pair(
    kind: str, scale: float, zero: int, second: tuple[float, int] | None = None, between: str = "b = Neg (a)"
) -> str:
    """Integers are dequantized, something happens, and they are quantized again."""
    again = second or (scale, zero)
    return f"""g ({kind}[N, 2] x) => ({kind}[K, M] y)
    <float s = {{{scale:.9g}}}, {kind} z = {{{zero}}}, float t = {{{again[0]:.9g}}}, {kind} u = {{{again[1]}}},
     int64[2] flipped = {{2, -1}}>
    {{ a = DequantizeLinear (x, s, z) {between} y = QuantizeLinear (b, t, u) }}"""


@pytest.mark.parametrize("kind", sorted(_NAMES))
@settings(max_examples=12, deadline=None)
@given(scale=st.floats(2.0**-40, 2.0**20, width=32), data=st.data())
def test_every_integer_comes_back(kind, scale, data):
    low, high = RANGES[onnx_ir.DataType[_NAMES[kind]]]
    zero = data.draw(st.integers(low, high))
    values = np.arange(low, high + 1, dtype=kind).reshape(-1, 2)
    outcome = check(_pair(kind, scale, zero, between="b = Identity (a)"), Simplify(), opset=21, feeds=[{"x": values}])
    assert outcome.hits["quantize-dequantized"] == 1
    assert outcome.ops == {"Identity": 1}  # an input is an output


@pytest.mark.parametrize(
    ("between", "left"),
    [
        ("b = Transpose <perm = [1, 0]> (a)", "Transpose"),
        ("b = Reshape (a, flipped)", "Reshape"),
        ("c = Transpose <perm = [1, 0]> (a) b = Flatten <axis = 0> (c)", "Flatten"),
    ],
)
def test_what_moves_elements_moves_integers(between, left):
    outcome = check(_pair("uint8", 0.03, 7, between=between), Simplify())
    assert outcome.hits["quantize-dequantized"] == 1
    assert outcome.ops[left] == 1
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(outcome.ops)


@pytest.mark.parametrize(
    "text",
    [
        _pair("uint8", 0.03, 7, (0.03, 8), "b = Identity (a)"),
        _pair("uint8", 0.03, 7, (0.031, 7), "b = Identity (a)"),
        _pair("uint8", 1e-40, 7, between="b = Identity (a)"),
        _pair("uint8", 0.03, 7),
        _pair("int16", 0.03, 7, between="b = Transpose <perm = [1, 0]> (a)"),
    ],
    ids=["zero point", "scale", "subnormal scale", "arithmetic", "16 bits moved"],
)
def test_what_must_stay(text):
    assert "quantize-dequantized" not in check(text, Simplify(), opset=21, sizes=(3, 1)).hits


def test_scales_per_channel():
    head = "g (int8[N, 2] x) => (int8[M, K] y) <float[2] s = {0.5, 2.0}, int8[2] z = {1, -1}>"
    straight = f"{head} {{ a = DequantizeLinear <axis = 1> (x, s, z) y = QuantizeLinear <axis = -1> (a, s, z) }}"
    assert check(straight, Simplify()).hits == {"quantize-dequantized": 1}
    turned = f"""{head} {{ a = DequantizeLinear <axis = 1> (x, s, z) b = Transpose <perm = [1, 0]> (a)
        y = QuantizeLinear <axis = 0> (b, s, z) }}"""
    assert check(turned, Simplify(), sizes=(3,)).hits == {}


@pytest.mark.parametrize(
    ("clip", "scale", "zero", "goes"),
    [
        ("a = Relu (x)", 0.1, 0, True),
        ("a = Relu (x)", 0.1, 3, False),
        ("a = Clip (x, low, six)", 6 / 255, 0, True),
        ("a = Clip (x, low, six)", 6 / 200, 0, False),
        ("a = Clip (x, low, six)", 6 / 300, 0, True),
        ("a = Clip (x, low)", 0.02, 0, True),
        ("a = Clip (x, x0)", 0.02, 0, False),
    ],
)
def test_bounds_that_the_quantizer_has(clip, scale, zero, goes):
    text = f"""g (float[N] x, float x0) => (uint8[N] y)
        <float s = {{{scale:.9g}}}, uint8 z = {{{zero}}}, float low = {{0}}, float six = {{6}}>
        {{ {clip} y = QuantizeLinear (a, s, z) }}"""
    feeds = [{"x": np.linspace(-9, 9, 4001, dtype=np.float32), "x0": np.float32(0)}]
    assert check(text, Simplify(), feeds=feeds).hits == ({"clip-quantized": 1} if goes else {})


@pytest.mark.parametrize(
    ("kind", "opset", "axis", "standard"),
    [
        ("uint8", 13, "", True),
        ("int8", 13, "axis = 0", True),
        ("int8", 11, "axis = 0", False),
        ("int16", 13, "", False),
        ("int16", 21, "", True),
    ],
)
def test_quantizers_of_onnx_runtime(kind, opset, axis, standard):
    form, both = ("[2]", "{1, 2}") if axis else ("", "{1}")
    text = f"""<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> g (float[2, N] x) => (float[2, N] y)
        <float{form} s = {both}, {kind}{form} z = {both}> {{ a = com.microsoft.QuantizeLinear <{axis}> (x, s, z)
        b = Neg (x) c = com.microsoft.DequantizeLinear <{axis}> (a, s, z) y = Add (b, c) }}"""
    outcome = check(
        onnx.parser.parse_model(text.replace("<>", "")), Simplify(only=("standard-quantizer",)), sizes=(3, 1)
    )
    assert outcome.hits == ({"standard-quantizer": 2} if standard else {})
