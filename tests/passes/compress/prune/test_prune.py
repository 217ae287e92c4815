"""The pass: as it is told, inside the budget, and never without saying why not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir
import pytest

from optc.backends.ort import Session
from optc.ir.errors import UsageError
from optc.ir.rewriter import Rewriter
from optc.ir.targets import builtin_targets
from optc.ir.verify import Interface, verify_structure
from optc.measure import Measure
from optc.options import Options
from optc.passes.base import PassContext
from optc.passes.compress.prune.prune import Prune
from optc.progress import Silent
from optc.statistics import Collector
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(0)
#: The inner layer writes 64 numbers of which a mixture of 16 is all there is: most of them follow from the others.
MIXED = (RANDOM.standard_normal((16, 16)) @ RANDOM.standard_normal((16, 64)) / 16).astype(np.float32)
WEIGHTS = {
    "w1": MIXED,
    "b1": RANDOM.standard_normal(64).astype(np.float32),
    "w2": (RANDOM.standard_normal((64, 32)) / 8).astype(np.float32),
    "b2": np.zeros(32, np.float32),
    "w3": (RANDOM.standard_normal((32, 8)) / 6).astype(np.float32),
}
BODY = """g (float[N, 16] x) => (float[N, 8] y) {
    a = MatMul(x, w1) b = Add(a, b1) c = Gemm(b, w2, b2) r = Relu(c) y = MatMul(r, w3)
}"""
X = RANDOM.standard_normal((1024, 16)).astype(np.float32)


class Pretended(Measure):
    """Measures errors, but pretends that what is smaller is faster in proportion."""

    def __init__(self, model: onnx_ir.Model, whole: float = 0.5, calib: Any = None, **options: Any) -> None:
        super().__init__(model, builtin_targets()["cpu"], Options.of(calib=calib, **options))
        self.whole, self.judged = whole, 0

    def time(self, calls, budget):
        return {name: float(sum(call.args[0]["x"].shape)) for name, call in calls.items()}

    def compare(self, models, budget=6.0):
        return {name: SimpleNamespace(ratio=SimpleNamespace(median=self.whole)) for name in models}

    def judge(self, model, share=1.0):
        self.judged += 1
        return super().judge(model, share)


def prune(model: onnx_ir.Model, item: Prune, whole: float = 0.5, data: bool = True, **options: Any) -> PassContext:
    measure = Pretended(model.clone(), whole, {"x": X} if data else None, **options)
    services = {"measure": measure, "statistics": Collector(measure, measure.options, Silent())}
    ctx = PassContext(Rewriter(model), builtin_targets()["cpu"], services)
    item.run(ctx)
    return ctx


def sizes(model: onnx_ir.Model) -> list[tuple[int, ...]]:
    return [
        tuple(node.inputs[1].const_value.shape.numpy()) for node in model.graph if node.op_type in ("MatMul", "Gemm")
    ]


def error(model: onnx_ir.Model, original: onnx_ir.Model) -> float:
    y, reference = (Session(m, optimization="off").run({"x": X})["y"] for m in (model, original))
    return float(np.linalg.norm(y - reference) / np.linalg.norm(reference))


def test_as_it_is_told():
    model = parse(BODY, WEIGHTS)
    original = model.clone()
    ctx = prune(model, Prune(ratio=0.5))
    assert sizes(model) == [(16, 32), (32, 16), (16, 8)]
    assert verify_structure(model) == [] and not Interface.of(original).differences(Interface.of(model))
    (decision,) = ctx.decisions
    assert decision.kept and len(decision.where) == 2 and decision.speedup == 2.0
    assert decision.bytes_saved == 4 * (3424 - 1200)
    assert "3,424 parameters" in decision.reason and "1,200 parameters" in decision.reason
    assert [row.option for row in ctx.ledger] == ["32 of 64 ffn", "16 of 32 ffn"]
    assert any("an output of the model" in remark.reason for remark in ctx.remarks)


def test_what_follows_from_the_others_costs_nothing():
    original = parse(BODY, WEIGHTS)
    first = prune(original.clone(), Prune(ratio=0.5)).ledger[0].node
    model = original.clone()
    ctx = prune(model, Prune(ratio=0.5, groups=(first,)))
    assert sizes(model) == [(16, 32), (32, 32), (32, 8)]
    assert error(model, original) < 0.01 and ctx.ledger[0].error < 0.1


def test_fitted_layers_are_nearer_than_unfitted_ones():
    original = parse(BODY, WEIGHTS)
    with_data, without = original.clone(), original.clone()
    prune(with_data, Prune(ratio=0.5))
    ctx = prune(without, Prune(ratio=0.5), data=False)
    assert sizes(with_data) == sizes(without)
    assert error(with_data, original) < 0.7 * error(without, original)
    assert "no calibration data" in ctx.decisions[0].reason


def test_a_search_stays_inside_the_budget():
    for budget in (0.3, 0.1, 0.05):
        model = parse(BODY, WEIGHTS)
        original = model.clone()
        ctx = prune(model, Prune(), max_error=budget)
        assert ctx.decisions[-1].kept, ctx.decisions[-1].reason
        assert error(model, original) <= budget
        assert sum(np.prod(size) for size in sizes(model)) < sum(np.prod(size) for size in sizes(original))


def test_nothing_is_done_where_the_smallest_step_breaks_the_budget():
    weights = WEIGHTS | {"w1": np.eye(16, 64, dtype=np.float32) + MIXED, "w2": np.ones((64, 32), np.float32)}
    model = parse(BODY, weights)
    ctx = prune(model, Prune(), max_error=1e-6)
    assert sizes(model) == sizes(parse(BODY, weights)) and ctx.rewriter.changes == 0
    assert not ctx.decisions[-1].kept and ctx.services["measure"].judged <= 1
    assert all(row.reason for row in ctx.ledger)


def test_what_is_not_faster_is_not_done():
    model = parse(BODY, WEIGHTS)
    ctx = prune(model, Prune(), whole=0.99, max_error=0.3)
    assert ctx.rewriter.changes == 0 and "not faster with it: 1.01x" in ctx.decisions[-1].reason


def test_without_data_nothing_is_searched():
    model = parse(BODY, WEIGHTS)
    ctx = prune(model, Prune(), data=False)
    assert ctx.rewriter.changes == 0 and "takes calibration data" in ctx.decisions[-1].reason


@pytest.mark.parametrize(
    "options, words",
    [
        ({"ratio": 1.0}, "a share of units is a number from 0"),
        ({"ratio": -0.1}, "a share of units is a number from 0"),
        ({"schedule": "conv=2"}, "a share of units is a number from 0"),
        ({"schedule": "conv"}, "not a line of a schedule"),
        ({"granularity": ("chanel",)}, "there is no granularity 'chanel'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        Prune(**options)


def test_an_unknown_group_is_an_error_with_the_closest_name():
    model = parse(BODY, WEIGHTS)
    with pytest.raises(UsageError, match="there is no group 'fn'") as raised:
        prune(model, Prune(ratio=0.5, groups=("fn",)))
    assert "ffn" in (raised.value.hint or "")


@pytest.mark.parametrize("options", [{"groups": ("LAST",)}, {"schedule": "LAST=0.5"}])
def test_a_layer_that_cannot_be_pruned_is_named_with_its_reason(options: dict[str, Any]):
    model = parse(BODY, WEIGHTS)
    last = list(model.graph)[-1]
    last.name = "LAST"
    with pytest.raises(UsageError, match=r"'LAST' is no group .* stay: an output of the model"):
        prune(model, Prune(ratio=0.5, **options))


def test_a_schedule_has_shares_by_kind_and_name(tmp_path):
    model = parse(BODY, WEIGHTS)
    first = prune(model.clone(), Prune(ratio=0.5)).ledger[0].node
    file = tmp_path / "schedule.toml"
    file.write_text(f'[groups]\nffn = 0.25\n"{first}" = 0\n')
    for text in (f"{first}=0;ffn=0.25", str(file)):
        copy = model.clone()
        prune(copy, Prune(schedule=text))
        assert sizes(copy) == [(16, 64), (64, 24), (24, 8)]
