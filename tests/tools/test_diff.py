"""``optc diff``."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

import optc
from optc.tools import diff

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
CNN, VIT = DIGITS / "cnn.onnx", DIGITS / "vit.onnx"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(diff.command, [str(part) for part in arguments])


@pytest.fixture
def optimized(tmp_path: Path) -> Path:
    path = tmp_path / "optimized.onnx"
    optc.compile(VIT, output=path, verify="off")
    return path


def test_a_file_and_itself() -> None:
    done = run(CNN, CNN)
    assert (done.exit_code, done.output) == (0, "the files are equal byte by byte\n")


def test_a_model_and_its_optimized_form(optimized: Path) -> None:
    done = run(VIT, optimized, "--json")
    found = json.loads(done.output)
    assert done.exit_code == 0
    assert found["equal"]
    assert found["interface"] == []
    assert found["nodes"][0] == 298 > found["nodes"][1]
    assert found["ops"]["Reshape"][0] > found["ops"]["Reshape"][1]
    assert max(entry["error"] for entry in found["numbers"]) < 1e-5
    assert "\n-" in found["text"]
    shown = run(VIT, optimized)
    assert "interface  the same" in shown.output
    assert "equal: relative L2 error up to" in shown.output


def test_other_weights(tmp_path: Path) -> None:
    model = onnx.load(CNN)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("head.weight"))
    weight.raw_data = bytes(len(weight.raw_data))
    onnx.save(model, tmp_path / "zeroed.onnx")
    done = run(CNN, tmp_path / "zeroed.onnx")
    assert done.exit_code == 1
    assert "different: relative L2 error" in done.output
    assert run(CNN, tmp_path / "zeroed.onnx", "--tolerance", 10).exit_code == 0
    assert run(CNN, tmp_path / "zeroed.onnx", "--no-run").exit_code == 0


def test_two_models_of_one_interface() -> None:
    done = run(CNN, VIT, "--text")
    assert done.exit_code == 1
    assert "interface  the same" in done.output
    assert "different: relative L2 error" in done.output
    assert "\n--- first\n+++ second\n" in done.output


def test_a_renamed_output(tmp_path: Path) -> None:
    model = onnx.load(CNN)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "other"
    onnx.save(model, tmp_path / "renamed.onnx")
    done = run(CNN, tmp_path / "renamed.onnx")
    assert done.exit_code == 1
    assert "other" in done.output


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no")
    done = run(CNN, tmp_path / "no.onnx")
    assert isinstance(done.exception, optc.OptcError)
