"""A model that shows a planted bug shrinks to a few nodes that show it still."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import optc
from optc.ir.errors import UsageError
from optc.reduce import reduce

from .planted import BUGS, planted, yard

ROOT = Path(__file__).parents[2]
VIT = ROOT / "examples" / "digits" / "vit.onnx"
#: The aim is 5 nodes in 25 of 30 cases; what was reached is one node in all of them.
MOST_NODES = 1


@pytest.mark.parametrize("name", BUGS)
def test_what_shows_a_bug_becomes_small(name: str) -> None:
    environment = planted(name)
    reduced = reduce(yard(), environment=environment)
    assert reduced.nodes[1] == len(reduced.model.graph) <= MOST_NODES
    report = optc.compile(reduced.model, environment=environment).report
    assert report.problems() and all(problem.startswith(f"planted-{name}: ") for problem in report.problems())
    assert not optc.compile(reduced.model).report.problems()


def test_a_real_model_becomes_small() -> None:
    environment = planted("coarse-epsilon", behind="dce")
    reduced = reduce(VIT, environment=environment)
    assert reduced.nodes[0] == 298
    assert [node.op_type for node in reduced.model.graph] == ["LayerNormalization"]


def test_a_fault_that_needs_several_nodes_keeps_them() -> None:
    def two_of_a_kind(path: str) -> bool:
        kinds = [node.op_type for node in onnx.load(path).graph.node]
        return not ("Erf" in kinds and "Softmax" in kinds)

    reduced = reduce(yard(), check=two_of_a_kind)
    kinds = [node.op_type for node in reduced.model.graph]
    assert {"Erf", "Softmax"} <= set(kinds)
    assert len(kinds) <= 6
    onnx.checker.check_model(optc.optimize(reduced.model, level=0), full_check=True)


def test_what_does_not_fail_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to reduce"):
        reduce(yard())


def test_the_command(tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "optc", "reduce", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    (tmp_path / "mine.py").write_text(
        "import onnx\n"
        "def no_softmax(path):\n"
        "    assert all(node.op_type != 'Softmax' for node in onnx.load(path).graph.node), 'there is a Softmax'\n"
    )
    done = run(VIT, "--check", "mine:no_softmax")
    assert done.returncode == 0, done.stderr
    assert "298 nodes -> 1 node" in done.stdout
    assert "it fails: AssertionError: there is a Softmax" in done.stdout
    (node,) = onnx.load(tmp_path / "vit.reduced.onnx").graph.node
    assert node.op_type == "Softmax"
    done = run(VIT)
    assert done.returncode != 0
    assert "nothing to reduce" in done.stderr
    assert run(VIT, "--check", "mine:no_softmax", "-o", VIT).returncode != 0
    assert len(onnx.load(VIT).graph.node) > 1
