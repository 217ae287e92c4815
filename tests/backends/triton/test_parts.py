"""Models of which not all can be compiled: parts for kernels, parts for ONNX Runtime, and what goes between them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("triton")

from optc.backends.ort import Session
from optc.backends.triton.backend import TritonBackend
from optc.backends.triton.parts import PartsRunner, read_parts
from optc.backends.triton.parts_build import build_parts, split
from optc.ir.errors import BackendError, DataError
from optc.ir.saving import save
from optc.ir.targets import builtin_targets
from optc.tools import inspect
from optc.tools.cli import main

from .models import model

TARGETS = [builtin_targets()["a100"]]
#: A product, what no kernel computes (a loop over the rows), and a product with that and with something from before.
BETWEEN = """
<ir_version: 8, opset_import: ["": 17]>
between (float[B,8] x, float[8,16] w_1, float[16,4] w_2) => (float[B,4] y, int64[1,K] where)
<float zero = {0}, int64 rounds = {3}, bool go = {1}>
{
    [first] h = MatMul (x, w_1)
    [relu] r = Relu (h)
    [loop] looped = Loop (rounds, go, r) <
        body = body (int64 i, bool c, float[B,16] s) => (bool again, float[B,16] t)
        {
            [inner] t = Mul (s, r)
            [keep] again = Identity (c)
        }
    >
    [sum] total = Add (looped, r)
    [second] y = MatMul (total, w_2)
    [rows] flat = ReduceSum <keepdims = 0> (r, w_axes)
    [find] where = NonZero (flat)
}
"""


def between(seed: int = 0):
    return model(BETWEEN.replace("<float zero", "<int64[1] w_axes = {1}, float zero"), seed)


def compiled(source, out: Path) -> PartsRunner:
    build_parts(source, TARGETS, out, {}, None)
    runner = TritonBackend().open(out, device="interpreter")
    assert isinstance(runner, PartsRunner)
    return runner


def test_parts_are_as_few_as_the_order_allows():
    pieces, why = split(between())
    assert [piece.part.compiled for piece in pieces] == [True, False, True]
    assert set(why) == {"loop", "find"}
    assert pieces[0].part.inputs == ("x",) and set(pieces[2].part.outputs) == {"y"}


@pytest.mark.parametrize("batch", [1, 5])
def test_they_compute_what_the_whole_does(batch, tmp_path):
    source = between()
    runner = compiled(source, tmp_path / "m.optc")
    feeds = {"x": np.random.default_rng(batch).normal(size=(batch, 8)).astype(np.float32)}
    wanted, found = Session(source).run(feeds), runner.run(feeds)
    assert list(found) == list(wanted) == ["y", "where"]
    np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["where"], wanted["where"])
    assert [spec.name for spec in runner.inputs] == ["x"] and str(runner.outputs[0]) == "y: float[B, 4]"


def test_inputs_of_other_types_go_past_the_kernels(tmp_path):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    words (string[N] words, float[N,8] x, float[8,4] w_1) => (string[N] same, float[N,4] y)
    {
        [copy] same = Identity (words)
        [product] m = MatMul (x, w_1)
        [relu] y = Relu (m)
    }
    """
    source = model(text)
    feeds = {"words": np.array(["a", "b"], object), "x": np.ones((2, 8), np.float32)}
    wanted, found = Session(source).run(feeds), compiled(source, tmp_path / "m.optc").run(feeds)
    assert list(found["same"]) == ["a", "b"]
    np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-5)


def test_what_is_wrong_with_the_feeds_is_said(tmp_path):
    runner = compiled(between(), tmp_path / "m.optc")
    with pytest.raises(DataError, match="missing: x"):
        runner.run({})
    with pytest.raises((DataError, BackendError), match="x"):
        runner.run({"x": np.ones((2, 9), np.float32)})


def test_built_twice_it_is_the_same(tmp_path):
    files = [build_parts(between(), TARGETS, tmp_path / name, {}, None)[0] for name in ("a.optc", "b.optc")]
    assert [file.relative_to(tmp_path / "a.optc") for file in files[0]] == [
        file.relative_to(tmp_path / "b.optc") for file in files[1]
    ]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_nothing_to_compile():
    source = model(
        '<ir_version: 8, opset_import: ["": 17]> m (string[N] x) => (string[N] y) { [copy] y = Identity (x) }'
    )
    with pytest.raises(BackendError, match="nothing of the model can be compiled"):
        split(source)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: m["parts"][0].update(path="../x"), "a part lies at"),
        (lambda m: m["parts"][0].update(runs="torch"), "its manifest cannot be read"),
        (lambda m: m["parts"].reverse(), "nothing before"),
        (lambda m: m["outputs"][0].update(name="z"), "no part makes 'z'"),
        (lambda m: m["inputs"][0].update(dtype="FLOAT7"), "FLOAT7"),
        (lambda m: m["parts"].pop(1), "no part makes|nothing before"),
        (lambda m: m.update(format=99), "format is 99"),
        (lambda m: m["files"].popitem(), None),
    ],
)
def test_damaged_manifests(change, words, tmp_path):
    out = tmp_path / "m.optc"
    build_parts(between(), TARGETS, out, {}, None)
    manifest = json.loads((out / "manifest.json").read_text())
    change(manifest)
    (out / "manifest.json").write_text(json.dumps(manifest))
    if words is None:
        assert read_parts(out).parts
        return
    with pytest.raises(BackendError, match=words):
        TritonBackend().open(out, device="interpreter")


def test_damaged_files(tmp_path):
    out = tmp_path / "m.optc"
    build_parts(between(), TARGETS, out, {}, None)
    (out / "parts/001.onnx").write_bytes(b"")
    with pytest.raises(BackendError, match=r"parts/001.onnx has 0 bytes"):
        TritonBackend().open(out, device="interpreter")


def test_inspect_shows_the_parts(tmp_path):
    out = tmp_path / "m.optc"
    build_parts(between(), TARGETS, out, {}, None)
    shown = CliRunner().invoke(inspect.command, [str(out)], catch_exceptions=False).output
    assert "parts/001.onnx" in shown and "onnxruntime" in shown and "Loop" in shown
    assert "launch" in CliRunner().invoke(inspect.command, [str(out / "parts/000")], catch_exceptions=False).output


def test_the_command_line(tmp_path, capsys):
    source, out = tmp_path / "m.onnx", tmp_path / "m.optc"
    save(between(), source)

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as done:
            main([str(source), "--verify=off", *arguments])
        shown = capsys.readouterr()
        return int(done.value.code or 0), shown.out + shown.err

    code, shown = run("--target=a100", "-o", str(out))
    assert code == 1 and not out.exists()
    assert "loop (Loop)" in shown and "find (NonZero)" in shown and "--fallback=onnxruntime" in shown
    code, shown = run("--target=a100", "-o", str(out), "--fallback=onnxruntime")
    assert code == 0 and "2 of 3 parts" in shown and (out / "parts/001.onnx").exists()
    code, shown = run("-o", str(tmp_path / "m.opt.onnx"), "--fallback=onnxruntime")
    assert code != 0 and "the onnxruntime backend has no option 'fallback'" in shown
