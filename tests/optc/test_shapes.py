"""Sizes of dims as people write them."""

from __future__ import annotations

import onnx_ir
import pytest

from optc.ir.errors import UsageError
from optc.shapes import dim_ranges, dim_sizes


def made() -> onnx_ir.Model:
    model = onnx_ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float[B,S,3] x, float[C] z) => (float[B,S,3] y) { y = Relu (x) }'
    )
    model.graph.inputs[1].shape = onnx_ir.Shape(["1,n=k"])
    return model


@pytest.mark.parametrize(
    ("texts", "sizes"),
    [
        (["B=1..8,S=1..512"], {"B": (1, 8), "S": (1, 512)}),
        (["B=1..8 , S=128"], {"B": (1, 8), "S": 128}),
        (["x=1..8,128,3"], {"B": (1, 8), "S": 128}),
        (["1,n=k=4", "B=2"], {"1,n=k": 4, "B": 2}),
        (["B=2", "x=2,4,3"], {"B": 2, "S": 4}),
    ],
)
def test_what_is_read(texts, sizes):
    assert dim_ranges(texts, made()) == sizes


@pytest.mark.parametrize(
    "text", ["B", "B=", "=3", "B=1..", "B=3,S=", "B=3,,S=4", "x=1..8,2,4", "B=2..1", "B=1..2,B=1..3"]
)
def test_what_is_refused(text):
    with pytest.raises(UsageError, match="--shape"):
        dim_ranges([text], made())


def test_where_one_size_is_needed():
    assert dim_sizes(["B=2,S=3"], made()) == {"B": 2, "S": 3}
    with pytest.raises(UsageError, match="one size is needed here, not a range"):
        dim_sizes(["B=2..3"], made())
