"""Which backend a compile is for, and what runs its graphs while they are made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optc.backends.base import Backend, ConfigurableBackend, HostBackend
from optc.backends.ort import OnnxRuntimeBackend
from optc.ir.errors import UsageError
from optc.ir.targets import Target
from optc.options import Options

#: Backends by the endings of what they alone write; anything else is a model.
ENDINGS = {".optc": "triton", ".xml": "openvino", ".trt": "tensorrt", ".engine": "tensorrt"}
#: Endings of what is a folder.
FOLDERS = frozenset({".optc", ".trt"})
#: Backends whose endings stand for forms that nothing else writes, as messages call them.
_OWNERS = {"openvino": "OpenVINO's", "tensorrt": "TensorRT's"}
#: What ``--backend`` says to have the faster one of those that are installed.
AUTO = "auto"


def chosen_backend(options: Options, target: Target) -> str:
    """The backend that is named; else the one that writes what is asked for, or the target's.

    Raises:
        UsageError: The backend does not write files that end like the output.
    """
    ending = options.output.suffix.lower() if options.output is not None else ""
    writes = ENDINGS.get(ending)
    if options.backend in (None, AUTO):
        return writes or ("onnxruntime" if options.output is None or ending == ".onnx" else target.backend)
    if writes in _OWNERS and options.backend != writes:
        raise UsageError(
            f"{ending} files are {_OWNERS[writes]} own, and --backend={options.backend} writes others",
            where=str(options.output),
            hint=f"use --backend={writes}, or let the name end in .onnx",
        )
    return options.backend


def default_output(model: Path, backend: str) -> Path:
    """Where a result goes that nobody named a place for: into the current folder."""
    ending = next((ending for ending, name in ENDINGS.items() if name == backend), ".onnx")
    return Path(f"{model.stem}{'' if ending in FOLDERS else '.opt'}{ending}")


def configured(backend: Backend, given: Mapping[str, Any]) -> Backend:
    """A backend with the options that were given for it.

    Raises:
        UsageError: It has none, or not those, or they make no sense.
    """
    if isinstance(backend, ConfigurableBackend):
        return backend.configured(given)
    if given:
        raise UsageError(f"the {backend.name} backend has no option {next(iter(given))!r}", hint="it has none")
    return backend


def host_of(backend: Backend) -> HostBackend:
    """What runs graphs here: the backend itself where it can, else ONNX Runtime, which is always there."""
    return backend if isinstance(backend, HostBackend) else OnnxRuntimeBackend()
