"""INT8 with activations quantized on the fly: no calibration needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir

from optc.ir.rewriter import Rewriter
from optc.passes.calibration.store import Request
from optc.passes.compress.integer.grids import activation_grid, rounded
from optc.passes.compress.layers import Layer
from optc.passes.compress.schemes import SCHEMES, Arrays, Scheme, encode_per_column
from optc.passes.compress.smooth import ENOUGH, best_factors, move
from optc.passes.compress.techniques import Choice, Leftover, Option, Study, Trial, relative, rows_request, single_layer

#: The scheme that one outlier channel spoils for all others, and what it is called with SmoothQuant before it.
_OF_TENSOR, SMOOTH = "dynamic-int8", "dynamic-int8-smooth"


class DynamicInt8:
    """INT8 weights, per column or per block, for MatMul and Gemm; see :mod:`optc.passes.compress.schemes`.

    With the user's data, which tell of outlier channels, also with SmoothQuant (:mod:`optc.passes.compress.smooth`).
    """

    name: ClassVar[str] = "dynamic-int8"

    def __init__(self) -> None:
        self._factors: dict[str, np.ndarray | None] = {}
        self._study: Study | None = None

    def why_not(self, study: Study) -> str | None:
        if study.target.kind != "cpu":
            return "products with INT8 activations are written for CPUs only"
        return None if self.schemes(study) else "the runtime has no kernels for it"

    def requests(self, study: Study, layer: Layer) -> Iterable[Request]:
        return [rows_request(layer)] if layer.kind == "matmul" else []

    def propose(self, study: Study, layer: Layer) -> Sequence[Option] | str:
        if layer.kind != "matmul":
            return "without calibrated ranges onnxruntime has no fast integer kernel for convolutions"
        x, matrix = study.rows(layer), layer.matrix(study.facts)
        if x is None or not len(x):
            return "its input was empty in every sample"
        if not (np.isfinite(x).all() and np.isfinite(matrix).all()):
            return "not all of its weights and inputs are finite"
        options = []
        for scheme in self.schemes(study):
            arrays = scheme.encode(matrix)
            if arrays is None:
                continue
            size = sum(array.nbytes for array in arrays.values())
            trial, judge = partial(_trial, study, layer, scheme), partial(_error, study, layer, scheme)
            options.append(Option(self.name, scheme.name, None, size, "int8", trial, judge))
            if scheme.name == _OF_TENSOR and (factors := self._smoothing(study, layer)) is not None:
                trial = partial(_trial, study, layer, scheme, factors)
                judge = partial(_error, study, layer, scheme, factors)
                options.append(Option(self.name, SMOOTH, None, size, "int8", trial, judge))
        return options

    def _smoothing(self, study: Study, layer: Layer) -> np.ndarray | None:
        """Factors for all products that read what this one reads; None if none make them more precise."""
        if self._study is not study:
            self._study, self._factors = study, {}
        name = layer.x.name or ""
        if name not in self._factors:
            sharing = [one for one in study.layers if one.x is layer.x and one.kind == "matmul"]
            rows = study.rows(layer) if study.statistics.real else None
            enough = rows is not None and len(rows) >= ENOUGH
            matrices = [one.matrix(study.facts) for one in sharing] if enough else []
            self._factors[name] = _best(rows, matrices) if rows is not None and enough else None
        return self._factors[name]

    def apply(self, rewriter: Rewriter, study: Study, chosen: Sequence[Choice]) -> None:
        smooth = [choice for choice in chosen if choice.option.label == SMOOTH]
        for x in dict.fromkeys(choice.layer.x for choice in smooth):
            group = [choice for choice in smooth if choice.layer.x is x]
            factors = self._smoothing(study, study.layers[group[0].index])
            assert factors is not None, "they were found when it was proposed"
            move(rewriter, x, factors, [choice.layer for choice in group])
        for choice in chosen:
            layer, weight = choice.layer, choice.layer.weight
            scheme = SCHEMES[_OF_TENSOR if choice.option.label == SMOOTH else choice.option.label]
            arrays = scheme.encode(layer.matrix(rewriter.facts))
            assert arrays is not None, "it was encoded when it was proposed"
            with rewriter.at(layer.node, scheme.name):
                y = scheme.emit(rewriter, layer.x, arrays, weight.name or layer.name)
                rewriter.facts.assume(y, like=layer.node.outputs[0])
                if len(layer.node.inputs) > 2 and layer.node.inputs[2] is not None:
                    y = rewriter.op("Add", y, layer.node.inputs[2])
                rewriter.replace(layer.node.outputs[0], y)
            rewriter.erase(layer.node)
            rewriter.erase_initializer(weight)

    def settle(self, rewriter: Rewriter, study: Study) -> Sequence[Leftover]:
        return ()

    def schemes(self, study: Study) -> list[Scheme]:
        """The schemes that the target's runtime has kernels for."""
        return [scheme for scheme in SCHEMES.values() if study.supports("com.microsoft", scheme.op)]


def _best(rows: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray | None:
    expected = [rows @ matrix for matrix in matrices]

    def error(factors: np.ndarray) -> float:
        x = rows / factors
        x = rounded(x, activation_grid(x.min(), x.max(), onnx_ir.DataType.UINT8))
        total = 0.0
        for matrix, wanted in zip(matrices, expected, strict=True):
            codes = encode_per_column(matrix * factors[:, None])
            total += relative(x @ (codes["weight"] * codes["scale"]), wanted) ** 2
        return total

    alpha, factors, _ = best_factors(np.abs(rows).max(axis=0), matrices, error)
    return factors if alpha else None


def _model(scheme: Scheme, layer: Layer, arrays: Arrays, factors: np.ndarray | None) -> onnx_ir.Model:
    def emit(rewriter: Rewriter, x: onnx_ir.Value) -> onnx_ir.Value:
        if factors is not None:
            x = rewriter.op("Mul", x, rewriter.constant(1 / factors, "smooth"))
        return scheme.emit(rewriter, x, arrays, "weight")

    return single_layer(["rows", layer.rows], emit)


def _encoded(study: Study, layer: Layer, scheme: Scheme, factors: np.ndarray | None) -> Arrays:
    matrix = layer.matrix(study.facts)
    arrays = scheme.encode(matrix if factors is None else matrix * factors[:, None])
    assert arrays is not None, "it was encoded when it was proposed"
    return arrays


def _error(study: Study, layer: Layer, scheme: Scheme, factors: np.ndarray | None = None) -> float:
    x, arrays = study.rows(layer), _encoded(study, layer, scheme, factors)
    assert x is not None
    trial = Trial(_model(scheme, layer, arrays, factors), {"x": x})
    return relative(study.run(trial)["y"], x @ layer.matrix(study.facts))


def _trial(study: Study, layer: Layer, scheme: Scheme, factors: np.ndarray | None = None) -> Trial:
    arrays = _encoded(study, layer, scheme, factors)
    return Trial(_model(scheme, layer, arrays, factors), {"x": study.timed_rows(layer)})
