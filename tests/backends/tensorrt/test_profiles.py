"""Optimization profiles from ranges of dims."""

from __future__ import annotations

import onnx_ir
import pytest

from optc.backends.tensorrt.profiles import profile
from optc.backends.tensorrt.recipe import ShapeRange
from optc.ir.errors import BackendError, UsageError

from .models import standard

TEXT = "g (float[N, 3, S] x, int64[4] k) => (float[N, 3, S] y) { y = Relu (x) }"


def test_ranges_become_profiles_and_usual_sizes_what_is_tuned_for():
    shapes, notes = profile(standard(TEXT), {"N": (1, 8), "S": (1, 512)}, {"N": 1, "S": 128}, {})
    assert shapes == {
        "x": ShapeRange((1, 3, 1), (1, 3, 128), (8, 3, 512)),
        "k": ShapeRange((4,), (4,), (4,)),
    }
    assert notes == []


def test_usual_sizes_outside_of_a_range_are_moved_into_it_and_single_sizes_fixed():
    shapes, _ = profile(standard(TEXT), {"N": 4, "S": (16, 64)}, {"N": 1, "S": 128}, {})
    assert shapes["x"] == ShapeRange((4, 3, 16), (4, 3, 64), (4, 3, 64))


def test_what_to_tune_for_can_be_said():
    shapes, _ = profile(standard(TEXT), {"N": (1, 8), "S": (1, 512)}, {}, {"N": 8, "S": 77})
    assert shapes["x"].optimum == (8, 3, 77)


def test_dims_without_a_range_get_one_and_are_told_of():
    shapes, notes = profile(standard(TEXT), {}, {"N": 1, "S": 128}, {})
    assert shapes["x"] == ShapeRange((1, 3, 1), (1, 3, 128), (4, 3, 512))
    assert [note.split()[1] for note in notes] == ["'N'", "'S'"] and "--shape 'N=1..8'" in notes[0]


def test_anonymous_dims_are_called_by_their_place_and_sums_follow_their_parts():
    model = standard("g (float[P, S] x, float[Q, 2] p) => (float[P, S] y) { y = Relu (x) }")
    model.graph.inputs[0].shape = onnx_ir.Shape(["past + seq", None])
    model.graph.inputs[1].shape = onnx_ir.Shape(["past", "seq"])
    given = {"past": (0, 100), "seq": (1, 10), "x[1]": (2, 4)}
    shapes, notes = profile(model, given, {"past": 50, "seq": 5, "x[1]": 3}, {})
    assert shapes["x"] == ShapeRange((1, 2), (55, 3), (110, 4)) and notes == []


@pytest.mark.parametrize(("tune", "says"), [({"M": 1}, "no symbolic dim 'M'"), ({"N": 9}, "its range is 1..8")])
def test_what_cannot_be_tuned_for_is_refused(tune, says):
    with pytest.raises(UsageError, match=says):
        profile(standard(TEXT), {"N": (1, 8)}, {}, tune)


def test_an_input_of_unknown_rank_has_no_profile():
    model = standard(TEXT)
    model.graph.inputs[0].shape = None
    with pytest.raises(BackendError, match="rank of input 'x'"):
        profile(model, {}, {}, {})
