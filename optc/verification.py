"""Checking a compile's result against the original, in the words of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from math import inf
from typing import Literal

import onnx_ir

from optc.equivalence import Check, Reference, Run, Verdict
from optc.measure import Measure
from optc.numeric import Tolerance, coarsest_float, quantizes, tolerance
from optc.options import Options
from optc.passes.base import Numerics
from optc.report import CheckedBinding, ModelSummary, Skipped, Verification

_STATUS: dict[str, Literal["passed", "failed", "skipped"]] = {
    "verified": "passed",
    "failed": "failed",
    "unverified": "skipped",
}
#: The backend whose numbers are the measure of all others.
_REFEREE = "onnxruntime"
#: What a lossy result must hold at sizes that the budget was not measured at: run, and be of the right order. Drawn
#: inputs may lie far outside of what was calibrated, where integers saturate.
_LOSSY_SANITY = {
    calibrated: Tolerance(rel_l2=10.0 if calibrated else 1.0, element=inf, zero=inf, integer_share=1.0)
    for calibrated in (False, True)
}


#: After a pass, a check looks at this many sizes, one where the weights have more bytes than this.
_SIZES_BETWEEN, _LARGE_WEIGHTS = 2, 512 << 20


class Verifier:
    """Checks candidates against one original; the original runs once, when first needed.

    A result is opened as in production, with the runtime's own optimizations on. Only where that is wrong it is opened
    as it is written, to learn who is to blame. After a pass it is opened as it is written, which is faster.

    Args:
        original: The model as it was given.
        options: Dims and seed of the inputs drawn.
        measure: Judges lossy results, by the budget and the data that it has.
        plain: Open results as they are written: what runs them here is only a stand-in for a backend that compiles, so
            what its optimizations make of them says nothing.
    """

    def __init__(self, original: onnx_ir.Model, options: Options, measure: Measure, plain: bool = False) -> None:
        self._original, self._options, self._measure = original, options, measure
        self._here = measure.host.here(measure.target)
        self._open = partial(measure.host.runner, few_runs=True, plain=plain)
        self._suspects: list[Run] = []
        self._in_production = False

    @cached_property
    def _reference(self) -> Reference:
        options = self._options
        edges = options.verify == "each"
        return Reference(self._original, edges=edges, seed=options.seed, fixed=options.shapes)

    @cached_property
    def _large(self) -> bool:
        return ModelSummary.of(self._original).weight_bytes > _LARGE_WEIGHTS

    @cached_property
    def _between(self) -> list[Run]:
        """The runs after each pass."""
        return [run for run in self._reference.runs if not run.edge][: 1 if self._large else _SIZES_BETWEEN]

    @property
    def rule(self) -> str:
        """What is run when, for the report."""
        if self._options.verify != "each" or self._reference.trouble is not None:
            return ""
        edges = [run.edge for run in self._reference.runs if run.edge]
        text = f"after each pass at {' and '.join(run.label for run in self._between)}; in the end at all sizes"
        return text + (f", and with {'; '.join(edges)}" if edges else "")

    def problem(self, model: onnx_ir.Model, numerics: Numerics) -> str | None:
        """What is wrong with a model after a pass: a look at two sizes, or where the last result was wrong."""
        if numerics >= Numerics.LOSSY:
            verification = self.verify(model, numerics)
            return verification.reason if verification.status == "failed" else None
        runs = self._suspects or self._between
        if self._in_production:
            verdict = self._judge(model, numerics, runs)
        else:
            verdict = self._reference.check(model, numerics, self._options.max_error, runs=runs)
        return self._in_words(verdict).reason if self._in_words(verdict).status == "failed" else None

    def verify(self, model: onnx_ir.Model, numerics: Numerics) -> Verification:
        """Compare a model with the original at several values of each symbolic dim.

        Args:
            model: The candidate.
            numerics: The widest class of what was done to it. What is lossy is held against the error budget (or the
                user's metric) on the data that it was measured with; elsewhere it must run and be of the right order.
        """
        if numerics < Numerics.LOSSY:
            verification = self._in_words(self._judge(model, numerics))
            dtype, quantized = coarsest_float(self._original), quantizes(self._original)
            budget = self._options.max_error
            verification.tolerance = tolerance(numerics, dtype, quantized=quantized, max_error=budget).rel_l2
            verification.rule = self.rule
            return verification
        verification = self._in_words(self._judge(model, _LOSSY_SANITY[self._options.calib is not None]))
        verification.rule = self.rule
        if verification.status == "failed":
            return verification
        judgement = self._measure.judge(model)
        verification.checked.insert(
            0,
            CheckedBinding(
                dims={},
                inputs=self._measure.data,
                worst_error=judgement.error,
                passed=judgement.reason is None,
                reason=judgement.reason or "",
            ),
        )
        verification.worst_error, verification.tolerance = judgement.error, self._options.max_error
        if judgement.reason is not None:
            return replace(verification, status="failed", reason=judgement.reason)
        return verification

    def _judge(self, model: onnx_ir.Model, limits: Numerics | Tolerance, runs: Sequence[Run] | None = None) -> Verdict:
        """Check as in production; what is wrong there is checked as it is written.

        If that is right, the runtime's optimizations are wrong about what optc wrote. (Up to version 1.26 of ONNX
        Runtime, for one, a FusedConv with a residual input loses its way in the blocked layout.) Where ONNX Runtime's
        change the original just as much, the result is not to blame; another runtime is then no place for the model.
        """
        reference, budget = self._reference, self._options.max_error
        production = reference.check(model, limits, budget, open=self._open, runs=runs)
        if production.state != "failed":
            return production
        verdict = reference.check(model, limits, budget, runs=runs)
        if verdict.state != "failed":
            wide = max(limits, Numerics.ROUNDING) if isinstance(limits, Numerics) else limits
            if wide != limits:
                production = reference.check(model, wide, budget, open=self._open, runs=runs)
            if production.state != "failed":
                return verdict
            host, reason = self._measure.host.name, production.reason
            if reference.check(self._original, wide, budget, open=self._open, runs=runs).state != "failed":
                reason = f"with {host}'s own optimizations on, {reason}"
            elif host == _REFEREE:
                return verdict
            else:
                reason = f"{host} gets other numbers of the original too, so it is no place for this model: {reason}"
            verdict, self._in_production = replace(production, reason=reason), True
        wrong = {check.label for check in verdict.checks if not check.ok}
        self._suspects = [run for run in reference.runs if run.label in wrong]
        return verdict

    def _in_words(self, verdict: Verdict) -> Verification:
        status, reason = _STATUS[verdict.state], verdict.reason or ""
        if verdict.state == "failed" and not verdict.checks and not self._here:
            # What only the target's provider has a kernel for cannot be opened here; that says nothing against it.
            status, reason = "skipped", f"it needs {self._measure.target.provider}, which is not here: {reason}"
        return Verification(
            status=status,
            worst_error=verdict.rel_l2,
            checked=[_binding(check) for check in verdict.checks],
            skipped=[
                Skipped(skip.label, f"the original does not run there: {skip.reason}") for skip in verdict.skipped
            ],
            reason=reason,
        )


def _binding(check: Check) -> CheckedBinding:
    worst = check.comparison.worst if check.comparison is not None else None
    return CheckedBinding(
        dims=dict(check.bindings),
        inputs=f"drawn from the model's signature{': ' if check.edge else ''}{check.edge}",
        worst_output=worst.name if worst else None,
        worst_error=worst.rel_l2 if worst else None,
        passed=check.ok,
        reason=check.error or (worst.problem if worst and worst.problem else ""),
    )
