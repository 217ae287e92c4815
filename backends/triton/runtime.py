"""Running artifacts: checks what is fed, and hands it to a device. Only the device "interpreter" needs Triton.

Importing this and running on a GPU needs NumPy, ml_dtypes and cuda-bindings, and nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from optc.backends.base import ValueSpec, check_names
from optc.backends.device_arrays import DeviceArray, View, on_gpu
from optc.backends.triton.artifact import NUMPY, Artifact, declared, open_artifact
from optc.backends.triton.plan import Tensor, number, spec_of
from optc.ir.errors import BackendError, DataError

#: Devices by name; a module is imported when it is asked for.
_DEVICES = {
    "cuda": ("optc.backends.triton.cuda_device", "CudaDevice"),
    "interpreter": ("optc.backends.triton.interpreter_device", "InterpreterDevice"),
}


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
        self._device: Any = getattr(loaded, name)(self.artifact)
        self._name = device

    @cached_property
    def inputs(self) -> tuple[ValueSpec, ...]:
        """The inputs to feed."""
        return self.artifact.plan.specs()

    @cached_property
    def outputs(self) -> tuple[ValueSpec, ...]:
        """The outputs, in order."""
        return tuple(map(spec_of, self.artifact.plan.outputs))

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run once; see :meth:`optc.backends.base.Runner.run`.

        Args:
            feeds: Inputs by name: NumPy arrays, or arrays of any library that are on the GPU, which are used in place.
        """
        taken = self._taken(feeds, None)
        results = self._device.run(taken, self._bindings(taken))
        return {tensor.name: _as_declared(tensor, results[tensor.name]) for tensor in self.artifact.plan.outputs}

    def run_on_device(
        self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, *, stream: Any = None
    ) -> dict[str, Any]:
        """Run once on the GPU, without waiting for it and without copying its results.

        Args:
            feeds: Inputs by name. Arrays that are on the GPU (DLPack or ``__cuda_array_interface__``) are read where
                they are; NumPy arrays are copied there.
            outputs: Arrays on the GPU to write to, by name. The other outputs get memory of their own, in each run.
            stream: The stream to run on: its handle, or what has ``__cuda_stream__``. Without, the model uses one of
                its own: who takes results by DLPack or ``__cuda_array_interface__`` waits for it, and where results are
                written to ``outputs``, they are there when this returns. Inputs must not be changed before that.

        Returns:
            The outputs in order: what was given, or :class:`~optc.backends.device_arrays.DeviceArray`.

        Raises:
            DataError: ``feeds`` or ``outputs`` do not fit the model.
            BackendError: The run failed, or the device is no GPU.
        """
        taken, bindings, places = self._places(feeds, outputs or {}, stream)
        made: Mapping[str, DeviceArray] = self._device.run_on_device(taken, bindings, places, stream)
        given = outputs or {}
        return {
            tensor.name: given[tensor.name] if tensor.name in given else made[tensor.name]
            for tensor in self.artifact.plan.outputs
        }

    def bind(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any], *, stream: Any = None) -> Callable[[], None]:
        """Settle all arrays: what is returned runs on them each time it is called, and costs the host next to nothing.

        Args:
            feeds: All inputs, on the GPU; what they hold when it is called is used.
            outputs: All outputs, on the GPU.
            stream: As for :meth:`run_on_device`: without, each run is waited for.

        Raises:
            DataError: ``feeds`` or ``outputs`` do not fit the model, or are not on the GPU.
            BackendError: There is not enough memory, or the device is no GPU. When called: the run failed, or larger
                sizes were run in between, for which the memory of the model had to move.
        """
        taken, bindings, places = self._places(feeds, outputs, stream)
        missing = [tensor.name for tensor in self.artifact.plan.outputs if tensor.name not in places]
        missing += [name for name, value in taken.items() if not isinstance(value, View)]
        if missing:
            raise DataError(f"to bind a run, {missing[0]!r} must be given, on the GPU")
        bound: Callable[[], None] = self._device.bind(taken, bindings, places, stream)
        return bound

    def close(self) -> None:
        """Give back what the model has on the GPU; it cannot be run afterwards."""
        if hasattr(self._device, "close"):
            self._device.close()

    def __enter__(self) -> TritonRunner:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _places(
        self, feeds: Mapping[str, Any], outputs: Mapping[str, Any], stream: Any
    ) -> tuple[dict[str, np.ndarray | View], dict[str, int], dict[str, View]]:
        """Inputs, the values of symbolic dims, and where to write the outputs that are given."""
        if not hasattr(self._device, "run_on_device"):
            raise BackendError(f"device {self._name!r} is no GPU", hint="use run")
        taken = self._taken(feeds, stream)
        bindings = self._bindings(taken)
        known = {tensor.name: tensor for tensor in self.artifact.plan.outputs}
        places = {}
        for name, value in outputs.items():
            if name not in known:
                raise DataError(f"the model has no output {name!r}", hint=f"it has {', '.join(known)}")
            if not on_gpu(value):
                raise DataError(f"output {name!r} is to be written to what is not on the GPU")
            places[name] = found = self._device.take(value, f"output {name!r}", stream)
            shape = tuple(number(dim, bindings) for dim in known[name].shape)
            _check_type(f"output {name!r}", known[name], found.dtype)
            if found.shape != shape:
                raise DataError(f"output {name!r} is of shape {list(shape)}, not {list(found.shape)}")
        return taken, bindings, places

    def _taken(self, feeds: Mapping[str, Any], stream: Any) -> dict[str, np.ndarray | View]:
        """The inputs as kernels read them."""
        plan = self.artifact.plan
        if set(feeds) != {tensor.name for tensor in plan.inputs}:
            check_names(feeds, self.inputs, str(self.artifact.path))
        taken: dict[str, np.ndarray | View] = {}
        for tensor in plan.inputs:
            value, name = feeds[tensor.name], f"input {tensor.name!r}"
            if on_gpu(value):
                if not hasattr(self._device, "take"):
                    raise DataError(f"{name} is on a GPU, which device {self._name!r} does not use")
                found = self._device.take(value, name, stream)
                _check_type(name, tensor, found.dtype)
                taken[tensor.name] = found
            else:
                array = np.asarray(value)
                _check_type(name, tensor, array.dtype)
                taken[tensor.name] = array.view(NUMPY[plan.buffers[tensor.buffer].type])
        return taken

    def _bindings(self, taken: Mapping[str, np.ndarray | View]) -> dict[str, int]:
        return self.artifact.plan.bind({name: value.shape for name, value in taken.items()})


def _check_type(name: str, tensor: Tensor, dtype: np.dtype[Any]) -> None:
    if dtype != declared(tensor):
        raise DataError(f"{name} is of type {tensor.dtype.lower()}, not {dtype}")


def _as_declared(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    kind = declared(tensor)
    return array if array.dtype == kind else array.view(kind)
