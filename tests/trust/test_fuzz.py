"""A short run of what ``python -m tests.trust.fuzz`` and ``python -m tests.trust.fuzz_bytes`` do at length."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import onnx
import pytest

from optc.plugins import environment

from . import fuzz, fuzz_bytes
from .children import Death, attempts
from .graphs import graph
from .loaders import LOADERS
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


def test_what_is_damaged_was_good(tmp_path: Path) -> None:
    for loader in LOADERS.values():
        for data in loader.seeds(tmp_path):
            loader.read(data, tmp_path)


def test_damaged_files_are_refused() -> None:
    seen: Counter[str] = Counter()
    assert not list(fuzz_bytes.faults(2000, 0, seen))
    for kind in LOADERS:
        assert seen[f"{kind}: loaded"] or seen[f"{kind}: refused"]
    assert sum(seen.values()) == 2000


def test_hangs_crashes_and_greed_are_noticed() -> None:
    """Attempts that end or stop their process are told of by their seeds, and the others are made all the same."""

    def attempt(seed: int) -> str:
        if seed == 3:
            time.sleep(60)
        if seed == 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        if seed == 6:
            try:
                bytearray(1 << 30)
            except MemoryError:
                return "no memory"
        return "done"

    fates = dict(attempts(attempt, range(8), batch=4, seconds=0.5, memory=1 << 28))
    assert fates.pop(3) == Death("SIGALRM")
    assert fates.pop(5) == Death("SIGSEGV")
    assert fates.pop(6) == "no memory"
    assert fates == dict.fromkeys((0, 1, 2, 4, 7), "done")
