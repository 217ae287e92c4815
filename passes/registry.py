"""Which passes there are, by name; each is imported when it is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from optc.ir.errors import UsageError
from optc.ir.targets import suggestion
from optc.passes.base import Pass

#: Built-in passes: name -> "module:class". A new pass is one more row.
BUILTIN: dict[str, str] = {
    "inline": "optc.passes.clean.inline:Inline",
    "fold": "optc.passes.clean.fold:Fold",
    "control-flow": "optc.passes.clean.control_flow:ControlFlow",
    "cse": "optc.passes.clean.cse:CommonSubexpressions",
    "dce": "optc.passes.clean.dce:DeadCodeElimination",
    "dedup": "optc.passes.clean.dedup:Deduplicate",
    "fuse": "optc.passes.fusion.fuse:Fuse",
    "emit": "optc.passes.emit.emit:Emit",
    "shapes": "optc.passes.clean.shapes:Shapes",
    "simplify": "optc.passes.clean.simplify:Simplify",
    "quantize-dynamic": "optc.passes.compress.quantize_dynamic:QuantizeDynamic",
}


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
    """Named things with one owner each."""

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
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
            raise UsageError(
                f"unknown {self.kind} {name!r}", hint=suggestion(name, self._entries, "optc passes lists all passes")
            )
        return self._entries[name].load()


def _imported(location: str) -> Any:
    module, _, attribute = location.partition(":")
    return getattr(importlib.import_module(module), attribute)


def pass_registry() -> Registry:
    """The built-in passes; plugins add theirs to the returned object."""
    return Registry("pass", BUILTIN)


def pass_class(registry: Registry, name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        UsageError: It is unknown, cannot be imported, is not a pass, or calls itself by another name.
    """
    loaded = registry.load(name)
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
        raise UsageError(f"{name!r} is not a pass: {loaded!r}")
    if loaded.name != name:
        raise UsageError(f"the pass registered as {name!r} calls itself {loaded.name!r}", hint="use one name for both")
    return loaded
