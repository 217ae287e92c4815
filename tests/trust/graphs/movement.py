"""Operators that move elements and change shapes."""

from __future__ import annotations

import random

import numpy as np

from .builder import INT64, SIZES, Builder, Dim, Value, broadcast, broadcasts, small, template


@template(4)
def transpose(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.rank > 1)
    if x is None:
        return None
    perm = list(range(x.rank))
    b.rng.shuffle(perm)
    return b.add("Transpose", [x], [x.shape[axis] for axis in perm], steady=True, perm=perm)


@template(4)
def reshape(b: Builder) -> Value | None:
    """Static axes are regrouped; a symbolic one stays in its place, copied by 0 or left to -1."""
    x = b.pick(lambda v: v.rank > 0 and sum(isinstance(d, str) for d in v.shape) <= 1)
    if x is None:
        return None
    lead = next((axis for axis, dim in enumerate(x.shape) if isinstance(dim, str)), None)
    if lead not in (None, 0):
        return None
    rest = [dim for dim in x.shape if isinstance(dim, int)]
    new = _regrouped(b.rng, int(np.prod(rest, dtype=int)))
    shape: list[Dim] = [*([x.shape[0]] if lead == 0 else []), *new]
    target = [0 if isinstance(dim, str) else dim for dim in shape]
    if lead == 0 and b.chance(0.5):
        target[0] = -1
    elif b.chance(0.3) and new and 0 not in new:
        target[b.rng.randrange(lead == 0, len(target))] = -1
    return b.add("Reshape", [x, b.ints(target)], shape, steady=True)


def _regrouped(rng: random.Random, count: int) -> list[int]:
    dims, left = [], count
    while left > 1 and len(dims) < 4:
        factors = [f for f in range(1, left + 1) if left % f == 0]
        dims.append(rng.choice(factors))
        left //= dims[-1]
    return [*dims, left] if left > 1 or rng.random() < 0.3 or not dims else dims


@template(2)
def unsqueeze(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.rank < 5)
    if x is None:
        return None
    axis = b.rng.randrange(x.rank + 1)
    shape = [*x.shape[:axis], 1, *x.shape[axis:]]
    return b.add("Unsqueeze", [x, b.ints([axis if b.chance(0.5) else axis - x.rank - 1])], shape, steady=True)


@template(2)
def squeeze(b: Builder) -> Value | None:
    x = b.pick(lambda v: 1 in v.shape)
    if x is None:
        return None
    axis = b.rng.choice([a for a, dim in enumerate(x.shape) if dim == 1])
    return b.add("Squeeze", [x, b.ints([axis])], [*x.shape[:axis], *x.shape[axis + 1 :]], steady=True)


@template()
def flatten(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.rank > 0 and all(isinstance(d, int) for d in v.shape[1:]))
    return x and b.add("Flatten", [x], [x.shape[0], int(np.prod(x.shape[1:], dtype=int))], steady=True, axis=1)


@template(4)
def slice_(b: Builder) -> Value | None:
    x = b.pick(lambda v: any(isinstance(d, int) and d > 1 for d in v.shape))
    if x is None:
        return None
    axis = b.rng.choice([a for a, dim in enumerate(x.shape) if isinstance(dim, int) and dim > 1])
    size = x.shape[axis]
    assert isinstance(size, int)
    start, step = b.rng.randrange(size), b.rng.choice([1, 1, 1, 2, -1])
    end = b.rng.choice([size, 2**40, start + 1, size // 2]) if step > 0 else b.rng.choice([-(2**40), -size - 1])
    count = len(range(size)[slice(start, None if step < 0 else end, step)])
    told = start - size if b.chance(0.3) else start
    inputs = [x, b.ints([told]), b.ints([end]), b.ints([axis]), b.ints([step])]
    return b.add("Slice", inputs, [*x.shape[:axis], count, *x.shape[axis + 1 :]], steady=True)


@template(2)
def gather(b: Builder) -> Value | None:
    x = b.pick(lambda v: any(isinstance(d, int) and d > 0 for d in v.shape))
    if x is None:
        return None
    axis = b.rng.choice([a for a, dim in enumerate(x.shape) if isinstance(dim, int) and dim > 0])
    size = x.shape[axis]
    assert isinstance(size, int)
    shape = [b.rng.choice([1, 2, 3]) for _ in range(b.rng.randrange(3))]
    index = np.array([b.rng.randrange(-size, size) for _ in range(int(np.prod(shape, dtype=int)))]).reshape(shape)
    if b.chance(0.3) and index.ndim == 1:
        index = np.arange(min(size, len(index)))
    shape = list(index.shape)
    return b.add(
        "Gather", [x, b.constant(index, INT64)], [*x.shape[:axis], *shape, *x.shape[axis + 1 :]], steady=True, axis=axis
    )


@template(3)
def concat(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.rank > 0 and any(isinstance(d, int) for d in v.shape), small)
    if x is None:
        return None
    axis = b.rng.choice([a for a, dim in enumerate(x.shape) if isinstance(dim, int)])

    def fits(v: Value) -> bool:
        same = v.rank == x.rank and v.dtype == x.dtype and isinstance(v.shape[axis], int)
        return same and all(a == axis or p == q for a, (p, q) in enumerate(zip(v.shape, x.shape, strict=True)))

    parts = [x, *(b.pick(fits) or x for _ in range(b.rng.randrange(1, 3)))]
    b.rng.shuffle(parts)
    total = sum(int(part.shape[axis]) for part in parts)
    told = axis if b.chance(0.7) else axis - x.rank
    return b.add("Concat", parts, [*x.shape[:axis], total, *x.shape[axis + 1 :]], steady=True, axis=told)


@template(2)
def split(b: Builder) -> Value | None:
    x = b.pick(lambda v: any(isinstance(d, int) and d > 1 for d in v.shape))
    if x is None:
        return None
    axis = b.rng.choice([a for a, dim in enumerate(x.shape) if isinstance(dim, int) and dim > 1])
    size = x.shape[axis]
    assert isinstance(size, int)
    at = b.rng.randrange(1, size)
    parts = [
        Value(b.name("split"), x.dtype, (*x.shape[:axis], count, *x.shape[axis + 1 :]), x.steady)
        for count in (at, size - at)
    ]
    names = [part.name for part in parts]
    sizes = [at, size - at]
    if b.opset < 13:
        b.node("Split", [x], names, axis=axis, split=sizes)
    else:
        b.node("Split", [x, b.ints(sizes)], names, axis=axis)
    b.values += parts
    return parts[0]


@template(2)
def expand(b: Builder) -> Value | None:
    x = b.pick(lambda v: 1 in v.shape, small)
    if x is None:
        return None
    shape = [b.rng.choice(SIZES) if dim == 1 else dim for dim in x.shape]
    told = [dim if isinstance(dim, int) and x.shape[axis] == 1 else 1 for axis, dim in enumerate(shape)]
    return b.add("Expand", [x, b.ints(told)], shape, steady=True)


@template()
def expand_to_shape(b: Builder) -> Value | None:
    """An Expand to the shape of another value, as exporters of masks write it."""
    x = b.pick(b.is_real)
    y = x and b.pick(lambda v: broadcasts(x.shape, v.shape) and broadcast(x.shape, v.shape) == v.shape)
    if x is None or y is None:
        return None
    shape = b.add("Shape", [y], [y.rank], INT64, steady=True)
    return b.add("Expand", [x, shape], y.shape, steady=True)


@template()
def tile(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.rank > 0, small)
    if x is None:
        return None
    repeats = [b.rng.choice([1, 1, 2]) if isinstance(dim, int) else 1 for dim in x.shape]
    shape = [dim * count if isinstance(dim, int) else dim for dim, count in zip(x.shape, repeats, strict=True)]
    return b.add("Tile", [x, b.ints(repeats)], shape, steady=True)


@template(2)
def pad(b: Builder) -> Value | None:
    x = b.pick(b.is_real, lambda v: v.rank > 0, small)
    if x is None:
        return None
    pads = [[b.rng.choice([0, 0, 1, 2]) if isinstance(dim, int) else 0 for dim in x.shape] for _ in range(2)]
    shape = [dim + low + high if isinstance(dim, int) else dim for dim, low, high in zip(x.shape, *pads, strict=True)]
    value = b.constant(b.rng.choice([0.0, 0.0, 1.0, -1.0]))
    return b.add("Pad", [x, b.ints([*pads[0], *pads[1]]), value], shape, steady=True)


@template()
def reshape_by_shape(b: Builder) -> Value | None:
    """Flatten and restore through Shape, Slice and Concat, as exporters do with dynamic dims."""
    x = b.pick(b.is_real, lambda v: v.rank > 1 and isinstance(v.shape[-1], int) and 0 not in v.shape)
    if x is None:
        return None
    width = x.shape[-1]
    assert isinstance(width, int)
    flat = b.add("Reshape", [x, b.ints([-1, width])], ["?", width], steady=True)
    b.values.remove(flat)
    y = b.add(b.rng.choice(["Relu", "Neg", "Identity", "Abs"]), [flat], ["?", width], steady=True)
    b.values.remove(y)
    shape = b.add("Shape", [x], [x.rank], INT64, steady=True)
    if b.chance(0.5):
        head = b.add("Slice", [shape, b.ints([0]), b.ints([x.rank - 1])], [x.rank - 1], steady=True)
        shape = b.add("Concat", [head, b.ints([width])], [x.rank], steady=True, axis=0)
    return b.add("Reshape", [y, shape], x.shape, steady=True)
