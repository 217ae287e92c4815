"""The pass of all lossy techniques: one search, one budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, get_args

import onnx_ir

from optc.ir.errors import UsageError
from optc.passes.base import Attempt, Decision, LedgerRow, Numerics, Pass, PassContext
from optc.passes.compress.dynamic_int8 import DynamicInt8
from optc.passes.compress.layers import weighted_layers
from optc.passes.compress.lowrank.technique import LowRank
from optc.passes.compress.policy import read_policy
from optc.passes.compress.recipe import Recipe, layers_digest, read_recipe
from optc.passes.compress.roles import roles_of
from optc.passes.compress.search import Assignment, Measured, Objective, Outcome, Search
from optc.passes.compress.static_int8 import StaticInt8
from optc.passes.compress.techniques import Option, Study, Technique
from optc.passes.compress.weights.technique import WeightOnly

#: All techniques by name, in the order in which they write: what makes layers out of layers comes first, as the others
#: may scale weights that they find. A new one is one more row.
TECHNIQUES: dict[str, type[Technique]] = {
    technique.name: technique for technique in (LowRank, DynamicInt8, StaticInt8, WeightOnly)
}


@dataclass(frozen=True)
class Quantize(Pass):
    """Compress weighted layers by whatever is faster, inside the error budget.

    Every technique proposes what it could do to every layer; options are timed on the kernels that will run and
    weighed by their errors; what is kept was measured end to end. See :mod:`optc.passes.compress.search`.

    Attributes:
        techniques: Those to try, by name; all that there are if empty. One that is named here and comes to nothing
            because it cannot be used at all is an error.
        options: The options to weigh, by patterns of their labels ("int4-*"); all if empty.
        objective: What is to become small: "latency" or "size".
        min_gain: The share of time that the whole model must gain to be worth it.
        policy: Which layers may become what, see :mod:`optc.passes.compress.policy`.
        recipe: A file that says what every layer becomes, see :mod:`optc.passes.compress.recipe`; nothing is searched.
    """

    name: ClassVar[str] = "quantize"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    techniques: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    objective: str = "latency"
    min_gain: float = 0.03
    policy: str = ""
    recipe: str = ""

    def __post_init__(self) -> None:
        _ = read_policy(self.policy)
        for name in self.techniques:
            if name not in TECHNIQUES:
                raise UsageError(f"there is no technique {name!r}", hint=f"there are: {', '.join(TECHNIQUES)}")
        if self.objective not in get_args(Objective):
            raise UsageError(f"the objective is {' or '.join(get_args(Objective))}, not {self.objective!r}")

    def run(self, ctx: PassContext) -> None:
        self.quantize(ctx, read_recipe(self.recipe) if self.recipe else None)

    def quantize(self, ctx: PassContext, recipe: Recipe | None = None) -> None:
        """Quantize a model, and tell of it; with a recipe nothing is searched."""
        measure = ctx.services.get("measure")
        if measure is None or measure.why_not is not None:
            reason = "nothing can be measured in this compile" if measure is None else measure.why_not
            ctx.decide(Decision(self.name, [], False, reason))
            return
        layers = list(weighted_layers(ctx.model.graph, ctx.facts))
        kernels, statistics = ctx.services.get("kernels"), ctx.services["statistics"]
        study = Study(ctx.model, ctx.facts, layers, ctx.target, measure, kernels, statistics)
        ctx.recipe = Recipe(layers_digest(layers), {}).text()  # that nothing is worth it is a finding, too
        techniques = self._usable(ctx, study)
        if not layers:
            none = "the model has no MatMul, Gemm or Conv with constant fp32 weights that is large enough"
            ctx.decide(Decision(self.name, [], False, none))
        elif techniques:
            search = Search(study, techniques, self._forbidden(study), self.objective, self.min_gain)
            outcome = search.run() if recipe is None else self._pinned(search, study, recipe)
            self._check_asked(outcome)
            _Record(self, ctx, study).of(search, outcome)

    @staticmethod
    def _pinned(search: Search, study: Study, recipe: Recipe) -> Outcome:
        recipe.check(study.layers)
        return search.pinned(recipe.options)

    def _check_asked(self, outcome: Outcome) -> None:
        """Raise UsageError if something was asked for by name and nothing of it can be proposed."""
        for name in self.techniques:
            rows = [row for row in outcome.rows if row.technique == name]
            if rows and all(row.option is None for row in rows):
                reasons = "; ".join(dict.fromkeys(row.reason for row in rows))
                raise UsageError(f"the technique {name!r} was asked for and fits no layer: {reasons}")
        labels = {row.option.label for row in outcome.rows if row.option is not None}
        for pattern in self.options:
            if not any(fnmatchcase(label, pattern) for label in labels):
                known = ", ".join(sorted(labels)) or "none"
                raise UsageError(f"no option fits {pattern!r}, which was asked for", hint=f"there are: {known}")

    def _forbidden(self, study: Study) -> Callable[[int, Option], str | None]:
        policy, roles = read_policy(self.policy), roles_of(study.layers, study.facts)

        def forbidden(index: int, option: Option) -> str | None:
            if self.options and not any(fnmatchcase(option.label, pattern) for pattern in self.options):
                return "it was not asked for"
            return policy.forbids(option, study.layers[index].name, roles[index])

        return forbidden

    def _usable(self, ctx: PassContext, study: Study) -> list[Technique]:
        """The techniques that can be used here; what cannot be is in the decisions."""
        usable = []
        for name in self.techniques or TECHNIQUES:
            technique = TECHNIQUES[name]()
            reason = technique.why_not(study)
            if reason is None:
                usable.append(technique)
            elif self.techniques:
                raise UsageError(f"the technique {name!r} cannot be used here: {reason}")
            else:
                ctx.decide(Decision(name, [], False, reason))
        return usable


@dataclass
class _Record:
    """Carries out what a search came to, and tells of it."""

    options: Quantize
    ctx: PassContext
    study: Study

    def __post_init__(self) -> None:
        self.digest = layers_digest(self.study.layers)  # of the layers as they were

    def of(self, search: Search, outcome: Outcome) -> None:
        """Write the best assignment into the model; fill decisions, attempts and ledger."""
        names = [layer.name for layer in self.study.layers]
        self.ctx.attempts += [self._attempt(one, one is outcome.best) for one in outcome.measured]
        chosen: Assignment = outcome.best.assignment if outcome.best is not None else (None,) * len(names)
        self._fill_ledger(outcome, chosen)
        if outcome.best is None:
            last = outcome.measured[-1] if outcome.measured else None
            error = last.error if last is not None else None
            speedup = 1 / last.ratio if last is not None and last.ratio else None
            self.ctx.decide(Decision(self.options.name, names, False, outcome.reason, error, speedup))
            return
        before = _weight_bytes(self.ctx.model)
        left = search.write(self.ctx.rewriter, chosen)
        for leftover in left:
            self.ctx.remark("skipped", leftover.node, leftover.reason)
        labels = {name: option.label for name, option in zip(names, chosen, strict=True) if option is not None}
        self.ctx.recipe = Recipe(self.digest, labels).text()
        self._decide(outcome.best, before - _weight_bytes(self.ctx.model))

    def _decide(self, best: Measured, saved: int) -> None:
        measure, layers = self.study.measure, self.study.layers
        for label in dict.fromkeys(option.label for option in best.assignment if option is not None):
            where = [layer.name for layer, o in zip(layers, best.assignment, strict=True) if o and o.label == label]
            faster = f"{1 / best.ratio:.2f}x faster on this CPU" if best.ratio else "not timed as a whole"
            reason = (
                f"{len(where)} of {len(layers)} layers; with all of it {faster}, "
                f"error {best.error:.3g} of {measure.max_error:.3g} on {measure.data}"
            )
            speedup = 1 / best.ratio if best.ratio else None
            self.ctx.hit(label, len(where))
            self.ctx.decide(Decision(label, where, True, reason, best.error, speedup, saved))

    def _attempt(self, measured: Measured, kept: bool) -> Attempt:
        labels = Counter(option.label if option is not None else "as it was" for option in measured.assignment)
        speedup = 1 / measured.ratio if measured.ratio else None
        return Attempt(
            dict(labels), measured.error, measured.bytes, measured.seconds, speedup, kept, measured.refused or ""
        )

    def _fill_ledger(self, outcome: Outcome, chosen: Assignment) -> None:
        for row in outcome.rows:
            option, taken = row.option, chosen[row.layer] is not None and chosen[row.layer] == row.option
            reason = row.reason or ("" if taken else self._why_not_taken(outcome, chosen[row.layer]))
            self.ctx.ledger.append(
                LedgerRow(
                    self.study.layers[row.layer].name,
                    row.technique,
                    option.label if option is not None else "",
                    taken,
                    reason,
                    option.error if option is not None else None,
                    option.bytes if option is not None else None,
                    row.seconds,
                )
            )

    def _why_not_taken(self, outcome: Outcome, instead: Any) -> str:
        if outcome.best is None:
            return outcome.reason
        if instead is not None:
            return f"{instead.label} was the better price of error"
        return "the budget of error was better spent elsewhere"


def _weight_bytes(model: onnx_ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
