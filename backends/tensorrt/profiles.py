"""Optimization profiles: the range of shapes of every input that an engine is for, and the one it is tuned for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import onnx_ir

from optc.backends.tensorrt.recipe import ShapeRange
from optc.ir.dims import bounds_within, evaluate, parse, symbols
from optc.ir.errors import BackendError, UsageError
from optc.ir.sizes import Size, nearest, size_label
from optc.ir.targets import suggestion

#: What a dim is taken to be where nothing is known of it.
_TYPICAL = 128
#: A dim that nobody gave a range takes sizes up to this many times the one that is usual for it.
_ROOM = 4


def profile(
    model: onnx_ir.Model, shapes: Mapping[str, Size], usual: Mapping[str, int], tune: Mapping[str, int]
) -> tuple[dict[str, ShapeRange], list[str]]:
    """The shapes of a model's inputs.

    Args:
        model: The model.
        shapes: Sizes or ranges by dim name; an anonymous dim is called ``input[axis]``. One size is that size only.
        usual: The sizes that dims mostly have, which the engine is tuned for where they lie in the range.
        tune: Sizes to tune for instead.

    Returns:
        A range for every input, and remarks on dims that nobody gave a range.

    Raises:
        BackendError: The rank of an input is not known.
        UsageError: ``tune`` names no dim, or a size outside of its range.
    """
    ends: dict[str, tuple[int, int, int]] = {}
    notes: list[str] = []
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    names = [name for value in inputs for name in _dims(value) if isinstance(name, str)]
    free = [name for name in dict.fromkeys(names) if not _is_expression(name, names)]
    for name in free:
        common = usual.get(name, _TYPICAL)
        given = shapes.get(name)
        size = given if given is not None else (1, _ROOM * common)
        low, high = size if isinstance(size, tuple) else (size, size)
        wanted = tune.get(name, nearest((low, high), common))
        if not low <= wanted <= high:
            raise UsageError(f"dim {name!r} cannot be tuned for {wanted}: its range is {size_label(size)}")
        ends[name] = low, wanted, high
        if given is None:
            notes.append(
                f"dim {name!r} was given no range: the engine takes {low} to {high} and is tuned for {wanted}; "
                f"--shape '{name}=1..8' says which it shall take"
            )
    for name in tune:
        if name not in ends:
            hint = suggestion(name, ends, f"its symbolic dims are: {', '.join(ends) or 'none'}")
            raise UsageError(f"the model has no symbolic dim {name!r} to tune for", hint=hint)
    return {value.name or "": _range(value, ends) for value in inputs}, notes


def _dims(value: onnx_ir.Value) -> list[int | str]:
    """The dims of an input: a size, or the name by which sizes are given."""
    if value.shape is None:
        raise BackendError(
            f"the rank of input {value.name!r} is not known",
            hint="export the model with a shape for it",
        )
    return [
        dim if isinstance(dim, int) and dim >= 0 else (getattr(dim, "value", None) or f"{value.name}[{axis}]")
        for axis, dim in enumerate(value.shape)
    ]


def _is_expression(name: str, names: Iterable[str]) -> bool:
    """Whether a dim's name says what it is made of, as in "past + seq", and all of that are dims themselves."""
    parts = symbols(parse(name))
    return name not in parts and bool(parts) and parts <= set(names)


def _range(value: onnx_ir.Value, ends: Mapping[str, tuple[int, int, int]]) -> ShapeRange:
    rows = [_sizes(dim, ends) for dim in _dims(value)]
    low, wanted, high = (tuple(row[at] for row in rows) for at in range(3))
    return ShapeRange(low, wanted, high)


def _sizes(dim: int | str, ends: Mapping[str, tuple[int, int, int]]) -> tuple[int, int, int]:
    if isinstance(dim, int):
        return dim, dim, dim
    if dim in ends:
        return ends[dim]
    made = parse(dim)
    low, high = bounds_within(made, {name: (row[0], row[2]) for name, row in ends.items()})
    wanted = int(evaluate(made, {name: row[1] for name, row in ends.items()}))
    return max(0, int(low)), wanted, wanted if math.isinf(high) else int(high)


__all__ = ["profile"]
