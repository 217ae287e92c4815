"""The bridge to NVIDIA's onnx-graphsurgeon: a graph for its scripts, and the way back without what it would lose.

GraphSurgeon keeps neither nodes' metadata, doc strings and overloads, nor attributes of rare kinds, nor types other
than tensors; it writes 4-bit weights unpacked and reads every function body under its bare name. So the bridge keeps
these aside, tied to the very node or tensor objects that the script handles, and puts them back:

* weights are handed over by reference, are read only when a script asks for ``.values``, and come back as the same
  tensors unless the script changed them;
* model-local functions stay behind (a script sees their calls as custom ops) and rejoin on the way back;
* a node that the script kept, or copied under its own name and op, gets back its metadata.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, update_import_domains
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_ir import serde

from optc.ir.errors import PassError
from optc.ir.verify import subgraphs

#: Kinds of attributes that GraphSurgeon drops when it reads a node.
_DROPPED = {
    onnx_ir.AttributeType.SPARSE_TENSOR,
    onnx_ir.AttributeType.SPARSE_TENSORS,
    onnx_ir.AttributeType.TENSORS,
    onnx_ir.AttributeType.TYPE_PROTO,
    onnx_ir.AttributeType.TYPE_PROTOS,
}
_LOCATION = "optc-tensor-"
_MARK = "_optc_node"


class _Weights(LazyValues):
    """A tensor of ours in the place of GraphSurgeon's lazily read values."""

    def __init__(self, tensor: onnx_ir.TensorProtocol) -> None:
        self.source = tensor
        self.tensor = onnx.TensorProto()
        self.shape = [int(dim) for dim in tensor.shape.numpy()]
        self.dtype = tensor.dtype.numpy()
        self.nbytes = tensor.nbytes

    def load(self) -> np.ndarray:
        """A copy of the values, which the script may write to."""
        return np.array(self.source.numpy())


def to_gs(model: onnx_ir.Model) -> gs.Graph:
    """A GraphSurgeon graph of the model; the model is unchanged and shares its weights with it.

    Raises:
        PassError: GraphSurgeon cannot hold the graph.
    """
    light = model.clone()
    light.functions.clear()
    tensors: list[onnx_ir.TensorProtocol] = []
    for graph in light.graphs():
        for value in _values(graph):
            if value.const_value is not None and value.is_initializer() and _is_plain(value.const_value):
                value.const_value = _placeholder(value.const_value, tensors)
            if value.type is not None and not isinstance(value.type, onnx_ir.TensorType):
                value.type = None
    try:
        with _quiet():
            surgeon_graph = gs.import_onnx(serde.serialize_model(light))
    except Exception as error:  # its importer raises bare exceptions of many kinds
        raise PassError(f"GraphSurgeon cannot read this graph: {type(error).__name__}: {error}") from error
    _mark(surgeon_graph, model.graph)
    for constant in _constants(surgeon_graph):
        number = _number(constant)
        if number is not None:
            constant.values = _Weights(tensors[number])
            constant.data_location = None
    return surgeon_graph


def from_gs(graph: gs.Graph, like: onnx_ir.Model) -> onnx_ir.Model:
    """The model that a script made of ``to_gs(like)``, with everything restored that GraphSurgeon does not keep.

    Args:
        graph: The graph; nodes need not be sorted.
        like: The model that it was made from; unchanged.

    Raises:
        PassError: GraphSurgeon cannot write the graph, or the script copied a call of a function that has overloads.
    """
    proto, tensors = _export(graph)
    try:
        model = serde.deserialize_model(proto)
    except Exception as error:  # a script can leave anything behind
        raise PassError(f"the script left an invalid graph: {type(error).__name__}: {error}") from error
    _restore_tensors(model, tensors)
    for function in like.functions.values():
        model.functions.setdefault(function.identifier(), function.clone())
    _restore_nodes(graph, model.graph, _by_name(like), like)
    _hoist_constants(model, like)
    _restore_values(model, like)
    for domain, version in like.graph.opset_imports.items():
        model.graph.opset_imports.setdefault(domain, version)
    model.ir_version = max(like.ir_version, graph.ir_version or 0)
    model.producer_name, model.producer_version = like.producer_name, like.producer_version
    model.domain, model.model_version, model.doc_string = like.domain, like.model_version, like.doc_string
    model.metadata_props.update(like.metadata_props)
    model.graph.metadata_props.update(like.graph.metadata_props)
    try:
        model.graph.sort()
    except ValueError as error:
        raise PassError("the script left a graph with a cycle") from error
    return model


def fingerprint(graph: gs.Graph) -> bytes:
    """Bytes that change when a script changes the graph; weights count as changed once they were replaced."""
    proto, tensors = _export(graph)
    kept = [str(id(tensor)) for tensor in tensors]
    return proto.SerializeToString(deterministic=True) + ",".join(kept).encode()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without GraphSurgeon's log on stdout: what it warns of losing is what is restored here."""
    before = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL
    try:
        yield
    finally:
        G_LOGGER.severity = before


# -- weights ---------------------------------------------------------------------------------------------------------


def _is_plain(tensor: onnx_ir.TensorProtocol) -> bool:
    return tensor.dtype != onnx_ir.DataType.STRING


def _shape(tensor: onnx_ir.TensorProtocol) -> onnx_ir.Shape:
    return onnx_ir.Shape(tensor.shape.numpy())


def _placeholder(tensor: onnx_ir.TensorProtocol, tensors: list[onnx_ir.TensorProtocol]) -> onnx_ir.ExternalTensor:
    """Something small that survives the journey through a proto and names its place in ``tensors``."""
    tensors.append(tensor)
    location = f"{_LOCATION}{len(tensors) - 1}"
    return onnx_ir.ExternalTensor(location, 0, 0, tensor.dtype, shape=_shape(tensor), name=tensor.name or "")


def _number(constant: gs.Constant) -> int | None:
    """The place of a constant's tensor, if it was read from a placeholder."""
    lazy = constant._values
    if not isinstance(lazy, LazyValues) or isinstance(lazy, _Weights):
        return None
    for entry in getattr(lazy.tensor, "external_data", ()):
        if entry.key == "location" and entry.value.startswith(_LOCATION):
            return int(entry.value.removeprefix(_LOCATION))
    return None


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """The constants of a graph and its sub-graphs, those in attributes included, each once."""
    seen: set[int] = set()

    def walk(inner: gs.Graph) -> Iterator[gs.Tensor]:
        yield from inner.outputs
        for node in inner.nodes:
            yield from (*node.inputs, *node.outputs)
            for attribute in node.attrs.values():
                if isinstance(attribute, gs.Graph):
                    yield from walk(attribute)
                elif isinstance(attribute, gs.Constant):
                    yield attribute

    for tensor in walk(graph):
        if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def _export(graph: gs.Graph) -> tuple[onnx.ModelProto, list[onnx_ir.TensorProtocol]]:
    """The graph as a proto in which all weights are placeholders, and the weights."""
    tensors: list[onnx_ir.TensorProtocol] = []
    arrays: list[tuple[gs.Constant, np.ndarray]] = []
    empty: list[tuple[dict[str, Any], str]] = []
    try:
        for constant in _constants(graph):
            values = constant._values
            if isinstance(values, np.ndarray):
                arrays.append((constant, values))
                constant._values = values = _Weights(_tensor(values, constant.name))
            if isinstance(values, _Weights):
                values.tensor.Clear()
                serde.serialize_tensor_into(values.tensor, _placeholder(values.source, tensors))
        for node in _nodes(graph):
            for key in [key for key, value in node.attrs.items() if isinstance(value, list) and not value]:
                del node.attrs[key]  # its type cannot be told from an empty list; restored from the original node
                empty.append((node.attrs, key))
        with _quiet():
            exported = OnnxExporter.export_graph(graph, do_type_check=False)
            functions = [OnnxExporter.export_function(function) for function in graph.functions]
            imports = update_import_domains(graph)
        return onnx.helper.make_model(exported, functions=functions, opset_imports=imports), tensors
    except Exception as error:  # its exporter raises bare exceptions of many kinds
        raise PassError(f"GraphSurgeon cannot write this graph: {type(error).__name__}: {error}") from error
    finally:
        for constant, array in arrays:
            constant._values = array
        for attributes, key in empty:
            attributes[key] = []


def _tensor(array: np.ndarray, name: str) -> onnx_ir.TensorProtocol:
    if array.dtype.kind in "OUS":
        return onnx_ir.StringTensor(
            [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel()],
            shape=onnx_ir.Shape(array.shape),
            name=name,
        )
    return onnx_ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)


def _restore_tensors(model: onnx_ir.Model, tensors: Sequence[onnx_ir.TensorProtocol]) -> None:
    def original(tensor: Any) -> onnx_ir.TensorProtocol | None:
        if not isinstance(tensor, onnx_ir.ExternalTensor) or not str(tensor.location).startswith(_LOCATION):
            return None
        return tensors[int(str(tensor.location).removeprefix(_LOCATION))]

    for graph in model.graphs():
        for value in graph.initializers.values():
            value.const_value = original(value.const_value) or value.const_value
            if value.const_value is not None:
                value.shape = _shape(value.const_value)
                value.dtype = value.const_value.dtype
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == onnx_ir.AttributeType.TENSOR and not attribute.is_ref():
                    found = original(attribute.value)
                    if found is not None:
                        node.attributes[name] = onnx_ir.AttrTensor(name, found)


# -- nodes and values ------------------------------------------------------------------------------------------------


def _values(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    """The values that a graph defines, each once (an input with a default is an initializer too)."""
    yield from dict.fromkeys((*graph.inputs, *graph.initializers.values()))
    for node in graph:
        yield from node.outputs


def _nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    for node in graph.nodes:
        yield node
        for attribute in node.attrs.values():
            if isinstance(attribute, gs.Graph):
                yield from _nodes(attribute)


def _mark(surgeon_graph: gs.Graph, graph: onnx_ir.Graph) -> None:
    """Tie every node of GraphSurgeon's to the node of ours that it stands for."""
    for theirs, ours in zip(surgeon_graph.nodes, graph, strict=True):
        setattr(theirs, _MARK, ours)
        for inner, subgraph in zip(_inner(theirs), subgraphs(ours), strict=False):
            _mark(inner, subgraph)


def _inner(node: gs.Node) -> list[gs.Graph]:
    return [attribute for attribute in node.attrs.values() if isinstance(attribute, gs.Graph)]


def _by_name(like: onnx_ir.Model) -> dict[tuple[str, str, str], onnx_ir.Node]:
    """Nodes whose name, domain and op are unique."""
    found: dict[tuple[str, str, str], list[onnx_ir.Node]] = {}
    for graph in (like.graph, *like.graph.subgraphs()):
        for node in graph:
            if node.name:
                found.setdefault((node.name, node.domain, node.op_type), []).append(node)
    return {key: nodes[0] for key, nodes in found.items() if len(nodes) == 1}


def _restore_nodes(
    surgeon_graph: gs.Graph,
    graph: onnx_ir.Graph,
    by_name: dict[tuple[str, str, str], onnx_ir.Node],
    like: onnx_ir.Model,
) -> None:
    for theirs, ours in zip(surgeon_graph.nodes, graph, strict=True):
        for inner, subgraph in zip(_inner(theirs), subgraphs(ours), strict=True):
            _restore_nodes(inner, subgraph, by_name, like)
        original = getattr(theirs, _MARK, None) or by_name.get((ours.name or "", ours.domain, ours.op_type))
        if original is None or (original.op_type, original.domain) != (ours.op_type, ours.domain):
            _restore_overload(ours, like)
            continue
        ours.overload = original.overload
        ours.doc_string = original.doc_string
        ours.metadata_props.update(original.metadata_props)
        for name, attribute in original.attributes.items():
            kept = theirs.attrs.get(name)
            lost = attribute.type in _DROPPED or (isinstance(kept, list) and not kept)
            if lost and name not in ours.attributes:
                ours.attributes[name] = attribute


def _restore_overload(node: onnx_ir.Node, like: onnx_ir.Model) -> None:
    """A new call of a function: it can only mean the one function of that name."""
    overloads = {key[2] for key in like.functions if key[:2] == (node.domain, node.op_type)}
    if len(overloads) > 1:
        raise PassError(
            f"the script added a call of {node.domain}::{node.op_type}, of which there are {len(overloads)} overloads; "
            "GraphSurgeon cannot tell them apart"
        )
    if overloads:
        node.overload = overloads.pop()


def _hoist_constants(model: onnx_ir.Model, like: onnx_ir.Model) -> None:
    """Put constants back where they were: GraphSurgeon copies an outer graph's into every graph that reads them."""
    main = model.graph
    own = {name for graph in like.graph.subgraphs() for name in graph.initializers} - like.graph.initializers.keys()

    def visit(graph: onnx_ir.Graph, scope: Mapping[str, onnx_ir.Value]) -> None:
        for name, value in list(graph.initializers.items()):
            outer = scope.get(name) or main.initializers.get(name)
            if outer is None and name in own:
                continue
            if outer is None:
                outer = onnx_ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
                main.register_initializer(outer)
            value.replace_all_uses_with(outer, replace_graph_outputs=True)
            del graph.initializers[name]
        inside = {**scope, **graph.initializers}
        for node in graph:
            for subgraph in subgraphs(node):
                visit(subgraph, inside)

    for node in main:
        for subgraph in subgraphs(node):
            visit(subgraph, {})


def _restore_values(model: onnx_ir.Model, like: onnx_ir.Model) -> None:
    """Types other than tensors, metadata of values, and inputs that have a default."""
    known = {value.name: value for graph in like.graphs() for value in _values(graph)}
    for graph in model.graphs():
        for value in _values(graph):
            original = known.get(value.name)
            if original is None:
                continue
            if value.type is None and not isinstance(original.type, onnx_ir.TensorType):
                value.type = original.type
            value.metadata_props.update(original.metadata_props)
            value.doc_string = original.doc_string
    for index, formal in enumerate(like.graph.inputs):
        default = model.graph.initializers.get(formal.name or "")
        if formal.is_initializer() and default is not None and default not in model.graph.inputs:
            model.graph.inputs.insert(index, default)


__all__ = ["fingerprint", "from_gs", "to_gs"]
