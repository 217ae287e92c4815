"""The CUDA driver by way of cuda-bindings, which is optional: imported when it is first used. Not run on a GPU yet."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from optc.ir.errors import BackendError

INSTALL = "pip install 'optc[cuda]'"
_DRIVER = "nvidia-smi shows whether the GPU and its driver are there"
#: Bytes of what the driver gives out at least.
_SMALLEST = 256


def driver() -> Any:
    """The module ``cuda.bindings.driver``.

    Raises:
        BackendError: It is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise BackendError(f"the GPU is used by way of {error.name}, which is not installed", hint=INSTALL) from error


def call(function: Any, *arguments: Any, doing: str) -> Any:
    """Call the driver; an error in words instead of a status.

    Args:
        function: The driver's function.
        arguments: Its arguments.
        doing: What it is called for, as in "cannot ...".

    Returns:
        What it returned besides the status: nothing, a value, or a tuple.
    """
    try:
        status, *results = function(*arguments)
    except RuntimeError as error:  # how the bindings say that there is no driver to call
        raise BackendError(f"cannot {doing}: NVIDIA's driver is not installed", hint=_DRIVER) from error
    if int(status) != 0:
        _, name = driver().cuGetErrorName(status)
        name = name.decode() if isinstance(name, bytes) else str(name)
        raise BackendError(f"cannot {doing}: {name}", hint=_DRIVER)
    return results[0] if len(results) == 1 else tuple(results)


@dataclass(frozen=True)
class Device:
    """A GPU that was opened.

    Attributes:
        handle: The driver's handle of it.
        context: Its primary context.
        name: What its maker calls it ("NVIDIA A100-SXM4-80GB").
        capability: The version of its architecture, (8, 0) for sm_80.
    """

    handle: Any
    context: Any
    name: str
    capability: tuple[int, int]

    @property
    def compute_capability(self) -> str:
        """The version of its architecture as text: "8.0"."""
        return ".".join(map(str, self.capability))

    def use(self) -> None:
        """Make the calling thread's calls go to this GPU."""
        call(driver().cuCtxSetCurrent, self.context, doing="open the GPU")


def open_device() -> Device:
    """Open the first NVIDIA GPU, and make the calling thread's calls go to it.

    Raises:
        BackendError: There is none, or cuda-bindings is not installed.
    """
    api = driver()
    call(api.cuInit, 0, doing="start CUDA")
    handle = call(api.cuDeviceGet, 0, doing="find a GPU")
    context = call(api.cuDevicePrimaryCtxRetain, handle, doing="open the GPU")
    call(api.cuCtxSetCurrent, context, doing="open the GPU")
    kinds = api.CUdevice_attribute
    major, minor = (
        int(call(api.cuDeviceGetAttribute, kind, handle, doing="ask the GPU what it is"))
        for kind in (
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    name = call(api.cuDeviceGetName, 256, handle, doing="ask the GPU what it is")
    text = name.partition(b"\0")[0].decode(errors="replace") if isinstance(name, bytes) else str(name)
    return Device(handle, context, text, (major, minor))


def allocate(size: int, what: str) -> int:
    """The address of new GPU memory, which is never 0.

    Args:
        size: Bytes.
        what: What it is for, for the message if there is not enough.
    """
    return int(call(driver().cuMemAlloc, max(size, _SMALLEST), doing=f"get {size} bytes of GPU memory for {what}"))
