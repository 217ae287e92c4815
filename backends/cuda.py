"""The CUDA driver by way of cuda-bindings, which is optional: imported when it is first used. Not run on a GPU yet."""

from __future__ import annotations

import contextlib
import importlib
import weakref
from dataclasses import dataclass
from typing import Any

from optc.ir.errors import BackendError

INSTALL = "pip install 'optc[cuda]'"
_DRIVER = "nvidia-smi shows whether the GPU and its driver are there"
_MEMORY = "nvidia-smi shows who else uses its memory; smaller sizes need less"
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


class Handle:
    """Something of the driver's that is given back once: by :meth:`close`, or when nothing refers to it any more.

    Args:
        device: The GPU that it belongs to, which stays open as long.
        value: What the driver calls it: an address or a handle.
        release: The driver's function that takes it back.

    Attributes:
        value: The same.
    """

    def __init__(self, device: Device, value: Any, release: str) -> None:
        self.value = value
        self._finalizer = weakref.finalize(self, _give_back, driver(), device, value, release)
        self._finalizer.atexit = False  # the driver takes back all that a process had

    def close(self) -> None:
        """Give it back, if it was not yet."""
        self._finalizer()


def _give_back(api: Any, device: Device, value: Any, release: str) -> None:
    # Nothing can be done about a failure: after an error of a kernel, the driver refuses everything.
    with contextlib.suppress(Exception):
        api.cuCtxSetCurrent(device.context)
        getattr(api, release)(value)


class Event:
    """A point in a stream's work for which other streams, or the program, can wait."""

    def __init__(self, device: Device) -> None:
        self._api = driver()
        flags = self._api.CUevent_flags.CU_EVENT_DISABLE_TIMING
        self._handle = Handle(device, call(self._api.cuEventCreate, flags, doing="make an event"), "cuEventDestroy")

    def record(self, stream: int) -> None:
        """Set it to behind all that was given to a stream so far."""
        call(self._api.cuEventRecord, self._handle.value, stream, doing="run")

    def wait(self, stream: int) -> None:
        """Let what is given to a stream from now on begin when this point is reached."""
        call(self._api.cuStreamWaitEvent, stream, self._handle.value, 0, doing="run")

    def synchronize(self) -> None:
        """Wait until it is reached. Errors of kernels before it come out here."""
        call(self._api.cuEventSynchronize, self._handle.value, doing="run")

    def reached(self) -> bool:
        """Whether it lies behind."""
        status, *_ = self._api.cuEventQuery(self._handle.value)
        return int(status) == 0

    def close(self) -> None:
        """Give it back."""
        self._handle.close()


def take(device: Device, size: int, what: str) -> Handle:
    """New GPU memory that is given back by itself; see :func:`allocate`."""
    return Handle(device, allocate(size, what), "cuMemFree")


def allocate(size: int, what: str) -> int:
    """The address of new GPU memory, which is never 0.

    Args:
        size: Bytes.
        what: What it is for, for the message if there is not enough.

    Raises:
        BackendError: There is not enough; the message says how much was wanted, for what, and how much there was.
    """
    api = driver()
    try:
        return int(call(api.cuMemAlloc, max(size, _SMALLEST), doing=f"get {size} bytes of GPU memory for {what}"))
    except BackendError as error:
        status, *known = api.cuMemGetInfo()
        if int(status) != 0:  # it is not for lack of memory that the driver refuses
            raise
        raise BackendError(f"{error.what} ({known[0]} of {known[1]} bytes are free)", hint=_MEMORY) from error
