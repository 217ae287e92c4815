"""The pass that removes channels, heads and blocks: as it is told, or as far as the error budget goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir

from optc.ir.errors import UsageError
from optc.ir.targets import suggestion
from optc.passes.base import Decision, LedgerRow, Numerics, Pass, PassContext
from optc.passes.compress.layers import Layer, weighted_layers
from optc.passes.compress.policy import Policy, read_policy
from optc.passes.compress.prune.axes import Group, structure_of
from optc.passes.compress.prune.blocks import remove_blocks
from optc.passes.compress.prune.schedule import (
    Schedule,
    check_layers,
    check_names,
    checked_share,
    count_for,
    fits,
    pinned_counts,
    read_schedule,
)
from optc.passes.compress.prune.search import Found, PruneSearch
from optc.passes.compress.prune.work import Work
from optc.passes.compress.roles import roles_of
from optc.passes.compress.sparsity.kernels import Thinned, thin_out, why_not
from optc.passes.compress.techniques import Option

#: What may be removed: "channel" is every group but heads and experts, "block" the body of a residual block.
GRANULARITIES = ("channel", "head", "expert", "block")
#: The granularity of kinds of groups that are no channels.
_SIZES = {"heads": "head", "experts": "expert"}


@dataclass(frozen=True)
class Prune(Pass):
    """Remove channels, neurons and heads as whole, and fit the layers behind them anew.

    With a ratio or a schedule it does what it is told. Without, it searches for what makes the model faster inside the
    error budget, which takes calibration data. Which positions go together is found for every axis of the graph, see
    :mod:`optc.passes.compress.prune.axes`; what cannot be removed is named with its reason.

    Attributes:
        ratio: The share of every group's units that goes; none for a search.
        groups: Which groups, by kind or by patterns of their names; all if empty.
        schedule: Shares by kind or pattern, in place of the ratio, see :mod:`optc.passes.compress.prune.schedule`; it
            may also have shares of kernels to set to zero.
        granularity: "channel", "head", "expert" and "block"; a block goes as a whole, so the ratio is a share of
            blocks.
        min_gain: The share of time that a search must gain.
        part: The part of the error budget that a search may take; the rest is for what comes behind it.
        policy: Which layers may become what, see :mod:`optc.passes.compress.policy`; "prune" is what this pass does.
    """

    name: ClassVar[str] = "prune"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    ratio: float | None = None
    groups: tuple[str, ...] = ()
    schedule: str = ""
    granularity: tuple[str, ...] = ("channel", "head")
    min_gain: float = 0.03
    part: float = 0.7
    policy: str = ""

    def __post_init__(self) -> None:
        if self.ratio is not None:
            checked_share(self.ratio)
        _ = self._schedule, read_policy(self.policy)
        for name in self.granularity:
            if name not in GRANULARITIES:
                hint = suggestion(name, GRANULARITIES, f"one of {', '.join(GRANULARITIES)}")
                raise UsageError(f"there is no granularity {name!r}", hint=hint)

    @property
    def _schedule(self) -> Schedule:
        return read_schedule(self.schedule)

    @property
    def _told(self) -> bool:
        return self.ratio is not None or bool(self.schedule)

    def run(self, ctx: PassContext) -> None:
        self.prune(ctx)

    def prune(self, ctx: PassContext, pinned: Mapping[str, int] | None = None) -> dict[str, int]:
        """Prune a model, and tell of it.

        Args:
            ctx: The model and what is there to measure it with.
            pinned: How many units of which group go, by name, as an earlier search of the same model has found; neither
                is then searched nor looked at what the pass was told.

        Returns:
            How many units of which group went, by name.
        """
        measure, statistics = ctx.services.get("measure"), ctx.services.get("statistics")
        reason = "nothing can be measured in this compile" if measure is None else measure.why_not
        searched = not self._told and pinned is None
        refused = (reason or _why_no_search(measure, statistics)) if searched else None
        if refused is not None:
            ctx.decide(Decision(self.name, [], False, refused))
            return {}
        structure = structure_of(ctx.model.graph, ctx.facts)
        usable = measure if reason is None else None
        work = Work(ctx.model, structure, statistics if usable is not None else None, usable)
        check_names((*self.groups, *(what for what, _ in self._schedule.shares)), structure.groups, structure.declined)
        for name, why in structure.declined.items():
            ctx.remark("skipped", name, f"its channels stay: {why}")
        if pinned is not None:
            counts = pinned_counts(pinned, structure.groups)
            return self._written(ctx, work, counts, "as it was found")
        return self._as_told(ctx, work) if self._told else self._as_found(ctx, work)

    def _wanted(self, ctx: PassContext, work: Work) -> list[Group]:
        """The groups that may be made smaller."""
        wanted = []
        forbidden = _forbidden(ctx, read_policy(self.policy))
        for group in work.structure.groups:
            size = _SIZES.get(group.kind, "channel")
            if size not in self.granularity or (self.groups and not any(fits(what, group) for what in self.groups)):
                continue
            reasons = [forbidden[one.node] for one in (*group.writers, *group.readers) if one.node in forbidden]
            if reasons:
                ctx.remark("skipped", group.name, f"{reasons[0]}, for a layer that makes or reads it")
            else:
                wanted.append(group)
        return wanted

    # -- as it is told ----------------------------------------------------------------------------------------------

    def _as_told(self, ctx: PassContext, work: Work) -> dict[str, int]:
        if "block" in self.granularity:
            self._blocks(ctx, work)
            if set(self.granularity) == {"block"}:
                return {}
            structure = structure_of(ctx.model.graph, ctx.facts)
            work = Work(ctx.model, structure, work.statistics, work.measure)
        chosen = self._wanted(ctx, work)
        shares = {group: self._schedule.share(group, self.ratio or 0.0) for group in chosen}
        counts = {group: count_for(group, share) for group, share in shares.items()}
        counts = {group: count for group, count in counts.items() if count}
        return self._written(ctx, work, counts, "as the pass was told")

    def _written(self, ctx: PassContext, work: Work, counts: dict[Group, int], how: str) -> dict[str, int]:
        before, timed = work.cost(ctx.model, ctx.facts), ctx.model.clone()
        if counts:
            work.rank(list(counts))
            work.write(ctx.rewriter, counts)
            self._record(ctx, work, counts)
        thinned = self._thinned(ctx, work) if self._schedule.kernels else []
        if not counts and not thinned:
            reasons = "; ".join(dict.fromkeys(work.structure.declined.values()))
            what = "no group of channels can be made smaller" if work.structure.groups else "there is no group to prune"
            ctx.decide(Decision(self.name, [], False, f"{what}{': ' if reasons else ''}{reasons}"))
            return {}
        after = work.cost(ctx.model, ctx.facts)
        speed = self._speed(work, timed, ctx.model)
        told = f"{before} before, {after} after" + (f"; {speed:.2f}x faster on this CPU" if speed else "")
        guesses = list(dict.fromkeys(work.rankings[group].reason for group in counts if work.rankings[group].reason))
        reason = "; ".join([f"{how}: {told}", *guesses])
        saved = 4 * (before.parameters - after.parameters)
        where = [*(group.name for group in counts), *(one.layer.name for one in thinned)]
        ctx.decide(Decision(self.name, where, True, reason, None, speed, saved))
        return {group.name: count for group, count in counts.items()}

    def _thinned(self, ctx: PassContext, work: Work) -> list[Thinned]:
        """Set kernels to zero, as the schedule says, of the layers as they are now."""
        layers = list(weighted_layers(ctx.model.graph, ctx.facts))
        roles = dict(zip((layer.name for layer in layers), roles_of(layers, ctx.facts), strict=True))
        check_layers((what for what, _ in self._schedule.kernels), roles)
        shares: dict[Layer, float] = {}
        for layer in layers:
            share = self._schedule.kernel_share(layer.name, roles[layer.name])
            reason = why_not(layer, ctx.facts) if share else None
            if reason is not None:
                ctx.ledger.append(LedgerRow(layer.name, self.name, "", False, reason))
            elif share:
                shares[layer] = share
        thinned = thin_out(ctx.rewriter, shares, work.statistics)
        for one in thinned:
            ctx.hit("prune-kernels")
            ctx.ledger.append(
                LedgerRow(one.layer.name, self.name, f"{one.count} of {one.units} {one.what}", True, "", one.error)
            )
        return thinned

    def _blocks(self, ctx: PassContext, work: Work) -> None:
        before, timed = work.cost(ctx.model, ctx.facts), ctx.model.clone()
        removed, reasons = remove_blocks(ctx.rewriter, work, self.ratio or 0.0)
        for name, why in reasons.items():
            ctx.remark("skipped", name, why)
        if not removed:
            why = "; ".join(dict.fromkeys(reasons.values())) or "there is no residual block"
            ctx.decide(Decision("prune-blocks", [], False, why))
            return
        after, speed = work.cost(ctx.model, ctx.facts), self._speed(work, timed, ctx.model)
        ctx.hit("prune-blocks", len(removed))
        for block in removed:
            ctx.ledger.append(LedgerRow(block.name, self.name, "block", True, "", block.share))
        told = f"{before} before, {after} after" + (f"; {speed:.2f}x faster on this CPU" if speed else "")
        saved = 4 * (before.parameters - after.parameters)
        where = [block.name for block in removed]
        ctx.decide(Decision("prune-blocks", where, True, f"as the pass was told: {told}", None, speed, saved))

    @staticmethod
    def _speed(work: Work, before: Any, after: Any) -> float | None:
        """Time before over time after; None where nothing is timed."""
        if work.measure is None or work.measure.why_not_timed is not None:
            return None
        return 1 / work.measure.compare({"before": before, "after": after}, 3.0)["after"].ratio.median

    def _record(self, ctx: PassContext, work: Work, counts: dict[Group, int]) -> None:
        """A row of the ledger for every group that was made smaller."""
        for group, count in counts.items():
            errors = work.rankings[group].errors
            error = None if errors is None or not errors[count] < float("inf") else float(errors[count])
            ctx.hit(f"prune-{group.kind}", 1)
            ctx.ledger.append(
                LedgerRow(group.name, self.name, f"{count} of {len(group)} {group.kind}", True, "", error)
            )

    # -- as far as the budget goes ----------------------------------------------------------------------------------

    def _as_found(self, ctx: PassContext, work: Work) -> dict[str, int]:
        found = PruneSearch(work, self._wanted(ctx, work), self.min_gain, self.part).run()
        ctx.attempts += found.attempts
        self._tell(ctx, found)
        if not found.counts:
            ctx.decide(Decision(self.name, [], False, found.reason, found.error, found.speedup))
            return {}
        before = work.cost(ctx.model, ctx.facts)
        work.write(ctx.rewriter, found.counts)
        after = work.cost(ctx.model, ctx.facts)
        for group in found.counts:
            ctx.hit(f"prune-{group.kind}", 1)
        budget = "with the metric inside its budget" if work.has_metric else f"of {work.measure.max_error:.3g}"
        reason = (
            f"{before} before, {after} after; {found.speedup:.2f}x faster on this CPU, "
            f"error {found.error:.3g} {budget} on {work.measure.data}"
        )
        where = [group.name for group in found.counts]
        saved = 4 * (before.parameters - after.parameters)
        ctx.decide(Decision(self.name, where, True, reason, found.error, found.speedup, saved))
        return {group.name: count for group, count in found.counts.items()}

    def _tell(self, ctx: PassContext, found: Found) -> None:
        for row in found.rows:
            count = found.counts.get(row.group, 0)
            taken = count == row.count > 0
            reason = row.reason or ("" if taken else found.reason or "the budget of error was better spent elsewhere")
            option = f"{row.count} of {len(row.group)} {row.group.kind}" if row.count else ""
            ctx.ledger.append(LedgerRow(row.group.name, self.name, option, taken, reason, row.error, None, row.seconds))


def _why_no_search(measure: Any, statistics: Any) -> str | None:
    """Why nothing can be searched for; None if it can."""
    if not statistics.real:
        return "it takes calibration data (--calib), as no weight tells what is never needed"
    return measure.why_not_timed or measure.holdout.why_not


def _forbidden(ctx: PassContext, policy: Policy) -> dict[onnx_ir.Node, str]:
    """Why layers may not be pruned, by what the user said."""
    if not policy.rules:
        return {}
    layers = list(weighted_layers(ctx.model.graph, ctx.facts, ("matmul", "conv", "lookup")))
    option = Option(Prune.name, Prune.name, None, 0)
    reasons = {
        layer.node: policy.forbids(option, layer.name, roles)
        for layer, roles in zip(layers, roles_of(layers, ctx.facts), strict=True)
    }
    return {node: reason for node, reason in reasons.items() if reason is not None}
