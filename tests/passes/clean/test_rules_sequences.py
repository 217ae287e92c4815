"""Sequences of known make-up."""

from __future__ import annotations

import pytest

from optc.passes.clean.simplify import Simplify

from .rulecheck import check

_CONSTANTS = (
    "<int64 two = {2}, int64[2] sizes = {1,5}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, int64 last = {-1}>"
)

CASES = [
    (
        "s = SplitToSequence <axis = 1> (x, two) a = SequenceAt(s, i0) b = SequenceAt(s, last) y = Add(a, b)",
        {"Split": 1, "Add": 1},
    ),
    (
        "s = SplitToSequence <axis = -1> (x, sizes) a = SequenceAt(s, i1) y = Neg(a)",
        {"Slice": 1, "Neg": 1},
    ),
    (
        "s = SplitToSequence <axis = 1, keepdims = 0> (x) a = SequenceAt(s, i1) y = Neg(a)",
        {"Gather": 1, "Neg": 1},
    ),
    # the number of members is not known, or the sequence has another reader
    (
        "s = SplitToSequence <axis = 0> (x, two) a = SequenceAt(s, i0) y = Neg(a)",
        {"SplitToSequence": 1, "SequenceAt": 1, "Neg": 1},
    ),
    (
        "s = SplitToSequence <axis = 1> (x, two) a = SequenceAt(s, i0) n = SequenceLength(s) m = Cast <to = 1> (n) "
        "y = Mul(a, m)",
        {"SplitToSequence": 1, "SequenceAt": 1, "SequenceLength": 1, "Cast": 1, "Mul": 1},
    ),
    ("s = SequenceConstruct(x, z) a = SequenceAt(s, last) y = Neg(a)", {"Neg": 1}),
    ("s = SequenceConstruct(x, z) y = ConcatFromSequence <axis = -1> (s)", {"Concat": 1}),
    ("s = SequenceConstruct(x, x) y = ConcatFromSequence <axis = 0, new_axis = 1> (s)", {"Concat": 1, "Unsqueeze": 2}),
    ("s = SplitToSequence <axis = 1> (x, two) a = ConcatFromSequence <axis = 1> (s) y = Neg(a)", {"Neg": 1}),
    (
        "s = SplitToSequence <axis = 1> (x, two) y = ConcatFromSequence <axis = 0> (s)",
        {"SplitToSequence": 1, "ConcatFromSequence": 1},
    ),
]


@pytest.mark.parametrize(("body", "left"), CASES)
@pytest.mark.parametrize("opset", [12, 17, 18])
def test_rule(body, left, opset):
    shape = "A,B,C" if "new_axis" in body else "A" if "keepdims = 0" in body else "A,B"
    text = f"g (float[N,6] x, float[N,6] z) => (float[{shape}] y) {_CONSTANTS} {{ {body} }}"
    outcome = check(text, Simplify(), opset=opset, sizes=(3, 1))
    assert outcome.ops == left
    assert outcome.runs > 0
