"""Saving: what was in the model is in the file, whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
from onnx_ir import DataType

from optc.backends.ort import Session
from optc.ir import saving
from optc.ir.errors import OutputError
from optc.ir.model import load
from optc.ir.saving import save, to_proto

RANDOM = np.random.default_rng(0)
TENSORS = {
    "small": onnx_ir.tensor(RANDOM.standard_normal((3, 4)).astype(np.float32)),
    "large": onnx_ir.tensor(RANDOM.standard_normal((64, 64)).astype(np.float32)),
    "ints": onnx_ir.tensor(np.arange(2000, dtype=np.int64)),
    "bools": onnx_ir.tensor(np.arange(5000) % 3 == 0),
    "scalar": onnx_ir.tensor(np.float64(2.5)),
    "half": onnx_ir.tensor(RANDOM.standard_normal((50, 50)).astype(np.float16)),
    "bf16": onnx_ir.tensor(RANDOM.standard_normal((50, 50)).astype(ml_dtypes.bfloat16)),
    "fp8": onnx_ir.tensor(RANDOM.standard_normal((70, 70)).astype(ml_dtypes.float8_e4m3fn)),
    "int4": onnx_ir.tensor(RANDOM.integers(-8, 8, (101, 51)).astype(ml_dtypes.int4)),
    "uint4": onnx_ir.tensor(RANDOM.integers(0, 16, (7,)).astype(ml_dtypes.uint4)),
    "empty": onnx_ir.tensor(np.zeros((0, 7), np.float32)),
    "words": onnx_ir.StringTensor(np.array([b"a", b"bc", b"x" * 2000], dtype=object)),
}


def model_of(tensors: dict[str, onnx_ir.TensorProtocol]) -> onnx_ir.Model:
    """A model whose outputs are its initializers, each through an Identity, and one of them in a sub-graph too."""
    model = onnx_ir.from_onnx_text(
        """<ir_version: 11, opset_import: ["": 23]> g (bool c, float[N] x) => (float[N] y) {
            y = If(c) <then_branch = t () => (float[N] a) { a = Add(x, inner) },
                       else_branch = e () => (float[N] b) { b = Neg(x) }> }"""
    )
    branch = next(iter(model.graph)).attributes["then_branch"].as_graph()
    inner = onnx_ir.Value(name="inner", const_value=onnx_ir.tensor(np.arange(512, dtype=np.float32), name="inner"))
    branch.register_initializer(inner)
    next(iter(branch)).replace_input_with(1, inner)
    for name, tensor in tensors.items():
        value = onnx_ir.Value(
            name=name, type=onnx_ir.TensorType(tensor.dtype), shape=onnx_ir.Shape(tensor.shape), const_value=tensor
        )
        tensor.name = name
        model.graph.register_initializer(value)
        node = onnx_ir.node("Identity", [value])
        node.outputs[0].name = f"{name}_out"
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    return model


def tensors_of(model: onnx_ir.Model) -> dict[str, onnx_ir.TensorProtocol]:
    found = {}
    for graph in model.graphs():
        found.update({name: value.const_value for name, value in graph.initializers.items()})
    return found


def assert_same_tensors(a: onnx_ir.Model, b: onnx_ir.Model) -> None:
    ours, theirs = tensors_of(a), tensors_of(b)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        other = theirs[name]
        assert (tensor.dtype, tuple(tensor.shape)) == (other.dtype, tuple(other.shape)), name
        np.testing.assert_array_equal(np.asarray(tensor.numpy()), np.asarray(other.numpy()), err_msg=name)


def leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# round trips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True])
def test_every_kind_of_tensor_survives(tmp_path, external):
    model = model_of(TENSORS)
    before = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    files = save(model, tmp_path / "m.onnx", external=external)
    assert onnx_ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert leftovers(tmp_path) == sorted(file.name for file in files) == ["m.onnx", "m.onnx.data"][: 1 + external]
    loaded = load(files[0])
    assert_same_tensors(model, loaded)
    onnx.checker.check_model(files[0])
    assert_same_tensors(model, onnx_ir.load(files[0]))

    # and what was loaded can be saved again, in either way
    for again in (False, True):
        second = load(save(loaded, tmp_path / f"n{again}.onnx", external=again)[0])
        assert_same_tensors(model, second)
        third = save(second, tmp_path / f"o{again}.onnx", external=again)
        assert_same_tensors(model, load(third[0]))


def test_onnxruntime_maps_what_was_saved_outside(tmp_path):
    tensors = {name: TENSORS[name] for name in ("small", "large", "ints", "half", "empty")}
    model = model_of(tensors)
    for external in (False, True):
        path = save(model, tmp_path / f"{external}.onnx", external=external)[0]
        x = np.ones(512, np.float32)
        outputs = Session(path).run({"c": np.array(True), "x": x})
        np.testing.assert_array_equal(outputs["y"], x + np.arange(512))
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(outputs[f"{name}_out"], tensor.numpy())


def test_a_proto_holds_its_data(tmp_path):
    model = model_of(TENSORS)
    path = save(model, tmp_path / "m.onnx", external=True)[0]
    proto = to_proto(load(path))
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    assert_same_tensors(model, onnx_ir.from_proto(proto))


def test_metadata_and_functions_survive(tmp_path):
    model = onnx_ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 17, "my": 1]> g (float[N] x) => (float[N] y) { y = my.f(x) }
           <domain: "my", opset_import: ["": 17]> f (a) => (b) { b = Neg(a) }"""
    )
    node = next(iter(model.graph))
    node.name, node.metadata_props["optc.source"] = "n", "a,b"
    model.metadata_props["key"], model.doc_string = "value", "doc"
    loaded = load(save(model, tmp_path / "m.onnx")[0])
    assert next(iter(loaded.graph)).metadata_props["optc.source"] == "a,b"
    assert (loaded.metadata_props["key"], loaded.doc_string) == ("value", "doc")
    assert len(loaded.functions) == 1


# where the weights go ------------------------------------------------------------------------------------------------


def test_what_lay_outside_stays_outside_and_what_lay_inside_stays_inside(tmp_path):
    model = model_of({"large": TENSORS["large"]})
    inside = load(save(model, tmp_path / "in.onnx")[0])
    outside = load(save(model, tmp_path / "out.onnx", external=True)[0])
    assert len(save(inside, tmp_path / "in2.onnx")) == 1
    assert len(save(outside, tmp_path / "out2.onnx")) == 2


def test_small_weights_need_no_file_of_their_own(tmp_path):
    assert len(save(model_of({"small": TENSORS["small"]}), tmp_path / "m.onnx", external=True)) == 1


def test_what_is_too_large_for_one_file_goes_outside_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "INLINE_LIMIT", 10_000)
    model = model_of({"large": TENSORS["large"]})
    files = save(model, tmp_path / "m.onnx")
    assert [file.name for file in files] == ["m.onnx", "m.onnx.data"]
    assert_same_tensors(model, load(files[0]))
    with pytest.raises(OutputError, match="do not fit into one"):
        save(model, tmp_path / "n.onnx", external=False)


def test_offsets_are_aligned(tmp_path):
    path = save(model_of(TENSORS), tmp_path / "m.onnx", external=True)[0]
    proto = onnx.load(path, load_external_data=False)
    entries = [{e.key: e.value for e in t.external_data} for t in proto.graph.initializer if t.external_data]
    assert len(entries) > 3 and all(int(entry["offset"]) % saving.ALIGNMENT == 0 for entry in entries)
    assert {entry["location"] for entry in entries} == {"m.onnx.data"}


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for external in (False, True):
        first = [f.read_bytes() for f in save(model_of(TENSORS), tmp_path / "m.onnx", external=external)]
        second = [f.read_bytes() for f in save(model_of(TENSORS), tmp_path / "m.onnx", external=external)]
        assert first == second


# over what is there --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True])
def test_a_model_may_overwrite_the_files_it_was_loaded_from(tmp_path, external):
    model = model_of(TENSORS)
    path = save(model, tmp_path / "m.onnx", external=external)[0]
    loaded = load(path)
    other = loaded.clone()  # shares tensors with what is saved, and keeps more of them
    dropped = [node for node in loaded.graph if node.inputs[0] and node.inputs[0].name == "large"]
    loaded.graph.outputs.remove(dropped[0].outputs[0])
    loaded.graph.remove(dropped, safe=True)
    del loaded.graph.initializers["large"]
    save(loaded, path)
    assert "large" not in tensors_of(load(path))
    assert_same_tensors(loaded, load(path))
    assert_same_tensors(model, other)
    assert_same_tensors(model, load(save(other, tmp_path / "other.onnx")[0]))
    assert leftovers(tmp_path) == sorted(["m.onnx", "other.onnx", *["m.onnx.data", "other.onnx.data"][: 2 * external]])


def failing(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("external", [False, True])
def test_a_failure_leaves_nothing_new_and_keeps_the_old(tmp_path, monkeypatch, external):
    path = save(model_of({"large": TENSORS["large"]}), tmp_path / "m.onnx", external=external)[0]
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(saving, "_stream", failing)
    with pytest.raises(OutputError, match="No space left"):
        save(model_of(TENSORS), path, external=external)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_full_disk_in_the_middle_of_copying(tmp_path, monkeypatch):
    source = load(save(model_of(TENSORS), tmp_path / "m.onnx", external=True)[0])
    target = tmp_path / "out"
    target.mkdir()
    monkeypatch.setattr(os, "copy_file_range", failing, raising=False)
    real, calls = os.write, []

    def write(fd: int, data: bytes) -> int:
        calls.append(len(data))
        return failing() if len(calls) > 2 else real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OutputError, match="No space left"):
        save(source, target / "m.onnx")
    assert leftovers(target) == [] and len(calls) > 2


def test_copying_without_help_from_the_kernel(tmp_path, monkeypatch):
    path = save(model_of(TENSORS), tmp_path / "m.onnx", external=True)[0]
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    assert_same_tensors(load(path), load(save(load(path), tmp_path / "n.onnx")[0]))


def test_places_that_cannot_be_written_to(tmp_path):
    model = model_of({"large": TENSORS["large"]})
    with pytest.raises(OutputError, match="No such file"):
        save(model, tmp_path / "missing" / "m.onnx")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "m.onnx.data").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        save(model, tmp_path / "folder.onnx", external=True)
    with pytest.raises(OutputError, match="is a folder"):
        save(model, tmp_path / "m.onnx", external=True)
    assert leftovers(tmp_path) == ["folder.onnx", "m.onnx.data"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        save(model_of({}), tmp_path / "m.onnx")


def test_a_data_file_that_shrinks_while_it_is_copied(tmp_path):
    path = save(model_of(TENSORS), tmp_path / "m.onnx", external=True)[0]
    model = onnx_ir.load(path)  # not mapped: what onnx-ir itself loads may be given to us
    os.truncate(tmp_path / "m.onnx.data", 5000)
    with pytest.raises(OutputError):
        save(model, tmp_path / "n.onnx")
    assert leftovers(tmp_path) == ["m.onnx", "m.onnx.data"]


def test_all_dtypes_of_the_tests_are_distinct():
    assert len({tensor.dtype for tensor in TENSORS.values()} - {DataType.FLOAT}) == len(TENSORS) - 3
