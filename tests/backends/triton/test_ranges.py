"""Artifacts that are made for ranges of sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir
import pytest

pytest.importorskip("triton")

import optc
from optc.backends.triton.artifact import open_artifact
from optc.backends.triton.build import lower
from optc.backends.triton.memory import place
from optc.backends.triton.plan import Buffer, most_bytes, nbytes
from optc.backends.triton.ranges import with_ranges
from optc.ir.errors import BackendError, DataError

from .models import agrees, model

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[B,S,8] x, float[8,24] w_1, float[24,8] w_2) => (float[B,S,8] y)
{
    h = MatMul (x, w_1)
    n = Softmax <axis = -1> (h)
    p = MatMul (n, w_2)
    y = Add (p, x)
}
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranges") / "m.optc"
    shapes = {"B": (1, 4), "S": "2..9"}
    return optc.compile(model(TEXT), target="a100", output=out, verify="off", shapes=shapes).artifact


def fed(batch: int, length: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(batch).normal(size=(batch, length, 8)).astype(np.float32)}


@pytest.mark.parametrize(("batch", "length"), [(1, 2), (3, 5), (4, 9)])
def test_every_size_in_the_ranges_runs_in_one_arena(artifact, batch, length):
    agrees(model(TEXT), artifact, fed(batch, length))


def test_what_the_plan_declares(artifact):
    opened = open_artifact(artifact)
    assert opened.plan.ranges == {"B": (1, 4), "S": (2, 9)}
    assert opened.plan.arena == "largest"
    layout = place(opened.plan, {})
    assert layout == place(opened.plan, {"B": 1, "S": 2}) and layout.size > 0
    assert opened.manifest["memory"]["size"] == layout.size
    rows = {launch.sizes["M"] for launch in opened.plan.launches if "M" in launch.sizes}
    assert rows == {"B*S"}


@pytest.mark.parametrize(
    ("batch", "length", "problem"),
    [
        (5, 3, r"dim 'B' of input 'x' is 5; the artifact was built for 1\.\.4"),
        (0, 3, r"dim 'B' of input 'x' is 0; the artifact was built for 1\.\.4"),
        (2, 1, r"dim 'S' of input 'x' is 1; the artifact was built for 2\.\.9"),
        (2, 10, r"dim 'S' of input 'x' is 10; the artifact was built for 2\.\.9"),
    ],
)
def test_a_size_outside_of_its_range_is_an_error_that_names_both(artifact, batch, length, problem):
    with pytest.raises(DataError, match=problem):
        optc.load(artifact, device="interpreter").run(fed(batch, length))


def planned(text: str, shapes, change=lambda made: None):
    made = model(text)
    change(made)
    return with_ranges(lower(made).plan, made, shapes)


def test_tiles_are_for_a_size_in_the_range_and_one_size_limits_nothing():
    plan, bindings = planned(TEXT, {"B": (1, 4), "S": 300})
    assert (bindings, plan.ranges, plan.arena) == ({"B": 4, "S": 300}, {"B": (1, 4)}, "exact")
    plan, bindings = planned(TEXT, {})
    assert (bindings, plan.ranges, plan.arena) == ({"B": 128, "S": 128}, {}, "exact")


def test_a_range_in_which_nothing_can_be_counted():
    with pytest.raises(BackendError, match=r"at the largest sizes a tensor would have \d+ elements"):
        planned(TEXT, {"B": (1, 100_000), "S": (1, 100_000)})


ADDED = """
<ir_version: 8, opset_import: ["": 17]>
g (float[A,4] x, float[C,4] z) => (float[A,4] y) { y = Add (x, z) }
"""


def test_dims_that_must_be_the_same_share_a_range():
    plan, _ = planned(ADDED, {"A": (1, 8), "C": (4, 16)})
    assert (plan.ranges, plan.arena) == ({"A": (4, 8)}, "largest")
    with pytest.raises(BackendError, match=r"dim 'C' cannot be 9\.\.16: it must be the same as a dim of another range"):
        planned(ADDED, {"A": (1, 8), "C": (9, 16)})


CACHE = """
<ir_version: 8, opset_import: ["": 17]>
g (float[P,4] past, float[S,4] x, float[T,4] mask) => (float[m,4] y, float[T,4] z)
{
    y = Concat <axis = 0> (past, x)
    z = Relu (mask)
}
"""


def _shape(place: int, first):
    def change(made):
        made.graph.inputs[place].shape = onnx_ir.Shape([first, 4])

    return change


def test_a_dim_that_is_a_sum_has_the_range_that_follows():
    plan, _ = planned(CACHE, {"P": (0, 7), "S": (1, 3)}, _shape(2, "P + S"))
    assert (plan.ranges["P + S"], plan.arena) == ((1, 10), "largest")


def test_dims_without_a_plain_name():
    plan, _ = planned(CACHE, {"past[0]": (0, 7), "batch size": (1, 3), "T": (2, 2)}, _both)
    assert "batch size" in plan.dims and plan.ranges["batch size"] == (1, 3) and plan.arena == "largest"
    bindings = plan.bind({"past": (2, 4), "x": (3, 4), "mask": (2, 4)})
    assert sorted(bindings.values()) == [2, 2, 3]
    assert [nbytes(plan.buffers[tensor.buffer], bindings) for tensor in plan.outputs] == [5 * 16, 2 * 16]


def _both(made):
    _shape(0, None)(made)
    _shape(1, "batch size")(made)


@pytest.mark.parametrize(
    ("elements", "most"),
    [("a*b", 40), ("a - b", 6), ("max(a, 3*b)", 15), ("(a + 7)//8*8", 8), ("a % 3", 2), ("c", None), ("7", 7)],
)
def test_the_most_that_a_buffer_needs(elements, most):
    ranges = {"a": (1, 8), "b": (2, 5), "c": (0, None)}
    found = most_bytes(Buffer("temporary", elements, "i8"), ranges)
    assert found == most
    for a in range(1, 9):
        for b in range(2, 6):
            if most is not None and (a >= b or "-" not in elements):
                assert nbytes(Buffer("temporary", elements, "i8"), {"a": a, "b": b}) <= most


def test_a_model_that_is_valid_up_to_less(artifact):
    plan = open_artifact(artifact).plan
    limited = replace(plan, ranges={"S": (0, 6)})
    with pytest.raises(BackendError, match=r"dim 'S' cannot be 2\.\.9: the model is valid up to 6"):
        with_ranges(limited, model(TEXT), {"S": (2, 9)})
