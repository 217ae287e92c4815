"""``optc build`` and the options of a backend on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnx.parser
import pytest

from optc.backends.tensorrt import backend, library
from optc.tools import build

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture
def bundle(cli, tmp_path: Path) -> Path:
    out = tmp_path / "cnn.trt"
    done = cli(
        str(DIGITS / "cnn.onnx"), "-O1", "--target=a100", "--backend=tensorrt", "--verify=off", "--no-measure",
        "--shape", "batch=1..8", "--backend-option", "builder-level=4", "--backend-option", "tune-for=batch=2",
        "-o", str(out),
    )  # fmt: skip
    assert done.code == 0, done.err
    return out


def test_backend_options_are_given_by_name(bundle: Path) -> None:
    recipe = json.loads((bundle / "build.json").read_text())
    assert recipe["builder_optimization_level"] == 4
    assert recipe["profiles"][0]["image"]["optimum"] == [2, 1, 8, 8]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("builder-level",), "not NAME=VALUE"),
        (("builder-level=1", "builder-level=2"), "given twice"),
        (("bulder-level=1",), "did you mean builder-level"),
    ],
)
def test_wrong_backend_options_are_refused(cli, tmp_path: Path, given: tuple[str, ...], says: str) -> None:
    words = [word for text in given for word in ("--backend-option", text)]
    out = str(tmp_path / "m.trt")
    done = cli(str(DIGITS / "cnn.onnx"), "--target=a100", "--backend=tensorrt", *words, "-o", out)
    assert done.code == 2 and says in done.err
    assert list(tmp_path.iterdir()) == []


def test_without_tensorrt_one_line_says_what_to_install(cli, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    done = cli("build", str(bundle))
    assert done.code == 1
    assert "optc: error: TensorRT is not installed" in done.err
    assert "pip install 'optc[tensorrt]'" in done.err and "Traceback" not in done.err


def test_what_is_damaged_is_told_of_first(cli, bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"")
    done = cli("build", str(bundle))
    assert done.code == 1 and "the bundle is damaged: model.onnx has 0 bytes" in done.err
    done = cli("build", str(tmp_path / "none"))
    assert done.code == 1 and "no folder that optc wrote for TensorRT" in done.err


def test_the_bundle_is_handed_to_the_builder(
    cli, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def built(bundle: Path, output: Path, progress: object = None) -> SimpleNamespace:
        asked.append(bundle.name)
        output.write_bytes(b"engine")
        return SimpleNamespace(path=output, files=(output,), notes=("a note",))

    monkeypatch.setattr(backend, "_missing", lambda: None)
    monkeypatch.setattr(backend, "build_engine", built)
    monkeypatch.setattr(build, "build", built)
    done = cli("build", str(bundle), "-o", str(tmp_path / "cnn.engine"))
    assert done.code == 0 and asked == ["cnn.trt"] and "note: a note" in done.out and "wrote" in done.out
    done = cli(
        str(DIGITS / "cnn.onnx"), "-O0", "--target=a100", "--verify=off", "--no-measure",
        "-o", str(tmp_path / "direct.engine"),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (tmp_path / "direct.engine").read_bytes() == b"engine" and asked == ["cnn.trt", "direct.trt"]
    assert "a note" in done.out


def test_what_is_not_taken_is_in_the_report(cli, tmp_path: Path) -> None:
    model, report = tmp_path / "det.onnx", tmp_path / "report.json"
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[4, 4] x) => (float y) { [volume] y = Det (x) }'
    onnx.save(onnx.parser.parse_model(text), model)
    done = cli(str(model), "--target=a100", "-o", str(tmp_path / "det.trt"), "--report", str(report))
    assert done.code == 1 and "Det 'volume': TensorRT has no such operator" in done.err
    told = json.loads(report.read_text())["error"]
    assert [(one["node"], one["op"]) for one in told["details"]] == [("volume", "Det")] and "plugin" in told["details"][
        0
    ]["hint"]
    assert not (tmp_path / "det.trt").exists()
