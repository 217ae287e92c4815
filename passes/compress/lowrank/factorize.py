"""The pass that writes layers at low rank as it is told, without a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from optc.ir.errors import UsageError
from optc.passes.base import Decision, Numerics, Pass, PassContext
from optc.passes.calibration.store import Statistics
from optc.passes.compress.layers import Layer, named_layers, weighted_layers
from optc.passes.compress.lowrank.cuts import Cut, Form
from optc.passes.compress.lowrank.forms import forms_of, shared_form
from optc.passes.compress.lowrank.inputs import gram_request
from optc.passes.compress.lowrank.sharing import Rung, share_out
from optc.passes.compress.lowrank.writing import write, write_shared

#: What convolutions with kernels of more than one pixel become.
CONVOLUTIONS = ("tucker", "spatial", "none")


@dataclass(frozen=True)
class LowRankPass(Pass):
    """Write layers at low rank, as many ranks as it is told, whether that is faster or not.

    Products become two smaller ones, convolutions chains of smaller ones; biases stay. With calibration data the
    factors are those that are best for what the layers' inputs look like, without any those of the plain SVD. What
    comes out is still held against the error budget, unless verification is off.

    Attributes:
        ratio: Share of the weights of the layers concerned that is left, above 0 and below 1; layers get their ranks
            so that the sum of their squared relative errors is least, and those that suffer most may stay as they are.
        rank: The rank of every layer instead; 0 to go by the ratio.
        layers: Names of nodes, or patterns of them; all layers if empty. What is named here and cannot be done is an
            error.
        convolutions: "tucker", "spatial", or "none" to leave those with kernels of more than one pixel alone.
        shared: Whether products of one input share their first factor.
    """

    name: ClassVar[str] = "low-rank"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    ratio: float = 0.5
    rank: int = 0
    layers: tuple[str, ...] = ()
    convolutions: str = "tucker"
    shared: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UsageError(f"the ratio of {self.name!r} is above 0 and below 1, not {self.ratio:g}")
        if self.rank < 0:
            raise UsageError(f"the rank of {self.name!r} is 1 or more, or 0 to go by the ratio, not {self.rank}")
        if self.convolutions not in CONVOLUTIONS:
            raise UsageError(
                f"{self.name!r} makes of convolutions {', '.join(CONVOLUTIONS)}, not {self.convolutions!r}"
            )

    def run(self, ctx: PassContext) -> None:
        layers = named_layers(list(weighted_layers(ctx.model.graph, ctx.facts)), self.layers, "factored")
        statistics = self._learned(ctx, layers)
        items: list[_Item] = []
        for group in self._groups(layers):
            item = self._item(ctx, group, statistics)
            if isinstance(item, str):
                self._refuse(ctx, group, item)
            else:
                items.append(item)
        if not items:
            ctx.decide(Decision(self.name, [], False, "the model has no layer that could be factored"))
            return
        for item, rung in zip(items, self._rungs(items), strict=True):
            names = [layer.name for layer in item.layers]
            if not rung.ranks:
                ctx.decide(Decision(self.name, names, False, "its weights were the best ones to keep"))
                continue
            self._write(ctx, item, item.form.cut(*rung.ranks))

    # -- what is concerned ------------------------------------------------------------------------------------------

    def _groups(self, layers: Sequence[Layer]) -> list[list[Layer]]:
        """Layers that are factored together."""
        groups: dict[object, list[Layer]] = {}
        for layer in layers:
            together = self.shared and layer.kind == "matmul"
            groups.setdefault(layer.x if together else layer.node, []).append(layer)
        return list(groups.values())

    def _learned(self, ctx: PassContext, layers: Sequence[Layer]) -> Statistics | None:
        """What the user's data say of the layers' inputs; None without any."""
        service = ctx.services.get("statistics")
        if service is None or not service.real or not layers:
            ctx.remark("skipped", self.name, "without calibration data (--calib) factors are those of the plain SVD")
            return None
        requests = [request for layer in layers if (request := gram_request(layer, ctx.facts)) is not None]
        found: Statistics = service.collect(ctx.model, list(dict.fromkeys(requests)))
        return found

    def _item(self, ctx: PassContext, group: Sequence[Layer], statistics: Statistics | None) -> _Item | str:
        """What a group of layers could become, or why it cannot be factored."""
        first = group[0]
        alone = len(group) == 1
        forms = forms_of(first, ctx.facts, statistics) if alone else shared_form(group, ctx.facts, statistics)
        if isinstance(forms, str):
            return forms
        wanted = [form for form in forms if form.kind in ("low-rank", self.convolutions)]
        if not wanted:
            return f"it has no form {self.convolutions!r}, but {' or '.join(form.kind for form in forms)}"
        form, step = wanted[0], max(1, ctx.target.granule // first.groups)
        whole = sum(layer.rows * layer.columns for layer in group)
        if self.rank:
            if self.rank > min(form.limits):
                return f"its largest rank is {min(form.limits)}, less than the {self.rank} asked for"
            return _Item(group, form, [self._rung(form, (self.rank,) * len(form.limits))], whole)
        rungs = [self._rung(form, ranks) for ranks in form.ladder(step)]
        rungs = [rung for rung in rungs if rung.weights < whole]
        form.forget(max((rung.ranks[0] for rung in rungs), default=0))
        if not rungs:
            limits = " and ".join(map(str, form.limits))
            return f"its {limits} components are too few: no multiple of {step} leaves fewer weights"
        return _Item(group, form, [*rungs, Rung((), whole, 0.0)], whole)

    @staticmethod
    def _rung(form: Form, ranks: tuple[int, ...]) -> Rung:
        cut = form.cut(*ranks)
        return Rung(ranks, cut.weights, cut.expected)

    def _refuse(self, ctx: PassContext, group: Sequence[Layer], reason: str) -> None:
        names = [layer.name for layer in group]
        if self.layers:
            raise UsageError(f"the layer {', '.join(map(repr, names))} cannot be factored: {reason}")
        ctx.decide(Decision(self.name, names, False, reason))

    def _rungs(self, items: Sequence[_Item]) -> list[Rung]:
        if self.rank:
            return [item.rungs[0] for item in items]
        whole = sum(item.weights for item in items)
        found = share_out([item.rungs for item in items], self.ratio * whole)
        if found is None:
            least = sum(min(rung.weights for rung in item.rungs) for item in items) / whole
            raise UsageError(
                f"the ratio {self.ratio:g} cannot be had: at the least rank {least:.3g} of the weights are left",
                hint="a larger ratio, or a rank",
            )
        return found

    # -- doing it ---------------------------------------------------------------------------------------------------

    def _write(self, ctx: PassContext, item: _Item, cut: Cut) -> None:
        names, stages = [layer.name for layer in item.layers], cut.stages()
        error = cut.error
        if len(item.layers) == 1:
            write(ctx.rewriter, item.layers[0], stages, cut.label)
        else:
            down, *ups = stages
            write_shared(ctx.rewriter, item.layers, down.weight, [up.weight for up in ups])
        ctx.hit(cut.label, len(names))
        reason = f"as the pass was told; error of its own output {error:.3g}, {cut.work:.0%} of its multiplications"
        saved = 4 * (item.weights - cut.weights)
        ctx.decide(Decision(cut.label, names, True, reason, bytes_saved=saved))


@dataclass(frozen=True)
class _Item:
    """Layers that are factored together, and what they could become.

    Attributes:
        layers: One, or several products of one input.
        form: How they are written.
        rungs: At which ranks, or not at all.
        weights: How many they have as they are.
    """

    layers: Sequence[Layer]
    form: Form
    rungs: Sequence[Rung]
    weights: int
