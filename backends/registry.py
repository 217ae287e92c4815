"""Which backends there are, by name; each is imported when it is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from optc.backends.base import Backend, Probe
from optc.ir.errors import OptcError, UsageError
from optc.ir.targets import suggestion

#: Built-in backends: name -> "module:attribute", a backend or a class that makes one. A new backend is one more row.
BUILTIN: dict[str, str] = {
    "onnxruntime": "optc.backends.ort:OnnxRuntimeBackend",
    "tensorrt": "optc.backends.planned:TENSORRT",
    "triton": "optc.backends.planned:TRITON",
}


@dataclass(frozen=True)
class Entry:
    """Where a backend comes from."""

    location: str
    owner: str = "optc"


class BackendRegistry:
    """Backends by name, one owner each; plugins add theirs with :meth:`add`."""

    def __init__(self, entries: Mapping[str, str] = BUILTIN) -> None:
        self._entries = {name: Entry(location) for name, location in entries.items()}

    def add(self, name: str, location: str, owner: str) -> None:
        """Register one more backend.

        Args:
            name: What the user writes after ``--backend``.
            location: "module:attribute", imported when the backend is first used.
            owner: The package that brings it.

        Raises:
            UsageError: The name is taken; the message names both owners.
        """
        taken = self._entries.get(name)
        if taken is not None:
            raise UsageError(
                f"backend {name!r} is registered twice, by {taken.owner} and by {owner}",
                hint="uninstall one of the two",
            )
        self._entries[name] = Entry(location, owner)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def owner(self, name: str) -> str:
        """The package that a backend comes from."""
        return self._entries[name].owner

    def get(self, name: str) -> Backend:
        """The backend of a name.

        Raises:
            UsageError: There is none of that name, or it cannot be imported, or it is not a backend.
        """
        if name not in self._entries:
            raise UsageError(
                f"unknown backend {name!r}", hint=suggestion(name, self._entries, "optc backends lists them")
            )
        entry = self._entries[name]
        module, _, attribute = entry.location.partition(":")
        try:
            loaded = getattr(importlib.import_module(module), attribute)
            backend = loaded() if isinstance(loaded, type) else loaded
        except Exception as error:  # a plugin may fail in any way; it must not take optc down
            raise UsageError(
                f"backend {name!r} cannot be loaded from {entry.location}: {type(error).__name__}: {error}",
                hint=f"repair or uninstall {entry.owner}",
            ) from error
        if not isinstance(backend, Backend):
            raise UsageError(
                f"backend {name!r} from {entry.location} does not have a backend's methods",
                hint=f"repair or uninstall {entry.owner}",
            )
        return backend

    def probe(self) -> dict[str, Probe]:
        """Every backend's own word on whether it can be used here; one that cannot be loaded is listed with why."""
        probes = {}
        for name in self:
            try:
                probes[name] = self.get(name).probe()
            except OptcError as error:
                probes[name] = Probe(False, error.what, error.hint)
            except Exception as error:  # a plugin's probe broke its promise never to raise
                probes[name] = Probe(False, f"its probe failed: {type(error).__name__}: {error}")
        return probes
