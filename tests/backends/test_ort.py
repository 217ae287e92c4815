"""Sessions: what goes in comes out, whatever the source, size and element type; errors name what is wrong."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper

from optc.backends import ort_model
from optc.backends.base import Backend, Runner
from optc.backends.ort import OnnxRuntimeBackend, Session
from optc.ir.errors import BackendError, DataError
from optc.ir.model import load
from optc.ir.saving import save
from optc.ir.targets import builtin_targets


def scaled(rows: int = 64, columns: int = 512) -> onnx_ir.Model:
    """y = x @ w with a weight big enough to be shared as memory."""
    weight = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    model = onnx_ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"g (float[N, {rows}] x) => (float[N, {columns}] y) {{ y = MatMul(x, w) }}"
    )
    value = onnx_ir.Value(name="w", const_value=onnx_ir.tensor(weight, name="w"))
    model.graph.register_initializer(value)
    next(iter(model.graph)).replace_input_with(1, value)
    return model


def test_weights_in_a_file_are_mapped_from_there_as_long_as_it_is_the_same(tmp_path):
    path, other = tmp_path / "m.onnx", tmp_path / "other.onnx"
    save(scaled(), path, external=True)
    model = load(path)
    want = X @ model.graph.initializers["w"].const_value.numpy()
    shared = ort_model.loadable(model)
    assert shared.names == [] and list(shared.config.values()) == [str(tmp_path)]
    session = Session(model)
    changed = scaled()
    changed.graph.initializers["w"].const_value = onnx_ir.tensor(np.zeros((64, 512), np.float32), name="w")
    save(changed, other, external=True)
    (tmp_path / "other.onnx.data").replace(tmp_path / "m.onnx.data")
    np.testing.assert_allclose(session.run({"x": X})["y"], want, rtol=1e-5)
    # The model still has the weights it was loaded with, and they are no longer in the file.
    assert ort_model.loadable(model).names == ["w"]
    np.testing.assert_allclose(Session(model).run({"x": X})["y"], want, rtol=1e-5)


def one_op(text: str, opset: int = 17) -> onnx_ir.Model:
    return onnx_ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}]> {text}')


X = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)


@pytest.mark.parametrize("source", ["model", "proto", "bytes", "path", "external"])
def test_every_source_gives_the_same_outputs(source, tmp_path):
    model = scaled()
    want = X @ model.graph.initializers["w"].const_value.numpy()
    path = tmp_path / "m.onnx"
    proto = onnx_ir.to_proto(model)
    if source == "external":
        onnx.save(proto, path, save_as_external_data=True, location="m.data")
        subject = onnx_ir.load(path)
    else:
        onnx.save(proto, path)
        subject = {"model": model, "proto": proto, "bytes": proto.SerializeToString(), "path": path}[source]
    session = Session(subject)
    np.testing.assert_allclose(session.run({"x": X})["y"], want, rtol=1e-5)
    assert [str(spec) for spec in session.inputs] == ["x: float[N, 64]"]
    assert isinstance(session, Runner)


def test_weights_in_memory_are_shared_and_the_model_is_left_alone():
    model = scaled()
    tensor = model.graph.initializers["w"].const_value
    prepared = ort_model.loadable(model)
    assert prepared.names == ["w"]
    assert len(prepared.source) < tensor.nbytes / 10
    assert np.shares_memory(prepared.buffers[0], tensor.numpy())
    assert model.graph.initializers["w"].const_value is tensor


def test_a_proto_too_big_to_serialize_takes_the_shared_way(monkeypatch):
    monkeypatch.setattr(ort_model, "INLINE_BYTES", 1000)
    proto = onnx_ir.to_proto(scaled())
    assert ort_model.loadable(proto).names == ["w"]
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    np.testing.assert_allclose(Session(proto).run({"x": X})["y"], X @ weight, rtol=1e-5)


def test_external_data_of_two_folders(tmp_path):
    model = scaled()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        onnx.save(onnx_ir.to_proto(model), tmp_path / folder / "m.onnx", save_as_external_data=True, location="d")
    one, two = (onnx_ir.load(tmp_path / folder / "m.onnx") for folder in "ab")
    extra = onnx_ir.Value(name="w2", const_value=two.graph.initializers["w"].const_value)
    extra.const_value = two.graph.initializers["w"].const_value
    one.graph.register_initializer(extra)
    node = onnx_ir.node("MatMul", [one.graph.inputs[0], extra], name="second")
    add = onnx_ir.node("Add", [one.graph.outputs[0], node.outputs[0]])
    node.outputs[0].name, add.outputs[0].name = "y2", "sum"
    one.graph.extend([node, add])
    one.graph.outputs.append(add.outputs[0])
    result = Session(one).run({"x": X})
    np.testing.assert_allclose(result["sum"], 2 * result["y"], rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (TensorProto.BFLOAT16, np.array([[1.5, -2], [0, 3]], ml_dtypes.bfloat16)),
        (TensorProto.FLOAT8E4M3FN, np.array([[1.5, -2], [0, 3]], ml_dtypes.float8_e4m3fn)),
        (TensorProto.INT4, np.array([[1, -2, 3], [-8, 7, 0]], ml_dtypes.int4)),
        (TensorProto.UINT4, np.array([[1, 2, 3], [15, 7, 0]], ml_dtypes.uint4)),
        (TensorProto.FLOAT16, np.array([[1.5, -2]], np.float16)),
    ],
)
def test_element_types_that_numpy_lacks(dtype, values):
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["wide"], ["y"], to=dtype),
        ],
        "g",
        [helper.make_tensor_value_info("x", dtype, ["a", "b"])],
        [
            helper.make_tensor_value_info("wide", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("y", dtype, None),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    outputs = Session(proto).run({"x": values})
    np.testing.assert_array_equal(outputs["wide"], values.astype(np.float32))
    assert outputs["y"].dtype == values.dtype
    np.testing.assert_array_equal(outputs["y"].astype(np.float32), values.astype(np.float32))


def test_strings():
    session = Session(one_op("g (string[N] x) => (string[N] y) { y = Identity(x) }"))
    assert list(session.run({"x": np.array(["a", "Zoë"], object)})["y"]) == ["a", "Zoë"]


def test_sequences_come_as_lists():
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("SplitToSequence", ["x"], ["y"], axis=0)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b"])],
        [sequence],
    )
    session = Session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert session.outputs[0].kind == "sequence"
    parts = session.run({"x": np.ones((2, 3), np.float32)})["y"]
    assert isinstance(parts, list)
    assert [part.shape for part in parts] == [(1, 3), (1, 3)]


@pytest.mark.parametrize("optimization", ["off", "basic", "extended", "all"])
def test_optimization_levels(optimization):
    model = one_op("g (float[N] x) => (float[N] y) { a = Identity(x) y = Relu(a) }")
    session = Session(model, optimization=optimization, threads=1)
    np.testing.assert_array_equal(session.run({"x": np.array([-1, 2], np.float32)})["y"], [0, 2])


def test_the_graph_as_onnxruntime_rewrote_it_can_be_saved(tmp_path):
    model = one_op("g (float[N] x) => (float[N] y) { a = Identity(x) b = Identity(a) y = Relu(b) }")
    Session(model, save_optimized=tmp_path / "out.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node] == ["Relu"]


def test_only_wanted_outputs():
    session = Session(one_op("g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Neg(x) }"))
    assert list(session.run({"x": np.ones(2, np.float32)}, ["z"])) == ["z"]


def test_run_errors_name_the_node():
    model = one_op("g (float[a, b] x) => (float[c, d] y) { h = Relu(x) y = MatMul(h, h) }")
    list(model.graph)[1].name = "the_product"
    with pytest.raises(BackendError, match=r"node 'the_product': onnxruntime failed in MatMul"):
        Session(model).run({"x": np.ones((2, 3), np.float32)})


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"missing: x.*\n.*the model takes x: float\[a, 3\]"),
        ({"x": np.ones((2, 3), np.float32), "z": np.ones(1)}, "unknown: z"),
        ({"x": np.ones((2, 3))}, r"an input has type tensor\(double\) where the model takes tensor\(float\)"),
        ({"x": np.ones(3, np.float32)}, "Invalid rank for input: x"),
        ({"x": np.ones((2, 4), np.float32)}, "invalid dimensions for input: x"),
    ],
)
def test_feeds_that_do_not_fit_are_data_errors(feeds, message):
    session = Session(one_op("g (float[a, 3] x) => (float[a, 3] y) { y = Relu(x) }"))
    with pytest.raises(DataError, match=message):
        session.run(feeds)


def unknown_op() -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Nope", ["x"], ["y"], name="n", domain="my")], "g", [x], [y])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def too_new(opset: int, ir_version: int) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (unknown_op(), "does not know the op my:Nope"),
        (too_new(17, 99), "IR version 99 is newer than the installed onnxruntime reads"),
        (too_new(99, 8), "opset 99 is newer than the installed onnxruntime supports"),
        (b"garbage", "protobuf parsing failed"),
        ("/does/not/exist.onnx", r"/does/not/exist\.onnx"),
    ],
)
def test_models_that_cannot_be_opened(model, message):
    with pytest.raises(BackendError, match=message):
        Session(model)


def test_a_missing_provider_says_what_to_install():
    model = one_op("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    with pytest.raises(BackendError, match="has no NoSuchProvider"):
        Session(model, providers=["NoSuchProvider"])


def test_the_backend_emits_what_it_can_open(tmp_path):
    backend = OnnxRuntimeBackend()
    assert isinstance(backend, Backend)
    assert backend.probe().ready
    artifact = backend.emit(scaled(), builtin_targets()["cpu"], tmp_path / "out.onnx")
    assert artifact.path.exists()
    assert artifact.nbytes == sum(file.stat().st_size for file in artifact.files)
    assert backend.open(artifact.path, threads=1).run({"x": X})["y"].shape == (3, 512)


def test_claims_follow_the_kernels_of_the_target():
    backend, targets = OnnxRuntimeBackend(), builtin_targets()
    model = onnx_ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1, "my": 1]>'
        "g (float[N] x) => (float[N] y) { a = Relu(x) b = com.microsoft.NoSuchOp(a) y = com.microsoft.FastGelu(a) }"
    )
    relu, nonsense, gelu = model.graph
    assert backend.claims(relu, targets["cpu"])
    assert backend.claims(gelu, targets["cpu"])
    assert backend.claims(gelu, targets["a100"])
    assert not backend.claims(nonsense, targets["cpu"])


def test_weights_in_another_memory_order_are_read_right():
    model = scaled()
    turned = np.asfortranarray(model.graph.initializers["w"].const_value.numpy())
    model.graph.initializers["w"].const_value = onnx_ir.tensor(turned, name="w")
    session = Session(model)
    del model
    np.testing.assert_allclose(session.run({"x": X})["y"], X @ turned, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_scalars_stay_scalars(dtype):
    kind = int(onnx_ir.DataType.from_numpy(np.dtype(dtype)))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [])],
        [helper.make_tensor_value_info("y", kind, [])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = Session(proto).run({"x": np.array(1.5, dtype)})["y"]
    assert result.shape == ()
    assert float(result) == 1.5
