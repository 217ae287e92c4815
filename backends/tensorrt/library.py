"""TensorRT itself, which is optional: imported when it is first used, and never by whoever does not use it.

Versions 10 and 11 are served. What optc uses of them and one of them lacks stands in one table, :data:`SINCE`.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from optc.ir.errors import BackendError

INSTALL = "pip install 'optc[tensorrt]', on a machine with an NVIDIA GPU"
#: The oldest version that is served: the first with networks that are typed strongly and engines that say why.
OLDEST = (10, 0)
#: Parts of the API that optc uses and that are not in every version served -> the first version that has them. What
#: 10 has and 11 has no more (flags that choose precisions, EXPLICIT_BATCH, V1 sizes of memory) is not used at all.
SINCE: Mapping[str, tuple[int, int]] = {
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": (10, 9),
    "ICudaEngine.weight_streaming_budget_v2": (10, 1),
    "QuickPluginCreationRequest": (10, 9),
}


def installed_version() -> str | None:
    """The version that is installed, found without importing it; None if there is none."""
    if importlib.util.find_spec("tensorrt") is None:
        return None
    for package in ("tensorrt", "tensorrt_cu13", "tensorrt_cu12"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def library() -> Any:
    """The module ``tensorrt``.

    Raises:
        BackendError: It is not installed, cannot be imported, or is too old.
    """
    if importlib.util.find_spec("tensorrt") is None:
        raise BackendError("TensorRT is not installed", hint=INSTALL)
    try:
        found = importlib.import_module("tensorrt")
    except Exception as error:  # what is missing of it (a library, a symbol) may show in any way
        told = str(error).strip().splitlines()
        raise BackendError(
            f"TensorRT cannot be imported: {told[0] if told else type(error).__name__}", hint=f"reinstall it: {INSTALL}"
        ) from error
    if version_of(found) < OLDEST:
        raise BackendError(
            f"TensorRT {found.__version__} is too old: {_text(OLDEST)} or later is needed",
            hint=f"pip install --upgrade 'tensorrt>={_text(OLDEST)},<12'",
        )
    return found


def plugin_library() -> Any:
    """The module ``tensorrt.plugin``, which :func:`library` has to be asked for before."""
    return importlib.import_module("tensorrt.plugin")


def version_of(trt: Any) -> tuple[int, int]:
    """The first two numbers of a version."""
    return parse_version(trt.__version__)


def parse_version(text: str) -> tuple[int, int]:
    """The first two numbers of a version's text; zeros for what is not there."""
    numbers = [int(number) for number in re.findall(r"\d+", text)[:2]]
    major, minor = (*numbers, 0, 0)[:2]
    return major, minor


def part(trt: Any, name: str, needed_for: str) -> Any:
    """Something of TensorRT that not every version has.

    Args:
        trt: The module.
        name: A key of :data:`SINCE`.
        needed_for: What it is for.

    Raises:
        BackendError: This version lacks it; the message names the version that has it.
    """
    found = trt
    for step in name.split("."):
        found = getattr(found, step, None)
    if found is None:
        raise BackendError(
            f"TensorRT {trt.__version__} cannot do this: {needed_for} needs {name}",
            hint=f"install TensorRT {_text(SINCE.get(name, OLDEST))} or later",
        )
    return found


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
