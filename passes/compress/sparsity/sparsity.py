"""The pass that makes weights sparse as it is told, for targets with sparse tensor cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir

from optc.ir.errors import UsageError
from optc.ir.facts import Facts
from optc.ir.sparsity import Pattern
from optc.passes.base import Decision, LedgerRow, Numerics, Pass, PassContext
from optc.passes.calibration.store import Statistics
from optc.passes.compress.clock import estimated_seconds
from optc.passes.compress.layers import Layer, named_layers, weighted_layers
from optc.passes.compress.lowrank.inputs import gram_request, too_few
from optc.passes.compress.prune.axes import Group, structure_of
from optc.passes.compress.sparsity.channels import movable, reorder
from optc.passes.compress.sparsity.columns import Columns
from optc.passes.compress.sparsity.methods import METHODS, Sparse, sparsify
from optc.passes.compress.sparsity.permute import best_order, kept
from optc.passes.compress.sparsity.writing import known, store
from optc.passes.compress.techniques import Option, Study

#: Channels that sparse kernels sum over come in multiples of this.
_MULTIPLE = 32
#: Bits that say where a number of a group lies.
_INDEX_BITS = 2


def why_dense(layer: Layer, facts: Facts, pattern: Pattern, channels: int) -> str | None:
    """Why a layer stays dense, by its shape and weights; None if it need not.

    Args:
        layer: The layer.
        facts: What is known of its graph.
        pattern: What is wanted.
        channels: The fewest channels for which it pays; 0 for any.
    """
    inputs, outputs = Columns.of(layer, facts).channels, layer.columns // layer.groups
    if inputs < pattern.group:
        return f"it sums over {inputs} channels, less than a group of {pattern.group}"
    if min(inputs, outputs) < channels:
        return f"sparse kernels pay from {channels} channels on, it has {inputs} and makes {outputs}"
    if channels and inputs % _MULTIPLE:
        return f"sparse kernels sum over multiples of {_MULTIPLE} channels, it has {inputs}"
    weight = facts.const(layer.weight)
    return None if weight is not None and np.isfinite(weight).all() else "not all of its weights are finite"


@dataclass(frozen=True)
class Sparsity(Pass):
    """Let N of every M weights along the sum differ from zero, for sparse tensor cores.

    It does what it is told, on targets that have kernels for it; what comes out is still held against the error budget.
    With calibration data the zeros are those that the layers' inputs can spare, and what is left makes good for them.
    Inputs of a layer are put into a better order first where the layers that make them can write them in that order.

    Attributes:
        pattern: "2:4", or another N:M.
        method: "sparsegpt", "wanda" or "magnitude"; without calibration data it is the last one.
        layers: Names of nodes, or patterns of them; all layers if empty.
        channels: The fewest input and output channels of a layer for which it pays; inputs also come in multiples of
            32. 0 takes layers of any size.
        permute: Whether channels may be put into another order, which is exact.
        repair: Whether the weights that are left are fitted by least squares.
        layer_error: Layers whose output would err more than this, relatively, stay dense.
        force: Write the zeros for a target that has no kernels for them, too.
    """

    name: ClassVar[str] = "sparsity"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    pattern: str = "2:4"
    method: str = "sparsegpt"
    layers: tuple[str, ...] = ()
    channels: int = 256
    permute: bool = True
    repair: bool = True
    layer_error: float = 1.0
    force: bool = False

    def __post_init__(self) -> None:
        try:
            _ = self._pattern
        except ValueError as error:
            raise UsageError(f"the pass {self.name!r}: {error}") from error
        if self.method not in METHODS:
            raise UsageError(f"there is no method {self.method!r}", hint=f"one of {', '.join(METHODS)}")
        if self.channels < 0 or not self.layer_error > 0:
            raise UsageError(f"the pass {self.name!r} takes channels of 0 or more and a layer_error above 0")

    @property
    def _pattern(self) -> Pattern:
        return Pattern.of(self.pattern)

    def run(self, ctx: PassContext) -> None:
        pattern = self._pattern
        there = list(weighted_layers(ctx.model.graph, ctx.facts))
        named = named_layers(there, self.layers, "made sparse")
        reason = self._why_not_here(ctx)
        if reason is not None:
            ctx.decide(Decision(self.name, [], False, reason))
            return
        fitting = [
            layer for layer in named if not self._skip(ctx, layer, why_dense(layer, ctx.facts, pattern, self.channels))
        ]
        if not fitting:
            ctx.decide(Decision(self.name, [], False, f"the model has no layer for which {pattern} weights would pay"))
            return
        statistics = self._learned(ctx, fitting)
        orders = self._ordered(ctx, fitting, statistics) if self.permute else {}
        study = self._study(ctx, fitting)
        done: list[_Done] = []
        for layer in fitting:
            one = self._sparse(ctx, layer, statistics, orders.get(layer.node))
            if one is None:
                continue
            seconds = self._estimates(study, layer, one)
            done.append(replace(one, seconds=seconds))
            took = None if seconds is None else seconds[1]
            error, size = one.sparse.error, self._bytes(layer)
            ctx.ledger.append(LedgerRow(layer.name, self.name, one.label, True, "", error, size, took))
        self._decide(ctx, named, done, len(orders))

    # -- what is concerned ------------------------------------------------------------------------------------------

    def _why_not_here(self, ctx: PassContext) -> str | None:
        """Why it would be of no use for the target; None if it is."""
        if self.force or ctx.target.has(f"sparse-{self._pattern}"):
            return None
        return (
            f"the target {ctx.target.name!r} has no kernels for {self._pattern} weights: zeros would take the time "
            "that other numbers take, and cost error; force=true writes them all the same, for a runtime elsewhere"
        )

    def _skip(self, ctx: PassContext, layer: Layer, reason: str | None, error: float | None = None) -> bool:
        """Take note of why a layer stays as it is, if there is a reason."""
        if reason is not None:
            ctx.ledger.append(
                LedgerRow(layer.name, self.name, "", False, reason, error, 4 * layer.rows * layer.columns)
            )
        return reason is not None

    # -- what is known ----------------------------------------------------------------------------------------------

    def _learned(self, ctx: PassContext, layers: Sequence[Layer]) -> Statistics | None:
        """What the user's data say of the layers' inputs; None without any."""
        service = ctx.services.get("statistics")
        if service is None or not service.real:
            ctx.remark("skipped", self.name, "without calibration data (--calib) the smallest weights go, unrepaired")
            return None
        requests = [request for layer in layers if (request := gram_request(layer, ctx.facts)) is not None]
        found: Statistics = service.collect(ctx.model, list(dict.fromkeys(requests)))
        return found

    # -- order of channels ------------------------------------------------------------------------------------------

    def _ordered(
        self, ctx: PassContext, layers: Sequence[Layer], statistics: Statistics | None
    ) -> dict[onnx_ir.Node, np.ndarray]:
        """Put channels into better orders; where every input channel of a layer came from, by the layer's node."""
        by_node = {layer.node: layer for layer in layers}
        structure = structure_of(ctx.model.graph, ctx.facts)
        orders: dict[Group, np.ndarray] = {}
        found: dict[onnx_ir.Node, np.ndarray] = {}
        for group in movable(structure):
            readers = [by_node[one.node] for one in group.readers if one.node in by_node and one.index == 1]
            readers = [one for one in readers if Columns.of(one, ctx.facts).channels == len(group)]
            if not readers:
                continue
            scores = np.concatenate([self._scores(ctx, layer, statistics) for layer in readers])
            order = best_order(scores, self._pattern)
            if order is None:
                continue
            orders[group] = order
            found |= {layer.node: order for layer in readers}
            before, after = (kept(one, self._pattern) / len(readers) for one in (scores, scores[:, order]))
            told = f"{self._pattern} keeps {after:.1%} of the energy of what reads them instead of {before:.1%}"
            ctx.remark("done", group.name, f"its {len(group)} channels are in another order: {told}")
        if orders:
            reorder(ctx.rewriter, structure, orders)
            ctx.hit("sparsity-order", len(orders))
        return found

    def _scores(self, ctx: PassContext, layer: Layer, statistics: Statistics | None) -> np.ndarray:
        """What every weight adds to a layer's output, taken alone, as a share of all: (outputs * taps, channels)."""
        gram = known(layer, ctx.facts, statistics).gram if METHODS[self.method].needs_inputs else None
        energy = np.square(layer.by_output(ctx.facts).astype(np.float32))
        if gram is not None:
            energy = energy * np.diagonal(gram[0]).astype(np.float32)
        scores = Columns.of(layer, ctx.facts).channels_last(energy / max(float(energy.sum()), 1e-30))
        return scores.reshape(-1, scores.shape[-1])

    # -- doing it ---------------------------------------------------------------------------------------------------

    def _sparse(
        self, ctx: PassContext, layer: Layer, statistics: Statistics | None, order: np.ndarray | None
    ) -> _Done | None:
        """Make one layer sparse; None if it stays as it is."""
        columns, seen = Columns.of(layer, ctx.facts), known(layer, ctx.facts, statistics)
        if seen.gram is not None and order is not None:
            moved = columns.moved(order)
            seen = replace(seen, gram=seen.gram[:, moved][:, :, moved])
        informed = seen.gram is not None
        method = self.method if informed or not METHODS[self.method].needs_inputs else "magnitude"
        sparse = sparsify(layer.by_output(ctx.facts), columns, self._pattern, method, seen, self.repair)
        if sparse.error is not None and sparse.error > self.layer_error:
            reason = f"the error of its output would be {sparse.error:.2g}, more than {self.layer_error:g}"
            self._skip(ctx, layer, reason, sparse.error)
            return None
        few = too_few(layer, ctx.facts, statistics) if informed else None
        if few is not None:
            ctx.remark("skipped", layer.name, f"its error is foretold for the calibration data alone: {few}")
        label = f"{self._pattern}-{method}{'-repaired' if self.repair and informed else ''}"
        store(ctx.rewriter, layer, sparse.weight, self.name)
        ctx.hit(label)
        return _Done(layer, label, sparse)

    def _bytes(self, layer: Layer, width: int = 4) -> int:
        """Bytes that a sparse kernel reads: the numbers that are left, and where they lie."""
        left = layer.rows * layer.columns * self._pattern.density
        return int(left * (width + _INDEX_BITS / 8))

    # -- what is told -----------------------------------------------------------------------------------------------

    def _study(self, ctx: PassContext, layers: Sequence[Layer]) -> Study | None:
        """What estimates of time need; None where nothing can be estimated."""
        measure: Any = ctx.services.get("measure")
        if measure is None or measure.why_not is not None or not ctx.target.peak or self._why_not_rated(ctx):
            return None
        kernels, statistics = ctx.services.get("kernels"), ctx.services.get("statistics")
        return Study(ctx.model, ctx.facts, layers, ctx.target, measure, kernels, statistics)

    def _why_not_rated(self, ctx: PassContext) -> bool:
        return not ctx.target.has(f"sparse-{self._pattern}")

    def _estimates(self, study: Study | None, layer: Layer, one: _Done) -> tuple[float, float] | None:
        """Estimated seconds of a layer as it was and as it is, in the target's fastest floats."""
        if study is None:
            return None
        option = Option(self.name, one.label, one.sparse.error, self._bytes(layer, width=2), work=self._pattern.density)
        return estimated_seconds(study, layer, None), estimated_seconds(study, layer, option)

    def _decide(self, ctx: PassContext, layers: Sequence[Layer], done: Sequence[_Done], reordered: int) -> None:
        if not done:
            reason = f"every layer would err more than {self.layer_error:g}; the ledger has how much"
            ctx.decide(Decision(self.name, [], False, reason))
            return
        told = [f"as the pass was told: {len(done)} of {len(layers)} layers, {reordered} with inputs in another order"]
        errors = [one.sparse.error for one in done if one.sparse.error is not None]
        if errors:
            told.append(f"errors of their own outputs {min(errors):.2g} to {max(errors):.2g}")
        told.append(self._speed(ctx, done))
        saved = sum(4 * one.layer.rows * one.layer.columns - self._bytes(one.layer) for one in done)
        names = [one.layer.name for one in done]
        ctx.decide(Decision(f"{self.name} {self._pattern}", names, True, "; ".join(told), None, None, saved))

    def _speed(self, ctx: PassContext, done: Sequence[_Done]) -> str:
        """What can be said of time: nothing is run with sparse kernels here."""
        if self._why_not_rated(ctx):
            return f"written for a runtime elsewhere: the target {ctx.target.name!r} gains no time by it"
        times = [one.seconds for one in done if one.seconds is not None]
        if not times:
            return "not timed, and not estimated either"
        before, after = (sum(pair[at] for pair in times) for at in (0, 1))
        return (
            f"not timed: an estimate from the target's rates is {before / after:.2f}x for these layers, in a runtime "
            "that takes sparse weights (TensorRT)"
        )


@dataclass(frozen=True)
class _Done:
    """A layer that was made sparse.

    Attributes:
        layer: The layer.
        label: How.
        sparse: Its weight.
        seconds: Estimated, before and after; None where nothing is.
    """

    layer: Layer
    label: str
    sparse: Sparse
    seconds: tuple[float, float] | None = None
