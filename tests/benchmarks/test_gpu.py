"""The benchmark for GPUs, as far as it needs none: building, carrying, checking in the interpreter, boxes, tables."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("triton")

from optc.backends.triton.artifact import open_artifact

ROOT = Path(__file__).resolve().parents[2]


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of benchmarks; they are scripts that find each other by folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module(name)


@pytest.fixture
def gpu(monkeypatch):
    return benchmark("gpu", monkeypatch)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A few small artifacts, and a layer whose weights were taken out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTC_CACHE", str(tmp_path_factory.mktemp("kernels")))
        gpu, cases = benchmark("gpu", patch), benchmark("harness.gpu_cases", patch)
        folder = tmp_path_factory.mktemp("built")
        small = [case for case in cases.TINY if case.family in ("softmax", "gather")]
        large = cases.Case("gather", {"m": 4, "v": 300, "n": 20})
        told = gpu.build(folder, "a100", [], [], layers=[large], small=small)
        assert not told["failed"] and len(told["made"]) == 5
        return folder, large


# layers ---------------------------------------------------------------------------------------------------------------


def test_work_of_layers_is_counted(monkeypatch):
    cases = benchmark("harness.gpu_cases", monkeypatch)
    Case = cases.Case
    gemm = Case("gemm", {"m": 3, "k": 5, "n": 7})
    assert (gemm.flops, gemm.bytes) == (2 * 3 * 5 * 7, 2 * (15 + 35 + 21))
    conv = Case("conv", {"b": 2, "h": 8, "c": 4, "o": 6, "r": 3, "st": 2})
    assert conv.values()["p"] == 4
    assert conv.flops == 2 * 2 * 16 * 6 * 4 * 9
    assert conv.bytes == 2 * (2 * 64 * 4 + 6 * 4 * 9 + 6 + 2 * 16 * 6)
    step = Case("attention", {"b": 2, "h": 3, "s": 10, "d": 4, "q": 1})
    assert step.flops == 4 * 2 * 3 * 1 * 10 * 4
    assert step.bytes == 2 * (2 * 2 * 3 * 4 + 2 * 2 * 3 * 10 * 4)
    gather = Case("gather", {"m": 4, "v": 1000, "n": 8})
    assert gather.bytes == 4 * 8 + 2 * 2 * 4 * 8, "rows that are taken, not the table"
    assert gemm.roofline_ms(1e3, 1e9) == pytest.approx(210.0) and gemm.roofline_ms(1e12, 1e3) == pytest.approx(142.0)


def test_every_layer_is_a_model(monkeypatch):
    cases = benchmark("harness.gpu_cases", monkeypatch)
    assert {case.family for case in cases.CASES} == {case.family for case in cases.TINY} == set(cases.TEXTS)
    names = [case.slug for case in (*cases.CASES, *cases.TINY)]
    assert len(set(names)) == len(names)
    for case in cases.CASES:
        assert case.bytes > 0
    for case in cases.TINY:
        model = case.model("float16")
        assert all(math.prod(tensor.dims) for tensor in model.graph.initializer)
        assert set(case.feeds(model)) == {value.name for value in model.graph.input}


# carrying -------------------------------------------------------------------------------------------------------------


def test_large_weights_are_not_carried_but_drawn_again(built, monkeypatch):
    folder, large = built
    artifacts = benchmark("harness.gpu_artifacts", monkeypatch)
    stripped = folder / "layers" / f"{large.slug}.optc"
    assert not (stripped / artifacts.WEIGHTS).exists()
    original = np.asarray(
        importlib.import_module("onnx").numpy_helper.to_array(large.model("float16").graph.initializer[0])
    )
    with artifacts.filled(stripped) as whole:
        (array,) = open_artifact(whole).weights().values()
        assert (array.shape, array.dtype) == (original.shape, original.dtype)
        assert not np.array_equal(array, original)
        assert array.astype(np.float64).std() == pytest.approx(original.astype(np.float64).std(), rel=0.05)
        again = whole
    assert not again.exists() and (stripped / artifacts.FILL).is_file()


def test_small_weights_are_carried_as_they_are(built, monkeypatch, tmp_path):
    folder, _ = built
    artifacts = benchmark("harness.gpu_artifacts", monkeypatch)
    source = next((folder / "check").glob("gather*_float.optc"))
    own = tmp_path / "own.optc"
    importlib.import_module("shutil").copytree(source, own)
    wanted = {name: np.array(array) for name, array in open_artifact(own).weights().items()}
    artifacts.strip(own)
    with artifacts.filled(own) as whole:
        for name, array in open_artifact(whole).weights().items():
            np.testing.assert_array_equal(array, wanted[name])


def test_what_was_built_is_not_built_again(built, gpu, monkeypatch, capsys):
    folder, large = built
    monkeypatch.setattr(gpu.gpu_artifacts, "compiled", lambda *told: pytest.fail("it is there"))
    assert len(gpu.build(folder, "a100", [], [], layers=[large], small=[])["made"]) == 5
    assert capsys.readouterr().out == ""


def test_what_cannot_be_built_is_written_down(gpu, monkeypatch, tmp_path):
    def refuse(*told):
        raise ValueError("no kernel for that")

    monkeypatch.setattr(gpu.gpu_artifacts, "compiled", refuse)
    case = gpu.gpu_cases.TINY[0]
    told = gpu.build(tmp_path, "a100", [], [], layers=[case], small=[])
    assert not told["made"] and "no kernel for that" in told["failed"][f"layers/{case.slug}.optc"]
    assert json.loads((tmp_path / "build.json").read_text()) == told


# running --------------------------------------------------------------------------------------------------------------


def test_small_artifacts_are_checked_in_the_interpreter(built, tmp_path):
    folder, large = built
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--artifacts", str(folder)]
    out = tmp_path / "found.json"
    done = subprocess.run(
        [*command, "--device", "interpreter", "--seconds", "300", "--json", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "check: 4 right" in done.stdout and f"layers, not measured: {large.name}" in done.stdout
    told = json.loads(out.read_text())
    assert told["device"] == "interpreter" and "numpy" in told["versions"] and len(told["date"]) == 10
    assert len(told["parts"]["check"]["results"]) == 4 and told["built"]["targets"] == "a100"


def test_a_wrong_result_fails(built, monkeypatch, tmp_path):
    folder, _ = built
    peers, artifacts = (benchmark(f"harness.{name}", monkeypatch) for name in ("gpu_peers", "gpu_artifacts"))
    source = next((folder / "check").glob("softmax*_float.optc"))
    own = tmp_path / "own.optc"
    importlib.import_module("shutil").copytree(source, own)
    feeds, wanted = artifacts.stored(source.with_suffix(".npz"))
    good = {f"in:{k}": v for k, v in feeds.items()} | {f"out:{k}": v for k, v in wanted.items()}
    np.savez(own.with_suffix(".npz"), **good)
    assert peers.check(own, "interpreter")["interpreter"] < 1e-5
    np.savez(own.with_suffix(".npz"), **{**good, "out:y": wanted["y"] * 1.02})
    with pytest.raises(ValueError, match=r"relative error beyond 0\.005"):
        peers.check(own, "interpreter")
    assert peers.error({"y": np.array([np.nan])}, {"y": np.ones(1)}) == float("inf")
    assert peers.error({"y": np.ones(2)}, {"y": np.ones(1)}) == float("inf")


def test_what_is_missing_is_said(gpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(gpu.NEEDS, "build", ("numpy", "no_such_package", "no.such.package"))
    assert gpu.main(["--build", str(tmp_path)]) == 2
    told = capsys.readouterr().out
    assert "not installed here: no_such_package, no.such.package" in told and "carried to where the GPU is" in told


def test_the_machine_with_the_gpu_needs_few_packages():
    script = f"""
import sys
for name in ("onnx_ir", "onnxruntime", "triton", "click", "rich"):
    sys.modules[name] = None
sys.path[:0] = [{str(ROOT / "benchmarks")!r}]
import gpu
from harness import gpu_peers
from optc.backends.triton import runtime
assert gpu.peaks("NVIDIA H100 80GB HBM3, 580.1")[1] > 3e12 and gpu.peaks("NVIDIA T1000") is None
print("loaded")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert done.stdout == "loaded\n", done.stderr


# boxes ----------------------------------------------------------------------------------------------------------------

WORKER = """
import json, os, sys, time
sys.path.insert(0, {root!r})
from harness.budget import say
for name in json.loads(sys.argv[1]):
    if name == "dies":
        print("a last word", flush=True)
        os._exit(3)
    if name == "sleeps":
        time.sleep(600)
    say(name, {{"error": "it is wrong"}} if name == "wrong" else {{"ms": len(name)}})
"""


@pytest.fixture
def done(monkeypatch):
    """What comes of names in a time."""
    budget = benchmark("harness.budget", monkeypatch)
    script = WORKER.format(root=str(ROOT / "benchmarks"))
    return lambda names, seconds: budget.work(
        lambda waiting: [sys.executable, "-c", script, json.dumps(list(waiting))], names, seconds
    )


def test_a_worker_that_dies_takes_one_name_along(done):
    found = done(["a", "dies", "wrong", "bb"], 120)
    assert found.results == {"a": {"ms": 1}, "bb": {"ms": 2}} and not found.left
    assert found.failed["wrong"] == "it is wrong"
    assert found.failed["dies"] == "exit status 3: a last word"


def test_what_does_not_fit_into_the_time_is_listed(done):
    found = done(["a", "sleeps", "bb", "ccc"], 15)
    assert found.results == {"a": {"ms": 1}} and found.left == ["sleeps", "bb", "ccc"] and not found.failed
    assert done(["a"], 0).left == ["a"]


def test_contenders_take_turns(monkeypatch):
    budget = benchmark("harness.budget", monkeypatch)
    asked: list[tuple[str, int]] = []
    times = iter(range(1, 1000))

    def measure(run, count):
        asked.append((run(), count))
        return 2.0 if count == 3 else float(next(times))

    found = budget.in_turns({"x": lambda: "x", "y": lambda: "y"}, measure, 0.056, rounds=7)
    turns = asked[4:]
    assert [name for name, _ in turns] == list("xyyxxyyxxyyxxy")
    assert {count for _, count in turns} == {2}, "56 ms for two contenders in seven rounds of 2 ms runs"
    assert found["x"] == {"ms": 8.0, "low": 4.0, "high": 12.0}
    assert found["y"]["ms"] == 7.0


# tables ---------------------------------------------------------------------------------------------------------------


def test_tables_show_what_was_found_and_what_was_not(gpu):
    Found, case = gpu.Found, gpu.gpu_cases.CASES[0]
    times = {"optc": {"ms": 0.5, "low": 0.4, "high": 0.6}, "torch": {"ms": 1.0}}
    text = gpu.tables(
        {
            "check": Found({"a": {"launched": 1e-4, "bound": 2e-4}}, {"b": "ValueError: no"}),
            "models": Found({"m b1": times, "m b8": times}, {}, ["m b32"]),
            "compile": Found({"m b1": {"torch.compile": {"ms": 0.8}}}, {}, ["m b8"]),
            "layers": Found({case.name: {**times, "jax": {"ms": 0.7}}}),
        },
        (312e12, 2e12),
    )
    assert "check: 1 right (worst relative error 2.0e-04), 1 wrong or failed" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| m b")]
    assert rows == [
        ["m b1", "0.500", "0.400-0.600", "1.000", "0.800", "0.50", "0.62"],
        ["m b8", "0.500", "0.400-0.600", "1.000", "-", "0.50", "-"],
    ]
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {case.name}")]
    assert [cell.strip() for cell in row.split("|")[3:8]] == ["1.0000", "0.7000", "0.50", "0.4405", "88%"]
    assert "check, failed: b: ValueError: no" in text
    assert "models, not measured: m b32" in text and "compile, not measured: m b8" in text


def test_inputs_of_models(monkeypatch):
    models = benchmark("harness.gpu_models", monkeypatch).MODELS
    text = models["bert-base s128"].inputs(8)
    assert {name: array.shape for name, array in text.items()} == {"input_ids": (8, 128)}
    image = models["resnet50"].inputs(2)["pixel_values"]
    assert image.shape == (2, 3, 224, 224) and image.dtype == np.float16
    step = models["llama step"].inputs(3, tiny=True)
    assert step["input_ids"].shape == (3, 1)
    assert step["past.1.value"].shape == (3, 1, 8, 16) and len(step) == 1 + 2 * 2
    for model in models.values():
        assert model.inputs(1, tiny=True)
