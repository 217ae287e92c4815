"""The device "cuda": runs a plan through the CUDA driver, by way of cuda-bindings. Not run on a GPU yet."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda.bindings import driver

from optc.backends import cuda
from optc.backends.triton.artifact import NUMPY, Artifact
from optc.backends.triton.memory import needed, place
from optc.backends.triton.plan import number
from optc.ir.dims import evaluate, parse
from optc.ir.errors import BackendError

#: Without being asked, a block gets this much shared memory.
_SHARED_BY_DEFAULT = 48 * 1024
#: Buffers outside of the arena that are filled and read from outside.
_ENDS = ("input", "output")


@dataclass(frozen=True)
class _Bound:
    """A plan for one set of sizes: where its inputs and outputs are, and every launch with its arguments."""

    ends: Mapping[int, int]
    launches: tuple[tuple[Any, tuple[int, int, int], int, int, Any], ...]


class CudaDevice:
    """Runs a plan on the first NVIDIA GPU.

    Args:
        artifact: What to run.

    Raises:
        BackendError: There is no GPU, the artifact was not compiled for it, or the driver is too old.
    """

    name = "cuda"

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._device = cuda.open_device()
        self._arch = self._choose()
        self._functions = {name: self._load(name) for name in artifact.plan.kernels}
        self._weights = {key: self._upload(array) for key, array in artifact.weights().items()}
        self._addresses: dict[int, int] | None = None
        self._bound: dict[tuple[tuple[str, int], ...], _Bound] = {}

    def run(self, feeds: Mapping[str, np.ndarray], bindings: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Run once.

        Args:
            feeds: Inputs by name, of the right types and shapes.
            bindings: Values of the symbolic dims.
        """
        plan = self._artifact.plan
        self._device.use()
        key = tuple(sorted(bindings.items()))
        if key not in self._bound:
            self._bound[key] = self._bind(bindings)
        bound = self._bound[key]
        for tensor in plan.inputs:
            array = np.ascontiguousarray(feeds[tensor.name])
            if array.nbytes:
                cuda.call(
                    driver.cuMemcpyHtoD, bound.ends[tensor.buffer], array.ctypes.data, array.nbytes, doing="copy in"
                )
        for function, grid, threads, shared, arguments in bound.launches:
            if all(grid):
                cuda.call(
                    driver.cuLaunchKernel, function, *grid, threads, 1, 1, shared, 0, arguments, 0, doing="launch"
                )
        results = {}
        for tensor in plan.outputs:
            shape = [number(dim, bindings) for dim in tensor.shape]
            array = np.empty(shape, NUMPY[plan.buffers[tensor.buffer].type])
            if array.nbytes:
                cuda.call(driver.cuMemcpyDtoH, array.ctypes.data, bound.ends[tensor.buffer], array.nbytes, doing="run")
            results[tensor.name] = array
        return results

    # inside -------------------------------------------------------------------------------------------------------

    def _choose(self) -> str:
        """The architecture whose kernels this GPU runs."""
        major, minor = self._device.capability
        there: Mapping[str, Any] = self._artifact.manifest["targets"]
        # Code for 8.0 runs on 8.6 and 8.9; that for 9.0 and later uses what only that generation has.
        fitting = [arch for arch in there if _runs_on(int(arch.removeprefix("sm_")), major * 10 + minor)]
        if not fitting:
            raise BackendError(
                f"this GPU is sm_{major}{minor}; the artifact was compiled for {', '.join(there)}",
                where=str(self._artifact.path),
                hint="compile the model again with a --target of this generation",
            )
        arch = max(fitting, key=lambda name: int(name.removeprefix("sm_")))
        knows = cuda.call(driver.cuDriverGetVersion, doing="ask for the driver's version")
        needs = int(there[arch]["cuda"].split(".")[0])
        if knows // 1000 < needs:
            raise BackendError(
                f"the driver knows CUDA {knows // 1000}.{knows % 1000 // 10}, the kernels need {needs}.0",
                hint=f"install driver {there[arch]['driver']} or later",
            )
        return arch

    def _load(self, name: str) -> Any:
        variant = self._artifact.plan.kernels[name].variants[self._arch]
        module = cuda.call(driver.cuModuleLoadData, self._artifact.read(variant.cubin), doing=f"load kernel {name}")
        function = cuda.call(driver.cuModuleGetFunction, module, variant.symbol.encode(), doing=f"find kernel {name}")
        if variant.shared > _SHARED_BY_DEFAULT:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            cuda.call(driver.cuFuncSetAttribute, function, attribute, variant.shared, doing=f"prepare kernel {name}")
        return function

    def _upload(self, array: np.ndarray) -> int:
        address = cuda.allocate(array.nbytes, "a weight")
        data = np.ascontiguousarray(array)
        if data.nbytes:
            cuda.call(driver.cuMemcpyHtoD, address, data.ctypes.data, data.nbytes, doing="copy the weights")
        return address

    def _bind(self, bindings: Mapping[str, int]) -> _Bound:
        """Memory and launches for these sizes."""
        plan = self._artifact.plan
        if plan.arena == "exact" or self._addresses is None:
            self._addresses = self._take(bindings)
        addresses = self._addresses
        ends = {buffer: addresses[buffer] for buffer, spec in enumerate(plan.buffers) if spec.role in _ENDS}
        launches = []
        for launch in plan.launches:
            entry = plan.kernels[launch.kernel]
            variant = entry.variants[self._arch]
            sizes = {name: number(value, bindings) for name, value in launch.sizes.items()}
            values: list[Any] = [
                addresses[a.buffer] if a.buffer is not None else number(a.value or "0", bindings) for a in launch.args
            ]
            values += [sizes[name] for name in entry.passed]
            values += [0, 0]  # the scratch areas that Triton's kernels take and these do not use
            kinds = tuple(ctypes.c_void_p if size == 8 else ctypes.c_int32 for size in variant.parameters)
            known = {name: value for name, value in {**variant.constants, **sizes}.items() if isinstance(value, int)}
            grid = tuple(evaluate(parse(text), known) for text in (*entry.grid, "1", "1")[:3])
            arguments = (tuple(values), kinds)
            function = self._functions[launch.kernel]
            launches.append((function, grid, 32 * variant.num_warps, variant.shared, arguments))
        return _Bound(ends, tuple(launches))  # type: ignore[arg-type]

    def _take(self, bindings: Mapping[str, int]) -> dict[int, int]:
        """The address of every buffer: memory for these sizes, or for all that the plan is made for."""
        plan = self._artifact.plan
        layout = place(plan, bindings)
        arena = cuda.allocate(layout.size, "the arena")
        addresses = {}
        for buffer, spec in enumerate(plan.buffers):
            if spec.role == "weight":
                addresses[buffer] = self._weights[spec.weight or ""]
            elif spec.role == "temporary":
                addresses[buffer] = arena + layout.offsets[buffer]
            else:
                addresses[buffer] = cuda.allocate(needed(plan, spec, bindings), f"an {spec.role}")
        return addresses


def _runs_on(compiled: int, device: int) -> bool:
    return compiled == device if compiled >= 90 else compiled // 10 == device // 10 and compiled <= device
