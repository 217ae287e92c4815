"""Operators that move elements: they change coordinates, not memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir

from optc.backends.triton.expressions import REGISTER, Address, Expr
from optc.backends.triton.groups import Coordinates, Value, same_shape
from optc.backends.triton.layout import Index, View, dense, flat
from optc.backends.triton.lower import Lowering, Rule, Unsupported
from optc.ir.dims import Dim, equal, product, provably_ge
from optc.ir.ops import axis_of, cuts_of, int_attr, operand, perm_of


def moved(
    lowering: Lowering,
    output: onnx_ir.Value,
    x: Value,
    view: Callable[[View], View | None],
    backward: Callable[[Coordinates], Coordinates],
    forward: Callable[[Coordinates], Coordinates] | None,
) -> None:
    """Define a value that holds elements of another.

    Args:
        lowering: The lowering.
        output: What is defined.
        x: Where its elements come from.
        view: Makes the view of the result of that of ``x``; None where strides cannot say it.
        backward: From coordinates of the result to those of ``x``.
        forward: From coordinates of ``x`` to those of the result, if it has all elements of ``x``.
    """
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    made = Value(shape, dtype, name=x.name)
    if x.group is not None and forward is not None:
        made.group, made.expr, made.coordinates = x.group, x.expr, forward(x.coordinates)
    elif x.group is not None:
        lowering.stored(x)
    if x.view is not None:
        made.view = view(x.view)
    if made.view is None and made.group is None:

        def compute(coordinates: Coordinates, guard: Expr | None) -> Expr:
            return lowering.builder.element(x, backward(coordinates), guard)

        made.compute = compute
    lowering.define(output, made)


def reshaped(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same elements in row-major order."""
    x, output = lowering.needed(node, 0), node.outputs[0]
    shape = lowering.shape(output)
    moved(
        lowering,
        output,
        x,
        lambda view: view.reshaped(shape),
        lambda coordinates: flat(coordinates, shape).split(list(x.shape)),
        lambda coordinates: flat(coordinates, x.shape).split(list(shape)),
    )


def same(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Identity, and Dropout where nothing is trained."""
    if node.op_type == "Dropout":
        training = operand(node, 2)
        trains = training is not None and lowering.facts.scalar(training) is not False
        if trains or (lowering.facts.opset() < 7 and not int_attr(node, "is_test", 0)):
            raise Unsupported("it may drop something, as in training")
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise Unsupported("its mask is read")
    lowering.define(node.outputs[0], lowering.needed(node, 0))


def transposed(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Transpose."""
    x, output = lowering.needed(node, 0), node.outputs[0]
    perm = perm_of(node, lowering.facts)
    assert perm is not None

    def backward(coordinates: Coordinates) -> Coordinates:
        return tuple(coordinates[perm.index(axis)] for axis in range(len(perm)))

    def forward(coordinates: Coordinates) -> Coordinates:
        return tuple(coordinates[axis] for axis in perm)

    moved(lowering, output, x, lambda view: view.transposed(perm), backward, forward)


def expanded(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Expand."""
    x, output = lowering.needed(node, 0), node.outputs[0]
    shape = lowering.shape(output)
    if same_shape(x.shape, shape):
        lowering.define(output, x)
        return

    def backward(coordinates: Coordinates) -> Coordinates:
        return lowering.broadcast(x, coordinates, shape)

    backward(tuple(Index() for _ in shape))
    moved(lowering, output, x, lambda view: view.expanded(shape), backward, None)


def sliced(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Slice with bounds that are known; negative steps as well."""
    x, output = lowering.needed(node, 0), node.outputs[0]
    shape = lowering.shape(output)
    starts: dict[int, tuple[Dim, int]] = {}
    for axis, first, step in _cuts(lowering, node):
        starts[axis] = first, step
    cut(lowering, output, x, shape, starts)


def _cuts(lowering: Lowering, node: onnx_ir.Node) -> list[tuple[int, Dim, int]]:
    """Axis, first element and step of every cut of a Slice."""
    facts, x = lowering.facts, lowering.needed(node, 0)
    constant = cuts_of(node, facts)
    if constant is not None:
        found: list[tuple[int, Dim, int]] = [(c.axis, c.start, c.step) for c in constant]
    else:
        starts, axes, steps = (facts.elements(operand(node, place)) for place in (1, 3, 4))
        if starts is None or (operand(node, 3) is not None and axes is None):
            raise Unsupported("its bounds are computed")
        axes = axes if axes is not None else tuple(range(len(starts)))
        steps = steps if steps is not None else (1,) * len(starts)
        rank, found = len(x.shape), []
        for axis, start, step in zip(axes, starts, steps, strict=True):
            if not isinstance(axis, int) or not isinstance(step, int):
                raise Unsupported("its axes or steps are computed")
            found.append((axis % rank, start, step))
    return [(axis, _first(x.shape[axis], start, step), step) for axis, start, step in found]


def _first(size: Dim, start: Dim, step: int) -> Dim:
    """Where a slice starts, as ONNX clamps it.

    Raises:
        Unsupported: That depends on the run.
    """
    if isinstance(start, int) and start < 0:
        start = size + start
        if not provably_ge(start, 0):
            if not isinstance(start, int):
                raise Unsupported(f"where the slice of {size} elements starts depends on the run")
            start = 0
    if not provably_ge(start, 0):
        raise Unsupported(f"where the slice starts ({start}) may be negative")
    last = size if step > 0 else size - 1
    if provably_ge(last, start):
        return start
    if provably_ge(start, last):
        return last
    if step > 0:
        return start  # past the end nothing is left, and nothing is read
    raise Unsupported(f"where the slice of {size} elements starts depends on the run")


def cut(
    lowering: Lowering,
    output: onnx_ir.Value,
    x: Value,
    shape: Sequence[Dim],
    starts: Mapping[int, tuple[Dim, int]],
) -> None:
    """Every ``step``-th element from a first one on, per axis."""
    if same_shape(x.shape, shape) and all(equal(s, 0) and t == 1 for s, t in starts.values()):
        lowering.define(output, x)
        return

    def view(source: View) -> View | None:
        for axis, (start, step) in starts.items():
            found = source.sliced(axis, start, step, shape[axis])
            if found is None:
                return None
            source = found
        return source

    def backward(coordinates: Coordinates) -> Coordinates:
        return tuple(
            index * starts[axis][1] + starts[axis][0] if axis in starts else index
            for axis, index in enumerate(coordinates)
        )

    moved(lowering, output, x, view, backward, None)


def split(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Split: slices."""
    x = lowering.needed(node, 0)
    axis = axis_of(node, lowering.facts, 0)
    assert axis is not None
    start: Dim = 0
    for output in node.outputs:
        shape = lowering.shape(output)
        cut(lowering, output, x, shape, {axis: (start, 1)})
        start = start + shape[axis]


def concatenated(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Concat: everybody writes into the part of one buffer that is his."""
    output = node.outputs[0]
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    axis = axis_of(node, lowering.facts, 0, len(shape))
    assert axis is not None
    parts = [lowering.value(value) for value in node.inputs if value is not None]
    parts = [part for part in parts if not equal(part.shape[axis], 0)]
    if len(parts) == 1:
        lowering.define(output, parts[0])
        return
    whole = dense(lowering.builder.buffer(product(shape), Value(shape, dtype).memory), shape)
    start: Dim = 0
    for part in parts:
        place = whole.sliced(axis, start, 1, part.shape[axis])
        assert place is not None
        lowering.builder.store(part, place)
        start = start + part.shape[axis]
    lowering.define(output, Value(shape, dtype, view=whole, name=node.name or ""))


def gathered(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Gather: reads at indices that are read themselves; negative ones count from the end."""
    x, indices, output = lowering.needed(node, 0), lowering.needed(node, 1), node.outputs[0]
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    axis = axis_of(node, lowering.facts, 0)
    assert axis is not None
    known = lowering.facts.elements(operand(node, 1))
    if known is not None and len(known) == 1 and isinstance(known[0], int):
        start = known[0] if known[0] >= 0 else x.shape[axis] + known[0]
        _picked(lowering, output, x, axis, start)
        return
    table, indices = lowering.stored(x), lowering.readable(indices)
    rank = len(indices.shape)
    if len(table.dims[axis]) > 1:
        raise Unsupported("the axis that is gathered from is not contiguous")
    stride = table.dims[axis][0].stride if table.dims[axis] else 0

    def compute(coordinates: Coordinates, guard: Expr | None) -> Expr:
        index = _counted(lowering, lowering.builder.element(indices, coordinates[axis : axis + rank], guard), x, axis)
        own = (*coordinates[:axis], Index(), *coordinates[axis + rank :])
        address = Address(table.buffer, x.memory, table.address(own), (stride,), guard is not None)
        operands = (index,) if guard is None else (index, guard)
        return lowering.pool.make("load", operands, REGISTER[dtype], address)

    lowering.define(output, Value(shape, dtype, compute=compute, name=node.name or ""))


def _counted(lowering: Lowering, index: Expr, x: Value, axis: int) -> Expr:
    """An index that counts from the front."""
    size = lowering.size(x.shape[axis], index.kind)
    return lowering.pool.make("tl.where({0} < 0, {0} + {1}, {0})", (index, size), index.kind)


def _picked(lowering: Lowering, output: onnx_ir.Value, x: Value, axis: int, start: Dim) -> None:
    """One entry of an axis, which goes away if the result has one dim less."""
    shape = lowering.shape(output)
    kept = len(shape) == len(x.shape)

    def view(source: View) -> View | None:
        found = source.sliced(axis, start, 1, 1)
        if found is None or kept:
            return found
        return View(found.buffer, (*found.dims[:axis], *found.dims[axis + 1 :]), found.offset)

    def backward(coordinates: Coordinates) -> Coordinates:
        rest = coordinates[axis + 1 :] if kept else coordinates[axis:]
        return (*coordinates[:axis], Index((), start), *rest)

    moved(lowering, output, x, view, backward, None)


def gathered_elements(lowering: Lowering, node: onnx_ir.Node) -> None:
    """GatherElements: along one axis at indices, elsewhere at the same place."""
    x, indices, output = lowering.needed(node, 0), lowering.needed(node, 1), node.outputs[0]
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    axis = axis_of(node, lowering.facts, 0)
    assert axis is not None
    table, indices = lowering.stored(x), lowering.readable(indices)
    if len(table.dims[axis]) > 1:
        raise Unsupported("the axis that is gathered from is not contiguous")
    stride = table.dims[axis][0].stride if table.dims[axis] else 0

    def compute(coordinates: Coordinates, guard: Expr | None) -> Expr:
        index = _counted(lowering, lowering.builder.element(indices, coordinates, guard), x, axis)
        own = (*coordinates[:axis], Index(), *coordinates[axis + 1 :])
        address = Address(table.buffer, x.memory, table.address(own), (stride,), guard is not None)
        operands = (index,) if guard is None else (index, guard)
        return lowering.pool.make("load", operands, REGISTER[dtype], address)

    lowering.define(output, Value(shape, dtype, compute=compute, name=node.name or ""))


def pads(lowering: Lowering, node: onnx_ir.Node, rank: int) -> dict[int, Dim]:
    """How many elements a Pad puts in front of each axis; those that it leaves alone are not in it.

    Raises:
        Unsupported: That is computed.
    """
    amounts: tuple[Dim, ...] | None
    if "pads" in node.attributes:
        amounts = tuple(node.attributes["pads"].as_ints())
    else:
        amounts = lowering.facts.elements(operand(node, 1))
    axes = lowering.facts.ints(operand(node, 3)) if operand(node, 3) is not None else tuple(range(rank))
    if amounts is None or axes is None:
        raise Unsupported("how much it pads is computed")
    return dict(zip((axis % rank for axis in axes), amounts, strict=False))


def padded(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Pad with a constant: reads are guarded."""
    x, output = lowering.readable(lowering.needed(node, 0)), node.outputs[0]
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    before, fill = pads(lowering, node, len(shape)), None
    if "value" in node.attributes:
        fill = lowering.pool.number(node.attributes["value"].as_float(), REGISTER[dtype])
    elif "pads" not in node.attributes:
        given = lowering.operand(node, 2)
        fill = None if given is None else lowering.element(given, tuple(Index() for _ in given.shape))
    if fill is None:
        fill = lowering.pool.number(0.0 if REGISTER[dtype].startswith("fp") else 0, REGISTER[dtype])
    default = fill

    def compute(coordinates: Coordinates, guard: Expr | None) -> Expr:
        own = tuple(index + before.get(axis, 0) * -1 for axis, index in enumerate(coordinates))
        inside = guard
        for axis, index in enumerate(own):
            if equal(x.shape[axis], shape[axis]):
                continue
            place = lowering.pool.index(index)
            size = lowering.size(x.shape[axis], "i32")
            within = lowering.pool.make("(({0} >= 0) & ({0} < {1}))", (place, size), "i1")
            inside = lowering.builder.both(inside, within)
        element = lowering.builder.element(x, own, inside)
        if inside is None:
            return element
        return lowering.pool.make("tl.where({0}, {1}, {2})", (inside, element, default), element.kind)

    lowering.define(output, Value(shape, dtype, compute=compute, name=node.name or ""))


def ranged(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Range: start + i * delta, computed wherever it is needed."""
    start, delta = (lowering.needed(node, place) for place in (0, 2))
    output = node.outputs[0]
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    first, step = lowering.element(start, ()), lowering.element(delta, ())

    def compute(coordinates: Coordinates, guard: Expr | None) -> Expr:
        place = lowering.pool.index(coordinates[0], REGISTER[dtype])
        return lowering.pool.make("({0} + {1} * {2})", (first, place, step), REGISTER[dtype])

    lowering.define(output, Value(shape, dtype, compute=compute, name=node.name or ""))


def filled(lowering: Lowering, node: onnx_ir.Node) -> None:
    """ConstantOfShape."""
    output = node.outputs[0]
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    attribute = node.attributes.get("value")
    number = 0.0 if attribute is None else attribute.as_tensor().numpy().reshape(-1)[0].item()
    kind = REGISTER[dtype]
    expr = lowering.pool.number(
        bool(number) if kind == "i1" else float(number) if kind.startswith("fp") else int(number), kind
    )
    lowering.define(output, Value(shape, dtype, compute=lambda coordinates, guard: expr, name=node.name or ""))


def cast(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Cast and CastLike, as a pointwise operator of its own: what it rounds to is written out."""
    x, output = lowering.needed(node, 0), node.outputs[0]
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    if x.dtype == dtype:
        lowering.define(output, x)
        return
    narrower = x.register.startswith("fp") and dtype in (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)
    kind = Value(shape, dtype).memory if narrower else REGISTER[dtype]
    if x.group is not None:
        assert x.expr is not None
        expr = lowering.pool.cast(x.expr, kind)
        made = Value(shape, dtype, group=x.group, expr=expr, coordinates=x.coordinates)
    else:
        source = lowering.readable(x)
        made = Value(
            shape,
            dtype,
            compute=lambda coordinates, guard: lowering.pool.cast(
                lowering.builder.element(source, coordinates, guard), kind
            ),
        )
    lowering.define(output, made)


RULES: dict[str, Rule] = {
    "Reshape": reshaped,
    "Flatten": reshaped,
    "Squeeze": reshaped,
    "Unsqueeze": reshaped,
    "Identity": same,
    "Dropout": same,
    "Transpose": transposed,
    "Expand": expanded,
    "Slice": sliced,
    "Split": split,
    "Concat": concatenated,
    "Gather": gathered,
    "GatherElements": gathered_elements,
    "Range": ranged,
    "ConstantOfShape": filled,
    "Cast": cast,
    "CastLike": cast,
}
