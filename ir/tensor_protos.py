"""Tensors as ONNX files hold them: whether what is said of one agrees with the data that it has."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx
import onnx_ir
from onnx import TensorProto, helper

#: Where the data may stand besides ``raw_data``.
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
#: The most dims that a NumPy array can have.
_MAX_RANK = 64


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All dense tensors of a model: initializers and attributes, those of sub-graphs and functions too."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: object) -> Iterator[onnx.TensorProto]:
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.HasField("t") or attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
            for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _of_graph(graph)


def problem(tensor: onnx.TensorProto) -> str | None:
    """What is wrong with a tensor: its type, its dims, the amount of its data, or where that lies; None if nothing."""
    kind = tensor.data_type
    if kind == TensorProto.UNDEFINED or kind not in TensorProto.DataType.values():
        return "has no element type"
    if any(dim < 0 for dim in tensor.dims):
        return f"has dims {list(tensor.dims)}"
    if len(tensor.dims) > _MAX_RANK:
        return f"has {len(tensor.dims)} dims, more than the {_MAX_RANK} that can be worked with"
    if tensor.data_location == TensorProto.EXTERNAL:
        if kind == TensorProto.STRING:
            return "is of texts, which cannot lie in another file"
        texts = [text for entry in tensor.external_data for text in (entry.key, entry.value)]
        if any(isinstance(text, bytes) for text in texts):
            return "refers to a place that is not UTF-8"
        numbers = [entry for entry in tensor.external_data if entry.key in ("offset", "length")]
        odd = next((entry for entry in numbers if not entry.value.isascii() or not entry.value.isdigit()), None)
        return None if odd is None else f"has its data at {odd.key} {odd.value!r}, which is no number from 0 on"
    field = "string_data" if kind == TensorProto.STRING else helper.tensor_dtype_to_field(kind)
    if any(getattr(tensor, other) for other in _FIELDS if other != field):
        return f"holds {next(other for other in _FIELDS if other != field and getattr(tensor, other))}, not {field}"
    count = math.prod(tensor.dims)
    if kind == TensorProto.STRING:
        return None if len(tensor.string_data) == count else f"holds {len(tensor.string_data)} texts, not {count}"
    bits = onnx_ir.DataType(kind).bitwidth
    if tensor.HasField("raw_data"):
        need = -(-count * bits // 8)
        there = len(tensor.raw_data)
        return None if there == need else f"holds {there} bytes; its type and dims need {need}"
    there = len(getattr(tensor, field))
    if bits < 8:
        need = -(-count * bits // 8)
    else:
        need = count * (2 if kind in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1)
    return None if there == need else f"holds {there} numbers; its type and dims need {need}"
