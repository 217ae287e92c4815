"""The pass that removes channels, heads and blocks: as it is told, or as far as the error budget goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from optc.ir.errors import UsageError
from optc.ir.targets import suggestion
from optc.passes.base import Decision, LedgerRow, Numerics, Pass, PassContext
from optc.passes.compress.layers import Layer, weighted_layers
from optc.passes.compress.prune.axes import Group, structure_of
from optc.passes.compress.prune.blocks import remove_blocks
from optc.passes.compress.prune.schedule import (
    Schedule,
    check_layers,
    check_names,
    checked_share,
    count_for,
    fits,
    read_schedule,
)
from optc.passes.compress.prune.search import Found, PruneSearch
from optc.passes.compress.prune.work import Work
from optc.passes.compress.roles import roles_of
from optc.passes.compress.sparsity.kernels import Thinned, thin_out, why_not

#: What may be removed: "channel" is every group but heads, "block" the body of a residual block.
GRANULARITIES = ("channel", "head", "block")


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
        granularity: "channel", "head" and "block"; a block goes as a whole, so the ratio is a share of blocks.
        min_gain: The share of time that a search must gain.
        part: The part of the error budget that a search may take; the rest is for what comes behind it.
    """

    name: ClassVar[str] = "prune"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    ratio: float | None = None
    groups: tuple[str, ...] = ()
    schedule: str = ""
    granularity: tuple[str, ...] = ("channel", "head")
    min_gain: float = 0.03
    part: float = 0.7

    def __post_init__(self) -> None:
        if self.ratio is not None:
            checked_share(self.ratio)
        _ = self._schedule
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
        measure, statistics = ctx.services.get("measure"), ctx.services.get("statistics")
        reason = "nothing can be measured in this compile" if measure is None else measure.why_not
        if not self._told and (reason or not statistics.real):
            reason = reason or "it takes calibration data (--calib), as no weight tells what is never needed"
            ctx.decide(Decision(self.name, [], False, reason))
            return
        structure = structure_of(ctx.model.graph, ctx.facts)
        usable = measure if reason is None else None
        work = Work(ctx.model, structure, statistics if usable is not None else None, usable)
        check_names((*self.groups, *(what for what, _ in self._schedule.shares)), structure.groups, structure.declined)
        for name, why in structure.declined.items():
            ctx.remark("skipped", name, f"its channels stay: {why}")
        chosen = [group for group in structure.groups if self._wanted(group)]
        if self._told:
            self._as_told(ctx, work, chosen)
        else:
            self._as_found(ctx, work, chosen)

    def _wanted(self, group: Group) -> bool:
        size = "head" if group.kind == "heads" else "channel"
        return size in self.granularity and (not self.groups or any(fits(what, group) for what in self.groups))

    # -- as it is told ----------------------------------------------------------------------------------------------

    def _as_told(self, ctx: PassContext, work: Work, chosen: Sequence[Group]) -> None:
        if "block" in self.granularity:
            self._blocks(ctx, work)
            if set(self.granularity) == {"block"}:
                return
            structure = structure_of(ctx.model.graph, ctx.facts)
            work = Work(ctx.model, structure, work.statistics, work.measure)
            chosen = [group for group in structure.groups if self._wanted(group)]
        shares = {group: self._schedule.share(group, self.ratio or 0.0) for group in chosen}
        counts = {group: count_for(group, share) for group, share in shares.items()}
        counts = {group: count for group, count in counts.items() if count}
        before, timed = work.cost(ctx.model, ctx.facts), ctx.model.clone()
        if counts:
            work.rank(list(counts))
            work.write(ctx.rewriter, counts)
            self._record(ctx, work, counts)
        thinned = self._thinned(ctx, work) if self._schedule.kernels else []
        if not counts and not thinned:
            reasons = "; ".join(dict.fromkeys(work.structure.declined.values()))
            what = "no group of channels can be made smaller" if chosen else "there is no group to prune"
            ctx.decide(Decision(self.name, [], False, f"{what}{': ' if reasons else ''}{reasons}"))
            return
        after = work.cost(ctx.model, ctx.facts)
        speed = self._speed(work, timed, ctx.model)
        told = f"{before} before, {after} after" + (f"; {speed:.2f}x faster on this CPU" if speed else "")
        guesses = list(dict.fromkeys(work.rankings[group].reason for group in counts if work.rankings[group].reason))
        reason = "; ".join([f"as the pass was told: {told}", *guesses])
        saved = 4 * (before.parameters - after.parameters)
        where = [*(group.name for group in counts), *(one.layer.name for one in thinned)]
        ctx.decide(Decision(self.name, where, True, reason, None, speed, saved))

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

    def _as_found(self, ctx: PassContext, work: Work, chosen: Sequence[Group]) -> None:
        if work.measure.why_not_timed is not None:
            ctx.decide(Decision(self.name, [], False, work.measure.why_not_timed))
            return
        found = PruneSearch(work, chosen, self.min_gain, self.part).run()
        ctx.attempts += found.attempts
        self._tell(ctx, found)
        if not found.counts:
            ctx.decide(Decision(self.name, [], False, found.reason, found.error, found.speedup))
            return
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

    def _tell(self, ctx: PassContext, found: Found) -> None:
        for row in found.rows:
            count = found.counts.get(row.group, 0)
            taken = count == row.count > 0
            reason = row.reason or ("" if taken else found.reason or "the budget of error was better spent elsewhere")
            option = f"{row.count} of {len(row.group)} {row.group.kind}" if row.count else ""
            ctx.ledger.append(LedgerRow(row.group.name, self.name, option, taken, reason, row.error, None, row.seconds))
