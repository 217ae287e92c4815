"""What there is to compile with: passes, levels, targets and backends, those of plugins included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optc.backends.registry import BackendRegistry
from optc.ir.errors import UsageError
from optc.ir.registry import Registry
from optc.ir.targets import Target, builtin_targets
from optc.passes.levels import Level, builtin_levels
from optc.passes.pipeline import Fixpoint, Item, Pipeline, leaves, parse_pipeline
from optc.passes.registry import pass_registry


@dataclass
class Environment:
    """The registries of one compile; made anew by :func:`optc.plugins.environment`, nothing is global.

    Attributes:
        passes: Passes by name.
        backends: Backends by name.
        targets: Targets by name.
        levels: Levels by number.
        placements: Where plugin passes join the levels: pass name -> ("before" or "after", name of another pass).
        target_owners: Which plugin a target comes from.
    """

    passes: Registry = field(default_factory=pass_registry)
    backends: BackendRegistry = field(default_factory=BackendRegistry)
    targets: dict[str, Target] = field(default_factory=builtin_targets)
    levels: Mapping[int, Level] = field(default_factory=builtin_levels)
    placements: dict[str, tuple[str, str]] = field(default_factory=dict)
    target_owners: dict[str, str] = field(default_factory=dict)

    def add_target(self, target: Target, owner: str) -> None:
        """Register one more target.

        Raises:
            UsageError: The name is taken; the message names both owners.
        """
        if target.name in self.targets:
            first = self.target_owners.get(target.name, "optc")
            raise UsageError(
                f"target {target.name!r} is registered twice, by {first} and by {owner}",
                hint="uninstall one of the two",
            )
        self.targets[target.name] = target
        self.target_owners[target.name] = owner

    def pipeline(self, level: int, text: str | None = None) -> Pipeline:
        """The pipeline of a level with the passes of plugins in their places, or that of a text, which is left as is.

        A plugin's pass whose numerics would break the level's promise stays out of that level.

        Raises:
            UsageError: The level does not exist or the text is not well formed.
        """
        if text is not None:
            return parse_pipeline(text, self.passes) if text.strip() else ()
        if level not in self.levels:
            raise UsageError(
                f"unknown level -O{level}", hint=f"levels are -O{min(self.levels)} to -O{max(self.levels)}"
            )
        if not self.levels[level].entries:
            return ()
        items = parse_pipeline(self.levels[level].text, self.passes)
        for name, (side, anchor) in self.placements.items():
            new = parse_pipeline(name, self.passes)
            if all(item.numerics <= self.levels[level].numerics for item in leaves(new)):
                items = _placed(items, new, side, anchor)
        return items


def _placed(items: Pipeline, new: Pipeline, side: str, anchor: str) -> Pipeline:
    placed: list[Item] = []
    for item in items:
        if isinstance(item, Fixpoint):
            placed.append(Fixpoint(item.rounds, _placed(item.items, new, side, anchor)))
        elif item.name == anchor:
            placed.extend((*new, item) if side == "before" else (item, *new))
        else:
            placed.append(item)
    return tuple(placed)
