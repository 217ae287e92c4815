"""How much of which group is to be removed, said by the user.

As text: ``conv=0.5;heads=0.25;*/layers.0/*=0``. As a TOML file, where a plain text gets long::

    [groups]
    conv = 0.5
    "encoder.layer.0.*" = 0

What stands on the left is a kind of group (:data:`optc.passes.compress.prune.axes.KINDS`), ``*``, or a pattern of
names of groups; on the right is a share of its units. The last line that fits a group counts, names over kinds.

Beside the channels that go, kernels of what is left may become zero (:mod:`optc.passes.compress.sparsity.kernels`):
``conv=0.25;kernels[conv]=0.3``, or in a file::

    [kernels]
    conv = 0.3
    "encoder.layer.0.*" = 0

Here roles of layers (:data:`optc.passes.compress.roles.ROLES`), ``*`` or patterns of their names stand on the left.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from optc.ir.errors import UsageError
from optc.ir.targets import suggestion
from optc.passes.compress.prune.axes import KINDS, Group
from optc.passes.compress.roles import ROLES

#: What a schedule has: shares of the units of groups, and shares of the kernels of layers.
_TABLES = ("groups", "kernels")
Tables = Mapping[str, Sequence[tuple[str, object]]]
#: Channels that are left come in multiples of this, where a group has at least four times as many.
_ALIGNED = 8


@dataclass(frozen=True)
class Schedule:
    """Shares by kind, role or pattern, in the order in which they were given.

    Attributes:
        shares: Of units, by kind of group or pattern of groups.
        kernels: Of kernels, by role of layer or pattern of layers.
    """

    shares: tuple[tuple[str, float], ...] = ()
    kernels: tuple[tuple[str, float], ...] = ()

    def share(self, group: Group, otherwise: float) -> float:
        """The share of a group's units that is to go."""
        return _last([(what in KINDS, what, share) for what, share in self.shares if fits(what, group)], otherwise)

    def kernel_share(self, name: str, roles: Collection[str]) -> float:
        """The share of a layer's kernels that is to become zero."""
        fitting = [line for line in self.kernels if fits_layer(line[0], name, roles)]
        return _last([(what in ROLES, what, share) for what, share in fitting], 0.0)


def _last(fitting: Sequence[tuple[bool, str, float]], otherwise: float) -> float:
    """The share of the last line, of those that name something if any does; lines say whether they name a kind."""
    named = [share for is_kind, what, share in fitting if not is_kind and what != "*"]
    return (named or [share for _, _, share in fitting] or [otherwise])[-1]


def fits_layer(what: str, name: str, roles: Collection[str]) -> bool:
    """Whether a role, ``*`` or a pattern speaks of a layer."""
    return what in roles or (what not in ROLES and fnmatchcase(name, what))


def check_layers(named: Iterable[str], layers: Mapping[str, Collection[str]]) -> None:
    """Raise UsageError for what speaks of no layer that there is, and is no role either.

    Args:
        named: Roles and patterns.
        layers: Roles of the model's layers, by name.
    """
    for what in named:
        if what not in ROLES and what != "*" and not any(fits_layer(what, *layer) for layer in layers.items()):
            hint = suggestion(what, [*ROLES, *layers], f"roles are: {', '.join(ROLES)}; optc inspect lists the nodes")
            raise UsageError(f"there is no layer {what!r} with kernels", hint=hint)


def fits(what: str, group: Group) -> bool:
    """Whether a kind, ``*`` or a pattern speaks of a group."""
    return what == group.kind or (what not in KINDS and fnmatchcase(group.name, what))


def check_names(named: Iterable[str], groups: Sequence[Group], declined: Mapping[str, str]) -> None:
    """Raise UsageError for what speaks of no group that there is, and is no kind either.

    Args:
        named: Kinds and patterns.
        groups: The groups of the model.
        declined: Why channels of layers stay, by the layer's name.
    """
    for what in named:
        if what in KINDS or what == "*" or any(fits(what, group) for group in groups):
            continue
        for name, reason in declined.items():
            if name == what or fnmatchcase(name, what):
                raise UsageError(f"{name!r} is no group that could be pruned; its channels stay: {reason}")
        known = [*KINDS, *(group.name for group in groups)]
        raise UsageError(
            f"there is no group {what!r}",
            hint=suggestion(what, known, f"kinds are: {', '.join(KINDS)}; a group is named by its first layer"),
        )


def pinned_counts(pinned: Mapping[str, int], groups: Sequence[Group]) -> dict[Group, int]:
    """How many units of each group go, as an earlier search has found.

    Raises:
        UsageError: There is no group of a name, or it has too few units.
    """
    known = {group.name: group for group in groups}
    for name, count in pinned.items():
        if name not in known:
            hint = suggestion(name, known, "it fits one model after the same passes")
            raise UsageError(f"there is no group {name!r} to prune", hint=hint)
        if not 0 < count <= len(known[name]) - known[name].least:
            raise UsageError(f"{count} of {len(known[name])} units of {name!r} cannot go")
    return {known[name]: count for name, count in pinned.items()}


def count_for(group: Group, share: float) -> int:
    """How many units of a group a share is; as many are left as have to be, and numbers are kept that kernels like."""
    left = max(group.least, round(len(group) * (1 - share)))
    if group.kind not in ("heads", "experts") and len(group) >= 4 * _ALIGNED and share:
        left = max(_ALIGNED, round(left / _ALIGNED) * _ALIGNED)
    return len(group) - min(left, len(group))


def read_schedule(text: str) -> Schedule:
    """A schedule from its text, or from a TOML file if the text is a path that ends in ``.toml``.

    Raises:
        UsageError: It is not well formed, the file cannot be read, or a share is not between 0 and 1.
    """
    text = text.strip()
    where = text if text.endswith(".toml") else None
    tables = _of_file(Path(text)) if where else _of_text(text)
    shares, kernels = (
        tuple((what, checked_share(share, where)) for what, share in tables.get(name, ())) for name in _TABLES
    )
    return Schedule(shares, kernels)


def checked_share(share: object, where: str | None = None) -> float:
    """A share as a number.

    Raises:
        UsageError: It is none from 0 up to, and not including, 1.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise UsageError(f"a share of units is a number from 0 to less than 1, not {share!r}", where=where)
    return float(share)


def _of_text(text: str) -> Tables:
    tables: dict[str, list[tuple[str, object]]] = {name: [] for name in _TABLES}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        what, sign, share = part.rpartition("=")
        try:
            number: object = float(share)
        except ValueError:
            number = share.strip()
        if not sign or not what.strip():
            hint = "as in conv=0.5;heads=0.25;kernels[conv]=0.3"
            raise UsageError(f"not a line of a schedule: {part!r}", hint=hint)
        of_kernels = re.fullmatch(r"kernels\[(.+)\]", what.strip())
        name, what = ("kernels", of_kernels[1]) if of_kernels else ("groups", what)
        tables[name].append((what.strip(), number))
    return tables


def _of_file(path: Path) -> Tables:
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"the schedule cannot be read: {error.strerror}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"not a TOML file: {error}", where=str(path)) from error
    if not any(name in found for name in _TABLES) or not all(isinstance(found.get(name, {}), dict) for name in _TABLES):
        hint = "as in: [groups]\nconv = 0.5"
        raise UsageError("a schedule has a table [groups], [kernels] or both", where=str(path), hint=hint)
    return {name: list(found.get(name, {}).items()) for name in _TABLES}
