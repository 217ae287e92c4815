"""Measuring: what counts as error, what the user's metric decides, and what cannot be measured."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx_ir
import pytest

from optc.ir.errors import BackendError, DataError, UsageError
from optc.ir.model import load
from optc.ir.targets import builtin_targets
from optc.measure import Measure, relative_error
from optc.options import Options

CPU, GPU = builtin_targets()["cpu"], builtin_targets()["a100"]
BODY = "g (float[N, 4] x) => (float[N, 4] y) { f = Constant<value = float {%s}>() a = Exp(x) y = Mul(a, f) }"
X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def scaled(factor: float = 1.0) -> onnx_ir.Model:
    text = f'<ir_version: 8, opset_import: ["": 17]> {BODY % factor}'
    return load(onnx_ir.to_proto(onnx_ir.from_onnx_text(text)))


def measure(target=CPU, **options) -> Measure:
    return Measure(scaled(), target, Options.of(**options))


# the error ---------------------------------------------------------------------------------------------------------


def error(expected, actual) -> float:
    return relative_error([{"y": expected}], [{"y": actual}])


def test_relative_error():
    ones = np.ones(100, np.float32)
    assert error(ones, ones) == 0.0
    assert error(ones, ones * 1.5) == pytest.approx(0.5)
    assert error(ones.astype(np.float16), ones.astype(ml_dtypes.bfloat16) * 2) == pytest.approx(1.0)
    assert error(ones, ones[:50]) == math.inf
    assert error(np.zeros(3), np.zeros(3)) == 0.0 and error(np.zeros(3), np.full(3, 1e-9)) == math.inf
    assert error(np.array([3, 4]), np.array([3, 4])) == 0.0 and error(np.array([3, 4]), np.array([3, 5])) == 0.2
    assert error(np.array([True, False]), np.array([True, True])) == 1.0
    assert error(np.array(["a", "b"], object), np.array(["a", "b"], object)) == 0.0
    assert error(np.array(["a", "b"], object), np.array(["a", "c"], object)) == math.inf


def test_what_is_not_finite_must_stay_where_it_is():
    odd = np.array([1.0, np.nan, np.inf, -np.inf])
    assert error(odd, odd) == 0.0
    assert error(odd, np.array([1.1, np.nan, np.inf, -np.inf])) == pytest.approx(0.1)
    for other in ([1.0, 0.0, np.inf, -np.inf], [1.0, np.nan, -np.inf, -np.inf], [np.nan, np.nan, np.inf, -np.inf]):
        assert error(odd, np.array(other)) == math.inf


def test_the_worst_output_counts_over_all_samples_together():
    references = [{"a": np.ones(4), "b": np.ones(2)}, {"a": np.ones(12), "b": np.ones(2)}]
    outputs = [{"a": np.ones(4), "b": np.ones(2)}, {"a": np.ones(12) * 1.2, "b": np.array([1.0, 1.1])}]
    assert relative_error(references, outputs) == pytest.approx((12 * 0.04 / 16) ** 0.5)


def test_sequences_and_absent_values():
    pair = [np.ones(2), np.ones(3)]
    assert error(pair, pair) == 0.0
    assert error(pair, [np.ones(2), np.ones(3) * 2]) == pytest.approx((3 / 5) ** 0.5)
    assert error(pair, pair[:1]) == math.inf and error(pair, [np.ones(2), np.ones(4)]) == math.inf
    assert error(None, None) == 0.0 and error(None, np.ones(2)) == math.inf and error([], []) == 0.0


# judging -----------------------------------------------------------------------------------------------------------


def test_the_budget():
    judge = measure(max_error=0.05, calib={"x": X})
    inside, outside = judge.judge(scaled(1.04)), judge.judge(scaled(1.06))
    assert inside.error == pytest.approx(0.04, rel=1e-3) and inside.reason is None
    assert outside.reason == "the error is 0.06, more than the 0.05 allowed"


def test_without_data_inputs_are_drawn_and_that_is_said():
    judge = measure(shapes={"N": 3})
    assert "drawn" in judge.data and all(sample["x"].shape == (3, 4) for sample in judge.samples)
    again = measure(shapes={"N": 3})
    (first, *_), (same, *_), (other, *_) = judge.samples, again.samples, measure(shapes={"N": 3}, seed=7).samples
    np.testing.assert_array_equal(first["x"], same["x"])
    assert not np.array_equal(first["x"], other["x"]) and not judge.samples.real
    assert measure(calib={"x": X}).data == "calibration data"


def test_data_from_a_file(tmp_path):
    path = tmp_path / "c.npz"
    np.savez(path, x=X)
    judge = measure(calib=path)
    judge.check_data()
    assert judge.data == str(path) and len(judge.samples) == 1
    np.savez(path, x=X, other=X)
    with pytest.raises(DataError, match="other"):
        measure(calib=path).check_data()
    with pytest.raises(DataError, match="other"):
        measure(calib={"x": X, "other": X}).check_data()


class Accuracy:
    """A metric that notes how it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs, labels) -> float:
        self.calls += 1
        assert set(outputs) == {"y"} and set(labels) == {"label"}
        return float(-np.abs(outputs["y"] - labels["label"]).mean())


@pytest.mark.parametrize("drop, allowed", [(0.5, True), ("0.5", True), (1e-6, False), ("1e-6", False)])
def test_the_metric_decides_not_the_error(drop, allowed):
    metric = Accuracy()
    judge = measure(calib={"x": X, "label": np.exp(X) - 1}, metric=metric, max_drop=drop, max_error=0.001)
    judgement = judge.judge(scaled(1.1))
    assert judgement.error == pytest.approx(0.1, rel=1e-3) and metric.calls == 2
    assert (judgement.reason is None) is allowed
    if not allowed:
        assert "the metric falls from -1 to" in judgement.reason
    assert judgement.metric < -1


def test_a_drop_may_be_a_share_of_the_originals_value():
    labels = np.exp(X) - 1
    for share, allowed in (("50%", True), ("0.0001%", False)):
        judge = measure(calib={"x": X, "label": labels}, metric=Accuracy(), max_drop=share)
        assert (judge.judge(scaled(1.1)).reason is None) is allowed


def test_metrics_that_fail():
    def broken(outputs, labels):
        raise KeyError("logits")

    with pytest.raises(UsageError, match="the metric failed: KeyError"):
        measure(calib={"x": X}, metric=broken, max_drop=0).judge(scaled())
    with pytest.raises(UsageError, match="original is nan"):
        measure(calib={"x": X}, metric=lambda outputs, labels: math.nan, max_drop=0).judge(scaled())
    once = iter([1.0, math.nan])
    judge = measure(calib={"x": X}, metric=lambda outputs, labels: next(once), max_drop=0)
    _ = judge._reference_metric
    assert judge.judge(scaled()).reason is not None, "what is no number is not good enough"


def test_a_metric_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_metric_module.py").write_text("def good(outputs, labels):\n    return 1.0\n")
    (tmp_path / "my_broken_module.py").write_text("def good(:\n")
    monkeypatch.chdir(tmp_path)
    assert measure(calib={"x": X}, metric="my_metric_module:good", max_drop="0%").judge(scaled(3)).reason is None
    with pytest.raises(UsageError, match="SyntaxError"):
        measure(calib={"x": X}, metric="my_broken_module:good", max_drop="0%")


# running -----------------------------------------------------------------------------------------------------------


def test_why_not():
    assert measure().why_not is None
    assert measure(GPU).why_not is None and measure(GPU).why_not_timed == "the target 'a100' is not this machine"
    assert not measure(GPU).latency(scaled()).measured
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { y = my.Thing(x) }'
    unknown = Measure(onnx_ir.from_onnx_text(text), CPU, Options())
    assert "cannot be run" in unknown.why_not


def test_shapes_of_inner_values():
    judge = measure(shapes={"N": 8})
    model = scaled()
    before = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    values = [model.graph.inputs[0], model.graph[1].outputs[0], model.graph.outputs[0], model.graph[0].outputs[0]]
    assert judge.shapes(model, values + values) == {"x": (8, 4), "a": (8, 4), "y": (8, 4), "f": ()}
    assert onnx_ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_latency():
    judge = measure(shapes={"N": 8})
    latency = judge.latency(scaled())
    assert latency.measured and "x [8, 4]" in latency.how and latency.ratio.median > 0
    seconds = judge.time({"a": lambda: None, "b": lambda: sum(range(20000))}, 0.05)
    assert 0 < seconds["a"] < seconds["b"]


def test_a_candidate_that_cannot_be_opened():
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y) { y = my.Thing(x) }'
    with pytest.raises(BackendError):
        measure().judge(onnx_ir.from_onnx_text(text))
