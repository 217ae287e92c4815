"""The pass: as it is told where the target has kernels for it, never without saying why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest

from optc.backends import ort_kernels
from optc.backends.ort import Session
from optc.ir.errors import UsageError
from optc.ir.rewriter import Rewriter
from optc.ir.sparsity import Pattern
from optc.ir.targets import builtin_targets
from optc.ir.verify import Interface, verify_structure
from optc.measure import Measure
from optc.options import Options
from optc.passes.base import PassContext
from optc.passes.compress.layers import weighted_layers
from optc.passes.compress.sparsity.columns import Columns
from optc.passes.compress.sparsity.sparsity import Sparsity
from optc.progress import Silent
from optc.statistics import Collector
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(0)
TWO_OF_FOUR = Pattern(2, 4)
#: Weights that grow from channel to channel, so that another order of channels keeps more of them.
GROWING = np.exp(np.linspace(-2, 2, 64))
WEIGHTS = {
    "w1": (RANDOM.standard_normal((32, 64)) * GROWING / 6).astype(np.float32),
    "b1": RANDOM.standard_normal(64).astype(np.float32),
    "w2": (RANDOM.standard_normal((64, 32)) / 8).astype(np.float32),
    "w3": (RANDOM.standard_normal((6, 32)) / 6).astype(np.float32),
}
BODY = """g (float[N, 32] x) => (float[N, 6] y) {
    a = MatMul (x, w1) b = Add (a, b1) c = Relu (b) d = MatMul (c, w2) y = Gemm <transB = 1> (d, w3)
}"""
MIX = RANDOM.standard_normal((20, 32))
X = (RANDOM.standard_normal((512, 20)) @ MIX).astype(np.float32)


def model() -> onnx_ir.Model:
    parsed = parse(BODY, WEIGHTS)
    for node in parsed.graph:
        node.name = f"node_{node.outputs[0].name}"
    return parsed


def run(
    given: onnx_ir.Model, item: Sparsity, target: str = "a100", x: np.ndarray | None = X, **options: Any
) -> PassContext:
    wanted = builtin_targets()[target]
    measure = Measure(given.clone(), wanted, Options.of(calib=None if x is None else {"x": x}, **options))
    statistics = Collector(measure, measure.options, Silent())
    services = {"kernels": ort_kernels, "measure": measure, "statistics": statistics}
    ctx = PassContext(Rewriter(given), wanted, services)
    item.run(ctx)
    assert verify_structure(given) == []
    return ctx


def error(given: onnx_ir.Model, original: onnx_ir.Model, x: np.ndarray = X, value: str = "y") -> float:
    """On the rows that are not held out."""
    x = x[np.arange(len(x)) % 4 != 3]
    actual, expected = (Session(one, optimization="off").run({"x": x})[value] for one in (given, original))
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def patterns(ctx: PassContext, pattern: Pattern = TWO_OF_FOUR) -> dict[str, bool]:
    """Whether each layer's weight is of the pattern along its input channels."""
    return {
        layer.name: pattern.holds(Columns.of(layer, ctx.facts).channels_last(layer.by_output(ctx.facts)))
        for layer in weighted_layers(ctx.model.graph, ctx.facts, ("matmul", "conv"))
    }


@pytest.fixture(autouse=True)
def _all_layers(monkeypatch):
    monkeypatch.setattr("optc.passes.compress.layers.MIN_WEIGHTS", {"matmul": 1, "conv": 1, "lookup": 1})


def test_layers_become_sparse_along_their_inputs():
    original = model()
    given = original.clone()
    ctx = run(given, Sparsity(channels=0))
    assert patterns(ctx) == {"node_a": True, "node_d": True, "node_y": True}
    assert not Interface.of(original).differences(Interface.of(given))
    assert {row.node: row.option for row in ctx.ledger if row.taken} == dict.fromkeys(
        ("node_a", "node_d", "node_y"), "2:4-sparsegpt-repaired"
    )
    row = next(row for row in ctx.ledger if row.node == "node_d")
    assert row.bytes == 64 * 32 // 2 * 4 + 64 * 32 // 2 // 4 and row.seconds is not None and 0 < row.error < 1
    (decision,) = ctx.decisions
    assert decision.kept and "an estimate" in decision.reason and decision.speedup is None
    assert decision.bytes_saved == sum(4 * w.size for n, w in WEIGHTS.items() if n != "b1") - sum(
        row.bytes for row in ctx.ledger
    )


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("node", ["node_a", "node_d", "node_y"])
def test_the_error_foretold_is_the_one_of_the_layer_alone(method, node):
    given = model()
    ctx = run(given, Sparsity(channels=0, layers=(node,), method=method, permute=False))
    (row,) = [row for row in ctx.ledger if row.taken]
    # Only this layer differs, so that its own output tells; what follows is linear behind a and d only in part.
    layer = next(one for one in given.graph if one.name == node)
    original = model()
    for one in (given, original):
        value = next(n for n in one.graph if n.name == node).outputs[0]
        if value not in one.graph.outputs:
            one.graph.outputs.append(value)
    assert row.error == pytest.approx(error(given, original, value=layer.outputs[0].name), rel=0.01)


@pytest.mark.parametrize("geometry", ["", "<pads = [1, 1, 1, 1]>", "<group = 2>", "<strides = [2, 2]>"])
def test_convolutions_are_sparse_along_their_channels_and_foretell_their_error(geometry):
    groups = 2 if "group" in geometry else 1
    weights = {"w": (RANDOM.standard_normal((8, 12 // groups, 3, 3)) / 8).astype(np.float32)}
    parsed = parse(f"g (float[N, 12, 7, 7] x) => (float[N, 8, P, Q] y) {{ y = Conv {geometry} (x, w) }}", weights)
    x = RANDOM.standard_normal((24, 12, 7, 7)).cumsum(axis=1).astype(np.float32)
    original = parsed.clone()
    ctx = run(parsed, Sparsity(channels=0), x=x)
    assert list(patterns(ctx).values()) == [True]
    (row,) = ctx.ledger
    assert row.taken and row.error == pytest.approx(error(parsed, original, x), rel=0.01)


def test_another_order_of_channels_loses_less():
    original = model()
    errors = {}
    for permute in (False, True):
        given = original.clone()
        ctx = run(given, Sparsity(channels=0, method="wanda", repair=False, permute=permute, layers=("node_d",)))
        errors[permute] = error(given, original)
        assert ctx.hits.get("sparsity-order", 0) == permute and patterns(ctx)["node_d"]
    assert errors[True] < errors[False]
    assert any("64 channels are in another order" in remark.reason for remark in ctx.remarks)


def test_methods_err_in_their_order():
    errors = []
    for method, repair in (("magnitude", False), ("wanda", False), ("sparsegpt", False), ("sparsegpt", True)):
        original = model()
        given = original.clone()
        run(given, Sparsity(channels=0, method=method, repair=repair, permute=False))
        errors.append(error(given, original))
    assert errors[3] < errors[2] < errors[1] <= errors[0] * 1.05


def test_a_target_without_kernels_declines_unless_it_is_forced():
    for target in ("cpu", "t4"):
        given = model()
        ctx = run(given, Sparsity(channels=0), target=target)
        (decision,) = ctx.decisions
        assert not decision.kept and "has no kernels for 2:4 weights" in decision.reason and not ctx.ledger
        assert not any(patterns(ctx).values())
    ctx = run(model(), Sparsity(channels=0, force=True), target="cpu")
    assert all(patterns(ctx).values()) and "gains no time" in ctx.decisions[0].reason


def test_another_pattern_is_for_other_targets():
    ctx = run(model(), Sparsity(pattern="1:3", channels=0))
    assert "no kernels for 1:3 weights" in ctx.decisions[0].reason
    ctx = run(model(), Sparsity(pattern="1:3", channels=0, force=True))
    assert all(patterns(ctx, Pattern(1, 3)).values())


def test_small_layers_stay_dense_with_a_reason():
    ctx = run(model(), Sparsity(channels=32))
    assert patterns(ctx) == {"node_a": True, "node_d": True, "node_y": False}
    (refused,) = [row for row in ctx.ledger if not row.taken]
    assert refused.node == "node_y" and "pay from 32 channels on, it has 32 and makes 6" in refused.reason
    ctx = run(model(), Sparsity())
    assert not ctx.decisions[0].kept and len(ctx.ledger) == 3


def test_layers_that_would_err_too_much_stay_dense():
    errors = {row.node: row.error for row in run(model(), Sparsity(channels=0)).ledger}
    limit = sorted(errors.values())[1]
    ctx = run(model(), Sparsity(channels=0, layer_error=limit))
    left = [row for row in ctx.ledger if not row.taken]
    assert [row.node for row in left] == [max(errors, key=errors.get)] and "more than" in left[0].reason
    ctx = run(model(), Sparsity(channels=0, layer_error=1e-6))
    assert not ctx.decisions[0].kept and "every layer would err more" in ctx.decisions[0].reason


def test_without_data_the_smallest_weights_go():
    given = model()
    ctx = run(given, Sparsity(channels=0, permute=False), x=None)
    assert {row.option for row in ctx.ledger} == {"2:4-magnitude"} and all(row.error is None for row in ctx.ledger)
    assert any("without calibration data" in remark.reason for remark in ctx.remarks)
    weight = next(node for node in given.graph if node.name == "node_d").inputs[1].const_value.numpy()
    keep = TWO_OF_FOUR.largest(np.abs(WEIGHTS["w2"]).T).T
    assert np.array_equal(weight, np.where(keep, WEIGHTS["w2"], 0))


def test_a_weight_that_something_else_reads_stays_as_it_was_there():
    body = (
        """g (float[N, 32] x) => (float[N, 32] y) { a = MatMul (x, w) r = Relu (a) b = MatMul (r, w) y = Add (b, s) }"""
    )
    weights = {"w": (RANDOM.standard_normal((32, 32)) / 6).astype(np.float32), "s": np.zeros(32, np.float32)}
    parsed = parse(body, weights)
    for node in parsed.graph:
        node.name = f"node_{node.outputs[0].name}"
    run(parsed, Sparsity(channels=0, layers=("node_b",), permute=False))
    first, second = (node.inputs[1].const_value.numpy() for node in parsed.graph if node.op_type == "MatMul")
    assert np.array_equal(first, weights["w"]) and TWO_OF_FOUR.holds(second, axis=0)


def test_options_are_checked():
    for bad in ({"pattern": "4:2"}, {"pattern": "half"}, {"method": "random"}, {"channels": -1}, {"layer_error": 0.0}):
        with pytest.raises(UsageError):
            Sparsity(**bad)
    with pytest.raises(UsageError, match="no layer 'nothing'"):
        run(model(), Sparsity(layers=("nothing",)))


@pytest.mark.parametrize(
    "product, shape",
    [
        ("MatMul (x, w)", (32, 12)),
        ("Gemm (x, w, b)", (32, 12)),
        ("Gemm <transB = 1> (x, w, b)", (12, 32)),
        ("com.microsoft.FusedMatMul (x, w)", (32, 12)),
        ("com.microsoft.FusedMatMul <transB = 1> (x, w)", (12, 32)),
    ],
)
def test_every_form_of_a_product(product, shape):
    weights = {
        "w": RANDOM.standard_normal(shape).astype(np.float32),
        "b": RANDOM.standard_normal(12).astype(np.float32),
    }
    text = f"g (float[N, 32] x) => (float[N, 12] y) {{ y = {product} }}"
    given = parse(
        text, {name: array for name, array in weights.items() if f"{name})" in product or f"{name}," in product}
    )
    original = given.clone()
    ctx = run(given, Sparsity(channels=0))
    stored = given.graph[0].inputs[1].const_value.numpy()
    assert TWO_OF_FOUR.holds(stored, axis=1 if "transB" in product else 0) and stored.shape == shape
    assert (stored != 0).sum() == stored.size // 2
    # The bias is in the output, and not in the error of what the weight makes.
    assert 0 < error(given, original) < 1.2 * ctx.ledger[0].error
