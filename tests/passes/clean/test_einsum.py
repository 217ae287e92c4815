"""Einsum as the operators that it stands for."""

from __future__ import annotations

import itertools

import numpy as np
import onnx.helper as oh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from optc.passes.fusion.einsum import parse_equation
from optc.passes.fusion.fuse import Fuse

from .rulecheck import check, session

#: equation, shapes, operators
CASES = [
    # one operand
    ("ij->ji", ["NM"], {"Transpose": 1}),
    ("ij->i", ["NM"], {"ReduceSum": 1}),
    ("ijk->kj", ["N34"], {"ReduceSum": 1, "Transpose": 1}),
    ("ij", ["NM"], {"Identity": 1}),
    ("ba", ["NM"], {"Transpose": 1}),
    ("...ij->...ji", ["N34"], {"Transpose": 1}),
    ("ij->", ["NM"], {"ReduceSum": 1}),
    # products
    ("ij,jk->ik", ["NM", "M4"], {"MatMul": 1}),
    ("ij,kj->ik", ["NM", "4M"], {"MatMul": 1, "Transpose": 1}),
    ("ij,jk", ["NM", "M4"], {"MatMul": 1}),
    ("bhqd,bhkd->bhqk", ["N2M4", "N2M4"], {"MatMul": 1, "Transpose": 1}),
    ("bqhd,bkhd->bhqk", ["NM24", "NM24"], {"MatMul": 1, "Transpose": 2}),
    ("bhqk,bkhd->bqhd", ["N2MM", "NM24"], {"MatMul": 1, "Transpose": 2}),
    ("bij,bjk->ibk", ["NM4", "N43"], {"MatMul": 1, "Transpose": 1}),
    ("ij,jk->ki", ["NM", "M4"], {"MatMul": 1, "Transpose": 1}),
    ("...ij,...jk->...ik", ["N2M4", "N243"], {"MatMul": 1}),
    ("bsd,hdk->bhsk", ["2M4", "345"], None),
    ("bsd,dk->bsk", ["2M4", "45"], None),
    ("bijc,bijd->bcd", ["N234", "N235"], {"Reshape": 2, "MatMul": 1, "Transpose": 1}),
    ("bijc,bcd->bijd", ["N23C", "NC4"], None),
    ("bijc,bcd->bijd", ["223C", "2C4"], {"Reshape": 2, "MatMul": 1}),
    ("i,i->", ["N", "N"], None),
    ("ij,j->i", ["NM", "M"], None),
    ("j,ij->i", ["M", "NM"], None),
    ("bi,bi->b", ["NM", "NM"], None),
    ("ijl,jk->ik", ["NM2", "M4"], {"ReduceSum": 1, "MatMul": 1}),
    # nothing is summed over both
    ("ij,ij->ij", ["NM", "NM"], {"Mul": 1}),
    ("i,j->ij", ["N", "M"], {"Unsqueeze": 1, "Mul": 1}),
    ("i,j->ji", ["N", "M"], {"Unsqueeze": 1, "Mul": 1}),
    ("bi,b->ib", ["NM", "N"], {"Transpose": 1, "Mul": 1}),
    ("ij,->ij", ["NM", ""], {"Mul": 1}),
    ("ijk,i->i", ["NM2", "N"], {"ReduceSum": 1, "Mul": 1}),
    # left as they are
    ("ii->i", ["33"], {"Einsum": 1}),
    ("ij,jk,kl->il", ["NM", "M4", "43"], {"Einsum": 1}),
    ("ij,jk->ik", ["NM", "K4"], {"Einsum": 1}),
]


def _model(equation: str, shapes: list[str], dtype: int = TensorProto.FLOAT, rank: int | None = None):
    inputs = [
        oh.make_tensor_value_info(f"x{i}", dtype, [int(c) if c.isdigit() else c for c in shape])
        for i, shape in enumerate(shapes)
    ]
    result = parse_equation(equation, [len(shape) for shape in shapes]).result
    output = oh.make_tensor_value_info("y", dtype, [f"Y{i}" for i in range(len(result))])
    node = oh.make_node("Einsum", [value.name for value in inputs], ["y"], equation=equation)
    graph = oh.make_graph([node], "g", inputs, [output])
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


def _feeds(shapes: list[str], dtype, sizes: tuple[int, ...] = (3, 1, 2)) -> list[dict[str, np.ndarray]]:
    names = sorted({c for shape in shapes for c in shape if c.isalpha()})
    rng, found = np.random.default_rng(3), []
    for chosen in itertools.product(sizes, repeat=len(names)):
        dims = dict(zip(names, chosen, strict=True))
        found.append(
            {
                f"x{i}": rng.integers(-4, 5, [int(dims.get(c, c)) for c in shape]).astype(dtype)
                for i, shape in enumerate(shapes)
            }
        )
    return found


@pytest.mark.parametrize(("equation", "shapes", "left"), CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_rule(equation, shapes, left, dtype):
    model = _model(equation, shapes, oh.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    outcome = check(model, Fuse(only=("einsum",)), feeds=_feeds(shapes, dtype))
    assert ("Einsum" not in outcome.ops) if left is None else (outcome.ops == left)
    assert outcome.runs > 0
    if left != {"Einsum": 1}:  # ONNX Runtime's own kernel dies of empty operands
        runner = session(outcome.model)
        for feed in _feeds(shapes, dtype, (0, 2)):
            (got,) = runner.run(None, feed)
            np.testing.assert_array_equal(got, np.einsum(equation, *feed.values()))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_contractions(data):
    """Whatever two terms and a result are drawn: the numbers stay."""
    letters = "abcde"
    dims = dict(zip(letters, (2, 3, 4, 1, "N"), strict=True))
    terms = [data.draw(st.permutations(letters))[: data.draw(st.integers(0, 4))] for _ in range(2)]
    both = sorted({c for term in terms for c in term})
    result = data.draw(st.permutations(both))[: data.draw(st.integers(0, len(both)))] if both else []
    equation = f"{''.join(terms[0])},{''.join(terms[1])}->{''.join(result)}"
    shapes = ["".join(str(dims[c]) for c in term) for term in terms]
    check(_model(equation, shapes), Fuse(only=("einsum",)), feeds=_feeds(shapes, np.float32))


def test_equations():
    assert parse_equation(" a b , bc -> ac ", (2, 2)) == (("ab", "bc"), "ac")
    assert parse_equation("ba,bc", (2, 2)).result == "ac"
    assert parse_equation("...a,b", (3, 1)).result[-2:] == "ab"
    assert isinstance(parse_equation("ab", (3,)), str)
    assert isinstance(parse_equation("ab,c", (2,)), str)
