"""The commands beside compile."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest


def column(text: str, name: str) -> list[str]:
    """The first word of every line of a table, from the line that starts with its heading on."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(name))
    return [line.split()[0] for line in lines[start + 1 :] if line.strip()]


def test_help_and_version_need_nothing_heavy() -> None:
    code = """
import sys
from optc.tools.cli import main
try:
    main(sys.argv[1:])
except SystemExit as done:
    assert done.code == 0
heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "rich"} & set(sys.modules)
assert not heavy, heavy
"""
    for argument in ("--help", "-h", "--version"):
        done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "optc" in done.stdout


def test_no_command_at_all_shows_the_help(cli) -> None:
    done = cli()
    assert "Commands:" in done.out + done.err


@pytest.mark.parametrize(
    "command", ["compile", "run", "bench", "inspect", "explain", "passes", "targets", "backends", "plugins"]
)
def test_every_command_is_listed_and_has_help(cli, command) -> None:
    assert re.search(rf"^  {command} ", cli("--help").out, re.MULTILINE)
    done = cli(command, "--help")
    assert done.code == 0 and f"optc {command}" in done.out


def test_run_on_drawn_inputs(cli, vit) -> None:
    done = cli("run", vit, "--dim", "batch=3", "--seed", 5)
    assert done.code == 0, done.err
    assert "float32[3, 1, 8, 8]" in done.out and "float32[3, 10]" in done.out
    assert cli("run", vit, "--dim", "batch=3", "--seed", 5).out == done.out
    assert cli("run", vit, "--dim", "batch=3", "--seed", 6).out != done.out


def test_run_on_inputs_from_a_file(cli, vit, calib, tmp_path) -> None:
    assert cli("run", vit, "--input", calib, "-o", "out.npz").code == 0
    images = np.load(calib)["image"]
    session = onnxruntime.InferenceSession(str(vit), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npz")["logits"], session.run(None, {"image": images})[0], rtol=1e-4, atol=1e-5
    )


def test_run_on_several_samples_numbers_the_outputs(cli, vit, calib, tmp_path) -> None:
    images = np.load(calib)["image"]
    np.savez(tmp_path / "two.npz", **{"image.0": images[:2], "image.1": images[:3]})
    assert cli("run", vit, "--input", "two.npz", "-o", "out.npz").code == 0
    saved = np.load(tmp_path / "out.npz")
    assert {name: saved[name].shape for name in saved} == {"logits.0": (2, 10), "logits.1": (3, 10)}


def test_run_does_not_leave_half_a_file(cli, vit, tmp_path) -> None:
    assert "cannot write" in cli("run", vit, "-o", "nowhere/out.npz").message
    assert {path.name for path in tmp_path.iterdir()} == {"vit.onnx"}


def test_bench_compares_in_one_run(cli, vit, cnn) -> None:
    done = cli("bench", cnn, "--against", vit, "--seconds", 0.2, "--dim", "batch=2", "--threads", 1)
    assert done.code == 0, done.err
    rows = column(done.out, "model")
    assert rows == [str(vit), str(cnn)]
    assert "image [2, 1, 8, 8]" in done.out and "1 thread," in done.out and "rounds in turns" in done.out
    assert re.search(rf"^{re.escape(str(vit))} .* 1\.00x", done.out, re.MULTILINE)


def test_bench_of_models_with_other_inputs(cli, vit, tmp_path) -> None:
    model = onnx.load(vit)
    model.graph.input[0].name = "picture"
    for node in model.graph.node:
        node.input[:] = ["picture" if name == "image" else name for name in node.input]
    onnx.save(model, tmp_path / "other.onnx")
    assert "picture" in cli("bench", vit, "other.onnx", "--seconds", 0.2).message


def test_inspect_tells_what_a_model_is_made_of(cli, vit) -> None:
    done = cli("inspect", vit)
    assert done.code == 0
    for what in ("ai.onnx 18", "image: float[batch, 1, 8, 8]", "logits: float[batch, 10]", "LayerNormalization", "298"):
        assert what in done.out
    assert "sha256:" in done.out and "batch" in done.out


def test_inspect_tells_where_nodes_came_from(cli, vit) -> None:
    assert cli(vit, "-O2", "-o", "out.onnx", "-q", "--no-measure").code == 0
    done = cli("inspect", "out.onnx", "--nodes")
    assert done.code == 0
    fused = [line.split() for line in done.out.splitlines() if " com.microsoft::BiasGelu " in line]
    original = {node.name for node in onnx.load(vit).graph.node}
    assert len(fused) == 4
    for words in fused:
        assert "bias-gelu" in words[-2].split(",")
        made_from = set(words[-1].split(","))
        assert len(made_from) >= 5 and made_from <= original


def test_passes_are_listed_with_the_levels_they_run_in(cli) -> None:
    done = cli("passes")
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert "-O1 -O2 -O3" in lines["cse"] and "exact" in lines["cse"]
    assert "-O3" in lines["quantize"] and "-O2" not in lines["quantize"]
    assert not [line for line in lines.values() if "broken" in line]


def test_a_pass_is_described_with_its_options(cli) -> None:
    done = cli("passes", "quantize")
    assert "min_gain" in done.out and "float" in done.out and "lossy" in done.out
    assert "did you mean quantize" in cli("passes", "quantise").message


def test_targets_are_listed_and_described(cli) -> None:
    assert {"cpu", "a100", "h100"} <= set(column(cli("targets").out, "target"))
    assert "sm_80" in cli("targets", "a100").out
    assert "did you mean a100" in cli("targets", "a1000").message


def test_backends_say_why_they_cannot_be_used(cli) -> None:
    done = cli("backends")
    rows = {line.split()[0]: line for line in done.out.splitlines()}
    assert rows["onnxruntime"].split()[1] == "ready"
    assert "writes bundles" in rows["tensorrt"]


def test_plugins_without_any(cli, monkeypatch) -> None:
    monkeypatch.setattr("optc.tools.plugins.installed", list)
    assert "no plugins" in cli("plugins").out


def test_completion_knows_commands_and_options(tmp_path: Path) -> None:
    def complete(words: str, index: int) -> str:
        environment = {"_OPTC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(index)}
        command = [sys.executable, "-m", "optc"]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True).stdout

    assert "plain,bench" in complete("optc be", 1)
    assert "plain,--threads" in complete("optc bench --th", 2)
