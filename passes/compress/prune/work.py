"""Pruning one model: looked at once, cut as often as it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir

from optc.ir.rewriter import Rewriter
from optc.passes.calibration.store import Statistics
from optc.passes.compress.prune.axes import Group, Structure, structure_of
from optc.passes.compress.prune.cost import Cost, counted, flops, parameters, zeros
from optc.passes.compress.prune.cut import Removal, cut
from optc.passes.compress.prune.importance import (
    Ranking,
    Reader,
    Second,
    by_damage,
    by_magnitude,
    gram_requests,
    grams_of,
    positions_for,
    readable,
)
from optc.passes.compress.prune.repair import Fit, fit_from_grams, fit_in_order
from optc.passes.compress.prune.routing import by_routing, routing_requests

#: How many units go, by group.
Counts = Mapping[Group, int]


@dataclass
class Work:
    """A model, its groups and what is known of them.

    Attributes:
        model: The model, which is only changed by :meth:`write`.
        structure: Its groups.
        statistics: The service that gathers statistics; None for magnitudes only.
        measure: Opens, times and judges models; None where nothing can be run.
        rankings: Of every group that was looked at, which units are needed least.
    """

    model: onnx_ir.Model
    structure: Structure
    statistics: Any
    measure: Any
    rankings: dict[Group, Ranking] = field(default_factory=dict)
    _readers: dict[Group, list[Reader]] = field(default_factory=dict)
    _known: list[Statistics] = field(default_factory=list)

    @property
    def has_data(self) -> bool:
        """Whether there is calibration data of the user's to learn from."""
        return self.statistics is not None and bool(self.statistics.real)

    @property
    def has_metric(self) -> bool:
        """Whether the user's metric is the budget, and not the error."""
        return self.measure is not None and self.measure.options.metric is not None

    def rank(self, groups: Sequence[Group], most: float = 1.0) -> None:
        """Find out which units are needed least: from data where there are some, else from weights.

        Args:
            groups: The groups to look at.
            most: The share of units up to which errors are wanted.
        """
        reasons: dict[Group, str] = {}
        if self.has_data:
            reasons |= self._rank_experts([group for group in groups if group.kind == "experts"])
            groups = [group for group in groups if group.kind != "experts"]
        for group in groups:
            readers = self._readers_of(group)
            if not self.has_data:
                reasons[group] = "there is no calibration data, so units are ranked by the size of their weights"
            elif isinstance(readers, str):
                reasons[group] = f"units are ranked by the size of their weights: {readers}"
            else:
                self._readers[group] = readers
        with_data = [group for group in groups if group not in reasons]
        if with_data:
            requests = [request for group in with_data for request in gram_requests(self._readers[group])]
            known = self.statistics.collect(self.model, list(dict.fromkeys(requests)))
            self._known.append(known)
        for group in with_data:
            grams = grams_of(self._readers[group], known)
            if isinstance(grams, str):
                reasons[group] = f"units are ranked by the size of their weights: {grams}"
                del self._readers[group]
            else:
                self.rankings[group] = by_damage(self.structure, group, self._readers[group], grams, most)
        for group, reason in reasons.items():
            self.rankings[group] = by_magnitude(self.structure, group, reason)

    def _rank_experts(self, groups: Sequence[Group]) -> dict[Group, str]:
        """Rank experts by what routers give them; why some have to be ranked in another way."""
        if not groups:
            return {}
        requests = dict.fromkeys(request for group in groups for request in routing_requests(group))
        known = self.statistics.collect(self.model, list(requests))
        reasons = {}
        for group in groups:
            ranking = by_routing(self.structure, group, known)
            if isinstance(ranking, str):
                reasons[group] = f"units are ranked by the size of their weights: {ranking}"
            else:
                self.rankings[group] = ranking
        return reasons

    def _readers_of(self, group: Group) -> list[Reader] | str:
        """How a group's readers are fitted, or why one of them cannot be."""
        readers = []
        samples = len(self.measure.holdout.fitted) if self.measure is not None else 1
        for weight in group.readers:
            facts = self.structure.facts
            reader = readable(weight, facts, positions_for(samples, weight, facts))
            if isinstance(reader, str):
                return f"{weight.node.name}: {reader}"
            readers.append(reader)
        return readers

    def removed(self, counts: Counts) -> list[int]:
        """Roots of the units that go."""
        return [
            root for group, count in counts.items() for root in group.roots[self.rankings[group].order[:count]].tolist()
        ]

    def built(self, counts: Counts, in_order: bool = False) -> onnx_ir.Model:
        """A copy of the model with units removed.

        Args:
            counts: How many of each group.
            in_order: Whether layers are fitted from the first to the last with new statistics.
        """
        copy = self.model.clone()
        nodes = dict(zip(self.model.graph, copy.graph, strict=True))
        rewriter = Rewriter(copy)
        # The same walk over the same graph gives the same numbers.
        self._write(rewriter, structure_of(copy.graph, rewriter.facts), counts, in_order, nodes)
        return copy

    def write(self, rw: Rewriter, counts: Counts) -> None:
        """Remove units from the model itself, layers fitted as well as it can be done."""
        original = self.model.clone()
        nodes = {node: node for node in self.model.graph}
        self._write(rw, self.structure, counts, True, nodes, original)

    def _write(
        self,
        rw: Rewriter,
        structure: Structure,
        counts: Counts,
        in_order: bool,
        nodes: Mapping[onnx_ir.Node, onnx_ir.Node],
        original: onnx_ir.Model | None = None,
    ) -> None:
        removed = self.removed(counts)
        fits, grams = self._fits(counts, removed)
        cut(rw, structure, removed)
        fit_from_grams(rw, fits, nodes, grams)
        if in_order and fits:
            fit_in_order(rw, original or self.model, fits, nodes, self.statistics.collect)

    def _fits(self, counts: Counts, removed: list[int]) -> tuple[list[Fit], list[Second]]:
        """The readers of what goes that can be fitted, in the graph's order, and Gram matrices of their inputs."""
        removal = Removal(self.structure, removed)
        places = {node: number for number, node in enumerate(self.structure.graph)}
        readers: dict[tuple[onnx_ir.Node, int], tuple[Reader, Second]] = {}
        for group, count in counts.items():
            if not count or group not in self._readers:
                continue
            for reader in self._readers[group]:
                place = (reader.weight.node, reader.weight.index)
                if place not in readers:
                    readers[place] = (reader, self._gram(reader))
        ordered = sorted(readers.values(), key=lambda item: places[item[0].weight.node])
        return [self._fit(reader, removal) for reader, _ in ordered], [gram for _, gram in ordered]

    def _fit(self, reader: Reader, removal: Removal) -> Fit:
        weight = reader.weight
        keeps = removal.of(weight.node, weight.index) or []
        others = [axis for axis in range(len(keeps)) if axis != weight.axis and (reader.taps == 1 or axis == 0)]
        outputs = np.array([True])
        for axis in others:
            outputs = np.logical_and.outer(outputs, keeps[axis]).reshape(-1)
        return Fit(reader, removal.keep(weight.ids), reader.matrix(removal.facts)[:, outputs])

    def _gram(self, reader: Reader) -> Second:
        (request,) = gram_requests([reader])
        known = next(one for one in self._known if one.why_not(request) is None)
        return Second(known.gram(request.value, reader.view), known.gram_rows(request.value, reader.view))

    def cost(self, model: onnx_ir.Model, facts: Any) -> Cost:
        """Parameters and arithmetic of a model, at the sizes that are timed."""
        idle = zeros(model.graph, facts)
        if self.measure is None or self.measure.why_not is not None:
            return Cost(parameters(model), None, idle)
        values = counted(model.graph, facts)
        shapes = self.measure.shapes(model, values) if values else {}
        whole, needed = (flops(model.graph, facts, shapes, zeros=counting) for counting in (True, False))
        return Cost(parameters(model), whole, idle, needed)
