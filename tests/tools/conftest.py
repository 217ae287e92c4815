"""The command line, called in this process, in an empty folder of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from optc.tools.cli import main

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one error message, which is all that a failed command may say."""
        assert self.code != 0, f"it succeeded: {self.out}"
        assert self.err.startswith("optc: error: ") and "Traceback" not in self.err, self.err
        assert self.err.count("optc: error:") == 1
        return self.err


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run ``optc ARGUMENTS`` with ``tmp_path`` as the current folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments])
        captured = capsys.readouterr()
        code = exit_.value.code
        return Outcome(code if isinstance(code, int) else 0 if code is None else 1, captured.out, captured.err)

    return run


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """The digits transformer, in ``tmp_path``."""
    return Path(shutil.copy(DIGITS / "vit.onnx", tmp_path / "vit.onnx"))


@pytest.fixture
def cnn(tmp_path: Path) -> Path:
    """The digits CNN, in ``tmp_path``."""
    return Path(shutil.copy(DIGITS / "cnn.onnx", tmp_path / "cnn.onnx"))


@pytest.fixture
def calib(tmp_path: Path) -> Path:
    """Calibration images for both."""
    return Path(shutil.copy(DIGITS / "calib.npz", tmp_path / "calib.npz"))
