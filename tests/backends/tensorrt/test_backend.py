"""The backend as users meet it: bundles without TensorRT, and what is said of engines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import optc
from optc.backends.tensorrt import backend as module
from optc.backends.tensorrt.backend import OPTIONS, TensorRtBackend
from optc.backends.tensorrt.check import NotTaken
from optc.backends.tensorrt.plugin_file import read_plugin
from optc.backends.tensorrt.recipe import Device, ShapeRange, read_recipe
from optc.ir.errors import BackendError, OutputError, UsageError
from optc.ir.targets import builtin_targets

from .models import draw, standard

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
TARGETS = builtin_targets()
RELU = "g (float[N, 8] x) => (float[N, 8] y) { y = Relu (x) }"
QUICK = {"target": "a100", "backend": "tensorrt", "verify": "off", "measure": False}


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_missing", lambda: "TensorRT is not installed")


def bundle_of(text: str, out: Path, opset: int = 21, **options) -> Path:  # type: ignore[no-untyped-def]
    weights = options.pop("weights", {})
    result = optc.compile(
        standard(text, opset, **weights), output=out, level=options.pop("level", 2), **{**QUICK, **options}
    )
    assert result.artifact == out
    return out


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, optc.Result]:
    out = tmp_path_factory.mktemp("bundle") / "cnn.trt"
    result = optc.compile(
        DIGITS / "cnn.onnx",
        level=3,
        calib=DIGITS / "calib.npz",
        calib_cache="off",
        target="h100",
        backend="tensorrt",
        shapes={"batch": (1, 32)},
        output=out,
        backend_options={"builder-level": 5, "workspace": "1GiB", "tune-for": "batch=8"},
    )
    return out, result


# -- what is written --------------------------------------------------------------------------------------------------


def test_a_bundle_says_all_that_building_needs(quantized):
    out, result = quantized
    recipe = read_recipe(out)
    assert result.report.verification.status == "passed"
    assert (
        set(recipe.files)
        == {"model.onnx", "evidence.json", "README.md"}
        == {p.name for p in out.iterdir()} - {"build.json"}
    )
    assert recipe.devices == (Device("h100", "9.0"),)
    assert recipe.profiles == ({"image": ShapeRange((1, 1, 8, 8), (8, 1, 8, 8), (32, 1, 8, 8))},)
    assert (recipe.builder_optimization_level, recipe.workspace_bytes, recipe.strongly_typed) == (5, 1 << 30, True)
    page = (out / "README.md").read_text()
    assert "optc build cnn.trt" in page and "--maxShapes=image:32x1x8x8" in page and "| image | [1, 1, 8, 8] |" in page


def test_the_evidence_tells_what_every_scale_came_from(quantized):
    out, _ = quantized
    evidence = json.loads((out / "evidence.json").read_text())
    graph = onnx.load(out / "model.onnx").graph
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    scales = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    assert evidence["data"] == "calib.npz", "no path of this machine"
    assert [one["tensor"] for one in evidence["tensors"]] == [node.input[0] for node in quantizers]
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in scales]
    assert [one["tensor"] for one in evidence["weights"]] == [node.input[0] for node in weights] and weights
    for one, node in zip(evidence["tensors"], quantizers, strict=True):
        assert one["scale"] == pytest.approx(float(scales[node.input[1]]))
        told = one["from"]
        assert told["minimum"] <= told["maximum"] and told["values"] > 0
        assert told["calibrator"] in ("min-max", "mse", "kl", "percentile")
    image = evidence["tensors"][0]
    assert image["scale"] == pytest.approx(max(-image["from"]["low"], image["from"]["high"]) / 127, rel=1e-3)


def test_the_file_runs_in_onnxruntime_within_the_budget(quantized):
    out, _ = quantized
    feeds = {"image": np.load(DIGITS / "test.npz")["image"][:64]}
    expected, actual = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for path in (DIGITS / "cnn.onnx", out / "model.onnx")
    )
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 0.03
    onnx.checker.check_model(str(out / "model.onnx"), full_check=True)


def test_a_bundle_is_the_same_bytes_when_it_is_made_again(quantized, tmp_path: Path):
    out, _ = quantized
    data = tmp_path / "elsewhere"
    data.mkdir()
    shutil.copy(DIGITS / "calib.npz", data)
    optc.compile(
        DIGITS / "cnn.onnx",
        level=3,
        calib=data / "calib.npz",
        calib_cache="off",
        target="h100",
        backend="tensorrt",
        shapes={"batch": (1, 32)},
        output=tmp_path / "cnn.trt",
        verify="off",
        measure=False,
        backend_options={"builder-level": 5, "workspace": "1GiB", "tune-for": "batch=8"},
    )
    for file in out.iterdir():
        assert (tmp_path / "cnn.trt" / file.name).read_bytes() == file.read_bytes(), file.name


def test_large_weights_lie_beside_the_model(tmp_path: Path):
    source = tmp_path / "source.onnx"
    model = standard("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }", w=draw(64, 64))
    optc.compile(model, output=source, level=0, verify="off", measure=False)
    onnx.save(onnx.load(source), source, save_as_external_data=True, location="w.data", size_threshold=0)
    optc.compile(source, output=tmp_path / "out.trt", **QUICK)
    assert {"model.onnx", "model.onnx.data"} <= set(read_recipe(tmp_path / "out.trt").files)
    (tmp_path / "w.data").unlink()
    onnxruntime.InferenceSession(tmp_path / "out.trt" / "model.onnx").run(None, {"x": draw(2, 64)})


def test_a_bundle_takes_the_place_of_one_and_of_nothing_else(tmp_path: Path):
    out = tmp_path / "m.trt"
    bundle_of(RELU, out)
    before = (out / "build.json").read_bytes()
    bundle_of(RELU, out, backend_options={"refit": True})
    assert (out / "build.json").read_bytes() != before and read_recipe(out).refit
    other = tmp_path / "mine.trt"
    other.write_text("a file")
    with pytest.raises(OutputError, match="no artifact of optc"):
        bundle_of(RELU, other)
    assert other.read_text() == "a file" and sorted(path.name for path in tmp_path.iterdir()) == ["m.trt", "mine.trt"]


def test_options_reach_the_recipe(tmp_path: Path):
    cache = tmp_path / "old.cache"
    cache.write_bytes(b"timings")
    out = bundle_of(
        RELU,
        tmp_path / "m.trt",
        backend_options={
            "compatibility": "ampere-plus",
            "version-compatible": "true",
            "weight-streaming": "yes",
            "timing-cache": str(cache),
        },
    )
    recipe = read_recipe(out)
    assert (recipe.hardware_compatibility, recipe.version_compatible, recipe.weight_streaming) == (
        "ampere_plus",
        True,
        True,
    )
    assert recipe.timing_cache is not None and (out / recipe.timing_cache).read_bytes() == b"timings"
    page = (out / "README.md").read_text()
    assert "--hardwareCompatibilityLevel=ampere+" in page and "--versionCompatible --allowWeightStreaming" in page


def test_plugins_are_named_in_the_recipe(tmp_path: Path):
    backend, model = (
        TensorRtBackend(),
        standard('g (float[N] x) => (float[N] y) { y = my.Thing <plugin_namespace = "my"> (x) }'),
    )
    backend.emit(model, backend.on(TARGETS["a100"]), tmp_path / "m.trt")
    assert [one.name for one in read_recipe(tmp_path / "m.trt").plugins] == ["my::Thing"]


# -- operators --------------------------------------------------------------------------------------------------------


def test_norms_and_activations_are_single_operators_of_the_standard(tmp_path: Path):
    text = """g (float[N, 8, 16] x) => (float[N, 8, 16] y) {
        m = ReduceMean <axes = [-1]> (x) c = Sub (x, m) s = Mul (c, c) v = ReduceMean <axes = [-1]> (s)
        e = Add (v, eps) r = Sqrt (e) n = Div (c, r) t = Mul (n, g) l = Add (t, b)
        a = Div (l, root) f = Erf (a) o = Add (f, one) p = Mul (l, o) y = Mul (p, half)
    }"""
    weights = {
        **{"eps": np.float32(1e-5), "g": draw(16), "b": draw(16, seed=1)},
        **{"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)},
    }
    out = bundle_of(text, tmp_path / "m.trt", 13, weights=weights, verify="final")
    model = onnx.load(out / "model.onnx")
    assert [node.op_type for node in model.graph.node] == ["LayerNormalization", "Gelu"]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]


def test_what_is_not_taken_is_refused_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(NotTaken, match="Det 'd'") as caught:
        bundle_of(
            "g (float[4, 4] x) => (float y) { d = Det (x) e = Det (x) y = Add (d, e) }", tmp_path / "m.trt", level=0
        )
    assert len(caught.value.problems) == 2 and "--backend=onnxruntime" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_inputs_of_types_that_there_are_not_are_refused_before_the_work_with_all_the_rest(tmp_path: Path):
    text = "g (double[4, 4] x) => (double y) { y = Det (x) }"
    with pytest.raises(NotTaken) as caught:
        TensorRtBackend().problem(standard(text))
    assert [problem.op for problem in caught.value.problems] == ["input", "Det", "Det"][: len(caught.value.problems)]
    with pytest.raises(NotTaken, match="TensorRT has no double"):
        bundle_of(text, tmp_path / "m.trt", level=0)
    assert TensorRtBackend().problem(standard("g (float[4, 4] x) => (float y) { y = Det (x) }")) is None


# -- what is said before the work -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "options", "error", "says"),
    [
        ("m.engine", {}, BackendError, "an engine cannot be built here: TensorRT is not installed"),
        ("m.onnx", {}, UsageError, "writes .trt \\(a bundle\\) and .engine"),
        ("m.trt", {"target": "cpu"}, BackendError, "is for NVIDIA GPUs"),
        ("m.trt", {"target": "cuda"}, BackendError, "is for NVIDIA GPUs"),
        ("m.trt", {"target": "a100,h100"}, UsageError, "one target at a time"),
        ("m.trt", {"backend": "triton"}, UsageError, "TensorRT's own"),
        ("m.trt", {"backend_options": {"levle": 1}}, UsageError, "no option 'levle'"),
        ("m.trt", {"backend_options": {"builder-level": 9}}, UsageError, "0 to 5"),
        ("m.trt", {"backend_options": {"timing-cache": "none"}}, UsageError, "no such timing cache"),
        ("m.trt", {"backend_options": {"tune-for": "M=1"}}, UsageError, "no symbolic dim 'M'"),
        ("m.trt", {"backend_options": {"tune-for": "N"}}, UsageError, "sizes of dims"),
        ("m.onnx", {"backend": "onnxruntime", "backend_options": {"a": 1}}, UsageError, "no option 'a'"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, no_tensorrt, output, options, error, says):
    with pytest.raises(error, match=says):
        bundle_of(RELU, tmp_path / output, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_ending_chooses_the_backend(tmp_path: Path):
    optc.compile(standard(RELU), target="a100", output=tmp_path / "m.trt", verify="off")
    assert read_recipe(tmp_path / "m.trt").devices == (Device("a100", "8.0"),)


def test_a_bundle_is_no_engine_yet(tmp_path: Path):
    out = bundle_of(RELU, tmp_path / "m.trt")
    with pytest.raises(BackendError, match="whose engine is not built yet") as caught:
        optc.load(out)
    assert f"optc build {out}" in (caught.value.hint or "") and "m.trt/model.onnx" in (caught.value.hint or "")


def test_engines_are_opened_with_options_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "EngineRunner", lambda path, **options: (path.name, options))
    assert TensorRtBackend().open(tmp_path / "m.engine", cuda_graphs=False, threads=None) == (
        "m.engine",
        {"cuda_graphs": False},
    )
    with pytest.raises(UsageError, match="no option 'threads'"):
        TensorRtBackend().open(tmp_path / "m.engine", threads=2)


@pytest.mark.parametrize(
    ("version", "gpu", "says"),
    [
        (None, None, "TensorRT is not installed"),
        ("9.3.0", None, "TensorRT 9.3.0 is too old"),
        ("11.2.1", "cannot use the GPU: NVIDIA's driver is not installed", "NVIDIA's driver is not installed"),
        ("11.2.1", None, "TensorRT 11.2.1: builds engines"),
    ],
)
def test_the_probe_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, version, gpu, says):
    def open_device() -> None:
        if gpu is not None:
            raise BackendError(gpu)

    monkeypatch.setattr(module, "installed_version", lambda: version)
    monkeypatch.setattr(module.cuda, "open_device", open_device)
    probe = TensorRtBackend().probe()
    assert probe.ready and says in probe.reason and "\n" not in probe.reason
    assert (probe.hint is None) == ("builds engines, and" in probe.reason)


@pytest.mark.parametrize(("name", "capability"), [("t4", "7.5"), ("a10", "8.6"), ("h100", "9.0"), ("b200", "10.0")])
def test_every_gpu_has_a_compute_capability(tmp_path: Path, name, capability):
    out = bundle_of(RELU, tmp_path / "m.trt", target=name)
    assert read_recipe(out).devices[0].compute_capability == capability


def test_every_option_is_documented():
    text = (Path(__file__).parents[3] / "docs" / "backends.md").read_text()
    for option in OPTIONS:
        assert f"`{option.name}`" in text, option.name


# -- plugins ----------------------------------------------------------------------------------------------------------

BITS = """g (int32[N, 4] x, int32[N, 4] m, float[N, 4] z) => (float[N, 4] y)
    { b = BitwiseAnd (x, m) f = Cast <to=1> (b) y = Add (f, z) }"""


def test_what_tensorrt_lacks_becomes_a_plugin_where_a_kernel_does_it(tmp_path: Path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("OPTC_CACHE", str(tmp_path / "cache"))
    out = bundle_of(BITS, tmp_path / "m.trt", opset=18)
    recipe = read_recipe(out)
    (plugin,) = recipe.plugins
    described = read_plugin(out / plugin.files[0])
    assert (described.about, described.inputs[0].dtype) == ("BitwiseAnd", "INT32")
    assert (
        set(described.kernels) == {"sm_80"} and (out / described.kernels["sm_80"].ptx).read_text().count(".entry") == 1
    )
    (call,) = [node for node in onnx.load(out / "model.onnx").graph.node if node.domain == "optc"]
    assert f"optc::{call.op_type}" == plugin.name
    assert "it needs TensorRT 10.9 or later" in recipe.notes
    assert any("kernels of optc do what TensorRT lacks: BitwiseAnd" in note for note in recipe.notes)
    assert "trtexec, cannot build it" in (out / "README.md").read_text()


def test_plugins_can_be_left_out(tmp_path: Path):
    with pytest.raises(NotTaken, match="BitwiseAnd"):
        bundle_of(BITS, tmp_path / "m.trt", opset=18, backend_options={"plugins": "false"})


def test_why_something_is_no_plugin_either_is_told(tmp_path: Path):
    pytest.importorskip("triton")
    text = "g (float[N, 4, 4] x) => (float[N] y) { y = Det (x) }"
    with pytest.raises(NotTaken, match=r"our own kernels do not do it: .*there is no kernel for this operator"):
        bundle_of(text, tmp_path / "m.trt")
