"""OpenVINO itself, which is optional: imported when it is first used, and never by whoever does not use it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from importlib import metadata
from typing import Any

from optc.ir.errors import BackendError

INSTALL = "pip install 'optc[openvino]'"


def installed_version() -> str | None:
    """The version that is installed, found without importing it; None if there is none."""
    if importlib.util.find_spec("openvino") is None:
        return None
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return "of unknown version"


def library() -> Any:
    """The module ``openvino``.

    Raises:
        BackendError: It is not installed, or cannot be imported.
    """
    if installed_version() is None:
        raise BackendError("OpenVINO is not installed", hint=INSTALL)
    try:
        return importlib.import_module("openvino")
    except Exception as error:  # what is missing of it (a system library, a symbol) may show in any way
        raise BackendError(f"OpenVINO cannot be imported: {error}", hint=f"reinstall it: {INSTALL}") from error


@functools.cache
def core() -> Any:
    """The one ``openvino.Core`` of this process: making one reads the plugins' libraries."""
    return library().Core()


def last_words(error: Exception) -> str:
    """What OpenVINO says in the end, in one line: before it come places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '", "FrontEnd API failed"))]
    kept = [line for line in told if "docs.openvino.ai" not in line and not line.startswith(("Summary:", "Model wasn"))]
    return "; ".join(dict.fromkeys(kept))[:400] or type(error).__name__
