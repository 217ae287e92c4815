"""The pass itself: its options, its rules' documentation, and that every rule is covered."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from optc.ir.errors import UsageError
from optc.passes.fusion.fuse import PHASES, fusions
from optc.passes.rule import FusionRule

from .formulas import Formula, fired, rewrite

CASES = Path(__file__).parents[2] / "golden" / "cases"


def _silu():
    formula = Formula(lambda strategy: ())
    return formula.model({"x": [2, 3]}, formula.op("Mul", "x", formula.op("Sigmoid", "x")))


def test_only_and_skip():
    assert fired(rewrite(_silu(), "fuse{only=[quick-gelu]},emit")) == {"quick-gelu": 1}
    assert fired(rewrite(_silu(), "fuse{only=[gelu]},emit")) == {}
    assert fired(rewrite(_silu(), "fuse{skip=[quick-gelu]},emit")) == {}


@pytest.mark.parametrize("option", ["only", "skip"])
def test_unknown_rule(option):
    with pytest.raises(UsageError, match="no fusion 'quick-gellu'") as raised:
        rewrite(_silu(), f"fuse{{{option}=[quick-gellu]}}")
    assert "quick-gelu" in str(raised.value.hint)


def test_old_opsets_are_left_alone():
    """Before opset 7 a constant lay along whatever axis an attribute named."""
    model = _silu()
    model.opset_import[0].version = 6
    result = rewrite(model)
    assert fired(result) == {}
    assert "opset 7" in result.records[0].remarks[0].reason


def test_names_are_unique():
    names = [rule.name for phase in PHASES for rule in phase]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("rule", fusions().values(), ids=lambda rule: rule.name)
def test_rule_says_what_it_does(rule):
    assert rule.doc.strip()


def test_every_rule_fires_in_a_golden_case():
    text = "\n".join(path.read_text("utf-8") for path in CASES.glob("*.txt"))
    covered = {rule for line in re.findall(r"^fires: (.*)$", text, re.M) for rule in re.findall(r"([\w-]+):", line)}
    assert covered == set(fusions())


def test_most_fusions_have_a_near_miss():
    text = "\n".join(path.read_text("utf-8") for path in CASES.glob("*.txt"))
    near = set(re.findall(r"^near: (.*)$", text, re.M))
    assert near <= set(fusions())
    assert len(near) >= len(fusions()) // 2


def test_fused_ops_are_documented():
    """The table of the package lists every fused op that a rule makes."""
    table = inspect.getmodule(fusions).__package__
    text = __import__(table, fromlist=["x"]).__doc__
    for rule in fusions().values():
        if isinstance(rule, FusionRule):
            assert rule.op in text, rule.op
