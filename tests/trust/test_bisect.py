"""Every planted bug is caught by verification and traced to the rewrite that made it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import optc
from optc.bisect import bisect
from optc.equivalence import Reference
from optc.ir.errors import UsageError
from optc.ir.model import load

from .planted import BUGS, planted, yard

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
VIT, CNN = DIGITS / "vit.onnx", DIGITS / "cnn.onnx"


def test_there_are_thirty_and_the_model_is_right_without_them() -> None:
    model = yard()
    onnx.checker.check_model(model, full_check=True)
    result = optc.compile(model)
    assert len(BUGS) == 30
    assert result.report.verification.status == "passed"
    assert bisect(model) is None


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str) -> None:
    model, environment = yard(), planted(name)
    culprit = bisect(model, environment=environment)
    assert culprit is not None
    assert culprit.application.rule == name
    assert culprit.application.step == f"planted-{name}"
    assert "+" in culprit.change


@pytest.mark.parametrize("name", ["lost-bias", "scale-a-little-off", "coarse-epsilon", "softmax-over-another-axis"])
def test_a_bug_among_hundreds_of_rewrites_is_found(name: str) -> None:
    environment = planted(name, behind="dce")
    culprit = bisect(VIT, environment=environment)
    assert culprit is not None
    assert culprit.application.rule == name
    assert 50 < culprit.application.number < culprit.total
    wrong, right = (
        optc.compile(VIT, environment=environment, stop_after=culprit.application.number - back, verify="off").model
        for back in (0, 1)
    )
    verdicts = [Reference(load(VIT)).check(model).state for model in (wrong, right)]
    assert verdicts == ["failed", "verified"]


def test_a_rule_that_raises_is_found() -> None:
    name = "lost-root"
    environment = planted(name)

    def fail(*_: object) -> None:
        raise ValueError("planted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BUGS[name], "function", fail)
        culprit = bisect(yard(), environment=environment)
    assert culprit is not None
    assert (culprit.application.rule, culprit.reason) == (name, "ValueError: planted")


def test_a_tolerance_and_a_check_of_ones_own() -> None:
    environment = planted("coarse-epsilon", behind="dce")
    assert bisect(VIT, environment=environment, tolerance=10.0) is None
    found = bisect(VIT, environment=environment, tolerance=1e-4)
    assert found is not None
    assert found.application.rule == "coarse-epsilon"

    def no_more_than_before(path: str) -> None:
        names = {node.op_type for node in onnx.load(path).graph.node}
        assert "Gemm" in names, "the Gemm is gone"

    found = bisect(CNN, check=no_more_than_before)
    assert found is None or found.reason == "AssertionError: the Gemm is gone"
    with pytest.raises(UsageError, match="on the original already: it is always wrong"):
        bisect(CNN, check=lambda path: "it is always wrong")


def test_the_command(tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "optc", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    done = run("bisect", CNN)
    assert (done.returncode, done.stdout) == (0, "the result passes the check: there is nothing to find\n")
    (tmp_path / "mine.py").write_text(
        "import onnx\n"
        "def normalized(path):\n"
        "    return any(node.op_type == 'BatchNormalization' for node in onnx.load(path).graph.node)\n"
    )
    done = run("bisect", CNN, "--check", "mine:normalized", "--json")
    found = json.loads(done.stdout)
    assert found["application"]["step"].startswith("fuse")
    assert found["reason"] == "the check says that it is wrong"
    number = found["application"]["number"]
    done = run("bisect", CNN, "--check", "mine:normalized")
    assert f"rewrite {number} of {found['total']}" in done.stdout
    for stop, kinds in ((number, False), (number - 1, True)):
        assert run(CNN, "--stop-after", stop, "-o", "part.onnx", "--no-measure").returncode == 0
        model = onnx.load(tmp_path / "part.onnx")
        assert any(node.op_type == "BatchNormalization" for node in model.graph.node) is kinds
    for arguments, words in (
        (("--check", "nobody:nothing"), "cannot import the check"),
        (("--check", "-1"), "a tolerance is a number from 0 on"),
        (("--check", "mine:missing"), "cannot import the check"),
    ):
        done = run("bisect", CNN, *arguments)
        assert done.returncode != 0
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_stopping_replays_a_prefix() -> None:
    whole = optc.compile(VIT, verify="off")
    nodes = [len(optc.compile(VIT, verify="off", stop_after=stop).model.graph) for stop in (0, 40, 10**6)]
    assert nodes[0] == len(load(VIT).graph)
    assert nodes[0] > nodes[1] > nodes[2] == len(whole.model.graph)
    with pytest.raises(UsageError):
        optc.compile(VIT, stop_after=-1)
    assert np.isfinite(nodes).all()
