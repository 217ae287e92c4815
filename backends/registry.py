"""Which backends there are, by name; each is imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from optc.backends.base import Backend, Probe
from optc.ir.errors import OptcError, UsageError
from optc.ir.registry import Registry

#: Built-in backends: name -> "module:attribute", a backend or a class that makes one. A new backend is one more row.
BUILTIN: dict[str, str] = {
    "onnxruntime": "optc.backends.ort:OnnxRuntimeBackend",
    "openvino": "optc.backends.openvino:OpenVinoBackend",
    "tensorrt": "optc.backends.tensorrt.backend:TensorRtBackend",
    "triton": "optc.backends.triton.backend:TritonBackend",
}


class BackendRegistry:
    """Backends by name, one owner each; plugins add theirs with :meth:`add`."""

    def __init__(self, entries: Mapping[str, str] = BUILTIN) -> None:
        self._entries = Registry("backend", entries)

    def add(self, name: str, location: str, owner: str) -> None:
        """Register one more backend.

        Args:
            name: What the user writes after ``--backend``.
            location: "module:attribute", imported when the backend is first used.
            owner: The package that brings it.

        Raises:
            UsageError: The name is taken; the message names both owners.
        """
        self._entries.add(name, location, owner)

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def owner(self, name: str) -> str:
        """The package that a backend comes from."""
        return next(entry.owner for entry in self._entries if entry.name == name)

    def get(self, name: str) -> Backend:
        """The backend of a name.

        Raises:
            UsageError: There is none of that name, or it cannot be imported, or it is not a backend.
        """
        loaded = self._entries.load(name)
        try:
            backend = loaded() if isinstance(loaded, type) else loaded
        except Exception as error:  # a plugin may fail in any way; it must not take optc down
            raise UsageError(
                f"backend {name!r} cannot be made: {type(error).__name__}: {error}",
                hint=f"repair or uninstall {self.owner(name)}",
            ) from error
        if not isinstance(backend, Backend):
            raise UsageError(
                f"backend {name!r} of {self.owner(name)} does not have a backend's methods",
                hint=f"repair or uninstall {self.owner(name)}",
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
