"""Saving: the one way by which a model leaves optc.

Weights are streamed into the file one by one; data that lies in another file is copied by the kernel without passing
through this process, so that neither time nor memory depends on reading it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import BinaryIO

import google.protobuf.message
import onnx
import onnx_ir
from onnx_ir import serde

from optc.ir.errors import OutputError
from optc.ir.mapped import file_range, is_external, release
from optc.ir.model import DECLARED_OUTPUTS
from optc.ir.wire import encode_varint
from optc.ir.writing import replacing

#: Tensors of at least this many bytes are streamed; smaller ones travel inside the serialized graph.
STREAM_BYTES = 1024
#: Protobuf's limit on one message, less room for the graph itself.
INLINE_LIMIT = 2**31 - 2**24
#: Offsets in the external file are multiples of this, so that runtimes can map them (ONNX external data, IR.md).
ALIGNMENT = 4096

# Field tags of onnx.proto: (field number << 3) | 2 for length-delimited fields.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7 << 3 | 2, 5 << 3 | 2, 9 << 3 | 2


def to_proto(model: onnx_ir.Model) -> onnx.ModelProto:
    """The model as one self-contained ``onnx.ModelProto``: external data is read into it.

    Beyond 2 GB such a proto lives in memory but cannot be serialized in one piece; save it with
    ``onnx.save(proto, path, save_as_external_data=True)``, or use :func:`save` and never hold it at all.
    """
    with swapped(_read_references(model)):
        return _serialize(model)


def save(model: onnx_ir.Model, path: str | os.PathLike[str], *, external: bool | None = None) -> list[Path]:
    """Write the model to ``path``, whole or not at all.

    Args:
        model: The model; it is unchanged after the call.
        path: The ``.onnx`` file to write. It and its data file may be those the model was loaded from.
        external: Whether weights go to ``<path>.data`` beside it. None decides: they do when the model's weights
            already lay outside, or would not fit into one protobuf message. Small ones never do.

    Returns:
        The files written, the model first.

    Raises:
        OutputError: The folder is missing or cannot be written to, the disk is full, or the weights are too large for
            one file; what was there before is still there then.
    """
    path = Path(path)
    total = sum(_size(_contents(value)) for value in _initializers(model))
    if external is None:
        external = total > INLINE_LIMIT or any(is_external(value.const_value) for value in _initializers(model))
    elif not external and total > INLINE_LIMIT:
        raise OutputError(
            f"weights of {total} bytes do not fit into one ONNX file", where=str(path), hint="let them lie beside it"
        )
    external = external and bool(_streamable(model))
    files = [path, path.with_name(path.name + ".data")] if external else [path]
    try:
        with replacing(*files) as temporary:
            if external:
                _write_external(model, temporary[0], temporary[1], files[1].name)
            else:
                _write_inline(model, temporary[0])
    except (ValueError, google.protobuf.message.EncodeError) as error:
        raise OutputError(f"the model cannot be written as ONNX: {error}", where=str(path)) from error
    return files


def _serialize(model: onnx_ir.Model) -> onnx.ModelProto:
    proto = serde.serialize_model(model)
    declared = [onnx.ValueInfoProto.FromString(text) for text in model.graph.meta.get(DECLARED_OUTPUTS, ())]
    if [value.name for value in declared] == [value.name for value in proto.graph.output] and declared:
        del proto.graph.output[:]
        proto.graph.output.extend(declared)
    return proto


def _initializers(model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value


def _contents(initializer: onnx_ir.Value) -> onnx_ir.TensorProtocol:
    tensor = initializer.const_value
    assert tensor is not None
    return tensor


def _size(tensor: onnx_ir.TensorProtocol) -> int:
    """About how many bytes a tensor takes in a file."""
    return tensor.size * 8 if tensor.dtype == onnx_ir.DataType.STRING else tensor.nbytes


def _read_references(
    model: onnx_ir.Model, but: Container[onnx_ir.Value] = ()
) -> dict[onnx_ir.Value, onnx_ir.TensorProtocol]:
    """Tensors with contents for the initializers that would be written as a reference to a file."""
    return {
        value: onnx_ir.Tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name)
        for value in _initializers(model)
        if isinstance(value.const_value, onnx_ir.ExternalTensor) and value not in but
    }


def _streamable(model: onnx_ir.Model) -> list[onnx_ir.Value]:
    return [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype != onnx_ir.DataType.STRING
        and _contents(value).nbytes >= STREAM_BYTES
    ]


@contextlib.contextmanager
def swapped(tensors: dict[onnx_ir.Value, onnx_ir.TensorProtocol]) -> Iterator[None]:
    """Serialize with other tensors in place of the initializers' own."""
    originals = {value: _contents(value) for value in tensors}
    try:
        for value, tensor in tensors.items():
            value.const_value = tensor
        yield
    finally:
        for value, tensor in originals.items():
            value.const_value = tensor


def _skeleton(model: onnx_ir.Model, layout: dict[onnx_ir.Value, tuple[int, int]], location: str) -> onnx.ModelProto:
    """The model's proto with the tensors of ``layout`` (offset, length) referring to ``location``."""
    tensors = _read_references(model, layout)
    for value, (offset, length) in layout.items():
        tensor, shape = _contents(value), onnx_ir.Shape(_contents(value).shape.numpy())
        tensors[value] = onnx_ir.ExternalTensor(
            location, offset, length, tensor.dtype, shape=shape, name=value.name or ""
        )
    with swapped(tensors):
        return _serialize(model)


def _write_external(model: onnx_ir.Model, model_file: Path, data_file: Path, location: str) -> None:
    layout, end = {}, 0
    for value in _streamable(model):
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        layout[value] = (offset, _contents(value).nbytes)
        end = offset + _contents(value).nbytes
    proto = _skeleton(model, layout, location)
    with open(data_file, "wb") as out:
        for value, (offset, _) in layout.items():
            out.write(b"\0" * (offset - out.tell()))
            _stream(_contents(value), out)
    model_file.write_bytes(proto.SerializeToString(deterministic=True))


def _write_inline(model: onnx_ir.Model, model_file: Path) -> None:
    streamed = _streamable(model)
    proto = _skeleton(model, {value: (0, _contents(value).nbytes) for value in streamed}, "-")
    headers = {}
    for tensor in list(proto.graph.initializer):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            headers[tensor.name] = tensor.SerializeToString(deterministic=True)
    small = [t for t in proto.graph.initializer if t.name not in headers]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(small)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")

    prefixes = []
    size = len(graph)
    for value in streamed:
        header, nbytes = headers[value.name], _contents(value).nbytes
        body = header + bytes([_TENSOR_RAW_DATA]) + encode_varint(nbytes)
        prefix = bytes([_GRAPH_INITIALIZER]) + encode_varint(len(body) + nbytes) + body
        prefixes.append(prefix)
        size += len(prefix) + nbytes
    with open(model_file, "wb") as out:
        out.write(proto.SerializeToString(deterministic=True))
        out.write(bytes([_MODEL_GRAPH]) + encode_varint(size))
        out.write(graph)
        for value, prefix in zip(streamed, prefixes, strict=True):
            out.write(prefix)
            _stream(_contents(value), out)


def _stream(tensor: onnx_ir.TensorProtocol, out: BinaryIO) -> None:
    place = file_range(tensor)
    if place is None:
        out.write(tensor.tobytes())
        release(tensor)
        return
    path, offset, left = place
    out.flush()
    with open(path, "rb") as source:
        while left:
            copied = _copy_range(source.fileno(), out.fileno(), offset, left)
            if copied == 0:
                raise OSError(errno.EIO, f"the data file {path} was cut off while it was being copied")
            offset, left = offset + copied, left - copied
    out.seek(0, os.SEEK_END)


def _copy_range(source: int, target: int, offset: int, count: int) -> int:
    """Copy bytes between files inside the kernel, as far as the platform can."""
    count = min(count, 2**30)
    if hasattr(os, "copy_file_range"):
        with contextlib.suppress(OSError):
            copied = os.copy_file_range(source, target, count, offset)
            if copied:
                return copied
    os.lseek(source, offset, os.SEEK_SET)
    return os.write(target, os.read(source, min(count, 2**24)))
