"""PyTorch, which is optional: imported when recovery begins, and never by whoever does not ask for it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from optc.ir.errors import BackendError

INSTALL = "pip install 'optc[recover]'"


def engine() -> Any:
    """The module :mod:`optc.recovery.engine.train`, which needs PyTorch.

    Raises:
        BackendError: It is not installed, or cannot be imported.
    """
    if importlib.util.find_spec("torch") is None:
        raise BackendError("PyTorch is not installed, and recovery learns with it", hint=INSTALL)
    try:
        return importlib.import_module("optc.recovery.engine.train")
    except (ImportError, OSError) as error:  # a system library that it lacks shows as either
        raise BackendError(f"PyTorch cannot be imported: {error}", hint=f"reinstall it: {INSTALL}") from error
