"""Resizing: sizes that are scales, and to the same size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from optc.passes.clean.simplify import Simplify

from .rulecheck import check

_MODES = [
    'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
    'mode = "nearest"',
    'mode = "linear"',
    'mode = "linear", coordinate_transformation_mode = "align_corners"',
    'mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel"',
    'mode = "cubic", cubic_coeff_a = -0.75',
]
_TAKEN = """s = Shape (x) i = Constant <value_ints = [0, 1]> () nc = Gather (s, i) j = Constant <value_ints = [2, 3]> ()
    hw = Gather (s, j) k = Constant <value_ints = [{}]> () twice = {} (hw, k) sizes = Concat <axis = 0> (nc, twice)"""


def _feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = itertools.product((1, 2), (1, 3), (2, 5), (1, 4))
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for shape in sizes]


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("factors", ["2", "2, 3"])
def test_sizes_that_are_multiples(mode, factors):
    text = f"""g (float[N, C, H, W] x) => (float[N, C, P, Q] y)
        {{ {_TAKEN.format(factors, "Mul")} y = Resize <{mode}> (x, , , sizes) }}"""
    outcome = check(text, Simplify(only=("resize-scales",)), feeds=_feeds())
    assert outcome.hits == {"resize-scales": 1}


@pytest.mark.parametrize("mode", _MODES)
def test_the_same_size(mode):
    text = f"""g (float[N, C, H, W] x, float[N, C, H, W] z) => (float[N, C, H, W] y)
        {{ s = Shape (z) a = Neg (x) b = Resize <{mode}> (a, , , s) y = Abs (b) }}"""
    feeds = [{"x": one["x"], "z": one["x"]} for one in _feeds()]
    assert check(text, Simplify(only=("resize-identity",)), feeds=feeds).hits == {"resize-identity": 1}
    ones = f"""g (float[N, C, H, W] x) => (float[N, C, H, W] y) <float[4] s = {{1, 1, 1, 1}}>
        {{ a = Neg (x) b = Resize <{mode}> (a, , s) y = Abs (b) }}"""
    assert check(ones, Simplify(only=("resize-identity",)), feeds=_feeds()).hits == {"resize-identity": 1}


def test_sizes_that_are_rounded_stay():
    text = f"""g (float[N, C, H, W] x) => (float[N, C, P, Q] y)
        {{ {_TAKEN.format("2", "Div")} y = Resize <mode = "linear"> (x, , , sizes) }}"""
    feeds = [feed for feed in _feeds() if min(feed["x"].shape[2:]) > 1]
    assert check(text, Simplify(only=("resize-scales",)), feeds=feeds).hits == {}


def test_upsample():
    text = """g (float[N, C, H, W] x) => (float[N, C, H, W] y) <float[4] s = {1, 1, 1, 1}>
        { a = Neg (x) b = Upsample <mode = "nearest"> (a, s) y = Abs (b) }"""
    assert check(text, Simplify(only=("resize-identity",)), opset=9, feeds=_feeds()).hits == {"resize-identity": 1}
