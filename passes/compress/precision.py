"""Narrower floats in the runtime, where it can compute in them by itself and the graph stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir

from optc.ir.metadata import PRECISION_KEY
from optc.passes.base import Decision, Numerics, Pass, PassContext


@dataclass(frozen=True)
class InferencePrecision(Pass):
    """Let the runtime compute floats in a narrower type, where that is faster and inside the error budget.

    Some runtimes (OpenVINO on CPUs with bfloat16 instructions) do so unasked, whatever the type of the model. Here it
    is a choice like any other lossy one: measured end to end, and written into the model's metadata if it stays.

    Attributes:
        min_gain: The share of time that the whole model must gain to be worth it.
    """

    name: ClassVar[str] = "inference-precision"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    min_gain: float = 0.03

    def run(self, ctx: PassContext) -> None:
        kernels, measure = ctx.services.get("kernels"), ctx.services.get("measure")
        offered = kernels.float_precisions() if kernels is not None else ()
        if not offered or measure is None:
            return  # most runtimes compute in the types of the graph, which is nothing to tell of
        reason = measure.why_not or measure.why_not_timed
        for precision in offered:
            decision = Decision(precision, [], False, reason) if reason else self._tried(ctx.model, measure, precision)
            ctx.decide(decision)
            if decision.kept:
                ctx.rewriter.set_metadata(PRECISION_KEY, precision)
                return

    def _tried(self, model: onnx_ir.Model, measure: Any, precision: str) -> Decision:
        """The model computed in a type: how far off, and how fast."""
        candidate = model.clone()
        candidate.metadata_props[PRECISION_KEY] = precision
        judged = measure.judge(candidate)
        if judged.reason is not None:
            return Decision(precision, [], False, judged.reason, judged.error)
        ratio = measure.compare({"before": model, "after": candidate})["after"].ratio.median
        kept = ratio <= 1 - self.min_gain
        budget = f"error {judged.error:.3g} of {measure.max_error:.3g} on {measure.data}"
        told = f"{1 / ratio:.2f}x on this CPU, {budget}" if kept else f"the model is not faster in it: {1 / ratio:.2f}x"
        return Decision(precision, [], kept, told, judged.error, 1 / ratio)
