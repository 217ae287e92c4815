"""How much of which group is to be removed, said by the user.

As text: ``conv=0.5;heads=0.25;*/layers.0/*=0``. As a TOML file, where a plain text gets long::

    [groups]
    conv = 0.5
    "encoder.layer.0.*" = 0

What stands on the left is a kind of group (:data:`optc.passes.compress.prune.axes.KINDS`), ``*``, or a pattern of
names of groups; on the right is a share of its units. The last line that fits a group counts, names over kinds.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from optc.ir.errors import UsageError
from optc.ir.targets import suggestion
from optc.passes.compress.prune.axes import KINDS, Group

#: Channels that are left come in multiples of this, where a group has at least four times as many.
_ALIGNED = 8


@dataclass(frozen=True)
class Schedule:
    """Shares by kind or pattern, in the order in which they were given."""

    shares: tuple[tuple[str, float], ...] = ()

    def share(self, group: Group, otherwise: float) -> float:
        """The share of a group's units that is to go."""
        fitting = [(what not in KINDS and what != "*", share) for what, share in self.shares if fits(what, group)]
        return max(enumerate(fitting), key=lambda item: (item[1][0], item[0]))[1][1] if fitting else otherwise


def fits(what: str, group: Group) -> bool:
    """Whether a kind, ``*`` or a pattern speaks of a group."""
    return what == group.kind or (what not in KINDS and fnmatchcase(group.name, what))


def check_names(named: Iterable[str], groups: Sequence[Group], others: Collection[str] = ()) -> None:
    """Raise UsageError for what speaks of no group that there is, and is no kind either.

    Args:
        named: Kinds and patterns.
        groups: The groups of the model.
        others: Names of what is not pruned, to tell why.
    """
    for what in named:
        if what in KINDS or what == "*" or any(fits(what, group) for group in groups):
            continue
        known = [*KINDS, *(group.name for group in groups), *others]
        raise UsageError(
            f"there is no group {what!r}",
            hint=suggestion(what, known, f"kinds are: {', '.join(KINDS)}; a group is named by its first layer"),
        )


def count_for(group: Group, share: float) -> int:
    """How many units of a group a share is; at least one is left, and numbers are kept that kernels like."""
    left = max(1, round(len(group) * (1 - share)))
    if group.kind != "heads" and len(group) >= 4 * _ALIGNED and share:
        left = max(_ALIGNED, round(left / _ALIGNED) * _ALIGNED)
    return len(group) - min(left, len(group))


def read_schedule(text: str) -> Schedule:
    """A schedule from its text, or from a TOML file if the text is a path that ends in ``.toml``.

    Raises:
        UsageError: It is not well formed, the file cannot be read, or a share is not between 0 and 1.
    """
    text = text.strip()
    where = text if text.endswith(".toml") else None
    shares = []
    for what, share in _of_file(Path(text)) if where else _of_text(text):
        shares.append((what, checked_share(share, where)))
    return Schedule(tuple(shares))


def checked_share(share: object, where: str | None = None) -> float:
    """A share as a number.

    Raises:
        UsageError: It is none from 0 up to, and not including, 1.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise UsageError(f"a share of units is a number from 0 to less than 1, not {share!r}", where=where)
    return float(share)


def _of_text(text: str) -> Iterable[tuple[str, object]]:
    for part in filter(None, (part.strip() for part in text.split(";"))):
        what, sign, share = part.rpartition("=")
        try:
            number: object = float(share)
        except ValueError:
            number = share.strip()
        if not sign or not what.strip():
            raise UsageError(f"not a line of a schedule: {part!r}", hint="as in conv=0.5;heads=0.25")
        yield what.strip(), number


def _of_file(path: Path) -> Iterable[tuple[str, object]]:
    try:
        table = tomllib.loads(path.read_text("utf-8")).get("groups")
    except OSError as error:
        raise UsageError(f"the schedule cannot be read: {error.strerror}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"not a TOML file: {error}", where=str(path)) from error
    if not isinstance(table, dict):
        raise UsageError("a schedule has a table [groups]", where=str(path), hint="as in: [groups]\nconv = 0.5")
    return table.items()
