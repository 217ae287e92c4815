"""``optc explain``: what fired, and why the rest did not."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.parser
import pytest

from optc.ir.model import load
from optc.ir.targets import builtin_targets
from optc.passes.base import Pass, PassContext
from optc.passes.driver import apply_rules
from optc.passes.manager import PassManager
from optc.passes.rule import rule

_GELUS = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 8] x) => (float[N, 8] y, float[N, 8] z)
<float root = {1.4142135}, float half = {0.5}, float one = {1.0}, float off = {1.5}>
{
  [div] a = Div(x, root)
  [erf] b = Erf(a)
  [add] c = Add(b, one)
  [mul] d = Mul(x, c)
  [half] y = Mul(d, half)
  [div2] e = Div(x, off)
  [erf2] f = Erf(e)
  [add2] h = Add(f, one)
  [mul2] i = Mul(x, h)
  [half2] z = Mul(i, half)
}
"""


@pytest.fixture
def gelus(tmp_path: Path) -> Path:
    """One Gelu, and one whose constant is off."""
    onnx.save(onnx.parser.parse_model(_GELUS), tmp_path / "gelus.onnx")
    return tmp_path / "gelus.onnx"


def test_the_overview_says_what_fired_and_what_nearly_did(cli, gelus, tmp_path) -> None:
    done = cli("explain", gelus)
    assert done.code == 0, done.err
    fired, near = done.out.split("came near")
    assert any(line.split() == ["gelu", "1", "half"] for line in fired.splitlines())
    (line,) = [line for line in near.splitlines() if line.startswith("gelu ")]
    assert line.split()[1] == "1" and "0.7071068" in line
    near, never = near.split("never tried")
    assert "layer-norm" not in near, "a root alone is no near miss"
    assert "skip-layer-norm" in never and "conv-activation" in never and " gelu" not in never
    assert [path.name for path in tmp_path.iterdir()] == ["gelus.onnx"], "nothing is written"


def test_why_tells_where_it_stopped(cli, gelus) -> None:
    done = cli("explain", gelus, "--why", "gelu")
    assert done.code == 0
    for text in (
        "gelu (makes Gelu): fired 1 time, for example at half",
        "stopped at",
        "'div2' (",
        "wanted",
        "made from",
    ):
        assert text in done.out, text
    assert "made from  half2" in done.out


def test_why_takes_ops_and_beginnings_of_names(cli, gelus) -> None:
    by_op = cli("explain", gelus, "--why", "SkipLayerNormalization").out
    assert by_op.startswith("skip-layer-norm (makes SkipLayerNormalization): did not fire")
    assert "never tried: it begins at LayerNormalization or optc::LayerNormalization, and there was none" in by_op
    assert "nowhere did it come near" in cli("explain", gelus, "--why", "rms-norm").out
    both = cli("explain", gelus, "--why", "com.microsoft::skip").out
    assert "skip-layer-norm (" in both and "skip-rms-norm (" in both


def test_why_of_a_rule_that_there_is_not(cli, gelus) -> None:
    message = cli("explain", gelus, "--why", "gule").message
    assert "no rule 'gule'" in message and "did you mean gelu" in message


def test_the_same_as_json(cli, gelus) -> None:
    data = json.loads(cli("explain", gelus, "--json").out)
    rules = {item["name"]: item for item in data["rules"]}
    assert data["nodes"] == [10, 6]
    assert (rules["gelu"]["hits"], rules["gelu"]["makes"], rules["gelu"]["examples"]) == (1, "Gelu", [["half"]])
    (miss,) = rules["gelu"]["near_misses"]
    assert miss["sources"] == ["half2"] and miss["matched"] >= miss["size"] / 2 and miss["found"]
    assert rules["skip-rms-norm"]["near_misses"] == [] and rules["skip-rms-norm"]["tried"] == 0
    assert "Add" in rules["layer-norm"]["begins_at"] and rules["layer-norm"]["tried"] > 0
    (only,) = json.loads(cli("explain", gelus, "--json", "--why", "gelu").out)["rules"]
    assert only == rules["gelu"]
    assert not json.loads(cli("explain", gelus, "--json", "-O0").out)["rules"]


def test_a_miss_is_told_when_another_rule_has_taken_a_part_of_it(cli) -> None:
    """A factor of a Gelu whose root is off goes into the dense layer behind it; its near miss is told all the same."""
    weights = ", ".join(str(i) for i in range(64))
    body = _GELUS.replace("float[N, 8] z)", "float[N, 8] o)").replace(
        "<float", f"<float[8, 8] w = {{{weights}}}, float"
    )
    onnx.save(onnx.parser.parse_model(body.replace("z = Mul(i, half)", "z = Mul(i, half) o = MatMul(z, w)")), "g.onnx")
    (rule,) = json.loads(cli("explain", "g.onnx", "--why", "gelu", "--json").out)["rules"]
    assert rule["hits"] == 1
    (miss,) = rule["near_misses"]
    assert (miss["wanted"], miss["found"]) == ("the constant 0.7071068", "the constant 0.6666667 (1 / 1.5)")


def test_misses_are_those_of_the_last_try_and_not_of_passes_that_were_rolled_back() -> None:
    @rule("sum-of-negated")
    def negated(p, x):
        return p.Exp(p.Abs(p.Neg(x)))

    negated.build(lambda rw, found: found.x)

    class Try(Pass):
        name = "try"

        def run(self, ctx: PassContext) -> None:
            apply_rules(ctx, [negated])

    class Fail(Try):
        name = "fail"

        def run(self, ctx: PassContext) -> None:
            super().run(ctx)
            raise ValueError("it is broken")

    text = '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { b = Abs(x) y = Exp(b) }'
    for passes, count in (((Try(),), 1), ((Fail(),), 0), ((Fail(), Try()), 1), ((Try(), Fail()), 1)):
        result = PassManager(builtin_targets()["cpu"]).run(load(onnx.parser.parse_model(text)), passes)
        misses = result.misses.get("sum-of-negated", [])
        assert len(misses) == count
        assert all(miss.telling and (miss.matched, miss.size) == (2, 3) for miss in misses)
