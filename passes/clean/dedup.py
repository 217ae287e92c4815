"""Storing equal weights once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir

from optc.ir.mapped import file_range
from optc.passes.base import Pass, PassContext

#: Larger tensors are told apart by samples first; only those that look alike are read as a whole.
_SAMPLED = 1 << 16
_SAMPLE, _CHUNK = 4096, 1 << 22

_Key = tuple[object, ...]


@dataclass(frozen=True)
class Deduplicate(Pass):
    """Store equal initializers once.

    Equal means the same dtype, shape and bytes. Only tensors of the same dtype and shape are looked at, and external
    data is compared in pieces, so that memory does not grow with the model.
    """

    name = "dedup"

    def run(self, ctx: PassContext) -> None:
        for alike in _groups(ctx.model).values():
            distinct: list[onnx_ir.Value] = []
            for value in alike:
                if not value.is_initializer():
                    continue  # it was merged as a member of another group
                same = next((kept for kept in distinct if equal(kept.const_value, value.const_value)), None)
                if same is None:
                    distinct.append(value)
                elif not value.is_graph_output():
                    ctx.rewriter.replace(value, same)
                    ctx.rewriter.erase_initializer(value)
                    ctx.hit("initializer")


def _groups(model: onnx_ir.Model) -> dict[_Key, list[onnx_ir.Value]]:
    """Initializers that may be equal. Those of the main graph come first, for they can serve all sub-graphs; those of
    a sub-graph are only compared with these and with each other."""
    top: dict[_Key, list[onnx_ir.Value]] = {}
    for value in model.graph.initializers.values():
        if _plain(value):
            top.setdefault(_signature(value), []).append(value)
    groups: dict[_Key, list[onnx_ir.Value]] = {key: list(values) for key, values in top.items()}
    for graph in model.graph.subgraphs():
        for value in graph.initializers.values():
            if _plain(value):
                key = _signature(value)
                groups.setdefault((graph, *key), list(top.get(key, ()))).append(value)
    # A first look at the bytes splits what merely has one shape, such as the weights of equal layers.
    found: dict[_Key, list[onnx_ir.Value]] = {}
    prints: dict[onnx_ir.Value, bytes] = {}
    for key, values in groups.items():
        if len(values) > 1:
            for value in values:
                if value not in prints:
                    prints[value] = fingerprint(value.const_value)
                found.setdefault((*key, prints[value]), []).append(value)
    return {key: values for key, values in found.items() if len(values) > 1}


def _plain(value: onnx_ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input() and not value.meta


def _signature(value: onnx_ir.Value) -> _Key:
    tensor = value.const_value
    assert tensor is not None
    return tensor.dtype, tuple(tensor.shape.numpy())


def fingerprint(tensor: onnx_ir.TensorProtocol | None) -> bytes:
    """A digest of the tensor's bytes: of all of them if they are few, else of samples."""
    assert tensor is not None
    digest = hashlib.blake2b(digest_size=16)
    if tensor.dtype == onnx_ir.DataType.STRING:
        for text in tensor.numpy().reshape(-1):
            digest.update(repr(text).encode())
        return digest.digest()
    size = tensor.nbytes
    if size <= _SAMPLED:
        digest.update(tensor.tobytes())
        return digest.digest()
    with _Reader(tensor) as reader:
        for offset in (0, size // 3, size // 2, size - _SAMPLE):
            digest.update(reader.read(offset, _SAMPLE))
    return digest.digest()


def equal(a: onnx_ir.TensorProtocol | None, b: onnx_ir.TensorProtocol | None) -> bool:
    """Whether two tensors of one dtype and shape hold the same bytes."""
    assert a is not None and b is not None
    if a is b or (_place(a) is not None and _place(a) == _place(b)):
        return True
    if a.dtype == onnx_ir.DataType.STRING:
        return a.numpy().tolist() == b.numpy().tolist()
    with _Reader(a) as left, _Reader(b) as right:
        return all(x == y for x, y in zip(left.chunks(), right.chunks(), strict=True))


def _place(tensor: onnx_ir.TensorProtocol) -> tuple[str, int] | None:
    """Where the bytes of a tensor in a file lie."""
    place = file_range(tensor)
    return place[:2] if place is not None else None


class _Reader:
    """Reads a tensor's bytes in pieces; an external file is neither mapped nor left open."""

    def __init__(self, tensor: onnx_ir.TensorProtocol) -> None:
        self._size = tensor.nbytes
        self._start = 0
        self._file = None
        self._bytes = b""
        place = file_range(tensor)
        if place is not None:
            path, self._start, _ = place
            self._file = open(path, "rb")  # noqa: SIM115, closed by __exit__
        else:
            self._bytes = tensor.tobytes()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, offset: int, count: int) -> bytes:
        count = min(count, self._size - offset)
        if self._file is None:
            return self._bytes[offset : offset + count]
        self._file.seek(self._start + offset)
        return self._file.read(count)

    def chunks(self) -> Iterator[bytes]:
        for offset in range(0, self._size, _CHUNK):
            yield self.read(offset, _CHUNK)
