"""Values at the edge of what a model may be given: where a rewrite that is right for ordinary numbers can be wrong.

Of an edge only that is judged which the original itself makes sense of: elements that it computes as finite numbers.
Where it overflows or says NaN, another order of the same sums may well do something else.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir

from optc.backends.base import ValueSpec
from optc.input_roles import Role
from optc.inputs import Bindings, index_interval

Feeds = Mapping[str, np.ndarray]

#: Large and small magnitudes by float type: squares of the first are finite, those of the other underflow.
_LARGE = {"float16": 2.0**6, "bfloat16": 2.0**14, "float32": 2.0**14, "float64": 2.0**14}
_SMALL = {"float16": 2.0**-14, "bfloat16": 2.0**-100, "float32": 2.0**-100, "float64": 2.0**-600}


def _zeros(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(values.shape) < 0.5, 0.0, -0.0)


def _large(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return values.astype(np.float64) * _LARGE[values.dtype.name]


def _small(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return values.astype(np.float64) * _SMALL[values.dtype.name]


def _odd(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A NaN and both infinities in the second half of the first axis, so that the first half stays as it is."""
    result = values.astype(np.float64)
    rest = result[result.shape[0] // 2 :] if result.ndim else result
    if rest.size:
        flat = rest.reshape(-1)
        flat[rng.integers(flat.size, size=3)] = (np.nan, np.inf, -np.inf)
        rest[...] = flat.reshape(rest.shape)
    return result


#: Name -> what becomes of floats that may be anything, of masks, and of indices ("low", "high" or as they were drawn).
EDGES: dict[str, tuple[Callable[[np.ndarray, np.random.Generator], np.ndarray], int | None, str]] = {
    "zeros of both signs, empty masks, lowest indices": (_zeros, 0, "low"),
    "large numbers, full masks, highest indices": (_large, 1, "high"),
    "numbers whose squares underflow": (_small, None, ""),
    "a NaN and infinities": (_odd, None, ""),
}


def edge_feeds(
    specs: tuple[ValueSpec, ...], roles: Mapping[str, Role], feeds: Feeds, bindings: Bindings
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The edges that apply to a model, each with inputs that are like those given but for the edge.

    Args:
        specs: The model's inputs.
        roles: What each is used for.
        feeds: Ordinary inputs.
        bindings: The sizes at which they were drawn.
    """
    for name, (change, mask, index) in EDGES.items():
        edge = {}
        for spec in specs:
            values, role = feeds[spec.name], roles.get(spec.name, Role("plain"))
            rng = np.random.default_rng(zlib.crc32(f"{name} {spec.name}".encode()))
            if role.kind == "plain" and values.dtype.name in _LARGE:
                edge[spec.name] = change(values, rng).astype(values.dtype)
            elif role.kind == "mask" and mask is not None:
                edge[spec.name] = np.full_like(values, mask)
            elif role.kind == "index" and index and spec.dtype is not None:
                edge[spec.name] = np.full_like(values, index_interval(spec.dtype, role, bindings)[index == "high"])
        changed = [key for key, values in edge.items() if values.tobytes() != feeds[key].tobytes()]
        if changed:
            yield name, {**feeds, **edge}


def nudged(specs: tuple[ValueSpec, ...], roles: Mapping[str, Role], feeds: Feeds) -> dict[str, np.ndarray]:
    """Inputs whose floats differ in the last bit: how far that moves the original says how well it is conditioned."""
    moved = dict(feeds)
    for spec in specs:
        values = feeds[spec.name]
        if roles.get(spec.name, Role("plain")).kind == "plain" and values.dtype.name in _LARGE:
            finite = np.isfinite(values) & (values != 0)
            moved[spec.name] = np.where(finite, values * _next_to_one(values.dtype), values).astype(values.dtype)
    return moved


def _next_to_one(dtype: np.dtype) -> np.ndarray:
    return np.asarray(1 + float(ml_dtypes.finfo(dtype).eps), dtype)


def judged(reference: Any, candidate: Any) -> Any:
    """The candidate with the reference's own values where those are no finite numbers: they are not judged."""
    if isinstance(reference, list) and isinstance(candidate, list) and len(reference) == len(candidate):
        return [judged(a, b) for a, b in zip(reference, candidate, strict=True)]
    both = isinstance(reference, np.ndarray) and isinstance(candidate, np.ndarray)
    if not both or reference.shape != candidate.shape or reference.dtype != candidate.dtype:
        return candidate
    if reference.dtype.kind not in "fcV" and "float" not in reference.dtype.name:
        return candidate
    finite = np.isfinite(reference.astype(np.complex128 if reference.dtype.kind == "c" else np.float64))
    return np.where(finite, candidate, reference)


def smallest_normal(model: onnx_ir.DataType) -> float:
    """The smallest number of a float type that has all its digits: what is below it may be flushed to 0."""
    return float(ml_dtypes.finfo(model.numpy()).tiny)
