"""Storing equal weights once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir

from optc.ir.mapped import file_range
from optc.passes.base import Pass, PassContext

#: Larger tensors are told apart by samples first; only those that look alike are read as a whole.
_SAMPLED = 1 << 16
_SAMPLES, _SAMPLE, _ALIGNMENT = 6, 32, 16
_CHUNK = 1 << 22

_Key = tuple[object, ...]


@dataclass(frozen=True)
class Deduplicate(Pass):
    """Store equal initializers once.

    Equal means the same dtype, shape and bytes. Only tensors of the same dtype and shape are looked at, and external
    data is compared in pieces, so that memory does not grow with the model.
    """

    name = "dedup"
    restructures = False

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
    with _reader(tensor) as read:
        if size <= _SAMPLED:
            digest.update(read(0, size))
        else:
            for place in range(_SAMPLES):
                offset = (size - _SAMPLE) * place // (_SAMPLES - 1)
                digest.update(read(offset - offset % _ALIGNMENT, _SAMPLE))
    return digest.digest()


def equal(a: onnx_ir.TensorProtocol | None, b: onnx_ir.TensorProtocol | None) -> bool:
    """Whether two tensors of one dtype and shape hold the same bytes."""
    assert a is not None and b is not None
    if a is b or (file_range(a) is not None and file_range(a) == file_range(b)):
        return True
    if a.dtype == onnx_ir.DataType.STRING:
        return a.numpy().tolist() == b.numpy().tolist()
    with _reader(a) as left, _reader(b) as right:
        return all(left(offset, _CHUNK) == right(offset, _CHUNK) for offset in range(0, a.nbytes, _CHUNK))


@contextlib.contextmanager
def _reader(tensor: onnx_ir.TensorProtocol) -> Iterator[Callable[[int, int], bytes]]:
    """Reads so many bytes of a tensor from an offset on, which is a multiple of an element's size.

    What lies in a file is read from there rather than mapped, and what is only a view of a weight is not copied as a
    whole.
    """
    size, place = tensor.nbytes, file_range(tensor)
    if place is not None:
        with open(place[0], "rb") as file:

            def from_file(offset: int, count: int) -> bytes:
                file.seek(place[1] + offset)
                return file.read(min(count, size - offset))

            yield from_file
    elif tensor.dtype.bitwidth % 8 == 0:
        array = tensor.numpy()
        flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
        yield lambda offset, count: flat[offset // array.itemsize : (offset + count) // array.itemsize].tobytes()
    else:
        packed = tensor.tobytes()
        yield lambda offset, count: packed[offset : offset + count]
