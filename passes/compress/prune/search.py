"""How much of which group pays inside the error budget.

Every group may give up a few shares of its units. What that costs is predicted from the fit of its readers, what it
saves is timed, layer by layer; a price of squared error traces the frontier (Lagrange multipliers, as in
:mod:`optc.passes.compress.search`), and points of it are measured end to end. Where even the smallest step of the
groups that are looked at first breaks the budget at the layer itself, nothing else is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir

from optc.passes.base import Attempt
from optc.passes.compress.prune.axes import Group
from optc.passes.compress.prune.cost import parameters
from optc.passes.compress.prune.schedule import count_for
from optc.passes.compress.prune.scope import Weight
from optc.passes.compress.prune.work import Counts, Work
from optc.passes.compress.techniques import Trial, single_layer

#: Shares of a group's units that are weighed.
SHARES = (0.125, 0.25, 0.5)
#: Groups of each kind that are looked at before all others.
_PROBES = 3
#: A layer's own error may be so many times the budget of the outputs: residual sums dilute it.
_DILUTION = 4.0
#: The bound of a layer's own error where a metric is the budget.
_WITH_METRIC = 1.0
#: Seconds spent on timing one layer in one form.
_SECONDS = 0.1
#: Share of a group's time below which a difference is noise.
_NOISE = 0.03


@dataclass(frozen=True, eq=False)
class Row:
    """One share of one group.

    Attributes:
        group: The group.
        count: Units that go; 0 where nothing was weighed.
        error: Relative L2 error of the readers' outputs, predicted.
        seconds: What the group's layers take with it; None if it was not timed.
        saved: Seconds that it saves.
        reason: Why it is no candidate.
    """

    group: Group
    count: int
    error: float | None = None
    seconds: float | None = None
    saved: float = 0.0
    reason: str = ""


@dataclass
class Found:
    """What a search came to.

    Attributes:
        counts: Units that go, by group; empty for none.
        reason: Why nothing goes.
        rows: All that was weighed.
        attempts: The models that were measured.
        error, speedup: Of the best model; None if there is none.
    """

    counts: dict[Group, int] = field(default_factory=dict)
    reason: str = ""
    rows: list[Row] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    error: float | None = None
    speedup: float | None = None


class PruneSearch:
    """The search for one model, which is not changed.

    Args:
        work: The model and its groups.
        groups: Those that may be made smaller.
        min_gain: The share of time to gain.
        part: The part of the error budget that may be taken.
    """

    def __init__(self, work: Work, groups: Sequence[Group], min_gain: float, part: float) -> None:
        self.work, self.groups, self.min_gain, self.part = work, groups, min_gain, part
        self.measure = work.measure
        self.has_metric = work.has_metric
        self.budget = part * self.measure.max_error
        self.bound = _WITH_METRIC if self.has_metric else _DILUTION * self.budget
        self.found = Found()
        self._times: dict[Any, float] = {}

    def run(self) -> Found:
        """Search."""
        if not self.groups:
            self.found.reason = "no group of channels can be made smaller"
            return self.found
        rows = self._rows(self._promising())
        if not any(rows.values()):
            reasons = dict.fromkeys(row.reason for row in self.found.rows if row.reason)
            self.found.reason = "; ".join(reasons) or "no group can be made smaller"
            return self.found
        best = self._frontier([options for options in rows.values() if options])
        if best is None:
            budget = f"{self.part_of_budget} on {self.measure.data}"
            self.found.reason = f"the smallest step that saves time leaves the error budget: {budget}"
            return self.found
        self._finish(best)
        return self.found

    @property
    def part_of_budget(self) -> str:
        return "the metric may not fall so far" if self.has_metric else f"{self.budget:.3g}"

    # -- what may be given up ---------------------------------------------------------------------------------------

    def _promising(self) -> list[Group]:
        """The groups whose smallest step is near the budget; a few of each kind are looked at before the others."""
        promising: list[Group] = []
        for kind in dict.fromkeys(group.kind for group in self.groups):
            mine = [group for group in self.groups if group.kind == kind]
            probes = mine if len(mine) <= _PROBES else [mine[0], mine[len(mine) // 2], mine[-1]]
            self.work.rank(probes, SHARES[-1])
            if not any(self._smallest(group) <= self.bound for group in probes):
                reason = f"the smallest step of those of this kind that were tried costs the layer more: {self._why}"
                self.found.rows += [Row(group, 0, reason=reason) for group in mine if group not in probes]
                promising += probes
                continue
            self.work.rank([group for group in mine if group not in probes], SHARES[-1])
            promising += mine
        return promising

    @property
    def _why(self) -> str:
        return f"than the {self.bound:.3g} that leave hope for the outputs"

    def _smallest(self, group: Group) -> float:
        errors = self.work.rankings[group].errors
        count = max(count_for(group, SHARES[0]), 1)
        return math.inf if errors is None else float(errors[min(count, len(group) - 1)])

    def _rows(self, groups: Sequence[Group]) -> dict[Group, list[Row]]:
        """What each group may give up, with its price."""
        rows: dict[Group, list[Row]] = {}
        sizes = self._sizes(groups)
        for group in groups:
            ranking = self.work.rankings[group]
            rows[group] = []
            if ranking.errors is None:
                self.found.rows.append(Row(group, 0, reason=ranking.reason))
                continue
            for count in dict.fromkeys(count_for(group, share) for share in SHARES):
                if not count:
                    continue
                error = float(ranking.errors[count])
                if not error <= self.bound:
                    self.found.rows.append(Row(group, count, error, reason=f"it costs the layer more {self._why}"))
                    break
                row = self._priced(group, count, error, sizes)
                self.found.rows.append(row)
                if not row.reason:
                    rows[group].append(row)
        return rows

    # -- time -------------------------------------------------------------------------------------------------------

    def _sizes(self, groups: Sequence[Group]) -> dict[str, tuple[int, ...]]:
        values = [weight.node.inputs[0] for group in groups for weight in (*group.writers, *group.readers)]
        known = [value for value in dict.fromkeys(values) if value is not None]
        return self.measure.shapes(self.work.model, [v for v in known if not self.work.structure.facts.is_const(v)])

    def _priced(self, group: Group, count: int, error: float, sizes: dict[str, tuple[int, ...]]) -> Row:
        before = after = 0.0
        for weight in (*group.writers, *group.readers):
            whole = self._seconds(weight, 1.0, sizes)
            gone = np.isin(self.work.structure.units.roots[weight.ids], self.work.removed({group: count})).mean()
            before += whole
            after += self._seconds(weight, 1.0 - float(gone), sizes)
        slow = f"its layers take {after / before:.2f} of the time that they take now" if before else "it takes no time"
        reason = "" if before - after > _NOISE * before else slow
        return Row(group, count, error, after, before - after, reason)

    def _seconds(self, weight: Weight, share: float, sizes: dict[str, tuple[int, ...]]) -> float:
        """Time of a layer alone, with a share of its channels along one axis."""
        node, facts = weight.node, self.work.structure.facts
        x = sizes.get(node.inputs[0].name or "") if node.inputs[0] is not None else None
        shape = [int(size) for size in facts.shape(weight.value) or ()]
        if x is None or weight.index != 1 or node.op_type not in ("MatMul", "Gemm", "FusedMatMul", "Conv", "FusedConv"):
            return 0.0
        shape[weight.axis] = max(1, round(shape[weight.axis] * share))
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        convolves = "Conv" in node.op_type
        groups = int(attributes.get("group", 1))
        if groups > 1 and weight.axis == 0:
            attributes["group"] = groups = max(1, round(groups * share))
            shape[0] -= shape[0] % groups
        summed = shape[1] * groups if convolves else shape[1 if attributes.get("transB") else 0]
        if convolves:
            x = (x[0], summed, *x[2:])
        else:
            x = (*x[:-2], summed, x[-1]) if attributes.get("transA") else (*x[:-1], summed)
        key = (node.op_type, x, tuple(shape), repr(sorted(attributes.items())))
        if key not in self._times:
            trial = _trial(node, x, tuple(shape), attributes, self.work.model.graph.opset_imports.get("", 21))
            call = partial(self.measure.open(trial.model).run, trial.feeds)
            self._times[key] = self.measure.time({"layer": call}, _SECONDS)["layer"]
        return self._times[key]

    # -- the frontier -----------------------------------------------------------------------------------------------

    def _at(self, rows: Sequence[Sequence[Row]], price: float) -> dict[Group, int]:
        """What every group gives up at a price of squared error."""
        chosen = {}
        for options in rows:
            best = max(options, key=lambda row: row.saved - price * (row.error or 0.0) ** 2)
            if best.saved - price * (best.error or 0.0) ** 2 > 0:
                chosen[best.group] = best.count
        return chosen

    def _frontier(self, rows: Sequence[Sequence[Row]]) -> dict[Group, int] | None:
        """The point of the frontier that saves most and stays inside the budget; None for none.

        The first to be measured is the one that saves least: where it is too much, nothing else is tried.
        """
        prices = sorted({row.saved / max(row.error or 0.0, 1e-9) ** 2 for options in rows for row in options})
        points: list[dict[Group, int]] = []
        for price in [0.0, *(0.5 * (a + b) for a, b in pairwise(prices)), prices[-1] * (1 - 1e-9)]:
            point = self._at(rows, price)
            if point and point not in points:
                points.append(point)
        if not self._inside(points[-1]):
            return None
        # Points are sorted by what they save: the last is inside, and the first that is inside is looked for.
        low, high = -1, len(points) - 1
        while high - low > 1:
            middle = (low + high) // 2
            if self._inside(points[middle]):
                high = middle
            else:
                low = middle
        return points[high]

    def _inside(self, counts: Counts) -> bool:
        model = self.work.built(counts)
        return self._judge(model, counts) is None

    def _judge(self, model: onnx_ir.Model, counts: Counts) -> str | None:
        """Measure a model; why it is outside of the budget, None if it is inside."""
        judged = self.measure.judge(model, self.part)
        reason = judged.reason
        options = {f"{count} of {len(group)} {group.kind}": 0 for group, count in counts.items()}
        for group, count in counts.items():
            options[f"{count} of {len(group)} {group.kind}"] += 1
        self.found.attempts.append(Attempt(options, judged.error, 4 * parameters(model), reason=reason or ""))
        self.found.error = judged.error
        return reason

    def _finish(self, counts: dict[Group, int]) -> None:
        """Fit the layers in order, and keep it if it is inside the budget and faster."""
        model = self.work.built(counts, in_order=True)
        reason = self._judge(model, counts)
        if reason is not None:
            self.found.reason = reason
            return
        timed = self.measure.compare({"before": self.work.model, "after": model})
        self.found.speedup = 1 / timed["after"].ratio.median
        attempt = self.found.attempts[-1]
        attempt.speedup = self.found.speedup
        if self.found.speedup < 1 / (1 - self.min_gain):
            self.found.reason = f"the whole model is not faster with it: {self.found.speedup:.2f}x on this CPU"
            return
        attempt.kept = True
        self.found.counts = counts


def _trial(
    node: onnx_ir.Node, x: tuple[int, ...], shape: tuple[int, ...], attributes: dict[str, Any], opset: int
) -> Trial:
    """A layer of random weights, of which only the sizes matter."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape, dtype=np.float32)

    def emit(rewriter: Any, value: onnx_ir.Value) -> onnx_ir.Value:
        constant = rewriter.constant(weight, "weight")
        return rewriter.op(node.op_type, value, constant, domain=node.domain, **attributes)

    return Trial(single_layer(list(x), emit, opset=opset), {"x": rng.standard_normal(x, dtype=np.float32)})
