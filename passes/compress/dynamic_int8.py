"""INT8 with activations quantized on the fly: no calibration needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir

from optc.ir.rewriter import Rewriter
from optc.passes.calibration.store import Request
from optc.passes.compress.layers import Layer
from optc.passes.compress.schemes import SCHEMES, Arrays, Scheme
from optc.passes.compress.techniques import Choice, Leftover, Option, Study, Trial, relative, rows_request, single_layer


class DynamicInt8:
    """INT8 weights, per column or per block, for MatMul and Gemm; see :mod:`optc.passes.compress.schemes`."""

    name: ClassVar[str] = "dynamic-int8"

    def why_not(self, study: Study) -> str | None:
        if study.target.kind != "cpu":
            return "products with INT8 activations are written for CPUs only"
        return None if self._usable(study) else "the runtime has no kernels for it"

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
        for scheme in self._usable(study):
            arrays = scheme.encode(matrix)
            if arrays is None:
                continue
            size = sum(array.nbytes for array in arrays.values())
            trial, judge = partial(_trial, study, layer, scheme), partial(_error, study, layer, scheme)
            options.append(Option(self.name, scheme.name, None, size, "int8", trial, judge))
        return options

    def apply(self, rewriter: Rewriter, study: Study, chosen: Sequence[Choice]) -> None:
        for choice in chosen:
            layer, scheme, weight = choice.layer, SCHEMES[choice.option.label], choice.layer.weight
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

    def _usable(self, study: Study) -> list[Scheme]:
        """The schemes that the target's runtime has kernels for."""
        return [scheme for scheme in SCHEMES.values() if study.supports("com.microsoft", scheme.op)]


def _model(scheme: Scheme, layer: Layer, arrays: Arrays) -> onnx_ir.Model:
    return single_layer(["rows", layer.rows], lambda rewriter, x: scheme.emit(rewriter, x, arrays, "weight"))


def _error(study: Study, layer: Layer, scheme: Scheme) -> float:
    x, matrix = study.rows(layer), layer.matrix(study.facts)
    arrays = scheme.encode(matrix)
    assert x is not None and arrays is not None
    return relative(study.run(Trial(_model(scheme, layer, arrays), {"x": x}))["y"], x @ matrix)


def _trial(study: Study, layer: Layer, scheme: Scheme) -> Trial:
    arrays = scheme.encode(layer.matrix(study.facts))
    assert arrays is not None
    return Trial(_model(scheme, layer, arrays), {"x": study.timed_rows(layer)})
