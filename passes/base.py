"""What a pass is: a frozen dataclass whose fields are its options."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx_ir

from optc.ir.matcher import Miss
from optc.ir.rewriter import Rewriter, sources
from optc.ir.targets import Target

#: Places kept per rule, as examples.
_PLACES_KEPT = 3


class Numerics(enum.IntEnum):
    """How far a pass may move the numbers, from not at all to as far as the error budget allows."""

    EXACT = 0  # the same numbers
    ROUNDING = 1  # the same formula, summed or rounded in another order
    APPROXIMATE = 2  # another precision or a close formula
    LOSSY = 3  # information is thrown away; kept only when measured inside the budget


class Evaluator(Protocol):
    """Computes constant nodes with the kernels that the model will run with; None for what it cannot compute."""

    def run(
        self,
        nodes: Sequence[onnx_ir.Node],
        feeds: Mapping[onnx_ir.Value, np.ndarray],
        outputs: Sequence[onnx_ir.Value],
        opset_imports: Mapping[str, int] | None = None,
    ) -> list[np.ndarray | None]: ...


@dataclass
class Remark:
    """One thing that a pass did or left alone, with the reason; it goes into the report."""

    kind: str  # "done", "skipped", "missed" or "taken back": it was wrong
    what: str
    reason: str = ""


@dataclass
class Decision:
    """A lossy change that was proposed, and whether it was kept.

    Attributes:
        what: The technique ("dynamic-int8").
        where: Names of the nodes concerned.
        kept: Whether it is in the result.
        reason: Why it was kept or refused.
        error: The outputs' relative L2 error with it, measured; None if it was refused before that.
        speedup: Time without it over time with it; None if it was not timed.
        bytes_saved: How much smaller it makes the weights.
    """

    what: str
    where: list[str]
    kept: bool
    reason: str
    error: float | None = None
    speedup: float | None = None
    bytes_saved: int | None = None


@dataclass
class LedgerRow:
    """One option of one layer, taken or not.

    Attributes:
        node: Name of the layer's node.
        technique: Name of the technique.
        option: What it proposed ("dynamic-int8"); empty if it proposed nothing.
        taken: Whether it is in the result.
        reason: Why it was not taken; empty if it was.
        error: Relative L2 error of the layer's own output; None if it was not determined.
        bytes: Bytes that the layer's weights take with it.
        seconds: Time that the layer takes with it, measured or estimated; None if it was neither.
    """

    node: str
    technique: str
    option: str
    taken: bool
    reason: str = ""
    error: float | None = None
    bytes: int | None = None
    seconds: float | None = None


@dataclass
class Attempt:
    """A whole model that a search measured end to end.

    Attributes:
        options: How many layers got which option.
        error: Relative L2 error of the outputs.
        bytes: Bytes of the weights of all layers.
        seconds: Sum of the times of the layers that have options, each by itself, measured or estimated; None if it
            is not known.
        speedup: Time without it over time with it; None if it was not timed as a whole.
        kept: Whether it is the result.
        reason: Why it is outside of the budget; empty if it is inside.
    """

    options: dict[str, int]
    error: float
    bytes: int
    seconds: float | None = None
    speedup: float | None = None
    kept: bool = False
    reason: str = ""


@dataclass
class RuleRecord:
    """That a rule was there to be tried.

    Attributes:
        makes: Name of the fused op that it makes; empty if it makes none.
        begins_at: The operators at which it begins.
        tried: How often it was tried at a node.
    """

    makes: str = ""
    begins_at: tuple[str, ...] = ()
    tried: int = 0


@dataclass(frozen=True)
class Find:
    """A place where a fusing pass would fire.

    Attributes:
        op: The fused op that it would make.
        root: Names of the nodes of the original model that the match's root stands for.
        parts: The same of all matched nodes.
    """

    op: str
    root: frozenset[str]
    parts: frozenset[str]


@dataclass
class PassContext:
    """What a pass works on and may use. What comes from outside of the graph is handed in, never looked up.

    Attributes:
        rewriter: The only way to change ``model``.
        target: What the result will run on.
        services: Helpers by name that the driver provides: "evaluator" (an :class:`Evaluator`), "kernels", "measure",
            "statistics" (of values over calibration data).
        hits: How often each rule fired.
        places: Names of nodes of the original model where each rule fired, for the first few times.
        rules: The rules that were there to be tried, by name.
        misses: The nearest misses of each rule that was tried, nearest first.
        remarks: What to tell the user.
        decisions: What lossy passes kept and refused.
        ledger: Every option that lossy passes weighed for every layer.
        attempts: The whole models that lossy passes measured.
        recipe: What the lossy passes decided, as the text of a file by which it can be done again; empty for none.
        vetoes: Rules that must leave nodes alone, those that stand for these nodes of the original model; None for all.
    """

    rewriter: Rewriter
    target: Target
    services: Mapping[str, Any] = field(default_factory=dict)
    hits: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    rules: dict[str, RuleRecord] = field(default_factory=dict)
    misses: dict[str, list[Miss]] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    ledger: list[LedgerRow] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    recipe: str = ""
    vetoes: Mapping[str, frozenset[str] | None] = field(default_factory=dict)

    @property
    def model(self) -> onnx_ir.Model:
        return self.rewriter.model

    @property
    def facts(self):
        return self.rewriter.facts

    def is_vetoed(self, rule: str, node: onnx_ir.Node) -> bool:
        """Whether a rule, or what a pass without rules calls its work, must leave a node alone."""
        if rule not in self.vetoes:
            return False
        names = self.vetoes[rule]
        return names is None or not names.isdisjoint(sources(node))

    def hit(self, rule: str, count: int = 1, place: tuple[str, ...] = ()) -> None:
        """Count an application of a rule, at a node that stands for these nodes of the original model."""
        self.hits[rule] = self.hits.get(rule, 0) + count
        places = self.places.setdefault(rule, [])
        if place and len(places) < _PLACES_KEPT:
            places.append(place)

    def remark(self, kind: str, what: str, reason: str = "") -> None:
        """Tell the user what was done or left alone."""
        self.remarks.append(Remark(kind, what, reason))

    def decide(self, decision: Decision) -> None:
        """Record a lossy change that was kept or refused."""
        self.decisions.append(decision)


@dataclass(frozen=True)
class Pass:
    """Base of all passes. A subclass sets ``name`` and ``numerics``, adds fields for its options, and runs.

    The first line of its docstring is what ``optc passes`` shows.
    """

    name: ClassVar[str] = ""
    numerics: ClassVar[Numerics] = Numerics.EXACT
    #: Whether it may take apart what a fusion looks for, beside removing, merging and computing things.
    restructures: ClassVar[bool] = True

    def run(self, ctx: PassContext) -> None:
        """Change ``ctx.model`` through ``ctx.rewriter``; raise PassError if that turns out to be impossible."""
        raise NotImplementedError

    def finds(self, ctx: PassContext) -> list[Find]:
        """Where this pass would fuse, for the guard of fusions; nothing if it does not, or asks for no guard."""
        return []

    @property
    def guards(self) -> bool:
        """Whether the passes before it must not lose what it would find."""
        return False

    @classmethod
    def summary(cls) -> str:
        """One line on what the pass does."""
        return (cls.__doc__ or "").strip().splitlines()[0]


def all_graphs(model: onnx_ir.Model) -> Iterator[onnx_ir.Graph]:
    """The main graph and all its sub-graphs; not the bodies of functions."""
    yield model.graph
    yield from model.graph.subgraphs()
