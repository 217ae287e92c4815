"""The pass that prunes and quantizes inside one error budget, and finds out how much of it either should have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir

from optc.ir.errors import UsageError
from optc.ir.rewriter import Rewriter
from optc.passes.base import Attempt, Decision, Numerics, Pass, PassContext
from optc.passes.compress.prune.prune import Prune
from optc.passes.compress.quantize import Quantize
from optc.passes.compress.recipe import Recipe, parse_recipe, read_recipe

#: Whole models whose times are closer than this share of the time before count as equally fast.
_TIE = 0.01


@dataclass(frozen=True)
class _Way:
    """One division of the budget, carried out on a copy.

    Attributes:
        part: What pruning might take of it.
        ctx: The copy, and what was found on the way.
        recipe: What pruning and quantizing came to.
        ratio: Time of the whole model over that of the model before.
    """

    part: float
    ctx: PassContext
    recipe: Recipe
    ratio: float = 1.0

    @property
    def options(self) -> dict[str, int]:
        """What was done to how many layers and groups, in the order in which it was done."""
        taken = Counter(f"{row.technique} {row.option}" for row in self.ctx.ledger if row.taken)
        return dict(taken) or {"as it was": 1}

    def __str__(self) -> str:
        pruning = f"pruned within {self.part:g} of the budget" if self.recipe.pruned else "not pruned"
        quantizing = "quantized" if self.recipe.options else "not quantized"
        return f"{pruning}, {quantizing}: {1 / self.ratio:.2f}x"


@dataclass(frozen=True)
class Compress(Pass):
    """Prune, then quantize, inside one error budget.

    What pruning takes of the budget is not there for rounding, and what both together gain is told by neither alone.
    So several divisions are tried on copies: no pruning, and pruning inside of each of ``parts`` of the budget. Behind
    it, in this order: layers are fitted anew to what is left, statistics are gathered of the smaller model, layers are
    written at low rank, weights and activations are rounded, and biases take up what the rounding shifts. The error is
    always that of the whole against the original. The fastest whole model is kept; of equally fast ones the one with
    the least pruning.

    Attributes:
        parts: The parts of the error budget that pruning may take.
        groups: Which groups are pruned, as in :class:`~optc.passes.compress.prune.prune.Prune`.
        techniques: Which techniques quantize, as in :class:`~optc.passes.compress.quantize.Quantize`.
        min_gain: The share of time that the whole model must gain.
        policy: Which layers may become what, see :mod:`optc.passes.compress.policy`.
        recipe: A file that says what is pruned and quantized, see :mod:`optc.passes.compress.recipe`; nothing is
            searched.
    """

    name: ClassVar[str] = "compress"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    parts: tuple[float, ...] = (0.35, 0.7)
    groups: tuple[str, ...] = ()
    techniques: tuple[str, ...] = ()
    min_gain: float = 0.03
    policy: str = ""
    recipe: str = ""

    def __post_init__(self) -> None:
        for part in self.parts:
            if not 0 < part <= 1:
                raise UsageError(f"a part of the budget is above 0 and at most 1, not {part:g}")
        _ = self._quantize, self._prune(1.0)

    @property
    def _quantize(self) -> Quantize:
        return Quantize(techniques=self.techniques, min_gain=self.min_gain, policy=self.policy)

    def _prune(self, part: float) -> Prune:
        return Prune(groups=self.groups, min_gain=self.min_gain, part=part, policy=self.policy)

    def run(self, ctx: PassContext) -> None:
        if self.recipe:
            self._carry_out(ctx, read_recipe(self.recipe))
            return
        measure = ctx.services.get("measure")
        why_not = "nothing can be measured in this compile" if measure is None else measure.why_not
        why_not = why_not or measure.why_not_timed
        if why_not is not None:
            ctx.decide(Decision(self.name, [], False, why_not))
            return
        ways = self._timed(ctx, self._ways(ctx))
        fastest = min(way.ratio for way in ways)
        best = next(way for way in ways if way.ratio < fastest + _TIE)
        kept = best.ratio <= 1 - self.min_gain
        for way in ways:
            ctx.attempts += [replace(one, kept=False) for one in way.ctx.attempts]
            ctx.attempts.append(self._attempt(ctx, way, kept and way is best))
        tried = "; ".join(map(str, ways))
        if not kept:
            ctx.ledger += [replace(row, taken=False, reason=row.reason or tried) for row in best.ctx.ledger]
            ctx.decide(Decision(self.name, [], False, f"nothing is faster as a whole: {tried}"))
            return
        measured = list(ctx.attempts)
        self._carry_out(ctx, best.recipe)
        ctx.attempts[:] = measured  # what is done again was measured before
        error = next(one.error for one in ctx.attempts if one.kept)
        ctx.decide(Decision(self.name, [*best.recipe.pruned], True, f"the fastest of: {tried}", error, 1 / best.ratio))

    def _ways(self, ctx: PassContext) -> list[_Way]:
        """All divisions of the budget that come to different models, the one with the least pruning first."""
        ways: list[_Way] = []
        for part in (0.0, *sorted(self.parts)):
            copy = PassContext(Rewriter(ctx.model.clone()), ctx.target, ctx.services)
            pruned = self._prune(part).prune(copy) if part else {}
            if part and not pruned:
                ctx.decisions += copy.decisions
                ctx.attempts += copy.attempts
                ctx.remarks += [remark for remark in copy.remarks if remark not in ctx.remarks]
                continue
            if any(pruned == way.recipe.pruned for way in ways):
                continue
            self._quantize.quantize(copy)
            ways.append(_Way(part, copy, replace(parse_recipe(copy.recipe), pruned=pruned)))
        return ways

    @staticmethod
    def _timed(ctx: PassContext, ways: Sequence[_Way]) -> list[_Way]:
        models: dict[str, onnx_ir.Model] = {"before": ctx.model}
        models |= {str(number): way.ctx.model for number, way in enumerate(ways) if way.ctx.rewriter.changes}
        if len(models) == 1:
            return list(ways)
        timed = ctx.services["measure"].compare(models)
        return [
            replace(way, ratio=timed[str(number)].ratio.median) if str(number) in models else way
            for number, way in enumerate(ways)
        ]

    @staticmethod
    def _attempt(ctx: PassContext, way: _Way, kept: bool) -> Attempt:
        judged = ctx.services["measure"].judge(way.ctx.model)
        size = sum(v.const_value.nbytes for v in way.ctx.model.graph.initializers.values() if v.const_value is not None)
        return Attempt(way.options, judged.error, size, None, 1 / way.ratio, kept, judged.reason or "")

    def _carry_out(self, ctx: PassContext, recipe: Recipe) -> None:
        """Do what was found, without searching."""
        if recipe.pruned:
            self._prune(1.0).prune(ctx, recipe.pruned)
        if recipe.options:
            self._quantize.quantize(ctx, recipe)
        ctx.recipe = recipe.text()
