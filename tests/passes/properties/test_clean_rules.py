"""Every rule of the clean-up, on mutants of its seed: exactly the same numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from optc.passes.clean import rules_shapes
from optc.passes.clean.simplify import RULES
from optc.passes.levels import builtin_levels
from optc.passes.pipeline import Pipeline, parse_pipeline
from optc.passes.registry import pass_registry

from .clean_seeds import SEEDS, seed
from .judge import draw_feeds, judge
from .mutants import mutate
from .settings import long, quick

every_rule = pytest.mark.parametrize("rule", SEEDS)
_ALL = parse_pipeline(builtin_levels()[1].text, pass_registry())


def _alone(rule: str) -> Pipeline:
    text = f"simplify{{only=[{rule}]}}" if rule in RULES else "shapes"
    return parse_pipeline(text, pass_registry())


def _check(rule: str, data: st.DataObject) -> None:
    model = seed(rule)
    mutant, _ = mutate(model, data.draw)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    feeds = draw_feeds(mutant, data.draw, constants)
    judge(mutant, feeds, data.draw(st.sampled_from([_alone(rule), _ALL])), 0)


@every_rule
def test_mutants(rule: str) -> None:
    quick(given(st.data())(lambda data: _check(rule, data)))()


@pytest.mark.long
@every_rule
def test_many_mutants(rule: str) -> None:
    long(given(st.data())(lambda data: _check(rule, data)))()


@every_rule
def test_a_seed_fires_its_rule(rule: str) -> None:
    model = seed(rule)
    verdict = judge(model, draw_feeds(model, lambda strategy: 0, {}), _alone(rule), 0)
    assert verdict.hits.get(rule) and verdict.runs


def test_every_rule_has_a_seed() -> None:
    rules = {*RULES, *(rule.name for rule in rules_shapes.RULES)}
    missing = sorted(rules - set(SEEDS))
    assert not missing, f"clean_seeds.py has no graph at which {', '.join(missing)} fires: add one"
