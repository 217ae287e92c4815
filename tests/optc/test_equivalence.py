"""Judging candidates: seeded defects are found, and "verified" is said only of what ran and was compared."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optc.backends.ort import Session
from optc.equivalence import Reference
from optc.ir.errors import DataError
from optc.numeric import coarsest_float
from optc.passes.base import Numerics
from optc.randomness import random_outputs


def model(text: str, opset: int = 17) -> onnx_ir.Model:
    return onnx_ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}, "my": 1]> {text}')


MLP = (
    "g (float[batch, 2] x) => (float[batch, 2] y, float[batch, 2] z)"
    "<float[2, 2] w = {1.0, -2.0, 0.5, 3.0}, float[2] b = {0.1, 0.2}>"
    "{ h = MatMul(x, w) y = Add(h, b) z = Relu(y) }"
)


def mlp(*replacements: tuple[str, str]) -> onnx_ir.Model:
    text = MLP
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return model(text)


def test_a_model_equals_itself():
    verdict = Reference(mlp()).check(mlp(), Numerics.EXACT)
    assert verdict.ok
    assert [check.label for check in verdict.checks] == ["{batch=2}", "{batch=1}", "{batch=3}", "{batch=5}"]
    assert verdict.rel_l2 == 0.0
    assert str(verdict).startswith("verified at {batch=2}, {batch=1}")


def test_a_reference_judges_many_candidates_and_runners():
    reference = Reference(mlp())
    assert reference.check(Session(mlp())).ok
    assert not reference.check(mlp(("Relu", "Abs"))).ok
    assert reference.check(mlp(("y = Add(h, b)", "y = Add(b, h)"))).ok


@pytest.mark.parametrize(
    "defect",
    [
        ("0.1, 0.2", "0.1, 0.21"),
        ("3.0}", "3.01}"),
        ("Relu(y)", "Relu(h)"),
        ("Add(h, b)", "Sub(h, b)"),
        ("MatMul(x, w)", "MatMul(w, w)"),
        ("z = Relu(y)", "n = Log(y) z = Relu(n)"),
        ("Relu(y)", "Neg(y)"),
    ],
    ids=["bias", "weight", "operand", "op", "shape", "nan", "activation"],
)
def test_seeded_defects_are_found(defect):
    verdict = Reference(mlp()).check(mlp(defect))
    assert verdict.state == "failed"
    assert verdict.reason
    assert str(verdict).startswith("wrong: ")


def test_swapped_outputs_are_found():
    wrong = mlp()
    y, z = wrong.graph.outputs
    wrong.graph.outputs[:] = [z, y]
    assert Reference(mlp()).check(wrong).reason == "its outputs are z, y instead of y, z"
    renamed = mlp(("y = Add(h, b) z = Relu(y)", "z = Add(h, b) y = Relu(z)"))
    assert Reference(mlp()).check(renamed).state == "failed"


def test_a_changed_interface_is_found():
    reference = Reference(mlp())
    assert (
        "its inputs are"
        in reference.check(mlp(("float[batch, 2] x", "float[batch, 2] q"), ("MatMul(x", "MatMul(q"))).reason
    )
    typed = model(MLP.replace("float[batch, 2] z", "double[batch, 2] z").replace("z = Relu(y)", "z = Cast<to = 11>(y)"))
    assert "output 'z' has become z: double" in reference.check(typed).reason


def test_defects_at_one_size_only_are_found():
    """Right while the batch is 1: broadcasting hides it."""
    wrong = mlp(
        (
            "z = Relu(y)",
            "a = Constant<value_ints = [0]>() e = Constant<value_ints = [1]>() f = Slice(y, a, e, a) r = Relu(f)"
            " s = Shape(y) z = Expand(r, s)",
        )
    )
    verdict = Reference(mlp()).check(wrong)
    assert verdict.state == "failed"
    assert [check.ok for check in verdict.checks] == [False, True, False, False]


def test_what_the_original_cannot_run_is_skipped_and_said():
    needs_equal = model("g (float[p] a, float[q] b) => (float[p] y) { y = Add(a, b) }")
    verdict = Reference(needs_equal).check(needs_equal.clone())
    assert verdict.ok
    assert [skip.label for skip in verdict.skipped] == ["{p=2, q=3}", "{p=3, q=5}"]
    assert "the original itself does not run at {p=2, q=3}, {p=3, q=5}" in str(verdict)


def test_larger_sizes_are_tried_when_no_small_one_runs():
    weights = "float[1, 1, 30, 30] w = {" + ",".join(["0.1"] * 900) + "}"
    big = model(f"g (float[n, 1, h, v] x) => (float[n, 1, a, b] y) <{weights}> {{ y = Conv(x, w) }}")
    reference = Reference(big)
    assert reference.runs
    assert all(run.feeds["x"].shape[2] >= 30 for run in reference.runs)
    assert reference.check(big.clone()).ok


def test_a_candidate_that_fails_where_the_original_runs():
    fussy = mlp(("z = Relu(y)", "s = Constant<value_ints = [2, 2]>() r = Reshape(y, s) z = Relu(r)"))
    verdict = Reference(mlp()).check(fussy)
    assert verdict.state == "failed"
    assert "it fails where the original runs" in verdict.reason
    assert "Reshape" in verdict.reason


def test_a_candidate_that_cannot_be_opened():
    verdict = Reference(mlp()).check(mlp(("Relu(y)", "my.Nope(y)")))
    assert verdict.state == "failed"
    assert "my:Nope" in verdict.reason


# never "verified" without proof ----------------------------------------------------------------------------------


def test_an_original_that_cannot_be_opened_is_unverified():
    strange = mlp(("Relu(y)", "my.Nope(y)"))
    verdict = Reference(strange).check(strange.clone())
    assert verdict.state == "unverified"
    assert not verdict.ok
    assert "my:Nope" in str(verdict)
    assert str(verdict).startswith("could not verify: the original cannot be opened")


def test_an_original_that_never_runs_is_unverified():
    never = model("g (float[2] a, float[3] b) => (float[c] y) { s = Size(a) y = my.f(a, b) }"
                  '<domain: "my", opset_import: ["": 17]> f (p, q) => (o) { o = Add(p, q) }')  # fmt: skip
    verdict = Reference(never).check(never.clone())
    assert verdict.state == "unverified"


def test_inputs_that_cannot_be_drawn_are_unverified():
    sequence = model("g (seq(float[n]) s) => (float[n] y) { i = Constant<value_int = 0>() y = SequenceAt(s, i) }")
    verdict = Reference(sequence).check(sequence.clone())
    assert verdict.state == "unverified"
    assert "sequence" in verdict.reason


@pytest.mark.parametrize(
    "text",
    [
        "g (float[n] x) => (float[n] y) { m = Abs(x) k = Neg(m) s = Sqrt(k) y = Sub(s, s) }",
        "g (float[n] x) => (float[n] y) { y = RandomNormalLike(x) }",
        "g (float[0] x) => (float[0] y) { y = Relu(x) }",
    ],
    ids=["nan", "random", "empty"],
)
def test_nothing_comparable_is_unverified(text):
    m = model(text)
    verdict = Reference(m).check(m.clone())
    assert verdict.state == "unverified"
    assert "could not verify" in str(verdict)


# randomness ------------------------------------------------------------------------------------------------------


def test_random_outputs_are_compared_by_shape_and_the_others_by_value():
    text = "g (float[n] x) => (float[n] noisy, float[n] y) { r = RandomNormalLike(x) noisy = Add(x, r) y = Neg(x) }"
    reference = Reference(model(text))
    verdict = reference.check(model(text))
    assert verdict.ok
    assert verdict.incomparable == ("noisy",)
    assert "only shape and type were compared: noisy" in str(verdict)
    assert not reference.check(model(text.replace("Neg(x)", "Abs(x)"))).ok
    short = text.replace("Add(x, r)", "ReduceSum(r)")
    assert not reference.check(model(short)).ok


@pytest.mark.parametrize(
    ("body", "random"),
    [
        ("y = Neg(x)", False),
        ("y = RandomUniformLike(x)", True),
        ("y = Bernoulli(x)", True),
        ("y, m = Dropout(x)", False),
        ("r = Constant<value_float = 0.5>() t = Constant<value = bool {0}>() y, m = Dropout(x, r, t)", False),
        ("r = Constant<value_float = 0.5>() t = Constant<value = bool {1}>() y, m = Dropout(x, r, t)", True),
        ("y = my.noise(x)", True),
        ("y = my.calm(x)", False),
        (
            "c = Constant<value = bool {1}>() y = If (c) <then_branch = a () => (float[n] p)"
            " { p = RandomNormalLike(x) }, else_branch = b () => (float[n] q) { q = Neg(x) }>",
            True,
        ),
        (
            "r = RandomNormalLike(x) c = Constant<value = bool {1}>() y = If (c) <then_branch = a () => (float[n] p)"
            " { p = Neg(r) }, else_branch = b () => (float[n] q) { q = Neg(x) }>",
            True,
        ),
        ("r = RandomNormalLike(x) y = Neg(x)", False),
    ],
)
def test_randomness_is_followed_through_the_graph(body, random):
    m = model(
        f"g (float[n] x) => (float[n] y) {{ {body} }}"
        '<domain: "my", opset_import: ["": 17]> noise (a) => (b) { r = RandomNormalLike(a) b = Add(a, r) }'
        '<domain: "my", opset_import: ["": 17]> calm (a) => (b) { b = Neg(a) }'
    )
    assert (random_outputs(m) == {"y"}) == random


# samples and precision -------------------------------------------------------------------------------------------


def test_given_samples_are_used_and_checked():
    samples = [{"x": np.ones((n, 2), np.float32)} for n in (1, 4)]
    reference = Reference(mlp(), samples=samples)
    assert [run.outputs["y"].shape[0] for run in reference.runs] == [1, 4]
    assert reference.check(mlp()).ok
    with pytest.raises(DataError, match="'x' is missing"):
        Reference(mlp(), samples=[{"q": samples[0]["x"]}])


def test_the_class_of_numerics_decides():
    reference, off = Reference(mlp()), mlp(("3.0}", "3.0005}"))
    verdicts = [reference.check(off, numerics).ok for numerics in Numerics]
    assert verdicts == [False, False, True, True]


def test_half_models_are_given_half_tolerances():
    half = model("g (float16[n, 8] x) => (float16[n, 8] y) { a = Exp(x) y = Div(x, a) }")
    assert coarsest_float(half) == onnx_ir.DataType.FLOAT16
    assert coarsest_float(mlp()) == onnx_ir.DataType.FLOAT
    other = model("g (float16[n, 8] x) => (float16[n, 8] y) { n = Neg(x) a = Exp(n) y = Mul(x, a) }")
    assert Reference(half).check(other, Numerics.ROUNDING).ok


def test_the_original_is_run_once(monkeypatch):
    opened = []

    def counting(subject):
        opened.append(subject)
        return Session(subject, optimization="off")

    reference = Reference(mlp(), open=counting)
    for _ in range(3):
        reference.check(mlp())
    assert len(opened) == 4
