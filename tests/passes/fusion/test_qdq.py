"""Operators between quantizers: the integer kernels against the floats that they stand for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .formulas import evaluate, fired, rewrite

_RANGES = {"uint8": (0, 255), "int8": (-128, 127)}
#: Two numbers on the grid may come out a step apart where the exact result lies between; so many of them may.
_SHARE = 0.02


def _model(inputs: str, result: str, constants: str, body: str, opset: int = 17) -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({result} y) <{constants}> {{ {body} }}'
    return onnx.parser.parse_model(text)


def _ops(result) -> Counter[str]:
    return Counter(node.op_type for node in result.model.graph)


def _close(got: np.ndarray, want: np.ndarray) -> bool:
    if got.dtype != want.dtype or got.shape != want.shape:
        return False
    away = np.abs(got.astype(np.int64) - want.astype(np.int64))
    return bool(away.max(initial=0) <= 1 and away.sum() <= _SHARE * away.size)


def _draw(kind: str, shape: list[int], seed: int) -> np.ndarray:
    low, high = _RANGES[kind]
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(kind)


def _weight(kind: str, shape: tuple[int, ...], seed: int) -> str:
    values = ", ".join(str(item) for item in _draw(kind, list(shape), seed).reshape(-1))
    return f"{kind}[{', '.join(map(str, shape))}] w = {{{values}}}"


#: What stands between the quantizers -> the operator that it becomes.
_UNARY = {
    "Sigmoid (a)": "QLinearSigmoid",
    "LeakyRelu <alpha = 0.1> (a)": "QLinearLeakyRelu",
    "AveragePool <kernel_shape = [2, 2], pads = [1, 0, 1, 0]> (a)": "QLinearAveragePool",
    "AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1> (a)": "QLinearAveragePool",
    "GlobalAveragePool (a)": "QLinearGlobalAveragePool",
}


@pytest.mark.parametrize("kind", sorted(_RANGES))
@pytest.mark.parametrize("text", sorted(_UNARY))
def test_unary(text, kind):
    zero = 3 if kind == "int8" else 120
    constants = f"float s = {{0.04}}, {kind} z = {{{zero}}}, float t = {{0.03}}, {kind} u = {{{zero - 2}}}"
    body = f"a = DequantizeLinear (x, s, z) b = {text} y = QuantizeLinear (b, t, u)"
    model = _model(f"{kind}[2, 3, H, 5] x", f"{kind}[P, Q, R, S]", constants, body)
    result = rewrite(model)
    assert _ops(result) == {_UNARY[text]: 1}
    for height in (2, 6):
        feeds = {"x": _draw(kind, [2, 3, height, 5], height)}
        assert _close(evaluate(result, feeds), evaluate(model, feeds))


@pytest.mark.parametrize("kind", sorted(_RANGES))
@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize("other", ["2, 3, 5", "1, 3, 1", "5"])
def test_binary(op, kind, other):
    zero = -4 if kind == "int8" else 130
    constants = f"float s = {{0.0213}}, {kind} z = {{{zero}}}, float t = {{0.0517}}, {kind} u = {{{zero - 2}}}"
    body = f"""a = DequantizeLinear (x, s, z) b = DequantizeLinear (w, t, u) c = {op} (a, b)
        y = QuantizeLinear (c, r, z)"""
    constants += ", float r = {0.0471}"
    model = _model(f"{kind}[2, 3, 5] x, {kind}[{other}] w", f"{kind}[2, 3, 5]", constants, body)
    result = rewrite(model)
    assert _ops(result) == {f"QLinear{op}": 1}
    feeds = {"x": _draw(kind, [2, 3, 5], 1), "w": _draw(kind, [int(n) for n in other.split(",")], 2)}
    assert _close(evaluate(result, feeds), evaluate(model, feeds))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 2]),
    st.integers(0, 999),
)
def test_conv(kinds, per_channel, biased, group, seed):
    kind, weights = kinds
    rng = np.random.default_rng(seed)
    x_zero, y_zero = (int(rng.integers(*_RANGES[kind])) for _ in range(2))
    w_zero = 0 if per_channel else int(rng.integers(-3, 3)) if weights == "int8" else 128
    scales = rng.uniform(0.001, 0.003, 4 if per_channel else 1).astype(np.float32)
    form = "[4]" if per_channel else ""
    v, q = (", ".join(f"{one:.9g}" for one in numbers) for numbers in (scales, np.float32(0.02) * scales))
    n, m = (", ".join([str(zero)] * scales.size) for zero in (w_zero, 0))
    constants = f"""float s = {{0.02}}, {kind} z = {{{x_zero}}}, float t = {{0.05}}, {kind} u = {{{y_zero}}},
        {_weight(weights, (4, 4 // group, 3, 3), seed)}, float{form} v = {{{v}}}, {weights}{form} n = {{{n}}},
        int32[4] o = {{100, -7000, 5, 0}}, float{form} q = {{{q}}}, int32{form} m = {{{m}}}"""
    bias, third = ("d = DequantizeLinear <axis = 0> (o, q, m)", ", d") if biased else ("", "")
    body = f"""a = DequantizeLinear (x, s, z) b = DequantizeLinear <axis = 0> (w, v, n) {bias}
        c = Conv <group = {group}, pads = [1, 1, 0, 0], strides = [2, 1]> (a, b{third}) y = QuantizeLinear (c, t, u)"""
    model = _model(f"{kind}[N, 4, H, W] x", f"{kind}[N, 4, P, Q]", constants, body)
    result = rewrite(model)
    assert _ops(result) == {"QLinearConv": 1}
    for shape in ([2, 4, 9, 8], [1, 4, 3, 5]):
        feeds = {"x": _draw(kind, shape, seed)}
        assert _close(evaluate(result, feeds), evaluate(model, feeds))


def _product(op: str, quantized: bool, opset: int = 17) -> onnx.ModelProto:
    constants = f"""float s = {{0.02}}, uint8 z = {{100}}, float t = {{0.3}}, uint8 u = {{90}},
        {_weight("int8", (6, 5), 3)}, float[5] v = {{0.01, 0.02, 0.03, 0.01, 0.02}}, int8[5] n = {{1, 1, 1, 1, 1}}"""
    end = "y = QuantizeLinear (c, t, u)" if quantized else "y = Identity (c)"
    body = f"a = DequantizeLinear (x, s, z) b = DequantizeLinear <axis = 1> (w, v, n) c = {op} (a, b) {end}"
    return _model("uint8[M, 6] x", f"{'uint8' if quantized else 'float'}[M, 5]", constants, body, opset)


@pytest.mark.parametrize(
    ("op", "quantized", "wanted"),
    [
        ("MatMul", True, {"QLinearMatMul": 1}),
        ("Gemm", True, {"QGemm": 1}),
        ("MatMul", False, {"MatMulIntegerToFloat": 1, "Identity": 1}),
    ],
)
def test_products_with_scales_per_column(op, quantized, wanted):
    model = _product(op, quantized)
    result = rewrite(model)
    assert _ops(result) == wanted
    for rows in (1, 7, 0):
        feeds = {"x": _draw("uint8", [rows, 6], rows)}
        got, want = evaluate(result, feeds), evaluate(model, feeds)
        assert _close(got, want) if quantized else np.allclose(got, want, rtol=1e-5, atol=1e-5)


def test_concat_and_where():
    constants = "float s = {0.02}, uint8 z = {100}, float t = {0.03}, uint8 u = {90}"
    ends = "a = DequantizeLinear (x, s, z) b = DequantizeLinear (w, t, u) c = {} y = QuantizeLinear (c, t, z)"
    feeds = {"x": _draw("uint8", [2, 3], 1), "w": _draw("uint8", [2, 3], 2), "p": np.array([[True], [False]])}
    for text, op in (("Concat <axis = -1> (a, b)", "QLinearConcat"), ("Where (p, a, b)", "QLinearWhere")):
        given = "uint8[2, 3] x, uint8[2, 3] w, bool[2, 1] p"
        model = _model(given, "uint8[2, K]", constants, ends.format(text))
        result = rewrite(model)
        assert _ops(result) == {op: 1}
        assert _close(evaluate(result, feeds), evaluate(model, feeds))


def test_max_pool_is_exact_and_keeps_its_grid():
    constants = "float s = {0.02}, uint8 z = {100}, float t = {0.03}"
    pool = "a = DequantizeLinear (x, s, z) b = MaxPool <kernel_shape = [3], pads = [1, 1]> (a) "
    same = _model("uint8[1, 2, N] x", "uint8[1, 2, N]", constants, pool + "y = QuantizeLinear (b, s, z)")
    result = rewrite(same)
    assert _ops(result) == {"MaxPool": 1}
    feeds = {"x": _draw("uint8", [1, 2, 9], 0)}
    assert np.array_equal(evaluate(result, feeds), evaluate(same, feeds))
    other = rewrite(_model("uint8[1, 2, N] x", "uint8[1, 2, N]", constants, pool + "y = QuantizeLinear (b, t, z)"))
    assert fired(other) == {}
    assert "must be the same" in other.misses["quantized-op"][0].wanted


def test_a_dequantized_value_with_other_readers_is_read_as_integers():
    constants = "float s = {0.02}, uint8 z = {100}, float t = {0.03}"
    body = "a = DequantizeLinear (x, s, z) b = Sigmoid (a) y = QuantizeLinear (b, t, z) f = Neg (a)"
    text = (
        f'<ir_version: 8, opset_import: ["": 17]> g (uint8[N] x) => (uint8[N] y, float[N] f) <{constants}> {{ {body} }}'
    )
    assert _ops(rewrite(onnx.parser.parse_model(text))) == {"QLinearSigmoid": 1, "DequantizeLinear": 1, "Neg": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("float q = {0.0002}", "float q = {0.00021}"), "the scale of the product"),
        (("float v = {0.01}", "float[2] v = {0.01, 0.02}"), "per output channel"),
        (("o, q, m", "o, q, m) e = Neg (d"), None),
        (("float s = {0.02}", "float[1] s = {0.02}"), None),
    ],
)
def test_refusals_of_conv(change, reason):
    constants = """float s = {0.02}, uint8 z = {100}, float t = {0.3}, uint8 u = {90}, int8[2, 2, 1] w = {1, 2, 3, 4},
        float v = {0.01}, int32[2] o = {5, 6}, float q = {0.0002}, int32 m = {0}"""
    body = """a = DequantizeLinear (x, s, z) b = DequantizeLinear <axis = 1> (w, v) d = DequantizeLinear (o, q, m)
        c = Conv (a, b, d) y = QuantizeLinear (c, t, u)"""
    constants, body = (text.replace(*change) for text in (constants, body))
    result = rewrite(_model("uint8[1, 2, N] x", "uint8[1, 2, N]", constants, body))
    if reason is None:
        assert fired(result) == {"quantized-op": 1}
    else:
        assert fired(result) == {}
        assert reason in result.misses["quantized-op"][0].wanted


def test_sums_that_might_not_fit_32_bits_stay_floats():
    model = """<ir_version: 8, opset_import: ["": 17]> g (uint8[M, K] x, uint8[{}, 4] w) => (uint8[M, 4] y)
        <float s = {{0.02}}, uint8 z = {{100}}> {{ a = DequantizeLinear (x, s, z) b = DequantizeLinear (w, s, z)
        c = MatMul (a, b) y = QuantizeLinear (c, s, z) }}"""
    fits = 2**31 // (155 * 155)
    assert fired(rewrite(onnx.parser.parse_model(model.format(fits)))) == {"quantized-op": 1}
    for columns in (fits + 1, "K"):
        result = rewrite(onnx.parser.parse_model(model.format(columns)))
        assert "32 bits" in result.misses["quantized-op"][0].wanted


def test_only_the_cpu_provider_has_the_kernels():
    assert _ops(rewrite(_product("MatMul", True), target="a100")) == {
        "DequantizeLinear": 2,
        "MatMul": 1,
        "QuantizeLinear": 1,
    }
