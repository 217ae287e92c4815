"""Low rank as a technique: for each layer a few ranks at which it saves work and is precise enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir

from optc.ir.rewriter import Rewriter
from optc.passes.calibration.store import Request, Statistics
from optc.passes.compress.dynamic_int8 import DynamicInt8
from optc.passes.compress.layers import Layer
from optc.passes.compress.lowrank.cuts import Cut, Form
from optc.passes.compress.lowrank.forms import forms_of
from optc.passes.compress.lowrank.inputs import gram_request, too_few
from optc.passes.compress.lowrank.writing import emit, write
from optc.passes.compress.schemes import Scheme
from optc.passes.compress.techniques import (
    Choice,
    Leftover,
    Option,
    Study,
    Trial,
    relative,
    rows_request,
    single_layer,
)

#: Shares of a layer's multiplications that are proposed: below the first an error is hardly ever small enough, above
#: the last one large product is faster than two small ones.
SHARES = (0.3, 0.5, 0.7)
#: Of two ranks that lose less than this, the smaller one will do.
_NEGLIGIBLE = 2e-3
#: Errors of a layer's output above this, or above so many times the model's budget, are not proposed: it would eat all
#: of the budget, and what it does to layers behind it cannot be foretold.
_LARGEST_ERROR, _TIMES_BUDGET = 0.3, 5
#: Stands between what is done to a layer and what is done to its factors.
_AND = "+"


@dataclass(frozen=True)
class _Proposed:
    """A cut of a layer, and in which integers its factors are stored; None for floats."""

    cut: Cut
    scheme: Scheme | None = None

    @property
    def label(self) -> str:
        return self.cut.label if self.scheme is None else f"{self.cut.label}{_AND}{self.scheme.name}"


class LowRank:
    """Products as two smaller ones, convolutions as chains; factors of products in floats or in dynamic INT8.

    With the user's data, ranks are chosen by what the layers' inputs look like. Without any, the weights have to speak
    for themselves, and labels say so ("plain-low-rank-r64").
    """

    name: ClassVar[str] = "low-rank"

    def __init__(self) -> None:
        self._integers = DynamicInt8()
        self._study: Study | None = None
        self._statistics: Statistics | None = None
        self._proposed: dict[str, dict[str, _Proposed]] = {}

    def why_not(self, study: Study) -> str | None:
        # Ranks chosen by the samples that judge them are always enough.
        return study.measure.holdout.why_not if study.statistics.real else None

    def requests(self, study: Study, layer: Layer) -> Iterable[Request]:
        if not study.statistics.real:
            return ()
        request = gram_request(layer, study.facts)
        rows = [rows_request(layer)] if layer.kind == "matmul" else []
        return [*rows, *([request] if request is not None else [])]

    def propose(self, study: Study, layer: Layer) -> Sequence[Option] | str:
        found = self._found(study, layer)
        if isinstance(found, str):
            return found
        return [self._option(study, layer, one) for one in found.values()]

    def apply(self, rewriter: Rewriter, study: Study, chosen: Sequence[Choice]) -> None:
        for choice in chosen:
            found = self._found(study, study.layers[choice.index])
            assert not isinstance(found, str), "it was found when it was proposed"
            one = found[choice.option.label]
            factors = write(rewriter, choice.layer, one.cut.stages(), one.cut.label)
            if one.scheme is not None:
                self._on_integers(rewriter, study, choice.index, factors, one.scheme)

    def settle(self, rewriter: Rewriter, study: Study) -> Sequence[Leftover]:
        return ()

    # -- what there is ----------------------------------------------------------------------------------------------

    def _found(self, study: Study, layer: Layer) -> dict[str, _Proposed] | str:
        """What a layer could become by label, or why there is nothing; found out once."""
        if self._study is not study or self._statistics is not study.known:
            self._study, self._statistics, self._proposed = study, study.known, {}
        if layer.name in self._proposed:
            return self._proposed[layer.name]
        known = study.known if study.statistics.real else None
        forms = forms_of(layer, study.facts, known)
        few = None if isinstance(forms, str) else too_few(layer, study.facts, known)
        if isinstance(forms, str) or few is not None:
            return few or forms
        limit = min(_LARGEST_ERROR, _TIMES_BUDGET * study.measure.max_error)
        cuts, reasons = [], []
        for form in forms:
            some = _cuts(form, max(1, study.target.granule // layer.groups), limit)
            if isinstance(some, str):
                reasons.append(some)
            else:
                cuts += some
        if not cuts:
            return reasons[0]
        schemes = self._schemes(study, layer)
        proposed = [_Proposed(cut) for cut in cuts]
        proposed += [_Proposed(cut, scheme) for cut in cuts if (scheme := _scheme_for(schemes, layer, cut)) is not None]
        self._proposed[layer.name] = {one.label: one for one in proposed}
        return self._proposed[layer.name]

    def _schemes(self, study: Study, layer: Layer) -> Sequence[Scheme]:
        rows = study.rows(layer) if layer.kind == "matmul" else None
        usable = rows is not None and len(rows) > 0 and self._integers.why_not(study) is None
        return self._integers.schemes(study) if usable else ()

    def _option(self, study: Study, layer: Layer, one: _Proposed) -> Option:
        cut, scheme = one.cut, one.scheme
        trial = partial(self._trial, study, layer, one)
        if scheme is None:
            exact = cut.expected if cut.judge is None else None
            return Option(self.name, one.label, exact, 4 * cut.weights, "fp32", trial, cut.judge, cut.work, cut.inner)
        judge = partial(self._judged, study, layer, one)
        return Option(self.name, one.label, None, cut.weights, "int8", trial, judge, cut.work, cut.inner)

    def _on_integers(
        self, rewriter: Rewriter, study: Study, index: int, factors: Sequence[Layer], scheme: Scheme
    ) -> None:
        option = Option(DynamicInt8.name, scheme.name, None, 0)
        self._integers.apply(rewriter, study, [Choice(index, factor, option) for factor in factors])

    # -- trying it --------------------------------------------------------------------------------------------------

    def _model(self, study: Study, layer: Layer, one: _Proposed) -> onnx_ir.Model:
        factors: list[Layer] = []

        def body(rewriter: Rewriter, x: onnx_ir.Value) -> onnx_ir.Value:
            y, layers = emit(rewriter, layer, x, one.cut.stages(), "weight", bare=True)
            factors.extend(layers)
            return y

        shape = study.sizes(layer) if layer.kind == "conv" else ["rows", layer.rows]
        model = single_layer(shape, body, opset=study.model.graph.opset_imports.get("", 21))
        if one.scheme is not None:
            self._on_integers(Rewriter(model), study, 0, factors, one.scheme)
        return model

    def _trial(self, study: Study, layer: Layer, one: _Proposed) -> Trial:
        model = self._model(study, layer, one)
        if layer.kind == "matmul":
            return Trial(model, {"x": study.timed_rows(layer)})
        x = np.random.default_rng(0).standard_normal(study.sizes(layer), dtype=np.float32)
        return Trial(model, {"x": x})

    def _judged(self, study: Study, layer: Layer, one: _Proposed) -> float:
        """The error with factors in integers, on rows of the layer's input."""
        x = study.rows(layer)
        assert x is not None
        actual = study.run(Trial(self._model(study, layer, one), {"x": x}))["y"]
        return relative(actual, x @ layer.matrix(study.facts))


def _cuts(form: Form, step: int, limit: float) -> list[Cut] | str:
    """A few ranks to propose whose error is at most ``limit``, or why none is worth it."""
    ladder = [ranks for ranks in form.ladder(step) if form.work(*ranks) <= SHARES[-1]]
    if not ladder:
        return f"its {' and '.join(map(str, form.limits))} components are too few: no multiple of {step} saves work"
    if form.hopeless(ladder[-1][0], limit):
        share = form.work(*ladder[-1])
        return f"its error would be above {limit:.2g} with {share:.0%} of its multiplications"
    tried = {
        share: max((r for r in ladder if form.work(*r) <= share), key=lambda r: form.work(*r), default=None)
        for share in SHARES
    }
    found: dict[tuple[int, ...], Cut] = {ranks: form.cut(*ranks) for ranks in tried.values() if ranks is not None}
    # What really is of low rank may do with far less than any share.
    enough = next((cut for cut in map(lambda r: form.cut(*r), ladder) if cut.expected <= _NEGLIGIBLE), None)
    if enough is not None:
        found = {ranks: cut for ranks, cut in found.items() if cut.work < enough.work} | {enough.ranks: enough}
    precise = [cut for cut in found.values() if cut.expected <= limit]
    form.forget(max((cut.ranks[0] for cut in precise), default=0))
    if not precise:
        best = min(found.values(), key=lambda cut: cut.expected)
        return (
            f"no rank that saves work is precise enough: with {best.work:.0%} of its multiplications its error is "
            f"{best.expected:.2g}"
        )
    return precise


def _scheme_for(schemes: Sequence[Scheme], layer: Layer, cut: Cut) -> Scheme | None:
    """The first, and so fastest, scheme that fits all factors of a cut."""
    sizes = (layer.rows, *cut.ranks)
    fits = lambda scheme: all(scheme.encode(np.zeros((rows, 1), np.float32)) is not None for rows in sizes)  # noqa: E731
    return next(filter(fits, schemes), None)
