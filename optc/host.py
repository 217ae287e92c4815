"""Which backend a compile is for, and what runs its graphs while they are made."""

from __future__ import annotations

from pathlib import Path

from optc.backends.base import Backend, HostBackend
from optc.backends.ort import OnnxRuntimeBackend
from optc.ir.errors import UsageError
from optc.ir.targets import Target
from optc.options import Options

#: Backends by the endings of what they alone write; anything else is a model.
ENDINGS = {".optc": "triton", ".xml": "openvino"}
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
    if writes == "openvino" and options.backend != writes:
        raise UsageError(
            f"{ending} files are OpenVINO's own, and --backend={options.backend} writes others",
            where=str(options.output),
            hint="use --backend=openvino, or let the name end in .onnx",
        )
    return options.backend


def default_output(model: Path, backend: str) -> Path:
    """Where a result goes that nobody named a place for: into the current folder."""
    endings = {name: ending for ending, name in ENDINGS.items()}
    return Path(f"{model.stem}.optc" if backend == "triton" else f"{model.stem}.opt{endings.get(backend, '.onnx')}")


def host_of(backend: Backend) -> HostBackend:
    """What runs graphs here: the backend itself where it can, else ONNX Runtime, which is always there."""
    return backend if isinstance(backend, HostBackend) else OnnxRuntimeBackend()
