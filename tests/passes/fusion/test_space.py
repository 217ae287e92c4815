"""Blocks of pixels and channels that change places, in every spelling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .formulas import Formula, evaluate, fired, rewrite

quick = settings(max_examples=25, deadline=None)
sizes = st.integers(1, 4)


def _agree(formula: Formula, shape: list[int], y: str, rule: str) -> None:
    model = formula.model({"x": [None if axis == 0 else dim for axis, dim in enumerate(shape)]}, y)
    result = rewrite(model)
    assert fired(result) == {rule: 1}
    assert not {"Transpose", "Slice"} & {node.op_type for node in result.model.graph}
    feeds = {"x": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}
    assert np.array_equal(evaluate(result, feeds), evaluate(model, feeds))


def _moved(formula: Formula, split: list[int], perm: list[int], join: list[int]) -> str:
    x = formula.op("Reshape", "x", formula.weight(np.array(split, np.int64)))
    x = formula.op("Transpose", x, perm=perm)
    return formula.op("Reshape", x, formula.weight(np.array(join, np.int64)))


@quick
@given(st.data(), sizes, sizes, sizes, st.integers(2, 3), st.booleans())
def test_to_space(data, channels, height, width, size, channels_first):
    formula = Formula(data.draw)
    split = [channels, size, size] if channels_first else [size, size, channels]
    perm = [0, 1, 4, 2, 5, 3] if channels_first else [0, 3, 4, 1, 5, 2]
    y = _moved(formula, [-1, *split, height, width], perm, [-1, channels, height * size, width * size])
    _agree(formula, [2, channels * size**2, height, width], y, "depth-to-space")


@quick
@given(st.data(), sizes, sizes, sizes, st.integers(2, 3), st.booleans())
def test_to_depth(data, channels, height, width, size, channels_first):
    formula = Formula(data.draw)
    perm = [0, 1, 3, 5, 2, 4] if channels_first else [0, 3, 5, 1, 2, 4]
    split, join = [-1, channels, height, size, width, size], [-1, channels * size**2, height, width]
    _agree(formula, [2, channels, height * size, width * size], _moved(formula, split, perm, join), "space-to-depth")


@quick
@given(st.data(), sizes, sizes, sizes, st.integers(2, 3))
def test_strided_slices(data, channels, height, width, size):
    formula = Formula(data.draw)
    ints = {n: formula.weight(np.array([n], np.int64)) for n in (*range(4), 2**31 - 1, height * size)}
    end = data.draw(st.sampled_from([2**31 - 1, height * size]))
    parts = []
    for place in data.draw(st.permutations(range(size * size))):
        row = formula.op("Slice", "x", ints[place // size], ints[end], ints[2], ints[size])
        parts.append(formula.op("Slice", row, ints[place % size], ints[2**31 - 1], ints[3], ints[size]))
    y = formula.op("Concat", *parts, axis=-3)
    _agree(formula, [2, channels, height * size, width * size], y, "focus")


@pytest.mark.parametrize("dtype", [np.float16, np.int32])
def test_types_without_a_kernel_stay_as_they_are(dtype):
    formula = Formula(lambda strategy: False, dtype=dtype)
    y = _moved(formula, [-1, 2, 2, 2, 3, 3], [0, 1, 4, 2, 5, 3], [-1, 2, 6, 6])
    result = rewrite(formula.model({"x": [1, 8, 3, 3]}, y))
    assert [node.op_type for node in result.model.graph] == ["Reshape", "Transpose", "Reshape", "Identity"]
