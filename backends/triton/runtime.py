"""Running artifacts: checks what is fed, and hands it to a device. Only the device "interpreter" needs Triton."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir

from optc.backends.base import ValueSpec
from optc.backends.triton.artifact import NUMPY, Artifact, open_artifact
from optc.backends.triton.plan import Tensor, spec_of
from optc.ir.errors import BackendError, DataError

#: Devices by name; a module is imported when it is asked for.
_DEVICES = {
    "cuda": ("optc.backends.triton.cuda_device", "CudaDevice"),
    "interpreter": ("optc.backends.triton.interpreter_device", "InterpreterDevice"),
}


class Device(Protocol):
    """What runs a plan."""

    def run(self, feeds: Mapping[str, np.ndarray], bindings: Mapping[str, int]) -> dict[str, np.ndarray]: ...


class TritonRunner:
    """An opened artifact; a :class:`~optc.backends.base.Runner`.

    Args:
        path: The artifact's folder.
        device: "cuda" or "interpreter".

    Raises:
        BackendError: The artifact is damaged or of a newer format, or the device cannot run it.
    """

    def __init__(self, path: Path, device: str) -> None:
        if device not in _DEVICES:
            raise BackendError(f"there is no device {device!r}", hint=f"choose {' or '.join(_DEVICES)}")
        self.artifact: Artifact = open_artifact(path)
        module, name = _DEVICES[device]
        try:
            loaded = importlib.import_module(module)
        except ImportError as error:
            raise BackendError(
                f"device {device!r} needs {error.name}, which is not installed",
                hint="pip install 'optc[cuda]'" if device == "cuda" else "pip install 'optc[triton]'",
            ) from error
        self._device: Device = getattr(loaded, name)(self.artifact)
        self._inputs = self.artifact.plan.specs()
        self._outputs = tuple(map(spec_of, self.artifact.plan.outputs))

    @property
    def inputs(self) -> tuple[ValueSpec, ...]:
        """The inputs to feed."""
        return self._inputs

    @property
    def outputs(self) -> tuple[ValueSpec, ...]:
        """The outputs, in order."""
        return self._outputs

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Run once; see :meth:`optc.backends.base.Runner.run`."""
        plan = self.artifact.plan
        wanted = {tensor.name: tensor for tensor in plan.inputs}
        missing = [name for name in wanted if name not in feeds]
        unknown = [name for name in feeds if name not in wanted]
        if missing or unknown:
            problems = [f"missing: {', '.join(missing)}"] * bool(missing)
            problems += [f"unknown: {', '.join(unknown)}"] * bool(unknown)
            raise DataError(
                f"the inputs do not fit the model ({'; '.join(problems)})",
                where=str(self.artifact.path),
                hint=f"the model takes {', '.join(map(str, self._inputs)) or 'no inputs'}",
            )
        arrays = {name: _checked(tensor, np.asarray(feeds[name]), self.artifact) for name, tensor in wanted.items()}
        bindings = plan.bind({name: array.shape for name, array in arrays.items()})
        results = self._device.run(arrays, bindings)
        return {tensor.name: _as_declared(tensor, results[tensor.name]) for tensor in plan.outputs}


def _checked(tensor: Tensor, array: np.ndarray, artifact: Artifact) -> np.ndarray:
    """An input in the type that kernels read."""
    declared = onnx_ir.DataType[tensor.dtype].numpy()
    if array.dtype != declared:
        raise DataError(f"input {tensor.name!r} is of type {tensor.dtype.lower()}, not {array.dtype}")
    memory = NUMPY[artifact.plan.buffers[tensor.buffer].type]
    return array.view(memory) if array.dtype.itemsize == np.dtype(memory).itemsize else array.astype(memory)


def _as_declared(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    declared = onnx_ir.DataType[tensor.dtype].numpy()
    return array if array.dtype == declared else array.view(declared)
