"""Values at the edge: what is wrong only there is found, and what is not defined there is not judged."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.edges import EDGES, judged
from optc.equivalence import Reference
from optc.passes.base import Numerics


def model(text: str) -> onnx_ir.Model:
    return onnx_ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 18]> {text}')


def verdict(right: str, wrong: str, *, edges: bool, signature: str = "float[N,4] x", output: str = "float[N,4] y"):
    one, other = (model(f"g ({signature}) => ({output}) {{ {body} }}") for body in (right, wrong))
    return Reference(one, edges=edges).check(other, Numerics.ROUNDING)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (
            "y = Identity (x)",
            "n = Constant <value_float = 0.0> () b = Equal (x, n) z = Constant <value_float = 1.0> () "
            "y = Where (b, z, x)",
        ),
        ("y = Identity (x)", "c = Constant <value_float = 1000.0> () y = Min (x, c)"),
        ("y = Tanh (x)", "d = Mul (x, x) e = Mul (d, d) f = Mul (e, e) g = Div (f, f) t = Tanh (x) y = Mul (t, g)"),
        (
            "z = Constant <value_float = 0.0> () b = IsNaN (x) y = Where (b, z, x)",
            "z = Constant <value_float = 0.0> () b = IsInf (x) y = Where (b, z, x)",
        ),
    ],
    ids=["zero", "large", "small", "nan"],
)
def test_what_is_wrong_only_at_an_edge_is_found_there(right: str, wrong: str) -> None:
    assert verdict(right, wrong, edges=False).ok
    found = verdict(right, wrong, edges=True)
    assert found.state == "failed"
    assert all(check.ok for check in found.checks if not check.edge)


def test_masks_and_indices_have_edges_of_their_own() -> None:
    signature = "int64[N,4] ids, bool[N,4] mask"
    right = "t = Constant <value_floats = [0.0,1.0,2.0,3.0]> () e = Gather (t, ids) z = Constant <value_float = 0.0> ()"
    wrong = right.replace("3.0]", "3.0,9.0]")
    body = " y = Where (mask, e, z)"
    reference = Reference(model(f"g ({signature}) => (float[N,4] y) {{ {right}{body} }}"), edges=True)
    edges = {run.edge: run.feeds for run in reference.runs if run.edge}
    low, high, *_ = EDGES
    assert not edges[low]["mask"].any() and edges[high]["mask"].all()
    assert (edges[low]["ids"] == 0).all() and (edges[high]["ids"] == 3).all()
    assert reference.check(model(f"g ({signature}) => (float[N,4] y) {{ {wrong}{body} }}")).ok


def test_what_the_original_does_not_define_is_not_judged() -> None:
    """Both overflow or divide by 0, each in its own way."""
    assert verdict("a = Mul (x, x) y = Div (a, x)", "y = Identity (x)", edges=True).ok
    assert verdict("e = Exp (x) y = Log (e)", "y = Identity (x)", edges=True).state == "verified"


def test_ill_conditioned_results_are_judged_by_how_far_the_original_moves() -> None:
    """The sine of a large number depends on its last bit."""
    right = "c = Constant <value_float = 1000.0> () a = Mul (x, c) y = Sin (a)"
    wrong = "c = Constant <value_float = 100.0> () d = Constant <value_float = 10.0> () b = Mul (x, c) a = Mul (b, d)"
    assert verdict(right, f"{wrong} y = Sin (a)", edges=True).ok
    assert verdict(right, f"{wrong} y = Cos (a)", edges=True).state == "failed"


@pytest.mark.parametrize("dtype", ["float16", "double", "bfloat16"])
def test_every_float_type_has_edges(dtype: str) -> None:
    one = model(f"g ({dtype}[N,4] x) => ({dtype}[N,4] y) {{ y = Neg (x) }}")
    reference = Reference(one, edges=True)
    if reference.trouble is None:
        assert [run.edge for run in reference.runs if run.edge] == list(EDGES)
        assert reference.check(one.clone()).ok


def test_judging() -> None:
    reference = np.array([1.0, np.nan, np.inf], np.float32)
    np.testing.assert_array_equal(judged(reference, np.array([2.0, 3.0, 4.0], np.float32)), [2.0, np.nan, np.inf])
    assert judged(reference, np.array([2.0], np.float32)).shape == (1,)
    assert judged(None, None) is None
    assert judged([reference], [reference])[0] is not None
