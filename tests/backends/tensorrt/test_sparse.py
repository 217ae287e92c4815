"""2:4 weights in bundles: seen in floats and in codes, and told to the builder where the GPU has kernels for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import optc
from optc.backends.tensorrt.recipe import read_recipe
from optc.backends.tensorrt.sparse import sparse_layers
from optc.ir.model import load
from optc.ir.sparsity import Pattern

from .models import draw, standard

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
PATTERN = Pattern(2, 4)
CLEAN = "inline,fixpoint(fold,shapes,simplify,cse,dce),fuse,emit,split-convolutions"


def sparse(array: np.ndarray, axis: int) -> np.ndarray:
    """The larger half of every four along an axis."""
    keep = np.moveaxis(PATTERN.largest(np.abs(np.moveaxis(array, axis, -1))), -1, axis)
    return np.where(keep, array, 0)


@pytest.mark.parametrize(
    "op, shape, axis",
    [
        ("MatMul (x, w)", (8, 12), 0),
        ("Gemm (x, w)", (8, 12), 0),
        ("Gemm <transB = 1> (x, w)", (12, 8), 1),
    ],
)
def test_the_pattern_is_along_the_inputs(op: str, shape: tuple[int, int], axis: int) -> None:
    text = f"g (float[N, 8] x) => (float[N, 12] y) {{ y = {op} }}"
    weight = draw(*shape)
    for array, expected in ((sparse(weight, axis), 1), (sparse(weight, 1 - axis), 0), (weight, 0)):
        assert len(sparse_layers(load(standard(text, w=array)))) == expected


def test_convolutions_have_it_along_their_channels_at_every_place() -> None:
    text = "g (float[N, 8, 6, 6] x) => (float[N, 4, 4, 4] y) { y = Conv (x, w) }"
    weight = sparse(draw(4, 8, 3, 3), 1)
    assert len(sparse_layers(load(standard(text, w=weight)))) == 1
    weight[2, :4, 1, 1] = 1
    assert sparse_layers(load(standard(text, w=weight))) == []
    depthwise = "g (float[N, 8, 6, 6] x) => (float[N, 8, 4, 4] y) { y = Conv <group = 8> (x, w) }"
    assert sparse_layers(load(standard(depthwise, w=draw(8, 1, 3, 3)))) == [], "one channel is no pattern"


def test_the_builder_is_told_only_where_there_is_something_to_gain(tmp_path: Path) -> None:
    text = "g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }"
    for target, weight, expected in (
        ("a100", sparse(draw(64, 64), 0), True),
        ("a100", draw(64, 64), False),
        ("t4", sparse(draw(64, 64), 0), False),
    ):
        out = tmp_path / "m.trt"
        options = {"target": target, "backend": "tensorrt", "verify": "off", "measure": False}
        optc.compile(standard(text, w=weight), output=out, level=2, **options)
        recipe = read_recipe(out)
        assert recipe.sparse_weights is expected
        assert ("--sparsity=enable" in (out / "README.md").read_text("utf-8")) is expected
        assert any("2:4 weights" in note for note in recipe.notes) is expected


def test_codes_of_sparse_weights_are_sparse(tmp_path: Path) -> None:
    out = tmp_path / "cnn.trt"
    optc.compile(
        DIGITS / "cnn.onnx",
        passes=f"{CLEAN},sparsity{{channels=16}},quantize{{techniques=[static-int8],min_gain=0.0}},dce",
        calib=DIGITS / "calib.npz",
        calib_cache="off",
        target="a100",
        backend="tensorrt",
        output=out,
        max_error=0.3,
        verify="off",
        measure=False,
    )
    assert read_recipe(out).sparse_weights
    graph = onnx.load(out / "model.onnx").graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    codes = [
        arrays[node.input[0]] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in arrays
    ]
    large = [one for one in codes if one.ndim == 4 and one.shape[1] > 1]
    assert len(large) >= 5 and all(one.dtype == np.int8 and PATTERN.holds(one, axis=1) for one in large)
    assert all(0.3 < np.count_nonzero(one) / one.size <= 0.5 for one in large), "and not just zeros"
