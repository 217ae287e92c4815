"""The cheapest division, against all of them."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.passes.precision.cut import Cut

COSTS = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5, 7.0])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_division_is_cheaper(data):
    count = data.draw(st.integers(1, 6))
    sides = [(data.draw(COSTS), data.draw(COSTS)) for _ in range(count)]
    forced = data.draw(st.integers(0, count - 1))
    sides[forced] = (math.inf, sides[forced][1])
    places = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1), COSTS)
    apart = data.draw(st.lists(places, max_size=12))

    def cost(low: set[int]) -> float:
        own = sum(sides[index][0 if index in low else 1] for index in range(count))
        return own + sum(one for a, b, one in apart if a in low and b not in low)

    cut = Cut()
    things = [cut.thing(low, high) for low, high in sides]
    for a, b, one in apart:
        cut.apart(things[a], things[b], one)
    found = {index for index, thing in enumerate(things) if thing in cut.low()}
    every = [set(low) for size in range(count + 1) for low in itertools.combinations(range(count), size)]
    assert cost(found) == pytest.approx(min(map(cost, every)))
