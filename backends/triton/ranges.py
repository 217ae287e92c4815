"""What symbolic dims may be: the sizes and ranges that a user gives, as a plan's ranges and the sizes of its tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import onnx_ir

from optc.backends.triton.plan import Plan, dim_name, most_bytes
from optc.ir.dims import Dim, bounds_within, parse, symbol, symbols
from optc.ir.errors import BackendError, DataError
from optc.ir.sizes import Size, nearest, size_label

#: What a dim is taken to be where only a tile depends on it.
TYPICAL = 128


def with_ranges(plan: Plan, model: onnx_ir.Model, shapes: Mapping[str, Size]) -> tuple[Plan, dict[str, int]]:
    """A plan that is made for ranges of sizes, and the sizes for which its tiles are chosen.

    Args:
        plan: The plan; its ranges are those outside of which the model is not valid.
        model: The model that it was made from. The plan may have dims as one that have two names there.
        shapes: Usual sizes or ranges by dim name in the model; an anonymous dim is called ``input[axis]``.

    Raises:
        BackendError: The model is not valid everywhere in a range, no size is in two ranges of dims that must be the
            same, or kernels cannot count the elements of a tensor at the largest sizes.
    """
    given: dict[str, tuple[int, int]] = {}
    usual: dict[str, int] = {}
    for name, dim in _names(plan, model):
        size = shapes.get(name)
        if isinstance(size, tuple):
            low, high = given.get(dim, size)
            given[dim] = max(low, size[0]), min(high, size[1])
            _check(name, size, given[dim], plan.ranges.get(dim, (0, None))[1])
        elif size is not None:
            usual.setdefault(dim, size)
    given.update(_follows(plan, given))
    bindings = {dim: nearest(given.get(dim, usual.get(dim, TYPICAL)), usual.get(dim, TYPICAL)) for dim in plan.dims}
    made = replace(plan, ranges=dict(sorted({**plan.ranges, **given}.items())))
    if not given or not set(plan.dims) <= given.keys():
        return made, bindings
    try:
        bounded = all(most_bytes(buffer, made.ranges) is not None for buffer in made.buffers)
    except DataError as error:
        raise BackendError(f"at the largest sizes {error.what}", hint="give smaller ranges with --shape") from error
    return replace(made, arena="largest" if bounded else "exact"), bindings


def usual_sizes(model: onnx_ir.Model, known: Sequence[Sequence[Dim]], shapes: Mapping[str, Size]) -> dict[str, int]:
    """The sizes for which kernels are chosen, by the symbols of a model's inputs.

    Args:
        model: The model.
        known: The dims of its inputs as they are lowered; some that it calls differently may be one.
        shapes: Usual sizes or ranges by dim name, see :func:`with_ranges`.
    """
    found: dict[str, int] = {}
    for value, dims in zip(model.graph.inputs, known, strict=True):
        for axis, (own, dim) in enumerate(zip(value.shape or (), dims, strict=False)):
            for name in symbols(dim):
                size = shapes.get((None if isinstance(own, int) else own.value) or f"{value.name}[{axis}]")
                if size is not None and dim == symbol(name):
                    found[name] = nearest(size, TYPICAL)
                else:
                    found.setdefault(name, TYPICAL)
    return found


def _names(plan: Plan, model: onnx_ir.Model) -> Iterator[tuple[str, str]]:
    """Every symbolic dim of the model's inputs, as it is called there and in the plan."""
    values = {value.name: value for value in model.graph.inputs}
    for tensor in plan.inputs:
        value = values.get(tensor.name)
        if value is None or value.shape is None:
            continue
        for axis, (own, text) in enumerate(zip(value.shape, tensor.shape, strict=True)):
            dim = dim_name(text)
            if dim is not None:
                yield (None if isinstance(own, int) else own.value) or f"{tensor.name}[{axis}]", dim


def _follows(plan: Plan, given: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The ranges of dims whose names say what they are made of, as in "past + seq"."""
    found = {}
    for dim in plan.dims:
        parsed = parse(dim)
        if dim not in given and dim not in symbols(parsed) and symbols(parsed) <= given.keys():
            low, high = bounds_within(parsed, given)
            if not math.isinf(high):
                found[dim] = max(0, int(low)), int(high)
    return found


def _check(name: str, size: tuple[int, int], meet: tuple[int, int], most: int | None) -> None:
    if meet[0] > meet[1]:
        raise BackendError(
            f"dim {name!r} cannot be {size_label(size)}: it must be the same as a dim of another range",
            hint="give both the same range with --shape",
        )
    if most is not None and size[1] > most:
        raise BackendError(
            f"dim {name!r} cannot be {size_label(size)}: the model is valid up to {most}",
            hint=f"give a range that ends at {most} or before with --shape",
        )
