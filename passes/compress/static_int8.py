"""Static INT8: activations on grids that are fixed beforehand, so that kernels read and write integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir

from optc.ir.rewriter import Rewriter
from optc.passes.calibration.store import Request
from optc.passes.compress.integer.absorb import absorb, take_back, unabsorbed, unsupported
from optc.passes.compress.integer.grids import bias_grid, quantize
from optc.passes.compress.integer.insert import Parameters, choose_grids, dequantized, insert, parameters_of
from optc.passes.compress.integer.knowledge import Knowledge
from optc.passes.compress.integer.placement import Placement, Result, placement_for
from optc.passes.compress.integer.plan import place
from optc.passes.compress.integer.weights import to_nearest
from optc.passes.compress.layers import Layer
from optc.passes.compress.smooth import move
from optc.passes.compress.techniques import Choice, Leftover, Option, Study, Trial, single_layer

PLAIN, SMOOTH = "static-int8", "static-int8-smooth"


class StaticInt8:
    """Convolutions and products on integers, with what lies between them, placed as the target fuses it.

    Two options for a layer: as it is, and for products with SmoothQuant where that is more precise. Ranges, rounding
    and biases are whatever makes the layer's own output most precise.
    """

    name: ClassVar[str] = "static-int8"

    def __init__(self) -> None:
        self._knowledge: Knowledge | None = None
        self._originals: Mapping[str, onnx_ir.TensorProtocol] = {}

    def why_not(self, study: Study) -> str | None:
        placement = _placement(study)
        if isinstance(placement, str):
            return placement
        if study.kernels is None:
            return "the kernels of the target's runtime are not known"
        if not study.statistics.real:
            return "it needs to know the ranges of activations, and so calibration data (--calib)"
        if placement.runs_here and not study.supports("", "QLinearConv", 10):
            return "this onnxruntime has no kernels for it"
        return None

    def requests(self, study: Study, layer: Layer) -> Iterable[Request]:
        return self._known(study).requests(layer)

    def propose(self, study: Study, layer: Layer) -> Sequence[Option] | str:
        known = self._known(study)
        reason = known.why_not(layer)
        if reason is not None:
            return reason
        labels = [PLAIN, *([SMOOTH] if layer.kind == "matmul" and known.smoothing(layer) is not None else [])]
        size = layer.rows * layer.columns + 8 * layer.columns
        return [
            Option(
                self.name,
                label,
                None,
                size,
                "int8",
                partial(_trial, known, layer, label),
                partial(_error, known, layer, label),
            )
            for label in labels
        ]

    def apply(self, rewriter: Rewriter, study: Study, chosen: Sequence[Choice]) -> None:
        known = self._known(study)
        ranges: dict[str, tuple[float, float]] = {}
        parameters: dict[onnx_ir.Node, Parameters] = {}
        for choice in chosen:
            tried = known.tried(study.layers[choice.index], choice.option.label == SMOOTH)
            parameters[choice.layer.node] = tried.parameters
        for group in _by_input([choice for choice in chosen if choice.option.label == SMOOTH]):
            smoothing = known.smoothing(study.layers[group[0].index])
            assert smoothing is not None
            x = move(rewriter, group[0].layer.x, smoothing.scale, [choice.layer for choice in group])
            ranges[x.name or ""] = smoothing.range
        plan = place(rewriter.model.graph, rewriter.facts, known.placement, [choice.layer.node for choice in chosen])
        for value in plan.values:
            if value.name not in ranges:
                ranges[value.name or ""] = known.range_of(value.name or "")
        evidence = {name: known.evidence(name, found) for name, found in ranges.items() if name in known.statistics}
        self._originals = insert(rewriter, plan, choose_grids(plan, ranges), parameters, evidence)
        if known.placement.runs_here:
            absorb(rewriter, study.target, study.kernels)

    def settle(self, rewriter: Rewriter, study: Study) -> Sequence[Leftover]:
        placement = self._known(study).placement
        if placement.runs_here:
            names = unabsorbed(study.measure.optimized(rewriter.model))
        else:
            names = unsupported(rewriter.model.graph, rewriter.facts, placement)
        return take_back(rewriter, names, self._originals) if names else ()

    def _known(self, study: Study) -> Knowledge:
        if self._knowledge is None or self._knowledge.study is not study:
            placement = _placement(study)
            assert isinstance(placement, Placement)
            self._knowledge = Knowledge(study, placement)
        return self._knowledge


def _placement(study: Study) -> Placement | str:
    return placement_for(dataclasses.replace(study.target, capabilities=study.measure.capabilities))


def _by_input(chosen: Sequence[Choice]) -> list[list[Choice]]:
    """Choices whose layers read one value, together."""
    groups: dict[onnx_ir.Value, list[Choice]] = {}
    for choice in chosen:
        groups.setdefault(choice.layer.x, []).append(choice)
    return list(groups.values())


def _error(known: Knowledge, layer: Layer, label: str) -> float:
    return known.tried(layer, label == SMOOTH).error


def _trial(known: Knowledge, layer: Layer, label: str) -> Trial:
    """The layer in the middle of others that compute with integers: those before it and behind it pay for the ends.

    Where the kernel can write floats it is timed with them, and with quantizing its input.
    """
    study, placement = known.study, known.placement
    rule, grid = placement.rules[layer.node.op_type], known.grid(*known.range_of(layer.x.name or ""))
    smoothing = known.smoothing(layer) if label == SMOOTH else None
    attributes = {name: attr.value for name, attr in layer.node.attributes.items()}
    weight = study.facts.const(layer.weight)
    assert weight is not None
    codes = to_nearest(weight, rule.axis(layer.node), placement.weight_limit)  # which ones makes no difference in time
    inner = rule.result is Result.GRID

    def emit(rewriter: Rewriter, x: onnx_ir.Value) -> onnx_ir.Value:
        scale, zero = parameters_of(rewriter, grid, "x")
        if smoothing is not None:
            x = rewriter.op("Mul", x, rewriter.constant(1 / smoothing.scale, "smooth"))
        x = rewriter.op("DequantizeLinear", x if inner else rewriter.op("QuantizeLinear", x, scale, zero), scale, zero)
        inputs = [x, dequantized(rewriter, codes.codes, codes.grid, "weight")]
        if rule.bias is not None:
            of_bias = bias_grid(grid.scale[0], codes.grid)
            bias = np.zeros(layer.columns, np.int32)
            inputs.append(dequantized(rewriter, bias, of_bias, "bias"))
        y = rewriter.op(layer.node.op_type, *inputs, **attributes)
        if not inner:
            return y
        result = known.grid(*known.range_of(known.plan.results[layer.node].name or ""))
        return rewriter.op("QuantizeLinear", y, *parameters_of(rewriter, result, "y"))

    dtype = placement.activations if inner else onnx_ir.DataType.FLOAT
    shape = study.sizes(layer) if layer.kind == "conv" else ["rows", layer.rows]
    model = single_layer(shape, emit, dtypes=(dtype, dtype), opset=study.model.graph.opset_imports.get("", 21))
    if placement.runs_here:
        absorb(Rewriter(model), study.target, study.kernels)
    if layer.kind == "matmul":
        return Trial(model, {"x": study.timed_rows(layer)})
    x = np.random.default_rng(0).standard_normal(study.sizes(layer), dtype=np.float32)
    x = quantize(x, grid) if inner else x
    return Trial(model, {"x": np.ascontiguousarray(np.moveaxis(x, 1, -1)) if _channels_last(model) else x})


def _channels_last(model: onnx_ir.Model) -> bool:
    """Let a convolution of integers read channels last, if the model is one.

    So onnxruntime lays out chains of them; alone it would be charged for two transposes that it has not in a chain.
    """
    graph, rewriter = model.graph, Rewriter(model)
    convolution = next((node for node in graph if node.op_type == "QLinearConv" and not node.domain), None)
    shape = graph.inputs[0].shape
    if convolution is None or shape is None:
        return False
    graph.inputs[0].shape = onnx_ir.Shape([shape[0], *list(shape)[2:], shape[1]])
    attributes = {name: attr.value for name, attr in convolution.attributes.items()}
    with rewriter.at(convolution, "channels-last"):
        y = rewriter.op("QLinearConv", *convolution.inputs, domain="com.microsoft", channels_last=1, **attributes)
        convolution.outputs[0].shape = None
        rewriter.replace(convolution.outputs[0], y)
    rewriter.erase(convolution)
    return True
