"""Printing a model, a graph or a node as text: for golden files, dumps between passes, and people.

The text is ONNX's own textual syntax (onnx/docs/Syntax.md), so ``onnx.parser`` reads it back, except that the data of
larger tensors is left out: they are declared by type alone, and a comment says how large they are and what their
digest is. Equal models print as equal text: attributes are sorted, numbers are written in the shortest form that reads
back to the same number, 16-bit floats as their bits (which is what the parser wants) with the values beside them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from optc.ir.rewriter import RULE_KEY, SOURCE_KEY

_PLAIN = re.compile(r"[A-Za-z_]\w*")
#: Words that the parser would take for something else where a name may stand.
_RESERVED = frozenset({"seq", "map", "optional", "sparse_tensor"})
_WRITABLE = frozenset(
    ["FLOAT", "DOUBLE", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL"]
)
_HALVES = frozenset({onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16})
_INDENT = "   "
_ABSENT = '""'


@dataclass(frozen=True)
class Style:
    """How much to print.

    Attributes:
        canonical: Rename what is no input or output of the main graph by order of appearance, and leave out what does
            not matter to what a model computes: node names, the model's own names, unused initializers, declarations.
        elements: Tensors of more elements are elided.
        digests: Print a digest of every elided tensor (this reads its data).
        types: Print the type of every node's outputs where it is declared.
        provenance: Print which nodes of the original model a node stands for, and which rules made it.
    """

    canonical: bool = False
    elements: int = 16
    digests: bool = True
    types: bool = False
    provenance: bool = False


def print_model(model: onnx_ir.Model, style: Style = Style()) -> str:
    """A whole model, its functions included."""
    printer = _Printer(style)
    return "\n".join([*printer.model(model), ""])


def print_graph(graph: onnx_ir.Graph, style: Style = Style()) -> str:
    """A graph alone."""
    return "\n".join([*_Printer(style).graph(graph), ""])


def print_node(node: onnx_ir.Node, style: Style = Style()) -> str:
    """A node; several lines only if it has sub-graphs."""
    return "\n".join(_Printer(style).node(node))


def print_type(value: onnx_ir.Value) -> str:
    """The declared type of a value, ``float[B,4]``; empty if there is none."""
    if value.type is None:
        return ""
    return _type(value.type, value.shape)


class _Printer:
    """Prints parts of one model, and keeps the names it gave."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self._names: dict[onnx_ir.Value, str] = {}
        self._kept: set[str] = set()
        self._numbers = {letter: itertools.count() for letter in "cv"}
        self._functions: dict[onnx_ir.OperatorIdentifier, str] = {}

    # -- the parts of a model ---------------------------------------------------------------------------------------

    def model(self, model: onnx_ir.Model) -> Iterator[str]:
        entries = [] if self.style.canonical else [f"ir_version: {model.ir_version}"]
        entries.append(f"opset_import: [{_imports(model.graph.opset_imports)}]")
        yield f"<{', '.join(entries)}>"
        if self.style.canonical:
            self._number_functions(model)
        yield from self.graph(model.graph, main=True)
        for key in self._functions or model.functions:
            yield from self._function(model.functions[key])

    def graph(self, graph: onnx_ir.Graph, main: bool = False) -> Iterator[str]:
        if self.style.canonical:
            self._keep_names(graph, main)
        inputs = ", ".join(map(self._declared, graph.inputs))
        outputs = ", ".join(map(self._declared, graph.outputs))
        name = "main" if self.style.canonical else _identifier(graph.name or "main")
        yield f"{name} ({inputs}) => ({outputs})"
        yield from self._initializers(graph)
        yield from self._body(graph)

    def _function(self, function: onnx_ir.Function) -> Iterator[str]:
        entries = [f"domain: {json.dumps(function.domain)}"]
        if overload := self._overload(function.identifier()):
            entries.append(f"overload: {json.dumps(overload)}")
        entries.append(f"opset_import: [{_imports(function.opset_imports)}]")
        yield f"<{', '.join(entries)}>"
        attributes = ", ".join(_identifier(name) for name in sorted(function.attributes))
        inputs, outputs = (", ".join(map(self.name, values)) for values in (function.inputs, function.outputs))
        yield f"{function.name}{f' <{attributes}>' if attributes else ''} ({inputs}) => ({outputs})"
        yield from self._body(function)

    def _body(self, nodes: Iterable[onnx_ir.Node]) -> Iterator[str]:
        yield "{"
        for node in nodes:
            for line in self.node(node):
                yield _INDENT + line
        yield "}"

    def _initializers(self, graph: onnx_ir.Graph) -> Iterator[str]:
        values = list(graph.initializers.values())
        if self.style.canonical:
            order = {value: index for index, value in enumerate(_read_values(graph))}
            values = sorted((v for v in values if v in order), key=order.__getitem__)
        if not values:
            return
        yield "<"
        for index, value in enumerate(values):
            text, comment = self._initializer(value)
            comma = "," if index + 1 < len(values) else ""
            yield f"{_INDENT}{text}{comma}{f'  # {comment}' if comment else ''}"
        yield ">"

    def _initializer(self, value: onnx_ir.Value) -> tuple[str, str]:
        tensor, name = value.const_value, self.name(value)
        if tensor is None:
            return f"{print_type(value)} {name}", "no data"
        declared = f"{_tensor_type(tensor)} {name}"
        if tensor.size <= self.style.elements:
            items = _items(tensor)
            if items is not None:
                shown = ", ".join(_values(tensor)) if tensor.dtype in _HALVES else ""
                return f"{declared} = {{{items}}}", shown
            return declared, f"{{{', '.join(_values(tensor))}}}"
        size = f"{tensor.nbytes} bytes"
        return declared, f"{size}, sha256 {_digest(tensor)}" if self.style.digests else size

    def node(self, node: onnx_ir.Node) -> Iterator[str]:
        label = f"[{_identifier(node.name)}] " if node.name and not self.style.canonical else ""
        outputs = ", ".join(map(self.name, node.outputs)) or _ABSENT
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if overload := self._overload(node.op_identifier()):
            op += f":{overload}"
        comment = self._comment(node)
        # Inputs take their names before sub-graphs do, so that numbering follows the text.
        inputs = ", ".join(_ABSENT if v is None else self.name(v) for v in node.inputs)
        attributes = sorted(node.attributes.values(), key=lambda attr: attr.name)
        simple = [self._attribute(attr) for attr in attributes if not _holds_graphs(attr)]
        bodies = [attr for attr in attributes if _holds_graphs(attr)]
        if not bodies:
            shown = f" <{', '.join(simple)}>" if simple else ""
            yield f"{label}{outputs} = {op}{shown} ({inputs}){comment}"
            return
        yield f"{label}{outputs} = {op} ({inputs}) <{comment}"
        for index, attr in enumerate(bodies):
            graphs = [attr.as_graph()] if attr.type == onnx_ir.AttributeType.GRAPH else list(attr.as_graphs())
            last = index + 1 == len(bodies) and not simple
            for number, graph in enumerate(graphs):
                lines = list(self.graph(graph))
                opening = f"{_identifier(attr.name)} = " + ("[" if len(graphs) > 1 and number == 0 else "")
                lines[0] = (opening if number == 0 else "") + lines[0]
                closing = "]" if len(graphs) > 1 and number + 1 == len(graphs) else ""
                lines[-1] += closing + ("" if last and number + 1 == len(graphs) else ",")
                yield from (_INDENT + line for line in lines)
        if simple:
            yield _INDENT + ", ".join(simple)
        yield ">"

    # -- pieces -----------------------------------------------------------------------------------------------------

    def name(self, value: onnx_ir.Value) -> str:
        """What a value is called in the text."""
        if not value.name and value.producer() is not None and not value.uses():
            return _ABSENT
        if value not in self._names:
            if self.style.canonical:
                letter = "c" if value.is_initializer() else "v"
                self._names[value] = next(n for i in self._numbers[letter] if (n := f"{letter}{i}") not in self._kept)
            else:
                self._names[value] = _identifier(value.name or "")
        return self._names[value]

    def _keep_names(self, graph: onnx_ir.Graph, main: bool) -> None:
        for value in (*graph.inputs, *graph.outputs) if main else ():
            self._names[value] = _identifier(value.name or "")
            self._kept.add(self._names[value])

    def _number_functions(self, model: onnx_ir.Model) -> None:
        """Give functions the order in which they are first called, and overloads that do not hang on a digest."""
        pending: list[Iterable[onnx_ir.Node]] = [model.graph.all_nodes()]
        counts: dict[tuple[str, str], int] = {}
        while pending:
            for node in pending.pop(0):
                key = node.op_identifier()
                if key in model.functions and key not in self._functions:
                    number = counts[key[:2]] = counts.get(key[:2], 0) + 1
                    self._functions[key] = str(number) if key[2] else ""
                    pending.append(model.functions[key].all_nodes())

    def _overload(self, key: onnx_ir.OperatorIdentifier) -> str:
        return self._functions.get(key, key[2])

    def _declared(self, value: onnx_ir.Value) -> str:
        return f"{print_type(value)} {self.name(value)}".strip()

    def _comment(self, node: onnx_ir.Node) -> str:
        notes = []
        if self.style.types:
            notes.append(", ".join(print_type(v) or "?" for v in node.outputs))
        if self.style.provenance and SOURCE_KEY in node.metadata_props:
            rules = node.metadata_props.get(RULE_KEY, "")
            notes.append(f"{rules}: {node.metadata_props[SOURCE_KEY]}" if rules else node.metadata_props[SOURCE_KEY])
        return f"  # {'; '.join(notes)}" if notes else ""

    def _attribute(self, attr: onnx_ir.Attr) -> str:
        name, kinds = _identifier(attr.name), onnx_ir.AttributeType
        if attr.is_ref():
            return f"{name}: {attr.type.name.lower()} = @{attr.ref_attr_name}"
        if attr.type == kinds.TENSOR:
            tensor = attr.as_tensor()
            items = _items(tensor) if tensor.size <= self.style.elements else None
            if items is not None:
                return f"{name} = {_tensor_type(tensor)} {{{items}}}"
            digest = f"sha256 {_digest(tensor)}" if self.style.digests else "..."
            return f"{name} = {_tensor_type(tensor)} {{{digest}}}"
        if attr.type in (kinds.INTS, kinds.FLOATS, kinds.STRINGS):
            if not attr.value:
                return f"{name}: {attr.type.name.lower()} = []"
            return f"{name} = [{', '.join(map(_scalar, attr.value))}]"
        return f"{name} = {_scalar(attr.value)}"


def _read_values(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    """What the nodes of a graph and of its sub-graphs read, in order, then its outputs."""
    for node in graph.all_nodes():
        yield from (value for value in node.inputs if value is not None)
    yield from graph.outputs


def _holds_graphs(attr: onnx_ir.Attr) -> bool:
    return not attr.is_ref() and attr.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS)


def _imports(imports: dict[str, int]) -> str:
    return ", ".join(f"{json.dumps(domain)}: {version}" for domain, version in sorted(imports.items()))


def _identifier(name: str) -> str:
    return name if _PLAIN.fullmatch(name) and name not in _RESERVED else json.dumps(name)


def _type(kind: Any, shape: onnx_ir.Shape | None) -> str:
    if isinstance(kind, onnx_ir.SequenceType):
        return f"seq({_type(kind.elem_type, shape)})"
    if isinstance(kind, onnx_ir.OptionalType):
        return f"optional({_type(kind.elem_type, shape)})"
    element = kind.dtype.name.lower()
    if isinstance(kind, onnx_ir.SparseTensorType):
        return f"sparse_tensor({element}{_dims(shape)})"
    return f"{element}{_dims(shape)}"


def _dims(shape: onnx_ir.Shape | None) -> str:
    if shape is None:
        return "[]"
    dims = [str(d) if isinstance(d, int) else _identifier(d.value) if d.value else "?" for d in shape]
    return f"[{','.join(dims)}]" if dims else ""


def _tensor_type(tensor: onnx_ir.TensorProtocol) -> str:
    dims = ",".join(str(d) for d in tensor.shape.numpy())
    return f"{tensor.dtype.name.lower()}{f'[{dims}]' if dims else ''}"


def _items(tensor: onnx_ir.TensorProtocol) -> str | None:
    """The contents of a small tensor as the parser reads them; None if it could not."""
    if tensor.dtype in _HALVES:
        return ", ".join(str(bits) for bits in tensor.numpy().reshape(-1).view(np.uint16))
    if tensor.dtype == onnx_ir.DataType.STRING:
        return ", ".join(_values(tensor))
    if tensor.dtype.name not in _WRITABLE:
        return None
    array = tensor.numpy()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return None
    return ", ".join(_values(tensor))


def _values(tensor: onnx_ir.TensorProtocol) -> Sequence[str]:
    """The elements of a tensor, each as text."""
    if tensor.dtype == onnx_ir.DataType.STRING:
        return [_scalar(item) for item in tensor.numpy().reshape(-1)]
    array = tensor.numpy().reshape(-1)
    if array.dtype.kind == "b":
        return [str(int(item)) for item in array]
    if array.dtype.kind in "iu":
        return [str(item) for item in array]
    return [str(item).removesuffix(".0") for item in array]


def _scalar(value: Any) -> str:
    if isinstance(value, bytes):
        return json.dumps(value.decode("utf-8", "backslashreplace"))
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, float):
        # Attributes are 32-bit floats; the shortest text of the 64-bit number would show digits that are not there.
        text = str(np.float32(value)) if math.isfinite(value) else repr(value)
        return text if re.search(r"[.en]", text) else f"{text}.0"
    return str(value)


def _digest(tensor: onnx_ir.TensorProtocol) -> str:
    return hashlib.sha256(tensor.tobytes()).hexdigest()[:12]


__all__ = ["Style", "print_graph", "print_model", "print_node", "print_type"]
