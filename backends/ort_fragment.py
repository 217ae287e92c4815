"""A few nodes of a graph, made into a model of their own that ONNX Runtime can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx import helper

from optc.backends import ort_kernels
from optc.ir.verify import captured

#: Constants up to this many bytes travel inside the model: some kernels want shapes and axes as initializers.
EMBED_BYTES = 1024

_SCALAR_TYPES = {"value_float": np.float32, "value_int": np.int64, "value_string": object}
_LIST_TYPES = {"value_floats": np.float32, "value_ints": np.int64, "value_strings": object}


class NotConstantError(Exception):
    """An input of the fragment has no constant value."""


def constant_array(value: onnx_ir.Value) -> np.ndarray | None:
    """The array of an initializer or of a Constant node's output; None for any other value.

    Strings come as object arrays of ``str``.
    """
    if value.const_value is not None and not value.is_graph_input():
        return _strings(value.const_value.numpy())
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return _strings(attribute.as_tensor().numpy())
        if name in _SCALAR_TYPES or name in _LIST_TYPES:
            return _strings(np.array(attribute.value, {**_SCALAR_TYPES, **_LIST_TYPES}[name]))
    return None


@dataclass
class Fragment:
    """A runnable fragment.

    Attributes:
        proto: The model; big constants are its inputs.
        feeds: The constants to feed, by name.
        outputs: The output name of each wanted value, in order; a value wanted twice has one output.
    """

    proto: onnx.ModelProto
    feeds: dict[str, Any]
    outputs: list[str]


def build(
    nodes: Sequence[onnx_ir.Node],
    wanted: Sequence[onnx_ir.Value],
    known: Mapping[onnx_ir.Value, Any],
    opset_imports: Mapping[str, int],
    functions: Sequence[onnx_ir.Function] = (),
) -> Fragment:
    """Make a model of ``nodes``.

    Args:
        nodes: Nodes in topological order; they are not changed.
        wanted: The values to output, each produced by one of ``nodes``.
        known: Arrays (lists for sequences) of values that ``nodes`` need but do not produce and that carry no
            constant themselves.
        opset_imports: Opset version per domain.
        functions: Model-local functions that the nodes may call.

    Raises:
        NotConstantError: An input is neither produced, nor known, nor constant.
    """
    outer = {value: None for node in nodes for value in captured(node)}
    names = _Names(outer)
    produced = {value for node in nodes for value in node.outputs}
    boundary = _Boundary()
    protos = []
    for value in [*outer, *(value for node in nodes for value in node.inputs if value is not None)]:
        if value in produced or value in boundary.seen:
            continue
        array = known.get(value)
        if array is None:
            array = constant_array(value)
        if array is None:
            raise NotConstantError(f"its input '{value.name}' is not constant")
        boundary.add(value, names.of(value), array)
    for node in nodes:
        proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, overload=node.overload, name=node.name or "")
        proto.attribute.extend(onnx_ir.serde.serialize_attribute(one) for one in node.attributes.values())
        proto.input.extend("" if value is None else names.of(value) for value in node.inputs)
        proto.output.extend("" if value.name == "" else names.of(value) for value in node.outputs)
        protos.append(proto)
    outputs = [names.of(value) for value in wanted]
    graph = helper.make_graph(
        protos,
        "fragment",
        boundary.inputs,
        [helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(outputs)],
        boundary.initializers,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opset_imports.items()],
        functions=[onnx_ir.serde.serialize_function(function) for function in functions],
        ir_version=ort_kernels.max_ir_version(),
    )
    return Fragment(model, boundary.feeds, outputs)


@dataclass
class _Boundary:
    """The inputs and initializers of the model under construction."""

    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    feeds: dict[str, Any] = field(default_factory=dict)
    seen: set[onnx_ir.Value] = field(default_factory=set)

    def add(self, value: onnx_ir.Value, name: str, array: Any) -> None:
        self.seen.add(value)
        if isinstance(array, list):
            dtype = _dtype(value, array[0]) if array else value.dtype
            if dtype is None:
                raise NotConstantError(f"the element type of the sequence '{name}' is not known")
            element = helper.make_tensor_type_proto(int(dtype), None)
            self.inputs.append(helper.make_value_info(name, helper.make_sequence_type_proto(element)))
            self.feeds[name] = array
            return
        array = np.asarray(array)
        dtype = _dtype(value, array)
        if dtype != onnx_ir.DataType.STRING and array.nbytes <= EMBED_BYTES:
            tensor = onnx_ir.Tensor(np.asarray(array, order="C"), dtype=dtype, name=name)
            self.initializers.append(onnx_ir.serde.serialize_tensor(tensor))
            return
        self.inputs.append(helper.make_tensor_value_info(name, int(dtype), array.shape))
        self.feeds[name] = array


class _Names:
    """Unique names; values that sub-graphs refer to keep theirs, for the reference is by name."""

    def __init__(self, fixed: Mapping[onnx_ir.Value, None]) -> None:
        self._names = {value: value.name or "" for value in fixed}
        self._taken = set(self._names.values()) | {""}

    def of(self, value: onnx_ir.Value) -> str:
        if value not in self._names:
            name = base = value.name or "value"
            count = 0
            while name in self._taken:
                count += 1
                name = f"{base}.{count}"
            self._taken.add(name)
            self._names[value] = name
        return self._names[value]


def _dtype(value: onnx_ir.Value, array: np.ndarray) -> onnx_ir.DataType:
    if array.dtype.kind in "OSU":
        return onnx_ir.DataType.STRING
    if value.const_value is not None:
        return value.const_value.dtype
    return onnx_ir.DataType.from_numpy(array.dtype)


def _strings(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "OSU":
        return array
    texts = [one.decode() if isinstance(one, bytes) else str(one) for one in array.reshape(-1)]
    return np.array(texts, object).reshape(array.shape)
