"""Comparing outputs: seeded defects must be caught, and rounding must not be mistaken for one."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optc.numeric import Tolerance, coarsest_float, compare_arrays, compare_outputs, tolerance
from optc.passes.base import Numerics

ROUNDING = tolerance(Numerics.ROUNDING)
RNG = np.random.default_rng(0)


def normal(*shape: int, dtype=np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def test_equal_arrays_are_equal():
    a = normal(100, 100)
    diff = compare_arrays(a, a.copy(), tolerance(Numerics.EXACT))
    assert (diff.ok, diff.rel_l2, diff.max_abs, diff.compared) == (True, 0.0, 0.0, 10_000)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_rounding_is_within_every_class(dtype):
    kind = onnx_ir.DataType.from_numpy(np.dtype(dtype))
    a = normal(1000, dtype=np.float64)
    nudged = (a * (1 + float(ml_dtypes.finfo(dtype).eps) * RNG.choice([-1, 0, 1], 1000))).astype(dtype)
    assert compare_arrays(a.astype(dtype), nudged, tolerance(Numerics.EXACT, kind)).ok


def test_float32_arithmetic_in_a_float64_model_is_no_rounding():
    a = normal(1000, dtype=np.float64)
    limits = tolerance(Numerics.ROUNDING, onnx_ir.DataType.DOUBLE)
    assert not compare_arrays(a, a.astype(np.float32).astype(np.float64), limits).ok


def test_relative_l2_is_what_it_says():
    a, b = normal(50, 7), normal(50, 7)
    want = np.linalg.norm(a.astype(float) - b) / np.linalg.norm(a.astype(float))
    assert compare_arrays(a, b, ROUNDING).rel_l2 == pytest.approx(want)
    assert compare_arrays(a, b, ROUNDING).max_abs == pytest.approx(np.abs(a.astype(float) - b).max())


@pytest.mark.parametrize("numerics", [Numerics.EXACT, Numerics.ROUNDING])
@pytest.mark.parametrize(
    "defect",
    [
        lambda a: a + np.float32(0.01),
        lambda a: a * np.float32(1.001),
        lambda a: a[::-1],
        lambda a: -a,
        lambda a: np.zeros_like(a),
        lambda a: np.where(np.arange(a.size).reshape(a.shape) == 17, np.float32(np.nan), a),
        lambda a: np.where(np.arange(a.size).reshape(a.shape) == 17, np.float32(np.inf), a),
        lambda a: a.astype(np.float64),
        lambda a: a.reshape(-1),
        lambda a: a.T,
    ],
    ids=["bias", "scale", "swapped", "sign", "zeros", "nan", "inf", "type", "rank", "transposed"],
)
def test_seeded_defects_are_caught(defect, numerics):
    a = normal(64, 64)
    diff = compare_arrays(a, defect(a), tolerance(numerics), "y")
    assert not diff.ok
    assert diff.problem


@pytest.mark.parametrize("numerics", [Numerics.EXACT, Numerics.ROUNDING])
def test_one_wild_element_in_a_big_tensor(numerics):
    a = normal(3000, 1000)
    b = a.copy()
    b[2345, 678] += 0.05
    limits = tolerance(numerics)
    diff = compare_arrays(a, b, limits)
    if numerics is Numerics.ROUNDING:
        assert diff.rel_l2 < limits.rel_l2, "the norm alone does not see it"
    assert "one element is far off" in diff.problem or diff.rel_l2 > limits.rel_l2
    assert not diff.ok


def test_the_place_of_a_wild_element_is_named():
    a = np.ones((3000, 1000), np.float32)
    b = a.copy()
    b[2345, 678] += 0.05
    assert "1.05 instead of 1 at [2345, 678]" in compare_arrays(a, b, ROUNDING).problem


@pytest.mark.parametrize("scale", [1e300, 1e160, 1e-160, 1e-300, 5e-320])
def test_huge_and_tiny_values(scale):
    limits = tolerance(Numerics.ROUNDING)
    a = np.array([1.0, 2.0, 3.0]) * scale
    assert compare_arrays(a, a, limits).rel_l2 == 0
    b = a.copy()
    b[1] = 2.5 * scale
    diff = compare_arrays(a, b, limits)
    assert diff.rel_l2 == pytest.approx(0.5 / math.sqrt(14), rel=1e-2)
    assert not diff.ok


def test_differences_beyond_the_largest_number():
    big = np.finfo(np.float64).max
    diff = compare_arrays(np.array([big, 1.0]), np.array([-big, 1.0]), ROUNDING)
    assert diff.rel_l2 == pytest.approx(2.0)
    assert not diff.ok


def test_nan_and_inf_at_the_same_places_agree():
    a = np.array([1, np.nan, np.inf, -np.inf, 2], np.float32)
    diff = compare_arrays(a, a.copy(), ROUNDING)
    assert diff.ok
    assert diff.compared == 2
    for wrong in ([1, np.nan, -np.inf, -np.inf, 2], [np.nan, np.nan, np.inf, -np.inf, 2], [1, 0, np.inf, -np.inf, 2]):
        assert compare_arrays(a, np.array(wrong, np.float32), ROUNDING).rel_l2 == math.inf


def test_nothing_finite_counts_as_nothing_compared():
    a = np.full(5, np.nan, np.float32)
    assert compare_outputs({"y": a}, {"y": a}, ROUNDING).compared == 0
    assert compare_outputs({"y": a[:0]}, {"y": a[:0]}, ROUNDING).compared == 0


def test_zero_references():
    zero = np.zeros(10, np.float32)
    assert compare_arrays(zero, zero, ROUNDING).compared == 10
    assert compare_arrays(zero, zero + np.float32(1e-9), ROUNDING).ok
    diff = compare_arrays(zero, zero + np.float32(1e-3), ROUNDING)
    assert not diff.ok
    assert "the reference is 0 throughout" in diff.problem


def test_integers_booleans_and_strings_are_exact():
    for a, b in (
        (np.array([1, 2, 3]), np.array([1, 2, 4])),
        (np.array([True, False]), np.array([True, True])),
        (np.array(["a", "b"], object), np.array(["a", "c"], object)),
        (np.array([2**63 - 1]), np.array([-(2**63)])),
        (np.array([2**64 - 1], np.uint64), np.array([0], np.uint64)),
    ):
        assert compare_arrays(a, a.copy(), ROUNDING).ok
        diff = compare_arrays(a, b, ROUNDING)
        assert not diff.ok
        assert diff.rel_l2 == pytest.approx(1 / a.size)
    assert compare_arrays(np.array([2**63 - 1]), np.array([-(2**63)]), ROUNDING).max_abs == 2.0**64


def test_one_step_of_a_quantized_output():
    a = np.array([-128, 0, 127], np.int8)
    limits = tolerance(Numerics.ROUNDING, quantized=True)
    assert compare_arrays(a, np.array([-127, -1, 127], np.int8), limits).ok
    assert not compare_arrays(a, np.array([-126, 0, 127], np.int8), limits).ok
    assert not compare_arrays(a, np.array([-127, 0, 127], np.int8), ROUNDING).ok
    assert not compare_arrays(np.array([7]), np.array([8]), limits).ok, "only 8-bit outputs may move"
    assert not compare_arrays(np.array([True]), np.array([False]), limits).ok


def test_steps_of_a_quantizer_show_in_floats_behind_it_when_rounding_may_move():
    assert tolerance(Numerics.ROUNDING, quantized=True).rel_l2 > 100 * tolerance(Numerics.ROUNDING).rel_l2
    assert tolerance(Numerics.EXACT, quantized=True).rel_l2 == tolerance(Numerics.EXACT).rel_l2


def test_an_argmax_may_flip_in_lossy_work_only():
    a = np.arange(100)
    b = a.copy()
    b[3] = 0
    assert compare_arrays(a, b, tolerance(Numerics.LOSSY, max_error=0.03)).ok
    assert not compare_arrays(a, b, tolerance(Numerics.ROUNDING)).ok
    assert not compare_arrays(a, b, tolerance(Numerics.LOSSY, max_error=0.001)).ok


def test_the_budget_replaces_only_what_may_be_lossy():
    assert tolerance(Numerics.LOSSY, max_error=0.5).rel_l2 == 0.5
    assert tolerance(Numerics.ROUNDING, max_error=0.5) == ROUNDING


def test_coarser_types_and_classes_allow_more():
    kinds = [onnx_ir.DataType[name] for name in ("DOUBLE", "FLOAT", "FLOAT16", "BFLOAT16")]
    for numerics in (Numerics.EXACT, Numerics.ROUNDING):
        limits = [tolerance(numerics, kind).rel_l2 for kind in kinds]
        assert limits == sorted(limits)
    for kind in kinds:
        assert tolerance(Numerics.EXACT, kind).rel_l2 < tolerance(Numerics.ROUNDING, kind).rel_l2


def test_complex_numbers():
    a = normal(20).astype(np.complex64) + 1j
    assert compare_arrays(a, a.copy(), ROUNDING).ok
    assert not compare_arrays(a, a.conj(), ROUNDING).ok


def test_outputs_are_compared_by_name_and_the_worst_is_named():
    want = {"a": normal(10), "b": normal(10), "c": normal(10)}
    got = {**want, "b": want["b"] + np.float32(0.5), "c": want["c"] + np.float32(0.1)}
    result = compare_outputs(want, got, ROUNDING)
    assert not result.ok
    assert result.worst_output == "b"
    assert result.rel_l2 == result.outputs[1].rel_l2
    assert [output.ok for output in result.outputs] == [True, False, False]


def test_swapped_outputs_are_caught():
    a, b = normal(10), normal(10)
    assert not compare_outputs({"a": a, "b": b}, {"a": b, "b": a}, ROUNDING).ok


def test_missing_and_surplus_outputs():
    a = normal(3)
    assert "missing" in compare_outputs({"a": a}, {}, ROUNDING).worst.problem
    assert "no such output" in compare_outputs({"a": a}, {"a": a, "z": a}, ROUNDING).worst.problem


def test_incomparable_outputs_still_have_a_shape_and_a_type():
    result = compare_outputs({"r": normal(4), "y": normal(4)}, {"r": normal(4), "y": normal(4)}, ROUNDING, {"r", "y"})
    assert result.ok
    assert result.compared == 0
    assert result.incomparable == ("r", "y")
    assert not compare_outputs({"r": normal(4)}, {"r": normal(5)}, ROUNDING, {"r"}).ok


def test_sequences_maps_and_optionals():
    a, b = normal(4), normal(4)
    assert compare_outputs({"s": [a, b]}, {"s": [a, b]}, ROUNDING).compared == 8
    swapped = compare_outputs({"s": [a, b]}, {"s": [a, a]}, ROUNDING)
    assert swapped.worst.problem.startswith("s[1]: ")
    assert not compare_outputs({"s": [a, b]}, {"s": [a]}, ROUNDING).ok
    maps = [{"cat": 0.25, "dog": 0.75}]
    assert compare_outputs({"m": maps}, {"m": [dict(maps[0])]}, ROUNDING).ok
    assert not compare_outputs({"m": maps}, {"m": [{"cat": 0.75, "dog": 0.25}]}, ROUNDING).ok
    assert not compare_outputs({"m": maps}, {"m": [{"cat": 0.25, "cow": 0.75}]}, ROUNDING).ok
    assert compare_outputs({"o": None}, {"o": None}, ROUNDING).ok
    assert not compare_outputs({"o": None}, {"o": a}, ROUNDING).ok


FLOATS = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]),
    hnp.array_shapes(max_dims=3, max_side=6),
    elements=st.floats(width=16, allow_nan=True, allow_infinity=True),
)


@given(FLOATS)
def test_everything_equals_itself(a):
    limits = Tolerance(0.0, 0.0, 0.0)
    diff = compare_arrays(a, a.copy(), limits)
    assert diff.ok
    assert diff.rel_l2 == 0.0


@given(FLOATS, st.data())
def test_a_changed_element_is_never_overlooked_at_zero_tolerance(a, data):
    b = a.copy()
    at = tuple(data.draw(st.integers(0, size - 1)) for size in a.shape)
    b[at] = data.draw(st.floats(width=16, allow_nan=True))
    same = np.array_equal(a, b, equal_nan=True)
    assert compare_arrays(a, b, Tolerance(0.0, 0.0, 0.0)).ok == same


@given(
    hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(1.0, 1e3)),
    st.floats(1e-3, 1e3),
    st.sampled_from([1e-200, 1.0, 1e200]),
)
def test_relative_error_does_not_depend_on_the_scale(a, shift, scale):
    b = a + shift
    one = compare_arrays(a, b, Tolerance(0.0, 0.0, 0.0)).rel_l2
    other = compare_arrays(a * scale, b * scale, Tolerance(0.0, 0.0, 0.0)).rel_l2
    assert one == pytest.approx(other, rel=1e-6)


def test_the_coarsest_type_is_that_of_a_cast_whose_result_nobody_declares() -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[3] x) => (float[3] y) '
    text += "{{ a = Cast <to = {}> (x) y = {} (a) }}"
    narrow = onnx_ir.from_onnx_text(text.format(10, "Cast <to = 1>"))
    assert coarsest_float(narrow) == onnx_ir.DataType.FLOAT16
    assert coarsest_float(onnx_ir.from_onnx_text(text.format(1, "Neg"))) == onnx_ir.DataType.FLOAT
