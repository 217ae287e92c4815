"""What fails leaves one file behind that can be run again."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import optc
from optc import compiler, reproducer
from optc.ir.errors import ModelError, UsageError
from optc.ir.model import load
from optc.options import Options
from optc.tools import replay

from .planted import BUGS, planted, yard

VIT = Path(__file__).parents[2] / "examples" / "digits" / "vit.onnx"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "it.reproducer.zip"


def test_what_is_right_leaves_nothing(file: Path) -> None:
    optc.compile(yard(), reproducer=file)
    assert not file.exists()


def test_a_rolled_back_pass_can_be_run_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = planted("lost-root")
    report = optc.compile(yard(), environment=environment, reproducer=file, seed=3, shapes={"N": 4}).report
    assert f"optc replay {file}" in "".join(report.notes)
    with reproducer.opened(file) as (found, model):
        assert found.problems[0].startswith("planted-lost-root: ")
        assert found.options["seed"] == 3
        assert found.options["shapes"] == {"N": 4}
        assert "planted-lost-root" in found.pipeline
        assert len(model.graph) == len(yard().graph.node)
    monkeypatch.setattr(compiler, "default_environment", lambda: environment)
    done = CliRunner().invoke(replay.command, [str(file)])
    assert done.exit_code == 1
    assert done.output.count("planted-lost-root: ") == 2
    monkeypatch.setattr(BUGS["lost-root"], "function", lambda rw, node: None)
    done = CliRunner().invoke(replay.command, [str(file)])
    assert done.exit_code == 0
    assert "it does not fail any more" in done.output


def test_what_raises_leaves_a_reproducer_and_says_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(compiler._Compile, "_verify", fail)
    with pytest.raises(RuntimeError, match="planted") as caught:
        optc.compile(VIT, reproducer=file)
    assert caught.value.__notes__ == [f"run it again with: optc replay {file}"]
    with reproducer.opened(file) as (found, model):
        assert found.problems == ["RuntimeError: planted"]
        assert found.source["path"] == str(VIT)
        assert len(model.graph) == len(load(VIT).graph)


def test_a_large_model_is_referred_to(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproducer, "_LARGEST", 1000)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(VIT.read_bytes())
    optc.compile(copy, environment=planted("lost-bias", behind="dce"), reproducer=file)
    assert zipfile.ZipFile(file).namelist() == ["reproducer.json"]
    with reproducer.opened(file) as (_, model):
        assert len(model.graph) == len(load(VIT).graph)
    copy.write_bytes(VIT.read_bytes() + b"\x00")
    with pytest.raises(ModelError, match="has changed since"), reproducer.opened(file):
        pass
    copy.unlink()
    with pytest.raises(ModelError, match="not there any more"), reproducer.opened(file):
        pass


@pytest.mark.parametrize("contents", [b"", b"no zip", {"reproducer.json": "[]"}, {"reproducer.json": "{"}, {"x": ""}])
def test_what_is_no_reproducer_is_refused(file: Path, contents: bytes | dict[str, str]) -> None:
    if isinstance(contents, bytes):
        file.write_bytes(contents)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            for name, text in contents.items():
                archive.writestr(name, text)
    with pytest.raises(ModelError), reproducer.opened(file):
        pass


def test_nothing_is_unpacked_but_the_model(file: Path, tmp_path: Path) -> None:
    optc.compile(yard(), environment=planted("lost-root"), reproducer=file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("../outside.txt", "x")
    with reproducer.opened(file) as (found, _):
        assert json.loads(json.dumps(found.problems))
    assert not list(tmp_path.parent.glob("outside.txt"))


@pytest.mark.parametrize("options", [{"skip": 5}, {"skip": [1]}, {"dump_dir": 0.5}, {"output": []}, {"reproducer": 3}])
def test_options_of_other_types_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Options.of(**options)
