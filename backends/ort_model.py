"""What ONNX Runtime is given to load: a path, or the graph's bytes with the big weights handed over as memory.

Serializing hundreds of megabytes of weights only for the other side to parse them again costs time and two copies,
and protobuf refuses more than 2 GB. So weights in memory are passed as ``OrtValue`` over the very same memory
(``SessionOptions.add_external_initializers``), and weights in files stay there: ONNX Runtime maps them itself.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import google.protobuf.message
import onnx
import onnx_ir
import onnxruntime

from optc.backends.ort_values import is_native, to_ort_value
from optc.ir.errors import BackendError
from optc.ir.functions import runnable
from optc.ir.mapped import file_range, is_external
from optc.ir.saving import swapped

ModelLike = str | os.PathLike[str] | bytes | onnx.ModelProto | onnx_ir.Model

#: Initializers of at least this many bytes are handed over as memory.
SHARE_BYTES = 64 * 1024
#: ModelProtos up to this size are simply serialized.
INLINE_BYTES = 512 * 2**20
#: Data that is mapped from a file begins at a multiple of this.
_ALIGNED = 64
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"


@dataclass
class Loadable:
    """The arguments of an ``InferenceSession``, and what must outlive it."""

    source: str | bytes
    where: str | None = None
    config: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    values: list[onnxruntime.OrtValue] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)


def loadable(model: ModelLike, base_dir: str | os.PathLike[str] | None = None) -> Loadable:
    """Prepare ``model`` for an ``InferenceSession``.

    Args:
        model: A path, the bytes of a ModelProto, a ModelProto or an ``onnx_ir.Model`` (unchanged after the call).
        base_dir: The folder to which external data refers, for bytes and ModelProtos.

    Raises:
        BackendError: The model cannot be serialized.
    """
    if isinstance(model, (str, os.PathLike)):
        return Loadable(os.fspath(model), os.fspath(model))
    config = {_FOLDER_KEY: os.path.abspath(base_dir)} if base_dir is not None else {}
    if isinstance(model, bytes):
        return Loadable(model, config=config)
    if isinstance(model, onnx.ModelProto):
        data = _serialize(model)
        if data is not None:
            return Loadable(data, config=config)
        model = onnx_ir.from_proto(model)
        if base_dir is not None:
            onnx_ir.external_data.set_base_dir(model.graph, os.path.abspath(base_dir))
    return _share(runnable(model))


def _serialize(proto: onnx.ModelProto) -> bytes | None:
    """The proto's bytes, or None when it is too big to be worth serializing, or to be serialized at all."""
    try:
        return proto.SerializeToString() if proto.ByteSize() <= INLINE_BYTES else None
    except (ValueError, google.protobuf.message.EncodeError):
        return None


def _share(model: onnx_ir.Model) -> Loadable:
    """Serialize the graph alone; weights in memory are shared, weights in files are referred to."""
    places = [_place(value.const_value) for graph in model.graphs() for value in graph.initializers.values()]
    folders = Counter(place[0] for place in places if place is not None)
    folder = folders.most_common(1)[0][0] if folders else None
    result = Loadable(b"", config={_FOLDER_KEY: folder} if folder is not None else {})
    light: dict[onnx_ir.Value, onnx_ir.TensorProtocol] = {}
    unused = set()
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                continue
            if graph is model.graph and _is_unused(value):
                unused.add(name)  # ONNX Runtime drops them first, and then misses them
                light[value] = _placeholder(tensor, name)
                continue
            place = _place(tensor)
            if place is not None and place[0] == folder:
                if not isinstance(tensor, onnx_ir.ExternalTensor):
                    light[value] = _reference(tensor, name, *place)
                continue
            # ONNX Runtime takes shared memory for the main graph's initializers only.
            if graph is model.graph and is_native(tensor.dtype) and _is_big(tensor):
                array = tensor.numpy()
                result.names.append(name)
                result.values.append(to_ort_value(array, tensor.dtype))
                result.buffers.append(array)
                light[value] = _placeholder(tensor, name)
            elif isinstance(tensor, onnx_ir.ExternalTensor) or file_range(tensor) is not None:
                light[value] = onnx_ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    with swapped(light):
        result.source = _serialize_light(model, unused)
    return result


def _place(tensor: onnx_ir.TensorProtocol | None) -> tuple[str, str, int] | None:
    """Folder, file name and offset of data that ONNX Runtime can map from its file; None for other tensors.

    Memory that is handed over is copied when a session opens; a file of weights is not. What lies in a model file
    itself begins anywhere, which its kernels do not take.
    """
    if isinstance(tensor, onnx_ir.ExternalTensor):
        return os.path.abspath(tensor.base_dir), os.fspath(tensor.location), tensor.offset or 0
    found = file_range(tensor) if is_external(tensor) else None
    if tensor is None or found is None or found[1] % _ALIGNED or not _is_big(tensor):
        return None
    folder, name = os.path.split(os.path.abspath(found[0]))
    return folder, name, found[1]


def _reference(
    tensor: onnx_ir.TensorProtocol, name: str, folder: str, file: str, offset: int
) -> onnx_ir.TensorProtocol:
    shape = onnx_ir.Shape(tensor.shape.numpy())
    return onnx_ir.ExternalTensor(file, offset, tensor.nbytes, tensor.dtype, shape=shape, name=name, base_dir=folder)


def _is_unused(value: onnx_ir.Value) -> bool:
    return not (value.uses() or value.is_graph_output() or value.is_graph_input())


def _is_big(tensor: onnx_ir.TensorProtocol) -> bool:
    return tensor.dtype != onnx_ir.DataType.STRING and tensor.nbytes >= SHARE_BYTES


def _placeholder(tensor: onnx_ir.TensorProtocol, name: str) -> onnx_ir.ExternalTensor:
    shape = onnx_ir.Shape(tensor.shape.numpy())
    return onnx_ir.ExternalTensor("shared memory", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)


def _serialize_light(model: onnx_ir.Model, unused: Collection[str]) -> bytes:
    try:
        proto = onnx_ir.to_proto(model)
        if unused:
            used = [tensor for tensor in proto.graph.initializer if tensor.name not in unused]
            del proto.graph.initializer[:]
            proto.graph.initializer.extend(used)
        return proto.SerializeToString()
    except (ValueError, TypeError, google.protobuf.message.EncodeError) as error:
        raise BackendError(
            f"the model cannot be serialized for onnxruntime: {error}",
            hint="save it to a file and open the file",
        ) from error
