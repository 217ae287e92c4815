"""Inputs drawn from a model's own signature: for verifying, for timing, and for -O3 without calibration data.

Everything is seeded and deterministic. Values are valid for how the model uses them (see
:mod:`optc.input_roles`), and symbolic dims are bound to several values each, because a rewrite that is right at one
size can be wrong at another. :mod:`optc.samples` reads inputs from files instead.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir

from optc.backends.base import Dim, ValueSpec
from optc.input_roles import AxisSize, Role, input_roles
from optc.ir import dims
from optc.ir.errors import DataError

Bindings = dict[str, int]

_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
#: Inputs larger than this many elements together are not drawn when sizes are only being tried out.
_MAX_TRIAL_ELEMENTS = 4_000_000
#: No single input of more elements is drawn at all: drawing takes 8 bytes for each, and some more for a while.
_MAX_ELEMENTS = 1 << 27

#: Usual sizes by what a dim's name says, first match wins; then by where it stands.
_TYPICAL_BY_NAME = (
    (re.compile(r"batch|^(n|b|bs)$", re.IGNORECASE), "batch", 2),
    (re.compile(r"past|cache", re.IGNORECASE), "past", 8),
    (re.compile(r"height|width|^(h|w)$", re.IGNORECASE), "space", 32),
    (re.compile(r"channel|^c$", re.IGNORECASE), "channel", 3),
    (re.compile(r"seq|len|time|token|^(s|t|l)$", re.IGNORECASE), "sequence", 16),
)
_TYPICAL_SIZE = {name: size for _, name, size in _TYPICAL_BY_NAME} | {"other": 16}


def input_specs(model: onnx_ir.Model) -> tuple[ValueSpec, ...]:
    """The inputs that a caller has to feed, in order; inputs with a default value are left out.

    An input of unknown rank is given the rank that its first consumer wants, with anonymous dims.
    """
    values = [value for value in model.graph.inputs if (value.name or "") not in model.graph.initializers]
    return tuple(_ranked(ValueSpec.of(value), value) for value in values)


def signature(inputs: Sequence[ValueSpec]) -> onnx_ir.Model:
    """A model that has these inputs and computes nothing: what stands for an artifact where inputs are drawn."""
    values = [
        onnx_ir.Value(
            name=spec.name,
            type=onnx_ir.TensorType(spec.dtype) if spec.dtype is not None else None,
            shape=onnx_ir.Shape(spec.shape) if spec.shape is not None else None,
        )
        for spec in inputs
    ]
    return onnx_ir.Model(onnx_ir.Graph(values, [], nodes=[], opset_imports={"": 17}), ir_version=8)


def symbols(model: onnx_ir.Model) -> tuple[str, ...]:
    """The symbolic dims of the inputs, in order; an anonymous dim is called ``input[axis]``.

    A dim whose text is an expression over other symbols ("past + seq") is not a symbol of its own.
    """
    return tuple(_symbol_places(input_specs(model)))


def dimension_bindings(model: onnx_ir.Model, n: int = 4) -> list[Bindings]:
    """Up to ``n`` different values for the symbolic dims; ``[{}]`` when there are none.

    In order: a small prime of its own for every dim, so that no mix-up of dims goes unnoticed; all 1, where
    broadcasting hides; usual sizes; primes shared by the dims at the same axis of different inputs; more primes. The
    model itself need not be able to run them all.
    """
    specs = input_specs(model)
    places = _symbol_places(specs)
    if not places:
        return [{}]
    axes = sorted({axis for _, axis in places.values()})
    candidates = itertools.chain(
        (
            _primes(places, 0),
            dict.fromkeys(places, 1),
            _typical(places),
            {name: _PRIMES[axes.index(axis) % len(_PRIMES)] for name, (_, axis) in places.items()},
        ),
        (_primes(places, shift) for shift in range(1, len(_PRIMES))),
        # Inputs of many dims are too large at all of these but 1.
        (dict(zip(places, itertools.cycle(sizes), strict=False)) for sizes in ((2, 3), (3, 2), (2, 1), (1, 2))),
    )
    affordable = (bindings for bindings in _distinct(candidates) if _affordable(specs, bindings))
    return list(itertools.islice(affordable, n))


def usual_bindings(model: onnx_ir.Model, sizes: Mapping[str, int]) -> Bindings:
    """A value per symbolic dim by what it means.

    Args:
        model: The model.
        sizes: Sizes for "batch", "sequence", "past", "space" (pixels), "channel" and "other"; some may be left out.
    """
    usual = {**_TYPICAL_SIZE, **sizes}
    return {name: usual[_meaning(name, place)] for name, place in _symbol_places(input_specs(model)).items()}


def batch_dim(model: onnx_ir.Model) -> str | None:
    """The symbolic dim that is the batch: the first of every input, and no other of any; None if there is none."""
    specs = input_specs(model)
    places = _symbol_places(specs)
    dims_of = [[_symbol(spec.name, axis, dim) for axis, dim in enumerate(spec.shape or ())] for spec in specs]
    first = dims_of[0][0] if dims_of and dims_of[0] else None
    shared = isinstance(first, str) and all(found[:1] == [first] and first not in found[1:] for found in dims_of)
    return first if shared and first in places and _meaning(first, places[first]) == "batch" else None


def fallback_bindings(model: onnx_ir.Model) -> Iterator[Bindings]:
    """More values for models that run at none of :func:`dimension_bindings`, most likely first.

    Networks with strides need enough pixels, and some models need dims to be equal that they name differently.
    """
    specs = input_specs(model)
    places = _symbol_places(specs)
    if not places:
        return
    typical = _typical(places)

    def sized(size: int, batch: int) -> Bindings:
        return {name: batch if _meaning(name, place) == "batch" else size for name, place in places.items()}

    sizes = (4, 8, 16, 32, 64, 128, 224, 256)
    candidates = itertools.chain(
        (sized(size, 1) for size in (32, 64, 224)),
        (dict.fromkeys(places, size) for size in (2, 4, 8, 16, 32)),
        (sized(size, 2) for size in sizes),
        (sized(size, 1) for size in sizes),
        ({**typical, name: 1} for name in places),
        (dict.fromkeys(places, size) for size in (64, 224)),
    )
    yield from (bindings for bindings in _distinct(candidates) if _affordable(specs, bindings))


def _affordable(specs: Iterable[ValueSpec], bindings: Mapping[str, int]) -> bool:
    known = (spec for spec in specs if spec.shape is not None)
    return sum(math.prod(shape_of(spec, bindings)) for spec in known) <= _MAX_TRIAL_ELEMENTS


def shape_of(spec: ValueSpec, bindings: Mapping[str, int]) -> tuple[int, ...]:
    """The input's shape where its symbols have the given values.

    Raises:
        DataError: A symbol has no value, or the rank is unknown.
    """
    if spec.shape is None:
        raise DataError(f"input '{spec.name}' has no declared rank", hint="give inputs in a file instead")
    sizes = []
    for axis, dim in enumerate(spec.shape):
        size = _evaluate(_symbol(spec.name, axis, dim), bindings)
        if size is None:
            raise DataError(f"dim {axis} of input '{spec.name}' ({dim}) has no value", hint="bind every symbolic dim")
        sizes.append(max(size, 0))
    return tuple(sizes)


def draw_inputs(
    model: onnx_ir.Model, bindings: Mapping[str, int], seed: int = 0, roles: Mapping[str, Role] | None = None
) -> dict[str, np.ndarray]:
    """One array per input, valid for how the model uses it.

    Args:
        model: The model.
        bindings: A value per symbol, see :func:`symbols`.
        seed: Another seed draws other values; each input has a stream of its own.
        roles: What :func:`~optc.input_roles.input_roles` found, to save finding it again.

    Raises:
        DataError: An input is not a tensor or too large, or a symbol has no value.
    """
    roles = input_roles(model) if roles is None else roles
    feeds = {}
    for spec in input_specs(model):
        if spec.kind != "tensor" or spec.dtype is None:
            raise DataError(
                f"input '{spec.name}' is a {spec.kind}, for which no values can be drawn",
                hint="give inputs in a file instead" if spec.kind == "tensor" else "only tensors can be verified",
            )
        rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
        role, shape = roles.get(spec.name, Role("plain")), shape_of(spec, bindings)
        if math.prod(shape) > _MAX_ELEMENTS:
            raise DataError(f"input '{spec.name}' of shape {list(shape)} is too large to be drawn")
        feeds[spec.name] = _draw(spec.dtype, shape, role, rng, bindings)
    return feeds


def _draw(
    dtype: onnx_ir.DataType,
    shape: tuple[int, ...],
    role: Role,
    rng: np.random.Generator,
    bindings: Mapping[str, int],
) -> np.ndarray:
    if dtype == onnx_ir.DataType.STRING:
        words = np.array(["", "a", "the", "Zoë", "x y", "42"], object)
        return words[rng.integers(len(words), size=shape)]
    values: np.ndarray
    if role.kind in ("index", "length"):
        low, high = index_interval(dtype, role, bindings)
        values = rng.integers(low, high, size=shape, endpoint=True)
    elif role.kind == "between":
        values = rng.integers(role.low, max(role.low, role.high), size=shape, endpoint=True)
    elif role.kind == "reshape":
        values = np.ones(shape, np.int64)
        values.reshape(-1)[:1] = -1
    elif role.kind == "mask" or dtype == onnx_ir.DataType.BOOL:
        values = _mask(shape, rng)
    elif dtype.is_integer():
        low, high = _representable(dtype, *((-128, 255) if dtype.bitwidth <= 8 else (0, 9)))
        values = rng.integers(low, high, size=shape, endpoint=True)
    elif role.kind == "positive":
        values = np.exp(0.5 * rng.standard_normal(shape)) + 1.0
    elif role.kind == "unit":
        values = rng.uniform(-0.99, 0.99, shape)
    elif dtype in (onnx_ir.DataType.COMPLEX64, onnx_ir.DataType.COMPLEX128):
        values = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    else:
        values = rng.standard_normal(shape)
    return np.asarray(values).astype(dtype.numpy())


def _mask(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """0 and 1, mostly 1. Position 0 of each row is 1, so that even under a causal mask no row is all 0."""
    mask = rng.random(shape) < 0.75
    if not shape:
        return mask
    if shape[-1] > 1 and mask.size:
        mask.reshape(-1, shape[-1])[0, -1] = False
    mask[..., :1] = True
    return mask


def index_interval(dtype: onnx_ir.DataType, role: Role, bindings: Mapping[str, int]) -> tuple[int, int]:
    """The smallest and the largest value of an index or a length at these sizes."""
    return _representable(dtype, *_interval(role, bindings))


def _interval(role: Role, bindings: Mapping[str, int]) -> tuple[int, int]:
    """Values that every limit allows; non-negative ones where there are any."""
    first = 1 if role.kind == "length" else 0
    low, high = -(2**62), 2**62
    for limit in role.limits:
        smallest, largest = limit.bounds(lambda size: _evaluate(size, bindings))
        low, high = max(low, smallest), min(high, largest)
    if role.kind == "length":
        high += 1  # a length may reach the extent itself
    if high >= first:
        low = max(low, first)
    return low, max(low, high)


def _representable(dtype: onnx_ir.DataType, low: int, high: int) -> tuple[int, int]:
    if not dtype.is_integer():
        return low, high
    smallest = -(2 ** (dtype.bitwidth - 1)) if dtype.is_signed() else 0
    largest = 2 ** (dtype.bitwidth - dtype.is_signed()) - 1
    low = min(max(low, smallest), largest)
    return low, min(max(high, low), largest)


# dims --------------------------------------------------------------------------------------------------------------


def _symbol(name: str, axis: int, dim: Dim) -> int | str:
    """A fixed size, or the text by which a dim is bound. Negative sizes are how some exporters write "any"."""
    if isinstance(dim, int):
        return dim if dim >= 0 else f"{name}[{axis}]"
    return dim or f"{name}[{axis}]"


def _evaluate(size: AxisSize, bindings: Mapping[str, int]) -> int | None:
    if size is None or isinstance(size, int):
        return size
    if size in bindings:
        return bindings[size]
    try:
        return dims.evaluate(dims.parse(size), bindings)
    except (KeyError, ZeroDivisionError):
        return None


def _symbol_places(specs: Iterable[ValueSpec]) -> dict[str, tuple[ValueSpec, int]]:
    """Every symbol with the input and axis where it first stands, in order."""
    places: dict[str, tuple[ValueSpec, int]] = {}
    for spec in specs:
        for axis, dim in enumerate(spec.shape or ()):
            symbol = _symbol(spec.name, axis, dim)
            if isinstance(symbol, str):
                places.setdefault(symbol, (spec, axis))
    # In ONNX a dim_param is a bare name; it counts as an expression only if all of its parts are dims themselves.
    return {name: place for name, place in places.items() if not _is_expression(name, places)}


def _is_expression(text: str, places: Mapping[str, object]) -> bool:
    parts = dims.symbols(dims.parse(text))
    return text not in parts and bool(parts) and all(part in places for part in parts)


def _meaning(name: str, place: tuple[ValueSpec, int]) -> str:
    for pattern, meaning, _ in _TYPICAL_BY_NAME:
        if pattern.search(name) and not name.endswith("]"):
            return meaning
    spec, axis = place
    if axis == 0:
        return "batch"
    if axis == 1 and spec.dtype is not None and spec.dtype.is_integer() and len(spec.shape or ()) == 2:
        return "sequence"  # token ids and their masks
    if spec.dtype is not None and not spec.dtype.is_integer() and len(spec.shape or ()) >= 4 and axis >= 2:
        return "space"
    return "other"


def _typical(places: Mapping[str, tuple[ValueSpec, int]]) -> Bindings:
    return {name: _TYPICAL_SIZE[_meaning(name, place)] for name, place in places.items()}


def _primes(places: Iterable[str], shift: int) -> Bindings:
    return {name: _PRIMES[(position + shift) % len(_PRIMES)] for position, name in enumerate(places)}


def _distinct(candidates: Iterable[Bindings]) -> Iterator[Bindings]:
    seen = set()
    for bindings in candidates:
        key = tuple(bindings.items())
        if key not in seen:
            seen.add(key)
            yield bindings


_WANTED_RANK = {"Gemm": 2, "MatMul": 2, "Conv": 4, "ConvTranspose": 4, "MaxPool": 4, "AveragePool": 4}


def _ranked(spec: ValueSpec, value: onnx_ir.Value) -> ValueSpec:
    if spec.shape is not None or spec.kind != "tensor":
        return spec
    wanted = next((node for node, position in value.uses() if position == 0), None)
    rank = _WANTED_RANK.get(wanted.op_type, 2) if wanted is not None else 2
    if wanted is not None and wanted.op_type.startswith("Conv") and len(wanted.inputs) > 1 and wanted.inputs[1]:
        weight = wanted.inputs[1].shape
        rank = len(weight) if weight is not None else rank
    return ValueSpec(spec.name, spec.dtype, (None,) * rank, spec.kind)
