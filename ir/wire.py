"""Reading a model file without its weights.

An ONNX file is a protobuf message in which weights are byte strings. This module walks the message's outer layers, as
the protobuf encoding guide describes them, and leaves the byte strings of large initializers where they are: what is
parsed afterwards is a small message in which those tensors refer to their place in the file.
"""

from __future__ import annotations

import mmap
import secrets
from collections.abc import Iterator
from pathlib import Path

import onnx

#: Initializers of at least this many bytes stay in the file.
MIN_BYTES = 4096
#: The location that such a tensor names: not one that a file could name, so that none gets its own bytes as weights.
EMBEDDED = f"\0{secrets.token_hex()}"

# Field numbers of onnx.proto3 and wire types of the protobuf encoding.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
_TENSOR_EXTERNAL_FIELDS = {13, 14}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are not a protobuf message, or end too early."""


def read_skeleton(path: Path) -> onnx.ModelProto:
    """Parse a model file, its large initializers left in the file as external data at :data:`EMBEDDED`.

    Raises:
        WireError: The file is not a protobuf message, or is cut off.
        google.protobuf.message.DecodeError: It is not an ONNX model.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        proto = onnx.ModelProto()
        proto.ParseFromString(b"".join(_model(data)))
    return proto


def _model(data: mmap.mmap) -> Iterator[bytes]:
    """The message in pieces that, joined, are the message without large weights."""
    for number, start, begin, end in _fields(data, 0, len(data)):
        if number == _MODEL_GRAPH:
            graph = b"".join(_graph(data, begin, end))
            yield bytes([_MODEL_GRAPH << 3 | _BYTES]) + encode_varint(len(graph)) + graph
        else:
            yield data[start:end]


def _graph(data: mmap.mmap, begin: int, end: int) -> Iterator[bytes]:
    copied = begin  # everything before this has been yielded
    for number, start, inner, stop in _fields(data, begin, end):
        if number != _GRAPH_INITIALIZER or stop - inner < MIN_BYTES:
            continue
        tensor = _tensor(data, inner, stop)
        if tensor is not None:
            yield data[copied:start]
            yield bytes([_GRAPH_INITIALIZER << 3 | _BYTES]) + encode_varint(len(tensor)) + tensor
            copied = stop
    yield data[copied:end]


def _tensor(data: mmap.mmap, begin: int, end: int) -> bytes | None:
    """The tensor with its raw data replaced by a reference; None if it has none, or is external already."""
    kept, raw = [], None
    for number, start, inner, stop in _fields(data, begin, end):
        if number in _TENSOR_EXTERNAL_FIELDS or (number == _TENSOR_RAW_DATA and raw is not None):
            return None
        if number == _TENSOR_RAW_DATA:
            raw = inner, stop - inner
        else:
            kept.append(data[start:stop])
    if raw is None or raw[1] < MIN_BYTES:
        return None
    reference = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", EMBEDDED), ("offset", raw[0]), ("length", raw[1])):
        reference.external_data.add(key=key, value=str(value))
    return b"".join(kept) + reference.SerializeToString()


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: number, where the field begins, where its contents begin, where it ends."""
    position = begin
    while position < end:
        start = position
        key, position = _varint(data, position, end)
        number, kind = key >> 3, key & 7
        if kind == _BYTES:
            size, inner = _varint(data, position, end)
            position = inner + size
        elif kind == _VARINT:
            inner = position
            _, position = _varint(data, position, end)
        elif kind in (_FIXED64, _FIXED32):
            inner = position
            position += 8 if kind == _FIXED64 else 4
        else:
            raise WireError(f"wire type {kind} at byte {start}")
        if position > end or number == 0:
            raise WireError(f"a field at byte {start} is not well formed or ends too late")
        yield number, start, inner, position


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    number = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
    raise WireError(f"a number at byte {position} does not end")


def encode_varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
