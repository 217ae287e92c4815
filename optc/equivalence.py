"""Whether a rewritten model computes what the original computes, checked by running both.

A :class:`Reference` runs the original once, at several sizes, and then judges any number of candidates. It says
"verified" only of what really ran and was compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx_ir

from optc.backends.base import Runner, ValueSpec
from optc.backends.ort import OnnxRuntimeBackend
from optc.edges import edge_feeds, judged, nudged, smallest_normal
from optc.input_roles import input_roles
from optc.inputs import Bindings, dimension_bindings, draw_inputs, fallback_bindings, input_specs
from optc.ir.errors import OptcError
from optc.ir.sizes import Size, allowed
from optc.numeric import Comparison, OutputDiff, Tolerance, coarsest_float, compare_outputs, quantizes, tolerance
from optc.passes.base import Numerics
from optc.randomness import random_outputs
from optc.samples import check_sample

State = Literal["verified", "failed", "unverified"]
#: How many bindings of :func:`~optc.inputs.fallback_bindings` are tried, and how many must have run to stop.
_TRIES, _ENOUGH = 16, 2
#: At an edge results may lie so many times farther off; an output that moves by more than its tolerance over the second
#: number where the inputs move by a last bit is not judged by the tolerance.
_EDGE_FACTOR, _CONDITION = 10.0, 16.0


@dataclass(frozen=True)
class Run:
    """One run of the original.

    Attributes:
        label: What distinguishes it, for people: the bindings or the number of the sample.
        feeds: The inputs.
        outputs: What the original made of them.
        bindings: The sizes of the symbolic dims, where they were chosen here.
        edge: What is at its edge, see :mod:`optc.edges`; empty for ordinary inputs.
    """

    label: str
    feeds: Mapping[str, np.ndarray]
    outputs: Mapping[str, Any]
    bindings: Mapping[str, int] = field(default_factory=dict)
    edge: str = ""


@dataclass(frozen=True)
class Skipped:
    """An input that the original itself cannot run."""

    label: str
    reason: str


@dataclass(frozen=True)
class Check:
    """One comparison, or why it could not be made although the original ran."""

    label: str
    comparison: Comparison | None
    error: str | None = None
    bindings: Mapping[str, int] = field(default_factory=dict)
    edge: str = ""

    @property
    def ok(self) -> bool:
        """Whether the candidate ran and every output is within its tolerance."""
        return self.comparison is not None and self.comparison.ok


@dataclass(frozen=True)
class Verdict:
    """What is known about a candidate.

    Attributes:
        state: "verified" if every check passed and something was compared; "failed" if the candidate differs, or
            fails where the original ran; "unverified" if nothing could be compared.
        checks: What ran, in order.
        skipped: Inputs that the original cannot run.
        incomparable: Outputs that depend on random numbers: only shape and type were compared.
        reason: Why it failed or could not be verified; None when verified.
    """

    state: State
    checks: tuple[Check, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    incomparable: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the candidate was verified."""
        return self.state == "verified"

    @property
    def worst(self) -> OutputDiff | None:
        """The output farthest off in any check."""
        found = [check.comparison.worst for check in self.checks if check.comparison and check.comparison.worst]
        return max(found, key=lambda diff: (not diff.ok, diff.rel_l2), default=None)

    @property
    def rel_l2(self) -> float | None:
        """The largest relative L2 error of any output in any check; None when nothing was compared."""
        return self.worst.rel_l2 if self.worst else None

    def __str__(self) -> str:
        if self.state == "verified":
            text = f"verified at {', '.join(check.label for check in self.checks)}"
            text += f"; largest relative L2 error {self.rel_l2:.2g}" + (f" ({self.worst.name})" if self.worst else "")
        else:
            text = f"{'wrong' if self.state == 'failed' else 'could not verify'}: {self.reason}"
        if self.incomparable:
            text += f"; random, so only shape and type were compared: {', '.join(self.incomparable)}"
        if self.skipped and self.checks:
            text += f"; the original itself does not run at {', '.join(skip.label for skip in self.skipped)}"
        return text


def open_plain(model: onnx_ir.Model) -> Runner:
    """Open a model so that nothing but what is written in it is computed: ONNX Runtime without its own rewrites."""
    return OnnxRuntimeBackend().runner(model, plain=True, few_runs=True)


class Reference:
    """The original's outputs at several inputs, to judge candidates by.

    Args:
        model: The original. It is run first of all and closed again, so that only one model is open at a time.
        samples: Inputs to use; None draws them from the model's signature.
        sizes: How many bindings of the symbolic dims to try when drawing.
        edges: Whether to draw values at the edge of what there is as well, at the first of the sizes.
        seed: Seed of the drawn values.
        fixed: Sizes of dims that are not to be varied, or ranges in which they are.
        open: Opens a model for running.
    """

    def __init__(
        self,
        model: onnx_ir.Model,
        *,
        samples: Sequence[Mapping[str, np.ndarray]] | None = None,
        sizes: int = 4,
        edges: bool = False,
        seed: int = 0,
        fixed: Mapping[str, Size] | None = None,
        open: Callable[[onnx_ir.Model], Runner] = open_plain,
    ) -> None:
        self._open, self._model = open, model
        self._inputs = input_specs(model)
        self._outputs = tuple(ValueSpec.of(value) for value in model.graph.outputs)
        self._random = random_outputs(model)
        self._dtype = coarsest_float(model)
        self._quantized = quantizes(model)
        self.runs: list[Run] = []
        self.skipped: list[Skipped] = []
        self.trouble: str | None = None
        try:
            runner = open(model)
        except OptcError as error:
            self.trouble = f"the original cannot be opened: {error.what}"
            return
        if samples is not None:
            for index, sample in enumerate(samples):
                self._run(runner, f"sample {index}", check_sample(sample, self._inputs, f"sample {index}"))
        else:
            self._draw(runner, model, sizes, seed, fixed or {})
        self._roles = input_roles(model) if edges else {}
        if edges and self.runs:
            first = self.runs[0]
            for name, feeds in edge_feeds(self._inputs, self._roles, first.feeds, dict(first.bindings)):
                self._run(runner, f"{first.label}, {name}", feeds, first.bindings, name)
        if not self.runs:
            reasons = "; ".join(dict.fromkeys(skip.reason for skip in self.skipped[:3]))
            self.trouble = f"the original runs at none of the inputs tried: {reasons}"

    def check(
        self,
        candidate: onnx_ir.Model | Runner,
        limits: Tolerance | Numerics = Numerics.ROUNDING,
        max_error: float | None = None,
        open: Callable[[onnx_ir.Model], Runner] | None = None,
        runs: Sequence[Run] | None = None,
    ) -> Verdict:
        """Judge a candidate.

        Args:
            candidate: A model, or a runner of one.
            limits: How far it may lie off. A class of numerics means the tolerance for that class and the coarsest
                float type that the original computes in.
            max_error: The user's error budget, for approximate and lossy classes.
            open: Opens the candidate in another way than the original was opened.
            runs: The runs to compare, up to the first that is wrong; None means all of them.
        """
        if self.trouble is not None:
            return self._verdict("unverified", reason=self.trouble)
        if isinstance(limits, Numerics):
            limits = tolerance(limits, self._dtype, quantized=self._quantized, max_error=max_error)
        try:
            runner = (open or self._open)(candidate) if isinstance(candidate, onnx_ir.Model) else candidate
        except OptcError as error:
            return self._verdict("failed", reason=f"it cannot be opened: {error}")
        problem = self._interface_problem(runner)
        if problem is not None:
            return self._verdict("failed", reason=problem)
        checks: tuple[Check, ...] = ()
        for run in self.runs if runs is None else runs:
            checks += (self._check(runner, run, limits),)
            if runs is not None and not checks[-1].ok:
                break
        bad = next((check for check in checks if not check.ok), None)
        if bad is not None:
            return self._verdict("failed", checks, f"at {bad.label}: {_reason(bad)}")
        if not any(check.comparison.compared for check in checks if check.comparison):
            reason = "no output holds a finite number that does not depend on random numbers"
            return self._verdict("unverified", checks, reason)
        return self._verdict("verified", checks)

    def _verdict(self, state: State, checks: tuple[Check, ...] = (), reason: str | None = None) -> Verdict:
        return Verdict(state, checks, tuple(self.skipped), tuple(sorted(self._random)), reason)

    def _check(self, runner: Runner, run: Run, limits: Tolerance) -> Check:
        try:
            outputs = runner.run(run.feeds)
        except OptcError as error:
            return Check(run.label, None, f"it fails where the original runs: {error}", run.bindings, run.edge)
        comparison = self._compare(run, outputs, limits)
        if run.edge and not comparison.ok:
            comparison = self._forgiven(run, comparison, limits)
        return Check(run.label, comparison, None, run.bindings, run.edge)

    def _compare(self, run: Run, outputs: Mapping[str, Any], limits: Tolerance) -> Comparison:
        if not run.edge:
            return compare_outputs(run.outputs, outputs, limits, self._random)
        outputs = {name: judged(run.outputs.get(name), output) for name, output in outputs.items()}
        return compare_outputs(run.outputs, outputs, limits.wider(_EDGE_FACTOR), self._random)

    def _forgiven(self, run: Run, comparison: Comparison, limits: Tolerance) -> Comparison:
        """The comparison at an edge without what says nothing: numbers too small to have all their digits, and outputs
        that move about as far in the original itself where the last bit of its inputs is another."""
        try:
            outputs = self._open(self._model).run(nudged(self._inputs, self._roles, run.feeds))
        except OptcError:
            return comparison
        moved = {diff.name: diff for diff in self._compare(run, outputs, limits.wider(1 / _CONDITION)).outputs}
        floor = smallest_normal(self._dtype)

        def excused(diff: OutputDiff) -> bool:
            own = moved.get(diff.name)
            return diff.max_abs <= floor or (
                own is not None and not own.ok and not diff.rel_l2 > _CONDITION * own.rel_l2 > 0
            )

        diffs = (replace(diff, problem=None) if not diff.ok and excused(diff) else diff for diff in comparison.outputs)
        return replace(comparison, outputs=tuple(diffs))

    def _interface_problem(self, runner: Runner) -> str | None:
        for what, wanted, there in (("input", self._inputs, runner.inputs), ("output", self._outputs, runner.outputs)):
            names, others = [spec.name for spec in wanted], [spec.name for spec in there]
            if names != others:
                return f"its {what}s are {', '.join(others)} instead of {', '.join(names)}"
            types = {spec.name: spec for spec in there}
            for spec in wanted:
                if spec.dtype is not None and types[spec.name].dtype not in (spec.dtype, None):
                    return f"{what} '{spec.name}' has become {types[spec.name]} instead of {spec}"
        return None

    def _draw(self, runner: Runner, model: onnx_ir.Model, sizes: int, seed: int, fixed: Mapping[str, Size]) -> None:
        roles = input_roles(model)
        tried: set[str] = set()

        def attempt(bindings: Bindings, spreading: bool = False) -> bool:
            bindings = allowed(bindings, fixed, spreading)
            label = _label(bindings)
            if label in tried:
                return False
            tried.add(label)
            try:
                feeds = draw_inputs(model, bindings, seed, roles)
            except OptcError as error:
                self.skipped.append(Skipped(label, error.what))
                return False
            return self._run(runner, label, feeds, bindings)

        varied = 0
        for bindings in dimension_bindings(model, sizes):
            ran = attempt(bindings, True)
            varied += ran and (not bindings or max(bindings.values()) > 1)
        if varied == 0:
            self._draw_larger(attempt, fallback_bindings(model))

    @staticmethod
    def _draw_larger(attempt: Callable[[Bindings], bool], candidates: Iterable[Bindings]) -> None:
        ran = 0
        for tried, bindings in enumerate(candidates):
            if ran >= _ENOUGH or tried >= _TRIES:
                return
            ran += attempt(bindings)

    def _run(
        self,
        runner: Runner,
        label: str,
        feeds: Mapping[str, np.ndarray],
        bindings: Mapping[str, int] | None = None,
        edge: str = "",
    ) -> bool:
        try:
            outputs = runner.run(feeds)
        except OptcError as error:
            self.skipped.append(Skipped(label, error.what))
            return False
        self.runs.append(Run(label, feeds, outputs, dict(bindings or {}), edge))
        return True


def _label(bindings: Bindings) -> str:
    return "{" + ", ".join(f"{name}={size}" for name, size in bindings.items()) + "}" if bindings else "fixed dims"


def _reason(check: Check) -> str:
    if check.comparison is None:
        return check.error or "it fails"
    worst = check.comparison.worst
    return f"output '{worst.name}': {worst.problem}" if worst else "it differs"
