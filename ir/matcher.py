"""Matching patterns against a graph, with the reason of the nearest miss.

Backtracking is over generators: every alternative (operand order, grouping of a sum, branch of a OneOf) is one more
solution of a generator, and bindings made by a failed alternative are undone. A step budget bounds the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.names import label, split_op
from optc.ir.pattern import COMMUTATIVE, Const, Named, OneOf, Op, Pattern, Product, Sum, Through, Var, _Flat
from optc.ir.rewriter import reads, users
from optc.ir.verify import schema_of

_STEP_LIMIT = 20_000
#: Operators whose result has the rank of the operand with most dims.
_BROADCASTING = COMMUTATIVE | {"Sub", "Div", "Pow", "Where", "Mod", "PRelu", "Less", "Greater"}
#: How far a constant may be from the one in the pattern, relative to it: the rounding of its dtype, and of the few
#: digits that exporters write (1.4142, 0.044715).
_TOLERANCE = {onnx_ir.DataType.FLOAT16: 2e-3, onnx_ir.DataType.BFLOAT16: 8e-3}
_DEFAULT_TOLERANCE = 2e-5
#: Share of a pattern's nodes from which on a miss is a near one.
_NEAR = 0.5
#: Significant bits that all float types of models have (bfloat16's).
_COMMON_BITS = 8


@dataclass
class Miss:
    """Why and where a pattern did not match, for the attempt that got furthest.

    Where the pattern fits but must not be rewritten, ``wanted`` is the reason and ``found`` is empty.

    Attributes:
        rule: Name of the rule.
        root: The node at which the match began.
        at: The node or value at which it stopped.
        wanted: What it wanted there.
        found: What it found there.
        matched: How many nodes had matched, and one more where only a detail was wrong.
        size: Nodes of the smallest match of the whole pattern.
        sources: Names of the nodes of the original model that the root stands for.
        anchor: The root itself; None once the miss is known to stand.
        detail: 1 if one of ``matched`` is a node of which only a detail was wrong.
    """

    rule: str
    root: str
    at: str
    wanted: str
    found: str
    matched: int
    size: int = 1
    sources: tuple[str, ...] = ()
    anchor: onnx_ir.Node | None = field(default=None, repr=False, compare=False)
    detail: int = field(default=0, repr=False, compare=False)

    @property
    def nearness(self) -> float:
        """How much of the pattern fitted, 0 to 1."""
        return 1.0 if not self.found else max(0.0, min(1.0, self.matched / self.size))

    @property
    def telling(self) -> bool:
        """Whether it came near: two nodes matched in full, and half of the pattern, or it was refused."""
        return not self.found or (self.matched - self.detail > 1 and self.nearness >= _NEAR)

    def __str__(self) -> str:
        why = f"wanted {self.wanted}, found {self.found}" if self.found else self.wanted
        return f"{self.rule} at {self.root}: stopped at {self.at}: {why}"


@dataclass
class Match:
    """A place where a pattern fits.

    Attributes:
        root: The node that the pattern's root matched.
        bindings: Values bound to variables (and attribute values bound to attribute variables).
        nodes: The matched nodes, root first.
        facts: What is known about the values.
    """

    root: onnx_ir.Node
    facts: Facts
    bindings: dict[str, Any] = field(default_factory=dict)
    nodes: list[onnx_ir.Node] = field(default_factory=list)
    exported: list[onnx_ir.Value] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["bindings"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, name: str) -> Any:
        return self.bindings[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The binding of a variable, or a default where the branch that binds it was not taken."""
        return self.bindings.get(name, default)

    @property
    def output(self) -> onnx_ir.Value:
        """The value that the pattern's root stands for."""
        return self.root.outputs[0]

    def scalar(self, name: str) -> float | int | bool | None:
        """The value of a bound scalar constant."""
        return self.facts.scalar(self.bindings[name])


def match(
    pattern: Pattern,
    root: onnx_ir.Node,
    facts: Facts,
    rule: str = "",
    refuse: Callable[[Match], str | None] | None = None,
) -> Match | Miss:
    """Match a pattern at a node's first output: the first way that fits and that ``refuse`` has no reason against.

    Inner values that are also read outside of the match, or are graph outputs, stop the match, unless the pattern
    exports them: a fused op would have to compute them twice.
    """
    attempt = _Attempt(root, facts, rule)
    try:
        found = attempt.first(pattern, refuse)
    except _Exhausted as error:
        found = Miss(rule, label(root), str(error), "a match within the step limit", "too many ways", 1)
    if isinstance(found, Miss):
        found.size = max(1, len(pattern.least))
    return found


class _Exhausted(Exception):
    """The search took too many steps."""


class _Attempt:
    """One attempt at one root: the bindings so far, and the furthest failure."""

    def __init__(self, root: onnx_ir.Node, facts: Facts, rule: str) -> None:
        self.facts, self.rule = facts, rule
        self.found = Match(root, facts)
        self.steps = 0
        self.miss = Miss(rule, label(root), label(root), "the pattern", "nothing like it", -1)

    def first(self, pattern: Pattern, refuse: Callable[[Match], str | None] | None) -> Match | Miss:
        """The first way to match that does not leak and is not refused."""
        root = self.found.root
        for _ in self.value(pattern, root.outputs[0]):
            leak = self.leak()
            if leak is not None:
                self.fail(leak[0], "a value that only the pattern uses", leak[1], bonus=1)
                continue
            raised = self.raised()
            if raised is not None:
                self.fail(raised[0], "a constant that leaves the rank as it is", raised[1], bonus=1)
                continue
            found = self.found
            fit = Match(root, self.facts, dict(found.bindings), list(found.nodes), list(found.exported))
            reason = refuse(fit) if refuse is not None else None
            if reason is None:
                return fit
            self.fail(label(root), reason, "", bonus=1)
        return self.miss

    def fail(self, at: str, wanted: str, found: str, bonus: int = 0) -> None:
        matched = len(self.found.nodes) + bonus
        if matched > self.miss.matched:
            self.miss = Miss(self.rule, self.miss.root, at, wanted, found, matched, detail=max(0, bonus))

    def leak(self) -> tuple[str, str] | None:
        """An inner value that is needed outside of the match: where, and by whom."""
        inside = set(self.found.nodes)
        kept = {self.found.root.outputs[0], *self.found.exported}
        for node in self.found.nodes:
            if node.graph is not self.found.root.graph:
                return label(node), "it lies in an outer graph"
            for value in node.outputs:
                if value in kept:
                    continue
                if value.is_graph_output():
                    return label(node), f"{value.name!r} is an output of the graph"
                for user in users(value):
                    if user not in inside:
                        return label(node), f"{value.name!r} is also used by {label(user)}"
        return self._way_back(inside) if self.found.exported else None

    def raised(self) -> tuple[str, str] | None:
        """A constant of one element that has more dims than what it is joined with: where, and what it is.

        Patterns take such constants for numbers, whatever their rank; but here the result would lose dims.
        """
        for node in self.found.nodes:
            if node.domain or node.op_type not in _BROADCASTING:
                continue
            for value in node.inputs:
                rank = self.facts.rank(value)
                if rank and self._is_number(value) and not self._has_rank(node, rank):
                    return label(node), f"one of {rank} dims"
        return None

    def _is_number(self, value: onnx_ir.Value | None) -> bool:
        return self.facts.const_size(value) == 1

    def _has_rank(self, node: onnx_ir.Node, rank: int) -> bool:
        """Whether a node's result provably has this rank without any constants, or all that read it have."""
        others = (self.facts.rank(value) for value in node.inputs if not self._is_number(value))
        if max((other for other in others if other is not None), default=0) >= rank:
            return True
        if node is self.found.root or node.domain or node.op_type not in _BROADCASTING:
            return False
        made = node.outputs[0]
        readers = [user for user in users(made) if user in self.found.nodes]
        return all(
            user.op_type in _BROADCASTING
            and any((self.facts.rank(v) or 0) >= rank for v in user.inputs if v is not made and not self._is_number(v))
            for user in readers
        )

    def _way_back(self, inside: set[onnx_ir.Node]) -> tuple[str, str] | None:
        """An exported value that a matched node reads again by way of nodes outside: one op cannot be both sides."""
        exporters = {value.producer() for value in self.found.exported}
        reading = [value for node in self.found.nodes if node not in exporters for value in node.inputs]
        pending = [p for value in reading if value is not None and (p := value.producer()) and p not in inside]
        seen = set(pending)
        while pending:
            node = pending.pop()
            for value in reads(node):
                producer = value.producer() if value is not None else None
                if producer in inside:
                    return label(node), "it lies between two parts of the pattern"
                if producer is not None and producer not in seen:
                    seen.add(producer)
                    pending.append(producer)
        return None

    # -- one value against one pattern; each yield is a way to match ------------------------------------------------

    def value(self, pattern: Pattern, value: onnx_ir.Value) -> Iterator[None]:
        self.steps += 1
        if self.steps > _STEP_LIMIT:
            raise _Exhausted(_where(value))
        if isinstance(pattern, Var):
            yield from self._bind(pattern.name, value)
        elif isinstance(pattern, Const):
            yield from self._constant(pattern, value)
        elif isinstance(pattern, Op):
            yield from self._op(pattern, value)
        elif isinstance(pattern, OneOf):
            for option in pattern.options:
                yield from self.value(option, value)
        elif isinstance(pattern, Named):
            for _ in self._bind(pattern.name, value):
                if pattern.exported:
                    self.found.exported.append(value)
                yield from self.value(pattern.inner, value)
                if pattern.exported:
                    self.found.exported.pop()
        elif isinstance(pattern, Through):
            yield from self._through(pattern, value)
        elif isinstance(pattern, _Flat):
            yield from self._flat(pattern, pattern.terms, value)
        else:
            raise TypeError(f"not a pattern: {pattern!r}")

    def _bind(self, name: str, value: Any) -> Iterator[None]:
        if name == "_":
            yield
            return
        bindings = self.found.bindings
        if name in bindings:
            if self._same(bindings[name], value):
                yield
            else:
                self.fail(_where(value), f"the same value as {_text(bindings[name])} for {name!r}", _text(value))
            return
        bindings[name] = value
        yield
        del bindings[name]

    def _same(self, a: Any, b: Any) -> bool:
        if a is b:
            return True
        if isinstance(a, onnx_ir.Value) and isinstance(b, onnx_ir.Value):
            if max(self.facts.const_size(a) or 65, self.facts.const_size(b) or 65) > 64:
                return False
            x, y = self.facts.const(a), self.facts.const(b)
            if x is None or y is None:
                return False
            return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        return not isinstance(a, onnx_ir.Value) and not isinstance(b, onnx_ir.Value) and a == b

    def _constant(self, pattern: Const, value: onnx_ir.Value) -> Iterator[None]:
        wanted = f"the constant {pattern.value:.7g}" if pattern.value is not None else "a constant"
        if not self.facts.is_const(value):
            self.fail(_where(value), wanted, _text(value))
            return
        if pattern.scalar:
            actual = self.facts.scalar(value)
            if actual is None:
                self.fail(_where(value), wanted, f"a constant of {self.facts.const_size(value)} elements")
                return
            if pattern.value is not None and not close(actual, pattern.value, self.facts.dtype(value)):
                self.fail(_where(value), wanted, f"the constant {actual}", bonus=1)
                return
        if pattern.name is None:
            yield
        else:
            yield from self._bind(pattern.name, value)

    def _op(self, pattern: Op, value: onnx_ir.Value) -> Iterator[None]:
        node = value.producer()
        if node is None or (node.domain, node.op_type) not in pattern.roots:
            self.fail(_where(value), " or ".join(pattern.ops), _text(value))
            return
        if value.index() != pattern.output:
            self.fail(label(node), f"output {pattern.output} of {node.op_type}", f"output {value.index()}")
            return
        inputs: Sequence[onnx_ir.Value | None] = node.inputs
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        if len(inputs) > len(pattern.inputs) and not pattern.rest:
            self.fail(label(node), f"{len(pattern.inputs)} inputs", f"{len(inputs)} inputs")
            return
        padded = (*inputs, *[None] * (len(pattern.inputs) - len(inputs)))
        entered = self._enter(node)
        for _ in self._attributes(list(pattern.attributes.items()), node):
            for order in self._orders(pattern, node, padded):
                # Constants first: they are cheap to look at, and say best what is wrong.
                pairs = sorted(
                    zip(pattern.inputs, order, strict=False), key=lambda pair: not isinstance(pair[0], Const)
                )
                yield from self._inputs([p for p, _ in pairs], [v for _, v in pairs], node)
        self._leave(node, entered)

    def _orders(self, pattern: Op, node: onnx_ir.Node, inputs: tuple) -> Iterator[tuple]:
        yield inputs
        if node.op_type in COMMUTATIVE and node.domain == "" and len(pattern.inputs) == 2:
            yield inputs[1], inputs[0]

    def _inputs(
        self, patterns: Sequence[Pattern | None], values: Sequence[onnx_ir.Value | None], node: onnx_ir.Node
    ) -> Iterator[None]:
        if not patterns:
            yield
            return
        pattern, value = patterns[0], values[0]
        if pattern is None or value is None:
            if pattern is None and value is None:
                yield from self._inputs(patterns[1:], values[1:], node)
            else:
                wanted, found = ("no further input", "one") if pattern is None else ("a further input", "none")
                self.fail(label(node), wanted, found, bonus=-1)
            return
        for _ in self.value(pattern, value):
            yield from self._inputs(patterns[1:], values[1:], node)

    def _attributes(self, wanted: list[tuple[str, Any]], node: onnx_ir.Node) -> Iterator[None]:
        if not wanted:
            yield
            return
        (name, pattern), rest = wanted[0], wanted[1:]
        actual = attribute(node, name, self.facts)
        if isinstance(pattern, Var):
            for _ in self._bind(pattern.name, actual):
                yield from self._attributes(rest, node)
        elif actual == (tuple(pattern) if isinstance(pattern, list) else pattern) or _same_float(actual, pattern):
            yield from self._attributes(rest, node)
        else:
            self.fail(label(node), f"{name}={pattern}", f"{name}={actual}", bonus=1)

    def _through(self, pattern: Through, value: onnx_ir.Value) -> Iterator[None]:
        yield from self.value(pattern.inner, value)
        node = value.producer()
        ops = {split_op(op) for op in pattern.ops}
        if node is None or (node.domain, node.op_type) not in ops or not node.inputs or node.inputs[0] is None:
            return
        entered = self._enter(node)
        yield from self._through(pattern, node.inputs[0])
        self._leave(node, entered)

    # -- sums and products ------------------------------------------------------------------------------------------

    def _flat(self, pattern: _Flat, terms: Sequence[Pattern], value: onnx_ir.Value) -> Iterator[None]:
        if len(terms) == 1:
            yield from self.value(terms[0], value)
            return
        node = value.producer()
        if node is None or (node.domain, node.op_type) not in pattern.roots:
            self.fail(_where(value), "Add" if isinstance(pattern, Sum) else "Mul", _text(value))
            return
        left, right = node.inputs
        if left is None or right is None:
            return
        entered = self._enter(node)
        if node.op_type in ("Sub", "Div"):
            yield from self._inverse(pattern, terms, node, left, right)
        else:
            tried = False
            for size in range(1, len(terms)):
                for chosen in combinations(range(len(terms)), size):
                    ours = [terms[i] for i in chosen]
                    theirs = [terms[i] for i in range(len(terms)) if i not in chosen]
                    if not (self._plausible(pattern, ours, left) and self._plausible(pattern, theirs, right)):
                        continue
                    tried = True
                    for _ in self._flat(pattern, ours, left):
                        yield from self._flat(pattern, theirs, right)
            if not tried:
                wanted = "a constant operand" if any(isinstance(t, Const) for t in terms) else f"{len(terms)} operands"
                self.fail(label(node), wanted, f"{_text(left)} and {_text(right)}")
        self._leave(node, entered)

    def _plausible(self, pattern: _Flat, terms: Sequence[Pattern], value: onnx_ir.Value) -> bool:
        """A cheap look before a split is tried, so that what is hopeless neither costs time nor hides the near miss."""
        if len(terms) == 1:
            return not isinstance(terms[0], Const) or self.facts.is_const(value)
        node = value.producer()
        return node is not None and (node.domain, node.op_type) in pattern.roots

    def _inverse(
        self, pattern: _Flat, terms: Sequence[Pattern], node: onnx_ir.Node, left: onnx_ir.Value, right: onnx_ir.Value
    ) -> Iterator[None]:
        """``left - c`` is ``left + (-c)``; ``left / c`` is ``left * (1 / c)``, but not for integers."""
        constant = self.facts.scalar(right)
        if constant is None or (isinstance(pattern, Product) and (constant == 0 or isinstance(constant, int))):
            self.fail(label(node), "a constant as second operand", _text(right))
            return
        inverse = -constant if isinstance(pattern, Sum) else 1 / constant
        for index, term in enumerate(terms):
            if not isinstance(term, Const) or term.value is None:
                continue
            if not close(inverse, term.value, self.facts.dtype(right)):
                written = f"-({constant:.7g})" if isinstance(pattern, Sum) else f"1 / {constant:.7g}"
                actual = f"the constant {inverse:.7g} ({written})"
                self.fail(label(node), f"the constant {term.value:.7g}", actual, bonus=1)
                continue
            yield from self._flat(pattern, [t for i, t in enumerate(terms) if i != index], left)

    # -- the trail --------------------------------------------------------------------------------------------------

    def _enter(self, node: onnx_ir.Node) -> bool:
        if node in self.found.nodes:
            return False
        self.found.nodes.append(node)
        return True

    def _leave(self, node: onnx_ir.Node, entered: bool) -> None:
        if entered:
            self.found.nodes.remove(node)


def close(actual: float, wanted: float, dtype: onnx_ir.DataType | None) -> bool:
    """Whether a constant of a model is the one that a formula means.

    What every float type can hold, such as 0, 1 or 0.5, must be met exactly.
    """
    if (math.frexp(wanted)[0] * 2**_COMMON_BITS).is_integer() or not math.isfinite(wanted):
        return actual == wanted
    tolerance = _TOLERANCE.get(dtype, _DEFAULT_TOLERANCE) if dtype is not None else _DEFAULT_TOLERANCE
    return math.isclose(actual, wanted, rel_tol=tolerance, abs_tol=0.0)


def _same_float(actual: Any, wanted: Any) -> bool:
    """Whether a float attribute, which is stored in single precision, is the number that a pattern says."""
    return isinstance(wanted, float) and isinstance(actual, int | float) and math.isclose(actual, wanted, rel_tol=1e-6)


def attribute(node: onnx_ir.Node, name: str, facts: Facts | None = None) -> Any:
    """An attribute's Python value; the schema's default where the node does not set it; None where there is none.

    None also stands for a parameter of the function that the node is part of: every call may give another value.
    """
    attr = node.attributes.get(name)
    if attr is not None:
        if attr.is_ref():
            return None
        return attr.value.decode() if isinstance(attr.value, bytes) else attr.value
    version = node.version or (facts.opset(node.domain) if facts is not None else None)
    schema = schema_of(node, version) if version else None
    if schema is None or name not in schema.attributes:
        return None
    default = schema.attributes[name].default_value
    return onnx_ir.serde.deserialize_attribute(default).value if default.type else None


def _where(value: Any) -> str:
    if isinstance(value, onnx_ir.Value):
        node = value.producer()
        return label(node) if node is not None else f"{value.name!r}"
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, onnx_ir.Value):
        return str(value)
    node = value.producer()
    if node is not None:
        return node.op_type
    return f"the initializer {value.name!r}" if value.is_initializer() else f"the input {value.name!r}"
