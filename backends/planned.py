"""Backends that have a name and a place but no implementation yet: they say so instead of pretending."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import onnx_ir

from optc.backends.base import Artifact, OpSignature, Probe, Runner
from optc.ir.errors import BackendError
from optc.ir.targets import Target


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@dataclass(frozen=True)
class PlannedBackend:
    """A backend that cannot be used yet.

    Attributes:
        name: Its name.
        module: The Python module that it will need.
        install: How to get that module.
        purpose: What it will do, for the listing.
        installed: Whether a module can be imported here.
    """

    name: str
    module: str
    install: str
    purpose: str
    installed: Callable[[str], bool] = _installed

    def probe(self) -> Probe:
        """Never ready: says that it is not implemented, and whether what it will need is here."""
        state = "is installed" if self.installed(self.module) else "is missing as well"
        hint = None if self.installed(self.module) else f"it will need: {self.install}"
        return Probe(False, f"not implemented yet ({self.purpose}); {self.module} {state}", hint)

    def claims(self, op: OpSignature | onnx_ir.Node, target: Target | None = None) -> bool:
        """Nothing."""
        return False

    def emit(self, model: onnx_ir.Model, target: Target, out: Path) -> Artifact:
        """Raises BackendError."""
        self._refuse()

    def open(self, path: Path, **options: Any) -> Runner:
        """Raises BackendError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BackendError(f"the {self.name} backend is {self.probe().reason}", hint="use --backend=onnxruntime")


TENSORRT = PlannedBackend(
    "tensorrt",
    "tensorrt",
    "pip install optc[tensorrt], on a machine with an NVIDIA GPU",
    "a strongly typed ONNX file with a build recipe, or the engine itself",
)
