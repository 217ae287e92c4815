"""What a result depends on besides the model: versions, the process, the files written."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable
from importlib import metadata

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

#: Packages on which the bytes of a result may depend.
_VERSIONED = ("optc", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "onnx-graphsurgeon", "numpy", "triton")
_CHUNK = 1 << 20


def file_digest(path: str | os.PathLike[str]) -> str:
    """``sha256:<hex>`` of a file's contents."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def versions(packages: Iterable[str] = _VERSIONED) -> dict[str, str]:
    """Versions of Python and of those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory() -> int | None:
    """The largest resident size that this process has had, in bytes; None where the system does not tell."""
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
