"""Whole experts: the least routed go, with their part of the router, and never more than the kernel needs."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.ir.errors import UsageError
from optc.passes.compress.prune.prune import Prune
from optc.passes.compress.prune.routing import routing_weights
from tests.passes.compress.prune.test_prune import prune
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(0)
#: Of six experts, the second and the fifth are hardly ever taken; their weights are the largest of all.
BIAS = np.array([0, -30, 0, 0.5, -30, 0], np.float32)
SIZES = np.array([1, 5, 1, 1, 5, 1], np.float32)[:, None, None]
WEIGHTS = {
    "r": RANDOM.standard_normal((16, 6)).astype(np.float32),
    "c": BIAS,
    "f1": SIZES * RANDOM.standard_normal((6, 32, 16)).astype(np.float32) / 4,
    "b1": np.zeros((6, 32), np.float32),
    "f2": SIZES * RANDOM.standard_normal((6, 16, 32)).astype(np.float32) / 6,
    "b2": np.ones((6, 16), np.float32),
}
BODY = """g (float[N, 16] x) => (float[N, 16] y) {
    l = MatMul(x, r) m = Add(l, c)
    y = com.microsoft.MoE<k = %d, activation_type = "relu", normalize_routing_weights = 1>(x, m, f1, b1, f2, b2)
}"""


def shapes(model: onnx_ir.Model) -> dict[str, tuple[int, ...]]:
    values = model.graph.initializers.values()
    return {value.name.split("_")[0]: tuple(value.const_value.shape.numpy()) for value in values}


def experts(model: onnx_ir.Model, ratio: float, data: bool = True):
    return prune(model, Prune(ratio=ratio, granularity=("expert",)), data=data, max_error=0.9)


def test_the_least_routed_go_with_their_part_of_the_router():
    model = parse(BODY % 2, WEIGHTS)
    ctx = experts(model, 0.34)
    assert shapes(model) == {
        "r": (16, 4), "c": (4,), "f1": (4, 32, 16), "b1": (4, 32), "f2": (4, 16, 32), "b2": (4, 16)
    }  # fmt: skip
    kept = [index for index in range(6) if index not in (1, 4)]
    named = {value.name.split("_")[0]: value.const_value.numpy() for value in model.graph.initializers.values()}
    for name, array in named.items():
        assert np.array_equal(array, np.take(WEIGHTS[name], kept, axis=1 if name == "r" else 0)), name
    assert (
        ctx.ledger[0].option == "2 of 6 experts" and "ranked by the weight that the router" in ctx.decisions[0].reason
    )
    judged = ctx.services["measure"].judge(model)
    assert judged.error < 1e-3, "nothing went to the two that are gone"


def test_without_data_the_weights_are_what_there_is_to_go_by():
    model = parse(BODY % 2, WEIGHTS)
    ctx = experts(model, 0.34, data=False)
    assert {1, 4}.isdisjoint(np.flatnonzero(~np.isin(BIAS, model_bias(model)))), "the large ones stay"
    assert "no calibration data" in ctx.decisions[0].reason


def model_bias(model: onnx_ir.Model) -> np.ndarray:
    return next(v.const_value.numpy() for n, v in model.graph.initializers.items() if n.startswith("c_"))


@pytest.mark.parametrize("taken, left", [(2, 2), (4, 4), (5, 5)])
def test_as_many_are_left_as_each_row_takes(taken: int, left: int):
    model = parse(BODY % taken, WEIGHTS)
    experts(model, 0.9)
    assert shapes(model)["f1"] == (left, 32, 16) and shapes(model)["r"] == (16, left)


def test_where_each_row_takes_all_there_is_nothing_to_prune():
    model = parse(BODY % 6, WEIGHTS)
    ctx = experts(model, 0.5)
    assert ctx.rewriter.changes == 0 and "each row takes 6 of 6 experts" in ctx.decisions[0].reason


def test_neurons_of_experts_and_whole_experts_are_two_things():
    model = parse(BODY % 2, WEIGHTS)
    prune(model, Prune(ratio=0.5), max_error=0.9)
    assert shapes(model)["f1"] == (6, 16, 16) and shapes(model)["r"] == (16, 6)
    with pytest.raises(UsageError, match="there is no granularity 'experts'"):
        Prune(granularity=("experts",))


def test_weights_of_routing_are_those_of_the_kernel():
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    attributes = {"k": onnx_ir.AttrInt64("k", 2)}
    assert np.allclose(routing_weights(logits, attributes), [[0.5, 0.3, 0], [0.1, 0, 0.8]])
    attributes["normalize_routing_weights"] = onnx_ir.AttrInt64("normalize_routing_weights", 1)
    assert np.allclose(routing_weights(logits, attributes), [[5 / 8, 3 / 8, 0], [1 / 9, 0, 8 / 9]])
    assert np.allclose(routing_weights(logits, {}), [[0.5, 0, 0], [0, 0, 0.8]])
