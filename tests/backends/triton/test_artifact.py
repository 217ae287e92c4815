"""Models through the whole back end: compiled without a GPU, run by the interpreter, against ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

pytest.importorskip("triton")

import optc
from optc.backends.triton.artifact import open_artifact
from optc.backends.triton.backend import TritonBackend
from optc.backends.triton.memory import place
from optc.backends.triton.plan import Plan
from optc.ir.errors import BackendError, DataError, OutputError, UsageError
from optc.ir.targets import builtin_targets

from .models import agrees, model

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
MLP = """
<ir_version: 8, opset_import: ["": 17]>
mlp (float[B,20] x, float[20,33] w_1, float[33] w_b1, float[33,12] w_2, float[12] w_b2)
 => (float[B,12] y, float[B] total)
<float half = {0.5}, float one = {1}, float root = {1.4142135}, int64[1] last = {-1}>
{
    h = MatMul (x, w_1)
    s = Add (h, w_b1)
    d = Div (s, root)
    e = Erf (d)
    p = Add (e, one)
    m = Mul (s, p)
    g = Mul (m, half)
    o = MatMul (g, w_2)
    y = Add (o, w_b2)
    n = Softmax <axis = -1> (y)
    q = Mul (n, n)
    total = ReduceSum <keepdims = 0> (q, last)
}
"""


def compiled(source, out: Path, **options) -> Path:
    """An artifact of a model."""
    return optc.compile(source, target="a100", output=out, verify="off", **options).artifact


@pytest.fixture(scope="module")
def mlp(tmp_path_factory) -> tuple[onnx_ir.Model, Path]:
    source = model(MLP)
    return source, compiled(source, tmp_path_factory.mktemp("mlp") / "mlp.optc")


@pytest.mark.parametrize("batch", [1, 5, 19])
def test_a_small_model(mlp, batch):
    source, artifact = mlp
    feeds = {"x": np.random.default_rng(batch).normal(size=(batch, 20)).astype(np.float32)}
    agrees(source, artifact, feeds)


def test_what_belongs_together_is_one_launch(mlp):
    plan = open_artifact(mlp[1]).plan
    assert [plan.kernels[launch.kernel].kernel for launch in plan.launches] == [
        "matmul",
        "matmul",
        "rows_softmax",
        "rows_reduce",
    ]


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_the_examples(name, tmp_path):
    path = DIGITS / f"{name}.onnx"
    artifact = compiled(path, tmp_path / f"{name}.optc", shapes={"batch": 2})
    feeds = {"image": np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)}
    agrees(path, artifact, feeds)
    layout = place(open_artifact(artifact).plan, {"batch": 2})
    assert layout.size <= 1.2 * layout.bound


def test_the_runner_opens_it_and_checks_what_is_fed(mlp):
    runner = optc.load(mlp[1], device="interpreter")
    assert [str(spec) for spec in runner.inputs] == ["x: float[B, 20]"]
    assert [spec.name for spec in runner.outputs] == ["y", "total"]
    assert runner.run({"x": np.zeros((2, 20), np.float32)})["y"].shape == (2, 12)
    for feeds, problem in (
        ({}, "missing: x"),
        ({"x": np.zeros((1, 20), np.float32), "z": np.zeros(1)}, "unknown: z"),
        ({"x": np.zeros((1, 21), np.float32)}, "dim 1 of input 'x' is 20, not 21"),
        ({"x": np.zeros((20,), np.float32)}, "has 2 dims, not 1"),
        ({"x": np.zeros((1, 20), np.float64)}, "is of type float, not float64"),
    ):
        with pytest.raises(DataError, match=problem):
            runner.run(feeds)


def test_no_rows_at_all(mlp):
    found = optc.load(mlp[1], device="interpreter").run({"x": np.zeros((0, 20), np.float32)})
    assert {name: array.shape for name, array in found.items()} == {"y": (0, 12), "total": (0,)}


def test_two_builds_give_the_same_bytes(mlp, tmp_path, monkeypatch):
    monkeypatch.setenv("OPTC_CACHE", str(tmp_path / "another"))
    again = compiled(model(MLP), tmp_path / "again.optc")
    first = {path.relative_to(mlp[1]): path.read_bytes() for path in mlp[1].rglob("*") if path.is_file()}
    second = {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert first == second


def test_several_devices_in_one_artifact(tmp_path):
    out = optc.compile(model(MLP), target="a100,l4,h100", output=tmp_path / "m.optc", verify="off").artifact
    artifact = open_artifact(out)
    assert set(artifact.manifest["targets"]) == {"sm_80", "sm_89", "sm_90"}
    for entry in artifact.plan.kernels.values():
        for arch, variant in entry.variants.items():
            assert artifact.read(variant.cubin)[:4] == b"\x7fELF"
            assert variant.spills == 0, (arch, variant)
            assert (entry.kernel != "matmul") or variant.mma > 0


def test_launches_pass_what_kernels_take(mlp):
    plan = open_artifact(mlp[1]).plan
    for launch in plan.launches:
        entry = plan.kernels[launch.kernel]
        assert len(launch.args) == len(entry.types)
        assert set(launch.sizes) == set(entry.sizes)
        literals = {name: size for name, size in entry.sizes.items() if size is not None}
        assert all(launch.sizes[name] == str(size) for name, size in literals.items())
        taken = [8 if kind.startswith("*") else 4 for kind in entry.types]
        taken += [4] * (len(entry.sizes) - len(literals)) + [8, 8]
        for variant in entry.variants.values():
            assert list(variant.parameters) == taken
        for argument, kind in zip(launch.args, entry.types, strict=True):
            if argument.buffer is not None:
                assert kind == f"*{plan.buffers[argument.buffer].type}"


def test_a_plan_reads_back_as_it_was(mlp):
    plan = open_artifact(mlp[1]).plan
    assert Plan.from_json(plan.to_json()) == plan


def damaged(artifact: Path, tmp_path: Path, change) -> Path:
    copy = tmp_path / "copy.optc"
    shutil.copytree(artifact, copy)
    change(copy)
    return copy


def _edit_manifest(change):
    def edit(folder: Path) -> None:
        data = json.loads((folder / "manifest.json").read_text())
        change(data)
        (folder / "manifest.json").write_text(json.dumps(data))

    return edit


def _flip(name: str):
    def flip(folder: Path) -> None:
        path = next(folder.glob(name))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return flip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is no JSON"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "does not say which format"),
        (_edit_manifest(lambda data: data.update(format=99)), "its format is 99, this optc reads up to"),
        (lambda folder: (folder / "plan.json").unlink(), "plan.json is missing"),
        (_flip("plan.json"), r"plan.json is not what was written \(its digest differs\)"),
        (lambda folder: next(folder.glob("kernels/*/*.cubin")).unlink(), r"kernels/sm_80/.*cubin is missing"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"x"), "weights.safetensors has 1 bytes"),
        (_flip("sources/*.py"), r"sources/.*py is not what was written"),
    ],
)
def test_a_damaged_artifact_is_refused_with_the_reason(mlp, tmp_path, change, reason):
    copy = damaged(mlp[1], tmp_path, change)
    with pytest.raises(BackendError, match=reason):
        optc.load(copy, device="interpreter")


def test_nothing_is_left_of_a_build_that_fails(tmp_path):
    source = model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[B,4] x) => (float[B,4] y, float[N,4] z)
        {
            ["first"] y = CumSum (x, x)
            ["fine"] r = Relu (x)
            ["second"] n = NonZero (r)
            ["third"] z = Det (x)
        }
    """)
    with pytest.raises(BackendError, match=r"(?s)3 nodes cannot be compiled.*first.*second.*third"):
        TritonBackend().emit(source, builtin_targets()["a100"], tmp_path / "m.optc")
    assert list(tmp_path.iterdir()) == []


def test_an_older_artifact_is_replaced_and_nothing_else(tmp_path):
    out = tmp_path / "m.optc"
    compiled(model(MLP), out)
    compiled(model(MLP), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.optc"]
    other = tmp_path / "folder"
    other.mkdir()
    (other / "mine").write_text("")
    with pytest.raises((OutputError, UsageError)):
        compiled(model(MLP), other)
    assert (other / "mine").exists()


@pytest.mark.parametrize(("target", "problem"), [("t4", "too old"), ("cuda", "names no architecture")])
def test_devices_that_nothing_is_compiled_for(tmp_path, target, problem):
    with pytest.raises(BackendError, match=problem):
        optc.compile(model(MLP), target=target, backend="triton", output=tmp_path / "m.optc", verify="off")


def test_several_targets_need_a_backend_that_compiles(tmp_path):
    with pytest.raises(UsageError, match="one target at a time"):
        optc.compile(model(MLP), target="a100,h100", output=tmp_path / "m.onnx", verify="off")
