"""What can be wrong with a command: one plain message, an exit code, and nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from onnx import TensorProto, helper


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path: Path):
    """No test of this file may change a file that was there, or leave a new one."""
    yield
    left = {path.name for path in tmp_path.rglob("*")} - KNOWN
    assert not left, f"left behind: {left}"


KNOWN = {"vit.onnx", "cnn.onnx", "calib.npz", "bad.onnx", "bad.npz", "w.bin", "sub", "locked", "outside.bin", "mm.py"}


def tiny(nodes=None, *, initializers=(), outputs=("y",)) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes or [helper.make_node("Relu", ["x"], ["y"], name="n")],
        "g",
        [value("x", TensorProto.FLOAT, [4])],
        [value(name, TensorProto.FLOAT, [4]) for name in outputs],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def external(location: str, length: int) -> onnx.ModelProto:
    tensor = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=text)
    return tiny([helper.make_node("Add", ["x", "w"], ["y"], name="n")], initializers=[tensor])


def test_a_missing_file(cli) -> None:
    done = cli("none.onnx")
    assert "none.onnx: no such file" in done.message and done.code == 1


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "the file is empty"),
        (b"hello, this is no model at all\n" * 20, "not an ONNX"),
        (b"PK\x03\x04" + bytes(100), "not an ONNX"),
    ],
)
def test_a_file_that_is_no_model(cli, tmp_path, contents, message) -> None:
    (tmp_path / "bad.onnx").write_bytes(contents)
    assert message in cli("bad.onnx").message


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_model(cli, vit, tmp_path, share) -> None:
    data = vit.read_bytes()
    (tmp_path / "bad.onnx").write_bytes(data[: int(len(data) * share)])
    assert "bad.onnx" in cli("bad.onnx").message


def test_a_folder_instead_of_a_model(cli, tmp_path) -> None:
    (tmp_path / "sub").mkdir()
    assert "folder" in cli("sub").message


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny([helper.make_node("Add", ["x", "nowhere"], ["y"], name="lost")]), "nowhere"),
        (tiny(outputs=("y", "z")), "'z'"),
        (tiny([helper.make_node("Relu", ["x", "x"], ["y"], name="greedy")]), "greedy"),
        (
            tiny([helper.make_node("Add", ["x", "b"], ["a"], name="n1"), helper.make_node("Relu", ["a"], ["b"])]),
            "",
        ),
    ],
    ids=["undefined input", "undefined output", "too many inputs", "cycle"],
)
def test_an_invalid_graph(cli, tmp_path, model, message) -> None:
    onnx.save(model, tmp_path / "bad.onnx")
    said = cli("bad.onnx").message
    assert "bad.onnx" in said and message in said


def test_external_data_that_is_missing_short_or_outside(cli, tmp_path) -> None:
    onnx.save(external("w.bin", 16), tmp_path / "bad.onnx")
    assert "missing" in cli("bad.onnx").message
    (tmp_path / "w.bin").write_bytes(bytes(8))
    assert "too short" in cli("bad.onnx").message
    (tmp_path / "w.bin").unlink()
    (tmp_path / "sub").mkdir()
    onnx.save(external("../outside.bin", 16), tmp_path / "sub" / "bad.onnx")
    (tmp_path / "outside.bin").write_bytes(bytes(16))
    assert "not allowed" in cli("sub/bad.onnx").message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-O9",), "levels are -O0 to -O3"),
        (("-Ofast",), "-O"),
        (("--target=a1000",), "did you mean a100"),
        (("--backend=onnxruntim",), "did you mean onnxruntime"),
        (("--backend=triton",), "--target=a100"),
        (("--passes", "fuze"), "did you mean fuse"),
        (("--passes", "fixpoint(dce"), "')' is missing"),
        (("--passes", "dce{speed=9}"), "no option 'speed'"),
        (("--skip", "fuze"), "did you mean fuse"),
        (("--verify", "sometimes"), "--verify"),
        (("--max-error", "7"), "between 0 and 1"),
        (("--metric", "mm:f"), "--max-drop"),
        (("--dim", "batch"), "NAME=SIZE"),
        (("--dim", "batch=many"), "NAME=SIZE"),
        (("--dim", "nothing=2"), "'nothing'"),
        (("--shape", "image=1,2"), "2 sizes"),
        (("--shape", "image=1,3,8,8"), "dim 1 is fixed at 1"),
        (("--shape", "batch=8..1"), "the range ends at 1, before it begins"),
        (("--shape", "batch=-1..8"), "neither a size nor a range"),
        (("--shape", "batch=1..8,nothing=1..4"), "'nothing'"),
        (("--shape", "batch=1..8,batch=1..4"), "dim 'batch' is 1..8 elsewhere"),
        (("--shape", "image=1,1..2,8,8"), "dim 1 is fixed at 1"),
        (("--no-such-option",), "--no-such-option"),
        (("another.onnx",), "another.onnx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_that_makes_no_sense(cli, vit, options, message) -> None:
    done = cli(vit, *options)
    assert message in done.message
    assert done.code in (1, 2)


def test_no_model_at_all(cli) -> None:
    assert "MODEL" in cli("-O2").message


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": np.zeros((2, 1, 8, 8), np.float32)}, "'pixels' is not an input"),
        ({"image": np.zeros((2, 1, 8, 9), np.float32)}, "dim 3 of 'image' is 9"),
        ({"image": np.zeros((8, 8), np.float32)}, "2 dims"),
        ({"image": np.zeros((2, 1, 8, 8), np.complex64)}, "complex64"),
        ({}, "no samples"),
        (None, "no such file"),
        (b"not a zip file", "bad.npz"),
    ],
    ids=["name", "dim", "rank", "type", "empty", "missing", "garbage"],
)
def test_calibration_data_that_does_not_fit(cli, vit, tmp_path, arrays, message) -> None:
    if isinstance(arrays, bytes):
        (tmp_path / "bad.npz").write_bytes(arrays)
    elif arrays is not None:
        np.savez(tmp_path / "bad.npz", **arrays)
    for command in ((vit, "-O3", "--calib", "bad.npz"), ("run", vit, "--input", "bad.npz")):
        assert message in cli(*command).message


def test_a_metric_that_cannot_be_found_or_fails(cli, vit, calib, tmp_path) -> None:
    options = (vit, "-O3", "--calib", calib, "--max-drop", "1%", "--metric")
    assert "cannot import" in cli(*options, "no_such_module:f").message
    assert "module:function" in cli(*options, "no_such_module").message


def test_an_output_that_cannot_be_written(cli, vit, tmp_path) -> None:
    assert "does not exist" in cli(vit, "-o", "nowhere/out.onnx").message
    (tmp_path / "sub").mkdir()
    assert "folder" in cli(vit, "-o", "sub").message
    assert "does not exist" in cli(vit, "-o", "out.onnx", "--report", "nowhere/r.json").message
    assert "replace the model" in cli(vit, "-o", "out.onnx", "--report", vit).message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(cli, vit, tmp_path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "not writable" in cli(vit, "-o", "locked/out.onnx").message


def test_the_same_message_with_a_traceback_on_request(cli, tmp_path) -> None:
    done = cli("none.onnx", "-v")
    assert done.code == 1 and "Traceback" in done.err and "optc: error: none.onnx: no such file" in done.err


def test_what_nobody_foresaw_is_called_a_bug(cli, vit, monkeypatch) -> None:
    monkeypatch.setattr("optc.tools.compile.Bars.start", lambda *_: 1 // 0)
    done = cli(vit)
    assert done.code == 70
    assert "internal error: ZeroDivisionError" in done.message and "report" in done.message
