"""Weight-only INT4 and INT8 as a technique: for each layer some grids, by the best method that the data allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.opset import obstacle, raise_opset
from optc.ir.rewriter import Rewriter
from optc.passes.calibration.store import Request, Statistics
from optc.passes.compress.layers import Layer
from optc.passes.compress.techniques import Choice, Leftover, Option, Study, Trial, single_layer
from optc.passes.compress.weights.codes import Codes, Grid, relative_error
from optc.passes.compress.weights.forms import Form, usable_forms
from optc.passes.compress.weights.inputs import Inputs, KnownInputs, gram_request
from optc.passes.compress.weights.methods import quantize
from optc.passes.compress.weights.writing import form_for, product, write

#: The grids that are proposed: wider blocks are faster and coarser.
GRIDS: Mapping[str, Grid] = {
    "int4-{}-g32": Grid(4, 32),
    "int4-{}-g128": Grid(4, 128),
    "int8-{}-g128": Grid(8, 128),
}
#: With calibration data, and without.
INFORMED, BLIND = "gptq", "mse"
#: Gram matrices of more channels than this are not gathered: GPTQ's time grows with the cube.
_LARGEST = 8192
#: Relative error that activations get when they are rounded to 8 bits in blocks (uniform noise of 1/127 of a block's
#: largest, which is about 3 times its root mean square).
_ACTIVATIONS = 3 / 127 / np.sqrt(12)


class WeightOnly:
    """Weights in 4 or 8 bits, in the first form that the runtime has kernels for.

    Args:
        backend: Whose forms are used; None for those of the study's target.
    """

    name: ClassVar[str] = "weight-only"

    def __init__(self, backend: str | None = None) -> None:
        self._backend = backend
        self._study: Study | None = None
        self._statistics: Statistics | None = None
        self._known = KnownInputs(None)
        self._codes: dict[tuple[str, str], Codes] = {}
        self._obstacles: dict[int, str | None] = {}

    def why_not(self, study: Study) -> str | None:
        if study.kernels is None:
            return "the kernels of the target's runtime are not known"
        if any(form.product for form in self._forms(study)):
            return None
        return "the target's runtime has no products with weights of 4 or 8 bits in blocks"

    def requests(self, study: Study, layer: Layer) -> Iterable[Request]:
        if not study.measure.samples.real or layer.rows > _LARGEST:
            return ()
        if all(isinstance(self._form(study, layer, grid), str) for grid in self._labels(study).values()):
            return ()
        request = gram_request(layer)
        return () if request is None else (request,)

    def propose(self, study: Study, layer: Layer) -> Sequence[Option] | str:
        self._learn(study)
        if not np.isfinite(layer.by_output(study.facts)).all():
            return "not all of its weights are finite"
        if layer.kind != "matmul" and study.measure.why_not_timed is not None:
            return "it would become a product between two transposes, the cost of which no estimate covers"
        options, reason = [], ""
        for label, grid in self._labels(study).items():
            form = self._form(study, layer, grid)
            if isinstance(form, str):
                reason = form
            else:
                options.append(self._option(study, layer, label, form))
        return options or reason

    def apply(self, rewriter: Rewriter, study: Study, chosen: Sequence[Choice]) -> None:
        self._learn(study)
        for choice in chosen:
            layer, label, known = choice.layer, choice.option.label, study.layers[choice.index]
            form = self._form(study, known, self._labels(study)[label])
            assert not isinstance(form, str), "it was found when the option was proposed"
            if form.opset > rewriter.opset():
                raise_opset(rewriter, form.opset)
            # What others folded into the weight since then is in its new name.
            same = layer.weight.name == known.weight.name
            codes = self._quantized(study, known, label) if same else self._encode(study, layer, label, rewriter.facts)
            write(rewriter, layer, codes, form, label)

    def settle(self, rewriter: Rewriter, study: Study) -> Sequence[Leftover]:
        return ()

    def _learn(self, study: Study) -> None:
        """Forget what was made for another study, or before its statistics were there."""
        if self._study is not study or self._statistics is not study.known:
            self._study, self._statistics = study, study.known
            informed = study.known is not None and study.known.real
            self._known, self._codes = KnownInputs(study.known if informed else None), {}
            self._obstacles = {}

    def _forms(self, study: Study) -> list[Form]:
        return usable_forms(self._backend or study.target.backend, study.supports)

    def _form(self, study: Study, layer: Layer, grid: Grid) -> Form | str:
        form = form_for(layer, grid, self._forms(study), study.facts)
        if isinstance(form, str) or form.opset <= study.facts.opset():
            return form
        if form.opset not in self._obstacles:
            self._obstacles[form.opset] = obstacle(study.model, study.facts, form.opset)
        reason = self._obstacles[form.opset]
        return form if reason is None else f"{form.name} needs opset {form.opset}: {reason}"

    def _labels(self, study: Study) -> dict[str, Grid]:
        informed = study.known is not None and study.known.real
        positive = all(form.positive for form in self._forms(study))
        return {
            label.format(INFORMED if informed else BLIND): replace(grid, positive=positive)
            for label, grid in GRIDS.items()
        }

    def _option(self, study: Study, layer: Layer, label: str, form: Form) -> Option:
        grid = self._labels(study)[label]
        precision = "int8" if form.rounds_activations else "fp32"
        width = grid.width(layer.rows)
        size = layer.columns * -(-layer.rows // width) * (width * grid.bits // 8 + 4)
        trial, judge = partial(self._trial, study, layer, label, form), partial(self._error, study, layer, label, form)
        return Option(self.name, label, None, size, precision, trial, judge)

    def _error(self, study: Study, layer: Layer, label: str, form: Form) -> float:
        codes, inputs = self._quantized(study, layer, label), self._inputs(layer)
        gram = inputs.single if inputs is not None else None
        error = relative_error(layer.by_output(study.facts).astype(np.float32), codes, gram)
        return float(np.hypot(error, _ACTIVATIONS)) if form.rounds_activations else error

    def _trial(self, study: Study, layer: Layer, label: str, form: Form) -> Trial:
        # As fast as any other codes of this grid, and at once there.
        codes = quantize(layer.by_output(study.facts), "rtn", self._labels(study)[label])

        def emit(rewriter: Rewriter, x: onnx_ir.Value) -> onnx_ir.Value:
            return product(rewriter, x, codes, form, "weight", pixels=layer.kind == "conv")

        opset = max(form.opset, study.model.graph.opset_imports.get("", 21))
        if layer.kind == "matmul":
            return Trial(single_layer(["rows", layer.rows], emit, opset=opset), {"x": study.timed_rows(layer)})
        shape = study.sizes(layer)
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        return Trial(single_layer(shape, emit, opset=opset), {"x": x})

    def _inputs(self, layer: Layer) -> Inputs | None:
        inputs = self._known.of(layer)
        return inputs if isinstance(inputs, Inputs) else None

    def _quantized(self, study: Study, layer: Layer, label: str) -> Codes:
        """The codes of a layer of the study; made once."""
        key = (layer.name, label)
        if key not in self._codes:
            self._codes[key] = self._encode(study, layer, label, study.facts)
        return self._codes[key]

    def _encode(self, study: Study, layer: Layer, label: str, facts: Facts) -> Codes:
        inputs, grid = self._inputs(layer), self._labels(study)[label]
        return quantize(layer.by_output(facts), INFORMED if inputs is not None else BLIND, grid, inputs)
