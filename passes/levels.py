"""Optimization levels: pipelines as data, with the reason beside every entry."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources

from optc.ir.errors import UsageError
from optc.passes.pipeline import Pipeline, parse_pipeline
from optc.passes.registry import Registry


@dataclass(frozen=True)
class Level:
    """An optimization level.

    Attributes:
        number: What stands after ``-O``.
        promise: What the user may rely on.
        entries: Pipeline text of each entry with the reason why it stands there.
    """

    number: int
    promise: str
    entries: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The whole pipeline as text."""
        return ",".join(text for text, _ in self.entries)


def builtin_levels() -> dict[int, Level]:
    """The levels -O0 to -O3 of levels.toml."""
    table = tomllib.loads(resources.files("optc.passes").joinpath("levels.toml").read_text("utf-8"))
    levels: dict[int, Level] = {}
    for number in sorted(int(key) for key in table):
        entry = table[str(number)]
        inherited = levels[entry["extends"]].entries if "extends" in entry else ()
        own = tuple((step["run"], step["why"]) for step in entry.get("steps", ()))
        levels[number] = Level(number, entry["promise"], inherited + own)
    return levels


def level_pipeline(number: int, registry: Registry) -> Pipeline:
    """The passes of a level; empty for -O0.

    Raises:
        UsageError: There is no such level.
    """
    levels = builtin_levels()
    if number not in levels:
        raise UsageError(f"unknown level -O{number}", hint=f"levels are -O{min(levels)} to -O{max(levels)}")
    return parse_pipeline(levels[number].text, registry) if levels[number].entries else ()
