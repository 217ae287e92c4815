"""Every rule of the clean-up, on mutants of its seed: exactly the same numbers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from onnx import numpy_helper

from optc.passes.clean import rules_shapes
from optc.passes.clean.simplify import RULES
from optc.passes.levels import builtin_levels
from optc.passes.pipeline import Pipeline, parse_pipeline
from optc.passes.registry import pass_registry

from .clean_seeds import SEEDS, seed
from .judge import draw_feeds, judge
from .mutants import mutate
from .settings import CHANCE, long, quick

every_rule = pytest.mark.parametrize("rule", SEEDS)
_ALL = parse_pipeline(builtin_levels()[1].text, pass_registry())


def _alone(rule: str) -> Pipeline:
    text = f"simplify{{only=[{rule}]}}" if rule in RULES else "shapes"
    return parse_pipeline(text, pass_registry())


def _check(rule: str, rng: random.Random) -> None:
    model = seed(rule)
    mutant, _ = mutate(model, rng)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    feeds = draw_feeds(mutant, rng, constants)
    judge(mutant, feeds, rng.choice([_alone(rule), _ALL]), tolerance=0)


@every_rule
def test_mutants(rule: str) -> None:
    quick(given(CHANCE)(lambda rng: _check(rule, rng)))()


@pytest.mark.long
@every_rule
def test_many_mutants(rule: str) -> None:
    long(given(CHANCE)(lambda rng: _check(rule, rng)))()


@every_rule
def test_a_seed_fires_its_rule(rule: str) -> None:
    model = seed(rule)
    verdict = judge(model, draw_feeds(model, random.Random(0), {}), _alone(rule), tolerance=0)
    assert verdict.hits.get(rule) and verdict.runs


def test_every_rule_has_a_seed() -> None:
    rules = {*RULES, *(rule.name for rule in rules_shapes.RULES)}
    missing = sorted(rules - set(SEEDS))
    assert not missing, f"clean_seeds.py has no graph at which {', '.join(missing)} fires: add one"
