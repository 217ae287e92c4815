"""Calibration data from everywhere: what it gives, that it streams, and what is said of data that does not fit."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import onnx_ir
import pytest

from optc.backends.base import ValueSpec
from optc.ir.errors import DataError, UsageError
from optc.sources import open_samples

IDS = ValueSpec("ids", onnx_ir.DataType.INT64, ("batch", "seq"))
MASK = ValueSpec("mask", onnx_ir.DataType.FLOAT, ("batch", "seq"))
IMAGE = ValueSpec("img", onnx_ir.DataType.FLOAT, (1, 3, 4, 4))
SPECS = [IDS, MASK]


def text(length: int, batch: int | None = 1, start: int = 0) -> dict[str, np.ndarray]:
    shape = (length,) if batch is None else (batch, length)
    return {"ids": np.full(shape, start), "mask": np.ones(shape, np.float32)}


def lengths(samples) -> list[int]:
    return [sample["ids"].shape[1] for sample in samples]


class Yielding:
    """Counts how often it is iterated over."""

    def __init__(self, count: int) -> None:
        self.count, self.rounds = count, 0

    def __iter__(self):
        self.rounds += 1
        return (text(3 + index, None) for index in range(self.count))


# kinds -------------------------------------------------------------------------------------------------------------


def test_iterables_are_asked_again_and_generators_are_kept() -> None:
    again = Yielding(4)
    samples = open_samples(again, SPECS)
    assert len(samples) == 4 and lengths(samples) == lengths(samples) == [3, 4, 5, 6] and again.rounds == 3
    once = open_samples(iter(Yielding(4)), SPECS)
    assert lengths(once) == lengths(once) == [3, 4, 5, 6]
    assert once.digest == samples.digest == open_samples([*Yielding(4)], SPECS).digest
    assert samples.digest != open_samples(Yielding(5), SPECS).digest
    assert lengths(samples.first(2)) == [3, 4]


def test_what_is_kept_comes_back_as_it_was() -> None:
    specs = [
        ValueSpec("s", onnx_ir.DataType.STRING, ("n",)),
        ValueSpec("b", onnx_ir.DataType.BFLOAT16, ("n",)),
        ValueSpec("file", onnx_ir.DataType.BOOL, ()),
    ]
    given = {"s": np.array(["a", "Zoë"]), "b": np.array([1, 2], ml_dtypes.bfloat16), "file": np.array(True)}
    (sample,) = open_samples(iter([given]), specs)
    assert sample["s"].dtype == object and sample["s"].tolist() == ["a", "Zoë"]
    assert sample["b"].dtype == ml_dtypes.bfloat16 and sample["b"].tolist() == [1, 2]
    assert sample["file"].dtype == bool and sample["file"]


def test_rows_of_a_data_set_get_the_batch_dim_that_they_lack() -> None:
    rows = [{"ids": [1, 2, 3], "mask": [1.0, 1.0, 0.0]}, {"ids": [[4, 5]], "mask": [[1.0, 1.0]]}]
    first, second = open_samples(rows, SPECS)
    assert first["ids"].tolist() == [[1, 2, 3]] and second["ids"].tolist() == [[4, 5]]
    fixed = ValueSpec("x", onnx_ir.DataType.FLOAT, (2, 3))
    with pytest.raises(DataError, match="'x' has 1 dims"):
        open_samples([{"x": np.ones(3, np.float32)}], [fixed])


def test_functions(tmp_path, monkeypatch) -> None:
    (tmp_path / "calibration_functions.py").write_text(
        "import numpy as np\n"
        "def yields():\n"
        "    for n in (2, 3):\n"
        "        yield {'ids': np.ones((1, n), int), 'mask': np.ones((1, n), 'f')}\n"
        "def returns(): return list(yields())\n"
        "def stack(): return {'ids': np.ones((5, 1, 2), int), 'mask': np.ones((5, 1, 2), 'f')}\n"
        "def number(): return 3\n"
        "def fails():\n"
        "    yield from yields()\n"
        "    raise KeyError('page')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert lengths(open_samples("calibration_functions:yields", SPECS)) == [2, 3]
    assert lengths(open_samples("calibration_functions:returns", SPECS)) == [2, 3]
    assert lengths(open_samples("calibration_functions:stack", SPECS)) == [2] * 5
    with pytest.raises(DataError, match="returned int") as caught:
        open_samples("calibration_functions:number", SPECS)
    assert caught.value.where == "calibration_functions:number"
    with pytest.raises(DataError, match="raised KeyError: 'page'"):
        open_samples("calibration_functions:fails", SPECS)
    with pytest.raises(UsageError, match="cannot import"):
        open_samples("calibration_functions:nothing", SPECS)
    assert lengths(open_samples(lambda: Yielding(2), SPECS)) == [3, 4]


def test_folders_of_npy_files(tmp_path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(8).reshape(4, 1, 2))
    np.save(tmp_path / "mask.npy", np.ones((4, 1, 2), np.float32))
    samples = open_samples(tmp_path, SPECS)
    assert [sample["ids"].tolist() for sample in samples] == [[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]
    np.save(tmp_path / "label.npy", np.arange(4))
    with pytest.raises(DataError, match="'label' is not an input"):
        open_samples(tmp_path, SPECS)
    assert open_samples(tmp_path, SPECS, labels=True).labels["label"].tolist() == [0, 1, 2, 3]
    np.savez(tmp_path / "more.npz", ids=np.ones((1, 2)))
    with pytest.raises(DataError, match=r"both .npz and .npy"):
        open_samples(tmp_path, SPECS)


def test_npy_files_of_a_model_with_one_input(tmp_path) -> None:
    for name, count in (("b", 2), ("a", 1)):
        np.save(tmp_path / f"{name}.npy", np.full((count, 3, 4, 4), count, np.float32))
    samples = open_samples(tmp_path, [IMAGE])
    assert [float(sample["img"].max()) for sample in samples] == [1, 2, 2]
    assert len(open_samples(tmp_path / "b.npy", [IMAGE])) == 2
    with pytest.raises(DataError, match="a single array without a name"):
        open_samples(tmp_path / "b.npy", SPECS)


# labels ------------------------------------------------------------------------------------------------------------


def test_labels(tmp_path) -> None:
    rows = [{**text(3, None), "label": index} for index in range(4)]
    assert open_samples(rows, SPECS, labels=True).labels["label"].tolist() == [0, 1, 2, 3]
    batches = [{**text(3, 2), "label": np.array([index, 9])} for index in range(2)]
    assert open_samples(iter(batches), SPECS, labels=True).labels["label"].tolist() == [0, 9, 1, 9]
    spans = [{**text(3, None), "span": np.arange(2 + index)} for index in range(2)]
    assert [each.tolist() for each in open_samples(spans, SPECS, labels=True).labels["span"]] == [[[0, 1]], [[0, 1, 2]]]
    with pytest.raises(DataError, match="'label' is not an input") as caught:
        open_samples(rows, SPECS)
    assert caught.value.where == "calibration data, sample 0"
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", **text(3), label=np.array([ord(name)]))
    assert open_samples(tmp_path, SPECS, labels=True).labels["label"].tolist() == [97, 98]


# streaming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "compressed", "npy", "fixed"])
def test_files_are_never_in_memory_as_a_whole(tmp_path, kind) -> None:
    spec = ValueSpec("x", onnx_ir.DataType.FLOAT, (1 if kind == "fixed" else "n", 4096))
    stack = np.random.default_rng(0).standard_normal((512, 1, 4096)).astype(np.float32)  # 8 MiB
    path = tmp_path / ("data.npy" if kind == "npy" else "data.npz")
    arrays = stack[:, 0] if kind == "fixed" else stack
    if kind == "npy":
        np.save(path, arrays)
    else:
        (np.savez_compressed if kind == "compressed" else np.savez)(path, x=arrays)
    tracemalloc.start()
    try:
        samples = open_samples(path, [spec])
        assert len(samples) == 512
        for index, sample in enumerate(samples):
            if index in (0, 511):
                np.testing.assert_array_equal(sample["x"], stack[index])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_arrays_in_fortran_order(tmp_path) -> None:
    stack = np.arange(24.0, dtype=np.float32).reshape(4, 1, 6)
    np.savez(tmp_path / "x.npz", x=np.asfortranarray(stack))
    found = [sample["x"] for sample in open_samples(tmp_path / "x.npz", [ValueSpec("x", IMAGE.dtype, ("n", 6))])]
    np.testing.assert_array_equal(found, stack)


# what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, words",
    [(np.nan, "1 NaN of 10 values"), (np.inf, "1 infinite of 10 values"), (-np.inf, "1 infinite of 10 values")],
)
def test_numbers_that_are_not_finite_are_found_where_they_are(tmp_path, value, words) -> None:
    mask = np.ones((3, 2, 5), np.float32)
    mask[2, 1, 1] = value
    np.savez(tmp_path / "odd.npz", ids=np.ones((3, 2, 5), int), mask=mask)
    with pytest.raises(DataError, match=f"'mask' holds {words}") as caught:
        open_samples(tmp_path / "odd.npz", SPECS)
    assert caught.value.where == f"{tmp_path / 'odd.npz'}, sample 2"


@pytest.mark.parametrize(
    "given, message",
    [
        ([], "no samples"),
        ({"ids": np.ones((0, 1, 3), int), "mask": np.ones((0, 1, 3), "f")}, "no samples"),
        ([text(3), {"ids": np.ones((1, 3), int)}], "'mask' is missing"),
        ([{**text(3), "mask": np.ones((1, 4), np.float32)}], "dim 1 of 'mask' is 4 and dim 1 of 'ids' is 3"),
        ([{**text(3), "ids": np.ones((1, 3))}], "'ids' is float64, but the model takes int64"),
        ([{**text(3), "ids": [[1, 2], [3]]}], "'ids' is no array"),
        ([np.ones((1, 3))], "a sample is a dict of arrays by input name, not ndarray"),
        ([3], "a sample is a dict"),
        (3, "data cannot be int"),
        ("nowhere.npz", "no such file"),
    ],
)
def test_what_does_not_fit_is_said(given, message) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_samples(given, SPECS)
    assert caught.value.where
