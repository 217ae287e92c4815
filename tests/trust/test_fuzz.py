"""A short run of what ``python -m tests.trust.fuzz`` and ``python -m tests.trust.fuzz_bytes`` do at length."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest

from optc.plugins import environment

from . import fuzz, fuzz_bytes
from .graphs import graph
from .planted import BUGS, planted


@pytest.mark.parametrize("seed", range(40))
def test_what_is_generated_is_valid(seed: int) -> None:
    model = graph(seed)
    onnx.checker.check_model(model, full_check=True)
    assert graph(seed).SerializeToString() == model.SerializeToString()


def test_graphs_differ_and_use_many_operators() -> None:
    ops = Counter(node.op_type for seed in range(150) for node in graph(seed).graph.node)
    assert len(ops) > 70
    assert {"If", "Loop", "MatMul", "Conv", "LayerNormalization", "QuantizeLinear"} <= set(ops)


def test_random_graphs_come_out_right() -> None:
    seen: Counter[str] = Counter()
    found = list(fuzz.findings(150, 0, seen))
    assert not found, "\n".join(f"seed {one.seed} {one.options}: {one.reason}" for one in found)
    assert seen["right"] == 150


@pytest.mark.parametrize("name", ["lost-bias", "swapped-difference", "reshape-for-transpose", "lost-activation"])
def test_a_planted_bug_is_met(name: str) -> None:
    assert name in BUGS
    wrong = (fuzz.attack(graph(seed), {"level": 2}, planted(name)) for seed in range(60))
    assert next(filter(None, wrong), None)


def test_every_pass_is_attacked() -> None:
    passes = environment()
    text = " ".join(str(fuzz.options_for(seed, passes)) for seed in range(400))
    assert all(name in text for name in ("fuse", "emit", "fold", "simplify", "cse", "dce", "dedup", "inline", "shapes"))


def test_damaged_files_are_refused() -> None:
    seen = fuzz_bytes.attack(0, 600)
    assert set(seen) == {"loaded", "refused"}
