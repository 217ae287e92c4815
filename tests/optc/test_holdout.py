"""Samples in two parts: by a rule, labels with their samples; or not at all, with a reason."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.backends.base import ValueSpec
from optc.holdout import FEWEST, Holdout, hold_out
from optc.inputs import batch_dim
from optc.ir.model import load
from optc.ir.targets import builtin_targets
from optc.measure import Measure
from optc.options import Options
from optc.passes.calibration.store import Request
from optc.progress import Silent
from optc.sources import open_samples
from optc.statistics import Collector

X = ValueSpec("x", onnx_ir.DataType.FLOAT, ("batch", 2))


def rows(count: int, start: int = 0) -> np.ndarray:
    return np.stack([np.arange(start, start + count)] * 2, axis=1).astype(np.float32)


def divided(given, batched: bool = True) -> Holdout:
    return hold_out(open_samples(given, [X], labels=True), batched)


def numbers(part) -> list[list[int]]:
    return [sample["x"][:, 0].astype(int).tolist() for sample in part]


def test_every_fourth_sample_is_held_out():
    given = divided([{"x": rows(2, 10 * index)} for index in range(FEWEST)])
    assert numbers(given.judged) == [[30, 31], [70, 71], [110, 111], [150, 151]]
    assert len(given.fitted) == 12 and numbers(given.fitted)[:3] == [[0, 1], [10, 11], [20, 21]]
    assert given.why_not is None and given.what == "4 of 16 samples, held out"
    assert numbers(given.judged) == numbers(given.judged), "it can be iterated over again"


def test_few_batches_are_cut_along_the_batch():
    given = divided([{"x": rows(3)}, {"x": rows(1, 3)}, {"x": rows(13, 4)}])
    assert numbers(given.judged) == [[3], [7, 11, 15]] and len(given.judged) == 2
    assert numbers(given.fitted) == [[0, 1, 2], [4, 5, 6, 8, 9, 10, 12, 13, 14, 16]]
    assert given.what == "4 of 17 rows, held out"


@pytest.mark.parametrize(
    "given, batched, words",
    [
        ([{"x": rows(100)}], False, "1 sample is too few"),
        ([{"x": rows(5)}, {"x": rows(6)}], True, "11 samples are too few"),
        ({"x": rows(32), "y": np.arange(7)}, True, "the labels 'y' do not tell"),
        ({"x": rows(32), "y": np.float32(1)}, True, "the labels 'y' do not tell"),
    ],
)
def test_what_cannot_be_foundis_told(given, batched: bool, words: str):
    found = divided(given, batched)
    assert found.why_not is not None and words in found.why_not and not found.what
    assert found.fitted is found.judged


def test_labels_stay_with_their_samples():
    by_row = divided({"x": rows(16), "label": np.arange(16)})
    assert by_row.judged.labels["label"].tolist() == [3, 7, 11, 15] == numbers(by_row.judged)[0]
    samples = [{"x": rows(2, 2 * index), "label": np.arange(2 * index, 2 * index + 2)} for index in range(16)]
    by_sample = divided(samples)
    assert by_sample.judged.labels["label"].tolist() == [n for sample in numbers(by_sample.judged) for n in sample]
    once = divided([{"x": rows(2, 2 * index), "label": f"t{index}"} for index in range(16)])
    assert list(once.judged.labels["label"]) == ["t3", "t7", "t11", "t15"]
    assert len(once.fitted.labels["label"]) == 12


def test_digests_differ_between_the_parts():
    given = divided({"x": rows(16)})
    again = divided({"x": rows(16)})
    assert given.fitted.digest == again.fitted.digest
    assert len({given.fitted.digest, given.judged.digest, given.fitted.samples.digest}) == 3


@pytest.mark.parametrize(
    "inputs, found",
    [
        ("float[batch, 3] x", "batch"),
        ("float[N, 3] x, int64[N] y", "N"),
        ("float[b, 3] x, float[c, 3] y", None),
        ("float[nodes, 3] x, float[nodes, nodes] adjacency", None),
        ("float[batch, 3] x, float[4] y", None),
        ("float[seq, batch, 3] x", None),
        ("float[2, 3] x", None),
    ],
)
def test_the_batch_is_the_first_dim_of_every_input_and_no_other(inputs: str, found: str | None):
    text = f"g ({inputs}) => (float[r] y0) {{ y0 = Identity(x) }}"
    parsed = onnx_ir.from_onnx_text(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    assert batch_dim(parsed) == found


BODY = "g (float[N, 2] x) => (float[N, 2] y) { y = Mul(x, f) }"


def measure(**options) -> Measure:
    head = '<ir_version: 8, opset_import: ["": 17]> '
    text = BODY.replace("{", "{ f = Constant<value = float {2.0}>()", 1)
    return Measure(
        load(onnx_ir.to_proto(onnx_ir.from_onnx_text(head + text))), builtin_targets()["cpu"], Options.of(**options)
    )


def test_statistics_see_one_part_and_the_judge_the_other():
    data = rows(64)
    data[3::4] *= 100
    given = measure(calib={"x": data})
    known = Collector(given, given.options, Silent()).collect(given.original, [Request("x")])
    assert known.moments("x").absmax == data[[i for i in range(64) if i % 4 != 3]].max()
    assert [len(reference["y"]) for reference in given.references] == [16]
    assert np.array_equal(given.references[0]["y"], 2 * data[3::4])
    assert given.data == "calibration data (16 of 64 rows, held out)" and given.source == "calibration data"


def test_the_metric_sees_what_was_held_out():
    seen = []

    def metric(outputs, labels) -> float:
        seen.append((len(outputs["y"]), labels["label"].tolist()))
        return 1.0

    given = measure(calib={"x": rows(16), "label": np.arange(16)}, metric=metric, max_drop=0)
    assert given.judge(given.original).metric == 1.0
    assert set((count, *labels) for count, labels in seen) == {(4, 3, 7, 11, 15)}


def test_a_batch_whose_size_is_fixed_stays_whole():
    given = measure(calib={"x": rows(64)}, shapes={"N": 64})
    assert given.holdout.why_not is not None and len(given.references[0]["y"]) == 64
