"""What verification finds wrong is taken back rewrite by rewrite; the rest of the work stays."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

import optc
from optc.equivalence import Reference
from optc.ir.model import load
from optc.ir.rewriter import Rewriter
from optc.passes.rule import NodeRule
from optc.passes.rule_pass import rule_pass
from optc.report import PassReport, Report

from .planted import AFRESH, BUGS, again, planted, planted_pass, yard


def entry(report: Report, name: str) -> PassReport:
    return next(item for item in report.passes if item.name == name)


def taken_back(report: Report) -> list[str]:
    return [f"{remark.what}" for item in report.passes for remark in item.remarks if remark.kind == "taken back"]


def rolled_back(report: Report) -> list[str]:
    return [item.text for item in report.passes if item.status == "rolled back"]


@pytest.fixture(scope="module")
def clean() -> Report:
    """The compile with the right rule alone."""
    item = rule_pass("planted", [AFRESH])
    return optc.compile(yard(), environment=planted_pass(item), level=1).report


@pytest.mark.parametrize("name", BUGS)
def test_the_guilty_rewrite_alone_is_gone(name: str, clean: Report) -> None:
    model = yard()
    item = rule_pass("planted", [BUGS[name], AFRESH])
    result = optc.compile(model, environment=planted_pass(item), level=1)
    report = result.report
    assert report.verification.status == "passed"
    assert Reference(load(model)).check(result.model).ok
    assert rolled_back(report) == []
    whole = taken_back(report)
    assert whole and all(what.startswith(name) for what in whole)
    assert any(name in skipped.what and skipped.reason.startswith("taken back: ") for skipped in report.skipped)
    own = entry(report, "planted")
    assert own.hits["afresh"] == entry(clean, "planted").hits["afresh"]
    if name not in own.hits:  # where it is right by chance it may stay
        assert {item.text: item.hits for item in report.passes} == {item.text: item.hits for item in clean.passes}


@pytest.mark.parametrize("name", ["lost-root", "swapped-parameters", "reshape-for-transpose"])
@pytest.mark.parametrize("level", [1, 2])
def test_checking_each_pass_takes_back_the_same(name: str, level: int) -> None:
    item = rule_pass("planted", [BUGS[name], AFRESH])
    final, each = (
        optc.compile(yard(), environment=planted_pass(item), level=level, verify=verify).report
        for verify in ("final", "each")
    )
    assert final.verification.status == each.verification.status == "passed"
    assert taken_back(final) == taken_back(each) != []
    assert rolled_back(final) == rolled_back(each) == []
    assert final.result.ops == each.result.ops


def _commuted(rw: Rewriter, node: onnx_ir.Node) -> onnx_ir.Value | None:
    """The operands the other way round: right for sums, wrong for differences."""
    if "commuted" in node.metadata_props.get("optc.rule", ""):
        return None
    return again(rw, node, *reversed(node.inputs))


def test_a_rule_is_kept_where_it_is_right() -> None:
    operators = frozenset(("", op) for op in ("Add", "Sub", "Mul"))
    environment = planted_pass(rule_pass("commute", NodeRule("commuted", operators, _commuted)))
    report = optc.compile(yard(), environment=environment, level=1, verify="each").report
    assert len(taken_back(report)) == 1 and taken_back(report)[0].startswith("commuted at 'Sub")
    assert entry(report, "commute").hits["commuted"] == 4  # Mul, and the three sums
    assert report.verification.status == "passed"


def test_several_that_are_wrong_are_all_taken_back() -> None:
    names = ["lost-root", "tanh-for-erf", "swapped-parts"]
    item = rule_pass("planted", [*(BUGS[name] for name in names), AFRESH])
    report = optc.compile(yard(), environment=planted_pass(item), level=1).report
    assert sorted(what.split()[0] for what in taken_back(report)) == sorted(names)
    assert rolled_back(report) == []
    assert set(entry(report, "planted").hits) == {"afresh"}


def test_a_rule_that_is_wrong_in_many_places_goes_everywhere() -> None:
    def halved(rw: Rewriter, node: onnx_ir.Node) -> onnx_ir.Value | None:
        return rw.op("Mul", node.inputs[0], rw.constant(0.5, "half", np.float32)) if node.inputs else None

    ops = frozenset({("", op) for op in ("Sqrt", "Exp", "Erf", "Neg", "Floor", "Round", "Relu")})
    item = rule_pass("planted", [NodeRule("halved", ops, halved), AFRESH])
    report = optc.compile(yard(), environment=planted_pass(item), level=1).report
    assert taken_back(report) == ["halved"]
    assert set(entry(report, "planted").hits) == {"afresh"}


def test_too_many_wrong_rules_cost_the_whole_pass() -> None:
    item = rule_pass("planted", list(BUGS.values()))
    report = optc.compile(yard(), environment=planted_pass(item), level=1).report
    assert rolled_back(report) == ["planted"]
    assert report.verification.status == "passed"


def test_a_rule_that_raises_is_kept_away_from_the_node_where_it_does() -> None:
    def choosy(rw: Rewriter, node: onnx_ir.Node) -> onnx_ir.Value | None:
        if node.op_type == "Sub":
            rw.op("Neg", node.inputs[0])
            raise ValueError("not here")
        return _commuted(rw, node)

    item = rule_pass("planted", NodeRule("choosy", frozenset({("", "Add"), ("", "Sub"), ("", "Exp")}), choosy))
    report = optc.compile(yard(), environment=planted_pass(item), level=1, verify="off").report
    assert len(taken_back(report)) == 1 and "at 'Sub" in taken_back(report)[0]
    assert any("ValueError: not here" in problem for problem in report.problems())
    assert rolled_back(report) == []


def test_what_was_taken_back_leaves_a_reproducer(tmp_path) -> None:
    path = tmp_path / "it.reproducer.zip"
    optc.compile(yard(), environment=planted("lost-root"), reproducer=path)
    assert path.exists()
