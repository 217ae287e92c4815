"""Kernels that are zero as a whole: so many as the schedule says, those that cost least, beside channels that go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest

from optc.backends.ort import Session
from optc.ir.errors import UsageError
from optc.ir.rewriter import Rewriter
from optc.ir.targets import builtin_targets
from optc.ir.verify import verify_structure
from optc.measure import Measure
from optc.options import Options
from optc.passes.base import PassContext
from optc.passes.compress.lowrank.inputs import Seen
from optc.passes.compress.prune.cost import flops, zeros
from optc.passes.compress.prune.prune import Prune
from optc.passes.compress.prune.schedule import read_schedule
from optc.passes.compress.sparsity.kernels import without_runs
from optc.progress import Silent
from optc.statistics import Collector
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "w": (RANDOM.standard_normal((8, 6, 3, 3)) / 8).astype(np.float32),
    "v": (RANDOM.standard_normal((4, 8, 3, 3)) / 8).astype(np.float32),
    "u": (RANDOM.standard_normal((4, 20)) / 2).astype(np.float32),
}
BODY = """g (float[N, 6, 7, 7] x) => (float[N, 20] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w) b = Relu (a) c = Conv (b, v) d = GlobalAveragePool (c) e = Flatten (d)
    y = MatMul (e, u)
}"""
X = RANDOM.standard_normal((32, 6, 7, 7)).cumsum(axis=1).astype(np.float32)


def model() -> onnx_ir.Model:
    parsed = parse(BODY, WEIGHTS)
    for node in parsed.graph:
        node.name = f"node_{node.outputs[0].name}"
    return parsed


def prune(given: onnx_ir.Model, schedule: str, data: bool = True) -> PassContext:
    options = Options.of(calib={"x": X} if data else None, max_error=0.9)
    measure = Measure(given.clone(), builtin_targets()["a100"], options)
    services: dict[str, Any] = {"measure": measure, "statistics": Collector(measure, options, Silent())}
    ctx = PassContext(Rewriter(given), builtin_targets()["a100"], services)
    Prune(schedule=schedule).run(ctx)
    assert verify_structure(given) == []
    return ctx


def kernels(given: onnx_ir.Model, node: str) -> np.ndarray:
    """Of every kernel of a convolution, (N, C), whether anything of it is left."""
    weight = next(one for one in given.graph if one.name == node).inputs[1].const_value.numpy()
    return (weight != 0).any(axis=(2, 3))


def outputs(given: onnx_ir.Model, value: str) -> np.ndarray:
    copy = given.clone()
    copy.graph.outputs[:] = [v for node in copy.graph for v in node.outputs if v.name == value]
    return Session(copy, optimization="off").run({"x": X})[value]


def test_kernels_go_as_a_whole_and_the_error_is_foretold():
    given = model()
    ctx = prune(given, "kernels[conv]=0.25")
    for node, count, total in (("node_a", 12, 48), ("node_c", 8, 32)):
        left = kernels(given, node)
        assert left.size == total and (~left).sum() == count
        assert [row.option for row in ctx.ledger if row.node == node] == [f"{count} of {total} kernels"]
    assert np.array_equal(next(n for n in given.graph if n.op_type == "MatMul").inputs[1].const_value, WEIGHTS["u"])
    first, second = (outputs(one, "a") for one in (model(), given))
    (row,) = [row for row in ctx.ledger if row.node == "node_a"]
    assert row.error == pytest.approx(np.linalg.norm(second - first) / np.linalg.norm(first), rel=0.01)
    assert "zero and" in ctx.decisions[0].reason and ctx.decisions[0].where == ["node_a", "node_c"]


def test_channels_and_kernels_go_by_one_schedule(tmp_path: Path):
    file = tmp_path / "mixed.toml"
    file.write_text("[groups]\nconv = 0.25\n[kernels]\nconv = 0.25\nnode_c = 0.5\n")
    found = []
    for schedule in ("conv=0.25;kernels[conv]=0.25;kernels[node_c]=0.5", str(file)):
        given = model()
        ctx = prune(given, schedule)
        assert kernels(given, "node_a").shape == (6, 6) and (~kernels(given, "node_a")).sum() == 9
        assert kernels(given, "node_c").shape == (3, 6) and (~kernels(given, "node_c")).sum() == 9
        (decision,) = ctx.decisions
        assert decision.kept and "zero" in decision.reason and len(decision.where) == 4
        options = ["2 of 8 conv", "1 of 4 conv", "9 of 36 kernels", "9 of 18 kernels"]
        assert [row.option for row in ctx.ledger] == options
        found.append(decision.reason)
    assert found[0] == found[1]


def test_the_cheapest_kernels_go_and_the_others_make_good_for_them():
    mix = RANDOM.standard_normal((12, 36)) * np.exp(RANDOM.standard_normal(36))
    rows = RANDOM.standard_normal((4000, 12)) @ mix + 0.1 * RANDOM.standard_normal((4000, 36))
    seen = Seen((rows.T @ rows / len(rows))[None], 0.01)
    weight = RANDOM.standard_normal((10, 36)).astype(np.float32)
    informed, blind = without_runs(weight, 9, 0.5, seen), without_runs(weight, 9, 0.5, Seen())
    error = [
        np.linalg.norm(rows @ (one.weight - weight).T) / np.linalg.norm(rows @ weight.T) for one in (informed, blind)
    ]
    assert informed.error == pytest.approx(error[0], rel=1e-3) and blind.error is None
    assert error[0] < 0.5 * error[1]
    for one in (informed, blind):
        assert ((one.weight.reshape(10, 4, 9) != 0).any(axis=2)).sum() == 20


def test_runs_of_products_and_the_last_one_that_is_shorter():
    weight = RANDOM.standard_normal((6, 19)).astype(np.float32)
    found = without_runs(weight, 8, 1 / 3, Seen()).weight
    runs = np.stack([(found[:, start : start + 8] != 0).any(axis=1) for start in (0, 8, 16)], axis=1)
    assert (~runs).sum() == 6 and np.array_equal(found[found != 0], weight[found != 0])


def test_without_data_small_kernels_go():
    given = model()
    ctx = prune(given, "kernels[node_a]=0.5", data=False)
    sizes = np.square(WEIGHTS["w"]).sum(axis=(2, 3))
    left = kernels(given, "node_a")
    assert sizes[left].min() > sizes[~left].max() and [row.error for row in ctx.ledger] == [None]


def test_arithmetic_without_zeros_is_counted():
    given = model()
    prune(given, "kernels[conv]=0.5")
    facts = Rewriter(given).facts
    shapes = {"x": (1, 6, 7, 7), "a": (1, 8, 7, 7), "b": (1, 8, 7, 7), "c": (1, 4, 5, 5), "e": (1, 4), "y": (1, 20)}
    whole, needed = (flops(given.graph, facts, shapes, zeros=counting) for counting in (True, False))
    convolutions = 2 * (8 * 49 * 54 + 4 * 25 * 72)
    assert whole - needed == convolutions // 2 and zeros(given.graph, facts) == (8 * 54 + 4 * 72) // 2


def test_what_names_nothing_is_an_error():
    with pytest.raises(UsageError, match="no layer 'node_z'"):
        prune(model(), "kernels[node_z]=0.5")
    for text in ("kernels[conv]=1.5", "kernels[conv]", "kernels[conv]=much"):
        with pytest.raises(UsageError):
            read_schedule(text)


def test_a_kernel_that_is_a_channel_stays():
    body = "g (float[N, 6, 7, 7] x) => (float[N, 6, 5, 5] y) { y = Conv <group = 6> (x, w) }"
    given = parse(body, {"w": WEIGHTS["w"][:6, :1]})
    ctx = prune(given, "kernels[conv.depthwise]=0.5")
    assert not ctx.decisions[0].kept and "goes as a whole" in ctx.ledger[0].reason
