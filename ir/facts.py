"""What is known about every value of a graph: :class:`Facts`.

A fact holds in every run of the model that succeeds, whatever the values of the symbolic dims and the contents of the
inputs. What the file declares about intermediate values is not believed, with one exception: the outputs of operators
that nobody here can infer (custom domains) are taken to be what is declared.

Assumptions, beyond those of :mod:`optc.ir.dims`: inputs have the types that the model declares; equal names of dims on
the inputs mean equal dims; contents of shape tensors do not overflow their integer type.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir

from optc.ir.dims import Dim, SymDim, bounds, complexity, maximum, symbol
from optc.ir.infer import INFERENCES
from optc.ir.infer_base import (
    INT_RANGES,
    MAX_ELEMENTS,
    SYMBOLIC_TYPES,
    UNKNOWN,
    Context,
    Fact,
    Shape,
    Table,
    element_count,
)
from optc.ir.infer_order import in_order
from optc.ir.infer_schema import find_schema, infer_by_schema

MAX_COMPLEXITY = 48
"""Expressions with more factors than this are replaced by a new symbol."""

MAX_CACHED = 4096
"""Constants of at most this many elements are kept as arrays once read."""

MAX_CALL_DEPTH = 16
"""Model-local functions are looked into to this depth."""

MAX_CALLS = 4096
"""Calls that are looked into below one call of the main graph: nested functions can double them at every level."""

_CONSTANT_FIELDS = {
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}
#: The type of each attribute of a Constant node. A file may say otherwise; then the node has no value.
_CONSTANT_TYPES: dict[str, onnx_ir.AttributeType] = {
    "value": onnx_ir.AttributeType.TENSOR,
    "value_int": onnx_ir.AttributeType.INT,
    "value_ints": onnx_ir.AttributeType.INTS,
    "value_float": onnx_ir.AttributeType.FLOAT,
    "value_floats": onnx_ir.AttributeType.FLOATS,
    "value_string": onnx_ir.AttributeType.STRING,
    "value_strings": onnx_ir.AttributeType.STRINGS,
}
_SMALL_INTEGERS = frozenset(
    {onnx_ir.DataType.INT4, onnx_ir.DataType.UINT4, onnx_ir.DataType.INT2, onnx_ir.DataType.UINT2}
)
_FLOATS = frozenset(dtype for dtype in onnx_ir.DataType if dtype.is_floating_point())
_INVALID_NODE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, OSError)


class Facts:
    """Facts about the values of ``model``, inferred from its inputs and constants, sub-graphs included.

    Facts belong to :class:`onnx_ir.Value` objects, so they survive any rewriting that keeps what a value means. Nodes
    that are added later are made known with :meth:`infer`.

    Args:
        model: The model. It is not changed, and no large tensor is read.
        inferences: The table of inference functions.
        named: What names of dims stand for, where they are more than names.

    Attributes:
        failures: Nodes whose inference raised, with the error: nodes that are not valid. Their outputs are unknown.
    """

    def __init__(
        self,
        model: onnx_ir.Model,
        inferences: Table = INFERENCES,
        named: Mapping[str, Dim] = MappingProxyType({}),
    ) -> None:
        self._named = named
        self.failures: list[tuple[onnx_ir.Node, Exception]] = []
        self._inferences = inferences
        self._functions = model.functions
        self._root = model.graph
        self._opsets: Mapping[str, int] = model.graph.opset_imports
        self._graph_opsets: dict[onnx_ir.Graph, Mapping[str, int]] = {}
        self._references: dict[str, onnx_ir.Attr] = {}
        self._depth = 0
        self._calls_left = [MAX_CALLS]
        self._facts: dict[onnx_ir.Value, Fact] = {}
        self._arrays: dict[onnx_ir.Value, np.ndarray] = {}
        self._numbers = itertools.count()
        self._prefix = _unused_prefix(model)
        self.infer_graph(model.graph, [self._declared(value) for value in model.graph.inputs])
        for function in model.functions.values():
            self._opsets = function.opset_imports
            self.infer_graph(function.graph, [UNKNOWN] * len(function.inputs))
        self._opsets = model.graph.opset_imports

    # asking -------------------------------------------------------------------------------------------------------

    def shape(self, value: onnx_ir.Value | None) -> Shape | None:
        """The dims, or None if not even the rank is known (or the value is no tensor)."""
        return None if value is None else self.fact(value).shape

    def rank(self, value: onnx_ir.Value | None) -> int | None:
        """The number of dims."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def dtype(self, value: onnx_ir.Value | None) -> onnx_ir.DataType | None:
        """The element type of a tensor."""
        return None if value is None else self.fact(value).dtype

    def is_const(self, value: onnx_ir.Value | None) -> bool:
        """Whether the value is the same tensor in every run: the output of a Constant node, or an initializer.

        An initializer that is a graph input as well is only a default, so it is no constant.
        """
        return self.tensor(value) is not None

    def tensor(self, value: onnx_ir.Value | None) -> onnx_ir.TensorProtocol | None:
        """The tensor of a constant, not read yet."""
        if value is None:
            return None
        if value.is_initializer():
            return None if value.is_graph_input() else value.const_value
        node = value.producer()
        if node is not None and node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            return _constant_tensor(node)
        return None

    def const(self, value: onnx_ir.Value | None) -> np.ndarray | None:
        """The contents of a constant (do not write to it). A large external tensor is memory-mapped, not read."""
        if value is None:
            return None
        array = self._arrays.get(value)
        if array is None:
            tensor = self.tensor(value)
            if tensor is None:
                return None
            if tensor.size > MAX_CACHED:
                return tensor.numpy()
            self._arrays[value] = array = _read_small(tensor)
        return array

    def const_size(self, value: onnx_ir.Value | None) -> int | None:
        """The number of elements of a constant; its data is not touched."""
        tensor = self.tensor(value)
        return None if tensor is None else tensor.size

    def scalar(self, value: onnx_ir.Value | None) -> bool | int | float | None:
        """The one element of a tensor of exactly one element (of any rank) whose contents are known."""
        array = self.const(value) if self.const_size(value) == 1 else None
        if array is not None:
            dtype = self.dtype(value)
            if dtype in INT_RANGES:
                return array.item()
            item = array.reshape(-1)[0]
            return int(item) if dtype in _SMALL_INTEGERS else float(item) if dtype in _FLOATS else None
        ints = self.ints(value)
        if ints is None or len(ints) != 1:
            return None
        return bool(ints[0]) if self.dtype(value) == onnx_ir.DataType.BOOL else ints[0]

    def ints(self, value: onnx_ir.Value | None) -> tuple[int, ...] | None:
        """The contents of a small integer tensor, constant or not, if they are the same integers in every run."""
        elements = self.elements(value)
        if elements is None or not all(isinstance(element, int) for element in elements):
            return None
        return elements  # type: ignore[return-value]

    def elements(self, value: onnx_ir.Value | None) -> tuple[Dim, ...] | None:
        """The symbolic contents, in row-major order, of an integer or bool tensor of at most 64 elements."""
        if value is None:
            return None
        fact = self.fact(value)
        if fact.elements is None and fact.dtype in INT_RANGES and self.is_const(value):
            count = element_count(fact.shape)
            if count is not None and count <= MAX_ELEMENTS:
                fact = fact._replace(elements=tuple(int(item) for item in self.const(value).reshape(-1)))  # type: ignore[union-attr]
                self._facts[value] = fact
        return fact.elements

    def integers(self, value: onnx_ir.Value | None) -> tuple[Dim, ...] | None:
        """Like :meth:`elements`; where only their number is known, new symbols are made to stand for them."""
        elements = self.elements(value)
        if elements is None and value is not None:
            fact = self.fact(value)
            count = element_count(fact.shape)
            if count is not None and count <= MAX_ELEMENTS and fact.dtype in SYMBOLIC_TYPES:
                elements = tuple(self.fresh_integer() for _ in range(count))
                self._facts[value] = fact._replace(elements=elements)
        return elements

    def floats(self, value: onnx_ir.Value | None) -> tuple[float, ...] | None:
        """The contents of a small constant of a float type."""
        size = self.const_size(value)
        if size is None or size > MAX_ELEMENTS or self.dtype(value) in INT_RANGES:
            return None
        return tuple(float(item) for item in self.const(value).reshape(-1))  # type: ignore[union-attr]

    def fact(self, value: onnx_ir.Value) -> Fact:
        """All that is known about ``value``. Contents of constants are only read when asked for."""
        fact = self._facts.get(value)
        if fact is None:
            tensor = self.tensor(value)
            if tensor is not None:
                fact = Fact(tensor.dtype, tuple(tensor.shape.numpy()))
            elif value.is_graph_input() and value.graph is self._root:
                fact = self._declared(value)
            else:
                return UNKNOWN
            self._facts[value] = fact
        return fact

    # learning -----------------------------------------------------------------------------------------------------

    def infer(self, node: onnx_ir.Node) -> None:
        """Learns about the outputs of a node that was added to the graph, and about its sub-graphs."""
        before = self._opsets
        if node.graph is not None:
            self._opsets = self._graph_opsets.get(node.graph, before)
        try:
            self._infer_node(node)
        finally:
            self._opsets = before

    def assume(self, value: onnx_ir.Value, like: onnx_ir.Value) -> None:
        """Learns that ``value`` computes what ``like`` computes, as in a replacement of the one by the other."""
        known, new = self.fact(like), self.fact(value)
        self._facts[value] = Fact(
            known.dtype if known.dtype is not None else new.dtype,
            known.shape if known.shape is not None else new.shape,
            known.elements if known.elements is not None else new.elements,
            known.items if known.items is not None else new.items,
        )

    def assume_shape(self, value: onnx_ir.Value, shape: Shape) -> None:
        """Learns the dims of a value, of which more is known than follows from its node."""
        self._facts[value] = self.fact(value)._replace(shape=shape)

    def opset(self, domain: str = "") -> int:
        """The version of a domain that the main graph imports; 0 if it imports none."""
        return self._root.opset_imports.get(domain, 0)

    def outputs(self) -> Sequence[onnx_ir.Value]:
        """The outputs of the main graph."""
        return self._root.outputs

    def forget(self, value: onnx_ir.Value) -> None:
        """Drops what is known of a value that is gone (and the references to it)."""
        self._facts.pop(value, None)
        self._arrays.pop(value, None)

    def fresh(self) -> SymDim:
        """A new symbol for an unknown dim (>= 0); no dim of the model has its name."""
        return symbol(f"{self._prefix}{next(self._numbers)}")

    def fresh_integer(self) -> SymDim:
        """A new symbol for an unknown integer of either sign."""
        return symbol(f"${self._prefix}{next(self._numbers)}")

    def infer_graph(self, graph: onnx_ir.Graph, inputs: Sequence[Fact]) -> list[Fact]:
        """Infers a (sub-)graph for the given facts of its inputs; returns the facts of its outputs."""
        self._graph_opsets[graph] = self._opsets
        for value, fact in zip(graph.inputs, inputs, strict=False):
            self._facts[value] = fact
        for node in in_order(graph):
            self._infer_node(node)
        # contents of constants are facts too, so ask for them
        return [self.fact(value)._replace(elements=self.elements(value)) for value in graph.outputs]

    # inside -------------------------------------------------------------------------------------------------------

    def _infer_node(self, node: onnx_ir.Node) -> None:
        outputs = node.outputs
        try:
            results = self._results(node)
        except _INVALID_NODE as error:
            self.failures.append((node, error))
            results = ()
        for index, output in enumerate(outputs):
            self._facts[output] = self._settle(results[index]) if index < len(results) else UNKNOWN

    def _results(self, node: onnx_ir.Node) -> Sequence[Fact]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if self._functions and (function := self._functions.get(node.op_identifier())) is not None:
            return self._call(node, function)
        if node.op_type == "Constant" and domain == "":
            tensor = _constant_tensor(node, self._references)
            return (Fact(tensor.dtype, tuple(tensor.shape.numpy())),) if tensor is not None else ()
        version = self._opsets.get(domain)
        inference = self._inferences.get((domain, node.op_type))
        if inference is not None:
            result = inference(Context(self, node, version or 1, self._references))
        elif (schema := find_schema(node, version)) is not None:
            result = infer_by_schema(Context(self, node, version or 1, self._references), schema)
        else:
            result = [self._declared(output) for output in node.outputs]
        return () if result is None else (result,) if isinstance(result, Fact) else result

    def _call(self, node: onnx_ir.Node, function: onnx_ir.Function) -> Sequence[Fact]:
        """Infers the body of a model-local function for one call; what that leaves open is as declared."""
        declared = [self._declared(output) for output in node.outputs]
        if self._depth == 0:
            self._calls_left[0] = MAX_CALLS
        self._calls_left[0] -= 1
        if self._depth >= MAX_CALL_DEPTH or self._calls_left[0] < 0:
            return declared
        inside = object.__new__(Facts)  # the values of the body mean something else in every call
        inside.__dict__.update(self.__dict__, _facts={}, _arrays={}, _graph_opsets={}, _depth=self._depth + 1)
        inside._opsets = function.opset_imports
        defaults = {name: attr for name, attr in function.attributes.items() if attr.value is not None}
        context = Context(self, node, 1, self._references)
        given = {name: attr for name in node.attributes if (attr := context.attribute(name)) is not None}
        inside._references = {**defaults, **given}
        inputs = [
            UNKNOWN if value is None else self.fact(value)._replace(elements=self.elements(value))
            for value in node.inputs
        ]
        inputs += [UNKNOWN] * (len(function.inputs) - len(inputs))
        results = inside.infer_graph(function.graph, inputs)
        return [
            fact if fact.items is not None or (fact.dtype is not None and fact.shape is not None) else as_declared
            for fact, as_declared in zip(results, declared, strict=False)
        ]

    def _declared(self, value: onnx_ir.Value) -> Fact:
        """The type that the file declares for ``value``."""
        if not isinstance(value.type, onnx_ir.TensorType):
            return UNKNOWN
        shape = None if value.shape is None else tuple(self._declared_dim(dim) for dim in value.shape)
        return Fact(value.dtype, shape)

    def _declared_dim(self, dim: int | onnx_ir.SymbolicDim) -> Dim:
        if isinstance(dim, int):
            return dim if dim >= 0 else self.fresh()
        if not dim.value or dim.value.lstrip("$").startswith(self._prefix):
            return self.fresh()
        return self._named.get(dim.value, symbol(dim.value))  # a name, whatever expression it looks like

    def _settle(self, fact: Fact) -> Fact:
        """Brings what an inference function claims into the form that facts have, dropping what can not be."""
        dtype, shape, elements, items = fact
        if items is not None:
            return Fact(items=tuple(self._settle(item) for item in items))
        if shape is not None:
            if any(type(dim) is not int for dim in shape):
                shape = tuple(dim if type(dim) is int else self._settle_dim(dim) for dim in shape)
            if any(isinstance(dim, int) and dim < 0 for dim in shape):
                return Fact(dtype)
        if elements is not None:
            elements = self._settle_elements(dtype, shape, elements)
        return Fact(dtype, shape, elements)

    def _settle_dim(self, dim: Dim) -> Dim:
        if isinstance(dim, int):
            return int(dim)
        if complexity(dim) > MAX_COMPLEXITY:
            return self.fresh()
        return dim if bounds(dim)[0] >= 0 else maximum(dim, 0)  # a run in which a dim is negative does not succeed

    def _settle_elements(
        self, dtype: onnx_ir.DataType | None, shape: Shape | None, elements: tuple[Dim, ...]
    ) -> tuple[Dim, ...] | None:
        if dtype not in INT_RANGES or len(elements) > MAX_ELEMENTS or element_count(shape) != len(elements):
            return None
        low, high = INT_RANGES[dtype]
        settled: list[Dim] = []
        for element in elements:
            if isinstance(element, int):
                if not low <= element <= high:
                    return None
                settled.append(int(element))
            elif dtype not in SYMBOLIC_TYPES:
                return None
            else:
                settled.append(element if complexity(element) <= MAX_COMPLEXITY else self.fresh_integer())
        return tuple(settled)


def _read_small(tensor: onnx_ir.TensorProtocol) -> np.ndarray:
    """The contents of a small tensor. An external file that was not open before is closed again.

    Otherwise a model with thousands of small external tensors would run out of file descriptors.
    """
    if not isinstance(tensor, onnx_ir.ExternalTensor) or tensor.raw is not None:
        return tensor.numpy()
    array = tensor.numpy().copy()
    tensor.release()
    return array


def _constant_tensor(
    node: onnx_ir.Node, references: Mapping[str, onnx_ir.Attr] | None = None
) -> onnx_ir.TensorProtocol | None:
    """The value of a Constant node; None for a sparse one, or one that only a call of its function would tell."""
    for name, given in node.attributes.data.items():
        attr = (references or {}).get(given.ref_attr_name or "") if given.is_ref() else given
        if attr is None or attr.value is None or attr.type is not _CONSTANT_TYPES.get(name):
            return None
        if name == "value":
            return attr.value
        if name in _CONSTANT_FIELDS:
            return onnx_ir.tensor(np.array(attr.value, _CONSTANT_FIELDS[name]))
        if name in ("value_string", "value_strings"):
            texts = np.array(attr.value, object)
            return onnx_ir.StringTensor([t.encode() for t in texts.reshape(-1)], shape=onnx_ir.Shape(texts.shape))
    return None


def _unused_prefix(model: onnx_ir.Model) -> str:
    """A start of a name that no dim of the model has."""
    names = {
        dim.value
        for graph in model.graphs()
        for value in itertools.chain(graph.inputs, *(node.outputs for node in graph))
        if value.shape is not None
        for dim in value.shape
        if not isinstance(dim, int) and dim.value
    }
    prefix = "_d"
    while any(name.lstrip("$").startswith(prefix) for name in names):
        prefix = "_" + prefix
    return prefix
