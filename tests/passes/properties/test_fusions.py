"""Every fusion, on mutants of every golden case."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest
from hypothesis import given
from onnx import numpy_helper

from optc.passes.fusion.fuse import fusions
from optc.passes.levels import builtin_levels
from optc.passes.pipeline import Pipeline, parse_pipeline
from optc.passes.registry import pass_registry

from ...golden.case import CASES, Case, read_case
from .judge import draw_feeds, judge
from .mutants import mutate
from .settings import CHANCE, long, quick

PATHS = sorted(CASES.glob("*.txt"))
every_case = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@functools.cache
def _pipelines(text: str) -> tuple[Pipeline, ...]:
    """The case's own passes, those with every operator that the target has, and all of -O2."""
    texts = (text, text.replace("emit", "emit{slow=true}"), builtin_levels()[2].text)
    return tuple(parse_pipeline(one, pass_registry()) for one in texts)


def _check(case: Case, rng: random.Random) -> None:
    seed = case.model()
    mutant, _ = mutate(seed, rng)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in seed.graph.initializer}
    feeds = draw_feeds(mutant, rng, constants)
    pipeline = rng.choice(_pipelines(case.headers["pipeline"]))
    judge(mutant, feeds, pipeline, tolerance=case.tolerance)


@every_case
def test_mutants(path: Path) -> None:
    case = read_case(path)
    quick(given(CHANCE)(lambda rng: _check(case, rng)))()


@pytest.mark.long
@every_case
def test_many_mutants(path: Path) -> None:
    case = read_case(path)
    long(given(CHANCE)(lambda rng: _check(case, rng)))()


def test_every_fusion_has_a_seed() -> None:
    seeded = {rule for path in PATHS for rule in read_case(path).fires}
    missing = sorted(set(fusions()) - seeded)
    assert not missing, f"no golden case in tests/golden/cases fires {', '.join(missing)}: add one, it is the seed"
