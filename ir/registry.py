"""Things that have names and are imported when they are first asked for: passes, backends, and what plugins add."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optc.ir.errors import UsageError
from optc.ir.targets import suggestion


@dataclass(frozen=True)
class Entry:
    """Where a named thing comes from.

    Attributes:
        name: Its name.
        location: "module:attribute".
        owner: The package that brings it.
        adapter: "module:function" of what makes the thing of (name, the object at ``location``); empty for nothing.
    """

    name: str
    location: str
    owner: str = "optc"
    adapter: str = ""

    def load(self) -> Any:
        """Import it.

        Raises:
            UsageError: The module or the name in it is not there, or importing it fails.
        """
        try:
            loaded = _imported(self.location)
            return _imported(self.adapter)(self.name, loaded) if self.adapter else loaded
        except Exception as error:  # a plugin may fail in any way; it must not take optc down
            raise UsageError(
                f"{self.name!r} of {self.owner} cannot be loaded from {self.location}: {type(error).__name__}: {error}",
                hint=f"repair or uninstall {self.owner}",
            ) from error


class Registry:
    """Named things of one kind, with one owner each.

    Args:
        kind: What they are, for messages ("pass").
        entries: The built-in ones: name -> "module:attribute".
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = {name: Entry(name, location) for name, location in entries.items()}

    def add(self, name: str, location: str, owner: str, adapter: str = "") -> None:
        """Register one more; arguments as for :class:`Entry`.

        Raises:
            UsageError: The name is taken; the message names both owners.
        """
        if name in self._entries:
            raise UsageError(
                f"{self.kind} {name!r} is registered twice, by {self._entries[name].owner} and by {owner}",
                hint="uninstall one of the two",
            )
        self._entries[name] = Entry(name, location, owner, adapter)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def load(self, name: str) -> Any:
        """The thing of a name.

        Raises:
            UsageError: There is none of that name, or it cannot be imported.
        """
        if name not in self._entries:
            listed = f"optc {self.kind}{'es' if self.kind.endswith('s') else 's'} lists them"
            raise UsageError(f"unknown {self.kind} {name!r}", hint=suggestion(name, self._entries, listed))
        return self._entries[name].load()


def _imported(location: str) -> Any:
    module, _, attribute = location.partition(":")
    return getattr(importlib.import_module(module), attribute)
