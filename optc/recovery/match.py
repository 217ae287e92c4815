"""Which value of the original a value of the compressed model stands for.

Names are a hint, not a proof: a rewrite may have scaled what bears the name still. So a pair must have the same shape
on data, and lie close together there. What has no counterpart by name is looked for among all values of its shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.passes.calibration.taps import Opener, values_of
from optc.recovery.batches import Arrays, Shelf, capture

#: Relative L2 error up to which a value of the same name, or without it, is the same but for compression.
_NAMED, _NEAREST = 0.9, 0.6
#: Numbers of a value that are compared, and values that are run at once.
_NUMBERS, _AT_ONCE = 1 << 14, 64


def match(
    compressed: onnx_ir.Model, wanted: Sequence[str], original: onnx_ir.Model, probe: Arrays, opener: Opener
) -> dict[str, str]:
    """Names of values of the compressed model -> names in the original.

    Args:
        compressed: The compressed model.
        wanted: Values to find counterparts of, in the graph's order.
        original: The original.
        probe: Inputs of one run.
        opener: Opens copies of either.
    """
    there = list(values_of(original.graph))
    known = set(there)
    facts = Facts(original)
    floats = [name for name, value in values_of(original.graph).items() if _may_match(value, facts)]
    mine = _sketches(compressed, wanted, probe, opener)
    named = [name for name in wanted if name in known]
    theirs = _sketches(original, [name for name in named if name in floats], probe, opener)
    found = {name: name for name in theirs if _distance(mine[name], theirs[name]) <= _NAMED}
    left = [name for name in wanted if name not in found]
    if left:
        found |= _nearest({name: mine[name] for name in left}, original, floats, probe, opener)
    return found


def _may_match(value: onnx_ir.Value, facts: Facts) -> bool:
    dtype = facts.dtype(value)
    return dtype is not None and dtype.is_floating_point() and not value.is_graph_input()


def _nearest(
    mine: dict[str, np.ndarray], original: onnx_ir.Model, names: Sequence[str], probe: Arrays, opener: Opener
) -> dict[str, str]:
    best: dict[str, tuple[float, str]] = {}
    for start in range(0, len(names), _AT_ONCE):
        for other, theirs in _sketches(original, names[start : start + _AT_ONCE], probe, opener).items():
            for name, numbers in mine.items():
                distance = _distance(numbers, theirs)
                if distance <= min(_NEAREST, best.get(name, (np.inf, ""))[0]):
                    best[name] = (distance, other)
    return {name: other for name, (_, other) in best.items()}


def _sketches(model: onnx_ir.Model, names: Sequence[str], probe: Arrays, opener: Opener) -> dict[str, np.ndarray]:
    """A part of every value that is the same for all values of one shape, led by the shape itself."""
    inputs = Shelf()
    inputs.add(probe)
    found = capture(model, names, inputs, opener)[0] if names else {}
    return {name: _sketch(array) for name, array in found.items()}


def _sketch(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1)
    chosen = flat
    if flat.size > _NUMBERS:
        chosen = flat[np.random.default_rng(0).integers(flat.size, size=_NUMBERS)]
    return np.concatenate([np.array([array.ndim, *array.shape]), chosen.astype(np.float64)])


def _distance(mine: np.ndarray, theirs: np.ndarray) -> float:
    head = 1 + int(theirs[0])
    if mine.shape != theirs.shape or not np.array_equal(mine[:head], theirs[:head]):
        return float("inf")
    a, b = mine[head:], theirs[head:]
    norm = float(np.linalg.norm(b))
    distance = float(np.linalg.norm(a - b)) / norm if norm else float("inf")
    return distance if np.isfinite(distance) else float("inf")
