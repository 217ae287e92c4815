"""Pads in front of convolutions and pools: what the operator may do itself, and that it then does the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .formulas import Formula, close, evaluate, fired, rewrite

quick = settings(max_examples=60, deadline=None)
amounts = st.lists(st.integers(0, 2), min_size=4, max_size=4)


def _padded(formula: Formula, x: str, pads: list[int], value: float, axes: bool) -> str:
    """A Pad of the axes of space, all axes named or only these."""
    ints = pads if axes else [0, 0, *pads[:2], 0, 0, *pads[2:]]
    named = [formula.weight(np.array([-2, 3], np.int64))] if axes else []
    filler = formula.weight(np.array(value, np.float32))
    return formula.op("Pad", x, formula.weight(np.array(ints, np.int64)), filler, *named)


@quick
@given(
    st.data(),
    st.sampled_from(["Conv", "MaxPool", "AveragePool"]),
    amounts,
    amounts,
    st.sampled_from([0.0, -np.inf, 1.0]),
    st.sampled_from(["", "Relu", "Neg"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 999),
)
def test_pads(data, op, pads, own, value, before, counts, axes, seed):
    rng = np.random.default_rng(seed)
    formula = Formula(data.draw, opset=18)
    x = formula.op(before, "x") if before else "x"
    padded = _padded(formula, x, pads, value, axes)
    attributes: dict[str, object] = {"kernel_shape": [3, 3], "strides": [2, 1], "pads": own}
    if op == "AveragePool":
        attributes["count_include_pad"] = int(counts)
    weights = [formula.weight(rng.standard_normal([4, 2, 3, 3]).astype(np.float32))] if op == "Conv" else []
    # Where a window may be larger than the input, an AveragePool does not count as a Pad does: sizes must be known.
    heights = (7,) if op == "AveragePool" else (4, 7)
    model = formula.model(
        {"x": ["N", 2, 7 if len(heights) == 1 else "H", 5]}, formula.op(op, padded, *weights, **attributes)
    )
    result = rewrite(model)
    inside = all(a + b < 3 for a, b in zip(pads, own, strict=True))
    fits = {
        "Conv": value == 0,
        "MaxPool": inside and (value == -np.inf or (value == 0 and before == "Relu")),
        "AveragePool": inside and value == 0 and (counts or not any(own)),
    }[op]
    rule = "pad-conv" if op == "Conv" else "pad-pool"
    assert fired(result) == ({rule: 1} if fits else {})
    if not fits:
        assert result.misses[rule]
        return
    for height in heights:
        feeds = {"x": rng.standard_normal([2, 2, height, 5]).astype(np.float32)}
        assert close(evaluate(result, feeds), evaluate(model, feeds))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [({"ceil_mode": 1}, "rounded up"), ({"dilations": [2, 2]}, "dilated"), ({"auto_pad": "SAME_UPPER"}, "itself")],
)
def test_windows_that_are_other_than_plain(attributes, reason):
    formula = Formula(lambda strategy: False, opset=18)
    padded = _padded(formula, "x", [1, 1, 1, 1], -np.inf, False)
    y = formula.op("MaxPool", padded, kernel_shape=[3, 3], **attributes)
    result = rewrite(formula.model({"x": [1, 2, 7, 7]}, y))
    assert fired(result) == {}
    assert reason in result.misses["pad-pool"][0].wanted
