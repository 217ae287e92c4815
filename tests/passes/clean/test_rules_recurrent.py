"""Recurrent layers with states of zeros."""

from __future__ import annotations

import numpy as np
import pytest

from optc.passes.clean.simplify import Simplify

from .rulecheck import check

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def _weights(op: str) -> str:
    rows = 2 * _GATES[op]
    numbers = [f"{0.1 * (place % 7) - 0.3:.1f}" for place in range(rows * 5)]
    w, r = (", ".join(part) for part in (numbers[: rows * 3], numbers[rows * 3 :]))
    return f"float[1, {rows}, 3] w = {{{w}}}, float[1, {rows}, 2] r = {{{r}}}"


def _layer(op: str, states: str, outputs: str = "a, y") -> str:
    return f"{outputs} = {op} <hidden_size = 2> (x, w, r, , , {states})"


_FEEDS = [{"x": np.random.default_rng(batch).standard_normal((4, batch, 3)).astype(np.float32)} for batch in (1, 3)]
_ZEROS = """s = Shape (x) i = Constant <value_ints = [1]> () n = Gather (s, i) one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> () d = Concat <axis = 0> (one, n, two) z = ConstantOfShape (d)"""


@pytest.mark.parametrize("op", sorted(_GATES))
def test_zeros_are_left_out(op):
    states = "z, z" if op == "LSTM" else "z"
    text = f"g (float[4, N, 3] x) => (float[1, N, 2] y) <{_weights(op)}> {{ {_ZEROS} {_layer(op, states)} }}"
    outcome = check(text, Simplify(), feeds=_FEEDS)
    assert outcome.hits["zero-state"] == 1
    assert outcome.ops == {op: 1}


def test_each_state_by_itself_and_other_outputs():
    text = f"""g (float[4, N, 3] x, float[1, N, 2] h) => (float[1, N, 2] y) <{_weights("LSTM")}, float zero = {{0}}>
        {{ s = Shape (h) z = Expand (zero, s) {_layer("LSTM", "h, z", ", , y")} }}"""
    feeds = [{**feed, "h": np.ones((1, feed["x"].shape[1], 2), np.float32)} for feed in _FEEDS]
    outcome = check(text, Simplify(), feeds=feeds)
    assert outcome.hits == {"zero-state": 1}
    assert outcome.ops == {"LSTM": 1}


def test_other_numbers_stay():
    ones = _ZEROS.replace("ConstantOfShape (d)", "ConstantOfShape <value = float[1] {0.5}> (d)")
    text = f"g (float[4, N, 3] x) => (float[1, N, 2] y) <{_weights('GRU')}> {{ {ones} {_layer('GRU', 'z')} }}"
    assert "zero-state" not in check(text, Simplify(), feeds=_FEEDS).hits
