"""The one door through which a graph is changed.

The rewriter keeps what a rewrite could lose: the names and types of the graph's outputs, the provenance of every
node, the facts known about values and the worklist of whoever listens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir

from optc.ir.errors import PassError
from optc.ir.facts import Facts
from optc.ir.journal import Journal
from optc.ir.mapped import named
from optc.ir.verify import subgraphs

#: Metadata keys that tell where a node came from; they survive saving.
SOURCE_KEY, RULE_KEY = "optc.source", "optc.rule"
#: Larger constants are initializers in any case: only those can lie in a file of their own.
_CONSTANT_NODE_BYTES = 1 << 20
#: Constants up to this many bytes are shared when they are equal.
_SHARED_BYTES = 64


class Listener(Protocol):
    """Is told about every node for which a rule may now match that did not match before."""

    def changed(self, node: onnx_ir.Node) -> None:
        """The node was inserted, reads something else, has other attributes, or lost a reader."""


class Rewriter:
    """Inserts, replaces and erases nodes of one model.

    Args:
        model: The model to change.
        facts: What is known about its values; derived when not given.
        journal: Numbers the changes and may limit them.
    """

    def __init__(self, model: onnx_ir.Model, facts: Facts | None = None, journal: Journal | None = None) -> None:
        self.model = model
        self.facts = facts or Facts(model)
        self.journal = journal or Journal()
        self.listeners: list[Listener] = []
        self.changes = 0
        self._names = {name for graph in model.graphs() for name in _value_names(graph)}
        self._counter = 0
        self._stems: dict[str, str] = {}
        self._shared: dict[tuple[str, tuple[int, ...], bytes], onnx_ir.Value] = {}
        self._rule: str | None = None
        self._sources: tuple[str, ...] = ()
        self._anchor: onnx_ir.Node | None = None

    # -- context ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def at(self, anchor: onnx_ir.Node, rule: str, nodes: Iterable[onnx_ir.Node] = ()) -> Iterator[None]:
        """Insert before ``anchor`` and stamp what is inserted as made by ``rule`` from ``nodes`` (and the anchor).

        The outermost of nested blocks is one application in the journal, if something was changed in it or it failed.
        """
        previous = self._anchor, self._rule, self._sources
        outermost, changes = self._anchor is None, self.changes
        if outermost:
            self.journal.begin()
        self._anchor, self._rule = anchor, rule
        self._sources = tuple(dict.fromkeys(name for node in (*nodes, anchor) for name in sources(node)))
        concerned, place = self._sources, sources(anchor)
        failed = True
        try:
            yield
            failed = False
        finally:
            self._anchor, self._rule, self._sources = previous
            if outermost and (failed or self.changes != changes):
                self.journal.end(rule, concerned, place)

    def opset(self, domain: str = "") -> int:
        """The version of a domain that the model imports; 0 if it imports none."""
        return self.model.graph.opset_imports.get(domain, 0)

    # -- insertion --------------------------------------------------------------------------------------------------

    def op(
        self,
        op_type: str,
        *inputs: onnx_ir.Value | None,
        domain: str = "",
        outputs: int = 1,
        overload: str = "",
        version: int | None = None,
        **attributes: Any,
    ) -> Any:
        """Insert a node before the anchor.

        Args:
            op_type: The operator.
            inputs: Values, None for an optional input that is left out (at the end it is dropped).
            domain: The operator's domain; its opset import is added (``version``, default 1) where missing.
            outputs: How many outputs the node has.
            overload: The overload of a model-local function.
            version: Opset version to import for a domain that the model does not import yet.
            attributes: Python values; None leaves the attribute out.

        Returns:
            The output value, or a tuple of them if there are several.
        """
        if self._anchor is None or self._anchor.graph is None:
            raise RuntimeError("Rewriter.op is called inside `with rewriter.at(node, rule)`")
        attrs = [onnx_ir.convenience.convert_attribute(k, v) for k, v in attributes.items() if v is not None]
        # An empty name at the end means the same as none at all, but is known to crash optimizers of runtimes.
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        node = onnx_ir.Node(domain, op_type, inputs, attrs, overload=overload, num_outputs=outputs)
        for value in node.outputs:
            value.name = self._name_after(self._anchor.outputs[0].name or op_type, op_type.lower())
        self.insert(node, version=version)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def insert(self, node: onnx_ir.Node, *, version: int | None = None) -> onnx_ir.Node:
        """Insert a node made by the caller (a clone, say) before the anchor; its outputs must be new values."""
        anchor = self._anchor
        if anchor is None or anchor.graph is None:
            raise RuntimeError("Rewriter.insert is called inside `with rewriter.at(node, rule)`")
        for value in node.outputs:
            if not value.name:
                continue
            self._names.add(value.name)
        self.import_opset(node.domain, version)
        self._stamp(node)
        node.name = self.fresh_name(node.name) if node.name else self._name_after(anchor.name or "", node.op_type)
        anchor.graph.insert_before(anchor, node)
        self.facts.infer(node)
        self.changes += 1
        self._tell(node)
        return node

    def import_opset(self, domain: str, version: int | None = None) -> None:
        """Make sure that the model, and the function the anchor lies in, import the domain."""
        imports = self.model.graph.opset_imports
        imports.setdefault(domain, version or 1)
        graph = self._anchor.graph if self._anchor is not None else None
        if graph is not None and graph.opset_imports:  # sub-graphs have none of their own
            graph.opset_imports.setdefault(domain, imports[domain])

    def constant(
        self,
        array: np.ndarray | onnx_ir.TensorProtocol | Sequence[int] | float,
        name: str = "const",
        dtype: np.dtype | type | None = None,
    ) -> onnx_ir.Value:
        """A constant value: an initializer of the main graph. Small equal constants are shared.

        Args:
            array: The contents; a sequence of Python ints becomes int64.
            name: What the constant is about; made unique.
            dtype: NumPy dtype to convert to.
        """
        if not isinstance(array, onnx_ir.TensorProtocol):
            array = np.asarray(array, dtype=dtype)
            key = (array.dtype.name, array.shape, array.tobytes()) if array.nbytes <= _SHARED_BYTES else None
            tensor: onnx_ir.TensorProtocol = onnx_ir.tensor(np.asarray(array, order="C"))
        else:
            key, tensor = None, array
        if key is not None and key in self._shared and self._shared[key].is_initializer():
            return self._shared[key]
        name = self.fresh_name(name)
        value = onnx_ir.Value(
            name=name,
            type=onnx_ir.TensorType(tensor.dtype),
            shape=onnx_ir.Shape(tensor.shape.numpy()),
            const_value=named(tensor, name),
        )
        self.model.graph.register_initializer(value)
        if key is not None:
            self._shared[key] = value
        return value

    # -- change -----------------------------------------------------------------------------------------------------

    def replace(self, old: onnx_ir.Value, new: onnx_ir.Value) -> onnx_ir.Value:
        """Let everything that reads ``old`` read ``new``; a graph output keeps its name, type and declared dims.

        Returns:
            The value that now stands for ``old``: ``new``, or an Identity of it where the interface needs one.

        Raises:
            PassError: The two provably differ in dtype or rank, so the rule is wrong.
        """
        if old is new:
            return new
        self._check_compatible(old, new)
        if old.is_graph_output():
            new = self._take_over_output(old, new)
        users = [use.node for use in old.uses()]
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.changes += 1
        for node in dict.fromkeys(users):
            self._tell(node)
        return new

    def materialize(self, value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol) -> onnx_ir.Value:
        """Replace a node's output by a constant, which takes over its name where no inner scope may need that.

        It becomes an initializer; an output of a graph becomes a Constant node, if it is not large.
        """
        name, node = value.name, value.producer()
        if value.is_graph_output() and node is not None and tensor.nbytes <= _CONSTANT_NODE_BYTES:
            with self.at(node, self._rule or "constant"):
                return self.replace(value, self.op("Constant", value=tensor))
        at_top = value.graph is self.model.graph
        constant = self.constant(tensor, name or "const")
        new = self.replace(value, constant)
        if new is constant and at_top and name:
            value.name = self.fresh_name(f"{name}_replaced")
            constant.name = name
        return new

    def keep_name(self, old: onnx_ir.Value, new: onnx_ir.Value) -> None:
        """Let ``new``, made to stand for ``old``, bear its name, so that what users look for is still there."""
        if not (old.is_graph_output() or new.is_graph_output()):
            old.name, new.name = new.name, old.name

    def set_input(self, node: onnx_ir.Node, index: int, value: onnx_ir.Value | None) -> None:
        """Let one input of a node read another value of equal contents."""
        old = node.inputs[index]
        if old is value:
            return
        if old is not None and value is not None:
            self._check_compatible(old, value)
        node.replace_input_with(index, value)
        self._touch(node)
        producer = old.producer() if old is not None else None
        if producer is not None:
            self._tell(producer)

    def set_attribute(self, node: onnx_ir.Node, name: str, value: Any) -> None:
        """Set (or with None remove) an attribute of a node."""
        if value is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = onnx_ir.convenience.convert_attribute(name, value)
        self._touch(node)

    def set_contents(self, constant: onnx_ir.Value, tensor: onnx_ir.TensorProtocol) -> None:
        """Give a constant (an initializer, or what a Constant node makes) other contents.

        Raises:
            PassError: It would have another type or shape, or is no constant.
        """
        old = self.facts.tensor(constant)
        if old is None or old.dtype != tensor.dtype or tuple(old.shape.numpy()) != tuple(tensor.shape.numpy()):
            raise PassError(f"the contents given to {constant.name!r} are not of its type and shape")
        node = constant.producer()
        if node is None:
            constant.const_value = named(tensor, constant.name)
            self.changes += 1
        else:
            for name in list(node.attributes):
                del node.attributes[name]
            self.set_attribute(node, "value", tensor)
        self.facts.forget(constant)
        for use in constant.uses():
            self._tell(use.node)

    def set_metadata(self, key: str, value: str) -> None:
        """Say something about the model as a whole."""
        self.model.metadata_props[key] = value
        self.changes += 1

    def drop_output(self, node: onnx_ir.Node, index: int) -> None:
        """Leave out an optional output that nobody reads."""
        value = node.outputs[index]
        if value.uses() or value.is_graph_output():
            raise PassError(f"the output {value.name!r} of {node.op_type} is used; it cannot be left out")
        value.name = ""
        size = len(node.outputs)
        while size > 1 and not node.outputs[size - 1].name:
            size -= 1
        node.resize_outputs(size)
        self._touch(node)

    def erase(self, node: onnx_ir.Node) -> None:
        """Remove a node that nobody reads, then its producers as far as nobody reads them either."""
        pending = [node]
        while pending:
            dead = pending.pop()
            if dead.graph is None:
                continue
            if not is_dead(dead):
                self._tell(dead)  # it lost a reader: now it may be used once only, which many patterns wait for
                continue
            producers = dict.fromkeys(v.producer() for v in reads(dead) if v is not None)
            _take_apart(dead)
            dead.graph.remove(dead, safe=True)
            self.changes += 1
            pending.extend(p for p in producers if p is not None and p.graph is not None)

    def restore_order(self, graph: onnx_ir.Graph) -> None:
        """Let producers come before readers again, after a node took over outputs that are read before it.

        Raises:
            PassError: They depend on each other in a cycle.
        """
        try:
            graph.sort()
        except ValueError as error:
            raise PassError(f"rule {self._rule or '?'} has made a cycle") from error

    def erase_initializer(self, value: onnx_ir.Value) -> None:
        """Drop an initializer that nobody reads and that is neither an input nor an output; any other value is kept."""
        graph = value.graph
        if graph is None or not value.is_initializer():
            return
        if value.uses() or value.is_graph_input() or value.is_graph_output():
            return
        del graph.initializers[value.name or ""]
        self.changes += 1

    def relearn(self) -> None:
        """Derive all facts anew: for changes that let more be known of values that lie behind them."""
        self.facts = Facts(self.model)

    def fresh_name(self, base: str) -> str:
        """A value or node name that nothing in the model bears yet."""
        name = base
        while name in self._names:
            self._counter += 1
            name = f"{base}_{self._counter}"
        self._names.add(name)
        return name

    def _name_after(self, base: str, suffix: str) -> str:
        """A fresh name made of another one; suffixes do not pile up when what was made is rewritten in its turn."""
        stem = self._stems.get(base, base)
        name = self.fresh_name(f"{stem}_{suffix}" if stem else suffix)
        self._stems[name] = stem
        return name

    # -- inside -----------------------------------------------------------------------------------------------------

    def _touch(self, node: onnx_ir.Node) -> None:
        self.changes += 1
        if self._rule is not None:
            self._stamp(node, keep=True)
        self._tell(node)

    def _tell(self, node: onnx_ir.Node) -> None:
        for listener in self.listeners:
            listener.changed(node)

    def _stamp(self, node: onnx_ir.Node, keep: bool = False) -> None:
        if self._rule is None:
            return
        old = sources(node) if keep else ()
        rules = node.metadata_props.get(RULE_KEY, "").split(",") if keep else []
        node.metadata_props[SOURCE_KEY] = ",".join(dict.fromkeys((*old, *self._sources)))
        node.metadata_props[RULE_KEY] = ",".join(dict.fromkeys(r for r in (*rules, self._rule) if r))

    def _check_compatible(self, old: onnx_ir.Value, new: onnx_ir.Value) -> None:
        facts = self.facts
        for what, known in (("dtype", facts.dtype), ("rank", facts.rank)):
            a, b = known(old), known(new)
            if a is not None and b is not None and a != b:
                raise PassError(
                    f"rule {self._rule or '?'} would replace {old.name!r} ({what} {a}) by {new.name!r} ({what} {b})"
                )

    def _take_over_output(self, old: onnx_ir.Value, new: onnx_ir.Value) -> onnx_ir.Value:
        """Let ``new`` become the graph output that ``old`` is, under its name."""
        producer, graph = new.producer(), old.graph
        free = producer is not None and producer.graph is graph and not new.is_graph_output()
        if not free:
            anchor = old.producer()
            if anchor is None:
                raise PassError(f"the graph input {old.name!r} is an output; it cannot be replaced")
            with self.at(anchor, self._rule or "keep-output"):
                new = self.op("Identity", new)
        name = old.name
        old.name = self.fresh_name(f"{name}_replaced")
        new.name = name
        new.type, new.shape = old.type or new.type, old.shape if old.shape is not None else new.shape
        return new


def sources(node: onnx_ir.Node) -> tuple[str, ...]:
    """Names of the nodes of the original model that a node stands for."""
    recorded = node.metadata_props.get(SOURCE_KEY)
    if recorded is not None:
        return tuple(recorded.split(",")) if recorded else ()
    return (node.name,) if node.name else ()


def is_dead(node: onnx_ir.Node) -> bool:
    """Whether nothing reads any output of the node."""
    return not any(v.uses() or v.is_graph_output() for v in node.outputs)


def users(value: onnx_ir.Value) -> list[onnx_ir.Node]:
    """The nodes that read a value, each once."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def copy_attributes(node: onnx_ir.Node) -> Mapping[str, onnx_ir.Attr]:
    """A node's attributes, to be handed on to :meth:`Rewriter.op` or a new node."""
    return dict(node.attributes.items())


def _take_apart(node: onnx_ir.Node) -> None:
    """Empty a node's sub-graphs, so that nothing in them counts as a reader, or as a node to rewrite, any more."""
    for subgraph in subgraphs(node):
        subgraph.outputs.clear()
        for inner in reversed(list(subgraph)):
            _take_apart(inner)
            subgraph.remove(inner, safe=True)


def reads(node: onnx_ir.Node) -> Iterator[onnx_ir.Value | None]:
    """What a node and everything in its sub-graphs read; None for inputs that are left out."""
    yield from node.inputs
    for subgraph in subgraphs(node):
        for inner in subgraph:
            yield from reads(inner)


def _value_names(graph: onnx_ir.Graph) -> Iterator[str]:
    for value in (*graph.inputs, *graph.initializers.values()):
        if value.name:
            yield value.name
    for node in graph:
        if node.name:
            yield node.name
        for value in node.outputs:
            if value.name:
                yield value.name


__all__ = ["RULE_KEY", "SOURCE_KEY", "Listener", "Rewriter", "copy_attributes", "is_dead", "reads", "sources", "users"]
