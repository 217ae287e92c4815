"""The one search over what all techniques propose: the cheapest model whose error stays inside the budget.

Costs of single layers add up, and so do the squares of their errors as far as they are independent. So one price of
squared error traces the frontier: at each price every layer takes its own cheapest option (Lagrange multipliers; Shoham
and Gersho 1988). What a layer's error means at the network's output is measured for groups of layers first; points of
the frontier are then measured end to end, by bisection; and the finalists are timed as whole models, against each other
and against the model that nothing was done to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import onnx_ir

from optc.ir.errors import UsageError
from optc.ir.rewriter import Rewriter
from optc.passes.compress.clock import Clock
from optc.passes.compress.layers import Layer
from optc.passes.compress.techniques import Choice, Leftover, Option, Study, Technique

Objective = Literal["latency", "size"]

#: End-to-end measurements along the frontier of one set of techniques.
_STEPS = 9
#: Share of a layer's time that an option must save to be looked at: less than that is noise.
_NOISE = 0.03
#: Whole models whose times are closer than this share of the time before count as equally fast.
_TIE = 0.01
#: The frontier of a set that is predicted to save less than this share of what the best one does is not measured.
_PROMISING = 0.5
#: The frontier's bisection ends when its bounds are this close.
_CLOSE = 1.03

#: An option per layer; None leaves it as it is.
Assignment = tuple[Option | None, ...]


@dataclass(frozen=True)
class Row:
    """What is known of one option of one layer.

    Attributes:
        layer: The layer's index.
        technique: Name of the technique.
        option: The option; None where the technique had none.
        seconds: Time that the layer takes with it; None if it was neither measured nor estimated.
        saved: Seconds or bytes that it saves, as the objective has it.
        reason: Why it is no candidate; empty if it is one.
        alone: Whether that is only that it saves nothing by itself.
    """

    layer: int
    technique: str
    option: Option | None = None
    seconds: float | None = None
    saved: float = 0.0
    reason: str = ""
    alone: bool = False


@dataclass(frozen=True)
class Measured:
    """One assignment, measured end to end.

    Attributes:
        assignment: What was measured.
        bytes: Bytes of the weights of all layers.
        error: Relative L2 error of the outputs.
        refused: Why it is outside of the budget; None if it is inside.
        leftovers: What came to nothing when it was written.
        seconds: Sum of the times of the layers that have options, each by itself; None if it is not known.
        ratio: Time of the whole model over that of the model before; None if it was not timed.
    """

    assignment: Assignment
    bytes: int
    error: float
    refused: str | None
    leftovers: tuple[Leftover, ...] = ()
    seconds: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a search came to.

    Attributes:
        best: The assignment to keep; None for none.
        reason: Why nothing is kept; empty if something is.
        rows: Every option of every layer.
        measured: Every assignment that was measured end to end, in the order of the search.
    """

    best: Measured | None
    reason: str
    rows: Sequence[Row]
    measured: Sequence[Measured]


@dataclass
class Search:
    """The search for one model, which is not changed.

    Attributes:
        study: The model, its layers and what is known of them.
        techniques: What may be proposed.
        forbidden: Why an option may not be used for a layer, by its index; None if it may.
        objective: What is to become small.
        min_gain: The share of time that the whole model must gain.
        settling: About how many seconds to spend on what errors of groups of layers mean at the output.
    """

    study: Study
    techniques: Sequence[Technique]
    forbidden: Callable[[int, Option], str | None] = lambda index, option: None
    objective: Objective = "latency"
    min_gain: float = 0.03
    settling: float = 30.0
    _rows: list[Row] = field(default_factory=list, init=False)
    _candidates: list[list[Row]] = field(default_factory=list, init=False)
    _bases: dict[int, float] = field(default_factory=dict, init=False)
    _gains: list[float] = field(default_factory=list, init=False)
    _judged: dict[Assignment, Measured] = field(default_factory=dict, init=False)

    def run(self) -> Outcome:
        """Search."""
        self._propose()
        if not any(self._candidates):
            reasons = dict.fromkeys(row.reason for row in self._rows)
            return self._outcome(None, "; ".join(reasons) or "there is nothing to propose")
        self._learn_gains()
        finalists = dict.fromkeys(one for names in self._promising() for one in self._finalists(names))
        if not finalists:
            budget = f"the error budget of {self.study.measure.max_error:.3g} on {self.study.measure.data}"
            return self._outcome(None, f"no assignment stays inside {budget}")
        winner = self._compared(list(finalists))
        if self.objective == "latency" and winner.ratio is not None and winner.ratio > 1 - self.min_gain:
            return self._outcome(None, f"the whole model is not faster with it: {1 / winner.ratio:.2f}x on this CPU")
        return self._outcome(winner, "")

    def pinned(self, labels: Mapping[str, str]) -> Outcome:
        """What a recipe says, without a search: measured once, and kept if it is inside the budget.

        Args:
            labels: Labels of options by the layers' names.

        Raises:
            UsageError: No technique proposes such an option for a layer.
        """
        if not labels:
            return self._outcome(None, "the recipe leaves every layer as it is")
        self._learn([layer for layer in self.study.layers if layer.name in labels])
        assignment: list[Option | None] = []
        for index, layer in enumerate(self.study.layers):
            label = labels.get(layer.name)
            found: dict[str, Option] = {}
            for technique in self.techniques if label is not None else ():
                proposed = technique.propose(self.study, layer)
                found |= {option.label: option for option in proposed if not isinstance(option, str)}
            if label is not None and label not in found:
                hint = f"what it could be: {', '.join(found) or 'nothing'}"
                raise UsageError(f"the layer {layer.name!r} cannot be {label!r} here", hint=hint)
            assignment.append(found.get(label) if label is not None else None)
            self._rows += [Row(index, option.technique, option) for option in assignment[-1:] if option is not None]
        measured = self._judge(tuple(assignment))
        return self._outcome(measured if measured.refused is None else None, measured.refused or "")

    def _outcome(self, best: Measured | None, reason: str) -> Outcome:
        return Outcome(best, reason, self._rows, list(self._judged.values()))

    # -- single layers ----------------------------------------------------------------------------------------------

    def _propose(self) -> None:
        """Find every option of every layer, with its cost or why it is out."""
        self._learn(self.study.layers)
        clock = Clock(self.study)
        for index, layer in enumerate(self.study.layers):
            options: list[Option] = []
            for technique in self.techniques:
                proposed = technique.propose(self.study, layer)
                if isinstance(proposed, str):
                    self._rows.append(Row(index, technique.name, reason=proposed))
                else:
                    options += proposed
            refused = {option: self.forbidden(index, option) for option in options}
            free = [option for option, reason in refused.items() if reason is None]
            rows = [
                Row(index, option.technique, option, reason=reason) if reason else self._row(index, option, free, clock)
                for option, reason in refused.items()
            ]
            self._rows += rows
            self._candidates.append([row for row in rows if not row.reason])
        self._gains = [1.0] * len(self.study.layers)

    def _row(self, index: int, option: Option, options: Sequence[Option], clock: Clock) -> Row:
        """What an option costs, and its error if it does not cost too much."""
        layer, row = self.study.layers[index], Row(index, option.technique, option)
        if self.objective == "size":
            saved = float(4 * layer.rows * layer.columns - option.bytes)
            reason = "" if saved > 0 else "it is not smaller"
            row = replace(row, saved=saved, reason=reason)
        else:
            seconds, base = clock.seconds(layer, option, options), clock.seconds(layer, None, options)
            saved, self._bases[index] = base - seconds, base
            how = "takes" if clock.measures else "is estimated to take"
            slow = f"it {how} {seconds / base:.2f} of the time that the layer takes now"
            alone = saved <= base * _NOISE
            row = replace(row, seconds=seconds, saved=saved, reason=slow if alone else "", alone=alone)
        if row.reason:
            return row
        option = option.judged()
        finite = option.error is not None and math.isfinite(option.error)
        return replace(row, option=option, reason="" if finite else "its error is not finite")

    def _learn(self, layers: Iterable[Layer]) -> None:
        """Gather what the techniques want to know, all in one sweep."""
        pairs = [(technique, layer) for layer in layers for technique in self.techniques]
        self.study.learn(request for technique, layer in pairs for request in technique.requests(self.study, layer))

    # -- errors -----------------------------------------------------------------------------------------------------

    def _learn_gains(self) -> None:
        """Measure how much larger errors of groups of layers are at the network's output than at the layers' own."""
        full = self._at(0.0, None)
        start = time.perf_counter()
        if self._judge(full).refused is None:
            return
        affordable = int(self.settling / max(time.perf_counter() - start, 1e-3))
        errors = {index: option.error for index, option in enumerate(full) if option is not None and option.error}
        if min(affordable, len(errors)) < 2:
            return
        for group in _chunks(list(errors), affordable):
            part = tuple(option if index in group else None for index, option in enumerate(full))
            error = self.study.measure.judge(self.build(part)[0]).error
            gain = error / math.sqrt(sum(errors[index] ** 2 for index in group))
            for index in group if 0 < gain < math.inf else ():
                self._gains[index] = gain

    def _predicted(self, assignment: Assignment) -> float:
        """The error at the network's output that the layers' errors add up to."""
        pairs = zip(self._gains, assignment, strict=True)
        return math.sqrt(sum((gain * (option.error or 0.0)) ** 2 for gain, option in pairs if option is not None))

    # -- the frontier -----------------------------------------------------------------------------------------------

    def _sets(self) -> Iterator[frozenset[str]]:
        """All techniques together, and each by itself: what pays alone may get in the way of another."""
        names = {row.technique for rows in self._candidates for row in rows}
        yield frozenset(names)
        if len(names) > 1:
            yield from (frozenset({name}) for name in sorted(names))

    def _promising(self) -> list[frozenset[str]]:
        """The sets whose frontiers are worth measuring, by what they are predicted to save inside the budget."""
        sets = list(self._sets())
        promises = [self._saved(self._below(self.study.measure.max_error, names)) for names in sets]
        return [one for one, promise in zip(sets, promises, strict=True) if promise >= _PROMISING * max(promises)]

    def _at(self, price: float, names: frozenset[str] | None) -> Assignment:
        """The assignment in which every layer takes what is cheapest for it at a price of squared error."""

        def best(index: int) -> Option | None:
            rows = [row for row in self._candidates[index] if names is None or row.technique in names]
            worth = [
                (row.saved - price * (self._gains[index] * (row.option.error or 0.0)) ** 2, row)
                for row in rows
                if row.option is not None
            ]
            value, row = max(worth, key=lambda pair: pair[0], default=(0.0, None))
            return row.option if row is not None and value > 0 else None

        return tuple(best(index) for index in range(len(self._candidates)))

    def _below(self, error: float, names: frozenset[str]) -> Assignment:
        """The cheapest assignment on the frontier whose predicted error is at most ``error``."""
        assignment = self._at(0.0, names)
        if self._predicted(assignment) <= error:
            return assignment
        saved = max(row.saved for rows in self._candidates for row in rows)
        low, high = saved * 1e-9, saved * 1e12
        while high / low > 1.001:
            price = math.sqrt(low * high)
            assignment = self._at(price, names)
            low, high = (low, price) if self._predicted(assignment) <= error else (price, high)
        return self._at(high, names)

    def _frontier(self, names: frozenset[str]) -> Assignment | None:
        """The cheapest assignment inside the budget along the frontier of these techniques, by bisection."""
        best: Assignment | None = None
        low, high = 0.0, self._predicted(self._at(0.0, names))
        wanted = high
        for _ in range(_STEPS):
            assignment = self._below(wanted, names)
            if not any(assignment):
                low = wanted
            elif self._judge(assignment).refused is None:
                best, low = assignment, wanted
            else:
                high = wanted
            if low * _CLOSE >= high:
                break
            budget = self.study.measure.max_error
            wanted = math.sqrt(low * high) if low else budget if budget < high * 0.9 else high / 3
        return best

    def _finalists(self, names: frozenset[str]) -> Iterator[Assignment]:
        """The best of a frontier; and of one technique the same with the layers that gain nothing by themselves.

        Between integer layers one in floats pays for two conversions, which no clock sees that times it alone.
        """
        best = self._frontier(names)
        if best is None:
            return
        yield best
        if len(names) > 1 or self.objective == "size":
            return
        gaps: dict[int, Row] = {}
        for row in self._rows:
            if row.alone and row.technique in names and best[row.layer] is None:
                gaps[row.layer] = max(gaps.get(row.layer, row), row, key=lambda one: one.saved)
        filled = tuple(option or (gaps[index].option if index in gaps else None) for index, option in enumerate(best))
        if filled != best and self._judge(filled).refused is None:
            yield filled

    def _judge(self, assignment: Assignment) -> Measured:
        if assignment not in self._judged:
            model, leftovers = self.build(assignment)
            judgement = self.study.measure.judge(model)
            pairs = zip(self.study.layers, assignment, strict=True)
            size = sum(option.bytes if option else 4 * layer.rows * layer.columns for layer, option in pairs)
            seconds = self._layer_seconds(assignment)
            self._judged[assignment] = Measured(assignment, size, judgement.error, judgement.reason, leftovers, seconds)
        return self._judged[assignment]

    def _layer_seconds(self, assignment: Assignment) -> float | None:
        """Sum of the times of all layers that have options, each by itself; None where they were not timed."""
        timed = {(row.layer, row.option): row.seconds for row in self._rows} | {
            (index, None): seconds for index, seconds in self._bases.items()
        }
        seconds = [timed.get((index, option)) for index, option in enumerate(assignment) if index in self._bases]
        return sum(filter(None, seconds)) if seconds and None not in seconds else None

    # -- whole models -----------------------------------------------------------------------------------------------

    def build(self, assignment: Assignment) -> tuple[onnx_ir.Model, tuple[Leftover, ...]]:
        """A copy of the model with an assignment written into it."""
        model = self.study.model.clone()
        rewriter = Rewriter(model)
        return model, self.write(rewriter, assignment)

    def write(self, rewriter: Rewriter, assignment: Assignment) -> tuple[Leftover, ...]:
        """Write an assignment into the study's model or a copy of it; what came to nothing."""
        nodes = list(rewriter.model.graph)
        positions = {node: index for index, node in enumerate(self.study.model.graph)}
        choices = [
            Choice(index, layer.on(nodes[positions[layer.node]]), option)
            for index, (layer, option) in enumerate(zip(self.study.layers, assignment, strict=True))
            if option is not None
        ]
        used = [
            technique for technique in self.techniques if any(technique.name == c.option.technique for c in choices)
        ]
        for technique in used:
            technique.apply(rewriter, self.study, [c for c in choices if c.option.technique == technique.name])
        return tuple(left for technique in used for left in technique.settle(rewriter, self.study))

    def _compared(self, finalists: Sequence[Assignment]) -> Measured:
        """The best of the finalists, by what is measured of them as whole models."""
        if self.objective == "size" or self.study.measure.why_not_timed is not None:
            return self._judged[max(finalists, key=self._saved)]
        models = {"before": self.study.model}
        models |= {str(number): self.build(assignment)[0] for number, assignment in enumerate(finalists)}
        timed = self.study.measure.compare(models)
        for number, assignment in enumerate(finalists):
            ratio = timed[str(number)].ratio.median
            self._judged[assignment] = replace(self._judged[assignment], ratio=ratio)
        measured = [self._judged[assignment] for assignment in finalists]
        fastest = min(one.ratio or 1.0 for one in measured)
        # Among those that the clock cannot tell apart, the smallest file.
        return min((one for one in measured if (one.ratio or 1.0) < fastest + _TIE), key=lambda one: one.bytes)

    def _saved(self, assignment: Assignment) -> float:
        rows = {(row.layer, row.option): row.saved for row in self._rows}
        return sum(rows[index, option] for index, option in enumerate(assignment) if option is not None)


def _chunks(items: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    """Items in at most ``count`` runs of nearly equal length."""
    count = min(count, len(items))
    for number in range(count):
        yield items[number * len(items) // count : (number + 1) * len(items) // count]
