"""What ONNX Runtime's CPU provider makes of graphs that were placed for it: the kernels it runs, and the numbers.

Each case names what must be left. A pair that were not absorbed would show as a QuantizeLinear or DequantizeLinear
more, a layer that stayed in floats as a Conv, MatMul or Gemm.
"""

from __future__ import annotations

import numpy as np
import pytest

from optc.passes.compress.integer.absorb import unabsorbed
from tests.passes.compress.texts import parse

from .graphs import absorbed, draw, error, kernels, optimized, quantized, run

IMAGE = {"x": draw(1, 8, 12, 12)}
ROWS = {"x": draw(2, 5, 32)}
W, V, U = draw(16, 8, 3, 3) / 8, draw(16, 16, 1, 1) / 4, draw(16, 1, 3, 3) / 3
B = draw(16, seed=1) / 4
M, N = draw(32, 48) / 6, draw(48, 24) / 7
BORDERS = {"QuantizeLinear": 1, "DequantizeLinear": 1}

CONV = "Conv <pads = [1, 1, 1, 1]>"
IMAGES = "g (float[N, 8, H, W] x) => (float[N, C, P, Q] y)"
PRODUCTS = "g (float[A, B, 32] x) => (float[A, B, M] y)"

#: name -> (head, body, weights, the kernels that run)
CASES = {
    "conv": (IMAGES, f"y = {CONV} (x, w, b)", {"w": W, "b": B}, {"QLinearConv": 1, **BORDERS}),
    "conv without bias": (IMAGES, f"y = {CONV} (x, w)", {"w": W}, {"QLinearConv": 1, **BORDERS}),
    "conv, relu": (IMAGES, f"a = {CONV} (x, w, b) y = Relu (a)", {"w": W, "b": B}, {"QLinearConv": 1, **BORDERS}),
    "conv, clip": (
        IMAGES,
        f"a = {CONV} (x, w, b) y = Clip (a, low, high)",
        {"w": W, "b": B, "low": np.float32(0), "high": np.float32(6)},
        {"QLinearConv": 1, **BORDERS},
    ),
    "two convs": (
        IMAGES,
        f"a = {CONV} (x, w, b) c = Relu (a) y = Conv (c, v)",
        {"w": W, "b": B, "v": V},
        {"QLinearConv": 2, **BORDERS},
    ),
    "depthwise": (
        IMAGES,
        f"a = {CONV} (x, w, b) y = Conv <group = 16> (a, u)",
        {"w": W, "b": B, "u": U},
        {"QLinearConv": 2, **BORDERS},
    ),
    "residual": (
        IMAGES,
        f"a = {CONV} (x, w, b) c = Relu (a) d = Conv (c, v) e = Add (d, c) f = Relu (e) y = Conv (f, t)",
        {"w": W, "b": B, "v": V, "t": V + 0.1},
        {"QLinearConv": 3, "QLinearAdd": 1, **BORDERS},
    ),
    "pool": (
        IMAGES,
        f"a = {CONV} (x, w, b) c = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a) y = Conv (c, v)",
        {"w": W, "b": B, "v": V},
        {"QLinearConv": 2, "NhwcMaxPool": 1, **BORDERS},
    ),
    "head": (
        "g (float[N, 8, H, W] x) => (float[N, M] y)",
        f"""a = {CONV} (x, w, b) c = Relu (a) d = GlobalAveragePool (c) e = Flatten (d)
            y = Gemm <transB = 1> (e, m, k)""",
        {"w": W, "b": B, "m": draw(10, 16), "k": draw(10)},
        {"QLinearConv": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1, "Flatten": 1, "QuantizeLinear": 1},
    ),
    "concat": (
        IMAGES,
        f"a = {CONV} (x, w, b) c = {CONV} (x, t) d = Concat <axis = 1> (a, c) y = Conv (d, v)",
        {"w": W, "b": B, "t": 3 * W, "v": draw(4, 32, 1, 1)},
        {"QLinearConv": 3, "QLinearConcat": 1, **BORDERS},
    ),
    "matmul": (PRODUCTS, "y = MatMul (x, m)", {"m": M}, {"MatMulIntegerToFloat": 1, "QuantizeLinear": 1}),
    "matmul, bias": (
        PRODUCTS,
        "a = MatMul (x, m) y = Add (k, a)",
        {"m": M, "k": draw(48)},
        {"MatMulIntegerToFloat": 1, "QuantizeLinear": 1},
    ),
    "two matmuls": (
        PRODUCTS,
        "a = MatMul (x, m) c = Relu (a) y = MatMul (c, n)",
        {"m": M, "n": N},
        {"QLinearMatMul": 1, "MatMulIntegerToFloat": 1, "QuantizeLinear": 1},
    ),
    "one input, two matmuls": (
        PRODUCTS,
        "a = MatMul (x, m) c = MatMul (x, o) y = Add (a, c)",
        {"m": M, "o": M + 1},
        {"MatMulIntegerToFloat": 2, "QuantizeLinear": 1, "Add": 1},
    ),
    "gemm, gelu": (
        "g (float[A, 32] x) => (float[A, M] y)",
        "a = Gemm (x, m, k) c = Tanh (a) y = Gemm (c, n)",
        {"m": M, "k": draw(48), "n": N},
        {"QGemm": 2, "QuantizeLinear": 2, "Tanh": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels(name):
    head, body, weights, wanted = CASES[name]
    feeds = {"x": draw(6, 32)} if "[A, 32]" in head else IMAGE if "8, H" in head else ROWS
    model = parse(f"{head} {{ {body} }}", weights)
    pairs, plan = quantized(model, feeds)
    assert not plan.refused
    result = absorbed(pairs)
    assert kernels(result) == wanted
    assert unabsorbed(optimized(result)) == {}
    (expected,), (got,) = run(model, feeds), run(result, feeds)
    assert error(got, expected) < 0.03
    # Both forms are the same network: products of integers are exact, and an element is one step off at most.
    assert error(run(pairs, feeds)[0], got) < 0.01


def test_a_value_is_quantized_once_and_floats_are_kept_for_others():
    """Two products and a sum read x; only the products read integers."""
    model = parse(
        "g (float[A, B, 32] x) => (float[A, B, 32] y) { a = MatMul (x, m) c = MatMul (x, n) d = Add (a, c) "
        "y = Add (d, x) }",
        {"m": draw(32, 32) / 6, "n": draw(32, 32, seed=3) / 6},
    )
    pairs, plan = quantized(model, ROWS)
    assert [value.name for value in plan.values] == ["x"] and not plan.whole
    assert sum(node.op_type == "QuantizeLinear" for node in pairs.graph) == 1
    assert pairs.graph.outputs[0].producer().inputs[1].name == "x"


def test_an_inner_output_stays_an_output():
    """What a convolution writes is also the model's output: it comes back from the grid under its own name."""
    model = parse(
        f"g (float[N, 8, H, W] x) => (float[N, C, P, Q] c, float[N, D, S, T] y) {{ a = {CONV} (x, w, b) c = Relu (a) "
        "y = Conv (c, v) }",
        {"w": W, "b": B, "v": V},
    )
    pairs, plan = quantized(model, IMAGE)
    assert len(plan.whole) == 2
    result = absorbed(pairs)
    assert [value.name for value in result.graph.outputs] == ["c", "y"]
    for got, want in zip(run(result, IMAGE), run(model, IMAGE), strict=True):
        assert error(got, want) < 0.03
    assert kernels(result) == {"QLinearConv": 2, "QuantizeLinear": 1, "DequantizeLinear": 2}


def test_a_sum_with_a_float_product_is_no_reason_to_round_again():
    """The product writes floats, so a sum of it does not become one of integers, though a layer reads it."""
    model = parse(
        "g (float[A, B, 32] x) => (float[A, B, M] y) { a = MatMul (x, m) c = MatMul (x, n) d = Add (a, c) "
        "y = MatMul (d, o) }",
        {"m": draw(32, 32) / 6, "n": draw(32, 32, seed=3) / 6, "o": M},
    )
    pairs, plan = quantized(model, ROWS)
    assert plan.passing == []
    assert kernels(absorbed(pairs)) == {"MatMulIntegerToFloat": 3, "QuantizeLinear": 2, "Add": 1}


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("y = Conv (x, w, k)", {"w": W}, "bias"),
        ("y = Gemm <alpha = 2.0> (x, m)", {"m": M}, "alpha"),
        ("y = Gemm (x, m, k)", {"m": M, "k": draw(1, 48)}, "bias"),
        ("y = MatMul (x, m)", {"m": draw(3, 32, 8)}, "matrix"),
    ],
)
def test_refused(body, weights, reason):
    shapes = "float[N, 8, H, W] x, float[16] k" if "Conv" in body else "float[A, 32] x"
    model = parse(f"g ({shapes}) => (float y) {{ {body} }}", weights)
    feeds = {**IMAGE, "k": B} if "Conv" in body else {"x": draw(3, 32)}
    result, plan = quantized(model, feeds)
    assert len(plan.refused) == 1 and reason in next(iter(plan.refused.values()))
    assert [node.op_type for node in result.graph] == [node.op_type for node in model.graph]


def test_a_bias_that_would_not_fit_32_bits():
    """Tiny weights beside a large bias: the channel's grid is coarser, its bias right; others keep theirs."""
    weight, bias = W.copy(), B.copy()
    weight[0] *= 1e-9
    bias[0], weight[1], bias[1] = 50.0, 0.0, 3.0
    model = parse(f"{IMAGES} {{ y = {CONV} (x, w, b) }}", {"w": weight, "b": bias})
    pairs, _ = quantized(model, IMAGE)
    (got,), (want,) = run(absorbed(pairs), IMAGE), run(model, IMAGE)
    step = float(want.max() - want.min()) / 255
    assert np.abs(got - want).max() < 1.5 * step
