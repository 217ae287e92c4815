"""Samples from files: every documented form is read, everything else is refused by name."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.backends.base import ValueSpec
from optc.ir.errors import DataError
from optc.samples import check_sample
from optc.sources import load_samples

IDS = ValueSpec("ids", onnx_ir.DataType.INT64, ("batch", "seq"))
MASK = ValueSpec("mask", onnx_ir.DataType.INT64, ("batch", "seq"))
IMAGE = ValueSpec("img", onnx_ir.DataType.FLOAT, (1, 3, 4, 4))


@pytest.fixture
def save(tmp_path):
    def write(name="data.npz", **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return write


def ints(*shape):
    return np.arange(int(np.prod(shape))).reshape(shape)


def test_one_sample(save):
    (sample,) = load_samples(save(ids=ints(2, 5), mask=ints(2, 5)), [IDS, MASK])
    np.testing.assert_array_equal(sample["ids"], ints(2, 5))
    assert list(sample) == ["ids", "mask"]


def test_a_stack(save):
    samples = load_samples(save(ids=ints(4, 2, 5), mask=ints(4, 2, 5)), [IDS, MASK])
    assert len(samples) == 4
    np.testing.assert_array_equal(samples[3]["ids"], ints(4, 2, 5)[3])


def test_a_stack_along_a_fixed_first_dim(save):
    samples = load_samples(save(img=np.ones((6, 3, 4, 4))), [IMAGE])
    assert [sample["img"].shape for sample in samples] == [(1, 3, 4, 4)] * 6
    assert samples[0]["img"].dtype == np.float32


def test_ragged_samples(save):
    path = save(**{"ids.0": ints(1, 3), "mask.0": ints(1, 3), "ids.10": ints(1, 7), "mask.10": ints(1, 7),
                   "ids.2": ints(1, 5), "mask.2": ints(1, 5)})  # fmt: skip
    assert [sample["ids"].shape[1] for sample in load_samples(path, [IDS, MASK])] == [3, 5, 7]


def test_a_folder(save, tmp_path):
    save("b.npz", ids=ints(1, 3), mask=ints(1, 3))
    save("a.npz", ids=ints(2, 1, 5), mask=ints(2, 1, 5))
    assert [sample["ids"].shape[1] for sample in load_samples(tmp_path, [IDS, MASK])] == [5, 5, 3]


def test_input_names_with_dots(save):
    spec = ValueSpec("x.1", onnx_ir.DataType.FLOAT, ("n",))
    (sample,) = load_samples(save(**{"x.1": np.ones(3)}), [spec])
    assert sample["x.1"].shape == (3,)


def test_strings(save):
    spec = ValueSpec("s", onnx_ir.DataType.STRING, ("n",))
    (sample,) = load_samples(save(s=np.array(["a", "Zoë"])), [spec])
    assert sample["s"].dtype == object
    assert list(sample["s"]) == ["a", "Zoë"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": ints(2, 5)}, "'mask' is missing"),
        ({"ids": ints(2, 5), "mask": ints(2, 5), "nope": ints(1)}, "'nope' is not an input"),
        ({"ids": ints(2, 5), "mask": ints(2, 6)}, r"dim 1 of 'mask' is 6 and dim 1 of 'ids' is 5, but both are 'seq'"),
        ({"ids": ints(5), "mask": ints(5)}, r"'ids' has 1 dims \[5\], but the model takes 2"),
        ({"ids": ints(2, 5), "mask": np.ones((2, 5))}, "'mask' is float64, but the model takes int64"),
        ({"ids": ints(3, 2, 5), "mask": ints(4, 2, 5)}, "'ids' has 3, 'mask' has 4"),
        ({"ids.0": ints(2, 5), "mask": ints(2, 5)}, r"some inputs are numbered and others are not \(mask\)"),
        ({"ids.0": ints(2, 5), "mask.1": ints(2, 5)}, "'mask' is missing"),
        ({"ids": ints(0, 2, 5), "mask": ints(0, 2, 5)}, "holds no samples"),
    ],
)
def test_what_does_not_fit_is_named(save, arrays, message):
    path = save(**arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_samples(path, [IDS, MASK])
    assert str(path) in caught.value.where


def test_fixed_dims(save):
    with pytest.raises(DataError, match=r"dim 1 of 'img' is 4, but the model takes 3"):
        load_samples(save(img=np.ones((1, 4, 4, 4))), [IMAGE])


def test_narrower_integers_are_widened_but_nothing_is_lost(save):
    (sample,) = load_samples(save(ids=ints(1, 3).astype(np.int8), mask=ints(1, 3)), [IDS, MASK])
    assert sample["ids"].dtype == np.int64
    small = ValueSpec("x", onnx_ir.DataType.INT8, ("n",))
    with pytest.raises(DataError, match="holds values that int8 cannot hold"):
        check_sample({"x": np.array([300])}, [small])


def test_bfloat16_is_made_from_floats():
    spec = ValueSpec("x", onnx_ir.DataType.BFLOAT16, ("n",))
    assert str(check_sample({"x": np.ones(2, np.float32)}, [spec])["x"].dtype) == "bfloat16"


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_files_that_are_no_archive(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not an \.npz file"):
        load_samples(path, [IDS])


def test_missing_files_single_arrays_pickles_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_samples(tmp_path / "none.npz", [IDS])
    np.save(tmp_path / "one.npy", ints(3))
    with pytest.raises(DataError, match="a single array without a name"):
        load_samples(tmp_path / "one.npy", [IDS, MASK])
    np.savez(tmp_path / "pickle.npz", ids=np.array([{"a": 1}], object))
    with pytest.raises(DataError, match="pickles are refused"):
        load_samples(tmp_path / "pickle.npz", [IDS])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.npz files"):
        load_samples(tmp_path / "empty", [IDS])
