"""Optimization levels: pipelines as data, with the reason beside every entry."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources

from optc.passes.base import Numerics


@dataclass(frozen=True)
class Level:
    """An optimization level.

    Attributes:
        number: What stands after ``-O``.
        promise: What the user may rely on.
        numerics: The widest class of numerics that the promise allows.
        entries: Pipeline text of each entry with the reason why it stands there.
    """

    number: int
    promise: str
    numerics: Numerics
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
        numerics = Numerics[entry["numerics"].upper()]
        levels[number] = Level(number, entry["promise"], numerics, inherited + own)
    return levels
