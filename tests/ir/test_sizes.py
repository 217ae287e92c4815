"""Sizes and ranges of sizes."""

from __future__ import annotations

import pytest

from optc.ir.dims import bounds_within, evaluate, parse
from optc.ir.sizes import allowed, nearest, read_size, size_label, spread


@pytest.mark.parametrize(
    ("given", "size"),
    [(8, 8), ("8", 8), ("1..8", (1, 8)), (" 1 .. 8 ", (1, 8)), ((1, 8), (1, 8)), ([2, 2], (2, 2)), (0, 0)],
)
def test_sizes_are_read(given, size):
    assert read_size(given) == size
    assert read_size(size_label(size)) == size


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("8..1", "before it begins"),
        ((8, 1), "before it begins"),
        (-1, "0 or more"),
        ((-1, 8), "0 or more"),
        *((wrong, "neither a size nor a range") for wrong in ("", "-1", "1..", "..8", "1...8", "x", "1.5", "1..2..3")),
        *(
            (wrong, "neither a size nor a range")
            for wrong in (1.5, True, None, (), (1,), (1, 2, 3), (1, "8"), "\u0661")
        ),
    ],
)
def test_what_is_no_size(given, problem):
    with pytest.raises(ValueError, match=problem):
        read_size(given)


def test_values_are_moved_into_their_range():
    assert [nearest((4, 8), wanted) for wanted in (1, 4, 6, 100)] == [4, 4, 6, 8]
    assert [nearest(5, wanted) for wanted in (1, 5, 6)] == [5, 5, 5]
    assert [spread((100, 200), wanted) for wanted in (1, 2, 3, 150)] == [100, 101, 102, 150]
    assert all(low <= spread((low, high), x) <= high for low in range(4) for high in range(low, 6) for x in range(9))
    assert allowed({"a": 1, "b": 7, "c": 9}, {"a": (2, 3), "b": 4, "d": 1}) == {"a": 2, "b": 4, "c": 9}


@pytest.mark.parametrize(
    "text", ["a*b - 3*c", "(a - b)//(c + 1)", "a//b", "a % b", "min(a, b) - max(b, c)", "a*(b - 4)"]
)
def test_bounds_hold_within_ranges(text):
    dim, ranges = parse(text), {"a": (0, 5), "b": (0, 4), "c": (2, 3)}
    low, high = bounds_within(dim, ranges)
    for a in range(6):
        for b in range(5):
            for c in (2, 3):
                if b or text not in ("a//b", "a % b"):
                    assert low <= evaluate(dim, {"a": a, "b": b, "c": c}) <= high


def test_a_divisor_that_can_only_be_zero():
    assert bounds_within(parse("a//b"), {"a": (1, 5), "b": (0, 0)})[1] >= 5
