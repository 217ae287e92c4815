"""Checking a compile's result against the original, in the words of the report."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Literal

import onnx_ir
import onnxruntime

from optc.equivalence import Check, Reference, Verdict, open_optimized
from optc.measure import Measure
from optc.numeric import Tolerance, coarsest_float, quantizes, tolerance
from optc.options import Options
from optc.passes.base import Numerics
from optc.report import CheckedBinding, Skipped, Verification

_STATUS: dict[str, Literal["passed", "failed", "skipped"]] = {
    "verified": "passed",
    "failed": "failed",
    "unverified": "skipped",
}
#: What a lossy result must hold at sizes that the budget was not measured at: run, and be of the right order.
_LOSSY_SANITY = Tolerance(rel_l2=1.0, element=float("inf"), zero=float("inf"), integer_share=1.0)


class Verifier:
    """Checks candidates against one original; the original runs once, when first needed.

    Args:
        original: The model as it was given.
        options: Dims and seed of the inputs drawn.
        measure: Judges lossy results, by the budget and the data that it has.
    """

    def __init__(self, original: onnx_ir.Model, options: Options, measure: Measure) -> None:
        self._original, self._options, self._measure = original, options, measure
        self._here = measure.target.provider in onnxruntime.get_available_providers()

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self._original, seed=self._options.seed, fixed=self._options.shapes)

    def verify(self, model: onnx_ir.Model, numerics: Numerics) -> Verification:
        """Compare a model with the original at several values of each symbolic dim.

        Args:
            model: The candidate.
            numerics: The widest class of what was done to it. What is lossy is held against the error budget (or the
                user's metric) on the data that it was measured with; elsewhere it must run and be of the right order.
        """
        if numerics < Numerics.LOSSY:
            budget = self._options.max_error
            verification = self._in_words(self._reference.check(model, numerics, budget))
            dtype, quantized = coarsest_float(self._original), quantizes(self._original)
            verification.tolerance = tolerance(numerics, dtype, quantized=quantized, max_error=budget).rel_l2
            return self._as_in_production(model, max(numerics, Numerics.ROUNDING), verification)
        verification = self._in_words(self._reference.check(model, _LOSSY_SANITY))
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
        return self._as_in_production(model, _LOSSY_SANITY, verification)

    def _as_in_production(
        self, model: onnx_ir.Model, limits: Numerics | Tolerance, verification: Verification
    ) -> Verification:
        """Check once more with onnxruntime's own optimizations on: they may be wrong about what optc wrote.

        (Up to version 1.26, for one, a FusedConv with a residual input loses its way in the blocked layout.) Where
        they change the original just as much, the result is not to blame.
        """
        if verification.status != "passed":
            return verification
        budget = self._options.max_error
        verdict = self._reference.check(model, limits, budget, open=open_optimized)
        if verdict.state != "failed":
            return verification
        if self._reference.check(self._original, limits, budget, open=open_optimized).state == "failed":
            return verification
        return replace(
            verification, status="failed", reason=f"with onnxruntime's own optimizations on, {verdict.reason}"
        )

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
        inputs="drawn from the model's signature",
        worst_output=worst.name if worst else None,
        worst_error=worst.rel_l2 if worst else None,
        passed=check.ok,
        reason=check.error or (worst.problem if worst and worst.problem else ""),
    )
