"""Static INT8 as a technique: proposed with its error, written, and proven absorbed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir
import pytest

from optc.backends import ort_kernels
from optc.ir.rewriter import Rewriter
from optc.ir.targets import builtin_targets
from optc.ir.verify import Interface, verify_structure
from optc.measure import Measure
from optc.options import Options
from optc.passes.compress.convolutions import split_convolution
from optc.passes.compress.dynamic_int8 import DynamicInt8
from optc.passes.compress.integer.knowledge import certain_mean
from optc.passes.compress.layers import weighted_layers
from optc.passes.compress.static_int8 import PLAIN, SMOOTH, StaticInt8
from optc.passes.compress.techniques import Choice, Leftover, Option, Study, Technique
from optc.progress import Silent
from optc.statistics import Collector
from tests.passes.compress.texts import parse

from .graphs import draw, error, kernels, ops, quantized, run

RANDOM = np.random.default_rng(5)
IMAGES = RANDOM.standard_normal((6, 8, 10, 10)).astype(np.float32)
CNN = parse(
    """g (float[N, 8, 10, 10] x) => (float[N, 10] y) {
        a = com.microsoft.FusedConv <activation = "Relu", pads = [1, 1, 1, 1]> (x, w, b)
        c = com.microsoft.FusedConv <activation = "Relu", pads = [1, 1, 1, 1]> (a, v, b, a)
        d = GlobalAveragePool (c) e = Flatten (d) y = Gemm (e, m, k)
    }""",
    {
        "w": draw(64, 8, 3, 3) / 8,
        "b": draw(64) / 4,
        "v": draw(64, 64, 3, 3) / 24,
        "m": draw(64, 64) / 8,
        "k": draw(64),
    },
)
CNN.graph.outputs[0].shape = onnx_ir.Shape(["N", 64])


def study_of(model: onnx_ir.Model, data: Mapping[str, np.ndarray] | None) -> Study:
    copy = model.clone()
    rewriter = Rewriter(copy)
    for node in list(copy.graph):
        split_convolution(rewriter, node)
    target = builtin_targets()["cpu"]
    given = Options.of(calib=data, max_error=0.5, calib_cache="off")
    measure = Measure(model, target, given)
    rewriter = Rewriter(copy)
    layers = list(weighted_layers(copy.graph, rewriter.facts))
    study = Study(copy, rewriter.facts, layers, target, measure, ort_kernels, Collector(measure, given, Silent()))
    if data is not None:
        techniques = (StaticInt8(), DynamicInt8())
        study.learn([request for one in techniques for layer in layers for request in one.requests(study, layer)])
    return study


Pick = Callable[[Sequence[Option]], Option | None]


def applied(
    technique: Technique, study: Study, pick: Pick = lambda options: options[0]
) -> tuple[onnx_ir.Model, Sequence[Leftover]]:
    """The study's model with an option of every layer."""
    copy = study.model.clone()
    rewriter, nodes = Rewriter(copy), list(copy.graph)
    places = {node: index for index, node in enumerate(study.model.graph)}
    chosen = []
    for index, layer in enumerate(study.layers):
        options = technique.propose(study, layer)
        option = None if isinstance(options, str) else pick(options)
        if option is not None:
            chosen.append(Choice(index, layer.on(nodes[places[layer.node]]), option))
    technique.apply(rewriter, study, chosen)
    return copy, technique.settle(rewriter, study)


def test_a_network_of_fused_convolutions():
    study, technique = study_of(CNN, {"x": IMAGES}), StaticInt8()
    assert technique.why_not(study) is None and len(study.layers) == 3
    before = study.model.clone()
    result, left = applied(technique, study)
    assert left == ()
    wanted = {"QLinearConv": 2, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1}
    assert ops(result) == {**wanted, "Flatten": 1, "QuantizeLinear": 1}
    assert verify_structure(result) == [] and not Interface.of(CNN).differences(Interface.of(result))
    assert ops(study.model) == ops(before), "the study's model is not touched"
    unseen = {"x": np.random.default_rng(9).standard_normal((4, 8, 10, 10)).astype(np.float32)}
    assert error(run(result, unseen)[0], run(CNN, unseen)[0]) < 0.02
    sizes = [v.const_value.nbytes for v in result.graph.initializers.values()]
    assert sum(sizes) < 0.3 * sum(v.const_value.nbytes for v in CNN.graph.initializers.values())


def test_it_is_more_precise_than_rounding_to_nearest_between_extremes():
    study, unseen = study_of(CNN, {"x": IMAGES}), {"x": draw(4, 8, 10, 10, seed=7)}
    ours, _ = applied(StaticInt8(), study)
    plain, _ = quantized(study.model, {"x": IMAGES})
    expected = run(CNN, unseen)[0]
    assert error(run(ours, unseen)[0], expected) < 0.8 * error(run(plain, unseen)[0], expected)


def test_some_layers_only():
    """What is not chosen stays in floats, with Q and DQ at the borders and nowhere else."""
    study, technique = study_of(CNN, {"x": IMAGES}), StaticInt8()
    second = study.layers[1]

    def pick(options: Sequence[Option]) -> Option | None:
        return options[0] if options[0] == technique.propose(study, second)[0] else None

    result, left = applied(technique, study, pick)
    assert left == ()
    counted = ops(result)
    assert counted["QLinearConv"] == 1 and counted["QuantizeLinear"] == 1 and counted["DequantizeLinear"] == 1
    assert counted["Conv"] == 1 and counted["Gemm"] == 1 and counted["Add"] == 1
    assert error(run(result, {"x": IMAGES})[0], run(CNN, {"x": IMAGES})[0]) < 0.02


def test_the_error_of_a_layer_is_that_of_its_output():
    """One layer between floats: what was predicted from rows is what a run finds."""
    model = parse("g (float[N, 96] x) => (float[N, 64] y) { y = MatMul (x, w) }", {"w": draw(96, 64)})
    data = {"x": draw(64, 96, seed=2)}
    study, technique = study_of(model, data), StaticInt8()
    (option, *_) = technique.propose(study, study.layers[0])
    result, _ = applied(technique, study)
    seen = {"x": data["x"][np.arange(64) % 4 != 3]}  # the others are held out
    assert option.judge() == pytest.approx(error(run(result, seen)[0], run(model, seen)[0]), rel=0.05)


def test_trials_are_chains_of_integers():
    study, technique = study_of(CNN, {"x": IMAGES}), StaticInt8()
    kinds = {}
    for layer in study.layers:
        (option, *_) = technique.propose(study, layer)
        trial = option.trial()
        assert study.run(trial)["y"].shape[0] == trial.feeds["x"].shape[0]
        assert "Transpose" not in kernels(trial.model, layouts=True), "it is timed in the layout that chains have"
        kinds[layer.node.op_type] = (ops(trial.model), trial.feeds["x"].dtype)
    assert kinds["Conv"] == ({"QLinearConv": 1, "Identity": 1}, np.uint8)
    assert kinds["Gemm"] == ({"QuantizeLinear": 1, "QGemm": 1, "Identity": 1}, np.float32)


@pytest.mark.parametrize("data", [None, {"x": IMAGES}])
def test_without_calibration_data_it_is_not_offered(data):
    reason = StaticInt8().why_not(study_of(CNN, data))
    assert (reason is None) == (data is not None)
    assert reason is None or "--calib" in reason


def test_why_not_on_gpus_without_kernels():
    study = study_of(CNN, {"x": IMAGES})
    cuda = dataclasses.replace(study, target=builtin_targets()["cuda"])
    assert "no integer kernels" in StaticInt8().why_not(cuda)


# -- SmoothQuant ------------------------------------------------------------------------------------------------------

OUTLIERS = RANDOM.standard_normal((4096, 128)).astype(np.float32)
SCALE = np.ones(128, np.float32)
SCALE[[3, 40, 77]] = 60.0
NORMED = "g (float[N, 128] x) => (float[N, 64] y{more}) {{ n = LayerNormalization (x, s, o) y = MatMul (n, w) {also} }}"
WEIGHTS = {"s": SCALE, "o": draw(128) / 10, "w": draw(128, 64) / 11}


def _smoothest(options: Sequence[Option]) -> Option:
    return min(options, key=lambda option: option.judge())


@pytest.mark.parametrize(
    ("more", "also", "products"),
    [("", "", 0), (", float[N, 128] z", "z = Relu (n)", 1)],
    ids=["folded into the norm", "divided by a product of its own"],
)
def test_outlier_channels_are_smoothed(more, also, products):
    model = parse(NORMED.format(more=more, also=also), WEIGHTS)
    study, technique = study_of(model, {"x": OUTLIERS}), StaticInt8()
    options = technique.propose(study, study.layers[0])
    assert [option.label for option in options] == [PLAIN, SMOOTH]
    assert options[1].judge() < options[0].judge() / 3
    result, left = applied(technique, study, _smoothest)
    assert left == () and ops(result)["Mul"] == products
    unseen = {"x": draw(64, 128, seed=4)}
    for got, want in zip(run(result, unseen), run(model, unseen), strict=True):
        assert error(got, want) < 2 * options[1].judge() + 1e-6


def test_even_channels_are_left_alone():
    model = parse(NORMED.format(more="", also=""), {**WEIGHTS, "s": np.ones(128, np.float32)})
    study, technique = study_of(model, {"x": OUTLIERS}), StaticInt8()
    options = technique.propose(study, study.layers[0])
    assert len(options) == 1 or options[1].judge() > options[0].judge() / 2


@pytest.mark.parametrize("also", ["", "z = Relu (n)"])
def test_dynamic_int8_is_smoothed_as_well(also):
    """The same outliers, and the same two ways to get rid of them, without any range that is fixed."""
    model = parse(NORMED.format(more=", float[N, 128] z" if also else "", also=also), WEIGHTS)
    study = study_of(model, {"x": OUTLIERS})
    technique = DynamicInt8()
    options = {option.label: option for option in technique.propose(study, study.layers[0])}
    errors = {label: options[label].judge() for label in ("dynamic-int8", "dynamic-int8-smooth")}
    assert errors["dynamic-int8-smooth"] < errors["dynamic-int8"] / 3
    result, left = applied(technique, study, lambda found: options["dynamic-int8-smooth"])
    assert left == () and ops(result)["Mul"] == bool(also) and ops(result)["DynamicQuantizeMatMul"] == 1
    unseen = {"x": draw(64, 128, seed=4)}
    assert error(run(result, unseen)[0], run(model, unseen)[0]) < 2 * errors["dynamic-int8-smooth"]


def test_dynamic_int8_is_not_smoothed_by_drawn_inputs():
    model = parse(NORMED.format(more="", also=""), WEIGHTS)
    study, technique = study_of(model, None), DynamicInt8()
    study.learn([request for layer in study.layers for request in technique.requests(study, layer)])
    assert "dynamic-int8-smooth" not in [option.label for option in technique.propose(study, study.layers[0])]


def test_few_rows_are_not_smoothed_by():
    """Every channel would be fitted to the largest of a few numbers, and clipped for other inputs."""
    model = parse(NORMED.format(more="", also=""), WEIGHTS)
    study = study_of(model, {"x": OUTLIERS[:16]})
    for technique in (StaticInt8(), DynamicInt8()):
        labels = [option.label for option in technique.propose(study, study.layers[0])]
        assert labels and not any("smooth" in label for label in labels)


def test_biases_are_shifted_by_what_is_certain():
    rng = np.random.default_rng(0)
    noise, offset = rng.standard_normal((400, 50)), np.where(np.arange(50) < 25, 3.0, 0.0)
    shift = certain_mean(noise + offset)
    assert np.abs(shift[:25] - 3).max() < 0.2
    assert np.abs(shift[25:]).mean() < 0.6 * np.abs(noise[:, 25:].mean(axis=0)).mean()
    assert not certain_mean(np.ones((1, 4))).any() and np.allclose(certain_mean(np.ones((2, 4))), 1)
