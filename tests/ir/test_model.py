"""Loading: what is no model is refused with a plain reason, what is one comes in one normal form."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from google.protobuf import json_format, text_format
from onnx import TensorProto, helper, numpy_helper

from optc.ir.errors import ModelError
from optc.ir.mapped import MappedTensor, is_external, named
from optc.ir.model import load
from optc.ir.rewriter import Rewriter
from optc.ir.verify import verify_structure

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
WEIGHT = np.arange(2048, dtype=np.float32).reshape(32, 64)


def parsed(body: str, header: str = HEADER) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{header} {body}")


def weighted(array: np.ndarray = WEIGHT, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """y = Identity(w), with x unused."""
    tensor = numpy_helper.from_array(array, "w")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"], name="n")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", dtype, list(array.shape))],
        [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(folder: Path, location: str = "m.data", array: np.ndarray = WEIGHT) -> Path:
    """A model with external data, the reference to which says ``location`` in the end."""
    proto = weighted(array)
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    proto = onnx.load(folder / "m.onnx", load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


def contents(model: onnx_ir.Model, name: str = "w") -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()


def refused(source) -> str:
    with pytest.raises(ModelError) as caught:
        load(source)
    assert caught.value.where
    return str(caught.value)


# files ---------------------------------------------------------------------------------------------------------------


def test_files_that_are_no_models(tmp_path):
    assert "no such file" in refused(tmp_path / "missing.onnx")
    assert "folder" in refused(tmp_path)
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert "empty" in refused(tmp_path / "empty.onnx")
    (tmp_path / "text.onnx").write_text("hello, I am not a model at all")
    assert "not an ONNX" in refused(tmp_path / "text.onnx")
    (tmp_path / "zeros.onnx").write_bytes(b"\0" * 1000)
    assert "not an ONNX" in refused(tmp_path / "zeros.onnx")


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    data = weighted().SerializeToString()
    path = tmp_path / "cut.onnx"
    for size in {*range(1, 200, 7), *range(200, len(data), 997), len(data) - 1}:
        path.write_bytes(data[:size])
        with pytest.raises(ModelError):
            load(path)


def test_noise_is_refused_not_crashed_on(tmp_path):
    data = bytearray(weighted(np.ones((4, 4), np.float32)).SerializeToString())
    random = np.random.default_rng(0)
    path = tmp_path / "noise.onnx"
    for _ in range(300):
        noisy = bytearray(data)
        for place in random.integers(0, len(data), 3):
            noisy[place] = random.integers(0, 256)
        path.write_bytes(noisy)
        try:
            load(path)
        except ModelError:
            continue


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_must_not_be_read(tmp_path):
    path = tmp_path / "secret.onnx"
    path.write_bytes(weighted().SerializeToString())
    path.chmod(0)
    assert "cannot read" in refused(path)


@pytest.mark.parametrize("suffix", ["onnxtxt", "json", "textproto"])
def test_text_forms(tmp_path, suffix):
    proto = parsed("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    text = {
        "onnxtxt": onnx.printer.to_text(proto),
        "json": json_format.MessageToJson(proto),
        "textproto": text_format.MessageToString(proto),
    }[suffix]
    path = tmp_path / f"m.{suffix}"
    path.write_text(text)
    assert [node.op_type for node in load(path).graph] == ["Relu"]
    path.write_text(text[: len(text) // 2] + " }{")
    assert "not a valid ONNX text" in refused(path)
    path.write_bytes(b"\xff\xfe\x00bad")
    assert "not a valid ONNX text" in refused(path)


def test_json_that_is_something_else(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"weights": [1, 2]}))
    assert "not a valid ONNX text" in refused(path)


# graphs --------------------------------------------------------------------------------------------------------------


def test_a_cycle_is_refused():
    proto = parsed("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    del proto.graph.node[:]
    proto.graph.node.extend([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["x", "a"], ["b"])])
    proto.graph.output[0].name = "b"
    assert "cycle" in refused(proto)


def test_an_unsorted_graph_is_sorted():
    proto = parsed("g (float[N] x) => (float[N] y) { a = Relu(x) b = Neg(a) y = Abs(b) }")
    for node in reversed(list(proto.graph.node)):
        proto.graph.node.append(node)
    del proto.graph.node[:3]
    assert [node.op_type for node in proto.graph.node] == ["Abs", "Neg", "Relu"]
    assert [node.op_type for node in load(proto).graph] == ["Relu", "Neg", "Abs"]


def test_initializers_of_old_models_are_constants_not_inputs():
    proto = weighted()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [32, 64]))
    assert [value.name for value in load(proto).graph.inputs] == ["x", "w"]
    proto.ir_version = 3
    model = load(proto)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.ir_version == 4
    assert Rewriter(model).facts.is_const(model.graph.initializers["w"])


def test_missing_opset_imports_are_repaired_where_they_can_be():
    proto = parsed("g (float[N] x) => (float[N] y) { y = com.microsoft.Gelu(x) }")
    before = proto.SerializeToString()
    assert load(proto).graph.opset_imports["com.microsoft"] == 1
    assert proto.SerializeToString() == before
    del proto.opset_import[:]
    proto.graph.node[0].domain = ""
    assert "imports no opset" in refused(proto)


def test_the_default_domain_may_be_spelled_out():
    proto = parsed(
        "g (float[N] x) => (float[N] y) { y = ai.onnx.Relu(x) }", '<ir_version: 8, opset_import: ["ai.onnx": 17]>'
    )
    model = load(proto)
    assert dict(model.graph.opset_imports) == {"": 17}
    assert next(iter(model.graph)).domain == ""


def test_what_the_graph_cannot_carry_is_refused_by_name():
    proto = weighted()
    values = helper.make_tensor("sparse_w", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [2])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    assert "sparse_w" in refused(proto)
    proto = weighted()
    proto.training_info.add()
    assert "training" in refused(proto)


@pytest.mark.parametrize(
    "body, words",
    [
        ("g (float[N] x) => (float[N] y) { y = Add(x) }", "inputs"),
        ("g (float[N] x) => (float[N] y) { y = Relu(nothing) }", "nothing"),
        ("g (float[N] x) => (float[N] z) { y = Relu(x) }", "'z'"),
        ("g (float[N] x) => (float[N] y) { y = Relu(x) y = Abs(x) }", "y"),
        ("g (float[N] x, float[N] x) => (float[N] y) { y = Relu(x) }", "x"),
        ('g (float[N] x) => (float[N] y) { y = Gather("", x) }', "leaves out"),
    ],
)
def test_invalid_graphs(body, words):
    assert words in refused(parsed(body))


def test_a_function_that_calls_itself_is_refused():
    text = """<ir_version: 8, opset_import: ["": 17, "my": 1]>
        g (float[N] x) => (float[N] y) { y = my.f(x) }
        <domain: "my", opset_import: ["": 17, "my": 1]> f (a) => (b) { c = my.h(a) b = Neg(c) }
        <domain: "my", opset_import: ["": 17, "my": 1]> h (a) => (b) { b = my.f(a) }"""
    assert "calls itself" in refused(onnx.parser.parse_model(text))


def test_names_that_are_not_utf8_are_refused(tmp_path):
    data = parsed("g (float[N] x) => (float[N] yyyy) { yyyy = Relu(x) }").SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data.replace(b"yyyy", b"y\xff\xfey"))
    refused(path)
    path.write_bytes(data.replace(b"Relu", b"Re\xff\xfe"))
    refused(path)


def test_names_that_hide_outer_ones_are_made_distinct():
    proto = parsed(
        """g (int64 n, bool c, float[2] x) => (float[2] y, float[2] b) {
            y = Loop(n, c, x) <body = t (int64 i, bool c, float[2] x) => (bool co, float[2] b)
                { co = Identity(c) b = Neg(x) }>
            b = Abs(x)
        }"""
    )
    onnx.checker.check_model(proto)  # such models are about, and run
    model = load(proto)
    body = next(iter(model.graph)).attributes["body"].as_graph()
    inner = {value.name for value in (*body.inputs, *(v for node in body for v in node.outputs))}
    outer = {"n", "c", "x", "y", "b"}
    assert not inner & outer and len(inner) == 5
    assert verify_structure(model) == []
    from_disk = load(onnx_ir.to_proto(model))
    assert [node.op_type for node in from_disk.graph] == ["Loop", "Abs"]


# external data -------------------------------------------------------------------------------------------------------


def test_external_data_is_mapped_not_read(tmp_path):
    model = load(external(tmp_path))
    assert isinstance(model.graph.initializers["w"].const_value, MappedTensor)
    assert is_external(model.graph.initializers["w"].const_value)
    np.testing.assert_array_equal(contents(model), WEIGHT)


def test_external_data_in_a_folder_below(tmp_path):
    (tmp_path / "sub").mkdir()
    path = external(tmp_path, "sub/m.data")
    (tmp_path / "m.data").rename(tmp_path / "sub" / "m.data")
    np.testing.assert_array_equal(contents(load(path)), WEIGHT)


def test_external_data_that_is_missing_or_short(tmp_path):
    path = external(tmp_path)
    data = tmp_path / "m.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    assert "too short" in refused(path) and "'w'" in refused(path)
    data.unlink()
    assert "missing" in refused(path)
    data.mkdir()
    refused(path)


@pytest.mark.parametrize("location", ["../m.data", "sub/../../m.data", "/etc/hostname"])
def test_external_data_outside_of_the_folder_is_refused(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder, location)
    (folder / "m.data").rename(tmp_path / "m.data")
    refused(path)


def test_links_that_leave_the_folder_are_refused_and_those_that_stay_are_not(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder)
    (folder / "m.data").rename(tmp_path / "outside.data")
    (folder / "m.data").symlink_to(tmp_path / "outside.data")
    assert "not allowed" in refused(path)
    (folder / "m.data").unlink()
    os.link(tmp_path / "outside.data", folder / "m.data")
    assert "hard link" in refused(path)
    (folder / "m.data").unlink()
    (tmp_path / "outside.data").rename(folder / "inside.data")
    (folder / "m.data").symlink_to("inside.data")
    np.testing.assert_array_equal(contents(load(path)), WEIGHT)


def test_external_data_of_a_constant_node(tmp_path):
    tensor = numpy_helper.from_array(WEIGHT, "value")
    proto = weighted()
    del proto.graph.initializer[:]
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    onnx.save(
        proto,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
        convert_attribute=True,
    )
    assert b"m.data" in (tmp_path / "m.onnx").read_bytes()
    model = load(tmp_path / "m.onnx")
    node = next(iter(model.graph))
    np.testing.assert_array_equal(Rewriter(model).facts.const(node.outputs[0]), WEIGHT)
    (tmp_path / "m.data").unlink()
    assert "missing" in refused(tmp_path / "m.onnx")


def test_zero_size_external_tensors(tmp_path):
    path = external(tmp_path, array=np.zeros((0, 4), np.float32))
    assert contents(load(path)).shape == (0, 4)


def test_the_data_that_a_loaded_model_reads_stays_what_it_was(tmp_path):
    for path in (external(tmp_path), tmp_path / "inline.onnx"):
        if not path.exists():
            path.write_bytes(weighted().SerializeToString())
        model = load(path)
        for file in (path, tmp_path / "m.data"):
            other = tmp_path / "other"
            other.write_bytes(b"\xff" * file.stat().st_size)
            other.replace(file)
        np.testing.assert_array_equal(contents(model), WEIGHT)


def test_a_proto_that_refers_to_files_is_refused(tmp_path):
    proto = onnx.load(external(tmp_path), load_external_data=False)
    assert "path" in refused(proto)


# what is given is not changed ----------------------------------------------------------------------------------------


def test_given_objects_are_not_changed():
    proto = parsed(
        """g (float[N] x) => (float[N] y) {
            c = Constant<value = float[1] k {2.0}>() a = Mul(x, c) y = com.microsoft.Gelu(a) }"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    before = proto.SerializeToString(deterministic=True)
    given = onnx_ir.from_proto(proto)
    for source in (proto, given):
        model = load(source)
        rw = Rewriter(model)
        nodes = list(model.graph)
        model.graph.initializers["w"].name = "renamed"
        with rw.at(nodes[-1], "test"):
            rw.materialize(nodes[0].outputs[0], rw.facts.tensor(nodes[0].outputs[0]))
            rw.replace(nodes[-1].outputs[0], rw.op("Relu", nodes[1].outputs[0]))
        rw.erase(nodes[-1])
        onnx_ir.to_proto(model)
        assert proto.SerializeToString(deterministic=True) == before
    assert given.graph.initializers["w"].const_value.name == "w"


def test_named_shares_contents_but_not_the_name():
    proto = numpy_helper.from_array(WEIGHT, "w")
    for tensor in (onnx_ir.tensor(WEIGHT, name="w"), onnx_ir.from_proto(proto)):
        other = named(tensor, "v")
        assert (tensor.name, other.name, proto.name) == ("w", "v", "w")
        np.testing.assert_array_equal(other.numpy(), WEIGHT)
