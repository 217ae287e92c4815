"""Loading: the one way by which a model enters optc.

Weights are not read here, be they external data or part of the file: they stay in mapped files until somebody asks for
their contents.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import google.protobuf.message
import numpy as np
import onnx
import onnx.parser
import onnx_ir
from google.protobuf import json_format, text_format
from onnx_ir import serde

from optc.ir import tensor_protos, wire
from optc.ir.callgraph import expanded_sizes
from optc.ir.errors import ModelError
from optc.ir.mapped import MappedFile, MappedTensor, named
from optc.ir.names import function_name
from optc.ir.verify import subgraphs, verify_structure

ModelSource = str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model

#: Where a graph keeps how its outputs were declared, if the declarations cannot be told from the outputs themselves.
DECLARED_OUTPUTS = "optc.declared_outputs"

#: File name endings of ONNX's text forms, as ``onnx.load`` knows them.
_TEXT_SUFFIXES = {".onnxtxt", ".onnxtext", ".textproto", ".json", ".prototxt", ".pbtxt", ".onnxjson"}

#: No domain will have a higher one; onnx looks schemas up by 32-bit numbers.
_LARGEST_VERSION = 2**31 - 1
#: Nodes that a call of a function may stand for, with those of the functions that it calls.
_LARGEST_EXPANSION = 1 << 20


def load(source: ModelSource) -> onnx_ir.Model:
    """Load a model and make sure that it is one.

    Args:
        source: A path to an ONNX file, an ``onnx.ModelProto`` or an ``onnx_ir.Model``. The last two are copied
            (tensors are shared), so the caller's object is never changed.

    Returns:
        A model in one normal form: graphs are topologically sorted; every domain in use is imported; no name in a
        sub-graph hides one outside of it; for IR versions below 4, initializers are no longer listed as inputs (there
        they were constants all the same).

    Raises:
        ModelError: The file is missing, empty, truncated or not ONNX; the graph is not valid; external data is
            missing, too short or outside the model's folder.
    """
    if isinstance(source, onnx_ir.Model):
        where = "the given model"
        model = _clone(source, where)
        _map_tensors(model, where)
    elif isinstance(source, onnx.ModelProto):
        where = "the given ModelProto"
        model = _deserialize(source, where)
        _refuse_external_data(model, where)
    else:
        path = Path(source)
        where = str(path)
        model = _deserialize(_read(path), where)
        _map_tensors(model, where, path)
    _normalize(model, where)
    problems = verify_structure(model)
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ModelError(f"not a valid ONNX model: {shown}", where=where, hint="export the model again, or repair it")
    _refuse_explosion(model, where)
    return model


def _all_graphs(model: onnx_ir.Model) -> Iterator[onnx_ir.Graph]:
    """The main graph, the bodies of functions, and their sub-graphs at any depth."""
    for owner in (model.graph, *(function.graph for function in model.functions.values())):
        yield owner
        yield from owner.subgraphs()


def _read(path: Path) -> onnx.ModelProto:
    try:
        if not path.exists():
            raise ModelError("no such file", where=str(path), hint="check the path")
        if path.is_dir():
            raise ModelError("this is a folder, not a model", where=str(path), hint="name the .onnx file in it")
        if path.stat().st_size == 0:
            raise ModelError("the file is empty", where=str(path), hint="export or download the model again")
        if path.suffix in _TEXT_SUFFIXES:
            return _read_text(path)
        return wire.read_skeleton(path)
    except OSError as error:
        raise ModelError(f"cannot read the file: {error.strerror}", where=str(path)) from error
    except (google.protobuf.message.DecodeError, ValueError) as error:
        raise ModelError(
            "not an ONNX file, or a truncated one", where=str(path), hint="export or download the model again"
        ) from error


def _read_text(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except (onnx.parser.ParseError, json_format.Error, text_format.Error, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"not a valid ONNX text: {reason}", where=str(path)) from error


def _deserialize(proto: onnx.ModelProto, where: str) -> onnx_ir.Model:
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError("not an ONNX model: it has no graph", where=where, hint="is this really an .onnx file?")
    try:
        _refuse_unsupported(proto, where)
        model = serde.deserialize_model(_one_constant_per_name(proto))
    except (serde.SerdeError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ModelError(
            f"not a valid ONNX model: {reason[0] if reason else type(error).__name__}", where=where
        ) from error
    if any(isinstance(text, bytes) for text in _texts(model)):
        raise ModelError("not a valid ONNX model: a name or text in it is not UTF-8", where=where)
    _own_names(model)
    outputs = [value.name for value in proto.graph.output]
    if len(set(outputs)) < len(outputs):
        # One value cannot carry two declarations; the interface is kept as it was, odd as it is.
        model.graph.meta[DECLARED_OUTPUTS] = [value.SerializeToString() for value in proto.graph.output]
    return model


def _one_constant_per_name(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with one Constant node per name; of several, onnxruntime takes the last one for all of them."""
    places: dict[str, list[int]] = {}
    for index, node in enumerate(proto.graph.node):
        if node.op_type == "Constant" and len(node.output) == 1:
            places.setdefault(node.output[0], []).append(index)
    repeated = [indices for indices in places.values() if len(indices) > 1]
    if not repeated:
        return proto
    repaired = onnx.ModelProto()
    repaired.CopyFrom(proto)
    for first, *_, last in repeated:
        repaired.graph.node[first].CopyFrom(proto.graph.node[last])
    for index in sorted((i for indices in repeated for i in indices[1:]), reverse=True):
        del repaired.graph.node[index]
    return repaired


def _texts(model: onnx_ir.Model) -> Iterator[str | None]:
    """Names and texts of a model; protobuf hands out those that are not UTF-8 as bytes."""
    yield from (model.producer_name, model.producer_version, model.domain, model.doc_string)
    yield from (text for item in (*model.metadata_props.items(), *model.functions) for text in item)
    for graph in _all_graphs(model):
        yield from (graph.name, graph.doc_string)
        yield from (text for value in _values(graph) for text in (value.name, value.doc_string))
        for node in graph:
            yield from (node.name, node.op_type, node.domain, node.doc_string, *node.attributes)
            yield from (text for pair in node.metadata_props.items() for text in pair)


def _clone(source: onnx_ir.Model, where: str) -> onnx_ir.Model:
    try:
        model = source.clone()
    except ValueError as error:
        raise ModelError(f"not a valid ONNX model: {error}", where=where) from error
    _own_names(model)
    return model


def _own_names(model: onnx_ir.Model) -> None:
    """Let the tensors of initializers be renamed without renaming those of the caller's object."""
    for graph in _all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = named(value.const_value, value.name)


def _refuse_unsupported(proto: onnx.ModelProto, where: str) -> None:
    """Refuse what the in-memory graph cannot carry, by name, instead of dropping it."""
    if proto.graph.sparse_initializer:
        names = ", ".join(sparse.values.name for sparse in proto.graph.sparse_initializer[:3])
        raise ModelError(
            f"sparse initializers are not supported ({names})",
            where=where,
            hint="store these weights as dense tensors",
        )
    for entries in (proto.opset_import, *(function.opset_import for function in proto.functions)):
        # Of a domain that is imported several times, runtimes take the last version.
        for domain, version in {entry.domain: entry.version for entry in entries}.items():
            if not 0 < version <= _LARGEST_VERSION:
                raise ModelError(f"it imports version {version} of domain {domain!r}", where=where)
    for tensor in tensor_protos.tensors_of(proto):
        if (wrong := tensor_protos.problem(tensor)) is not None:
            raise ModelError(f"tensor {tensor.name!r} {wrong}", where=where)
    if proto.training_info:
        raise ModelError("training information is not supported", where=where, hint="export the inference model")


def _refuse_explosion(model: onnx_ir.Model, where: str) -> None:
    """Refuse functions that call each other so often that nobody could run what they stand for."""
    sizes = expanded_sizes(model.functions)
    for key, size in sizes.items():
        if size > _LARGEST_EXPANSION:
            raise ModelError(
                f"a call of the function {function_name(key)!r} stands for {size} nodes",
                where=where,
                hint=f"no runtime could expand it; more than {_LARGEST_EXPANSION} are refused",
            )


def _refuse_external_data(model: onnx_ir.Model, where: str) -> None:
    """A proto does not know its folder, so what it refers to cannot be told from what it must not refer to."""
    for tensor, _ in _file_tensors(model):
        raise ModelError(
            f"the data of tensor {tensor.name!r} lies in another file, {str(tensor.location)!r}",
            where=where,
            hint="give the path of the model instead, or load its data with onnx.load_external_data_for_model",
        )


def _file_tensors(
    model: onnx_ir.Model,
) -> Iterator[tuple[onnx_ir.ExternalTensor, Callable[[onnx_ir.TensorProtocol], None]]]:
    """Every tensor that refers to a file, initializer or attribute, with what puts another one in its place."""
    for graph in _all_graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, onnx_ir.ExternalTensor):
                yield value.const_value, partial(setattr, value, "const_value")
        for node in graph:
            for attr in list(node.attributes.values()):
                if attr.type == onnx_ir.AttributeType.TENSOR and isinstance(attr.value, onnx_ir.ExternalTensor):
                    yield attr.value, partial(_set_tensor, node, attr.name)


def _set_tensor(node: onnx_ir.Node, name: str, tensor: onnx_ir.TensorProtocol) -> None:
    node.attributes[name] = onnx_ir.AttrTensor(name, tensor)


def _map_tensors(model: onnx_ir.Model, where: str, path: Path | None = None) -> None:
    """Replace references to files by tensors that are mapped from there; all of one file share one map of it.

    Args:
        model: The model.
        where: Its name in messages.
        path: The file it was read from, beside which its data lies; None if its tensors know their folder.
    """
    files: dict[str, MappedFile] = {}
    for tensor, replace in _file_tensors(model):
        embedded = tensor.location == wire.EMBEDDED
        if embedded:
            _check_embedded(tensor, where)
        else:
            if path is not None:
                tensor.base_dir = str(path.absolute().parent)
            _check_external(tensor, where)
        if tensor.size == 0:
            mapped: onnx_ir.TensorProtocol = onnx_ir.Tensor(
                np.empty(tensor.shape.numpy(), tensor.dtype.numpy()), dtype=tensor.dtype, name=tensor.name
            )
        else:
            place = str(path) if embedded else tensor.path
            if place not in files:
                files[place] = _mapped_file(place, where)
            mapped = MappedTensor(
                files[place], tensor.offset or 0, tensor.dtype, tensor.shape, tensor.name or "", embedded
            )
        mapped.doc_string = tensor.doc_string
        mapped.metadata_props.update(tensor.metadata_props)
        replace(mapped)


def _mapped_file(place: str, where: str) -> MappedFile:
    try:
        return MappedFile(place)
    except OSError as error:
        raise ModelError(f"cannot read the data file {place!r}: {error.strerror}", where=where) from error


def _check_embedded(tensor: onnx_ir.ExternalTensor, where: str) -> None:
    if tensor.length != tensor.nbytes:
        raise ModelError(
            f"tensor {tensor.name!r} holds {tensor.length} bytes; its type and dims need {tensor.nbytes}", where=where
        )


def _check_external(tensor: onnx_ir.ExternalTensor, where: str) -> None:
    place = f"{where}, tensor {tensor.name!r}"
    try:
        tensor._check_path_containment()
    except ValueError as error:
        raise ModelError(
            f"its external data is not allowed: {error}",
            where=place,
            hint="keep a copy of the data file in the model's folder, not a link that leaves it, nor a hard link",
        ) from error
    if not os.path.isfile(tensor.path):
        raise ModelError(
            f"its external data file {tensor.path!r} is missing",
            where=place,
            hint="copy the data file beside the model, under the name it was saved with",
        )
    offset, need, size = tensor.offset or 0, tensor.nbytes, os.path.getsize(tensor.path)
    if offset < 0 or (tensor.length is not None and tensor.length < need):
        raise ModelError(f"its external data is too short: {tensor.length} bytes recorded, {need} needed", where=place)
    if offset + need > size:
        raise ModelError(
            f"its external data file {tensor.path!r} is too short: {offset + need} bytes needed, {size} there",
            where=place,
            hint="the copy or download was cut off; fetch it again",
        )


def _normalize(model: onnx_ir.Model, where: str) -> None:
    """Bring a model into the one form that optc works on."""
    graph = model.graph
    owners: list[onnx_ir.Graph | onnx_ir.Function] = [graph, *model.functions.values()]
    for owner in owners:
        _repair_opset_imports(owner)
    if model.ir_version < 4:
        # Before IR 4 every initializer had to be listed as an input and was a constant all the same.
        for value in [v for v in graph.inputs if v.is_initializer()]:
            graph.inputs.remove(value)
        model.ir_version = 4
    for body in (graph, *(function.graph for function in model.functions.values())):
        _rename_shadowing(body, frozenset())
    try:
        for owner in owners:
            owner.sort()
    except ValueError as error:
        raise ModelError("not a valid ONNX model: the graph has a cycle", where=where) from error


def _repair_opset_imports(owner: onnx_ir.Graph | onnx_ir.Function) -> None:
    """Make every domain that a node names importable: exporters and optimizers forget contrib domains."""
    imports = owner.opset_imports
    if "ai.onnx" in imports:
        imports.setdefault("", imports.pop("ai.onnx"))
    for node in owner.all_nodes():
        if node.domain:
            imports.setdefault(node.domain, 1)


def _rename_shadowing(graph: onnx_ir.Graph, outer: frozenset[str]) -> None:
    """Rename what hides a name of an enclosing graph, so that a name means one thing wherever it is visible."""
    inner = [subgraph for node in graph for subgraph in subgraphs(node)]
    if not inner:
        return
    visible = outer | {value.name for value in _values(graph) if value.name}
    for subgraph in inner:
        taken = visible | {value.name for value in _values(subgraph)}
        for value in _values(subgraph):
            if value.name in visible:
                name, number = value.name, 1
                while name in taken:
                    name, number = f"{value.name}_{number}", number + 1
                taken |= {name}
                value.name = name
        _rename_shadowing(subgraph, visible)


def _values(graph: onnx_ir.Graph) -> list[onnx_ir.Value]:
    """The values that a graph defines."""
    return [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
