"""What is known of an engine: kept beside it, compared with it, and with the machine that is to run it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from optc.backends.tensorrt.engine_file import EngineInfo, Tensor, info_path, read_info
from optc.backends.tensorrt.inspector import Layer, parse, sources_of
from optc.backends.tensorrt.recipe import ShapeRange, digest
from optc.ir.errors import BackendError
from optc.ir.rewriter import SOURCE_KEY

from ..triton.models import model


@pytest.fixture
def engine(tmp_path):
    """Writes an engine; to be called with what differs."""

    def write(**fields):
        path = tmp_path / "model.engine"
        path.write_bytes(b"a plan")
        made = EngineInfo(
            file=digest(path),
            tensorrt="10.16.1.11",
            device="NVIDIA A100",
            compute_capability="8.0",
            hardware_compatibility="none",
            version_compatible=False,
            recipe="0" * 64,
            inputs=(Tensor("x", "FLOAT", ("batch", 4)),),
            outputs=(Tensor("y", "FLOAT", ("batch", None)),),
            profiles=({"x": ShapeRange((1, 4), (8, 4), (16, 4))},),
            layers=(Layer("fused", "kgen", ("a", "b"), ("source",), "a_kernel", ("Float",)),),
        )
        made = replace(made, **fields)
        info_path(path).write_text(made.to_json())
        return path, made

    return write


def test_what_is_written_is_read_back(engine):
    path, made = engine()
    assert read_info(path) == made


def test_an_engine_that_another_tool_wrote_has_nothing_beside_it(tmp_path):
    (tmp_path / "other.engine").write_bytes(b"a plan")
    assert read_info(tmp_path / "other.engine") is None


def test_no_engine(tmp_path):
    with pytest.raises(BackendError, match="no such file"):
        read_info(tmp_path / "model.engine")


def test_another_engine_in_its_place(engine):
    path, _ = engine()
    path.write_bytes(b"longer than it was")
    with pytest.raises(BackendError, match="it has 18 bytes instead of 6"):
        read_info(path)
    path.write_bytes(b"a plaN")
    with pytest.raises(BackendError, match="its digest differs"):
        read_info(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: "",
        lambda data: "[]",
        lambda data: "[" * 100_000,
        lambda data: json.dumps({**data, "format": "1"}),
        lambda data: json.dumps({**data, "tensorrt": 11}),
        lambda data: json.dumps({**data, "compute_capability": "eight"}),
        lambda data: json.dumps({**data, "hardware_compatibility": "any"}),
        lambda data: json.dumps({**data, "inputs": [{"name": "x", "dtype": "NOTHING", "dims": []}]}),
        lambda data: json.dumps({name: value for name, value in data.items() if name != "file"}),
        lambda data: json.dumps({**data, "more": 1}),
    ],
)
def test_damage_is_named_with_the_file(engine, damage):
    path, made = engine()
    info_path(path).write_text(damage(json.loads(made.to_json())))
    with pytest.raises(BackendError, match="what optc wrote of the engine is damaged") as raised:
        read_info(path)
    assert raised.value.where == str(info_path(path))


def test_a_newer_format_is_refused(engine):
    path, made = engine()
    info_path(path).write_text(replace(made, format=2).to_json())
    with pytest.raises(BackendError, match="its format is 2, this optc reads up to 1"):
        read_info(path)


@pytest.mark.parametrize(
    "fields, capability, fits",
    [
        ({}, (8, 0), True),
        ({}, (8, 6), False),
        ({}, (9, 0), False),
        ({"hardware_compatibility": "same_compute_capability"}, (8, 0), True),
        ({"hardware_compatibility": "same_compute_capability"}, (8, 9), False),
        ({"hardware_compatibility": "ampere_plus"}, (12, 0), True),
        ({"hardware_compatibility": "ampere_plus"}, (7, 5), False),
        ({"compute_capability": "12.0"}, (12, 0), True),
    ],
)
def test_which_gpus_it_is_for(engine, fields, capability, fits):
    path, made = engine(**fields)
    assert made.runs_on(capability) == fits
    if not fits:
        with pytest.raises(BackendError, match=r"built on NVIDIA A100, for compute capability 8\.0") as raised:
            made.check(path, made.tensorrt, "a GPU", capability)
        assert f"this GPU is a GPU, with {capability[0]}.{capability[1]}" in raised.value.what


@pytest.mark.parametrize(
    "compatible, version, fits",
    [
        (False, "10.16.1.11", True),
        (False, "10.16.1.12", True),
        (False, "10.16.2.1", False),
        (False, "11.4.0.106", False),
        (True, "10.17.0.1", True),
        (True, "11.4.0.106", True),
        (True, "10.15.0.1", False),
        (True, "12.0.0", False),
    ],
)
def test_which_versions_it_is_for(engine, compatible, version, fits):
    path, made = engine(version_compatible=compatible)
    assert made.runs_with(version) == fits
    if not fits:
        with pytest.raises(BackendError, match=rf"built by TensorRT 10\.16\.1\.11, this is TensorRT {version}"):
            made.check(path, version, "NVIDIA A100", (8, 0))


# layers -----------------------------------------------------------------------------------------------------------


def test_layers_lead_back_to_the_model():
    found = model('<ir_version: 8, opset_import: ["": 17]> g (float[4] x) => (float[4] y) { y = Relu (x) }')
    (node,) = found.graph
    node.name = "fused_1"
    node.metadata_props[SOURCE_KEY] = "conv1,bn1"
    sources = sources_of(found)
    assert sources == {"fused_1": ("conv1", "bn1")}
    text = json.dumps(
        {
            "Layers": [
                {"Name": "k", "Metadata": "[ONNX Layer: fused_1]\x1f[ONNX Layer: a[0]/b]\x1e[ONNX Layer: fused_1]"},
                {"Name": "old", "Outputs": [{"Name": "y", "Format/Datatype": "Half NHWC8"}]},
                {"Name": "new", "Outputs": [{"Name": "y", "DataType": "Half", "Format": "NHWC8"}]},
                "only a name",
            ]
        }
    )
    fused, old, new, bare = parse(text, sources)
    assert fused.nodes == ("fused_1", "a[0]/b")
    assert fused.sources == ("conv1", "bn1", "a[0]/b")
    assert old.types == new.types == ("Half NHWC8",)
    assert bare == Layer("only a name")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null"])
def test_an_answer_that_cannot_be_read(text):
    with pytest.raises(BackendError, match="cannot be read"):
        parse(text, {})
