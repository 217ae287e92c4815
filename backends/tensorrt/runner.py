"""Running engines: NumPy arrays in and out, TensorRT and the CUDA driver below, no torch. Not run on a GPU yet.

Every set of input shapes has a session of its own: an execution context, memory, and after its first run a CUDA graph,
so that a later run is one launch. A few sessions are kept; older ones hand their context on.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from optc.backends import cuda
from optc.backends.base import ValueSpec, check_names
from optc.backends.tensorrt.engine_file import EngineInfo, read_info
from optc.backends.tensorrt.feeds import Profile, Shape, anonymous, checked, choose_profile, same_dims
from optc.backends.tensorrt.inspector import Layer, layers
from optc.backends.tensorrt.library import library, part
from optc.backends.tensorrt.monitor import Log
from optc.ir.errors import BackendError

#: TensorRT's element types that have one element to a byte or more -> ONNX's.
DTYPES: Mapping[str, onnx_ir.DataType] = {
    "FLOAT": onnx_ir.DataType.FLOAT,
    "HALF": onnx_ir.DataType.FLOAT16,
    "BF16": onnx_ir.DataType.BFLOAT16,
    "FP8": onnx_ir.DataType.FLOAT8E4M3FN,
    "INT8": onnx_ir.DataType.INT8,
    "UINT8": onnx_ir.DataType.UINT8,
    "INT32": onnx_ir.DataType.INT32,
    "INT64": onnx_ir.DataType.INT64,
    "BOOL": onnx_ir.DataType.BOOL,
}
#: How many sets of shapes are kept ready.
_KEPT = 4
_AGAIN = "build it again on this machine, from its bundle: optc build model.trt"


@dataclass(frozen=True)
class _Port:
    """An input or output as the engine has it: -1 stands for a dim of any size, ``on_host`` for memory of the CPU."""

    name: str
    dtype: onnx_ir.DataType
    shape: Shape
    is_input: bool
    on_host: bool


@dataclass(eq=False)
class _Session:
    """What runs one set of shapes."""

    context: Any
    addresses: dict[str, int] = field(default_factory=dict)
    host: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    allocators: dict[str, Any] = field(default_factory=dict)
    graph: Any = None
    tried: bool = False


class EngineRunner:
    """An engine, opened on the first NVIDIA GPU; a :class:`~optc.backends.base.Runner`.

    Args:
        path: The engine's file.
        cuda_graphs: Whether to replay runs as CUDA graphs, where the engine allows it.
        weight_budget: Bytes of weights to keep on the GPU, for an engine built with weight streaming; the others stay
            in host memory. None leaves the choice to TensorRT.

    Raises:
        BackendError: TensorRT or cuda-bindings is missing, there is no GPU, or the engine is damaged or was built for
            another GPU or version.
    """

    def __init__(self, path: Path, *, cuda_graphs: bool = True, weight_budget: int | None = None) -> None:
        info = read_info(path)
        self._path, self._trt, self._log = path, library(), Log()
        self._device = cuda.open_device()
        if info is not None:
            info.check(path, self._trt.__version__, self._device.name, self._device.capability)
        self._api = cuda.driver()
        self._logger = self._log.logger(self._trt)  # must outlive the runtime
        self._runtime, self._engine = self._load(info)
        if weight_budget is not None:
            part(self._trt, "ICudaEngine.weight_streaming_budget_v2", "a budget for weights")
            self._engine.weight_streaming_budget_v2 = weight_budget
        self._layers = info.layers if info is not None else None
        self._ports = {port.name: port for port in self._read_ports()}
        self._inputs, self._outputs = self._specs(info)
        self._profiles = tuple(self._read_profiles())
        self._graphs = cuda_graphs and all(not port.on_host for port in self._ports.values())
        self._stream = cuda.call(self._api.cuStreamCreate, 1, doing="make a stream")  # 1: independent of the default
        self._sessions: dict[tuple[Shape, ...], _Session] = {}

    @property
    def inputs(self) -> tuple[ValueSpec, ...]:
        """The inputs to feed."""
        return self._inputs

    @property
    def outputs(self) -> tuple[ValueSpec, ...]:
        """The outputs, in order."""
        return self._outputs

    def layers(self) -> tuple[Layer, ...]:
        """What the engine is made of; with nodes of the original model where optc built it."""
        return self._layers if self._layers is not None else layers(self._trt, self._engine, {})

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; see :meth:`optc.backends.base.Runner.run`."""
        where = str(self._path)
        check_names(feeds, self._inputs, where)
        arrays = {spec.name: checked(spec, np.asarray(feeds[spec.name]), where) for spec in self._inputs}
        shapes = {name: array.shape for name, array in arrays.items()}
        same_dims(self._inputs, shapes, where)
        profile = choose_profile(self._inputs, self._profiles, shapes, where)
        self._device.use()
        session = self._session(shapes, profile)
        for name, array in arrays.items():
            if self._ports[name].on_host:
                session.host[name][...] = array
            elif array.nbytes:
                self._call("cuMemcpyHtoDAsync", session.addresses[name], array.ctypes.data, array.nbytes, self._stream)
        self._launch(session)
        results = {spec.name: self._fetch(session, spec.name) for spec in self._outputs}
        self._call("cuStreamSynchronize", self._stream)
        if self._graphs and not session.tried and not session.allocators:
            self._capture(session)
        return results

    def close(self) -> None:
        """Give back the GPU's memory; the runner cannot be used afterwards."""
        self._device.use()
        while self._sessions:
            self._release(self._sessions.pop(next(iter(self._sessions))))
        self._call("cuStreamDestroy", self._stream)

    # opening ------------------------------------------------------------------------------------------------------

    def _load(self, info: EngineInfo | None) -> tuple[Any, Any]:
        try:
            runtime = self._trt.Runtime(self._logger)
        except TypeError as error:  # "factory function returned nullptr"
            raise BackendError(
                f"TensorRT cannot start on this machine:{self._log.told() or ' it found no GPU that it can use'}",
                hint="nvidia-smi shows whether the GPU is there, and which CUDA its driver knows",
            ) from error
        if info is not None and info.version_compatible:
            runtime.engine_host_code_allowed = True  # such engines bring a part of the TensorRT that built them
        self._trt.init_libnvinfer_plugins(self._logger, "")  # an engine may hold plugins of TensorRT's own
        with self._path.open("rb") as file:
            if not self._path.stat().st_size:
                raise BackendError("the engine is empty", where=str(self._path), hint=_AGAIN)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
                engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            unknown = "" if info is not None else " (it has no .json beside it that says what it was built for)"
            raise BackendError(
                f"TensorRT {self._trt.__version__} cannot load the engine{unknown}:{self._log.told()}",
                where=str(self._path),
                hint=_AGAIN,
            )
        return runtime, engine

    def _read_ports(self) -> Iterator[_Port]:
        engine, trt = self._engine, self._trt
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(name).name
            if kind not in DTYPES:
                raise BackendError(f"{name!r} is of type {kind}, which NumPy has none for", where=str(self._path))
            yield _Port(
                name,
                DTYPES[kind],
                tuple(engine.get_tensor_shape(name)),
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                engine.get_tensor_location(name) == trt.TensorLocation.HOST,
            )

    def _specs(self, info: EngineInfo | None) -> tuple[tuple[ValueSpec, ...], tuple[ValueSpec, ...]]:
        """The interface: as the model has it, with names of dims, or else as the engine has it."""
        ports = self._ports.values()
        if info is None:
            specs = {port.name: ValueSpec(port.name, port.dtype, anonymous(port.shape)) for port in ports}
        else:
            specs = {tensor.name: tensor.spec for tensor in (*info.inputs, *info.outputs) if tensor.name in self._ports}
            for port in ports:
                spec = specs.get(port.name)
                if spec is None or spec.dtype != port.dtype or len(spec.shape or ()) != len(port.shape):
                    raise BackendError(
                        f"the engine has a tensor {port.name!r} that is not the one that was written down",
                        where=str(self._path),
                        hint=_AGAIN,
                    )
        inputs = tuple(specs[port.name] for port in ports if port.is_input)
        return inputs, tuple(specs[port.name] for port in ports if not port.is_input)

    def _read_profiles(self) -> Iterator[Profile]:
        dynamic = [port.name for port in self._ports.values() if port.is_input and -1 in port.shape]
        for index in range(self._engine.num_optimization_profiles):
            ranges = {name: self._engine.get_tensor_profile_shape(name, index) for name in dynamic}
            yield {name: (tuple(least), tuple(most)) for name, (least, _, most) in ranges.items()}

    # running ------------------------------------------------------------------------------------------------------

    def _session(self, shapes: Mapping[str, Shape], profile: int) -> _Session:
        key = tuple(shapes.values())
        session = self._sessions.pop(key, None)
        if session is None:
            spare = self._sessions.pop(next(iter(self._sessions))) if len(self._sessions) >= _KEPT else None
            context = self._release(spare) if spare is not None else self._engine.create_execution_context()
            if context is None:
                raise self._failed("prepare a run")
            session = _Session(context)
            try:
                self._prepare(session, shapes, profile)
            except BackendError:
                self._release(session)
                raise
        self._sessions[key] = session  # the last one used is the last one given up
        return session

    def _prepare(self, session: _Session, shapes: Mapping[str, Shape], profile: int) -> None:
        """Set shapes and addresses of all tensors."""
        context = session.context
        if context.active_optimization_profile != profile:
            if not context.set_optimization_profile_async(profile, int(self._stream)):
                raise self._failed(f"use profile {profile}")
            self._call("cuStreamSynchronize", self._stream)
        for name, shape in shapes.items():
            if -1 in self._ports[name].shape and not context.set_input_shape(name, shape):
                raise self._failed(f"use shape {list(shape)} for input {name!r}")
            self._place(session, self._ports[name], shape)
        missing = context.infer_shapes()
        if missing:
            raise self._failed(f"find the shapes: {', '.join(missing)} is not given")
        for port in self._ports.values():
            if port.is_input:
                continue
            shape = tuple(context.get_tensor_shape(port.name))
            if -1 in shape:
                session.allocators[port.name] = allocator = _allocator(self._trt)
                done = context.set_output_allocator(port.name, allocator)
            else:
                done = self._place(session, port, shape)
            if not done:
                raise self._failed(f"place output {port.name!r}")

    def _place(self, session: _Session, port: _Port, shape: Shape) -> bool:
        """Give a tensor its memory."""
        session.shapes[port.name] = shape
        kind = np.dtype(port.dtype.numpy())
        if port.on_host:
            session.host[port.name] = array = np.zeros(shape, kind)
            address = array.ctypes.data
        else:
            size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
            session.addresses[port.name] = address = cuda.allocate(size, repr(port.name))
        return bool(session.context.set_tensor_address(port.name, address))

    def _launch(self, session: _Session) -> None:
        if session.graph is not None:
            self._call("cuGraphLaunch", session.graph, self._stream)
        elif not session.context.execute_async_v3(int(self._stream)):
            raise self._failed("run the engine")

    def _fetch(self, session: _Session, name: str) -> np.ndarray:
        port, allocator = self._ports[name], session.allocators.get(name)
        if port.on_host:
            return session.host[name].copy()
        if allocator is None:
            address, shape = session.addresses[name], session.shapes[name]
        else:
            self._call("cuStreamSynchronize", self._stream)
            if allocator.shape is None:
                raise self._failed(f"find out the shape of {name!r}")
            address, shape = allocator.address, allocator.shape
        array = np.empty(shape, port.dtype.numpy())
        if array.nbytes:
            self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self._stream)
        return array

    def _capture(self, session: _Session) -> None:
        """Record a run as a graph. The first run must lie behind: TensorRT finishes its preparations in it."""
        session.tried = True
        api = self._api
        mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        try:
            self._call("cuStreamBeginCapture", self._stream, mode)
            try:
                done = session.context.execute_async_v3(int(self._stream))
            finally:
                graph = self._call("cuStreamEndCapture", self._stream)
            if done:
                session.graph = self._call("cuGraphInstantiate", graph, 0)
            self._call("cuGraphDestroy", graph)
        except BackendError:  # an engine may hold what cannot be recorded; it runs as before
            session.graph = None

    def _release(self, session: _Session) -> Any:
        """Give back the memory of a session; its context, for another one."""
        if session.graph is not None:
            self._call("cuGraphExecDestroy", session.graph)
        for address in (*session.addresses.values(), *(a.address for a in session.allocators.values())):
            if address:
                self._call("cuMemFree", address)
        for name in session.allocators:
            session.context.set_output_allocator(name, None)
        return session.context

    def _call(self, name: str, *arguments: Any) -> Any:
        return cuda.call(getattr(self._api, name), *arguments, doing=f"run the engine ({name})")

    def _failed(self, doing: str) -> BackendError:
        return BackendError(f"TensorRT could not {doing}:{self._log.told()}", where=str(self._path))


def _allocator(trt: Any) -> Any:
    """Memory for an output whose shape is known only when the run is over."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.address, self.size = 0, 0
            self.shape: Shape | None = None

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            if size > self.size or not self.address:
                try:  # nothing may be raised through TensorRT; 0 tells it that there is no memory
                    if self.address:
                        cuda.call(cuda.driver().cuMemFree, self.address, doing="give back memory")
                    self.address, self.size = 0, 0
                    self.address, self.size = cuda.allocate(size, repr(tensor_name)), size
                except BackendError:
                    return 0
            return self.address

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            return self.reallocate_output_async(tensor_name, memory, size, alignment, 0)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator()
