"""Rewrite rules: what to look for, when to refuse, and what to build instead.

Three decorators make a rule:

* :func:`rule` - a pattern and a builder: algebra.
* :func:`fusion` - a pattern whose match becomes one fused op (a function whose body is the matched sub-graph).
* :func:`node_rule` - a plain function on one node, where a pattern would say less than code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.functions import outline, unnamed
from optc.ir.matcher import Match, Miss, match
from optc.ir.names import label, split_op
from optc.ir.pattern import Pattern, build_pattern
from optc.ir.rewriter import Rewriter
from optc.passes.base import Numerics

#: A check looks at a match and returns why it must not be rewritten, or None.
Check = Callable[[Match], str | None]


class Rule(Protocol):
    """Anything the driver can apply at a node."""

    name: str
    numerics: Numerics

    @property
    def roots(self) -> frozenset[tuple[str, str]]: ...

    def apply(self, rewriter: Rewriter, node: onnx_ir.Node) -> Miss | bool | None:
        """Try the rule at a node: True if it fired, else the miss, or None if there is nothing to say."""
        ...


@dataclass
class PatternRule:
    """A pattern, a check and a builder."""

    name: str
    pattern: Pattern
    numerics: Numerics = Numerics.EXACT
    checker: Check | None = None
    builder: Callable[[Rewriter, Match], Any] | None = None
    doc: str = ""

    @property
    def roots(self) -> frozenset[tuple[str, str]]:
        return self.pattern.roots

    def check(self, function: Check) -> Check:
        """Decorator: the function that may refuse a match with a reason."""
        self.checker = function
        return function

    def build(self, function: Callable[[Rewriter, Match], Any]) -> Callable[[Rewriter, Match], Any]:
        """Decorator: the function that builds the replacement of the root's output and returns it.

        It may return None when it turns out that nothing can be built; it must not have changed anything then.
        """
        self.builder = function
        return function

    def apply(self, rewriter: Rewriter, node: onnx_ir.Node) -> Miss | bool | None:
        found = match(self.pattern, node, rewriter.facts, self.name, self.checker)
        if isinstance(found, Miss):
            return found if found.matched > 0 else None
        with rewriter.at(node, self.name, found.nodes):
            return self._rewrite(rewriter, found)

    def _rewrite(self, rewriter: Rewriter, found: Match) -> bool:
        if self.builder is None:
            raise TypeError(f"rule {self.name} has no builder")
        new = self.builder(rewriter, found)
        if new is None:
            return False
        rewriter.replace(found.output, new)
        for node in found.nodes:
            rewriter.erase(node)
        return True


@dataclass
class FusionRule(PatternRule):
    """A pattern whose match becomes a call of a fused op.

    Attributes:
        op: The fused op's name.
        inputs: Names of the variables that are its inputs, in order; a name that the match does not bind is left out.
        exports: Names of exported values that become further outputs, up to the last that is used outside of the match.
        attributes: Computes what a backend must know; a string instead of a dict is the reason to refuse.
        same_shape_as: The input whose rank the result must have; a constant of higher rank could have raised it.
    """

    op: str = ""
    inputs: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    attributes: Callable[[Match], dict[str, Any] | str] | None = None
    same_shape_as: str | None = None

    def find(self, facts: Facts, node: onnx_ir.Node) -> Match | None:
        """The match at a node, if the rule would fire there."""
        found = match(self.pattern, node, facts, self.name, self._refuse)
        return found if isinstance(found, Match) else None

    def apply(self, rewriter: Rewriter, node: onnx_ir.Node) -> Miss | bool | None:
        found = match(self.pattern, node, rewriter.facts, self.name, self._refuse)
        if isinstance(found, Miss):
            return found if found.matched > 0 else None
        attributes = self._attributes(found)
        if isinstance(attributes, str):
            raise TypeError(f"the attributes function of {self.name} changed its mind: {attributes}")
        exported = [found.get(name) for name in self.exports]
        while exported and not _used_outside(exported[-1], found.nodes):
            exported.pop()
        outputs = [found.output, *exported]
        inputs: list[onnx_ir.Value | None] = [found.get(name) for name in self.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        with rewriter.at(node, self.name, found.nodes):
            outline(rewriter, self.op, inputs, outputs, found.nodes, attributes)
        return True

    def _attributes(self, found: Match) -> dict[str, Any] | str:
        return self.attributes(found) if self.attributes else {}

    def _refuse(self, found: Match) -> str | None:
        attributes = self._attributes(found)
        if isinstance(attributes, str):
            return attributes
        reason = self._shape_problem(found) or (self.checker(found) if self.checker else None)
        if reason is not None:
            return reason
        loose = unnamed(found.facts, (found.get(name) for name in self.inputs), found.nodes)
        return None if loose is None else f"{loose.name!r}, which the pattern does not name, must be a small constant"

    def _shape_problem(self, found: Match) -> str | None:
        if self.same_shape_as is None:
            return None
        rank, wanted = found.facts.rank(found.output), found.facts.rank(found.bindings[self.same_shape_as])
        if rank is None or wanted is None:
            return f"the ranks of {self.same_shape_as!r} and of the result must be known"
        return None if rank == wanted else f"the result must have the rank of {self.same_shape_as!r} ({wanted})"


@dataclass
class NodeRule:
    """A rule written as a function of one node."""

    name: str
    ops: frozenset[tuple[str, str]]
    function: Callable[[Rewriter, onnx_ir.Node], Any]
    numerics: Numerics = Numerics.EXACT
    doc: str = ""

    @property
    def roots(self) -> frozenset[tuple[str, str]]:
        return self.ops

    def apply(self, rewriter: Rewriter, node: onnx_ir.Node) -> Miss | bool | None:
        with rewriter.at(node, self.name):
            result = self.function(rewriter, node)
            if isinstance(result, str):
                return Miss(self.name, label(node), label(node), result, "", 1)
            if isinstance(result, onnx_ir.Value):
                rewriter.replace(node.outputs[0], result)
                rewriter.erase(node)
                return True
            return bool(result)


def rule(name: str, numerics: Numerics = Numerics.EXACT) -> Callable[[Callable[..., Pattern]], PatternRule]:
    """Make a rule of a pattern function; add ``.build`` (and ``.check``) functions to it."""

    def decorate(function: Callable[..., Pattern]) -> PatternRule:
        pattern, _ = build_pattern(function)
        return PatternRule(name, pattern, numerics, doc=function.__doc__ or "")  # type: ignore[arg-type]

    return decorate


def fusion(
    name: str,
    op: str,
    *,
    inputs: Sequence[str] | None = None,
    exports: Sequence[str] = (),
    attributes: Callable[[Match], dict[str, Any] | str] | None = None,
    same_shape_as: str | None = None,
    check: Check | None = None,
    numerics: Numerics = Numerics.ROUNDING,
) -> Callable[[Callable[..., Pattern]], FusionRule]:
    """Make a fusion of a pattern function; by default the fused op's inputs are the function's variables."""

    def decorate(function: Callable[..., Pattern]) -> FusionRule:
        pattern, names = build_pattern(function)
        return FusionRule(
            name,
            pattern,  # type: ignore[arg-type]
            numerics,
            check,
            doc=function.__doc__ or "",
            op=op,
            inputs=tuple(inputs) if inputs is not None else names,
            exports=tuple(exports),
            attributes=attributes,
            same_shape_as=same_shape_as,
        )

    return decorate


def node_rule(
    name: str, *ops: str, numerics: Numerics = Numerics.EXACT
) -> Callable[[Callable[[Rewriter, onnx_ir.Node], Any]], NodeRule]:
    """Make a rule of a function ``f(rewriter, node)`` for nodes of these operators.

    The function returns the value to replace the node's first output with, or True if it changed the graph itself,
    or None/False if it did nothing, or a string: the reason why it must not fire here.
    """

    def decorate(function: Callable[[Rewriter, onnx_ir.Node], Any]) -> NodeRule:
        return NodeRule(name, frozenset(split_op(op) for op in ops), function, numerics, function.__doc__ or "")

    return decorate


def _used_outside(value: onnx_ir.Value | None, nodes: Sequence[onnx_ir.Node]) -> bool:
    if value is None:
        return False
    return value.is_graph_output() or any(use.node not in nodes for use in value.uses())


__all__ = ["Check", "FusionRule", "NodeRule", "PatternRule", "Rule", "fusion", "node_rule", "rule"]
