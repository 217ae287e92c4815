"""The driver: compile, optimize and load, and what becomes of passes that are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir
import pytest

import optc
from optc.backends.ort import OnnxRuntimeBackend, Session
from optc.environment import Environment
from optc.ir.errors import DataError, ModelError, OutputError, UsageError
from optc.ir.model import load
from optc.passes.base import Decision, Numerics, Pass, PassContext

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
CNN, VIT = DIGITS / "cnn.onnx", DIGITS / "vit.onnx"
IMAGES = {"image": np.load(DIGITS / "test.npz")["image"][:16]}


def scale(ctx: PassContext, factor: float) -> None:
    """Multiply the first output by a factor."""
    output = ctx.model.graph.outputs[0]
    node = output.producer()
    with ctx.rewriter.at(node, "scale"):
        inner = ctx.rewriter.op(node.op_type, *node.inputs, **{k: a.value for k, a in node.attributes.items()})
        ctx.rewriter.replace(output, ctx.rewriter.op("Mul", inner, ctx.rewriter.constant(factor, "f", np.float32)))
    ctx.rewriter.erase(node)


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply the output by a factor; wrong unless the factor is 1."""

    name: ClassVar[str] = "scale"

    factor: float = 2.0

    def run(self, ctx: PassContext) -> None:
        scale(ctx, self.factor)


@dataclass(frozen=True)
class Drift(Scale):
    """Multiply the output by nearly 1, and say so."""

    name: ClassVar[str] = "drift"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    factor: float = 1.00003


@dataclass(frozen=True)
class Approximate(Scale):
    """Multiply the output by about 1, within the budget by default."""

    name: ClassVar[str] = "approximate"
    numerics: ClassVar[Numerics] = Numerics.APPROXIMATE

    factor: float = 1.01


@dataclass(frozen=True)
class Lossy(Scale):
    """Throw something away."""

    name: ClassVar[str] = "lossy"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    factor: float = 1.5

    def run(self, ctx: PassContext) -> None:
        super().run(ctx)
        ctx.decide(Decision("lossy", [], True, "it was cheap"))


@dataclass(frozen=True)
class Sly(Pass):
    """Change numbers behind the rewriter's back, so that nobody can say who it was."""

    name: ClassVar[str] = "sly"

    def run(self, ctx: PassContext) -> None:
        for value in ctx.model.graph.initializers.values():
            if value.const_value is not None and value.dtype == onnx_ir.DataType.FLOAT:
                value.const_value = onnx_ir.tensor(np.asarray(value.const_value.numpy()) * 3, name=value.name)


@dataclass(frozen=True)
class Crash(Pass):
    """Fail."""

    name: ClassVar[str] = "crash"

    def run(self, ctx: PassContext) -> None:
        raise RuntimeError("no luck")


@pytest.fixture
def environment() -> Environment:
    """Optc's own environment with the passes above, as a plugin would bring them."""
    result = Environment()
    for item in (Scale, Drift, Approximate, Lossy, Sly, Crash):
        result.passes.add(item.name, f"{__name__}:{item.__name__}", "tests")
    return result


def run(model: Any) -> np.ndarray:
    return Session(model).run(IMAGES)["logits"]


def status(result: optc.Result) -> dict[str, str]:
    return {item.text: item.status for item in result.report.passes}


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return Session(CNN, optimization="off").run(IMAGES)["logits"]


# the interface -----------------------------------------------------------------------------------------------------


def test_compile_writes_what_load_opens(tmp_path, expected):
    result = optc.compile(CNN, level=2, output=tmp_path / "out.onnx")
    assert result.artifact == tmp_path / "out.onnx"
    assert result.report.verification.status == "passed"
    assert result.report.result.nodes < result.report.model.nodes
    runner = optc.load(result.artifact)
    np.testing.assert_allclose(runner.run(IMAGES)["logits"], expected, rtol=1e-3, atol=1e-4)
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]
    onnx.checker.check_model(str(result.artifact))


def test_optimize_takes_and_gives_models_in_memory(expected):
    proto = onnx.load(CNN)
    given = onnx_ir.from_proto(onnx.load(CNN))
    before = [p.SerializeToString(deterministic=True) for p in (proto, onnx_ir.to_proto(given))]
    for source in (str(CNN), CNN, proto, given):
        optimized = optc.optimize(source, level=1)
        assert isinstance(optimized, onnx.ModelProto)
        np.testing.assert_allclose(run(optimized), expected, rtol=1e-4, atol=1e-5)
    assert [p.SerializeToString(deterministic=True) for p in (proto, onnx_ir.to_proto(given))] == before


def test_level_0_changes_nothing_that_is_computed(tmp_path, expected):
    result = optc.compile(CNN, level=0, output=tmp_path / "out.onnx")
    assert result.report.passes == [] and result.report.verification.status == "passed"
    np.testing.assert_array_equal(Session(result.artifact, optimization="off").run(IMAGES)["logits"], expected)


def test_a_model_may_be_compiled_onto_itself(tmp_path, expected):
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(CNN), path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    result = optc.compile(path, level=2, output=path, measure=False)
    np.testing.assert_allclose(run(path), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(run(result.model), expected, rtol=1e-3, atol=1e-4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]


def test_measuring_after_the_model_was_overwritten(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(CNN.read_bytes())
    report = optc.compile(path, level=1, output=path, measure=True).report
    assert report.latency.measured and report.latency.before.median > 0


def test_loading_says_plainly_what_is_wrong(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    for name in ("bad.onnx", "missing.onnx"):
        with pytest.raises(ModelError):
            optc.load(tmp_path / name)
        with pytest.raises(ModelError):
            optc.compile(tmp_path / name)


# verification ------------------------------------------------------------------------------------------------------


def test_off_checks_nothing(environment, expected):
    result = optc.compile(CNN, passes="scale", verify="off", environment=environment)
    assert result.report.verification.status == "off" and "off" in result.report.summary()
    np.testing.assert_allclose(run(result.model), 2 * expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("verify", ["final", "each"])
def test_a_wrong_pass_is_found_rolled_back_and_named(environment, expected, verify, tmp_path):
    result = optc.compile(
        CNN, passes="simplify,scale,dce", verify=verify, environment=environment, output=tmp_path / "o.onnx"
    )
    assert status(result)["scale"] == "rolled back"
    assert result.report.verification.status == "passed"
    assert any(item.what == "scale" and "rolled back" in item.reason for item in result.report.skipped)
    assert "scale" in result.report.summary()
    np.testing.assert_allclose(run(result.artifact), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("verify", ["final", "each"])
def test_an_exact_pass_is_not_blamed_for_the_rounding_of_one_before(environment, verify):
    result = optc.compile(CNN, passes="drift,scale{factor=1.0},scale", verify=verify, environment=environment)
    assert status(result) == {"drift": "changed", "scale{factor=1.0}": "changed", "scale": "rolled back"}
    assert result.report.verification.status == "passed"


def test_a_pass_that_fails_is_skipped_and_named(environment, expected):
    result = optc.compile(CNN, passes="crash,simplify", environment=environment)
    assert status(result)["crash"] == "rolled back"
    assert "RuntimeError: no luck" in result.report.summary()
    np.testing.assert_allclose(run(result.model), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="no luck"):
        optc.compile(CNN, passes="crash", environment=environment, strict=True)


def test_the_budget_bounds_approximate_passes(environment):
    kept = optc.compile(CNN, passes="approximate", environment=environment)
    assert status(kept)["approximate"] == "changed" and kept.report.verification.tolerance == 0.03
    refused = optc.compile(CNN, passes="approximate", environment=environment, max_error=0.001)
    assert status(refused)["approximate"] == "rolled back" and refused.report.verification.status == "passed"


def test_a_lossy_pass_outside_of_the_budget_is_taken_back(environment, expected):
    result = optc.compile(CNN, passes="lossy", environment=environment)
    assert status(result)["lossy"] == "rolled back"
    assert not any(decision.kept for decision in result.report.decisions)
    np.testing.assert_array_equal(run(result.model), run(CNN))
    kept = optc.compile(CNN, passes="lossy{factor=1.01}", environment=environment, calib=IMAGES)
    assert status(kept) == {"lossy{factor=1.01}": "changed"}
    assert kept.report.verification.worst_error == pytest.approx(0.01, rel=0.01)
    assert kept.report.verification.checked[0].inputs == "calibration data (4 of 16 rows, held out)"


def test_when_nobody_is_to_blame_the_original_comes_back(environment, expected):
    result = optc.compile(CNN, passes="sly,lossy{factor=1.001}", environment=environment)
    np.testing.assert_array_equal(run(result.model), run(CNN))
    assert result.report.verification.status == "passed"
    assert status(result)["lossy{factor=1.001}"] == "rolled back"
    assert not any(decision.kept for decision in result.report.decisions)


def test_what_cannot_be_verified_is_said_to_be_so():
    model = onnx_ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { y = my.custom.Thing(x) }'
    )
    result = optc.compile(model, level=1)
    assert result.report.verification.status == "skipped"
    assert "the original cannot be opened" in result.report.verification.reason
    assert "verification: skipped" in result.report.summary()


# options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"level": 4}, "unknown level -O4"),
        ({"level": "2"}, "'level' cannot be '2'"),
        ({"target": "a1000"}, "did you mean a100"),
        ({"backend": "onnxrt"}, "onnxruntime"),
        ({"passes": "simplfy"}, "did you mean simplify"),
        ({"skip": "simplfy"}, "no such pass"),
        ({"skip": ["inline", "nothing"]}, "nothing"),
        ({"verify": "always"}, "off, final or each"),
        ({"max_error": 0}, "between 0 and 1"),
        ({"max_error": float("nan")}, "between 0 and 1"),
        ({"max_error": "0.1"}, "cannot be '0.1'"),
        ({"metric": "m:f"}, "belong together"),
        ({"metric": "m:f", "max_drop": 0.1}, "needs data"),
        ({"metric": "m:f", "max_drop": "little", "calib": IMAGES}, "max_drop"),
        ({"metric": "m:f", "max_drop": -1, "calib": IMAGES}, "max_drop"),
        ({"metric": "nowhere:f", "max_drop": "1%", "calib": IMAGES}, "nowhere"),
        ({"metric": "json", "max_drop": "1%", "calib": IMAGES}, "module:function"),
        ({"metric": "json:nothing", "max_drop": "1%", "calib": IMAGES}, "nothing"),
        ({"metric": "json:__name__", "max_drop": "1%", "calib": IMAGES}, "not a function"),
        ({"shapes": {"batch": -1}}, "cannot be -1"),
        ({"shapes": {"batch": 1.5}}, "cannot be 1.5"),
        ({"shapes": {"batch": (8, 1)}}, "the range ends at 1, before it begins"),
        ({"shapes": {"batch": (-1, 8)}}, "sizes are 0 or more"),
        ({"shapes": {"batch": (1, 2, 3)}}, "neither a size nor a range"),
        ({"shapes": {"batch": True}}, "cannot be True"),
        ({"shapes": {"btach": "1..2"}}, "did you mean batch"),
        ({"shapes": {"btach": 2}}, "did you mean batch"),
        ({"optimise": True}, "unknown option 'optimise'"),
        ({"passes": "quantize{techniques=[int3]}"}, "no technique 'int3'"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(UsageError) as caught:
        optc.compile(CNN, **options)
    assert words in str(caught.value)


def test_data_that_does_not_fit_is_found_before_the_work():
    with pytest.raises(DataError):
        optc.compile(CNN, calib={"picture": IMAGES["image"]})
    with pytest.raises(DataError):
        optc.compile(CNN, calib=DIGITS / "missing.npz")


def test_skipping_a_pass_leaves_it_out():
    result = optc.compile(CNN, level=1, skip="fold, simplify")
    assert not {"fold", "simplify"} & set(status(result))
    assert "fold" not in result.report.pipeline


def test_dumps(tmp_path):
    optc.compile(CNN, level=1, dump_dir=tmp_path / "dumps", verify="off")
    dumps = sorted((tmp_path / "dumps").iterdir())
    assert dumps and all(dump.read_text().strip() for dump in dumps)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        optc.compile(CNN, level=1, dump_dir=tmp_path / "file", verify="off")


# the output --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place, words", [("missing/o.onnx", "does not exist"), ("folder", "is a folder")])
def test_problems_of_the_output_are_found_before_the_work(tmp_path, place, words, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("optc.compiler.load", lambda source: pytest.fail("the work has begun"))
    with pytest.raises(OutputError, match=words):
        optc.compile(CNN, output=tmp_path / place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not writable"):
        optc.compile(CNN, output=tmp_path / "o.onnx")


def test_a_failure_while_writing_leaves_the_old_output(tmp_path, monkeypatch):
    path = tmp_path / "o.onnx"
    path.write_bytes(b"precious")

    def failing(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("optc.ir.saving._stream", failing)
    with pytest.raises(OutputError, match="No space left"):
        optc.compile(VIT, level=0, verify="off", output=path)
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]


def test_a_failure_before_writing_leaves_nothing(tmp_path, environment, monkeypatch):
    def failing(*args: Any) -> None:
        raise OutputError("cannot emit")

    monkeypatch.setattr(OnnxRuntimeBackend, "emit", failing)
    with pytest.raises(OutputError, match="cannot emit"):
        optc.compile(CNN, level=0, verify="off", output=tmp_path / "o.onnx", environment=environment)
    assert list(tmp_path.iterdir()) == []


# determinism -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [CNN, VIT], ids=["cnn", "vit"])
def test_the_same_input_gives_the_same_bytes(tmp_path, model):
    """In other processes, with other hash seeds. What -O3 adds is measured, and may differ from run to run."""
    script = "import sys, optc; optc.compile(sys.argv[1], level=2, verify='off', output=sys.argv[2])"
    outputs = []
    for seed in ("0", "1", "2"):
        output = tmp_path / f"{seed}.onnx"
        subprocess.run(
            [sys.executable, "-c", script, model, output], check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(load(tmp_path / "0.onnx").graph) > 5
