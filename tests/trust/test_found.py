"""Failures of the fuzzer become cases by themselves; what was found once stays right."""

from __future__ import annotations

from pathlib import Path

import pytest

from optc.environment import Environment
from optc.plugins import environment

from ..golden.case import FOUND, read_case
from .attack import Outcome, attempt
from .found import failure, write_found
from .graphs import graph
from .planted import BUGS, planted


@pytest.mark.parametrize("path", sorted(FOUND.glob("*.txt")), ids=lambda path: path.stem)
def test_what_was_found_is_right_now(path: Path) -> None:
    assert failure(read_case(path), environment()) is None


def _first_failure(stages: tuple[str, ...], passes: Environment) -> Outcome:
    for seed in range(200):
        reason, _, _ = attempt(graph(seed), seed, stages, passes)
        if reason is not None:
            return Outcome(seed, "wrong", reason, stages)
    raise AssertionError("the planted bug was not met")


@pytest.mark.parametrize("name", ["lost-bias", "swapped-difference", "lost-activation"])
def test_a_failure_writes_its_case(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug is met, shrunk, named, and written as a case that fails as long as the bug is there."""
    passes = planted(name)
    found = _first_failure((f"simplify,planted-{name},dce",), passes)
    path = write_found(graph(found.seed), found, tmp_path, passes)
    assert path == tmp_path / f"{name}.txt"
    case = read_case(path)
    assert str(found.seed) in case.title
    assert len(case.model().graph.node) <= 4
    assert failure(case, passes) is not None
    again = write_found(graph(found.seed), found, tmp_path, passes)
    assert again.name == f"{name}-2.txt"
    monkeypatch.setattr(BUGS[name], "function", _harmless)
    assert failure(case, passes) is None, "the bug is mended, the case is right"


def _harmless(*_: object) -> None:
    """A rule that never fires."""
