"""Where Q/DQ pairs stand for TensorRT, rule by rule (NVIDIA, "Working with Quantized Types": placement)."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.backends.tensorrt.check import check
from optc.ir.facts import Facts
from optc.ir.ops import int_attr, made_by
from optc.passes.compress.integer.placement import TENSORRT
from optc.passes.compress.integer.plan import why_not
from tests.passes.compress.texts import parse

from .graphs import draw, error, quantized, run

CONV = "Conv <pads = [1, 1, 1, 1]>"
HEAD = "g (float[N, 16, 8, 8] x) => (float[N, C, P, Q] y)"
IMAGE = {"x": draw(2, 16, 8, 8)}
W, V, U, T = (draw(16, 16, 3, 3, seed=seed) / 12 for seed in range(4))
B = draw(16, seed=9) / 4
ROWS = {"x": draw(6, 32)}


def placed(text: str, feeds: dict[str, np.ndarray], **weights: np.ndarray) -> onnx_ir.Model:
    """The model with pairs; they change little, and TensorRT's rules for scales are kept."""
    model = parse(text, weights)
    pairs, _ = quantized(model, feeds, TENSORRT)
    for one, other in zip(run(pairs, feeds), run(model, feeds), strict=True):
        assert error(one, other) < 0.05
    assert check(pairs) == []
    return pairs


def node(model: onnx_ir.Model, op: str, index: int = 0) -> onnx_ir.Node:
    return [one for one in model.graph if one.op_type == op][index]


def on_grid(value: onnx_ir.Value | None) -> str | None:
    """The value behind which a reader's pair stands; None where it reads floats."""
    back = made_by(value, "DequantizeLinear")
    quantizer = made_by(back.inputs[0], "QuantizeLinear") if back is not None else None
    return None if quantizer is None or quantizer.inputs[0] is None else quantizer.inputs[0].name


def quantizers(model: onnx_ir.Model) -> list[str | None]:
    return [one.inputs[0].name for one in model.graph if one.op_type == "QuantizeLinear" and one.inputs[0] is not None]


def scale_of(value: onnx_ir.Value | None) -> float:
    back = made_by(value, "DequantizeLinear")
    assert back is not None and back.inputs[1] is not None and back.inputs[1].const_value is not None
    return float(back.inputs[1].const_value.numpy())


def test_a_convolution_takes_in_bias_and_activation_and_the_pair_comes_behind_them():
    model = placed(f"{HEAD} {{ a = {CONV} (x, w, b) c = Relu (a) y = {CONV} (c, v) }}", IMAGE, w=W, b=B, v=V)
    assert quantizers(model) == ["x", "c"], "nothing between a convolution and its Relu, nothing at the output"
    first = node(model, "Conv")
    assert first.inputs[2] is not None and first.inputs[2].name == "b", "the bias is in floats"
    assert made_by(first.inputs[1], "DequantizeLinear") is not None


def test_swish_stays_in_floats_and_the_pair_comes_behind_the_product():
    model = placed(f"{HEAD} {{ a = {CONV} (x, w) s = Sigmoid (a) m = Mul (a, s) y = {CONV} (m, v) }}", IMAGE, w=W, v=V)
    assert quantizers(model) == ["x", "m"]


def test_a_residual_sum_has_its_pair_on_the_skip():
    text = f"{HEAD} {{ c = Relu (x) a = {CONV} (c, w, b) e = Add (a, c) f = Relu (e) y = {CONV} (f, v) }}"
    model = placed(text, IMAGE, w=W, b=B, v=V)
    add = node(model, "Add")
    assert made_by(add.inputs[0], "Conv") is not None and on_grid(add.inputs[1]) == "c"
    assert quantizers(model) == ["c", "f"], "none between the sum and its Relu"


def test_of_two_convolutions_that_meet_one_is_the_skip():
    text = f"{HEAD} {{ a = {CONV} (x, w, b) d = Conv (x, k) e = Add (d, a) f = Relu (e) y = {CONV} (f, v) }}"
    model = placed(text, IMAGE, w=W, b=B, k=draw(16, 16, 1, 1) / 4, v=V)
    add = node(model, "Add")
    assert on_grid(add.inputs[0]) == "d" and made_by(add.inputs[1], "Conv") is not None


def test_a_sum_of_what_no_layer_makes_alone_is_on_grids_at_both_operands():
    text = (
        f"{HEAD} {{ a = {CONV} (x, w) c = Relu (a) d = {CONV} (x, u) e = Relu (d) f = Add (c, e) y = {CONV} (f, v) }}"
    )
    model = placed(text, IMAGE, w=W, u=U, v=V)
    add = node(model, "Add")
    joined = [on_grid(value) for value in add.inputs]
    assert joined in (["c", None], [None, "e"]), "one of the layers adds, behind its activation or not"


def test_a_product_has_both_operands_on_grids_and_weights_a_scale_per_column():
    model = placed("g (float[N, 32] x) => (float[N, 48] y) { y = MatMul (x, w) }", ROWS, w=draw(32, 48))
    product = node(model, "MatMul")
    assert on_grid(product.inputs[0]) == "x"
    weight = made_by(product.inputs[1], "DequantizeLinear")
    assert weight is not None and int_attr(weight, "axis", 1) == 1
    assert weight.inputs[1].const_value.numpy().shape == (48,)


@pytest.mark.parametrize(("flag", "shape", "axis"), [(0, (32, 48), 1), (1, (48, 32), 0)])
def test_a_gemm_has_a_scale_per_output_and_a_float_bias(flag, shape, axis):
    text = f"g (float[N, 32] x) => (float[N, 48] y) {{ y = Gemm <transB = {flag}> (x, w, b) }}"
    model = placed(text, ROWS, w=draw(*shape), b=draw(48))
    gemm = node(model, "Gemm")
    weight = made_by(gemm.inputs[1], "DequantizeLinear")
    assert weight is not None and int_attr(weight, "axis", 1) == axis and gemm.inputs[2].name == "b"


@pytest.mark.parametrize(("group", "scales"), [(1, 16), (4, 1)])
def test_transposed_convolutions_have_scales_along_their_outputs(group, scales):
    text = f"{HEAD} {{ y = ConvTranspose <group = {group}, strides = [2, 2]> (x, w) }}"
    model = placed(text, IMAGE, w=draw(16, 16 // group, 2, 2))
    weight = made_by(node(model, "ConvTranspose").inputs[1], "DequantizeLinear")
    assert weight is not None and weight.inputs[1].const_value.numpy().size == scales
    assert scales == 1 or int_attr(weight, "axis", 0) == 1


def test_a_concatenation_has_one_scale():
    text = (
        f"{HEAD} {{ a = {CONV} (x, w) c = Relu (a) d = {CONV} (x, u) e = Concat <axis = 1> (c, d) y = {CONV} (e, v) }}"
    )
    model = placed(text, IMAGE, w=W, u=4 * U, v=draw(16, 32, 3, 3) / 12)
    concat = node(model, "Concat")
    scales = {scale_of(value) for value in concat.inputs}
    assert [on_grid(value) for value in concat.inputs] == ["c", "d"] and len(scales) == 1
    assert scales == {scale_of(node(model, "Conv", 2).inputs[0])}


@pytest.mark.parametrize(
    "step",
    [
        "MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)",
        "Transpose <perm = [0, 1, 3, 2]> (c)",
        "Slice (c, starts, ends, axes)",
        "Reshape (c, shape)",
    ],
)
def test_what_moves_elements_has_one_grid_before_and_behind(step):
    ints = {"starts": np.array([0]), "ends": np.array([4]), "axes": np.array([3]), "shape": np.array([0, 16, 4, 16])}
    used = {name: array for name, array in ints.items() if name in step}
    model = placed(f"{HEAD} {{ a = {CONV} (x, w) c = Relu (a) d = {step} y = {CONV} (d, v) }}", IMAGE, w=W, v=V, **used)
    mover, last = node(model, step.split()[0]), node(model, "Conv", 1)
    assert on_grid(mover.inputs[0]) == "c" and on_grid(last.inputs[0]) == "d"
    assert scale_of(mover.inputs[0]) == scale_of(last.inputs[0])


def test_pools_that_compute_have_a_pair_on_both_sides():
    text = f"{HEAD} {{ a = {CONV} (x, w) c = Relu (a) d = AveragePool <kernel_shape = [2, 2]> (c) y = {CONV} (d, v) }}"
    model = placed(text, IMAGE, w=W, v=V)
    assert on_grid(node(model, "AveragePool").inputs[0]) == "c" and on_grid(node(model, "Conv", 1).inputs[0]) == "d"


def test_a_pool_that_only_floats_follow_stays_in_floats():
    text = f"{HEAD} {{ a = {CONV} (x, w) c = Relu (a) d = GlobalAveragePool (c) y = Softmax <axis = 1> (d) }}"
    assert quantizers(placed(text, IMAGE, w=W)) == ["x"]


def test_norms_softmax_and_gelu_have_no_pairs_around_them_but_those_of_layers():
    text = """g (float[N, 32] x) => (float[N, 32] y) {
        l = LayerNormalization (x, s, t) a = MatMul (l, w) b = Add (a, c) e = Erf (b) f = Mul (b, e)
        d = MatMul (f, v) r = Add (d, x) n = LayerNormalization (r, s, t) y = Softmax (n)
    }"""
    weights = {"s": draw(32), "t": draw(32, seed=1), "c": draw(64), "w": draw(32, 64) / 6, "v": draw(64, 32) / 8}
    model = placed(text, ROWS, **weights)
    assert quantizers(model) == ["l", "f"]
    assert all(on_grid(value) is None for value in node(model, "Add", 1).inputs), "the residual stream stays in floats"


def test_two_readers_of_one_value_share_its_pair():
    text = f"{HEAD} {{ c = Relu (x) a = {CONV} (c, w) d = {CONV} (c, u) e = Sigmoid (d) y = Mul (a, e) }}"
    assert quantizers(placed(text, IMAGE, w=W, u=U)) == ["c"]


@pytest.mark.parametrize(
    ("text", "shape", "reason"),
    [
        ("g (float[N, 8] x) => (float[N, 64] y) { y = MatMul (x, w) }", (8, 64), "16 rows and columns"),
        ("g (float[N, 64] x) => (float[N, 1] y) { y = MatMul (x, w) }", (64, 1), "16 rows and columns"),
        ("g (float[N, 64] x) => (float[N, 15] y) { y = Gemm <transB = 1> (x, w) }", (15, 64), "16 rows and columns"),
        ("g (float[N, 3, 8, 8] x) => (float[N, C, P, Q] y) { y = Conv (x, w) }", (32, 3, 7, 7), None),
        ("g (float[N, 3, 8, 8] x) => (float[N, C, P, Q] y) { y = Conv (x, w) }", (12, 3, 3, 3), "few channels"),
        (
            "g (float[N, 3, 8, 8] x) => (float[N, C, P, Q] y) { c = Relu (x) y = Conv (c, w) }",
            (8, 3, 3, 3),
            "few channels",
        ),
        ("g (float[N, 32, 8, 8] x) => (float[N, C, P, Q] y) { c = Relu (x) y = Conv (c, w) }", (8, 32, 3, 3), None),
        ("g (float[N, 32, 8, 8] x) => (float[N, C, P, Q] y) { y = Conv <group = 32> (x, w) }", (32, 1, 3, 3), None),
        (
            "g (float[N, 32, 8, 8] x) => (float[N, C, P, Q] y) { y = Conv <group = 32> (x, w) }",
            (32, 1, 1, 3),
            "few channels",
        ),
        (
            "g (float[N, 12, 8, 8] x) => (float[N, C, P, Q] y) { y = Conv <group = 12> (x, w) }",
            (12, 1, 3, 3),
            "few channels",
        ),
    ],
)
def test_layers_that_are_too_small_for_a_tile_stay_in_floats(text, shape, reason):
    model = parse(text, {"w": draw(*shape)})
    layer = model.graph[-1]
    found = why_not(layer, TENSORRT, Facts(model))
    assert found is None if reason is None else found is not None and reason in found
