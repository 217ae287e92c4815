"""Value numbering: keys that are equal only for nodes which compute the same."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Iterator

import onnx
import onnx_ir

from optc.ir.pattern import COMMUTATIVE
from optc.ir.verify import schema_of
from optc.passes.base import PassContext
from optc.passes.clean.purity import is_pure

#: Constants up to this many bytes count as the same value when they are equal; larger ones are left to ``dedup``.
_SMALL_BYTES, _SMALL_STRINGS = 1024, 16
#: Operators that give the same bits whichever way round their operands are; not so Max and Min, for 0 and -0.
_SYMMETRIC = COMMUTATIVE - {"Max", "Min"}

Number = Hashable


class Numbering:
    """Numbers the values of a model; two values of one number are equal in every run.

    Args:
        ctx: The context of the pass that asks.
    """

    def __init__(self, ctx: PassContext) -> None:
        self._ctx = ctx
        self._numbers: dict[onnx_ir.Value, Number] = {}
        self._depth = 0

    def number(self, value: onnx_ir.Value | None) -> Number:
        """A value's number: the contents of a small constant, otherwise the value itself."""
        if value is None:
            return None
        number = self._numbers.get(value)
        if number is None:
            tensor = self._ctx.facts.tensor(value)
            number = value if tensor is None else _contents(tensor) or value
            self._numbers[value] = number
        return number

    def node_key(self, node: onnx_ir.Node) -> Hashable | None:
        """What a node computes from what; None for a node that must not be merged with another."""
        if not node.outputs or not is_pure(node, self._ctx):
            return None
        return self._node_key(node)

    def graphs_equal(self, a: onnx_ir.Graph, b: onnx_ir.Graph) -> bool:
        """Whether two sub-graphs compute the same, node by node."""
        return self._graph_key(a) == self._graph_key(b)

    def _node_key(self, node: onnx_ir.Node) -> Hashable:
        inputs = [self.number(value) for value in node.inputs]
        if node.domain == "" and node.op_type in _SYMMETRIC:
            inputs.sort(key=_order)
        return (
            node.op_identifier(),
            tuple(inputs),
            tuple(sorted(self._attributes(node), key=lambda item: item[0])),
            tuple(bool(value.name) for value in node.outputs),
        )

    def _attributes(self, node: onnx_ir.Node) -> Iterator[tuple[str, Hashable]]:
        """Attributes in comparable form, those left out that say what is so by default."""
        defaults = _defaults(node.op_type, self._ctx.rewriter.opset(node.domain), node.domain)
        for name, attribute in node.attributes.items():
            if attribute.is_ref():
                yield name, ("ref", attribute.ref_attr_name)
                continue
            key = self._attribute(attribute)
            if defaults.get(name) != key:
                yield name, key

    def _attribute(self, attribute: onnx_ir.Attr) -> Hashable:
        kind, value = attribute.type, attribute.value
        if kind == onnx_ir.AttributeType.GRAPH:
            return kind, self._graph_key(value)
        if kind == onnx_ir.AttributeType.GRAPHS:
            return kind, tuple(self._graph_key(graph) for graph in value)
        if kind == onnx_ir.AttributeType.TENSOR:
            return kind, _contents(value) or value
        if kind == onnx_ir.AttributeType.FLOAT:
            return kind, value.hex()
        if kind == onnx_ir.AttributeType.FLOATS:
            return kind, tuple(item.hex() for item in value)
        if isinstance(value, list):
            value = tuple(value)
        return kind, value if isinstance(value, int | str | bytes | tuple) else repr(value)

    def _graph_key(self, graph: onnx_ir.Graph) -> Hashable:
        """The graph's nodes, its own values numbered by where they are defined."""
        own: list[onnx_ir.Value] = []
        self._depth += 1

        def define(values: Iterable[onnx_ir.Value]) -> None:
            for value in values:
                if self._ctx.facts.tensor(value) is None:
                    self._numbers[value] = ("inner", self._depth, len(own))
                    own.append(value)

        try:
            define(graph.inputs)
            nodes = []
            for node in graph:
                nodes.append(self._node_key(node))
                define(node.outputs)
            inputs = tuple((str(value.type), str(value.shape)) for value in graph.inputs)
            return inputs, tuple(nodes), tuple(self.number(value) for value in graph.outputs)
        finally:
            self._depth -= 1
            for value in own:
                del self._numbers[value]


def _order(number: Number) -> tuple[str, int]:
    """Any order will do, as long as it depends on the numbers alone."""
    return type(number).__name__, hash(number)


def _contents(tensor: onnx_ir.TensorProtocol) -> Hashable | None:
    """The dtype, shape and contents of a small tensor; None for a large one."""
    if tensor.dtype == onnx_ir.DataType.STRING:
        contents: Hashable = repr(tensor.numpy().tolist()) if tensor.size <= _SMALL_STRINGS else None
    else:
        contents = tensor.tobytes() if tensor.nbytes <= _SMALL_BYTES else None
    return None if contents is None else (tensor.dtype, tuple(tensor.shape.numpy()), contents)


@functools.lru_cache(maxsize=1024)
def _defaults(op_type: str, version: int, domain: str) -> dict[str, Hashable]:
    """The defaults of an operator's attributes, in the form in which attributes are compared."""
    probe = onnx_ir.Node(domain, op_type, [])
    schema = schema_of(probe, version)
    if schema is None:
        return {}
    found: dict[str, Hashable] = {}
    for name, attribute in schema.attributes.items():
        proto = attribute.default_value
        if proto.type == onnx.AttributeProto.INT:
            found[name] = onnx_ir.AttributeType.INT, proto.i
        elif proto.type == onnx.AttributeProto.FLOAT:
            found[name] = onnx_ir.AttributeType.FLOAT, proto.f.hex()
        elif proto.type == onnx.AttributeProto.STRING:
            found[name] = onnx_ir.AttributeType.STRING, proto.s.decode()
    return found
