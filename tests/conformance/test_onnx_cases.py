"""Every test case of the ONNX standard that ONNX Runtime answers as expected must be answered so after optimizing."""

from __future__ import annotations

import contextlib

import onnx
import pytest

import optc
from optc.ir.errors import OptcError

from .cases import VARIANTS, Case, load_cases
from .judge import Unrunnable, judge, judgeable

CASES = load_cases()


def optimize(model: onnx.ModelProto, level: int) -> onnx.ModelProto:
    return optc.optimize(model, level=level, target="cpu")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_optimizing_keeps_the_answer(case: Case) -> None:
    try:
        case = judgeable(case)
    except Unrunnable as reason:
        with contextlib.suppress(OptcError):  # such a model may be refused, in plain words
            optimize(case.model, 2)
        pytest.skip(f"ONNX Runtime does not run the original: {reason}")
    failures = []
    for variant, (change, levels) in VARIANTS.items():
        if (changed := change(case)) is None:
            continue
        try:
            changed = judgeable(changed)
        except Unrunnable:
            continue
        for level in levels:
            if problem := judge(changed, optimize, level):
                failures.append(f"{case.name}, {variant}, level {level}: {problem}")
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)


def test_most_cases_can_be_judged() -> None:
    """Guards against a harness that quietly skips."""

    def runs(case: Case) -> bool:
        try:
            judgeable(case)
        except Unrunnable:
            return False
        return True

    judged = sum(map(runs, CASES))
    assert len(CASES) >= 1100
    assert judged >= 0.8 * len(CASES), f"ONNX Runtime runs only {judged} of {len(CASES)} cases"
