"""``optc recover`` on the command line, where no PyTorch is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optc.recovery import torch_library

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def test_the_command_is_listed_and_described(cli) -> None:
    assert "recover" in cli("--help").out
    told = cli("recover", "--help").out
    assert all(option in told for option in ("--original", "--calib", "--steps", "--learning-rate", "--seed"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("cnn.onnx", "--calib", "calib.npz"), "--original"),
        (("cnn.onnx", "--original", "cnn.onnx"), "--calib is missing"),
        (("cnn.onnx", "--original", "none.onnx", "--calib", "calib.npz"), "none.onnx: no such file"),
        (("cnn.onnx", "--original", "cnn.onnx", "--calib", "calib.npz", "--steps", "-1"), "--steps"),
        (("cnn.onnx", "--original", "cnn.onnx", "--calib", "calib.npz", "--learning-rate", "2"), "--learning-rate"),
        (("cnn.onnx", "--original", "cnn.onnx", "--calib", "calib.npz", "-o", "no/out.onnx"), "does not exist"),
    ],
)
def test_wrong_words_are_refused(cli, cnn: Path, calib: Path, words: tuple[str, ...], says: str) -> None:
    before = sorted(path.name for path in cnn.parent.iterdir())
    assert says in cli("recover", *words).message
    assert sorted(path.name for path in cnn.parent.iterdir()) == before


def test_without_pytorch_one_line_says_what_to_install(
    cli, cnn: Path, calib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_library.importlib.util, "find_spec", lambda name: None)
    done = cli("recover", cnn, "--original", cnn, "--calib", calib)
    assert done.code == 1
    assert "PyTorch is not installed" in done.message and "pip install 'optc[recover]'" in done.err
    assert not (cnn.parent / "cnn.recovered.onnx").exists()


def test_data_that_do_not_fit_are_told_of(cli, cnn: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    np.savez(tmp_path / "wrong.npz", picture=np.zeros((2, 1, 8, 8), np.float32))
    assert "'picture' is not an input" in cli("recover", cnn, "--original", cnn, "--calib", "wrong.npz").message
