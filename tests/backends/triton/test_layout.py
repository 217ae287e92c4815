"""Indices and views against NumPy: whatever is moved how, the address is that of the right element."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.backends.triton.layout import Index, Part, View, dense, flat, variable
from optc.ir.dims import evaluate, symbol


def number(index: Index, values: dict[str, int], sizes: dict[str, int]) -> int:
    """The value of an index."""
    total = evaluate(index.constant, sizes)
    for count, atom in index.terms:
        base = values[atom.base] if isinstance(atom.base, str) else number(atom.base, values, sizes)
        digit = base // evaluate(atom.divisor, sizes)
        if not atom.top:
            digit %= evaluate(atom.size, sizes)
        assert 0 <= digit < evaluate(atom.size, sizes), "an atom is out of its range"
        total += evaluate(count, sizes) * digit
    return total


def factorings(total: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of this many elements."""

    @st.composite
    def draw(chosen) -> tuple[int, ...]:
        left, shape = total, []
        while left > 1:
            size = chosen(st.sampled_from([d for d in range(1, left + 1) if left % d == 0]))
            shape.append(size)
            left //= size
            if len(shape) > 4:
                shape.append(left)
                break
        return tuple(shape) or (1,)

    return draw()


@st.composite
def movements(draw) -> tuple[int, list[tuple[str, tuple[int, ...]]]]:
    """A number of elements, and reshapes and transposes of them."""
    total = draw(st.sampled_from([1, 6, 12, 24, 30, 36, 48]))
    rank, steps = 1, []
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.booleans()):
            shape = draw(factorings(total))
            steps.append(("reshape", shape))
            rank = len(shape)
        else:
            steps.append(("transpose", tuple(draw(st.permutations(range(rank))))))
    return total, steps


@settings(max_examples=300, deadline=None)
@given(movements())
def test_coordinates_follow_every_movement(case):
    total, steps = case
    array, shape, coordinates = np.arange(total), (total,), (variable("i", total),)
    view: View | None = dense(0, (total,))
    for kind, argument in steps:
        if kind == "reshape":
            array = array.reshape(argument)
            coordinates = flat(coordinates, shape).split(list(argument))
            view = view and view.reshaped(argument)
            shape = argument
        else:
            array = array.transpose(argument)
            coordinates = tuple(coordinates[axis] for axis in argument)
            view = view and view.transposed(argument)
            shape = tuple(shape[axis] for axis in argument)
    for i in range(total):
        place = tuple(number(index, {"i": i}, {}) for index in coordinates)
        assert array[place] == i
    if view is not None:
        assert view.shape == shape
        names = [variable(f"c{axis}", size) for axis, size in enumerate(shape)]
        address = view.address(names)
        for place in np.ndindex(*shape):
            assert number(address, {f"c{axis}": at for axis, at in enumerate(place)}, {}) == array[place]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_digits_of_sums(data):
    """What is divided and taken the remainder of is right, whether it comes apart or not."""
    extents = {name: data.draw(st.integers(1, 6)) for name in "ab"}
    index = Index((), data.draw(st.integers(0, 12)))
    for name, extent in extents.items():
        index = index + variable(name, extent) * data.draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3))
    top = 200 // int(np.prod(sizes)) + 1
    digits = index.split([top, *sizes])
    for a in range(extents["a"]):
        for b in range(extents["b"]):
            values = {"a": a, "b": b}
            whole = number(index, values, {})
            assert tuple(number(d, values, {}) for d in digits) == np.unravel_index(whole, [top, *sizes])


def test_what_is_split_and_joined_again_is_one_number():
    batch, seq = symbol("batch"), symbol("seq")
    i = variable("i", batch * seq * 768)
    heads = i.split([batch, seq, 12, 64])
    assert flat(heads, [batch, seq, 12, 64]) == i
    swapped = (heads[0], heads[2], heads[1], heads[3])
    again = flat(swapped, [batch, 12, seq, 64]).split([batch, 12, seq, 64])
    for one, other in zip(again, swapped, strict=True):
        for position in range(0, 2 * 3 * 768, 37):
            sizes = {"batch": 2, "seq": 3}
            assert number(one, {"i": position}, sizes) == number(other, {"i": position}, sizes)


def test_a_prologue_in_rows_reads_in_order():
    row, j = variable("row", symbol("rows")), variable("j", 64)
    position = row * 64 + j
    assert [str(index.variables()) for index in position.split([symbol("rows"), 64])] == [
        str(frozenset({"row"})),
        str(frozenset({"j"})),
    ]
    whole = variable("i", symbol("rows") * 64).substitute("i", position)
    assert whole == position


def test_views_that_strides_cannot_say():
    view = dense(0, (4, 6)).transposed((1, 0))
    assert view.reshaped((24,)).dims[0][0].stride == 1  # two parts make one dim
    assert len(view.reshaped((24,)).dims[0]) == 2
    assert view.reshaped((5, 5)) is None
    assert dense(0, (4, 6)).sliced(1, 1, 2, 3) == View(0, ((Part(4, 6),), (Part(3, 2),)), 1)
    assert dense(0, (3, 1)).expanded((2, 3, 5)).shape == (2, 3, 5)
