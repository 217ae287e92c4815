"""Transposes beside views: whatever is drawn, one Transpose or none moves every element to the same place."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from .formulas import Formula, evaluate, fired, rewrite

quick = settings(max_examples=80, deadline=None)


def _ops(result) -> Counter[str]:
    return Counter(node.op_type for node in result.model.graph)


@quick
@given(st.data())
def test_transposes_around_a_reshape(data):
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=2, max_size=4))
    first = data.draw(st.permutations(range(len(shape))))
    middle = [shape[axis] for axis in first]
    after = list(middle)
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(0, len(after) - 1))
        if data.draw(st.booleans()) and place + 1 < len(after):
            after[place : place + 2] = [after[place] * after[place + 1]]
        elif after[place] % 2 == 0:
            after[place : place + 1] = [2, after[place] // 2]
        else:
            after.insert(place, 1)
    second = data.draw(st.permutations(range(len(after))))
    formula = Formula(data.draw)
    x = formula.op("Transpose", "x", perm=list(first))
    x = formula.op("Reshape", x, formula.weight(np.array(after, np.int64)))
    model = formula.model({"x": shape}, formula.op("Transpose", x, perm=list(second)))
    result = rewrite(model)
    feeds = {"x": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}
    assert np.array_equal(evaluate(result, feeds), evaluate(model, feeds))
    hits = fired(result)
    if "transpose-through-view" in hits:
        assert _ops(result)["Transpose"] <= 1


def test_rows_of_an_image_with_channels_behind():
    """The image's axes are joined while its channels are in front: to put these back at the end moves nothing."""
    formula = Formula(lambda strategy: False)
    x = formula.op("Transpose", "x", perm=[0, 3, 1, 2])
    x = formula.op("Reshape", x, formula.weight(np.array([0, 8, -1], np.int64)))
    model = formula.model({"x": [2, "H", "W", 8]}, formula.op("Transpose", x, perm=[0, 2, 1]))
    result = rewrite(model)
    assert _ops(result) == {"Reshape": 1, "Identity": 1}
    for height, width in ((3, 4), (1, 5)):
        feeds = {"x": np.random.default_rng(0).random((2, height, width, 8), np.float32)}
        assert np.array_equal(evaluate(result, feeds), evaluate(model, feeds))


def test_what_must_stay():
    torn = Formula(lambda strategy: False)
    x = torn.op("Transpose", "x", perm=[0, 2, 1])
    x = torn.op("Reshape", x, torn.weight(np.array([2, 4, 3, 6], np.int64)))
    result = rewrite(torn.model({"x": [2, 8, 9]}, torn.op("Transpose", x, perm=[0, 2, 1, 3])))
    assert "torn apart" in result.misses["transpose-through-view"][0].wanted
    read = Formula(lambda strategy: False)
    turned = read.op("Transpose", "x", perm=[0, 2, 1])
    x = read.op("Reshape", turned, read.weight(np.array([2, 3, 3, 8], np.int64)))
    x = read.op("Transpose", x, perm=[3, 0, 1, 2])
    y = read.op("Mul", x, read.op("ReduceSum", turned, keepdims=0))
    result = rewrite(read.model({"x": [2, 8, 9]}, y))
    assert "needed anyway" in result.misses["transpose-through-view"][0].wanted


@quick
@given(st.lists(st.sampled_from([1, 1, 3, 4]), min_size=2, max_size=5), st.data())
def test_only_axes_of_one_entry_move(shape, data):
    perm = data.draw(st.permutations(range(len(shape))))
    formula = Formula(data.draw)
    model = formula.model({"x": shape}, formula.op("Transpose", "x", perm=list(perm)))
    result = rewrite(model)
    kept = [axis for axis in perm if shape[axis] != 1]
    views = kept == sorted(kept) and list(perm) != sorted(perm)
    assert fired(result) == ({"transpose-is-view": 1} if views else {})
    feeds = {"x": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}
    assert np.array_equal(evaluate(result, feeds), evaluate(model, feeds))
