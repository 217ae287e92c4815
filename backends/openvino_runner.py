"""Running a model in OpenVINO on the CPU, with NumPy arrays in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from optc.backends.base import ValueSpec, check_names
from optc.backends.openvino_library import core, last_words, library
from optc.ir.errors import BackendError, DataError

#: What floats are computed in unless a model says that its error was measured in another type. OpenVINO itself takes
#: bfloat16 wherever the CPU has instructions for it, whatever the model's own type.
DEFAULT_PRECISION = "f32"
PRECISIONS = ("f32", "bf16", "f16")


@dataclass(frozen=True)
class Executed:
    """An operator that OpenVINO runs.

    Attributes:
        kind: What it is ("Convolution", "FullyConnected", "Eltwise", ...).
        precision: The type that it computes in.
        sources: Names of the operators of the graph that it stands for, with commas between them.
    """

    kind: str
    precision: str
    sources: str


#: Where the plugin tells of these.
_EXECUTED = ("layerType", "runtimePrecision", "originalLayersNames")


def _text(info: Any, key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""


class OpenVinoRunner:
    """A model compiled by OpenVINO; a :class:`~optc.backends.base.Runner`.

    Args:
        model: An ``openvino.Model``.
        inputs: The inputs by their names in ONNX; those that nothing reads need not be left in ``model``.
        outputs: The outputs.
        precision: What floats are computed in; integers and quantized parts are not touched by it.
        threads: Threads to use; None leaves the choice to OpenVINO.
        where: The file, for messages.

    Raises:
        BackendError: OpenVINO cannot compile it.
    """

    def __init__(
        self,
        model: Any,
        inputs: Sequence[ValueSpec],
        outputs: Sequence[ValueSpec],
        *,
        precision: str = DEFAULT_PRECISION,
        threads: int | None = None,
        where: str | None = None,
    ) -> None:
        # Weights that are not quantized on purpose must not be multiplied by activations rounded on the fly.
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        # Threads tied to cores: of several models in one process, those opened later run at half the speed.
        config["ENABLE_CPU_PINNING"] = False
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            compiled = core().compile_model(model, "CPU", config)
            self._request = compiled.create_infer_request()
        except Exception as error:
            raise BackendError(
                f"OpenVINO cannot compile the model: {last_words(error)}", where=where, hint="use --backend=onnxruntime"
            ) from error
        self._inputs, self._outputs, self._where = tuple(inputs), tuple(outputs), where
        self._read = {name for port in compiled.inputs for name in port.get_names()}
        self._ports = [compiled.output(spec.name) for spec in self._outputs]

    @property
    def inputs(self) -> tuple[ValueSpec, ...]:
        """The inputs to feed."""
        return self._inputs

    @property
    def outputs(self) -> tuple[ValueSpec, ...]:
        """The outputs, in order."""
        return self._outputs

    def executed(self) -> list[Executed]:
        """The operators as OpenVINO's CPU plugin runs them, after its own fusions, in order."""
        graph = self._request.get_compiled_model().get_runtime_model()
        told = [node.get_rt_info() for node in graph.get_ordered_ops()]
        return [Executed(*(_text(info, key) for key in _EXECUTED)) for info in told if "layerType" in info]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; see :meth:`optc.backends.base.Runner.run`."""
        check_names(feeds, self._inputs, self._where)
        tensors = {spec.name: self._tensor(spec, feeds[spec.name]) for spec in self._inputs if spec.name in self._read}
        try:
            self._request.infer(tensors, share_outputs=True)
        except Exception as error:
            raise BackendError(f"OpenVINO failed: {last_words(error)}", where=self._where) from error
        results = (self._request.get_tensor(port) for port in self._ports)
        return {spec.name: _array(tensor, spec) for spec, tensor in zip(self._outputs, results, strict=True)}

    def _tensor(self, spec: ValueSpec, given: np.ndarray) -> Any:
        array = np.ascontiguousarray(given).reshape(np.shape(given))  # the first makes a vector of a scalar
        wanted = np.dtype(spec.dtype.numpy()) if spec.dtype is not None else array.dtype
        if array.dtype != wanted or not _fits(array.shape, spec.shape):
            raise DataError(
                f"'{spec.name}' is {array.dtype}{list(array.shape)}, but the model takes {spec}", where=self._where
            )
        if spec.dtype == onnx_ir.DataType.BFLOAT16:
            return library().Tensor(array.view(np.uint16), array.shape, library().Type.bf16)
        return library().Tensor(array, shared_memory=array.flags.writeable)  # it refuses what it could not write to


def _fits(shape: tuple[int, ...], wanted: tuple[int | str | None, ...] | None) -> bool:
    if wanted is None:
        return True
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(not isinstance(dim, int) or dim < 0 or size == dim for size, dim in pairs)


def _array(tensor: Any, spec: ValueSpec) -> np.ndarray:
    """A copy: the tensor's memory is written to by the next run."""
    array = np.array(tensor.data)
    return array.view(spec.dtype.numpy()) if spec.dtype == onnx_ir.DataType.BFLOAT16 else array


def interface_text(inputs: Sequence[ValueSpec], outputs: Sequence[ValueSpec]) -> str:
    """An interface as JSON: OpenVINO's own files keep neither inputs that nothing reads nor the names of dims."""

    def told(specs: Sequence[ValueSpec]) -> list[dict[str, Any]]:
        return [{"name": s.name, "dtype": s.dtype.name if s.dtype else None, "shape": s.shape} for s in specs]

    return json.dumps({"inputs": told(inputs), "outputs": told(outputs)})


def parse_interface(text: str) -> tuple[list[ValueSpec], list[ValueSpec]]:
    """What :func:`interface_text` wrote.

    Raises:
        ValueError, KeyError: It is something else.
    """

    def read(entries: Sequence[Mapping[str, Any]]) -> list[ValueSpec]:
        return [
            ValueSpec(
                entry["name"],
                onnx_ir.DataType[entry["dtype"]] if entry["dtype"] else None,
                tuple(entry["shape"]) if entry["shape"] is not None else None,
            )
            for entry in entries
        ]

    found = json.loads(text)
    return read(found["inputs"]), read(found["outputs"])


def interface_of(model: Any) -> tuple[list[ValueSpec], list[ValueSpec]]:
    """The interface of an ``openvino.Model`` that does not tell it otherwise."""
    return [_port_spec(port, index) for index, port in enumerate(model.inputs)], [
        _port_spec(port, index) for index, port in enumerate(model.outputs)
    ]


def _port_spec(port: Any, index: int) -> ValueSpec:
    names = sorted(port.get_names())
    shape = port.get_partial_shape()
    dims = tuple(dim.get_length() if dim.is_static else None for dim in shape) if shape.rank.is_static else None
    kind = port.get_element_type()
    dtype = onnx_ir.DataType.BFLOAT16 if kind.get_type_name() == "bf16" else _dtype(kind)
    if not names:  # a port without a name is told by its place
        names = [f"port{index}"]
        port.get_tensor().set_names(set(names))
    return ValueSpec(names[0], dtype, dims)


def _dtype(kind: Any) -> onnx_ir.DataType | None:
    try:
        return onnx_ir.DataType.from_numpy(np.dtype(kind.to_dtype()))
    except Exception:  # OpenVINO has types without a counterpart in NumPy
        return None
