"""What becomes narrow and what stays, and why: one small graph for each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir
import pytest

import optc
from optc.backends.ort import Session
from optc.ir.model import load
from optc.ir.saving import to_proto
from tests.passes.precision.plans import casts, narrow_ops, planned, planner, reason, statistics, written

RNG = np.random.default_rng(0)


def model(
    body: str,
    signature: str = "(float[B,64] x) => (float[B,64] y)",
    opset: int = 17,
    contrib: bool = False,
    **weights: np.ndarray,
):
    """A model of a body; weights are given as arrays, w and v are drawn."""
    given = {name: RNG.normal(0, 0.1, (64, 64)).astype(np.float32) for name in "wv"} | weights
    imports = f'"": {opset}' + (', "com.microsoft": 1' if contrib else "")
    text = f"<ir_version: 8, opset_import: [{imports}]> g {signature} {{ {body} }}"
    made = onnx.parser.parse_model(text)
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(array, n) for n, array in given.items() if n in used)
    return load(made)


_KERNELS = {"k": (64, 16, 1, 1), "l": (16, 64, 1, 1)}
TWO = "a = MatMul (x, w)  b = Relu (a)  y = MatMul (b, v)"


def test_products_and_what_joins_them_are_narrow_between_two_casts():
    source = model(TWO)
    assert narrow_ops(planned(source)) == ["MatMul", "Relu", "MatMul"]
    result = written(source)
    assert casts(result) == 2
    assert {value.dtype.name for value in result.graph.initializers.values()} == {"FLOAT16"}
    assert [value.dtype.name for value in (*result.graph.inputs, *result.graph.outputs)] == ["FLOAT", "FLOAT"]
    onnx.checker.check_model(to_proto(result), full_check=True)


def test_a_value_is_cast_once_whoever_reads_it():
    body = "a = MatMul (x, w)  b = MatMul (x, v)  c = Exp (a)  d = Softmax (a)  e = Add (c, d)  y = Add (e, b)"
    result = written(model(body))
    kinds = [node.inputs[0].name for node in result.graph if node.op_type == "Cast"]
    assert len(kinds) == len(set(kinds))
    assert kinds.count("x") == 1


@pytest.mark.parametrize(
    ("body", "op", "words"),
    [
        ("a = MatMul (x, w)  b = Exp (a)  y = MatMul (b, v)", "Exp", "exponential"),
        ("a = MatMul (x, w)  b = Softmax (a)  y = MatMul (b, v)", "Softmax", "no calibration data"),
        ("a = MatMul (x, w)  b = Div (a, x)  y = MatMul (b, v)", "Div", "small divisor"),
        ("a = MatMul (x, w)  b = Floor (a)  y = MatMul (b, v)", "Floor", "whole step"),
        ("a = MatMul (x, w)  b = Sin (a)  y = MatMul (b, v)", "Sin", "error of an angle"),
    ],
)
def test_what_depends_on_ranges_stays_where_nothing_is_known(body, op, words):
    plan = planned(model(body))
    assert op not in narrow_ops(plan)
    assert words in reason(plan, op)
    assert narrow_ops(plan).count("MatMul") == 2


def test_what_is_known_of_ranges_lets_more_be_narrow():
    body = "a = MatMul (x, w)  b = Softmax (a)  y = MatMul (b, v)"
    seen = {name: RNG.normal(size=(8, 64)).astype(np.float32) for name in "xaby"}
    assert "Softmax" in narrow_ops(planned(model(body), known=statistics(seen)))
    assert "Softmax" not in narrow_ops(planned(model(body), known=statistics(seen, real=False)))
    seen["a"] = seen["a"] * 20000
    plan = planned(model(body), known=statistics(seen))
    assert "Softmax" not in narrow_ops(plan)
    assert "too near to the 65504 of fp16" in reason(plan, "Softmax")


def test_what_is_proven_is_narrow_without_data():
    body = "a = MatMul (x, w)  b = Sigmoid (a)  c = Softmax (b)  y = MatMul (c, v)"
    assert narrow_ops(planned(model(body))) == ["MatMul", "Sigmoid", "Softmax", "MatMul"]


def test_what_would_vanish_stays():
    seen = {name: RNG.normal(size=(8, 64)).astype(np.float32) for name in "xaby"}
    seen["b"] = seen["b"] * 1e-7
    plan = planned(model("a = MatMul (x, w)  b = Mul (a, x)  y = MatMul (b, v)"), known=statistics(seen))
    assert "would lose them" in reason(plan, "Mul")


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (np.full((64, 64), 1e-9, np.float32), "100% of the constant 'w' would be 0"),
        (RNG.normal(0, 1e5, (64, 64)).astype(np.float32), "more than the 65504"),
        (RNG.normal(0, 3e-6, (64, 64)).astype(np.float32), "so small"),
        (np.arange(4096, dtype=np.float32).reshape(64, 64), "integers"),
    ],
)
def test_weights_that_do_not_fit_keep_their_node(weight, words):
    plan = planned(model(TWO, w=weight))
    assert narrow_ops(plan) in (["MatMul"], ["Relu", "MatMul"])
    assert any(words in why for why in plan.reasons.values())


def test_an_epsilon_that_would_be_zero_keeps_its_node():
    plan = planned(model("a = MatMul (x, w)  b = Add (a, tiny)  y = MatMul (b, v)", tiny=np.float32(1e-12)))
    assert "which is 0 in fp16" in reason(plan, "Add")
    assert "Add" in narrow_ops(planned(model("a = MatMul (x, w)  y = Add (a, tiny)", tiny=np.float32(1e-12)), "bf16"))


@pytest.mark.parametrize("opset", [10, 12, 17])
def test_bounds_beyond_the_type_bound_nothing(opset):
    bounds = {"low": np.float32(0), "high": np.float32(3.4e38)} if opset > 10 else {}
    clip = "Clip (a, low, high)" if opset > 10 else "Clip <min = 0.0, max = 6.0> (a)"
    source = model(f"a = MatMul (x, w)  b = {clip}  y = MatMul (b, v)", opset=opset, **bounds)
    assert narrow_ops(planned(source)) == ["MatMul", "Clip", "MatMul"]
    result = written(source)
    assert all(np.isfinite(v.const_value.numpy().astype(np.float32)).all() for v in result.graph.initializers.values())


@pytest.mark.parametrize("lowest", [-np.inf, -3.4e38, -1e9])
def test_masks_become_the_lowest_numbers(lowest):
    body = "s = MatMul (x, w)  m = Where (mask, zero, lowest)  t = Add (s, m)  p = Softmax (t)  y = MatMul (p, v)"
    signature = "(float[B,64] x, bool[B,64] mask) => (float[B,64] y)"
    source = model(body, signature, zero=np.float32(0), lowest=np.float32(lowest))
    proto = to_proto(source)
    seen = {name: RNG.normal(size=(8, 64)).astype(np.float32) for name in "xspyt"}
    seen["m"] = np.where(seen["s"] > 0, 0, np.float32(lowest))
    seen["t"] = seen["s"] + seen["m"]
    result = written(source, known=statistics(seen))
    assert "Softmax" in narrow_ops_of(result) and "Where" in narrow_ops_of(result)
    feeds = {"x": seen["x"], "mask": seen["s"] > 0}
    feeds["mask"][0] = False
    one, other = (optc.compile(m, level=0).model for m in (proto, result))
    a, b = (run(m, feeds) for m in (one, other))
    assert np.isfinite(b[1:]).all()
    np.testing.assert_allclose(a[1:], b[1:], atol=5e-3)
    assert np.isfinite(lowest) == np.isfinite(b[0]).all()


def test_a_mask_that_is_an_answer_is_none():
    source = model("a = MatMul (x, w)  y = Add (a, lowest)", lowest=np.float32(-1e9))
    assert "more than the 65504" in reason(planned(source), "Add")


def test_scales_of_a_resize_and_counts_stay_as_they_are():
    body = 'a = Conv (x, k)  b = Resize <mode = "linear"> (a, , scales)  y = Conv (b, l)'
    signature = "(float[B,16,8,8] x) => (float[B,16,16,16] y)"
    kernels = {name: RNG.normal(0, 0.2, shape).astype(np.float32) for name, shape in _KERNELS.items()}
    source = model(body, signature, scales=np.array([1, 1, 2, 2], np.float32), **kernels)
    assert narrow_ops(planned(source)) == ["Conv", "Resize", "Conv"]
    result = written(source)
    assert result.graph.initializers["scales"].dtype == onnx_ir.DataType.FLOAT
    onnx.checker.check_model(to_proto(result), full_check=True)


def test_positions_are_not_rounded():
    body = """n = Cast <to = 1> (ids)  h = Mul (n, half)  i = Cast <to = 7> (h)
              t = Gather (w, i)  y = MatMul (t, v)"""
    source = model(body, "(int64[B] ids) => (float[B,64] y)", half=np.float32(0.5))
    plan = planned(source)
    assert narrow_ops(plan) == ["Gather", "MatMul"]
    assert "integers" in reason(plan, "Mul")


def test_what_the_opset_does_not_admit_stays():
    plan = planned(model(TWO, opset=12), "bf16")
    assert "takes no bf16 at this opset" in reason(plan, "Relu")


def test_sub_graphs_are_left_alone_with_the_reason():
    body = """a = MatMul (x, w)
              b = If (flag) <then_branch = t () => (c) { c = Relu (a) }, else_branch = e () => (d) { d = Neg (a) }>
              y = MatMul (b, v)"""
    source = model(body, "(float[B,64] x, bool flag) => (float[B,64] y)")
    plan = planned(source)
    assert narrow_ops(plan) == ["MatMul", "MatMul"]
    assert "sub-graphs" in reason(plan, "If")
    result = written(source)
    onnx.checker.check_model(to_proto(result), full_check=True)
    assert casts(result) == 4


def test_a_runtime_is_asked_for_the_types_that_change():
    """The first input of a Where is its condition, of which the type stays."""
    body = "a = MatMul (x, w)  b = Where (mask, a, x)  y = MatMul (b, v)"
    source = model(body, "(float[B,64] x, bool[B,64] mask) => (float[B,64] y)")
    asked = {}

    def supports(domain: str, op: str, version: int, variables: set[str]) -> bool:
        asked[op] = set(variables)
        return op != "Where"

    plan = replace(planner(source), supports=supports).plan()
    assert asked == {"MatMul": {"T"}, "Where": {"T"}}
    assert reason(plan, "Where") == "the target's runtime has no Where in fp16"


def test_outputs_that_are_left_out_are_no_obstacle():
    body = "a = MatMul (x, w)  b, m, i, s = com.microsoft.SkipLayerNormalization (a, x, g, h)  y = Add (b, s)"
    vectors = {"g": np.ones(64, np.float32), "h": np.zeros(64, np.float32)}
    source = model(body, contrib=True, **vectors)
    node = next(node for node in source.graph if node.op_type == "SkipLayerNormalization")
    node.outputs[1].name = node.outputs[2].name = ""
    seen = {name: RNG.normal(size=(8, 64)).astype(np.float32) for name in "xabsy"}
    assert "SkipLayerNormalization" in narrow_ops(planned(source, known=statistics(seen)))


def narrow_ops_of(result: onnx_ir.Model) -> set[str]:
    return {node.op_type for node in result.graph if any(v.dtype == onnx_ir.DataType.FLOAT16 for v in node.outputs)}


def run(result: onnx_ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return Session(result).run(feeds)["y"]
