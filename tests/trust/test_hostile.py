"""Models that are made to do harm: little memory, little time, one plain message, and nothing written."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import optc.tools.compile  # noqa: F401 - once, before the children are forked
from optc.tools.cli import _run

from .children import Death, attempts
from .hostile import BOUNDED, REFUSED

#: What a command may take: seconds, and bytes of address space beyond what the process has (threads take most of it).
_SECONDS, _MEMORY = 60.0, 4 << 30
#: The command line's exit code of a defect of its own.
_DEFECT = 70


@dataclass(frozen=True)
class Ran:
    """What came of a command on a hostile file."""

    code: int
    out: str
    err: str
    left: tuple[str, ...]


def _command(name: str, *options: str) -> Ran:
    make = REFUSED[name][0] if name in REFUSED else BOUNDED[name]
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path = make(Path(folder))
        before = set(Path(folder).rglob("*"))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = _run([path, "--no-measure", "-o", "out.onnx", *options])
        left = tuple(sorted(str(path.relative_to(folder)) for path in set(Path(folder).rglob("*")) - before))
    return Ran(code, out.getvalue(), err.getvalue(), left)


def _results(names: list[str], *options: str) -> dict[str, Ran | Death]:
    """Every command in a process of its own with limits."""
    done = attempts(
        lambda index: _command(names[index], *options),
        range(len(names)),
        jobs=os.cpu_count() or 1,
        batch=1,
        seconds=_SECONDS,
        memory=_MEMORY,
    )
    return {names[index]: result for index, result in done}


@pytest.fixture(scope="module")
def refusals() -> dict[str, Ran | Death]:
    return _results(list(REFUSED))


@pytest.fixture(scope="module")
def compiles() -> dict[str, Ran | Death]:
    return _results(list(BOUNDED))


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_plain_words(name: str, refusals: dict[str, Ran | Death]) -> None:
    ran = refusals[name]
    assert isinstance(ran, Ran), f"{name}: {ran}"
    assert ran.code == 1, ran.err
    assert ran.err.startswith("optc: error: ")
    assert REFUSED[name][1] in ran.err
    assert "Traceback" not in ran.err and "\x1b" not in ran.err
    assert len(ran.err) < 2000
    assert ran.left == ()


@pytest.mark.parametrize("name", BOUNDED)
def test_it_takes_little_time_and_memory(name: str, compiles: dict[str, Ran | Death]) -> None:
    ran = compiles[name]
    assert isinstance(ran, Ran), f"{name}: {ran}"
    assert ran.code in (0, 1), ran.err
    assert "Traceback" not in ran.err and "\x1b" not in ran.out + ran.err
    assert ran.left == (("out.onnx",) if ran.code == 0 else ())
    assert ran.code == 0 or ran.err.startswith("optc: error: ")


def test_the_other_levels_and_checks() -> None:
    names = ["expand-to-a-huge-shape", "an-input-of-2-to-the-62", "an-output-that-contradicts"]
    for options in (("-O3",), ("--verify=each",)):
        for name, ran in _results(names, *options).items():
            assert isinstance(ran, Ran), f"{name} {options}: {ran}"
            assert ran.code in (0, 1), f"{name} {options}: {ran.err}"


def test_folding_stores_no_more_than_was_there(tmp_path: Path) -> None:
    for name in ("constant-of-a-huge-shape", "tile-many-times", "a-wide-pad", "squares-of-squares-of-a-product"):
        path = tmp_path / BOUNDED[name](tmp_path)
        size = path.stat().st_size
        assert _run([str(path), "-q", "--no-measure", "-o", str(tmp_path / "o.onnx")]) == 0
        assert (tmp_path / "o.onnx").stat().st_size < size + 4096
