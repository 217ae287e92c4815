"""Inputs held against an engine: their types, the dims that they share, and the profile that takes their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from optc.backends.base import ValueSpec
from optc.ir.errors import DataError

Shape = tuple[int, ...]
#: For each input of dynamic shape the least and the greatest one.
Profile = Mapping[str, tuple[Shape, Shape]]


def choose_profile(
    inputs: Sequence[ValueSpec], profiles: Sequence[Profile], shapes: Mapping[str, Shape], where: str
) -> int:
    """The first profile that takes all shapes.

    Raises:
        DataError: None does; the message names the dim and the sizes that it may have.
    """
    for index, profile in enumerate(profiles):
        if all(_within(shapes[name], ends) for name, ends in profile.items()):
            return index
    for spec in inputs:
        for axis, size in enumerate(shapes[spec.name]):
            ends = [(p[spec.name][0][axis], p[spec.name][1][axis]) for p in profiles if spec.name in p]
            if ends and not any(low <= size <= high for low, high in ends):
                dim = (spec.shape or ())[axis]
                told = f"dim {dim!r}" if isinstance(dim, str) else f"dim {axis}"
                ranges = " or ".join(dict.fromkeys(f"{low}..{high}" for low, high in ends))
                raise DataError(
                    f"{told} of input {spec.name!r} is {size}; the engine was built for {ranges}",
                    where=where,
                    hint="build it again for such sizes: compile the model with a --shape that allows them",
                )
    given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    raise DataError(f"no profile of the engine takes these shapes together: {given}", where=where)


def _within(shape: Shape, ends: tuple[Shape, Shape]) -> bool:
    return all(low <= size <= high for low, size, high in zip(ends[0], shape, ends[1], strict=True))


def same_dims(inputs: Sequence[ValueSpec], shapes: Mapping[str, Shape], where: str) -> None:
    """Refuse inputs that disagree on a named dim; TensorRT does not know the names."""
    found: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        for dim, size in zip(spec.shape or (), shapes[spec.name], strict=True):
            if isinstance(dim, str):
                before, first = found.setdefault(dim, (size, spec.name))
                if before != size:
                    raise DataError(f"dim {dim!r} is {before} in {first!r} and {size} in {spec.name!r}", where=where)


def checked(spec: ValueSpec, array: np.ndarray, where: str) -> np.ndarray:
    """An input as it can be copied."""
    assert spec.dtype is not None and spec.shape is not None
    fits = len(array.shape) == len(spec.shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(spec.shape, array.shape, strict=True)
    )
    if array.dtype != spec.dtype.numpy() or not fits:
        raise DataError(f"{spec.name!r} is {array.dtype}{list(array.shape)}, but the engine takes {spec}", where=where)
    return np.ascontiguousarray(array).reshape(array.shape)  # the first makes a vector of a scalar


def anonymous(shape: Shape) -> tuple[int | None, ...]:
    """A shape of the engine as a model declares it."""
    return tuple(None if dim < 0 else dim for dim in shape)
