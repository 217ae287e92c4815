"""Measuring models against the original on this machine: error, the user's metric, time, inner values.

Lossy passes get a :class:`Measure` as their "measure" service; nothing lossy is kept that was not measured here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx_ir

from optc.backends import timing
from optc.backends.base import HostBackend, Runner
from optc.backends.ort import OnnxRuntimeBackend, Session, optimized
from optc.backends.ort_integers import host_capabilities
from optc.callables import find_callable
from optc.holdout import Holdout, hold_out
from optc.inputs import batch_dim, draw_inputs, input_specs, usual_bindings
from optc.ir.errors import OptcError, UsageError
from optc.ir.sizes import allowed
from optc.ir.targets import Target
from optc.options import Options
from optc.passes.calibration.taps import shapes_of
from optc.report import Latency
from optc.samples import Sample, Samples, joined
from optc.sources import described, open_samples, source_of

#: Samples on which the error of a candidate is measured; the metric is measured on all that are judged on.
_ERROR_SAMPLES = 32
#: Sets of inputs drawn where no calibration data is given.
_DRAWN_SAMPLES = 3
_DRAWN_SIZES = {"batch": 2, "sequence": 32, "past": 16, "space": 224, "other": 16}
_LATENCY_SIZES = {"batch": 1, "sequence": 128, "past": 128, "space": 224, "other": 16}


@dataclass(frozen=True)
class Judgement:
    """How a candidate compares with the original.

    Attributes:
        error: Relative L2 error of the outputs, the worst output of all samples together.
        metric: The user's metric; None without one.
        reason: Why it is outside of the budget; None if it is inside.
    """

    error: float
    metric: float | None = None
    reason: str | None = None


class Measure:
    """Measures candidates against one original.

    Args:
        original: The model as it was given.
        target: What the result will run on; only what this machine can run is measured.
        options: Calibration data, metric, budget, dims and seed.
        host: Runs candidates; the original's outputs are always those of ONNX Runtime.
    """

    def __init__(
        self, original: onnx_ir.Model, target: Target, options: Options, host: HostBackend | None = None
    ) -> None:
        self.original, self.target, self.options = original, target, options
        self.host: HostBackend = OnnxRuntimeBackend() if host is None else host
        self.max_error = options.max_error
        self._metric = find_callable(options.metric, "metric") if options.metric is not None else None

    @cached_property
    def why_not(self) -> str | None:
        """Why the error of nothing can be measured here; None if it can."""
        try:
            _ = self.references
        except OptcError as error:
            return f"the original cannot be run: {error.what}"
        return None

    @property
    def why_not_timed(self) -> str | None:
        """Why nothing can be timed here; None if it can."""
        return None if self.target.kind == "cpu" else f"the target {self.target.name!r} is not this machine"

    @cached_property
    def source(self) -> str:
        """Where the inputs come from, for reports."""
        if self.options.calib is None:
            return "inputs drawn from the model's signature"
        return described(self.options.calib)

    @cached_property
    def data(self) -> str:
        """What candidates are judged on, for reports."""
        what = self.holdout.what
        return f"{self.source} ({what})" if what else self.source

    @cached_property
    def samples(self) -> Samples:
        """The calibration data, or inputs drawn from the signature without any."""
        specs = input_specs(self.original)
        if self.options.calib is not None:
            return open_samples(self.options.calib, specs, labels=self._metric is not None)
        bindings = allowed(usual_bindings(self.original, _DRAWN_SIZES), self.options.shapes)
        seeds = range(self.options.seed, self.options.seed + _DRAWN_SAMPLES)
        drawn = [draw_inputs(self.original, bindings, seed) for seed in seeds]
        return Samples(source_of(drawn, specs), specs, real=False)

    @cached_property
    def holdout(self) -> Holdout:
        """The samples in two parts: what statistics are gathered over, and what candidates are judged on."""
        batch = batch_dim(self.original)
        return hold_out(self.samples, batch is not None and batch not in self.options.shapes)

    @cached_property
    def _few(self) -> list[Sample]:
        return self.holdout.judged.first(_ERROR_SAMPLES)

    @cached_property
    def references(self) -> list[dict[str, Any]]:
        """The original's outputs for each sample, with onnxruntime's own optimizations off."""
        return self._outputs(self._session(self.original))

    @cached_property
    def _reference_metric(self) -> float:
        score = self._score(self.references)
        if not math.isfinite(score):
            raise UsageError(f"the metric of the original is {score}; nothing can be measured against that")
        return score

    def check_data(self) -> None:
        """Raise DataError now, not in the middle of the work, if the calibration data does not fit the model."""
        if self.options.calib is not None:
            _ = self.samples

    def judge(self, model: onnx_ir.Model, share: float = 1.0) -> Judgement:
        """Measure a candidate against the budget: the user's metric where there is one, the error otherwise.

        Args:
            model: The candidate.
            share: Of the budget, where more is to come that takes of it.
        """
        outputs = self._outputs(self.host.runner(model, plain=True))
        error = relative_error(self.references, outputs)
        if self._metric is not None:
            score, floor = self._score(outputs), self._floor(share)
            reason = None if score >= floor else f"the metric falls from {self._reference_metric:.6g} to {score:.6g}"
            return Judgement(error, score, reason)
        allowed_error = share * self.max_error
        if error <= allowed_error:
            return Judgement(error)
        return Judgement(error, None, f"the error is {error:.3g}, more than the {allowed_error:.3g} allowed")

    def shapes(self, model: onnx_ir.Model, values: Iterable[onnx_ir.Value]) -> dict[str, tuple[int, ...]]:
        """Shapes of values of a model's main graph by name, at the sizes that are timed."""
        names = list(dict.fromkeys(value.name or "" for value in values))
        return shapes_of(model, names, [self.latency_feeds], self._session)

    def open(self, model: onnx_ir.Model) -> Runner:
        """A model ready to run as it will run in production."""
        return self.host.runner(model)

    @cached_property
    def capabilities(self) -> frozenset[str]:
        """The target's capabilities, with those of this machine where that is the target."""
        return self.target.capabilities | (host_capabilities() if self.why_not_timed is None else frozenset())

    def optimized(self, model: onnx_ir.Model) -> onnx_ir.Model:
        """What onnxruntime makes of a model when it opens it to run; large weights are left out."""
        return optimized(model)

    def time(self, calls: Mapping[str, Callable[[], Any]], budget: float) -> dict[str, float]:
        """Seconds per call of each, taking turns; at most about ``budget`` seconds in all."""
        compared = timing.compare(calls, budget=budget, min_rounds=5)
        return {result.name: result.seconds.median for result in compared.timings}

    def compare(self, models: Mapping[str, onnx_ir.Model], budget: float = 6.0) -> timing.Comparison:
        """Time models in turns on inputs of usual size; the first is the reference of the ratios."""
        sessions = {name: self.open(model) for name, model in models.items()}
        feeds = self.latency_feeds
        return timing.compare({name: partial(session.run, feeds) for name, session in sessions.items()}, budget=budget)

    @cached_property
    def usual_sizes(self) -> dict[str, int]:
        """Sizes of the symbolic dims that are timed: batch 1 and usual sizes, or what ``--shape`` allows."""
        return allowed(usual_bindings(self.original, _LATENCY_SIZES), self.options.shapes)

    @cached_property
    def latency_feeds(self) -> Sample:
        """The inputs that are timed, of usual sizes."""
        return draw_inputs(self.original, self.usual_sizes, self.options.seed)

    @property
    def sizes(self) -> str:
        """The sizes of the inputs that are timed, for reports."""
        return ", ".join(f"{name} {list(array.shape)}" for name, array in self.latency_feeds.items())

    def latency(self, result: onnx_ir.Model) -> Latency:
        """The result's time against the original's."""
        if self.why_not_timed is not None:
            return Latency(False, reason=self.why_not_timed)
        try:
            comparison = self.compare({"original": self.original, "result": result})
        except OptcError as error:
            return Latency(False, reason=error.what)
        return Latency.of(comparison, f"{self.host.name} on this CPU, {self.sizes}")

    # -- inside -----------------------------------------------------------------------------------------------------

    def _session(self, model: onnx_ir.Model) -> Session:
        return Session(model, optimization="off", spinning=False)

    def _outputs(self, runner: Runner) -> list[dict[str, Any]]:
        samples = self.holdout.judged if self._metric is not None else self._few
        return [runner.run(sample) for sample in samples]

    def _score(self, outputs: Sequence[Mapping[str, Any]]) -> float:
        assert self._metric is not None
        merged = {name: joined([output[name] for output in outputs]) for name in outputs[0]}
        try:
            return float(self._metric(merged, self.holdout.judged.labels))
        except Exception as error:
            raise UsageError(
                f"the metric failed: {type(error).__name__}: {error}",
                hint="it is called as metric(outputs, labels), two dicts of arrays by name, and returns a number",
            ) from error

    def _floor(self, share: float) -> float:
        return self._reference_metric - share * self.options.allowed_drop(self._reference_metric)


def relative_error(references: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> float:
    """Relative L2 error ``|y - y0| / |y0|`` over all samples, of the worst output.

    Values that are not finite in the reference are left out if the other has the same there; anything else that is
    not finite makes the error infinite.
    """
    worst = 0.0
    for name in references[0]:
        difference, norm = 0.0, 0.0
        for reference, output in zip(references, outputs, strict=True):
            pairs = _paired(reference[name], output[name])
            if pairs is None:
                return float("inf")
            for expected, actual in pairs:
                added, size = squared_error(expected, actual)
                difference, norm = difference + added, norm + size
        if not np.isfinite(difference):
            return float("inf")
        if difference:
            worst = max(worst, (difference / norm) ** 0.5 if norm else float("inf"))
    return worst


def _paired(expected: Any, actual: Any) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """The arrays of two outputs, which may be tensors, sequences of them or absent; None if they do not pair."""
    ours, theirs = (value if isinstance(value, list) else [value] for value in (expected, actual))
    if len(ours) != len(theirs) or any((a is None) != (b is None) for a, b in zip(ours, theirs, strict=True)):
        return None
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(ours, theirs, strict=True) if a is not None]
    return pairs if all(a.shape == b.shape for a, b in pairs) else None


def squared_error(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """The squared L2 norms of the difference and of what is expected."""
    if expected.dtype.kind not in "fiub" and "float" not in expected.dtype.name:
        return float((expected != actual).sum()), 0.0
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    odd = ~np.isfinite(expected)
    if not np.array_equal(expected[odd], actual[odd], equal_nan=True):
        return float("inf"), 0.0
    return float(np.sum((actual[~odd] - expected[~odd]) ** 2)), float(np.sum(expected[~odd] ** 2))
