"""Loading: the one way by which a model enters optc.

Weights are not read here, be they external data or part of the file: they stay in mapped files until somebody asks for
their contents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import google.protobuf.message
import google.protobuf.text_format
import numpy as np
import onnx
import onnx_ir
from onnx_ir import external_data, serde

from optc.ir import wire
from optc.ir.errors import ModelError
from optc.ir.mapped import MappedFile, MappedTensor, can_map
from optc.ir.verify import verify_structure

ModelSource = str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model

#: File name endings of ONNX's text forms, as ``onnx.load`` knows them.
_TEXT_SUFFIXES = {".onnxtxt", ".onnxtext", ".textproto", ".json", ".prototxt", ".pbtxt", ".onnxjson"}


def load(source: ModelSource) -> onnx_ir.Model:
    """Load a model and make sure that it is one.

    Args:
        source: A path to an ONNX file, an ``onnx.ModelProto`` or an ``onnx_ir.Model``. The last two are copied
            (tensors are shared), so the caller's object is never changed.

    Returns:
        A model whose graph is topologically sorted and, for IR versions below 4, whose initializers are no longer
        listed as inputs (there they were constants all the same).

    Raises:
        ModelError: The file is missing, empty, truncated or not ONNX; the graph is not valid; external data is
            missing, too short or outside the model's folder.
    """
    if isinstance(source, onnx_ir.Model):
        model, where = source.clone(), "the given model"
    elif isinstance(source, onnx.ModelProto):
        where = "the given ModelProto"
        model = _deserialize(source, where)
    else:
        path = Path(source)
        where = str(path)
        model = _deserialize(_read(path), where)
        external_data.set_base_dir(model.graph, str(path.absolute().parent))
        _check_external_data(model, where)
        _map_tensors(model, path)
    _normalize(model, where)
    problems = verify_structure(model)
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ModelError(f"not a valid ONNX model: {shown}", where=where, hint="export the model again, or repair it")
    return model


def external_tensors(model: onnx_ir.Model) -> Iterator[onnx_ir.ExternalTensor]:
    """Every tensor of the model, in graphs and sub-graphs, that refers to a file."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, onnx_ir.ExternalTensor):
                yield value.const_value


def _read(path: Path) -> onnx.ModelProto:
    try:
        if not path.exists():
            raise ModelError("no such file", where=str(path), hint="check the path")
        if path.is_dir():
            raise ModelError("this is a folder, not a model", where=str(path), hint="name the .onnx file in it")
        if path.stat().st_size == 0:
            raise ModelError("the file is empty", where=str(path), hint="export or download the model again")
        if path.suffix in _TEXT_SUFFIXES:
            return onnx.load(path, load_external_data=False)
        return wire.read_skeleton(path)
    except OSError as error:
        raise ModelError(f"cannot read the file: {error.strerror}", where=str(path)) from error
    except (google.protobuf.message.DecodeError, google.protobuf.text_format.ParseError, ValueError) as error:
        raise ModelError(
            "not an ONNX file, or a truncated one", where=str(path), hint="export or download the model again"
        ) from error


def _deserialize(proto: onnx.ModelProto, where: str) -> onnx_ir.Model:
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError("not an ONNX model: it has no graph", where=where, hint="is this really an .onnx file?")
    _repair_opset_imports(proto)
    _prefer_proto_text(proto, where)
    try:
        return serde.deserialize_model(proto)
    except (serde.SerdeError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ModelError(
            f"not a valid ONNX model: {reason[0] if reason else type(error).__name__}", where=where
        ) from error


def _repair_opset_imports(proto: onnx.ModelProto) -> None:
    """Make every domain that a node names importable: exporters and optimizers forget contrib domains."""
    known = {entry.domain for entry in proto.opset_import}
    if "ai.onnx" in known and "" not in known:
        known.add("")

    def domains(nodes) -> Iterator[str]:
        for node in nodes:
            yield node.domain
            for attribute in node.attribute:
                yield from domains(attribute.g.node)
                for graph in attribute.graphs:
                    yield from domains(graph.node)

    for domain in dict.fromkeys(domains(proto.graph.node)):
        if domain not in known and domain not in ("", "ai.onnx"):
            proto.opset_import.add(domain=domain, version=1)


def _prefer_proto_text(proto: onnx.ModelProto, where: str) -> None:
    """Refuse what the in-memory graph cannot carry, by name, instead of dropping it."""
    if proto.graph.sparse_initializer:
        names = ", ".join(sparse.values.name for sparse in proto.graph.sparse_initializer[:3])
        raise ModelError(
            f"sparse initializers are not supported ({names})",
            where=where,
            hint="store these weights as dense tensors",
        )
    if proto.training_info:
        raise ModelError("training information is not supported", where=where, hint="export the inference model")


def _check_external_data(model: onnx_ir.Model, where: str) -> None:
    sizes: dict[str, int] = {}
    for tensor in external_tensors(model):
        if tensor.location == wire.EMBEDDED:
            if tensor.length != tensor.nbytes:
                raise ModelError(
                    f"tensor {tensor.name!r} holds {tensor.length} bytes; its type and dims need {tensor.nbytes}",
                    where=where,
                )
            continue
        place = f"{where}, tensor {tensor.name!r}"
        try:
            tensor._check_path_containment()
        except ValueError as error:
            raise ModelError(
                f"its external data is not allowed: {error}",
                where=place,
                hint="keep the data file in the model's folder, without links that leave it",
            ) from error
        if tensor.path not in sizes:
            if not os.path.isfile(tensor.path):
                raise ModelError(
                    f"its external data file {tensor.path!r} is missing",
                    where=place,
                    hint="copy the data file beside the model, under the name it was saved with",
                )
            sizes[tensor.path] = os.path.getsize(tensor.path)
        offset, need = tensor.offset or 0, tensor.nbytes
        if offset < 0 or (tensor.length is not None and tensor.length < need):
            raise ModelError(
                f"its external data is too short: {tensor.length} bytes recorded, {need} needed", where=place
            )
        if offset + need > sizes[tensor.path]:
            raise ModelError(
                f"its external data file {tensor.path!r} is too short: {offset + need} bytes needed, "
                f"{sizes[tensor.path]} there",
                where=place,
                hint="the copy or download was cut off; fetch it again",
            )


def _map_tensors(model: onnx_ir.Model, path: Path) -> None:
    """Let all tensors of one file share one map of it."""
    files: dict[str, MappedFile] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, onnx_ir.ExternalTensor):
                continue
            embedded = tensor.location == wire.EMBEDDED
            if not embedded and not can_map(tensor.dtype):
                continue
            place = str(path) if embedded else tensor.path
            file = files.setdefault(place, MappedFile(place))
            mapped: onnx_ir.TensorProtocol = MappedTensor(
                file, tensor.offset or 0, tensor.dtype, tensor.shape, tensor.name or "", embedded
            )
            if not can_map(tensor.dtype):
                packed = file.array(np.dtype(np.uint8), tensor.offset or 0, (tensor.nbytes,))
                mapped = onnx_ir.PackedTensor(packed, tensor.dtype, shape=tensor.shape, name=tensor.name)
            mapped.doc_string = tensor.doc_string
            mapped.metadata_props.update(tensor.metadata_props)
            value.const_value = mapped


def _normalize(model: onnx_ir.Model, where: str) -> None:
    graph = model.graph
    if "ai.onnx" in graph.opset_imports:
        graph.opset_imports.setdefault("", graph.opset_imports.pop("ai.onnx"))
    if model.ir_version < 4:
        # Before IR 4 every initializer had to be listed as an input and was a constant all the same.
        for value in [v for v in graph.inputs if v.is_initializer()]:
            graph.inputs.remove(value)
        model.ir_version = 4
    try:
        for owner in [graph, *model.functions.values()]:
            owner.sort()
    except ValueError as error:
        raise ModelError("not a valid ONNX model: the graph has a cycle", where=where) from error
