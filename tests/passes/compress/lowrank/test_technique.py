"""Low rank in the search and as a pass: taken where a layer really is of low rank, refused with a reason elsewhere."""

from __future__ import annotations

import re
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
from optc.passes.base import Pass, PassContext
from optc.passes.compress.lowrank.factorize import LowRankPass
from optc.passes.compress.lowrank.sharing import Rung, share_out
from optc.passes.compress.lowrank.technique import LowRank
from optc.passes.compress.policy import read_policy
from optc.passes.compress.quantize import Quantize
from optc.passes.compress.recipe import read_recipe
from optc.passes.compress.techniques import Option
from optc.passes.pipeline import parse_pipeline
from optc.passes.registry import pass_registry
from optc.progress import Silent
from optc.statistics import Collector
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((768, 96)).astype(np.float32)
BODY = """g (float[N, 96] x) => (float[N, 80] y) {
    a = MatMul(x, low) r = Relu(a) y = Gemm<transB = 1>(r, full, bias)
}"""


def weight(columns: int, rows: int, rank: int | None = None) -> np.ndarray:
    if rank is None:
        return (RANDOM.standard_normal((rows, columns)) / 16).astype(np.float32)
    return (RANDOM.standard_normal((rows, rank)) @ RANDOM.standard_normal((rank, columns)) / 64).astype(np.float32)


def model(rank: int | None = 20) -> onnx_ir.Model:
    weights = {"low": weight(128, 96, rank), "full": weight(128, 80), "bias": RANDOM.standard_normal(80)}
    parsed = parse(BODY, {name: array.astype(np.float32) for name, array in weights.items()})
    for node in parsed.graph:
        node.name = f"node_{node.outputs[0].name}"
    return parsed


class Pretended(Measure):
    """Measures errors, but lets a layer take as long as it has work to do."""

    def __init__(self, given: onnx_ir.Model, calib: Mapping[str, np.ndarray] | None, **options: Any) -> None:
        super().__init__(given, builtin_targets()["cpu"], Options.of(calib=calib, **options))

    def time(self, calls, budget):
        return {name: self._seconds(name) for name in calls}

    def compare(self, models, budget=6.0):
        return {name: SimpleNamespace(ratio=SimpleNamespace(median=0.5)) for name in models}

    @staticmethod
    def _seconds(name: str) -> float:
        """By the rank in its name."""
        rank = re.search(r"-r(\d+)", name)
        return (int(rank[1]) / 1000 if rank else 1.0) * (0.5 if "int8" in name else 1.0)


def run(given: onnx_ir.Model, item: Pass, calib: bool = True, data: np.ndarray = X, **options: Any) -> PassContext:
    measure = Pretended(given, {"x": data} if calib else None, **options)
    services = {
        "kernels": ort_kernels,
        "measure": measure,
        "statistics": Collector(measure, measure.options, Silent()),
    }
    ctx = PassContext(Rewriter(given), builtin_targets()["cpu"], services)
    item.run(ctx)
    return ctx


def ops(given: onnx_ir.Model) -> list[str]:
    return [node.op_type for node in given.graph]


def error(given: onnx_ir.Model, original: onnx_ir.Model) -> float:
    actual, expected = (Session(one, optimization="off").run({"x": X})["y"] for one in (given, original))
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


ONLY = Quantize(techniques=("low-rank",))


def test_what_is_of_low_rank_is_taken_and_the_rest_has_a_reason():
    original = model()
    given = original.clone()
    ctx = run(given, ONLY, max_error=1e-3)
    assert ops(given) == ["MatMul", "MatMul", "Relu", "Gemm"]
    assert verify_structure(given) == [] and not Interface.of(original).differences(Interface.of(given))
    assert error(given, original) < 1e-4, "a multiple of 16 that holds a rank of 20 holds all of it"
    taken = [row for row in ctx.ledger if row.taken]
    assert [(row.node, row.option) for row in taken] == [("node_a", "low-rank-r32")]
    assert taken[0].bytes == 4 * 32 * (96 + 128) and taken[0].error is not None and taken[0].error < 1e-4
    (refused,) = [row for row in ctx.ledger if row.node == "node_y"]
    assert "no rank that saves work is precise enough: with" in refused.reason and refused.option == ""


def test_random_weights_are_left_alone():
    original = model(rank=None)
    given = original.clone()
    ctx = run(given, Quantize(), max_error=0.03)
    rows = [row for row in ctx.ledger if row.technique == "low-rank"]
    assert {row.node for row in rows} == {"node_a", "node_y"}
    assert all(not row.taken and "no rank that saves work is precise enough" in row.reason for row in rows)
    assert "MatMul" not in ops(given), "integers were better"


def test_factors_become_integers_by_the_technique_for_those():
    original = model()
    given = original.clone()
    item = Quantize(techniques=("low-rank",), options=("low-rank-*+dynamic-int8",))
    ctx = run(given, item, max_error=0.05)
    assert ops(given).count("DynamicQuantizeMatMul") == 2 and "MatMul" not in ops(given)
    assert verify_structure(given) == [] and 0 < error(given, original) < 0.05
    (taken,) = [row for row in ctx.ledger if row.taken]
    assert taken.option == "low-rank-r32+dynamic-int8" and taken.bytes == 32 * (96 + 128)
    assert taken.error is not None and 0.001 < taken.error < 0.03


def test_without_data_labels_say_so():
    original = model()
    given = original.clone()
    run(given, ONLY, calib=False, max_error=1e-3)
    ctx = run(original.clone(), ONLY, calib=False, max_error=1e-3)
    assert [row.option for row in ctx.ledger if row.taken] == ["plain-low-rank-r32"]
    assert error(given, original) < 1e-4


def test_inputs_of_low_rank_are_as_good_as_weights_of_low_rank():
    mix = RANDOM.standard_normal((24, 96))
    calib = (RANDOM.standard_normal((512, 24)) @ mix).astype(np.float32)
    ctx = run(model(rank=None), ONLY, data=calib, max_error=0.05)
    (taken,) = [row.option for row in ctx.ledger if row.taken and row.node == "node_a"]
    assert taken.startswith("low-rank-r32")


def test_few_rows_are_no_ground_for_ranks():
    ctx = run(model(), Quantize(options=("*int8*",)), data=X[:340], max_error=0.03)
    rows = [row for row in ctx.ledger if row.technique == "low-rank" and row.node == "node_a"]
    assert [row.option for row in rows] == [""] and "seen in 255 rows only" in rows[0].reason


def test_a_recipe_and_a_policy_hold_its_options(tmp_path):
    original = model()
    found = run(original.clone(), ONLY, max_error=1e-3)
    path = tmp_path / "found.toml"
    path.write_text(found.recipe)
    assert read_recipe(path).options == {"node_a": "low-rank-r32"}
    again = original.clone()
    run(again, Quantize(recipe=str(path)), max_error=1e-3)
    assert ops(again) == ["MatMul", "MatMul", "Relu", "Gemm"]
    for policy, options in (
        ("*=none", set()),
        ("*=low-rank", {"low-rank-r32"}),
        ("*=low-rank,int8", {"low-rank-r32", "low-rank-r32+dynamic-int8"}),
        ("*=int8", set()),
        ("*=low-rank-r32+*", {"low-rank-r32+dynamic-int8"}),
    ):
        ctx = run(original.clone(), Quantize(techniques=("low-rank",), policy=policy), max_error=0.02)
        assert {row.option for row in ctx.ledger if row.node == "node_a" and "policy" not in row.reason} == options, (
            policy
        )


def test_a_policy_allows_all_that_is_done_or_nothing():
    both = Option("low-rank", "low-rank-r32+dynamic-int8", 0.0, 0)
    for text, allowed in (("*=int8", False), ("*=low-rank", False), ("*=low-rank,int8", True), ("*=any", True)):
        assert (read_policy(text).forbids(both, "node", ()) is None) is allowed


# -- the pass -------------------------------------------------------------------------------------------------------


def test_the_pass_does_what_it_is_told():
    original = model()
    given = original.clone()
    ctx = run(given, LowRankPass(rank=24, layers=("node_a",)))
    assert ops(given) == ["MatMul", "MatMul", "Relu", "Gemm"] and error(given, original) < 1e-4
    (decision,) = ctx.decisions
    assert decision.kept and decision.where == ["node_a"] and decision.what == "low-rank-r24"
    assert decision.bytes_saved == 4 * (96 * 128 - 24 * (96 + 128))


@pytest.mark.parametrize("ratio", [0.35, 0.5, 0.8])
def test_a_ratio_is_shared_out_over_layers(ratio):
    original = model(rank=24)
    given = original.clone()
    run(given, LowRankPass(ratio=ratio))
    size = lambda one: sum(v.const_value.size for v in one.graph.initializers.values())  # noqa: E731
    assert ratio * 0.8 < (size(given) - 80) / (size(original) - 80) <= ratio
    ranks = [value.const_value.shape[1] for value in given.graph.initializers.values() if "part" in (value.name or "")]
    assert all(rank % 16 == 0 for rank in ranks[::2])
    if ratio == 0.8:
        assert ops(given) == ["MatMul", "MatMul", "Relu", "Gemm"], "the one of full rank is left as it is"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"ratio": 1.0}, "is above 0 and below 1, not 1"),
        ({"ratio": 0.0}, "is above 0 and below 1"),
        ({"rank": -1}, "1 or more"),
        ({"convolutions": "cp"}, "tucker, spatial, none, not 'cp'"),
    ],
)
def test_options_outside_of_their_range_are_errors(options, words):
    with pytest.raises(UsageError, match=words):
        LowRankPass(**options)


@pytest.mark.parametrize(
    "options, words, hint",
    [
        ({"layers": ("node_aa",)}, "no layer 'node_aa'", "did you mean node_a"),
        ({"layers": ("node_a",), "rank": 300}, "'node_a' cannot be factored: its largest rank is 96", None),
        ({"ratio": 0.01}, "cannot be had: at the least rank", "a larger ratio"),
    ],
)
def test_what_cannot_be_done_is_an_error(options, words, hint):
    with pytest.raises(UsageError, match=words) as raised:
        run(model(), LowRankPass(**options))
    assert hint is None or hint in (raised.value.hint or "")


def test_layers_that_are_not_named_are_left_alone_with_the_reason():
    body = """g (float[N, 32, 9, 9] x) => (float[N, 64, 9, 9] y) {
        a = Conv<group = 32, pads = [1, 1, 1, 1]>(x, deep) y = Conv<pads = [1, 1, 1, 1]>(a, wide)
    }"""
    arrays = {"deep": (32, 1, 3, 3), "wide": (64, 32, 3, 3)}
    given = parse(body, {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()})
    ctx = PassContext(Rewriter(given), builtin_targets()["cpu"])
    LowRankPass(ratio=0.5).run(ctx)
    assert ops(given) == ["Conv"] * 4
    assert [decision.kept for decision in ctx.decisions] == [False, True]
    assert "depthwise" in ctx.decisions[0].reason and ctx.decisions[1].what.startswith("plain-tucker-r")
    assert any("without calibration data" in remark.reason for remark in ctx.remarks)
    with pytest.raises(UsageError, match="depthwise"):
        again = parse(body, {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()})
        again.graph[0].name = "deep"
        LowRankPass(layers=("deep",)).run(PassContext(Rewriter(again), builtin_targets()["cpu"]))


def test_it_is_written_in_a_pipeline():
    (item,) = parse_pipeline("low-rank{ratio=0.4,layers=[node_a],convolutions=spatial,shared=true}", pass_registry())
    assert item == LowRankPass(ratio=0.4, layers=("node_a",), convolutions="spatial", shared=True)


def test_a_budget_goes_to_the_layers_that_need_it():
    steep = [Rung((r,), 10 * r, 0.5**r) for r in range(1, 10)] + [Rung((), 100, 0.0)]
    flat = [Rung((r,), 10 * r, 1 - r / 10) for r in range(1, 10)] + [Rung((), 100, 0.0)]
    found = share_out([steep, flat], 150)
    assert found is not None and found[0].ranks and not found[1].ranks and sum(r.weights for r in found) <= 150
    assert share_out([steep, flat], 19) is None
    assert share_out([steep, flat], 1000) == [steep[-1], flat[-1]]


def test_techniques_keep_their_names():
    assert LowRank.name == LowRankPass.name == "low-rank"
