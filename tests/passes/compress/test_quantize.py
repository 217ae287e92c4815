"""The search over options: kept is what is faster and inside the budget, and refused with a reason otherwise.

Whether integers are faster is a matter of the machine, so most tests decide that themselves; the error is real.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir
import pytest

from optc.backends import ort_kernels
from optc.backends.ort import Session
from optc.ir.errors import UsageError
from optc.ir.rewriter import Rewriter
from optc.ir.targets import builtin_targets
from optc.ir.verify import Interface, verify_structure
from optc.measure import Measure
from optc.options import Options
from optc.passes.base import PassContext
from optc.passes.compress.layers import weighted_layers
from optc.passes.compress.quantize import Quantize
from optc.progress import Silent
from optc.statistics import Collector
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "w1": RANDOM.standard_normal((128, 256)).astype(np.float32) / 11,
    "w2": RANDOM.standard_normal((128, 256)).astype(np.float32) / 16,  # transposed
    "b2": RANDOM.standard_normal(128).astype(np.float32),
    "w3": RANDOM.standard_normal((128, 96)).astype(np.float32) / 11,
}
BODY = """g (float[N, 128] x) => (float[N, 96] y) {
    a = MatMul(x, w1) r = Relu(a) b = Gemm<transB = 1>(r, w2, b2) y = MatMul(b, w3)
}"""
X = RANDOM.standard_normal((32, 128)).astype(np.float32)


class Pretended(Measure):
    """Measures errors, but pretends to know how long everything takes.

    Args:
        seconds: Time of one layer by scheme.
        whole: Time of the whole quantized model over that of the original.
    """

    def __init__(self, model: onnx_ir.Model, seconds: Mapping[str, float], whole: float = 0.5, **options: Any) -> None:
        super().__init__(model, builtin_targets()["cpu"], Options.of(calib={"x": X}, **options))
        self.seconds, self.whole, self.judged = seconds, whole, 0

    def time(self, calls, budget):
        return {name: self.seconds.get(name, 1.0) for name in calls}

    def compare(self, models, budget=6.0):
        return {name: SimpleNamespace(ratio=SimpleNamespace(median=self.whole)) for name in models}

    def judge(self, model, share=1.0):
        self.judged += 1
        return super().judge(model, share)


FASTER = {"None": 1.0, "dynamic-int8": 0.4, "block-int8-128": 0.6, "block-int8-64": 0.7, "block-int8-32": 0.8}


def quantize(
    model: onnx_ir.Model, measure: Any = None, kernels: Any = ort_kernels, item: Quantize | None = None
) -> PassContext:
    collector = Collector(measure, measure.options, Silent()) if isinstance(measure, Measure) else None
    services = {"kernels": kernels, "measure": measure, "statistics": collector}
    ctx = PassContext(Rewriter(model), builtin_targets()["cpu"], services)
    (item or Quantize()).run(ctx)
    return ctx


def ops(model: onnx_ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def error(model: onnx_ir.Model, original: onnx_ir.Model) -> float:
    """On the rows that are held out."""
    y, reference = (Session(m, optimization="off").run({"x": X[3::4]})["y"] for m in (model, original))
    return float(np.linalg.norm(y - reference) / np.linalg.norm(reference))


def test_the_fastest_is_taken_where_the_budget_allows():
    original = parse(BODY, WEIGHTS)
    model = original.clone()
    ctx = quantize(model, Pretended(original, FASTER))
    assert ops(model).count("DynamicQuantizeMatMul") == 3 and "MatMul" not in ops(model) and "Gemm" not in ops(model)
    assert verify_structure(model) == [] and not Interface.of(original).differences(Interface.of(model))
    (decision,) = ctx.decisions
    assert decision.kept and decision.what == "dynamic-int8" and decision.speedup == 2.0 and len(decision.where) == 3
    assert decision.error == pytest.approx(error(model, original), rel=1e-3) and decision.error < 0.03
    assert decision.bytes_saved > 3 * 0.7 * 128 * 100
    assert not {"w1", "w2", "w3"} & set(model.graph.initializers), "the old weights are gone"


def test_a_smaller_budget_takes_a_more_precise_scheme_or_fewer_layers():
    original = parse(BODY, WEIGHTS)
    full = error(quantize(original.clone(), Pretended(original, FASTER)).model, original)
    for share in (0.9, 0.6, 0.3):
        model = original.clone()
        measure = Pretended(original, FASTER, max_error=full * share)
        ctx = quantize(model, measure)
        assert error(model, original) <= full * share
        kept = [decision for decision in ctx.decisions if decision.kept]
        assert ops(model) == ops(original) or kept
        assert all(decision.error <= full * share for decision in kept)


def test_outside_of_the_budget_nothing_is_done():
    original = parse(BODY, WEIGHTS)
    model = original.clone()
    ctx = quantize(model, Pretended(original, FASTER, max_error=1e-6))
    assert ops(model) == ops(original) and ctx.rewriter.changes == 0
    (decision,) = ctx.decisions
    assert not decision.kept and "no assignment stays inside the error budget of 1e-06" in decision.reason


def test_what_is_not_faster_is_not_done():
    original = parse(BODY, WEIGHTS)
    for seconds, whole, words in (({}, 0.5, "it takes 1.00 of the time"), (FASTER, 0.99, "not faster with it: 1.01x")):
        model = original.clone()
        ctx = quantize(model, Pretended(original, seconds, whole))
        assert ops(model) == ops(original) and ctx.rewriter.changes == 0
        (decision,) = ctx.decisions
        assert not decision.kept and words in decision.reason


def test_the_metric_takes_the_place_of_the_error():
    original = parse(BODY, WEIGHTS)
    for drop, quantized in ((1e9, True), (0, False)):
        measure = Pretended(original, FASTER)
        metric = lambda outputs, labels: -float(np.abs(outputs["y"] - labels["t"]).sum())  # noqa: E731
        reference = Session(original).run({"x": X})["y"]
        measure.options = Options.of(calib={"x": X, "t": reference}, metric=metric, max_drop=drop, max_error=1e-6)
        measure._metric = metric
        model = original.clone()
        quantize(model, measure)
        assert ("DynamicQuantizeMatMul" in ops(model)) is quantized


@pytest.mark.parametrize(
    "change, words",
    [
        ({"measure": None}, "nothing can be measured"),
        ({"kernels": SimpleNamespace(supports=lambda *a, **k: False)}, "no kernels"),
        ({"kernels": None}, "no kernels"),
        ({"measure": SimpleNamespace(why_not="the target is elsewhere")}, "the target is elsewhere"),
    ],
)
def test_why_it_cannot_be_done(change, words):
    model = parse(BODY, WEIGHTS)
    options = {"measure": Pretended(model, FASTER), **change}
    decisions = quantize(model, **options).decisions
    assert not any(decision.kept for decision in decisions) and words in decisions[0].reason


def test_only_schemes_with_kernels_are_tried():
    original = parse(BODY, WEIGHTS)
    kernels = SimpleNamespace(supports=lambda domain, op, *a, **k: op == "MatMulNBits")
    model = original.clone()
    quantize(model, Pretended(original, FASTER), kernels)
    assert set(ops(model)) == {"MatMulNBits", "Relu", "Add"}


def test_the_schemes_may_be_chosen():
    original = parse(BODY, WEIGHTS)
    model = original.clone()
    quantize(model, Pretended(original, FASTER), item=Quantize(options=("*-32",)))
    assert {node.attributes["block_size"].value for node in model.graph if node.op_type == "MatMulNBits"} == {32}


def test_models_without_weighted_layers():
    model = parse("g (float[N, 128] x) => (float[N, 128] y) { y = Relu(x) }", {})
    (decision,) = quantize(model, Pretended(model, FASTER)).decisions
    assert "no MatMul, Gemm or Conv" in decision.reason


def test_weights_that_are_not_finite_are_left_alone():
    weights = {**WEIGHTS, "w1": WEIGHTS["w1"].copy()}
    weights["w1"][3, 4] = np.inf
    model = parse(BODY, weights)
    before = ops(model)
    quantize(model, Pretended(model.clone(), FASTER))
    assert ops(model)[0] == before[0] == "MatMul"


def test_which_layers_there_are():
    body = """g (float[N, 128] x, float[128] v, float[128, 256] u) => (float[M] y) {
        a = MatMul(x, w1) b = Gemm<transB = 1>(a, w2) c = Gemm<alpha = 2.0>(x, w1) d = MatMul(v, w1) e = MatMul(x, u)
        f = Gemm<transA = 1>(w1, w1) s = MatMul(x, small) g1 = Cast<to = 10>(x) h = MatMul(g1, half)
        k = MatMul(w2, w1) y = Relu(d)
    }"""
    extra = {"small": np.ones((128, 4), np.float32), "half": np.ones((128, 256), np.float16)}
    model = parse(body, {"w1": WEIGHTS["w1"], "w2": WEIGHTS["w2"], **extra})
    layers = list(weighted_layers(model.graph, Rewriter(model).facts))
    assert [layer.node.outputs[0].name for layer in layers] == ["a", "b"]
    assert [(layer.rows, layer.columns, layer.transposed) for layer in layers] == [(128, 256, False), (256, 128, True)]
    facts = Rewriter(model).facts
    np.testing.assert_array_equal(layers[1].matrix(facts), WEIGHTS["w2"].T)


def test_really_measured():
    """The whole of it, on this machine: whatever it decides, the result is inside the budget and says why."""
    original = parse(BODY, WEIGHTS)
    model = original.clone()
    measure = Measure(original, builtin_targets()["cpu"], Options.of(calib={"x": X}))
    ctx = quantize(model, measure)
    assert len(ctx.decisions) >= 1 and all(decision.reason for decision in ctx.decisions)
    assert error(model, original) <= 0.03
    assert (ops(model) == ops(original)) == (not any(decision.kept for decision in ctx.decisions))


@pytest.mark.parametrize(
    "item, words",
    [
        (Quantize(techniques=("static-int8",)), "cannot be used here"),
        (Quantize(options=("int3-*",)), "no option fits 'int3-\\*'"),
    ],
)
def test_what_was_asked_for_and_changes_nothing_is_an_error(item, words):
    model = parse(BODY, WEIGHTS)
    with pytest.raises(UsageError, match=words):
        quantize(
            model, Pretended(model.clone(), FASTER), SimpleNamespace(supports=lambda d, op, *a, **k: d != ""), item
        )


def test_layers_that_gain_nothing_alone_are_tried_in_company():
    """What is slower alone may be faster between others; the whole model's time decides."""
    original = parse(BODY, WEIGHTS)

    class Company(Pretended):
        def time(self, calls, budget):
            seconds = super().time(calls, budget)
            self.timed = getattr(self, "timed", 0) + 1
            return dict.fromkeys(seconds, 1.0) if self.timed == 1 else seconds  # the first shape gains nothing

        def compare(self, models, budget=6.0):
            def seconds(model):
                return 1.0 - 0.2 * ops(model).count("DynamicQuantizeMatMul")

            before = seconds(models["before"])
            ratios = {name: seconds(model) / before for name, model in models.items()}
            return {name: SimpleNamespace(ratio=SimpleNamespace(median=ratio)) for name, ratio in ratios.items()}

    model = original.clone()
    ctx = quantize(model, Company(original, FASTER), item=Quantize(techniques=("dynamic-int8",)))
    assert ops(model).count("DynamicQuantizeMatMul") == 3
    assert [attempt.speedup for attempt in ctx.attempts if attempt.kept] == [pytest.approx(1 / 0.4)]
