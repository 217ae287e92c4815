"""The peer benchmark measures what it says, and shows failures instead of hiding them."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import onnx
import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
CNN = ROOT / "examples" / "digits" / "cnn.onnx"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of benchmarks/harness; they are scripts that find each other by folder."""
    monkeypatch.syspath_prepend(BENCHMARKS / "harness")
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / "harness" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def peers(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / "peers.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def rows(output: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


def test_a_process_is_timed_and_its_memory_measured() -> None:
    # Measured from a small process, as the benchmark does: a child's peak is never below that of who started it.
    code = (
        "import sys; from process import run_measured as run\n"
        "small = run([sys.executable, '-c', 'import time; time.sleep(0.3)'], timeout=30)\n"
        "large = run([sys.executable, '-c', 'data = bytearray(300_000_000)'], timeout=30)\n"
        "print(small.failure, small.seconds, small.peak_bytes, large.peak_bytes)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=BENCHMARKS / "harness", capture_output=True, text=True, check=True, timeout=90)
    failure, seconds, small, large = done.stdout.split()
    assert failure == "None"
    assert 0.3 <= float(seconds) < 10
    assert int(large) >= 300_000_000 > int(small)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('no such thing')", "exit 1: ValueError: no such thing"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("open('/nowhere/at/all/file')", "'file'"),
    ],
)
def test_failures_are_told_in_one_line(code: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    process = load("process", monkeypatch)
    outcome = process.run_measured([sys.executable, "-c", code], timeout=30)
    assert words in outcome.failure
    assert "/nowhere" not in outcome.failure


def test_a_contender_that_hangs_is_stopped_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = load("process", monkeypatch)
    code = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    outcome = process.run_measured([sys.executable, "-c", code], timeout=2)
    assert outcome.failure == "no result after 2 s"
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    pytest.fail("the child of a stopped contender lives on")


def test_the_check_sees_right_and_wrong_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = load("check", monkeypatch)
    wrong = onnx.load(CNN)
    weight = next(tensor for tensor in wrong.graph.initializer if tensor.name.endswith("head.weight"))
    weight.raw_data = bytes(len(weight.raw_data))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    renamed = onnx.load(CNN)
    renamed.graph.node[-1].output[0] = renamed.graph.output[0].name = "other"
    onnx.save(renamed, tmp_path / "renamed.onnx")
    found = {}
    for name, path in (("same", CNN), ("wrong", tmp_path / "wrong.onnx"), ("renamed", tmp_path / "renamed.onnx")):
        report = tmp_path / f"{name}.json"
        check.main(str(CNN), str(path), str(report))
        found[name] = check.json.loads(report.read_text())
    assert found["same"] == {"nodes": 25, "error": 0.0, "problem": None}
    assert found["wrong"]["error"] > 0.1
    assert found["renamed"]["problem"] == "interface changed"


def test_one_run_prints_every_column() -> None:
    done = peers(CNN, "--only", "onnxruntime", "--seconds", "0.2", "--threads", "1", "--dim", "batch=4")
    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    assert set(table) == {"optimizer", "original", "onnxruntime"}
    nodes, size, seconds, peak, error, median, iqr, speed = table["onnxruntime"]
    assert int(nodes) < int(table["original"][0]) == 25
    assert int(size.replace(",", "")) > 100_000
    assert float(seconds) > 0
    assert float(peak) > 10
    assert error == "exact" or float(error) < 1e-3
    assert float(median) > 0
    assert float(iqr) >= 0
    assert float(speed.removesuffix("x")) > 0


def test_every_setting_is_timed_and_summed_up() -> None:
    vit = CNN.with_name("vit.onnx")
    done = peers(CNN, vit, "--only", "onnxruntime", "--seconds", "0.1", "--threads", "1", "--dim", "batch=1,3")
    assert done.returncode == 0, done.stderr
    assert "speed batch=1" in done.stdout
    table = rows(done.stdout)
    speeds = [float(table[f"{name} batch={size}"][0]) for name in ("cnn.onnx", "vit.onnx") for size in (1, 3)]
    assert float(table["geometric mean"][0]) == pytest.approx(statistics.geometric_mean(speeds), abs=0.01)
    assert int(table["cnn.onnx"][1]) < int(table["cnn.onnx"][0]) == 25


@pytest.mark.parametrize("dims", [["seq=8,x"], ["seq"], ["seq=8,16", "other=1,2,3"]])
def test_sizes_that_do_not_pair_up_are_refused(dims: list[str]) -> None:
    done = peers(CNN, *(part for dim in dims for part in ("--dim", dim)))
    assert done.returncode == 2
    assert "--dim wants" in done.stderr


def test_a_contender_that_fails_keeps_its_row() -> None:
    done = peers(CNN, "--only", "optc", "--optc-options=--no-such-option", "--no-latency")
    assert done.returncode == 0, done.stderr
    row = rows(done.stdout)["optc"]
    assert "exit" in row[4]
    assert row[0] == "-"


def test_unknown_names_are_refused() -> None:
    done = peers(CNN, "--only", "nobody")
    assert done.returncode == 2
    assert "nobody" in done.stderr
    done = peers(CNN.with_name("missing.onnx"))
    assert done.returncode != 0
    assert "missing.onnx" in done.stderr
