"""A short run of what ``python -m tests.trust.fuzz`` and ``python -m tests.trust.fuzz_bytes`` do at length."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given

from optc.passes.base import Numerics
from optc.plugins import environment

from ..passes.properties.mutants import all_nodes
from ..passes.properties.settings import CHANCE, quick
from . import fuzz_bytes
from .attack import ATTACKS, Attack, Graphs, attempt, known_rules
from .children import Death, attempts
from .fuzz import Tally, outcomes
from .graphs import graph, models
from .loaders import LOADERS
from .planted import BUGS, planted


def test_most_of_what_is_generated_is_valid() -> None:
    """Only pieces of other models may fit badly; and a seed is one model, always."""
    invalid = []
    for seed in range(60):
        model = graph(seed)
        assert graph(seed).SerializeToString() == model.SerializeToString()
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:
            invalid.append(f"seed {seed}: {error}")
    assert len(invalid) < 9, "\n".join(invalid)


def test_graphs_differ_and_use_much_of_onnx() -> None:
    models = [graph(seed) for seed in range(150)]
    nodes = [node for model in models for node in all_nodes(model.graph)]
    assert len({node.op_type for node in nodes}) > 110
    assert {"If", "Loop", "Scan", "MatMul", "Conv", "QuantizeLinear", "MatMulInteger"} <= {n.op_type for n in nodes}
    assert {"", "fuzz", "com.microsoft"} <= {node.domain for node in nodes}
    assert len({model.opset_import[0].version for model in models}) > 8
    types = {value.type.tensor_type.elem_type for model in models for value in model.graph.input}
    assert {1, 10, 11, 16} <= types
    dims = [dim for m in models for v in m.graph.input for dim in v.type.tensor_type.shape.dim]
    assert any(dim.dim_param for dim in dims) and any(dim.dim_value for dim in dims)
    both = [{v.name for v in m.graph.input} & {t.name for t in m.graph.initializer} for m in models]
    assert any(both), "no initializer is an input as well"


@quick
@given(models(), CHANCE)
def test_random_graphs_come_out_right(model: onnx.ModelProto, rng: random.Random) -> None:
    """Random graphs through the levels, single passes, pairs and random orders; Hypothesis shrinks what fails."""
    attack = Graphs(environment())
    for stages in (attack.levels, *((text,) for text in attack.pipelines(rng.getrandbits(32)))):
        reason, _, _ = attempt(model, 0, stages, attack.environment)
        assert reason is None, f"{stages}: {reason}"


@pytest.mark.parametrize("kind", ATTACKS.values(), ids=list(ATTACKS))
def test_a_short_run_of_the_command(kind: type[Attack]) -> None:
    tally = Tally()
    for outcome in outcomes(kind(environment()), range(25)):
        assert outcome.verdict != "wrong", f"seed {outcome.seed}: {outcome.reason}"
        tally.add(outcome)
    assert tally.verdicts["right"] > 5
    assert "operators: " in tally.coverage()
    assert all(f" {rule}" in tally.coverage() for rule in known_rules() - set(tally.hits))


@pytest.mark.parametrize("name", ["lost-bias", "swapped-difference", "reshape-for-transpose", "lost-activation"])
def test_a_planted_bug_is_met(name: str) -> None:
    assert name in BUGS
    passes = planted(name)
    wrong = (attempt(graph(seed), seed, (f"simplify,planted-{name}",), passes)[0] for seed in range(300))
    assert next(filter(None, wrong), None)


def test_every_pass_is_attacked() -> None:
    attack = Graphs(environment())
    text = " ".join(",".join(attack.pipelines(seed)) for seed in range(400)) + ",".join(attack.levels)
    lossless = {entry.name for entry in environment().passes if entry.load().numerics < Numerics.APPROXIMATE}
    assert lossless and all(name in text for name in lossless)


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
        while seed == 4:
            pass
        if seed == 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        if seed == 6:
            try:
                bytearray(1 << 30)
            except MemoryError:
                return "no memory"
        return "done"

    fates: dict[int, Any] = dict(attempts(attempt, range(8), batch=4, seconds=0.3, patience=10, memory=1 << 28))
    assert fates.pop(3) == Death("SIGALRM")
    assert fates.pop(4).hang  # by either timer: others may use the machine
    assert fates.pop(5) == Death("SIGSEGV")
    assert fates.pop(6) == "no memory"
    assert fates == dict.fromkeys((0, 1, 2, 7), "done")
