"""Pieces of other models that graphs grow by: the golden cases, at which rules fire, and ONNX's own operator tests."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from optc.backends.ort import Session
from optc.ir.errors import OptcError
from optc.ir.model import load
from optc.randomness import random_outputs

from ...conformance.cases import load_cases
from ...golden.case import CASES, read_case
from ...passes.properties.clean_seeds import SEEDS
from ...passes.properties.clean_seeds import seed as clean_seed
from .builder import INT64, NUMPY, REALS, Builder, Dim, Unfit, Value, template

#: Larger ones would make graphs slow.
_LARGEST = 20_000


@dataclass(frozen=True, eq=False)
class Piece:
    """A model to put into a graph.

    Attributes:
        name: Where it is from.
        model: The model.
        data: Contents for inputs, where any others might not be valid.
        fixed: Whether its inputs must have the contents of ``data``, floats apart.
    """

    name: str
    model: onnx.ModelProto
    data: Mapping[str, np.ndarray] = field(default_factory=dict)
    fixed: bool = False

    @functools.cached_property
    def opset(self) -> int:
        return next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 1)

    @functools.cached_property
    def runs(self) -> bool:
        """Whether it is of tensors alone, the same twice, and known to the runtime."""
        graph = self.model.graph
        if not all(value.type.HasField("tensor_type") for value in (*graph.input, *graph.output)):
            return False
        if self.model.functions or graph.sparse_initializer or any(_trains(node) for node in graph.node):
            return False
        try:
            model = load(self.model)
            Session(self.model, optimization="off", threads=1)
        except OptcError:
            return False
        return not random_outputs(model)

    @functools.cached_property
    def outputs(self) -> list[onnx.ValueInfoProto]:
        """The outputs, with what shape inference says of them."""
        try:
            return list(onnx.shape_inference.infer_shapes(self.model, data_prop=True).graph.output)
        except Exception:
            return list(self.model.graph.output)

    def fits(self, opset: int) -> bool:
        """Whether its nodes mean the same in another opset."""
        if opset == self.opset:
            return True
        return all(
            _since(node.op_type, self.opset) == _since(node.op_type, opset) is not None
            for graph in _graphs(self.model.graph)
            for node in graph.node
            if node.domain in ("", "ai.onnx")
        )


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _graphs(attribute.g)
    return found


@functools.cache
def _since(op: str, opset: int) -> int | None:
    try:
        schema = onnx.defs.get_schema(op, opset)
    except onnx.defs.SchemaError:
        return None
    return int(schema.since_version)


#: Cases in which a few digits are taken for the constant that they mean: what is computed changes by as much.
_MEANT = frozenset({"gelu_erf_four_digits"})


@functools.cache
def golden_pieces() -> tuple[Piece, ...]:
    """The golden cases, and the seeds of the clean-up: what rules fire at."""
    paths = [path for path in sorted(CASES.glob("*.txt")) if path.stem not in _MEANT]
    cases = [Piece(path.stem, read_case(path).model()) for path in paths]
    return (*cases, *(Piece(rule, clean_seed(rule)) for rule in SEEDS))


@functools.cache
def operator_pieces() -> tuple[Piece, ...]:
    """ONNX's operator tests, with the inputs that they are tested with. This takes some seconds."""
    found = []
    for case in load_cases():
        names = {value.name for value in case.model.graph.input}
        data = case.datasets[0][0] if case.datasets else {}
        arrays = {name: array for name, array in data.items() if isinstance(array, np.ndarray)}
        if names == set(arrays) and case.model.ByteSize() + sum(a.nbytes for a in arrays.values()) < _LARGEST:
            found.append(Piece(case.name, case.model, arrays, fixed=True))
    return tuple(found)


def _trains(node: onnx.NodeProto) -> bool:
    """Whether it is a BatchNormalization in training, which in ONNX Runtime writes over inputs that it reads again."""
    return node.op_type == "BatchNormalization" and any(a.name == "training_mode" and a.i for a in node.attribute)


@template(18)
def golden(b: Builder) -> Value | None:
    """A golden case or a seed of the clean-up, fed by values of the graph where they fit."""
    return _put(b, b.rng.choice(golden_pieces()))


def put_operator_test(b: Builder) -> Value | None:
    """A node that ONNX tests an operator with."""
    for _ in range(8):
        piece = b.rng.choice(operator_pieces())
        if piece.fits(b.opset) and piece.runs:
            return _put(b, piece)
    raise Unfit


def _put(b: Builder, piece: Piece) -> Value | None:
    if not (piece.fits(b.opset) and piece.runs):
        raise Unfit
    graph = piece.model.graph
    prefix = b.name("p")
    names: dict[str, str] = {"": ""}
    dims: dict[str, Dim] = {}
    known = {tensor.name for tensor in graph.initializer}
    steady = True
    for value in graph.input:
        if value.name not in known:
            fed = _fed(b, piece, value, dims)
            names[value.name], steady = fed.name, steady and fed.steady
    for tensor in graph.initializer:
        names[tensor.name] = f"{prefix}_{tensor.name}"
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        copy.name = names[tensor.name]
        b.initializers.append(copy)
    _copy(b.nodes, graph.node, names, prefix)
    b.domains |= {
        node.domain for inner in _graphs(graph) for node in inner.node if node.domain not in ("", "ai.onnx", "fuzz")
    }
    last = None
    for value in piece.outputs:
        kind = value.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else dims.get(dim.dim_param, "?") for dim in kind.shape.dim]
        if names.get(value.name) in (None, ""):
            continue
        if kind.HasField("shape") and "?" not in shape and kind.elem_type in NUMPY:
            last = Value(names[value.name], kind.elem_type, tuple(shape), False)
            b.values.append(last)
        else:
            if kind.HasField("shape"):
                b.ends.append(helper.make_tensor_value_info(names[value.name], kind.elem_type, [None] * len(shape)))
            last = last or Value(names[value.name], kind.elem_type, ("?",), False)
    return last


def _copy(nodes: list[onnx.NodeProto], given: Sequence[onnx.NodeProto], names: dict[str, str], prefix: str) -> None:
    """Nodes with names of their own, in sub-graphs too."""
    for node in given:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{prefix}_{node.name or node.op_type}_{len(nodes)}"
        _rename(copy, names, prefix)
        nodes.append(copy)


def _rename(node: onnx.NodeProto, names: dict[str, str], prefix: str) -> None:
    for name in node.output:
        if name:
            names[name] = f"{prefix}_{name}"
    for field_ in (node.input, node.output):
        for at, name in enumerate(field_):
            field_[at] = names.get(name, name)
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            inner = dict(names)
            for item in (*graph.input, *graph.initializer):
                inner[item.name] = f"{prefix}_{item.name}"
                item.name = inner[item.name]
            for each in graph.node:
                _rename(each, inner, prefix)
            for item in (*graph.output, *graph.value_info):
                item.name = inner.get(item.name, item.name)


def _fed(b: Builder, piece: Piece, value: onnx.ValueInfoProto, dims: dict[str, Dim]) -> Value:
    """What an input of a piece reads: a value of the graph, a constant, or an input of the graph."""
    kind = value.type.tensor_type
    data = piece.data.get(value.name)
    if data is not None and (kind.elem_type not in REALS or b.chance(0.3)):
        return b.tensor(numpy_helper.from_array(data, b.name("c")), data)
    wanted = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in kind.shape.dim]
    if kind.elem_type not in NUMPY:
        raise Unfit
    steady_only = piece.fixed or kind.elem_type == INT64

    def binds(v: Value) -> dict[str, Dim] | None:
        if v.dtype != kind.elem_type or len(v.shape) != len(wanted) or (steady_only and not v.steady):
            return None
        found = dict(dims)
        for there, dim in zip(v.shape, wanted, strict=True):
            if (isinstance(dim, int) and dim != there) or (
                isinstance(dim, str) and found.setdefault(dim, there) != there
            ):
                return None
        return found

    chosen = b.pick(lambda v: binds(v) is not None)
    if chosen is None or (b.outer is None and b.chance(0.15)):
        for dim in wanted:
            if isinstance(dim, str):
                dims.setdefault(dim, b.rng.choice(["N", "S", 1, 2, 3, 5]))
        if None in wanted:
            raise Unfit
        return b.input(
            kind.elem_type, [dims[dim] if isinstance(dim, str) else dim for dim in wanted if dim is not None]
        )
    dims |= binds(chosen) or {}
    return chosen
