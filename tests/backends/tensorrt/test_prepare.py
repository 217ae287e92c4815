"""What is written otherwise for TensorRT computes the same, and the check has nothing against it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir
import pytest

from optc.backends.tensorrt.check import check
from optc.backends.tensorrt.prepare import prepare
from optc.ir.functions import FUSED_DOMAIN
from optc.ir.metadata import CALIBRATION_KEY

from .models import draw, ops, run, standard

ROWS = {"x": draw(5, 8)}


def same(model: onnx_ir.Model, feeds: dict[str, np.ndarray]) -> onnx_ir.Model:
    """The model prepared: what is given is left as it is, and the results are the same bits."""
    before = ops(model)
    made = prepare(model)
    assert ops(model) == before and made is not model
    for one, other in zip(run(made, feeds), run(model, feeds), strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    return made


def test_codes_around_128_become_codes_around_0():
    text = """g (float[N, 8] x) => (float[N, 4] y) {
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
        v = DequantizeLinear <axis = 1> (w, t, o) y = MatMul (d, v)
    }"""
    weights = {
        "s": np.float32(0.02),
        "z": np.uint8(128),
        "w": np.random.default_rng(0).integers(0, 256, (8, 4), np.uint8),
        "t": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        "o": np.full(4, 128, np.uint8),
    }
    model = standard(text, **weights)
    assert any("codes are uint8" in problem.what for problem in check(model))
    made = same(model, {"x": 3 * ROWS["x"]})
    assert check(made) == []
    types = {value.dtype for node in made.graph for value in node.inputs if value is not None}
    assert onnx_ir.DataType.UINT8 not in types
    assert [value.name for value in made.graph.outputs] == ["y"]


def test_codes_around_128_that_something_else_reads_stay_and_are_refused():
    text = """g (float[N, 8] x) => (float[N, 8] y, uint8[N, 8] q) {
        q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)
    }"""
    model = standard(text, s=np.float32(0.02), z=np.uint8(128))
    assert [problem.op for problem in check(same(model, ROWS))].count("QuantizeLinear") >= 1


def test_another_zero_point_stays_and_is_refused():
    text = "g (float[N, 8] x) => (float[N, 8] y) { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }"
    found = check(same(standard(text, s=np.float32(0.02), z=np.uint8(120)), ROWS))
    assert {problem.what for problem in found} >= {"its codes are uint8", "its zero point is not 0"}


def test_biases_in_32_bits_become_the_floats_that_they_stand_for():
    text = """g (float[1, 2, 4, 4] x) => (float[A, B, C, D] y) {
        b = DequantizeLinear <axis = 0> (c, s) y = Conv (x, w, b)
    }"""
    weights = {"c": np.array([100, -200, 7], np.int32), "s": np.array([0.1, 0.2, 0.3], np.float32)}
    model = standard(text, w=draw(3, 2, 1, 1), **weights)
    made = same(model, {"x": draw(1, 2, 4, 4)})
    assert check(made) == [] and ops(made) == {"Conv": 1}


@pytest.mark.parametrize(("exponent", "changed"), [(np.int64(3), True), (np.float64(0.1), False)])
def test_constants_take_the_type_of_what_they_meet_where_it_holds_them(exponent, changed):
    model = standard("g (float[N, 8] x) => (float[N, 8] y) { y = Pow (x, e) }", e=exponent)
    made = prepare(model)
    assert (made.graph[0].inputs[1].dtype == onnx_ir.DataType.FLOAT) == changed
    assert (check(made) == []) == changed
    assert np.allclose(run(made, ROWS)[0], run(model, ROWS)[0], rtol=1e-6, equal_nan=True)


def test_the_opset_is_raised_to_the_first_that_has_all_operators():
    text = "g (float[N, 8] x) => (float[N, 8] y) { y = LayerNormalization (x, s) }"
    made = same(standard(text, 13, s=draw(8)), ROWS)
    assert made.graph.opset_imports[""] == 17 and check(made) == []
    untouched = prepare(standard("g (float[N, 8] x) => (float[N, 8] y) { y = Relu (x) }", 13))
    assert untouched.graph.opset_imports[""] == 13 and untouched.ir_version == 7


FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
g (float[N, 8] x) => (float[N, 8] y) {{ y = mine.outer (x) }}
<domain: "mine", opset_import: ["" : {inner}, "mine" : 1]> outer (a) => (b) {{ c = mine.inner (a) b = Relu (c) }}
<domain: "mine", opset_import: ["" : {inner}]> inner (a) => (b) {{ b = Exp (a) }}
"""


@pytest.mark.parametrize("inner", [17, 13])
def test_functions_become_their_parts(inner):
    made = same(onnx_ir.from_onnx_text(FUNCTIONS.format(inner=inner)), ROWS)
    assert ops(made) == {"Exp": 1, "Relu": 1} and not made.functions and check(made) == []


def test_a_function_of_a_later_opset_is_left_and_refused():
    model = onnx_ir.from_onnx_text(FUNCTIONS.format(inner=18))
    assert [problem.op for problem in check(prepare(model))] == ["mine::outer"]


def test_fused_ops_become_their_parts():
    text = f"""<ir_version: 8, opset_import: ["" : 17, "{FUSED_DOMAIN}" : 1]>
        g (float[N, 8] x) => (float[N, 8] y) {{ y = {FUSED_DOMAIN}.Twice (x) }}
        <domain: "{FUSED_DOMAIN}", opset_import: ["" : 17]> Twice (a) => (b) {{ b = Add (a, a) }}
    """
    assert ops(prepare(onnx_ir.from_onnx_text(text))) == {"Add": 1}


def test_what_calibration_told_stays_out_of_the_file():
    text = "g (float[N, 8] x) => (float[N, 8] y) { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }"
    model = standard(text, s=np.float32(0.02), z=np.int8(0))
    model.graph[0].metadata_props[CALIBRATION_KEY] = "{}"
    assert CALIBRATION_KEY not in prepare(model).graph[0].metadata_props


def test_half_precision_and_four_bits_are_taken_as_they_are():
    text = """g (float16[N, 8] x) => (float16[N, 4] y) {
        d = DequantizeLinear <axis = 0, block_size = 4> (w, s) m = MatMul (x, d) y = Gelu (m)
    }"""
    model = standard(text, w=np.zeros((8, 4), ml_dtypes.int4), s=np.ones((2, 4), np.float16))
    made = prepare(model)
    assert check(made) == []
    assert made.graph[0].inputs[0].const_value.dtype == onnx_ir.DataType.INT4
