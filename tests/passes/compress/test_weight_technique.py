"""Weight-only options in the search: their errors are those of the layers, and what is written is what was proposed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_ir
import pytest

from optc.backends import ort_kernels
from optc.ir.model import load
from optc.ir.rewriter import Rewriter
from optc.ir.targets import builtin_targets
from optc.measure import Measure
from optc.options import Options
from optc.passes.compress.layers import weighted_layers
from optc.passes.compress.techniques import Choice, Option, Study, relative, rows_request, single_layer
from optc.passes.compress.weights.technique import WeightOnly
from optc.passes.compress.weights.writing import product
from optc.progress import Silent
from optc.statistics import Collector
from tests.passes.compress.texts import parse

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "w1": RANDOM.standard_normal((128, 256)) / 11,
    "b1": RANDOM.standard_normal(256),
    "w2": RANDOM.standard_normal((128, 256)) / 16,
    "one": RANDOM.standard_normal((128, 64, 1, 1)) / 8,
    "three": RANDOM.standard_normal((64, 64, 3, 3)) / 24,
}
BODY = """g (float[B, 64, H, W] x) => (float[R, 128] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, three) b = Conv(a, one) t = Transpose<perm = [0, 2, 3, 1]>(b)
    shape = Constant<value = int64[2] {-1, 128}>() flat = Reshape(t, shape)
    c = Gemm(flat, w1, b1) r = Relu(c) y = Gemm<transB = 1>(r, w2)
}"""
#: Channels that move together: what GPTQ lives on.
X = np.repeat(RANDOM.standard_normal((2, 16, 9, 9)), 4, axis=1).astype(np.float32)


def model() -> onnx_ir.Model:
    parsed = parse(BODY, {name: array.astype(np.float32) for name, array in WEIGHTS.items()})
    for number, node in enumerate(parsed.graph):
        node.name = node.name or f"node{number}"
    return load(parsed)


def study_of(calib: Mapping[str, np.ndarray] | None) -> Study:
    given, target = model(), builtin_targets()["cpu"]
    options = Options.of(calib=calib, shapes={"B": 1, "H": 9, "W": 9})
    measure = Measure(given, target, options)
    facts = Rewriter(given).facts
    layers = list(weighted_layers(given.graph, facts))
    return Study(given, facts, layers, target, measure, ort_kernels, Collector(measure, options, Silent()))


def learned(study: Study, technique: WeightOnly) -> Study:
    """The study with what the technique wants to know."""
    wanted = [request for layer in study.layers for request in technique.requests(study, layer)]
    study.learn([*wanted, *(rows_request(layer) for layer in study.layers if layer.kind == "matmul")])
    return study


@pytest.fixture(scope="module")
def informed() -> tuple[Study, WeightOnly, list[object]]:
    technique = WeightOnly()
    study = learned(study_of({"x": X}), technique)
    return study, technique, [technique.propose(study, layer) for layer in study.layers]


def test_layers_have_options_or_a_reason(informed: tuple[Study, WeightOnly, list[object]]) -> None:
    study, technique, proposed = informed
    assert technique.why_not(study) is None
    wide, pixels, first, second = proposed
    assert isinstance(wide, str) and "1x1" in wide
    labels = ["int4-gptq-g32", "int4-gptq-g128", "int8-gptq-g128"]
    for options in (first, second, pixels):
        assert isinstance(options, list) and [option.label for option in options] == labels
        options = [option.judged() for option in options]
        assert options[0].error < options[1].error and options[2].error < 0.5 * options[0].error
    assert [option.bytes for option in first] == [16384 + 4096, 16384 + 1024, 32768 + 1024]


def test_without_data_weights_are_rounded(informed: tuple[Study, WeightOnly, list[object]]) -> None:
    technique = WeightOnly()
    study = learned(study_of(None), technique)
    blind = technique.propose(study, study.layers[2])
    assert not isinstance(blind, str) and blind[0].label == "int4-mse-g32"
    known = informed[2][2]
    assert isinstance(known, list) and known[0].judged().error < blind[0].judged().error


def test_the_error_is_that_of_the_layer(informed: tuple[Study, WeightOnly, list[object]]) -> None:
    study, technique, proposed = informed
    layer, options = study.layers[2], proposed[2]
    assert isinstance(options, list)
    x = study.rows(layer)
    assert x is not None
    for option in options:
        codes = technique._quantized(study, layer, option.label)
        form = technique._form(study, layer, technique._labels(study)[option.label])
        assert not isinstance(form, str)
        emit = partial(product, codes=codes, form=form, name="weight")
        actual = study.measure.open(single_layer(["rows", layer.rows], emit)).run({"x": x})["y"]
        assert relative(actual, x @ layer.matrix(study.facts)) == pytest.approx(
            option.judged().error, rel=0.25, abs=2e-3
        )


def test_what_is_chosen_is_written(informed: tuple[Study, WeightOnly, list[object]]) -> None:
    study, technique, proposed = informed
    copy = study.model.clone()
    rewriter, nodes = Rewriter(copy), list(copy.graph)
    positions = {node: index for index, node in enumerate(study.model.graph)}
    chosen = []
    for index, options in enumerate(proposed):
        if isinstance(options, list):
            option = options[-1]
            assert isinstance(option, Option)
            layer = study.layers[index]
            chosen.append(Choice(index, layer.on(nodes[positions[layer.node]]), option))
    technique.apply(rewriter, study, chosen)
    assert list(technique.settle(rewriter, study)) == []
    kinds = [node.op_type for node in copy.graph]
    assert kinds.count("MatMulNBits") == 3 and kinds.count("Conv") == 1 and "Gemm" not in kinds
    before, after = (study.measure.open(one).run({"x": X})["y"] for one in (study.model, copy))
    assert 0 < relative(after, before) < 0.03


def test_weights_that_changed_meanwhile_are_quantized_anew(informed: tuple[Study, WeightOnly, list[object]]) -> None:
    study, technique, proposed = informed
    copy = study.model.clone()
    rewriter, nodes = Rewriter(copy), list(copy.graph)
    positions = {node: index for index, node in enumerate(study.model.graph)}
    layer = study.layers[2]
    there = layer.on(nodes[positions[layer.node]])
    doubled = rewriter.constant(2 * there.by_output(rewriter.facts).T, "w1_doubled")
    rewriter.set_input(there.node, 1, doubled)
    before = study.measure.open(copy).run({"x": X})["y"]
    options = proposed[2]
    assert isinstance(options, list)
    technique.apply(rewriter, study, [Choice(2, there, options[-1])])
    assert relative(study.measure.open(copy).run({"x": X})["y"], before) < 0.02


def test_a_runtime_without_kernels_is_a_reason() -> None:
    study = study_of(None)
    study.kernels = None
    assert WeightOnly().why_not(study)
    assert WeightOnly("triton").why_not(study_of(None))
