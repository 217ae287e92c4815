"""A CUDA driver without a GPU, generated from what cuda-bindings offers: as strict as it is, and it remembers.

Memory is the host's, so that copies and kernels can be looked at, and addresses are real ones: what is freed, never was
allocated, or ends too early fails. A launch does what :attr:`Driver.kernel` does, at once, in the order of the calls.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from .surface import load


class Status(enum.IntEnum):
    """What calls return first."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_READY = 600


@dataclass(frozen=True)
class Launch:
    """A launch that was made: alone, or in a graph."""

    function: Any
    grid: tuple[int, int, int]
    threads: int
    shared: int
    values: tuple[int, ...]
    kinds: tuple[Any, ...]
    stream: int


@dataclass
class Driver:
    """What to put in place of ``cuda.bindings.driver``; see :meth:`module`.

    Attributes:
        major: Whose bindings it is as strict as.
        capability: Of the GPU.
        version: Of CUDA, as the driver tells it.
        failing: A function that fails.
        memory: Bytes that the GPU has.
        kernel: What a launch does.
        calls: What was called, with its arguments.
        launches: What was launched, in graphs too.
    """

    major: int = 13
    capability: tuple[int, int] = (8, 0)
    version: int = 13000
    device_name: str = "a GPU"
    failing: str | None = None
    memory: int = 1 << 30
    kernel: Callable[[Launch], None] = lambda launch: None
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)

    def __post_init__(self) -> None:
        surface = load(self.major)
        self._functions = surface["functions"]
        self._blocks: dict[int, np.ndarray] = {}
        self._pinned: dict[int, np.ndarray] = {}
        self._objects: dict[int, tuple[str, Any]] = {}
        self._numbers = itertools.count(0x1000)
        for name, members in surface["enums"].items():
            setattr(self, name, SimpleNamespace(**members))
        fields = surface["structures"]["CUDA_KERNEL_NODE_PARAMS"]
        self.CUDA_KERNEL_NODE_PARAMS = _structure("CUDA_KERNEL_NODE_PARAMS", fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._functions:
            raise AttributeError(name)
        told = self._functions[name]

        def call(*arguments: Any) -> tuple[Any, ...]:
            if len(arguments) != len(told["parameters"]):
                raise TypeError(f"{name} takes {told['parameters']}, not {arguments}")
            self.calls.append((name, arguments))
            if name == self.failing:
                return (Status.CUDA_ERROR_OUT_OF_MEMORY, *[None] * told["results"])
            answer = getattr(self, f"_{name}", lambda *_: None)(*arguments)
            results = () if told["results"] == 0 else answer if isinstance(answer, tuple) else (answer,)
            status = answer if isinstance(answer, Status) else Status.CUDA_SUCCESS
            if isinstance(answer, Status):
                results = (None,) * told["results"]
            assert len(results) == told["results"], f"{name} returns {told['results']} results, not {results}"
            return (status, *results)

        return call

    def module(self) -> ModuleType:
        """A module ``cuda.bindings`` of which this is the driver."""
        bindings = ModuleType("cuda.bindings")
        bindings.driver = self  # type: ignore[attr-defined]
        return bindings

    def put(self, patch: Any) -> Driver:
        """Put it in place of the real one, for as long as a MonkeyPatch lasts."""
        for name, module in (
            ("cuda", ModuleType("cuda")),
            ("cuda.bindings", self.module()),
            ("cuda.bindings.driver", self),
        ):
            patch.setitem(sys.modules, name, module)
        return self

    # looking at what happened -------------------------------------------------------------------------------------

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of all calls of a function."""
        return [arguments for called, arguments in self.calls if called == name]

    def names(self) -> list[str]:
        """The functions that were called, in order."""
        return [name for name, _ in self.calls]

    def count(self, name: str) -> int:
        """How often a function was called."""
        return self.names().count(name)

    def array(self, address: int) -> np.ndarray:
        """What lies in the memory that begins at an address."""
        return self._blocks[int(address)]

    def alive(self) -> dict[str, int]:
        """How many there are of what was made and not given back, by kind."""
        kinds = [kind for kind, _ in self._objects.values()] + ["memory"] * len(self._blocks)
        kinds += ["pinned memory"] * len(self._pinned)
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        """What lies in allocated memory."""
        self._inside(address, size, self._blocks)
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8) if size else np.empty(0, np.uint8)

    def block_of(self, address: int) -> int:
        """Where the allocation begins that holds an address."""
        return self._inside(address, 1, self._blocks)

    def lend(self, array: np.ndarray) -> int:
        """Let an array be memory of the GPU that somebody else allocated; its address."""
        self._blocks[array.ctypes.data] = array.reshape(-1).view(np.uint8)
        return array.ctypes.data

    # memory -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _inside(address: int, size: int, blocks: dict[int, np.ndarray]) -> int:
        for start, block in blocks.items():
            if start <= int(address) and int(address) + size <= start + block.nbytes:
                return start
        raise AssertionError(f"{size} bytes at {address:#x} are in no allocated memory")

    def _new(self, size: int, blocks: dict[int, np.ndarray]) -> int:
        raw = np.full(size + 256, 0xFF, np.uint8)
        start = -raw.ctypes.data % 256
        made = raw[start : start + size]
        blocks[made.ctypes.data] = made
        return made.ctypes.data

    def _cuMemAlloc(self, bytesize: int) -> Any:
        assert bytesize > 0, "the driver refuses to allocate nothing"
        if bytesize > self._free():
            return Status.CUDA_ERROR_OUT_OF_MEMORY
        return self._new(bytesize, self._blocks)

    def _free(self) -> int:
        return self.memory - sum(block.nbytes for block in self._blocks.values())

    def _cuMemGetInfo(self) -> tuple[int, int]:
        return self._free(), self.memory

    def _cuMemFree(self, address: int) -> None:
        del self._blocks[int(address)]

    def _cuMemAllocHost(self, bytesize: int) -> int:
        return self._new(bytesize, self._pinned)

    def _cuMemFreeHost(self, address: int) -> None:
        del self._pinned[int(address)]

    def _cuMemcpyHtoD(self, to: int, source: int, size: int) -> None:
        self._inside(to, size, self._blocks)
        ctypes.memmove(int(to), int(source), size)

    def _cuMemcpyDtoH(self, to: int, source: int, size: int) -> None:
        self._inside(source, size, self._blocks)
        ctypes.memmove(int(to), int(source), size)

    def _cuMemcpyDtoDAsync(self, to: int, source: int, size: int, stream: int) -> None:
        self._inside(source, size, self._blocks)
        self._cuMemcpyHtoDAsync(to, source, size, stream)

    def _cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> None:
        self._on(stream)
        self._cuMemcpyHtoD(to, source, size)

    def _cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> None:
        self._on(stream)
        self._cuMemcpyDtoH(to, source, size)

    # handles ------------------------------------------------------------------------------------------------------

    def _make(self, kind: str, what: Any = None) -> int:
        number = next(self._numbers)
        self._objects[number] = kind, what
        return number

    def _get(self, handle: Any, kind: str) -> Any:
        assert int(handle) in self._objects, f"{kind} {handle} is not there (any more)"
        assert self._objects[int(handle)][0] == kind, f"{handle} is no {kind}"
        return self._objects[int(handle)][1]

    def _drop(self, handle: Any, kind: str) -> None:
        self._get(handle, kind)
        del self._objects[int(handle)]

    def _on(self, stream: Any) -> None:
        if int(stream) > 2:  # 0, 1 and 2 are the default streams
            self._get(stream, "stream")

    def _cuDeviceGet(self, ordinal: int) -> int:
        return 0

    def _cuDeviceGetAttribute(self, attribute: int, device: int) -> int:
        kinds = self.CUdevice_attribute
        major = attribute == kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        assert major or attribute == kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        return self.capability[0 if major else 1]

    def _cuDeviceGetName(self, length: int, device: int) -> bytes:
        return self.device_name.encode().ljust(length, b"\0")

    def _cuDevicePrimaryCtxRetain(self, device: int) -> int:
        return 1

    def _cuDriverGetVersion(self) -> int:
        return self.version

    def _cuGetErrorName(self, status: int) -> bytes:
        return Status(status).name.encode()

    def _cuStreamCreate(self, flags: int) -> int:
        return self._make("stream")

    def _cuStreamDestroy(self, stream: Any) -> None:
        self._drop(stream, "stream")

    def _cuStreamSynchronize(self, stream: Any) -> None:
        self._on(stream)

    def _cuStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        self._on(stream)
        self._get(event, "event")

    def _cuStreamEndCapture(self, stream: Any) -> int:
        return self._make("graph", [])

    def _cuEventCreate(self, flags: int) -> int:
        return self._make("event")

    def _cuEventDestroy(self, event: Any) -> None:
        self._drop(event, "event")

    def _cuEventRecord(self, event: Any, stream: Any) -> None:
        self._get(event, "event")
        self._on(stream)

    def _cuEventQuery(self, event: Any) -> None:
        self._get(event, "event")

    def _cuEventSynchronize(self, event: Any) -> None:
        self._get(event, "event")

    def _cuModuleLoadData(self, image: bytes) -> int:
        assert image[:4] == b"\x7fELF", "a cubin is an ELF file"
        return self._make("module", image)

    def _cuModuleUnload(self, module: Any) -> None:
        self._drop(module, "module")

    def _cuModuleGetFunction(self, module: Any, name: bytes) -> int:
        image = self._get(module, "module")
        assert isinstance(name, bytes) and name in image, "the function's name is in its file"
        number = next(self._numbers)
        self._symbols = {**getattr(self, "_symbols", {}), number: (name.decode(), image)}
        return number

    def code(self, function: int) -> bytes:
        """The cubin that a function came from."""
        return self._symbols[function][1]

    # launching ----------------------------------------------------------------------------------------------------

    def _launch(self, launch: Launch) -> None:
        assert launch.function in self._symbols, "no such function"
        assert min(*launch.grid, launch.threads) > 0, "the driver refuses an empty grid"
        assert max(launch.grid[1:]) <= 65535 and launch.threads <= 1024
        assert len(launch.values) == len(launch.kinds)
        for value, kind in zip(launch.values, launch.kinds, strict=True):
            assert kind is not ctypes.c_int32 or -(2**31) <= value < 2**31, "does not fit its parameter"
        self.launches.append(launch)
        self.kernel(launch)

    def _cuLaunchKernel(
        self, f: int, x: int, y: int, z: int, bx: int, by: int, bz: int, shared: int, stream: Any, params: Any,
        extra: int,
    ) -> None:  # fmt: skip
        assert (by, bz, extra) == (1, 1, 0)
        self._on(stream)
        self._launch(Launch(f, (x, y, z), bx, shared, *params, stream))  # type: ignore[misc]

    def _cuGraphCreate(self, flags: int) -> int:
        assert flags == 0
        return self._make("graph", [])

    def _cuGraphDestroy(self, graph: Any) -> None:
        self._drop(graph, "graph")

    def _cuGraphAddKernelNode(self, graph: Any, dependencies: Any, count: int, params: Any) -> int:
        nodes = self._get(graph, "graph")
        assert len(dependencies) == count and list(dependencies) == [node for node, _ in nodes[-1:]], "a chain"
        node = next(self._numbers)
        nodes.append((node, self._node(params)))
        return node

    def _node(self, params: Any) -> Launch:
        assert (params.blockDimY, params.blockDimZ) == (1, 1)
        grid = (params.gridDimX, params.gridDimY, params.gridDimZ)
        return Launch(params.func, grid, params.blockDimX, params.sharedMemBytes, *params.kernelParams, 0)  # type: ignore[misc]

    def _cuGraphInstantiate(self, graph: Any, flags: int) -> int:
        assert flags == 0
        return self._make("executable graph", [int(graph), *self._get(graph, "graph")])

    def _cuGraphExecDestroy(self, graph: Any) -> None:
        self._drop(graph, "executable graph")

    def _cuGraphExecKernelNodeSetParams(self, executable: Any, node: int, params: Any) -> None:
        source, *nodes = self._get(executable, "executable graph")
        self._get(source, "graph")  # nodes are known by the graph that they were made in
        place = [known for known, _ in nodes].index(node)
        changed, before = self._node(params), nodes[place][1]
        assert changed.function == before.function, "a node keeps its kernel"
        self._objects[int(executable)][1][1 + place] = (node, changed)

    def _cuGraphLaunch(self, executable: Any, stream: Any) -> None:
        self._on(stream)
        for _, launch in self._get(executable, "executable graph")[1:]:
            self._launch(Launch(**{**vars(launch), "stream": stream}))


def _structure(name: str, fields: list[str]) -> type:
    """A structure of the driver's: zeros, and no other fields."""

    def initialize(self: Any) -> None:
        for key in fields:
            setattr(self, key, 0)

    return type(name, (), {"__slots__": tuple(fields), "__init__": initialize})
