"""Narrower floats in the runtime: kept only where measured to be faster and inside the budget."""

from __future__ import annotations

from types import SimpleNamespace

import onnx_ir
import pytest

from optc.ir.metadata import PRECISION_KEY
from optc.ir.rewriter import Rewriter
from optc.ir.targets import builtin_targets
from optc.passes.base import PassContext
from optc.passes.compress.precision import InferencePrecision

TEXT = '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { y = Relu (x) }'


class Measure:
    """Says of candidates what the test wants, by the precision that they ask for."""

    max_error, data, why_not, why_not_timed = 0.03, "samples", None, None

    def __init__(self, errors: dict[str, float], ratios: dict[str, float]) -> None:
        self.errors, self.ratios = errors, ratios

    def judge(self, model: onnx_ir.Model) -> SimpleNamespace:
        error = self.errors[model.metadata_props[PRECISION_KEY]]
        return SimpleNamespace(error=error, reason=f"the error is {error}" if error > self.max_error else None)

    def compare(self, models: dict[str, onnx_ir.Model]) -> dict[str, SimpleNamespace]:
        assert PRECISION_KEY not in models["before"].metadata_props
        ratio = self.ratios[models["after"].metadata_props[PRECISION_KEY]]
        return {"after": SimpleNamespace(ratio=SimpleNamespace(median=ratio))}


def run(offered: tuple[str, ...], measure: Measure) -> PassContext:
    kernels = SimpleNamespace(float_precisions=lambda: offered)
    services = {"kernels": kernels, "measure": measure}
    ctx = PassContext(Rewriter(onnx_ir.from_onnx_text(TEXT)), builtin_targets()["cpu"], services)
    InferencePrecision().run(ctx)
    return ctx


def test_what_is_faster_inside_the_budget_is_kept() -> None:
    ctx = run(("bf16", "f16"), Measure({"bf16": 0.01}, {"bf16": 0.5}))
    assert ctx.model.metadata_props[PRECISION_KEY] == "bf16"
    assert ctx.rewriter.changes == 1
    (decision,) = ctx.decisions
    assert (decision.what, decision.kept, decision.error, decision.speedup) == ("bf16", True, 0.01, 2.0)


@pytest.mark.parametrize(
    ("errors", "ratios", "words"),
    [({"bf16": 0.04}, {}, "the error is 0.04"), ({"bf16": 0.01}, {"bf16": 0.98}, "not faster in it: 1.02x")],
)
def test_what_is_not_is_refused_with_the_reason(errors: dict, ratios: dict, words: str) -> None:
    ctx = run(("bf16",), Measure(errors, ratios))
    assert PRECISION_KEY not in ctx.model.metadata_props
    assert ctx.rewriter.changes == 0
    (decision,) = ctx.decisions
    assert not decision.kept
    assert words in decision.reason


def test_the_next_type_gets_its_turn() -> None:
    ctx = run(("bf16", "f16"), Measure({"bf16": 0.04, "f16": 0.001}, {"f16": 0.6}))
    assert ctx.model.metadata_props[PRECISION_KEY] == "f16"
    assert [decision.kept for decision in ctx.decisions] == [False, True]


def test_nothing_is_measured_or_told_where_a_runtime_offers_nothing() -> None:
    ctx = run((), Measure({}, {}))
    assert not ctx.decisions
    assert not ctx.rewriter.changes


def test_nothing_is_kept_that_cannot_be_timed() -> None:
    measure = Measure({}, {})
    measure.why_not_timed = "the target is not this machine"
    ctx = run(("bf16",), measure)
    assert [(d.kept, d.reason) for d in ctx.decisions] == [(False, "the target is not this machine")]
