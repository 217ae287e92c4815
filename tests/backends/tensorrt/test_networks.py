"""Whole networks for TensorRT: what is in their files, narrow floats and weights in four bits."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

import optc
from optc.backends.tensorrt.check import check
from optc.backends.tensorrt.recipe import read_recipe
from optc.ir.model import load

from .models import draw, standard

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
ZOO = os.environ.get("OPTC_ZOO")
BLOCK = """g (float[N, 256] x) => (float[N, 256] y) {
    a = MatMul (x, w) b = Relu (a) c = MatMul (b, v) y = Add (c, x)
}"""


def file_of(bundle: Path) -> onnx.ModelProto:
    assert check(load(bundle / "model.onnx")) == []
    return onnx.load(bundle / "model.onnx", load_external_data=False)


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(onnx.TensorProto.DataType.Name(one.data_type) for one in model.graph.initializer)


def test_a_transformer_in_half_precision_has_its_norms_and_products_as_tensorrt_takes_them(tmp_path: Path):
    out = tmp_path / "vit.trt"
    result = optc.compile(
        DIGITS / "vit.onnx", level=3, skip="quantize", target="a100", output=out, calib=DIGITS / "calib.npz",
        calib_cache="off", measure=False,
    )  # fmt: skip
    assert result.report.verification.status == "passed"
    model = file_of(out)
    found = Counter(node.op_type for node in model.graph.node)
    assert found["LayerNormalization"] and found["Gelu"] and found["Softmax"] and not found["Erf"]
    assert {node.domain for node in model.graph.node} == {""} and kinds(model)["FLOAT16"]


def test_weights_in_four_bits_stand_right_before_their_products_and_raise_the_opset(tmp_path: Path):
    out = tmp_path / "m.trt"
    model = standard(BLOCK, 17, w=draw(256, 256) / 16, v=draw(256, 256, seed=1) / 16)
    result = optc.compile(
        model, passes='quantize{techniques=[weight-only],options=["int4-*"],objective=size},mixed-precision',
        target="a100", output=out, measure=False, max_error=0.3,
    )  # fmt: skip
    assert result.report.verification.status == "passed", result.report.verification.reason
    made = file_of(out)
    readers = {name: node for node in made.graph.node for name in node.input}
    weights = [node for node in made.graph.node if node.op_type == "DequantizeLinear"]
    assert kinds(made)["INT4"] == len(weights) == 2 and made.opset_import[0].version == 21
    for node in weights:
        attributes = {one.name: one.i for one in node.attribute}
        assert attributes["axis"] == 0 and 256 % attributes["block_size"] == 0
        assert readers[node.output[0]].op_type == "MatMul", "nothing between the weights and the product"


@pytest.mark.slow
@pytest.mark.skipif(not ZOO, reason="OPTC_ZOO names no folder of models")
@pytest.mark.parametrize("level", [2, 3])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("resnet50", {"Conv": 53}),
        ("vit_b16", {"LayerNormalization": 25, "Gelu": 12, "Softmax": 12}),
        ("minilm", {"LayerNormalization": 13, "Gelu": 6, "Softmax": 6}),
        ("convnext_tiny", {"LayerNormalization": 23, "Gelu": 18}),
    ],
)
def test_networks_of_the_zoo(name: str, wanted: dict[str, int], level: int, tmp_path: Path):
    """At -O3 without data: half precision where numbers are known to fit."""
    path = Path(ZOO or "") / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    out = tmp_path / "m.trt"
    skip = "quantize" if level == 3 else None
    result = optc.compile(path, level=level, skip=skip, target="a100", output=out, measure=False)
    assert result.report.verification.status == "passed"
    model = file_of(out)
    found = Counter(node.op_type for node in model.graph.node)
    assert {op: found[op] for op in wanted} == wanted
    assert (kinds(model)["FLOAT16"] > 0) == (level == 3)
    assert sum(file.bytes for file in read_recipe(out).files.values()) > 0


@pytest.mark.slow
@pytest.mark.skipif(not ZOO, reason="OPTC_ZOO names no folder of models")
def test_a_deep_network_on_integers_has_a_pair_on_every_skip(tmp_path: Path):
    path = Path(ZOO or "") / "resnet50.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    spec = onnx.load(path, load_external_data=False).graph.input[0]
    x = np.random.default_rng(0).normal(size=(8, 3, 224, 224)).astype(np.float32)
    result = optc.compile(
        path, level=3, skip="mixed-precision", target="a100", output=tmp_path / "m.trt", measure=False,
        calib={spec.name: x}, calib_cache="off", max_error=0.2,
    )  # fmt: skip
    assert result.report.verification.status == "passed"
    graph = file_of(tmp_path / "m.trt").graph
    maker = {name: node.op_type for node in graph.node for name in node.output}
    integer = {
        node.output[0]
        for node in graph.node
        if node.op_type == "Conv" and all(maker.get(name) == "DequantizeLinear" for name in node.input[:2])
    }
    sums = [node for node in graph.node if node.op_type == "Add" and set(node.input) <= maker.keys()]
    kinds = [{maker[name] for name in node.input} for node in sums if integer & set(node.input)]
    assert len(sums) == 16 and len(kinds) >= 12  # the first, which are too small for a tile, stay in floats
    assert all(one == {"Conv", "DequantizeLinear"} for one in kinds)
