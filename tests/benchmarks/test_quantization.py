"""The quantization benchmark compares what it says, keeps what it built, and shows failures instead of hiding them."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).resolve().parents[2]
CNN = ROOT / "examples" / "digits" / "cnn.onnx"


def harness(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of benchmarks/harness; they are scripts that find each other by folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "harness")
    return importlib.import_module(name)


def bench(*arguments: str | Path) -> dict[str, list[str]]:
    command = [sys.executable, ROOT / "benchmarks" / "quantization.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("| ")
    ]
    return {line[0]: line[1:] for line in lines}


def test_results_are_compared_kept_and_held_to_the_bar(tmp_path: Path) -> None:
    given = ("--cache", tmp_path, "--samples", "4", "--unseen", "2", "--seconds", "0.2", "--threads", "1")
    options = "--optc-options=-O2 --target=cpu --verify=off --no-measure"
    only = ("--only", "ORT static; optc onnxruntime")
    table = bench(CNN, *given, *only, options)
    assert list(table) == ["result", "original", "ORT static", "optc onnxruntime"]
    size, seconds, peak, sqnr, median, _, speed = table["ORT static"]
    assert 0 < int(size.replace(",", "")) < int(table["original"][0].replace(",", ""))
    assert float(seconds) > 0
    assert float(peak) > 10
    assert 5 < float(sqnr) < 60
    assert float(median) > 0
    assert float(speed.removesuffix("x")) > 0
    assert table["original"][3] == "exact"
    assert float(table["optc onnxruntime"][3]) > 100  # -O2 moves by rounding only
    kept = sorted(tmp_path.rglob("built.json"))
    assert len(kept) == 2
    times = [path.stat().st_mtime_ns for path in kept]
    again = bench(CNN, *given, *only, options)
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert again["ORT static"][:3] == table["ORT static"][:3]


def test_a_contender_that_fails_keeps_its_row(tmp_path: Path) -> None:
    table = bench(CNN, "--only", "optc onnxruntime", "--optc-options=--no-such-option", "--seconds", "0.1")
    assert "exit" in table["optc onnxruntime"][3]
    assert table["optc onnxruntime"][4] == "-"


def test_the_noise_is_that_of_the_worst_output(monkeypatch: pytest.MonkeyPatch) -> None:
    quality = harness("quality", monkeypatch)
    signal = [[np.array([3.0, 4.0]), np.array([1.0])]]
    assert quality.sqnr(signal, signal) == math.inf
    noisy = [[np.array([3.0, 4.5]), np.array([1.0])]]
    assert quality.sqnr(signal, noisy) == pytest.approx(10 * math.log10(25 / 0.25))
    worse = [[np.array([3.0, 4.5]), np.array([1.5])]]
    assert quality.sqnr(signal, worse) == pytest.approx(10 * math.log10(1 / 0.25))
    assert quality.sqnr(signal, [[np.array([3.0, np.nan]), np.array([1.0])]]) == -math.inf


@pytest.mark.parametrize(("between", "expected"), [("Identity", True), ("Relu", False)])
def test_a_transformer_is_told_by_its_softmax(
    between: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[2,2] x) => (float[2,2] y)
        {{ s = Softmax (x)  d = {between} (s)  y = MatMul (d, x) }}"""
    )
    onnx.save(model, tmp_path / "m.onnx")
    assert harness("quantizers", monkeypatch).attends(str(tmp_path / "m.onnx")) is expected
