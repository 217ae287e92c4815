"""The pass as a whole: judged against the budget, on the user's data and without."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optc
from optc.backends.ort import Session
from optc.ir.saving import to_proto
from tests.passes.precision.blocks import convnext_block, vit_block

ALWAYS = "mixed-precision{always=true}"


def compiled(proto: onnx.ModelProto, passes: str = ALWAYS, **options):
    return optc.compile(proto, passes=passes, strict=True, **options)


def narrow(result: onnx_ir.Model) -> list[str]:
    """Operators that make numbers of 16 bits, casts aside."""
    types = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)
    return [n.op_type for n in result.graph if n.op_type != "Cast" and n.outputs[0].dtype in types]


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("block", [vit_block, convnext_block])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_blocks_with_norms_in_parts_do_not_overflow(block, scale):
    """As exporters write them: the variance of inputs of some hundreds is more than FP16 holds."""
    proto = block()
    name = proto.graph.input[0].name
    shape = [dim.dim_value or 2 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(1)
    calib = {name: (scale * rng.normal(size=(4 * shape[0], *shape[1:]))).astype(np.float32)}
    result = compiled(proto, calib=calib)
    ops = narrow(result.model)
    assert sum(op in ("MatMul", "Conv") for op in ops) == sum(n.op_type in ("MatMul", "Conv") for n in proto.graph.node)
    if scale > 1:
        (why,) = {row.reason.partition(" on ")[2] for row in result.report.ledger if row.node.startswith("Pow")}
        assert "Pow" not in ops and why.endswith("too near to the 65504 of fp16")
    x = (scale * np.random.default_rng(2).normal(size=shape)).astype(np.float32)
    ours, theirs = (Session(m).run({name: x}) for m in (result.model, optc.compile(proto, level=0).model))
    for key in theirs:
        assert np.isfinite(ours[key]).all()
        assert relative(ours[key], theirs[key]) < 3e-3
    assert result.report.verification.status == "passed"


def test_without_data_what_depends_on_it_stays_and_that_is_said():
    result = compiled(vit_block())
    ops = narrow(result.model)
    assert "MatMul" in ops and not {"Pow", "ReduceMean", "Softmax", "Sqrt"} & set(ops)
    (mixed,) = [one for one in result.report.passes if one.name == "mixed-precision"]
    assert any("no calibration data" in remark.reason for remark in mixed.remarks)
    reasons = {row.node: row.reason for row in result.report.ledger if not row.taken}
    left = {n.name for n in result.model.graph if n.op_type in ("Softmax", "Pow", "ReduceMean", "Sqrt")}
    assert left and all(reasons[name] for name in left)


def test_every_node_is_in_the_ledger_taken_or_with_a_reason():
    proto = vit_block()
    result = compiled(proto)
    rows = {row.node: row for row in result.report.ledger if row.technique == "mixed-precision"}
    for node in result.model.graph:
        floats = [v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype is not None]
        if node.op_type in ("Cast", "Constant") or not any(v.dtype.is_floating_point() for v in floats):
            continue
        assert rows[node.name].taken or rows[node.name].reason


def test_the_interface_is_kept_and_no_weight_is_there_twice():
    proto = vit_block()
    result = compiled(proto)
    written = to_proto(result.model)
    assert [o.type.tensor_type.elem_type for o in written.graph.output] == [onnx.TensorProto.FLOAT]
    before = sum(onnx.numpy_helper.to_array(t).nbytes for t in proto.graph.initializer)
    after = sum(onnx.numpy_helper.to_array(t).nbytes for t in written.graph.initializer)
    assert after < 0.55 * before
    (decision,) = result.report.decisions
    assert decision.kept and decision.bytes_saved == before - after


def test_what_errs_most_goes_back_until_the_budget_holds():
    """One product is nearly orthogonal to its input: what FP16 rounds away is as large as what is left of it."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(64, 1)).astype(np.float32)
    plane = np.eye(64, dtype=np.float32) - direction @ direction.T / (direction.T @ direction)
    weights = {"w": plane.astype(np.float32), "v": rng.normal(0, 0.2, (64, 64)).astype(np.float32)}
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]> g (float[B,64] x) => (float[B,64] y, float[B,64] z)
        { y = MatMul (x, w)  a = MatMul (x, v)  b = Relu (a)  z = MatMul (b, v) }
    """)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    x = (direction.T * rng.normal(size=(64, 1)) * 10 + 1e-3 * rng.normal(size=(64, 64))).astype(np.float32)
    result = compiled(proto, calib={"x": x}, max_error=0.02)
    (decision,) = result.report.decisions
    assert decision.kept and decision.error is not None and decision.error <= 0.02
    assert narrow(result.model) == ["MatMul", "Relu", "MatMul"]
    assert result.model.graph.initializers["w"].dtype == onnx_ir.DataType.FLOAT
    (row,) = [row for row in result.report.ledger if not row.taken]
    assert "leave the budget" in row.reason


def test_nothing_is_done_where_no_part_fits_the_budget():
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]> g (float[8,64] x) => (float[8,64] y) { y = MatMul (x, w) }
    """)
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    result = compiled(proto, max_error=1e-6)
    (decision,) = result.report.decisions
    assert not decision.kept and "the error is" in decision.reason
    assert not narrow(result.model)


def test_a_target_without_products_in_the_type_is_left_alone():
    result = compiled(vit_block(), "mixed-precision{dtype=fp16}")
    (decision,) = result.report.decisions
    assert not decision.kept and "it would compute between casts" in decision.reason
    assert not compiled(vit_block(), "mixed-precision").report.decisions


def test_bfloat16_is_judged_by_rounding_where_no_kernel_computes_in_it():
    result = compiled(vit_block(), "mixed-precision{dtype=bf16,always=true}", verify="off")
    (decision,) = result.report.decisions
    assert decision.kept and 1e-4 < decision.error < 0.02
    weights = [value for value in result.model.graph.initializers.values() if len(value.shape) > 1]
    assert {value.dtype for value in weights} == {onnx_ir.DataType.BFLOAT16}
    assert "Softmax" in narrow(result.model)  # it reaches as far as single precision


def test_level_3_for_a_gpu_narrows_and_for_a_cpu_does_not():
    proto = vit_block()
    ours, cpu = (optc.compile(proto, level=3, target=target) for target in ("a100", "cpu"))
    assert {"MatMul", "MatMulNBits"} & set(narrow(ours.model)) and not narrow(cpu.model)
    assert any("an estimate" in one.reason for one in ours.report.decisions if one.kept)
    assert ours.report.verification.status == "passed"


@pytest.mark.parametrize("opset", [17, 20])
def test_no_cast_stands_between_a_quantized_layer_and_its_pairs(opset):
    """Scales of 16 bits need opset 19; a cast in between would keep every runtime from fusing."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[n, 32, 16, 16] x) => (float[n, 32, 16, 16] y) {{
            a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w, b) r = Relu(a)
            c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r, w, b) y = Relu(c) }}"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (32, 32, 3, 3)), ("b", (32,))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    passes = "quantize{techniques=[static-int8]},mixed-precision{dtype=fp16}"
    calib = {"x": rng.normal(size=(8, 32, 16, 16)).astype(np.float32)}
    result = compiled(proto, passes, target="a100", backend="tensorrt", calib=calib, max_error=0.1)
    layers = [node for node in result.model.graph if node.op_type == "Conv"]
    assert len(layers) == 2 and narrow(result.model).count("Conv") == 2
    for node in layers:
        assert [value.producer().op_type for value in node.inputs[:2]] == ["DequantizeLinear"] * 2
        assert all(value.producer().inputs[1].dtype == onnx_ir.DataType.FLOAT16 for value in node.inputs[:2])


def test_the_opset_is_raised_to_one_that_has_the_layers_in_the_type():
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[n, 32, 16, 16] x) => (float[n, 32, 16, 16] y) {
            a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w) y = Relu(a) }"""
    )
    weight = np.random.default_rng(0).normal(size=(32, 32, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    result = compiled(proto, "mixed-precision{dtype=bf16}", target="a100", backend="tensorrt")
    assert narrow(result.model) == ["Conv", "Relu"]
    assert result.model.graph.opset_imports[""] == 22


ZOO = os.environ.get("OPTC_ZOO")


@pytest.mark.slow
@pytest.mark.skipif(not ZOO, reason="OPTC_ZOO names no folder of models")
@pytest.mark.parametrize(("model", "share"), [("vit_b16", 0.9), ("convnext_tiny", 0.8)])
def test_whole_networks_do_not_overflow(model, share):
    """Their norms in parts, on data with outliers: almost all of the weights are narrow, and nothing overflows."""
    path = Path(ZOO or "") / f"{model}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    spec = onnx.load(path, load_external_data=False).graph.input[0]
    x = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    x[1] *= 100
    result = optc.compile(path, passes=f"inline,fold,dce,{ALWAYS}", calib={spec.name: x}, calib_cache="off")
    (decision,) = result.report.decisions
    assert decision.kept and decision.error < 0.01
    before = sum(file.stat().st_size for file in path.parent.glob(f"{model}.onnx*"))
    assert decision.bytes_saved > 0.5 * share * before
    assert result.report.verification.status == "passed"


_UNARY = ("Relu", "Sigmoid", "Tanh", "Exp", "Softmax", "Neg", "Sqrt", "Gelu", "Floor", "Abs", "Erf", "Sin")
_BINARY = ("Add", "Sub", "Mul", "Div", "Max", "MatMul")


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_graph_stays_valid_keeps_its_interface_and_is_inside_the_budget(data):
    values, lines = ["x", "w"], []
    for index in range(data.draw(st.integers(1, 8))):
        name, a = f"v{index}", data.draw(st.sampled_from(values))
        if data.draw(st.booleans()):
            lines.append(f"{name} = {data.draw(st.sampled_from(_BINARY))} ({a}, {data.draw(st.sampled_from(values))})")
        else:
            lines.append(f"{name} = {data.draw(st.sampled_from(_UNARY))} ({a})")
        values.append(name)
    results = ", ".join(f"float[16,16] {name}" for name in sorted({values[-1], values[2]}))
    text = f'<ir_version: 9, opset_import: ["": 20]> g (float[16,16] x) => ({results}) {{ {"  ".join(lines)} }}'
    proto = onnx.parser.parse_model(text)
    scale = data.draw(st.sampled_from([1e-6, 0.1, 1.0, 300.0, 1e6]))
    weight = (scale * np.random.default_rng(0).normal(size=(16, 16))).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    samples = np.random.default_rng(1).normal(size=(64, 16)).astype(np.float32)
    calib = {"x": samples} if data.draw(st.booleans()) else None
    result = compiled(proto, calib=calib)
    written = to_proto(result.model)
    onnx.checker.check_model(written, full_check=True)
    for ours, theirs in ((written.graph.input, proto.graph.input), (written.graph.output, proto.graph.output)):
        assert [(v.name, v.type.tensor_type.elem_type) for v in ours] == [
            (v.name, v.type.tensor_type.elem_type) for v in theirs
        ]
    assert result.report.verification.status != "failed"
    assert all(record.status != "rolled back" for record in result.report.passes), result.report.passes


def test_a_policy_keeps_what_it_names_in_single_precision():
    policy = "last=none;residual=none;*=fp16"
    result = compiled(vit_block(), f'mixed-precision{{always=true,policy="{policy}"}}')
    rows = {row.node: row.reason for row in result.report.ledger if row.technique == "mixed-precision"}
    told = [node for node, reason in rows.items() if reason.startswith("the policy says")]
    kept = [node for node in result.model.graph if node.name in told]
    assert sorted(node.op_type for node in kept) == ["Add", "Add", "MatMul"]
    assert not {node.op_type for node in kept} & set(narrow(result.model)) - {"MatMul", "Add"}
    assert all(node.outputs[0].dtype != onnx_ir.DataType.FLOAT16 for node in kept)
