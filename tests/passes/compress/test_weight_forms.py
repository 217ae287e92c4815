"""The forms of quantized weights compute what their codes stand for, and are fused where they say so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.reference
import onnx_ir
import onnxruntime
import pytest

from optc.backends import ort_kernels
from optc.backends.ort import Session
from optc.ir.rewriter import Rewriter
from optc.ir.saving import to_proto
from optc.passes.compress.weights.codes import Codes, Grid
from optc.passes.compress.weights.forms import FORMS, Form, stored_in_blocks, usable_forms
from optc.passes.compress.weights.rtn import rtn

BY_NAME = {form.name: form for form in FORMS}
NBITS, GATHER, BLOCKED = (BY_NAME[name] for name in ("MatMulNBits", "GatherBlockQuantized", "blocked DequantizeLinear"))
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((3, 5, 160)).astype(np.float32)


def weight(columns: int, rows: int = 48) -> np.ndarray:
    return np.random.default_rng(columns).standard_normal((rows, columns)).astype(np.float32)


def model_of(
    write: Callable[[Rewriter, onnx_ir.Value], onnx_ir.Value], x: np.ndarray, rank: int = 3, opset: int = 17
) -> onnx_ir.Model:
    """x -> y, written by ``write``."""
    value = onnx_ir.val("x", onnx_ir.DataType.from_numpy(x.dtype), list(x.shape))
    end = onnx_ir.node("Identity", [value])
    y = end.outputs[0]
    y.name, y.dtype, y.shape = "y", onnx_ir.DataType.FLOAT, onnx_ir.Shape([f"d{axis}" for axis in range(rank)])
    graph = onnx_ir.Graph([value], end.outputs, nodes=[end], opset_imports={"": opset}, name="g")
    model = onnx_ir.Model(graph, ir_version=10)
    rewriter = Rewriter(model)
    with rewriter.at(end, "test"):
        end.replace_input_with(0, write(rewriter, value))
    return model


def product(form: Form, codes: Codes, x: np.ndarray) -> onnx_ir.Model:
    assert form.product is not None
    write = form.product
    return model_of(lambda rewriter, value: write(rewriter, value, codes, "w"), x, opset=max(form.opset, 17))


@pytest.mark.parametrize("form", [NBITS, BY_NAME["MatMulNBits, int8 activations"]], ids=lambda form: form.name)
@pytest.mark.parametrize(("bits", "zeros"), [(4, "none"), (4, "integer"), (4, "float"), (8, "none"), (8, "integer")])
@pytest.mark.parametrize(
    ("block", "columns"), [(16, 160), (32, 160), (48, 144), (64, 160), (128, 100), (256, 160), (0, 160), (0, 100)]
)
def test_matmul_nbits(form: Form, bits: int, zeros: str, block: int, columns: int) -> None:
    grid, x = Grid(bits, block, zeros), np.ascontiguousarray(X[..., :columns])  # type: ignore[arg-type]
    assert form.why_not(grid, columns) is None
    codes = rtn(weight(columns), grid)
    y = Session(product(form, codes, x)).run({"x": x})["y"]
    expected = x @ codes.dequantize().T
    exact = form is NBITS
    assert np.linalg.norm(y - expected) / np.linalg.norm(expected) < (1e-5 if exact else 2e-2)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", ["none", "integer"])
@pytest.mark.parametrize(("block", "columns"), [(16, 160), (32, 160), (64, 160), (128, 96), (0, 160)])
def test_gather_block_quantized(bits: int, zeros: str, block: int, columns: int) -> None:
    grid = Grid(bits, block, zeros)  # type: ignore[arg-type]
    codes = rtn(weight(columns), grid)
    indices = np.array([[0, 47, 3], [-1, -48, 20]], np.int64)
    assert GATHER.lookup is not None and GATHER.why_not(grid, columns) is None
    write = GATHER.lookup
    y = Session(model_of(lambda rewriter, value: write(rewriter, value, codes, "w"), indices)).run({"x": indices})["y"]
    np.testing.assert_allclose(y, codes.dequantize()[indices], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block", [16, 32, 80, 0])
def test_blocked_dequantize_linear(block: int) -> None:
    grid = Grid(4, block, positive=True)
    assert BLOCKED.why_not(grid, 160) is None
    codes = rtn(weight(160), grid)
    model, expected = product(BLOCKED, codes, X), X @ codes.dequantize().T
    y = Session(model, optimization="off").run({"x": X})["y"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    (y,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": X})
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [16, 32, 0])
def test_onnxruntime_fuses_the_blocked_form(block: int, tmp_path: object) -> None:
    """Where TensorRT fuses it, ONNX Runtime does, too: the evidence that can be run here."""
    model = product(BLOCKED, rtn(weight(160), Grid(4, block, positive=True)), X)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/optimized.onnx"
    onnxruntime.InferenceSession(to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    left = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert left == {"MatMulNBits"}


def test_what_does_not_fit_is_refused_with_a_reason() -> None:
    reasons = [
        NBITS.why_not(Grid(4, 17), 170),
        NBITS.why_not(Grid(3, 32), 160),
        NBITS.why_not(Grid(8, 32, "float"), 160),
        GATHER.why_not(Grid(4, 32, "float"), 160),
        BLOCKED.why_not(Grid(4, 32), 160),
        BLOCKED.why_not(Grid(8, 32, positive=True), 160),
        BLOCKED.why_not(Grid(4, 32, "integer"), 160),
        BLOCKED.why_not(Grid(4, 64, positive=True), 160),
        BY_NAME["Triton tiles"].why_not(Grid(4, 32), 160),
    ]
    assert all(reasons) and len(set(reasons)) == len(reasons)


def test_forms_are_those_of_the_runtime_and_its_kernels() -> None:
    names = [form.name for form in usable_forms("onnxruntime", ort_kernels.supports)]
    assert names == ["MatMulNBits, int8 activations", "MatMulNBits", "GatherBlockQuantized"]
    assert usable_forms("onnxruntime", lambda domain, op, since: False) == []
    assert usable_forms("triton", ort_kernels.supports) == []
    assert usable_forms("tensorrt", lambda domain, op, since: True) == [BLOCKED]


def test_narrower_blocks_store_the_same_weights() -> None:
    for zeros in ("none", "integer", "float"):
        codes = rtn(weight(100), Grid(4, 0, zeros))  # type: ignore[arg-type]
        narrow = stored_in_blocks(codes, 32)
        assert narrow.codes.shape == (48, 4, 32)
        np.testing.assert_array_equal(narrow.dequantize(), codes.dequantize())
