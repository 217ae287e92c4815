"""The device "cuda": runs a plan through the CUDA driver, by way of cuda-bindings. Not run on a GPU yet.

Sizes that come a second time are recorded as a CUDA graph; those of a model without symbolic dims when it is opened.
Temporaries, inputs and outputs lie in one piece of memory that all sizes share, so runs take turns. What comes from the
host and goes back to it goes through pinned memory; arrays that are on the GPU are read and written where they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cuda.bindings import driver

from optc.backends import cuda
from optc.backends.device_arrays import DeviceArray, View, stream_handle, view
from optc.backends.triton.artifact import Artifact, declared
from optc.backends.triton.cuda_session import Session, Space, disjoint, launches, space, words
from optc.backends.triton.memory import ALIGNMENT
from optc.backends.triton.plan import Tensor, number
from optc.ir.errors import BackendError, DataError

#: Without being asked, a block gets this much shared memory.
_SHARED_BY_DEFAULT = 48 * 1024
#: Sets of sizes whose launches and graphs are kept.
KEPT = 16
#: What kernels are told about addresses.
_ALIGNED = 16
_INDEPENDENT = 1  # of the default stream


class CudaDevice:
    """Runs a plan on the first NVIDIA GPU.

    Args:
        artifact: What to run.
        graphs: Whether to record what is run as CUDA graphs; without, kernels are launched one by one.

    Raises:
        BackendError: There is no GPU, the artifact was not compiled for it, the driver is too old, or there is not
            enough memory.
    """

    name = "cuda"

    def __init__(self, artifact: Artifact, *, graphs: bool = True) -> None:
        self._artifact, self._plan, self._graphs = artifact, artifact.plan, graphs
        self._gpu = cuda.open_device()
        self._lock = threading.Lock()
        self._open = True
        self._handles: list[cuda.Handle | cuda.Event] = []
        self._block: cuda.Handle | None = None
        self._pinned: cuda.Handle | None = None
        self._room = {"block": 0, "pinned": 0}
        self._sessions: OrderedDict[tuple[tuple[str, int], ...], tuple[Session, Space]] = OrderedDict()
        self._in_use: deque[tuple[cuda.Event, Any]] = deque()
        self._bound: weakref.WeakSet[BoundRun] = weakref.WeakSet()
        self._arch = self._choose()
        self._done = cuda.Event(self._gpu)
        self._handles.append(self._done)
        try:
            made = cuda.call(driver.cuStreamCreate, _INDEPENDENT, doing="make a stream")
            self._stream = self._last = int(self._own(made, "cuStreamDestroy"))
            self._functions = {name: self._load(name) for name in self._plan.kernels}
            self._weights = self._upload(artifact.weights())
            if graphs and not self._plan.dims:
                session, _ = self._session({})
                session.record()
        except BaseException:
            self.close()
            raise

    def take(self, value: Any, name: str, stream: Any = None) -> View:
        """An array that is on the GPU, to be read or written in a run on a stream (by default, the model's own)."""
        return view(value, name, self._stream if stream is None else stream_handle(stream))

    def run(self, feeds: Mapping[str, np.ndarray | View], bindings: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Run once, and wait for it.

        Args:
            feeds: Inputs by name, of the right types and shapes, on the host or on the GPU.
            bindings: Values of the symbolic dims.
        """
        with self._running(bindings) as (session, room):
            base, stage = self._memory(room), self._stage(room)
            addresses = self._ends(base, room)
            self._feed(feeds, addresses, base, stage, room, self._stream)
            session.point(addresses)
            session.run(self._stream)
            results = {}
            for tensor in self._plan.outputs:
                results[tensor.name] = array = np.empty(self._shape(tensor, bindings), declared(tensor))
                if array.nbytes:
                    cuda.call(
                        driver.cuMemcpyDtoHAsync, stage + room.offsets[tensor.buffer] - room.temporaries,
                        addresses[tensor.buffer], array.nbytes, self._stream, doing="copy back",
                    )  # fmt: skip
            self._done.record(self._stream)
            self._done.synchronize()
            for tensor in self._plan.outputs:
                array = results[tensor.name]
                ctypes.memmove(array.ctypes.data, stage + room.offsets[tensor.buffer] - room.temporaries, array.nbytes)
            return results

    def run_on_device(
        self,
        feeds: Mapping[str, np.ndarray | View],
        bindings: Mapping[str, int],
        outputs: Mapping[str, View],
        stream: Any = None,
    ) -> dict[str, DeviceArray]:
        """Run once, without waiting for it unless it is on the model's own stream and writes to what was given.

        Args:
            feeds: As for :meth:`run`.
            bindings: Values of the symbolic dims.
            outputs: Where to write, by name; for the other outputs memory is taken.
            stream: Whose work it becomes; by default that of the model's own, for which others wait by DLPack.
        """
        where = self._stream if stream is None else stream_handle(stream)
        with self._running(bindings, where) as (session, room):
            base, stage = self._memory(room), self._stage(room)
            addresses = self._ends(base, room)
            self._check_apart(feeds, outputs)
            ready = cuda.Event(self._gpu)
            made = {}
            for tensor in self._plan.outputs:
                if tensor.name in outputs:
                    addresses[tensor.buffer] = outputs[tensor.name].address
                    continue
                shape, kind = self._shape(tensor, bindings), declared(tensor)
                memory = cuda.take(
                    self._gpu, int(np.prod(shape, dtype=np.int64)) * kind.itemsize, f"output {tensor.name!r}"
                )
                addresses[tensor.buffer] = int(memory.value)
                made[tensor.name] = DeviceArray(memory, shape, kind, ready)
            self._feed(feeds, addresses, base, stage, room, where)
            session.point(addresses)
            session.run(where)
            self._done.record(where)
            ready.record(where)
            self._in_use.append((ready, (feeds, outputs)))  # nobody gives their memory to others before that
            if outputs and stream is None:
                ready.synchronize()  # nobody else could know when they are written
            return made

    def bind(
        self, feeds: Mapping[str, View], bindings: Mapping[str, int], outputs: Mapping[str, View], stream: Any = None
    ) -> BoundRun:
        """What runs again and again on the same arrays.

        Args:
            feeds: All inputs, on the GPU.
            bindings: Values of the symbolic dims.
            outputs: All outputs, on the GPU.
            stream: As for :meth:`run_on_device`.
        """
        self._check_apart(feeds, outputs)
        for name, given in feeds.items():
            if given.address % _ALIGNED:
                raise DataError(f"input {name!r} does not begin at a multiple of {_ALIGNED} bytes, as kernels read it")
        where = self._stream if stream is None else stream_handle(stream)
        with self._running(bindings, where) as (session, room):
            addresses = self._ends(self._memory(room), room)
            for tensors, views in ((self._plan.inputs, feeds), (self._plan.outputs, outputs)):
                addresses.update((tensor.buffer, views[tensor.name].address) for tensor in tensors)
            own = session.copy()
            own.point(addresses)
            if self._graphs:
                own.record()
            made = BoundRun(self, own, where, stream is None, (feeds, outputs))
            self._bound.add(made)
            return made

    def replay(self, bound: BoundRun) -> None:
        """Run what was bound; wait for it where it is on the model's own stream, which nobody else knows."""
        with self._lock:
            if not bound.valid:
                raise BackendError(
                    "the memory that this run was bound to is gone", hint="bind it again, after larger sizes were run"
                )
            self._gpu.use()
            if bound.stream != self._last:
                self._done.wait(bound.stream)
            self._last = bound.stream
            bound.session.run(bound.stream)
            self._done.record(bound.stream)
            if bound.waits:
                self._done.synchronize()

    def close(self) -> None:
        """Give back all that the model has on the GPU; it cannot be run afterwards. Outputs that are there stay."""
        if not self._open:
            return
        self._open = False
        with contextlib.suppress(BackendError):
            self._gpu.use()
            self._done.synchronize()
        self._in_use.clear()
        self._forget()
        for handle in (self._block, self._pinned, *reversed(self._handles)):
            if handle is not None:
                handle.close()
        self._block = self._pinned = None
        self._handles.clear()

    # opening ------------------------------------------------------------------------------------------------------

    def _choose(self) -> str:
        """The architecture whose kernels this GPU runs."""
        major, minor = self._gpu.capability
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

    def _own(self, value: Any, release: str) -> Any:
        """What the driver made, to be given back when the model is closed."""
        self._handles.append(cuda.Handle(self._gpu, value, release))
        return value

    def _load(self, name: str) -> Any:
        variant = self._plan.kernels[name].variants[self._arch]
        code = self._artifact.read(variant.cubin)
        module = self._own(cuda.call(driver.cuModuleLoadData, code, doing=f"load kernel {name}"), "cuModuleUnload")
        function = cuda.call(driver.cuModuleGetFunction, module, variant.symbol.encode(), doing=f"find kernel {name}")
        if variant.shared > _SHARED_BY_DEFAULT:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            cuda.call(driver.cuFuncSetAttribute, function, attribute, variant.shared, doing=f"prepare kernel {name}")
        return function

    def _upload(self, weights: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Where each weight lies; all are in one piece of memory."""
        offsets, size = {}, 0
        for name, array in weights.items():
            offsets[name] = size
            size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        if not weights:
            return {}
        memory = cuda.take(self._gpu, size, "the weights")
        self._handles.append(memory)
        for name, array in weights.items():
            data = np.ascontiguousarray(array)
            if data.nbytes:
                cuda.call(
                    driver.cuMemcpyHtoD, memory.value + offsets[name], data.ctypes.data, data.nbytes,
                    doing="copy the weights",
                )  # fmt: skip
        return {name: memory.value + offset for name, offset in offsets.items()}

    # running ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _running(self, bindings: Mapping[str, int], stream: int | None = None) -> Any:
        """The session for some sizes, for one run on a stream, after all runs before it."""
        with self._lock:
            if not self._open:
                raise BackendError("the model was closed", where=str(self._artifact.path))
            self._gpu.use()
            stream = self._stream if stream is None else stream
            while self._in_use and self._in_use[0][0].reached():
                self._in_use.popleft()
            session, room = self._session(bindings)
            if stream != self._last:
                self._done.wait(stream)
            self._last = stream
            yield session, room

    def _session(self, bindings: Mapping[str, int]) -> tuple[Session, Space]:
        """The launches for some sizes; recorded where they were run before."""
        key = tuple(sorted(bindings.items()))
        found = self._sessions.pop(key, None)
        if found is None:
            room = space(self._plan, bindings)
            base = self._memory(room, words(bindings))
            addresses = self._ends(base, room)
            for buffer, spec in enumerate(self._plan.buffers):
                if spec.role == "weight":
                    addresses[buffer] = self._weights[spec.weight or ""]
                elif buffer in room.offsets:
                    addresses[buffer] = base + room.offsets[buffer]
            made = tuple(launches(self._plan, self._arch, self._functions, bindings))
            found = Session(self._gpu, made, addresses), room
            while len(self._sessions) >= KEPT:
                _, (oldest, _) = self._sessions.popitem(last=False)
                self._done.synchronize()
                oldest.close()
        elif self._graphs:
            found[0].record()
        self._sessions[key] = found
        return found

    def _memory(self, room: Space, sizes: str = "") -> int:
        """The address of the memory that all sizes share. When it grows, all that points into it is forgotten."""
        if self._block is None or room.size > self._room["block"]:
            self._forget()
            if self._block is not None:
                self._done.synchronize()
                self._block.close()
                self._block = None
            self._block = cuda.take(self._gpu, room.size, f"tensors at {sizes} ({room})")
            self._room["block"] = room.size
        return int(self._block.value)

    def _stage(self, room: Space) -> int:
        """The address of pinned memory on the host for inputs and outputs."""
        size = room.inputs + room.outputs
        if self._pinned is None or size > self._room["pinned"]:
            if self._pinned is not None:
                self._done.synchronize()
                self._pinned.close()
                self._pinned = None
            address = cuda.call(
                driver.cuMemAllocHost, max(size, ALIGNMENT), doing=f"pin {size} bytes of memory for inputs and outputs"
            )
            self._pinned, self._room["pinned"] = cuda.Handle(self._gpu, int(address), "cuMemFreeHost"), size
        return int(self._pinned.value)

    def _ends(self, base: int, room: Space) -> dict[int, int]:
        """Where inputs and outputs are unless somebody brings memory of their own."""
        return {tensor.buffer: base + room.offsets[tensor.buffer] for tensor in self._plan.inputs + self._plan.outputs}

    def _feed(
        self,
        feeds: Mapping[str, np.ndarray | View],
        addresses: dict[int, int],
        base: int,
        stage: int,
        room: Space,
        stream: int,
    ) -> None:
        """Bring inputs to the GPU; those that are there already stay where they are."""
        host = [tensor for tensor in self._plan.inputs if not isinstance(feeds[tensor.name], View)]
        if host:
            self._done.synchronize()  # the run before may still be reading what is staged
        for tensor in self._plan.inputs:
            given, offset = feeds[tensor.name], room.offsets[tensor.buffer]
            if not given.nbytes:
                continue
            if isinstance(given, View):
                if given.address % _ALIGNED == 0:
                    addresses[tensor.buffer] = given.address
                    continue
                cuda.call(
                    driver.cuMemcpyDtoDAsync, base + offset, given.address, given.nbytes, stream, doing="move an input"
                )
            else:
                data, staged = np.ascontiguousarray(given), stage + offset - room.temporaries
                ctypes.memmove(staged, data.ctypes.data, data.nbytes)
                cuda.call(driver.cuMemcpyHtoDAsync, base + offset, staged, data.nbytes, stream, doing="copy in")

    def _check_apart(self, feeds: Mapping[str, np.ndarray | View], outputs: Mapping[str, View]) -> None:
        """Outputs must not lie on each other, nor on inputs, which may be read after an output is written."""
        pieces = [(f"output {name!r}", given.address, given.nbytes) for name, given in outputs.items()]
        for name, address, _ in pieces:
            if address % _ALIGNED:
                raise DataError(f"{name} does not begin at a multiple of {_ALIGNED} bytes, as kernels write it")
        for name, given in feeds.items():
            if isinstance(given, View):
                piece = (f"input {name!r}", given.address, given.nbytes)
                together = disjoint([*pieces, piece])
                if together is not None:
                    raise DataError(f"{together[0]} and {together[1]} share memory")
        if (together := disjoint(pieces)) is not None:
            raise DataError(f"{together[0]} and {together[1]} share memory")

    def _forget(self) -> None:
        for bound in self._bound:
            bound.valid = False
            bound.session.close()
        self._bound.clear()
        while self._sessions:
            _, (session, _) = self._sessions.popitem()
            session.close()

    def _shape(self, tensor: Tensor, bindings: Mapping[str, int]) -> Sequence[int]:
        return tuple(number(dim, bindings) for dim in tensor.shape)


class BoundRun:
    """A run whose arrays are settled: to be called, as often as one likes. Made by :meth:`CudaDevice.bind`."""

    def __init__(self, device: CudaDevice, session: Session, stream: int, waits: bool, owners: Any) -> None:
        self._device, self._owners = device, owners
        self.session, self.stream, self.waits, self.valid = session, stream, waits, True

    def __call__(self) -> None:
        """Run once."""
        self._device.replay(self)


def _runs_on(compiled: int, device: int) -> bool:
    return compiled == device if compiled >= 90 else compiled // 10 == device // 10 and compiled <= device
