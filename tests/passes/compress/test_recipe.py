"""Recipes: what was decided, pinned and done again."""

from __future__ import annotations

import pytest

from optc.ir.errors import UsageError
from optc.ir.rewriter import Rewriter
from optc.passes.compress.layers import weighted_layers
from optc.passes.compress.quantize import Quantize
from optc.passes.compress.recipe import Recipe, layers_digest, read_recipe
from tests.passes.compress.test_quantize import BODY, FASTER, WEIGHTS, Pretended, ops, quantize
from tests.passes.compress.texts import parse


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "r.toml"
    recipe = Recipe("sha256:1", {'odd "name"\\é': "int8", "b": "int4-rtn"}, str(path))
    path.write_text(recipe.text(), encoding="utf-8")
    assert read_recipe(path) == recipe


def test_it_is_done_again_without_a_search(tmp_path):
    original = parse(BODY, WEIGHTS)
    first = original.clone()
    ctx = quantize(first, Pretended(original, FASTER))
    path = tmp_path / "r.toml"
    path.write_text(ctx.recipe)
    again, measure = original.clone(), Pretended(original, {})  # nothing is faster now: it is not asked
    quantize(again, measure, item=Quantize(recipe=str(path)))
    assert ops(again) == ops(first) and "DynamicQuantizeMatMul" in ops(again)
    assert measure.judged == 1
    names = [list(v.const_value.numpy().ravel()[:4]) for v in again.graph.initializers.values()]
    assert names == [list(v.const_value.numpy().ravel()[:4]) for v in first.graph.initializers.values()]


def test_that_nothing_is_worth_it_is_pinned_too(tmp_path):
    original = parse(BODY, WEIGHTS)
    ctx = quantize(original.clone(), Pretended(original, {}))  # nothing is faster
    path = tmp_path / "r.toml"
    path.write_text(ctx.recipe)
    assert not read_recipe(path).options
    model, measure = original.clone(), Pretended(original, FASTER)  # all is faster now: it is not asked
    ctx = quantize(model, measure, item=Quantize(recipe=str(path)))
    assert ops(model) == ops(original) and measure.judged == 0
    assert ctx.decisions[-1].reason == "the recipe leaves every layer as it is"


def test_outside_of_the_budget_it_is_refused(tmp_path):
    original = parse(BODY, WEIGHTS)
    path = tmp_path / "r.toml"
    path.write_text(quantize(original.clone(), Pretended(original, FASTER)).recipe)
    model = original.clone()
    ctx = quantize(model, Pretended(original, FASTER, max_error=1e-6), item=Quantize(recipe=str(path)))
    assert ops(model) == ops(original) and "more than the 1e-06 allowed" in ctx.decisions[-1].reason


def test_it_fits_one_model(tmp_path):
    original = parse(BODY, WEIGHTS)
    layers = list(weighted_layers(original.graph, Rewriter(original).facts))
    path = tmp_path / "r.toml"
    for recipe, words in (
        (Recipe("sha256:0", {layers[0].name: "dynamic-int8"}), "another model"),
        (Recipe(layers_digest(layers), {"nothing": "dynamic-int8"}), "no layer 'nothing'"),
        (Recipe(layers_digest(layers), {layers[0].name: "int3"}), "cannot be 'int3'"),
    ):
        path.write_text(recipe.text())
        with pytest.raises(UsageError, match=words):
            quantize(original.clone(), Pretended(original, FASTER), item=Quantize(recipe=str(path)))


@pytest.mark.parametrize(
    "content, words",
    [
        ("x", "not a recipe"),
        ("version = 1", "lacks"),
        ('version = 1\nlayers = "s"\n[options]\na = 1', "not a text"),
        ('version = 9\nlayers = "s"\n[options]\na = "b"', "update optc"),
    ],
)
def test_what_is_no_recipe(tmp_path, content, words):
    path = tmp_path / "r.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=words):
        read_recipe(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(tmp_path / "missing.toml")
