"""ConvTranspose as products without an image of columns.

With strides, the places of a result fall into phases: each has its own part of the window, as if convolved by itself
with stride 1 (sub-pixel convolution: Shi et al. 2016). Phases are a batch of products, so that nothing is multiplied
with the zeros between pixels. Where phases have different sizes, or windows gaps, such products are taken as they are.
"""

from __future__ import annotations

import onnx_ir

from optc.backends.triton.expressions import Address, Expr
from optc.backends.triton.groups import Value
from optc.backends.triton.layout import Index
from optc.backends.triton.lower import Lowering, Rule, Unsupported
from optc.backends.triton.products import convolved, fixed, multiplied
from optc.ir.dims import Dim, divide_exact, product
from optc.ir.ops import int_attr, ints_attr


def convolution(lowering: Lowering, node: onnx_ir.Node) -> None:
    """ConvTranspose in any number of spatial dims."""
    x, weight, output = lowering.needed(node, 0), lowering.needed(node, 1), node.outputs[0]
    shape, spatial, groups = lowering.shape(output), len(x.shape) - 2, int_attr(node, "group", 1)
    window = [fixed(size, "its window") for size in weight.shape[2:]]
    strides = ints_attr(node, "strides") or (1,) * spatial
    dilations = ints_attr(node, "dilations") or (1,) * spatial
    before = _padding(node, x, shape, window)
    per_group, filters = fixed(weight.shape[0], "its channels") // groups, fixed(weight.shape[1], "its filters")
    steps = [divide_exact(size, stride) for size, stride in zip(shape[2:], strides, strict=True)]
    dense = all(step is not None for step in steps) and all(dilation == 1 for dilation in dilations)
    phases = strides if dense else (1,) * spatial
    counts: list[Dim] = [step for step in steps if step is not None] if dense else list(shape[2:])
    taps = [-(-size // phase) for size, phase in zip(window, phases, strict=True)]
    source, kernel = lowering.stored(x), lowering.stored(weight)
    if any(len(source.dims[2 + axis]) > 1 for axis in range(spatial)):
        raise Unsupported("an axis of its operand is not contiguous")
    pool, builder = lowering.pool, lowering.builder

    def tap(axis: int, phase: Index, place: Index, step: Index) -> tuple[Index, Expr, Expr | None]:
        """For one axis the place in the window, where it lies in ``x``, and when there is something."""
        if dense:
            moved = (phase + before[axis]).split([before[axis] // strides[axis] + 2, strides[axis]])
            offset = step * strides[axis] + moved[1]
            index = pool.index(place + moved[0] + step * -1)
            guard = None
            if window[axis] % strides[axis]:
                guard = pool.make(f"({{0}} < {window[axis]})", (pool.index(offset),), "i1")
        else:
            offset = step
            apart = pool.index(place + before[axis] + step * -dilations[axis])
            index = pool.make(f"({{0}} // {strides[axis]})", (apart,), "i32")
            guard = pool.make(f"(({{0}} % {strides[axis]} == 0) & ({{0}} >= 0))", (apart,), "i1")
        size = lowering.size(x.shape[2 + axis], "i32")
        return offset, index, builder.both(guard, pool.make("(({0} >= 0) & ({0} < {1}))", (index, size), "i1"))

    def taken(z: Index, m: Index, k: Index) -> tuple[list[Index], list[Expr], Expr | None]:
        """What every axis takes."""
        _, *phase = z.split([groups, *phases])
        _, *place = m.split([shape[0], *counts])
        *step, _ = k.split([*taps, per_group])
        found = [tap(axis, phase[axis], place[axis], step[axis]) for axis in range(spatial)]
        guard: Expr | None = None
        for _, _, one in found:
            guard = builder.both(guard, one)
        return [offset for offset, _, _ in found], [index for _, index, _ in found], guard

    def read_x(z: Index, m: Index, k: Index) -> Expr:
        _, indices, guard = taken(z, m, k)
        group, image, channel = (
            z.split([groups, *phases])[0],
            m.split([shape[0], *counts])[0],
            k.split([*taps, per_group])[-1],
        )
        address = source.address((image, group * per_group + channel, *(Index() for _ in indices)))
        along = tuple(parts[0].stride if parts else 0 for parts in source.dims[2:])
        where = Address(source.buffer, x.memory, address, along, guard is not None)
        return pool.make("load", (*indices, *(() if guard is None else (guard,))), x.memory, where)

    def read_w(z: Index, k: Index, n: Index) -> Expr:
        group, *phase = z.split([groups, *phases])
        *step, channel = k.split([*taps, per_group])
        offsets, guard = [], None
        for axis in range(spatial):
            offset, _, _ = tap(axis, phase[axis], Index(), step[axis])
            offsets.append(offset)
            if dense and window[axis] % strides[axis]:
                there = pool.make(f"({{0}} < {window[axis]})", (pool.index(offset),), "i1")
                guard = builder.both(guard, there)
        address = kernel.address((group * per_group + channel, n, *offsets))
        where = Address(kernel.buffer, weight.memory, address, (), guard is not None)
        return pool.make("load", () if guard is None else (guard,), weight.memory, where)

    rows, contracted = product([shape[0], *counts]), per_group * product(taps)
    made = multiplied(lowering, node, (x, weight), groups * product(phases), rows, filters, contracted, read_x, read_w)
    group, *phase = made.z.split([groups, *phases])
    image, *place = made.m.split([shape[0], *counts])
    at = [place[axis] * phases[axis] + phase[axis] for axis in range(spatial)]
    convolved(lowering, output, made, lowering.operand(node, 2), (image, group * filters + made.n, *at))


def _padding(node: onnx_ir.Node, x: Value, shape: tuple[Dim, ...], window: list[int]) -> list[int]:
    """How many elements are cut off in front of each axis."""
    spatial = len(window)
    strides, dilations = (ints_attr(node, name) or (1,) * spatial for name in ("strides", "dilations"))
    mode = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    if mode in ("NOTSET", "VALID") and "output_shape" not in node.attributes:
        return list((ints_attr(node, "pads") if mode == "NOTSET" else None) or (0,) * spatial)[:spatial]
    extra = ints_attr(node, "output_padding") or (0,) * spatial
    found = []
    for axis in range(spatial):
        reach = (window[axis] - 1) * dilations[axis] + 1
        total = (x.shape[2 + axis] - 1) * strides[axis] + extra[axis] + reach - shape[2 + axis]
        whole = max(fixed(total, "how much it pads"), 0)
        found.append(whole // 2 if mode == "SAME_UPPER" else whole - whole // 2)
    return found


RULES: dict[str, Rule] = {"ConvTranspose": convolution}
