"""What is known of a model's layers before any of them is put on integers: ranges, weights as integers, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from optc.ir.errors import DataError
from optc.ir.ops import operand
from optc.passes.calibration.formats import IntFormat
from optc.passes.calibration.ranges import candidates, choose
from optc.passes.calibration.store import Request, Statistics
from optc.passes.clean.rules_quantized import RANGES, Grid
from optc.passes.compress.integer import grids
from optc.passes.compress.integer.insert import Parameters
from optc.passes.compress.integer.placement import Placement, Result
from optc.passes.compress.integer.plan import Plan, place, why_not
from optc.passes.compress.integer.weights import Codes, by_correlation, to_nearest
from optc.passes.compress.layers import Layer
from optc.passes.compress.smooth import ENOUGH, best_factors
from optc.passes.compress.techniques import Study, relative

#: Rows on which layers are tried.
_ROWS = 512
#: Larger Gram matrices are not gathered: rounding to nearest has to do.
_LARGEST_GRAM = 5000
#: Shares of a scaled activation's range that are tried; there is no histogram of it.
_SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)

Range = tuple[float, float]


@dataclass(frozen=True)
class Smoothing:
    """Factors by which the activations of some layers are divided.

    Attributes:
        alpha: The strength, see :mod:`optc.passes.compress.smooth`.
        scale: (K,).
        range: Of the activations, once divided.
    """

    alpha: float
    scale: np.ndarray
    range: Range


@dataclass(frozen=True)
class Tried:
    """A layer on integers.

    Attributes:
        parameters: Its weights and bias.
        error: Relative L2 error of its output.
    """

    parameters: Parameters
    error: float


class Knowledge:
    """What statistics say of a study's layers on one placement.

    Args:
        study: The study.
        placement: The target's rules.
    """

    def __init__(self, study: Study, placement: Placement) -> None:
        self.study, self.placement = study, placement
        self._ranges: dict[str, Range] = {}
        self._calibrators: dict[str, str] = {}
        self._tried: dict[tuple[str, bool], Tried] = {}
        self._smoothings: dict[str, Smoothing | None] = {}

    @property
    def format(self) -> IntFormat:
        """That of activations."""
        low, high = RANGES[self.placement.activations]
        symmetric = self.placement.symmetric
        return IntFormat(low + 1 if symmetric else low, high, low < 0, symmetric)

    @cached_property
    def plan(self) -> Plan:
        """The plan of all layers at once: no subset of them needs to know of other values."""
        nodes = [layer.node for layer in self.study.layers]
        return place(self.study.model.graph, self.study.facts, self.placement, nodes)

    @property
    def statistics(self) -> Statistics:
        """What was gathered for :meth:`requests`."""
        assert self.study.known is not None, "techniques propose after they have asked"
        return self.study.known

    def requests(self, layer: Layer) -> Iterator[Request]:
        """What must be known for a layer to be tried, and of what lies between layers."""
        if why_not(layer.node, self.placement, self.study.facts) is not None:
            return
        for value in self.plan.values:
            yield Request(value.name or "", histogram=True)
        view, name = layer.view(self.study.facts), layer.x.name or ""
        yield Request(name, view=view, gram=layer.rows <= _LARGEST_GRAM, rows=_ROWS)
        if layer.kind == "matmul":
            yield Request(name, channels=-1)

    # -- ranges -----------------------------------------------------------------------------------------------------

    def grid(self, low: float, high: float) -> Grid:
        return grids.activation_grid(low, high, self.placement.activations, self.placement.symmetric)

    def range_of(self, name: str) -> Range:
        """The range of a value, by the calibrator whose grid makes the least error.

        It is the error of the outputs of the layers that read the value where there are any, that of the value itself
        otherwise.

        Raises:
            DataError: No sample had elements of it.
        """
        if name not in self._ranges:
            found = candidates(self.statistics, name, self.format)
            readers = [one for one in self.study.layers if one.x.name == name and self._rows(one) is not None]

            def error(low: float, high: float) -> float:
                grid = self.grid(low, high)
                return max(self._error_of_input(one, grid) for one in readers)

            chosen = choose(found, error) if readers and len(set(found.values())) > 1 else None
            best = "mse" if "mse" in found else "min-max"
            self._calibrators[name] = best if chosen is None else chosen.method
            self._ranges[name] = found[best] if chosen is None else (chosen.low, chosen.high)
        return self._ranges[name]

    def evidence(self, name: str, range: Range) -> str:
        """What a range of a value came from, as JSON: the calibrator, and what was seen."""
        moments = self.statistics.moments(name)
        own = self._ranges.get(name) == range
        told = {
            "low": float(range[0]),
            "high": float(range[1]),
            "calibrator": self._calibrators[name] if own else "smooth",
            "minimum": float(moments.minimum),
            "maximum": float(moments.maximum),
            "values": int(moments.count),
        }
        return json.dumps(told, sort_keys=True)

    def _error_of_input(self, layer: Layer, grid: Grid) -> float:
        rows, matrix = self._rows(layer), layer.matrix(self.study.facts)
        assert rows is not None
        return relative(product(grids.rounded(rows, grid), matrix, layer.groups), product(rows, matrix, layer.groups))

    def _rows(self, layer: Layer) -> np.ndarray | None:
        try:
            rows = self.statistics.rows(layer.x.name or "", layer.view(self.study.facts))
        except DataError:
            return None
        return rows if len(rows) else None

    # -- layers -----------------------------------------------------------------------------------------------------

    def why_not(self, layer: Layer) -> str | None:
        """Why a layer cannot compute with integers; None if it can."""
        reason = why_not(layer.node, self.placement, self.study.facts)
        if reason is not None:
            return reason
        if self._rows(layer) is None:
            return "its input was empty or not finite in every sample"
        weight = self.study.facts.const(layer.weight)
        return None if weight is not None and np.isfinite(weight).all() else "not all of its weights are finite"

    def tried(self, layer: Layer, smooth: bool = False) -> Tried:
        """A layer on integers that :meth:`why_not` knows no reason against, with its error."""
        key = (layer.name, smooth)
        if key not in self._tried:
            self._tried[key] = self._try(layer, self.smoothing(layer) if smooth else None)
        return self._tried[key]

    def _try(self, layer: Layer, smoothing: Smoothing | None) -> Tried:
        rows, weight = self._rows(layer), self.study.facts.const(layer.weight)
        assert rows is not None and weight is not None
        rule = self.placement.rules[layer.node.op_type]
        bias = self._bias(layer, rule.bias)
        matrix = layer.matrix(self.study.facts)
        low, high = self.range_of(layer.x.name or "") if smoothing is None else smoothing.range
        inputs, scale = rows, np.ones(1, np.float32)
        if smoothing is not None:
            scale = smoothing.scale
            inputs = rows / scale
            weight = weight * (scale if layer.transposed else scale[:, None])
        x = self.grid(low, high)
        expected = product(rows, matrix, layer.groups)
        candidates = self._codes(layer, weight, rule.axis(layer.node), x, bias, scale)
        rounded = grids.rounded(inputs, x)
        outputs = [product(rounded, self._matrix(layer, codes), layer.groups) for codes in candidates]
        codes, actual = min(zip(candidates, outputs, strict=True), key=lambda pair: relative(pair[1], expected))
        corrected = bias
        if rule.bias is not None:
            shift = certain_mean(expected - actual)
            corrected = shift if bias is None else bias + shift
            actual = actual + shift
        if rule.result is Result.GRID:
            actual = self._on_result_grid(layer, actual, expected, bias)
        bias = None if corrected is None else corrected.astype(np.float32)
        return Tried(Parameters(codes, bias), relative(actual, expected))

    def _on_result_grid(
        self, layer: Layer, actual: np.ndarray, expected: np.ndarray, bias: np.ndarray | None
    ) -> np.ndarray:
        """The output as it comes back from the grid of the layer's result; where that clips, so does the output."""
        result = self.plan.results[layer.node]
        low, high = self.range_of(result.name or "")
        grid = self.grid(low, high)
        whole = 0.0 if bias is None else bias
        bounds = self.plan.bounds.get(result, (-np.inf, np.inf))
        kept = (expected + whole > bounds[0]) & (expected + whole < bounds[1])
        return np.where(kept, grids.rounded(actual + whole, grid) - whole, expected)

    def _bias(self, layer: Layer, index: int | None) -> np.ndarray | None:
        value = operand(layer.node, index) if index is not None else None
        return None if value is None else self.study.facts.const(value)

    def _codes(
        self,
        layer: Layer,
        weight: np.ndarray,
        axis: int | None,
        x: Grid,
        bias: np.ndarray | None,
        scale: np.ndarray,
    ) -> list[Codes]:
        limit, room = self.placement.weight_limit, bias if self.placement.integer_bias else None
        found = [to_nearest(weight, axis, limit, room, x.scale[0])]
        if axis is not None and self.gram_problem(layer) is None:
            gram = self.statistics.gram(layer.x.name or "", layer.view(self.study.facts))
            if scale.size > 1:
                gram = gram / np.outer(scale, scale)
            seen = self.statistics.gram_rows(layer.x.name or "", layer.view(self.study.facts))
            better = by_correlation(weight, axis, limit, gram, seen, room, x.scale[0])
            found += [better] if better is not None else []
        return found

    def gram_problem(self, layer: Layer) -> str | None:
        """Why there is no Gram matrix of a layer's input; None if there is."""
        if layer.rows > _LARGEST_GRAM or layer.node.op_type == "ConvTranspose":
            return "it is too large"
        return self.statistics.why_not(Request(layer.x.name or "", view=layer.view(self.study.facts), gram=True))

    def _matrix(self, layer: Layer, codes: Codes) -> np.ndarray:
        """The weights as (K, N), as :meth:`Layer.matrix` has them."""
        array = codes.floats()
        if layer.kind == "conv":
            array = array.reshape(layer.columns, -1).T
        return array.T if layer.transposed else array

    # -- SmoothQuant ------------------------------------------------------------------------------------------------

    def smoothing(self, layer: Layer) -> Smoothing | None:
        """The factors that make the outputs of all products of one input most precise; None if none helps."""
        name = layer.x.name or ""
        if name not in self._smoothings:
            self._smoothings[name] = self._smooth(self.sharing(layer))
        return self._smoothings[name]

    def sharing(self, layer: Layer) -> list[Layer]:
        """The products that read what this one reads."""
        return [one for one in self.study.layers if one.x is layer.x and one.kind == "matmul"]

    def _smooth(self, layers: Sequence[Layer]) -> Smoothing | None:
        if not layers or (rows := self._rows(layers[0])) is None or not np.isfinite(rows).all():
            return None
        name = layers[0].x.name or ""
        if self.statistics.moments(name).count < ENOUGH * layers[0].rows:
            return None
        channels = self.statistics.channels(name, -1)
        matrices = [layer.matrix(self.study.facts) for layer in layers]
        if not all(np.isfinite(matrix).all() for matrix in matrices):
            return None
        expected = [rows @ matrix for matrix in matrices]
        limit = self.placement.weight_limit

        def span(scale: np.ndarray, share: float) -> Range:
            return (
                share * float((channels.minimum / scale).min(initial=0)),
                share * float((channels.maximum / scale).max(initial=0)),
            )

        def error(scale: np.ndarray, share: float = 1.0) -> float:
            inputs = grids.rounded(rows / scale, self.grid(*span(scale, share)))
            outputs = [inputs @ to_nearest(matrix * scale[:, None], 1, limit).floats() for matrix in matrices]
            return float(sum(relative(one, two) ** 2 for one, two in zip(outputs, expected, strict=True)))

        alpha, scale, _ = best_factors(channels.absmax, matrices, error)
        if not alpha:
            return None
        share = min(_SHARES, key=lambda one: error(scale, one))
        return Smoothing(alpha, scale, span(scale, share))


def certain_mean(rows: np.ndarray) -> np.ndarray:
    """The mean of every column, (K,), less what chance makes of it: the positive part of James and Stein's estimate.

    What is added to a bias must hold for other rows than these; few rows say little of their mean.
    """
    mean = rows.mean(axis=0, dtype=np.float64)
    if len(rows) < 2:
        return np.zeros_like(mean)
    noise = rows.var(axis=0, ddof=1, dtype=np.float64) / len(rows)
    return mean * np.maximum(0.0, 1 - noise / np.maximum(mean**2, 1e-300))


def product(rows: np.ndarray, matrix: np.ndarray, groups: int) -> np.ndarray:
    """``rows @ matrix``, group by group.

    Args:
        rows: (n, groups * K).
        matrix: (K, N); group g makes the columns g N / groups to (g + 1) N / groups.
        groups: Of a convolution; 1 for products.
    """
    if groups == 1:
        return rows @ matrix
    split = rows.reshape(len(rows), groups, -1).transpose(1, 0, 2)
    parts = matrix.reshape(matrix.shape[0], groups, -1).transpose(1, 0, 2)
    return np.matmul(split, parts).transpose(1, 0, 2).reshape(len(rows), -1)
