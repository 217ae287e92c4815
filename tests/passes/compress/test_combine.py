"""Pruning and quantizing under one budget: the fastest division is kept, in one order, and can be done again."""

from __future__ import annotations

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
from optc.passes.compress.combine import Compress
from optc.passes.compress.recipe import parse_recipe
from optc.progress import Silent
from optc.statistics import Collector
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(0)
#: The 256 numbers that the first layer writes are mixtures of 24, so most of them follow from the others.
MIXED = (RANDOM.standard_normal((32, 24)) @ RANDOM.standard_normal((24, 256)) / 28).astype(np.float32)
WEIGHTS = {
    "w1": MIXED,
    "b1": RANDOM.standard_normal(256).astype(np.float32),
    "w2": (RANDOM.standard_normal((256, 128)) / 16).astype(np.float32),
    "b2": np.zeros(128, np.float32),
    "w3": (RANDOM.standard_normal((128, 64)) / 11).astype(np.float32),
}
BODY = """g (float[N, 32] x) => (float[N, 64] y) {
    a = MatMul(x, w1) b = Add(a, b1) c = Gemm(b, w2, b2) r = Relu(c) y = MatMul(r, w3)
}"""
X = RANDOM.standard_normal((2048, 32)).astype(np.float32)
BUDGET = 0.1
INT8 = Compress(techniques=("dynamic-int8",))


def weight_bytes(model: onnx_ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values())


class Pretended(Measure):
    """Measures errors, but pretends that a model takes time for its bytes, pruned and quantized ones ``dear`` times."""

    def __init__(self, model: onnx_ir.Model, dear: float = 1.0, **options: Any) -> None:
        super().__init__(model, builtin_targets()["cpu"], Options.of(**{"calib": {"x": X}, **options}))
        self.dear = dear

    def time(self, calls, budget):
        # A layer alone is timed as what prune calls it, or by the label of its option.
        times = {"None": 4.0, "dynamic-int8": 1.0}
        return {name: times.get(name) or float(sum(call.args[0]["x"].shape)) for name, call in calls.items()}

    def compare(self, models, budget=6.0):
        def seconds(model: onnx_ir.Model) -> float:
            quantized = any(node.op_type == "DynamicQuantizeMatMul" for node in model.graph)
            return weight_bytes(model) * (self.dear if quantized and inner(model) < 256 else 1.0)

        whole = seconds(next(iter(models.values())))
        return {n: SimpleNamespace(ratio=SimpleNamespace(median=seconds(m) / whole)) for n, m in models.items()}


def compress(model: onnx_ir.Model, item: Compress, **options: Any) -> PassContext:
    measure = Pretended(model.clone(), **{"max_error": BUDGET, **options})
    services = {
        "measure": measure,
        "statistics": Collector(measure, measure.options, Silent()),
        "kernels": ort_kernels,
    }
    ctx = PassContext(Rewriter(model), builtin_targets()["cpu"], services)
    item.run(ctx)
    return ctx


def error(model: onnx_ir.Model, original: onnx_ir.Model, x: np.ndarray) -> float:
    y, reference = (Session(one, optimization="off").run({"x": x})["y"] for one in (model, original))
    return float(np.linalg.norm(y - reference) / np.linalg.norm(reference))


def inner(model: onnx_ir.Model) -> int:
    """How many numbers the first layer writes."""
    return int(next(v for n, v in model.graph.initializers.items() if n.startswith("b1")).const_value.shape[0])


def test_both_together_are_kept_where_they_are_fastest():
    model = parse(BODY, WEIGHTS)
    original = model.clone()
    ctx = compress(model, INT8)
    ops = [node.op_type for node in model.graph]
    assert ops.count("DynamicQuantizeMatMul") == 3 and "MatMul" not in ops and "Gemm" not in ops
    alone = compress(original.clone(), INT8, dear=9).model
    assert inner(alone) == 256 and inner(model) < 256 and weight_bytes(model) < 0.6 * weight_bytes(alone)
    assert verify_structure(model) == [] and not Interface.of(original).differences(Interface.of(model))
    unseen = RANDOM.standard_normal((512, 32)).astype(np.float32)
    assert 0 < error(model, original, X[3::4]) <= BUDGET and error(model, original, unseen) <= 1.1 * BUDGET
    taken = [row.technique for row in ctx.ledger if row.taken]
    assert taken == sorted(taken, key=["prune", "dynamic-int8"].index) and set(taken) == {"prune", "dynamic-int8"}
    (kept,) = [attempt for attempt in ctx.attempts if attempt.kept]
    assert next(iter(kept.options)).startswith("prune ") and "dynamic-int8 dynamic-int8" in kept.options
    assert kept.error <= BUDGET and kept.speedup == pytest.approx(
        weight_bytes(original) / weight_bytes(model), rel=0.01
    )
    assert ctx.decisions[-1].what == "compress" and "not pruned, quantized" in ctx.decisions[-1].reason


def test_what_pruning_takes_of_the_budget_may_be_missed_more_than_it_gains():
    model = parse(BODY, WEIGHTS)
    ctx = compress(model, INT8, dear=9)
    assert inner(model) == 256 and {row.technique for row in ctx.ledger if row.taken} == {"dynamic-int8"}
    assert ctx.decisions[-1].kept and "pruned within" in ctx.decisions[-1].reason, "it was tried"


def test_what_was_found_can_be_done_again(tmp_path):
    original = parse(BODY, WEIGHTS)
    found = compress(original.clone(), INT8)
    recipe = parse_recipe(found.recipe)
    assert recipe.pruned and recipe.options and "[pruned]" in found.recipe
    path = tmp_path / "recipe.toml"
    path.write_text(found.recipe)
    again = original.clone()
    ctx = compress(again, Compress(recipe=str(path)))
    assert weight_bytes(again) == weight_bytes(found.model) and ctx.recipe == found.recipe
    assert error(again, found.model, X) < 1e-3
    path.write_text(found.recipe.replace("[pruned]\n", '[pruned]\n"nothing" = 8\n'))
    with pytest.raises(UsageError, match="there is no group 'nothing'"):
        compress(original.clone(), Compress(recipe=str(path)))


def test_nothing_is_done_where_nothing_is_inside_the_budget():
    model = parse(BODY, WEIGHTS)
    ctx = compress(model, INT8, max_error=1e-7)
    assert ctx.rewriter.changes == 0 and not any(decision.kept for decision in ctx.decisions)
    assert not any(row.taken for row in ctx.ledger) and all(row.reason for row in ctx.ledger)


def test_a_policy_keeps_layers_from_being_pruned():
    model = parse(BODY, WEIGHTS)
    ctx = compress(model, Compress(techniques=("dynamic-int8",), policy="*=int8"))
    assert inner(model) == 256 and any("policy" in remark.reason for remark in ctx.remarks + ctx.decisions)


@pytest.mark.parametrize("parts", [(0.0,), (1.5,), (-0.1, 0.5)])
def test_parts_are_parts(parts: tuple[float, ...]):
    with pytest.raises(UsageError, match="a part of the budget is above 0 and at most 1"):
        Compress(parts=parts)
