"""The pass that quantizes weights as it is told: what it changes, what it leaves, and that results are its codes'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from optc.backends.ort import Session
from optc.compiler import compile as compile_model
from optc.ir.errors import OutputError, UsageError
from optc.ir.facts import Facts
from optc.ir.mapped import MappedTensor, Spool
from optc.ir.model import load
from optc.ir.saving import save
from optc.passes.compress.layers import weighted_layers
from optc.passes.compress.weights.quantize_weights import QuantizeWeights
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "table": RANDOM.standard_normal((100, 64)),
    "w1": RANDOM.standard_normal((64, 128)) / 8,
    "w2": RANDOM.standard_normal((96, 128)) / 11,
    "b2": RANDOM.standard_normal(96),
    "w3": RANDOM.standard_normal((96, 80)) / 10,
}
BODY = """g (int64[B, T] ids) => (float[B, T, 80] y) {
    e = Gather(table, ids) a = MatMul(e, w1) r = Relu(a)
    shape = Constant<value = int64[2] {-1, 128}>() flat = Reshape(r, shape)
    b = Gemm<transB = 1>(flat, w2, b2)
    ids_shape = Shape(ids) last = Constant<value = int64[1] {96}>() back = Concat<axis = 0>(ids_shape, last)
    c = Reshape(b, back) y = MatMul(c, w3)
}"""
CONV = """g (float[B, 64, H, W] x) => (float[B, 64, H, W] y) {
    a = Conv(x, one, bias) b = Conv<pads = [1, 1, 1, 1]>(a, three) c = Conv<group = 2>(b, grouped)
    y = Conv(c, plain)
}"""
CONV_WEIGHTS = {
    "one": RANDOM.standard_normal((96, 64, 1, 1)) / 8,
    "bias": RANDOM.standard_normal(96),
    "three": RANDOM.standard_normal((64, 96, 3, 3)) / 30,
    "grouped": RANDOM.standard_normal((160, 32, 1, 1)) / 6,
    "plain": RANDOM.standard_normal((64, 160, 1, 1)) / 12,
}
IDS = RANDOM.integers(0, 100, (3, 7))


def model_of(body: str, weights: dict[str, np.ndarray]) -> onnx_ir.Model:
    return parse(body, {name: array.astype(np.float32) for name, array in weights.items()})


def quantized(model: onnx_ir.Model, text: str, tmp_path: Path, **options: object) -> onnx_ir.Model:
    """What the pass makes of a model, through the front door."""
    save(model, tmp_path / "model.onnx")
    options = {"verify": "off", "max_error": 0.3, **options}
    result = compile_model(tmp_path / "model.onnx", passes=text, target="cpu", output=tmp_path / "out.onnx", **options)
    assert result.artifact
    return load(tmp_path / "out.onnx")


def kinds(model: onnx_ir.Model) -> list[str]:
    wanted = {"MatMul", "Gemm", "Conv", "Gather", "MatMulNBits", "GatherBlockQuantized"}
    return [node.op_type for node in model.graph if node.op_type in wanted]


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    "options", ["", "{method=mse,block=64}", "{method=hqq,zeros=float}", "{method=k-quant,zeros=integer}"]
)
def test_products_are_quantized(options: str, tmp_path: Path) -> None:
    model = model_of(BODY, WEIGHTS)
    result = quantized(model, f"quantize-weights{options}", tmp_path)
    assert kinds(result) == ["Gather", *["MatMulNBits"] * 3]
    before, after = (Session(m, optimization="off").run({"ids": IDS})["y"] for m in (model, result))
    assert 0 < relative(after, before) < 0.25
    finer = quantized(model, "quantize-weights{bits=8}", tmp_path)
    assert relative(Session(finer).run({"ids": IDS})["y"], before) < 0.01


def test_embeddings_are_quantized_where_asked(tmp_path: Path) -> None:
    model = model_of(BODY, WEIGHTS)
    result = quantized(model, "quantize-weights{bits=8,lookups=true}", tmp_path)
    assert kinds(result) == ["GatherBlockQuantized", *["MatMulNBits"] * 3]
    before, after = (Session(m, optimization="off").run({"ids": IDS})["y"] for m in (model, result))
    assert relative(after, before) < 0.01
    assert (tmp_path / "out.onnx").stat().st_size < 0.4 * (tmp_path / "model.onnx").stat().st_size


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_methods_that_look_at_inputs(method: str, tmp_path: Path) -> None:
    """On data with structure they beat rounding; they find it through the compile's own statistics."""
    model = model_of(BODY, WEIGHTS)
    calib = {"ids": (np.arange(12 * 40).reshape(12, 40) ** 2 % 11).astype(np.int64)}
    errors = []
    for name in ("rtn", method):
        result = quantized(model, f"quantize-weights{{method={name}}}", tmp_path, calib=calib)
        before, after = (Session(m, optimization="off").run(calib)["y"] for m in (model, result))
        errors.append(relative(after, before))
    assert errors[1] < (0.5 if method == "gptq" else 0.95) * errors[0]


def test_only_convolutions_of_pixels_are_products(tmp_path: Path) -> None:
    model = model_of(CONV, CONV_WEIGHTS)
    x = RANDOM.standard_normal((2, 64, 5, 6)).astype(np.float32)
    result = quantized(model, "quantize-weights{bits=8}", tmp_path)
    assert kinds(result) == ["MatMulNBits", "Conv", "Conv", "MatMulNBits"]
    before, after = (Session(m, optimization="off").run({"x": x})["y"] for m in (model, result))
    assert before.shape == after.shape and relative(after, before) < 0.01
    calibrated = quantized(model, "quantize-weights{bits=4,method=gptq}", tmp_path, calib={"x": x})
    assert kinds(calibrated) == ["MatMulNBits", "Conv", "Conv", "MatMulNBits"]


def test_the_error_budget_holds(tmp_path: Path) -> None:
    model = model_of(BODY, WEIGHTS)
    result = quantized(model, "quantize-weights", tmp_path, verify="final", max_error=0.001)
    assert kinds(result) == ["Gather", "MatMul", "Gemm", "MatMul"]


@pytest.mark.parametrize("method", ["rtn", "mse", "hqq", "k-quant", "awq", "gptq"])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_left_alone(method: str, odd: float, tmp_path: Path) -> None:
    weights = {**WEIGHTS, "w2": WEIGHTS["w2"].copy()}
    weights["w2"][5, 7] = odd
    options = f"{{method={method},zeros=integer}}"
    result = quantized(model_of(BODY, weights), f"quantize-weights{options}", tmp_path, calib={"ids": IDS})
    assert kinds(result) == ["Gather", "MatMulNBits", "Gemm", "MatMulNBits"]


def test_rounding_activations_is_said(tmp_path: Path) -> None:
    for activations, level in (("float", 0), ("int8", 4)):
        result = quantized(model_of(BODY, WEIGHTS), f"quantize-weights{{activations={activations}}}", tmp_path)
        levels = {n.attributes["accuracy_level"].as_int() for n in result.graph if n.op_type == "MatMulNBits"}
        assert levels == {level}


@pytest.mark.parametrize(
    "options",
    [{"method": "best"}, {"bits": 5}, {"zeros": "some"}, {"block": -1}, {"method": "hqq"}, {"activations": "int4"}],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        QuantizeWeights(**options)  # type: ignore[arg-type]


def test_tables_are_layers_only_where_asked() -> None:
    from_model = model_of(BODY, WEIGHTS)
    facts = Facts(from_model)
    assert [layer.kind for layer in weighted_layers(from_model.graph, facts)] == ["matmul"] * 3
    every = list(weighted_layers(from_model.graph, facts, ("matmul", "conv", "lookup")))
    assert [layer.kind for layer in every] == ["lookup", *["matmul"] * 3]
    assert (every[0].rows, every[0].columns) == (64, 100) and every[0].x.name == "ids"
    for layer in every:
        np.testing.assert_array_equal(layer.by_output(facts).T, layer.matrix(facts))


def test_a_spool_gives_back_what_it_was_given(tmp_path: Path) -> None:
    arrays = [RANDOM.standard_normal((50, 30)).astype(np.float32), RANDOM.integers(0, 255, (7, 9)).astype(np.uint8)]
    spool = Spool(sum(array.nbytes for array in arrays) + 128)
    kept = [spool.keep(onnx_ir.tensor(array, name="t")) for array in arrays]
    packed = onnx_ir.PackedTensor(arrays[1].reshape(-1), onnx_ir.DataType.UINT4, shape=onnx_ir.Shape([2, 63]))
    kept.append(spool.keep(packed))
    for tensor, array in zip(kept, [*arrays, packed.numpy()], strict=True):
        assert isinstance(tensor, MappedTensor)
        tensor.file.release(tensor.offset, tensor.nbytes)
        np.testing.assert_array_equal(tensor.numpy(), array)
    with pytest.raises(OutputError):
        Spool(1 << 62)
