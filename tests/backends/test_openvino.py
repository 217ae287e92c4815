"""The openvino backend: right in all types, the interface kept, plain words where it cannot serve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir
import pytest

import optc
from optc.backends import openvino as backend_module
from optc.backends.base import HostBackend
from optc.backends.openvino import OpenVinoBackend
from optc.backends.openvino_library import installed_version
from optc.backends.openvino_runner import OpenVinoRunner
from optc.ir.errors import BackendError, DataError, UsageError
from optc.ir.metadata import MADE_FOR, PRECISION_KEY
from optc.ir.targets import builtin_targets

there = pytest.mark.skipif(
    installed_version() is None, reason="OpenVINO is not installed (pip install 'optc[openvino]')"
)
CPU = builtin_targets()["cpu"]
HEAD = '<ir_version: 8, opset_import: ["": 21, "com.microsoft": 1]> '
X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def model(text: str) -> onnx_ir.Model:
    return onnx_ir.from_onnx_text(HEAD + text)


def small() -> onnx_ir.Model:
    return model("g (float[N,4] x, float[M] unused) => (float[N,4] y, float[N,4] z) { y = Relu (x)  z = Identity (x) }")


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("openvino", "openvino_library"):
        monkeypatch.setattr(f"optc.backends.{module}.installed_version", lambda: None)


# without OpenVINO ----------------------------------------------------------------------------------------------------


def test_whoever_has_it_not_is_told_how_to_get_it(missing: None, tmp_path: Path) -> None:
    backend = OpenVinoBackend()
    assert isinstance(backend, HostBackend)
    assert not backend.probe().ready
    assert backend.probe().hint == "pip install 'optc[openvino]'"
    for attempt in (
        lambda: optc.compile(onnx_ir.to_proto(small()), backend="openvino"),
        lambda: optc.compile(onnx_ir.to_proto(small()), output=tmp_path / "m.xml"),
        lambda: backend.runner(small()),
    ):
        with pytest.raises(BackendError, match="is not installed") as caught:
            attempt()
        assert caught.value.hint == "pip install 'optc[openvino]'"
    assert list(tmp_path.iterdir()) == []


def test_auto_says_that_it_had_no_choice(missing: None, tmp_path: Path) -> None:
    result = optc.compile(onnx_ir.to_proto(small()), backend="auto", output=tmp_path / "m.onnx")
    assert result.report.backend == "onnxruntime"
    (note,) = (note for note in result.report.notes if note.startswith("backend auto"))
    assert "only onnxruntime could be tried" in note
    assert "openvino was not there" in note
    assert "pip install 'optc[openvino]'" in note
    assert result.artifact == tmp_path / "m.onnx"
    np.testing.assert_array_equal(optc.load(result.artifact).run({"x": X, "unused": X[0]})["y"], np.maximum(X, 0))


def test_auto_leaves_other_devices_to_their_own_backend() -> None:
    report = optc.compile(onnx_ir.to_proto(small()), backend="auto", target="cuda").report
    assert report.backend == "onnxruntime"
    assert any(note.startswith("backend auto: onnxruntime, as cuda is not here") for note in report.notes)


def test_files_made_for_it_open_without_it(missing: None, tmp_path: Path) -> None:
    graph = small()
    graph.metadata_props[MADE_FOR] = "openvino"
    onnx_ir.save(graph, tmp_path / "m.onnx")
    np.testing.assert_array_equal(optc.load(tmp_path / "m.onnx").run({"x": X, "unused": X[0]})["y"], np.maximum(X, 0))


def test_other_targets_and_endings_are_refused() -> None:
    with pytest.raises(UsageError, match="OpenVINO's own"):
        optc.compile(onnx_ir.to_proto(small()), backend="onnxruntime", output="m.xml")


@there
def test_gpus_are_refused() -> None:
    with pytest.raises(BackendError, match="runs on CPUs, not on 'a100'"):
        optc.compile(onnx_ir.to_proto(small()), backend="openvino", target="a100")


# what it runs --------------------------------------------------------------------------------------------------------


@there
def test_it_is_not_imported_before_it_is_used() -> None:
    code = (
        "import sys, optc, onnx_ir; from optc.plugins import environment; environment().backends.probe();"
        'm = onnx_ir.from_onnx_text(\'<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y)'
        " { y = Relu (x) }'); optc.compile(onnx_ir.to_proto(m)); sys.exit('openvino' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@there
@pytest.mark.parametrize("name", ["m.xml", "m.onnx"])
def test_an_artifact_keeps_the_interface(name: str, tmp_path: Path) -> None:
    result = optc.compile(onnx_ir.to_proto(small()), backend="openvino", output=tmp_path / name)
    runner = optc.load(result.artifact, threads=1)
    assert type(runner).__name__ == "OpenVinoRunner"
    assert [str(spec) for spec in runner.inputs] == ["x: float[N, 4]", "unused: float[M]"]
    assert [str(spec) for spec in runner.outputs] == ["y: float[N, 4]", "z: float[N, 4]"]
    outputs = runner.run({"x": X, "unused": X[0]})
    assert list(outputs) == ["y", "z"]
    np.testing.assert_array_equal(outputs["y"], np.maximum(X, 0))
    np.testing.assert_array_equal(outputs["z"], X)
    frozen = X.copy()
    frozen.flags.writeable = False  # as samples read from files are
    np.testing.assert_array_equal(runner.run({"x": frozen, "unused": X[0]})["z"], X)
    again = runner.run({"x": X[:1] * 2, "unused": X[0]})  # other sizes, and results that are the caller's own
    assert again["y"].shape == (1, 4)
    np.testing.assert_array_equal(outputs["y"], np.maximum(X, 0))


@there
@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.bool_],
    ids=lambda dtype: np.dtype(dtype).name,
)
def test_every_type_comes_out_as_it_went_in(dtype: type) -> None:
    kind = onnx_ir.DataType.from_numpy(np.dtype(dtype)).name.lower()
    text = f"g ({kind}[N,4] x) => ({kind}[4,N] y) {{ y = Transpose (x) }}"
    array = (np.arange(12).reshape(3, 4) % 2).astype(dtype)
    (found,) = OpenVinoBackend().runner(model(text)).run({"x": array}).values()
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array.T)


@there
def test_floats_keep_their_precision_unless_a_model_says_otherwise() -> None:
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal((64, 64)).astype(np.float32) for _ in "xw")
    graph = model("g (float[64,64] x, float[64,64] w) => (float[64,64] y) { y = MatMul (x, w) }")

    def error() -> float:
        found = OpenVinoBackend().runner(graph).run({"x": x, "w": w})["y"]
        return float(np.linalg.norm(found - x @ w) / np.linalg.norm(x @ w))

    assert error() < 1e-6
    graph.metadata_props[PRECISION_KEY] = "bf16"
    assert error() < 0.02  # a CPU without such instructions stays with floats


@there
def test_inputs_that_do_not_fit_are_named() -> None:
    runner = OpenVinoBackend().runner(small())
    with pytest.raises(DataError, match="missing: unused; unknown: other"):
        runner.run({"x": X, "other": X})
    with pytest.raises(DataError, match=r"'x' is float64\[3, 4\], but the model takes x: float\[N, 4\]"):
        runner.run({"x": X.astype(np.float64), "unused": X[0]})
    with pytest.raises(DataError, match=r"'x' is float32\[4, 3\]"):
        runner.run({"x": X.T, "unused": X[0]})


@there
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("g (double[N] x) => (double[N] y) { y = Relu (x) }", "computes in double"),
        ("g (string[N] x) => (string[N] y) { y = Identity (x) }", "computes in string"),
        ("g (float[N] x) => (seq(float[N]) y) { y = SequenceConstruct (x) }", "'y' is no tensor"),
        ("g (float[N,4] x) => (float[N,4] y) { y = com.microsoft.CDist (x, x) }", "no rule for com.microsoft::CDist"),
    ],
    ids=["double", "string", "sequence", "unknown"],
)
def test_what_it_cannot_run_is_refused_before_the_work(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="openvino cannot run this model") as caught:
        optc.compile(onnx_ir.to_proto(model(text)), backend="openvino", output=tmp_path / "m.xml")
    assert words in str(caught.value)
    assert caught.value.hint == "use --backend=onnxruntime"
    assert list(tmp_path.iterdir()) == []


@there
def test_damaged_files_are_refused_in_plain_words(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no such file"):
        optc.load(tmp_path / "nothing.xml")
    (tmp_path / "bad.xml").write_text("<hello/>")
    with pytest.raises(BackendError, match=r"bad\.xml: not one of OpenVINO's files"):
        optc.load(tmp_path / "bad.xml")
    with pytest.raises(UsageError, match="no option 'providers'"):
        optc.load(tmp_path / "bad.xml", providers=["CPUExecutionProvider"])
    with pytest.raises(UsageError, match="no precision 'int3'"):
        optc.load(tmp_path / "bad.xml", precision="int3")


# what is written for it ----------------------------------------------------------------------------------------------


@there
def test_graphs_for_it_are_plain_onnx() -> None:
    from_file = Path(__file__).parents[2] / "examples" / "digits" / "vit.onnx"
    result = optc.compile(from_file, backend="openvino")
    assert result.report.verification.status == "passed"
    assert {node.domain for node in result.model.graph} == {""}
    assert "LayerNormalization" in {node.op_type for node in result.model.graph}


@there
def test_the_kernels_are_those_of_the_installed_version() -> None:
    kernels = OpenVinoBackend.kernels
    assert kernels.supports("", "LayerNormalization", 17, onnx_ir.DataType.FLOAT)
    assert not kernels.supports("", "LayerNormalization", 17, onnx_ir.DataType.DOUBLE)
    assert not kernels.supports("com.microsoft", "Gelu", 1)
    assert kernels.reads("com.microsoft", "Gelu", 1)
    assert not kernels.reads("com.microsoft", "BeamSearch", 1)
    assert OpenVinoBackend().claims(model("g (float[N] x) => (float[N] y) { y = Relu (x) }").graph[0], CPU)


@there
def test_auto_tells_both_figures_and_keeps_the_faster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = optc.compile(onnx_ir.to_proto(small()), backend="auto", output=tmp_path / "m.onnx", measure=True)
    (note,) = (note for note in result.report.notes if note.startswith("backend auto"))
    assert "onnxruntime " in note
    assert "openvino " in note
    assert f"; {result.report.backend} was kept" in note
    assert result.report.latency.measured
    made_for = onnx_ir.load(tmp_path / "m.onnx").metadata_props.get(MADE_FOR)
    assert made_for == (None if result.report.backend == "onnxruntime" else "openvino")


@there
def test_auto_goes_on_without_a_runtime_that_cannot_run_the_model() -> None:
    text = "g (double[N] x) => (double[N] y) { y = Relu (x) }"
    report = optc.compile(onnx_ir.to_proto(model(text)), backend="auto").report
    assert report.backend == "onnxruntime"
    assert any("openvino cannot run this model" in note and "double" in note for note in report.notes)


@there
def test_a_runtime_with_other_numbers_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self, feeds):
        return {name: array + 1 for name, array in run(self, feeds).items()}

    run = backend_module.OpenVinoRunner.run
    monkeypatch.setattr(backend_module.OpenVinoRunner, "run", wrong)
    verification = optc.compile(onnx_ir.to_proto(small()), backend="openvino").report.verification
    assert verification.status == "failed"
    assert "openvino gets other numbers of the original too" in verification.reason
    assert optc.compile(onnx_ir.to_proto(small()), backend="auto").report.backend == "onnxruntime"


@there
def test_integers_for_it_come_from_calibration_data_and_stay_inside_the_budget(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((8, 1, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", image=images)
    result = optc.compile(
        Path(__file__).parents[2] / "examples" / "digits" / "cnn.onnx",
        backend="openvino",
        output=tmp_path / "cnn.xml",
        calib=tmp_path / "calib.npz",
        passes="fold,dce,quantize{techniques=[static-int8],objective=size}",
        max_error=0.05,
    )
    report = result.report
    assert report.verification.status == "passed"
    assert any(decision.what.startswith("static-int8") and decision.kept for decision in report.decisions)
    assert {node.domain for node in result.model.graph} == {""}
    runner = optc.load(tmp_path / "cnn.xml", threads=1)
    assert isinstance(runner, OpenVinoRunner)
    assert "u8" in {node.precision for node in runner.executed() if node.kind == "Convolution"}
    reference = optc.load(Path(__file__).parents[2] / "examples" / "digits" / "cnn.onnx")
    found, wanted = (one.run({"image": images[0]})["logits"] for one in (runner, reference))
    assert 0 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.1
