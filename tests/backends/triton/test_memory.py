"""The arena: nothing that is needed at the same time overlaps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from optc.backends.triton.memory import ALIGNMENT, assign, place
from optc.backends.triton.plan import Argument, Buffer, Launch, Plan


@st.composite
def intervals(draw):
    count = draw(st.integers(1, 12))
    alive, sizes = {}, {}
    for buffer in range(count):
        first = draw(st.integers(0, 8))
        alive[buffer] = (first, first + draw(st.integers(0, 5)))
        sizes[buffer] = draw(st.integers(0, 6)) * ALIGNMENT
    return alive, sizes


@given(intervals())
def test_what_lives_at_the_same_time_does_not_overlap(case):
    alive, sizes = case
    offsets = assign(alive, sizes)
    for a in alive:
        for b in alive:
            if a < b and alive[a][0] <= alive[b][1] and alive[b][0] <= alive[a][1] and sizes[a] and sizes[b]:
                assert offsets[a] + sizes[a] <= offsets[b] or offsets[b] + sizes[b] <= offsets[a]
    assert all(offset % ALIGNMENT == 0 for offset in offsets.values())


def chain(length: int) -> Plan:
    """Each launch reads what the one before wrote; all of ``n`` numbers."""
    buffers = (Buffer("input", "n", "fp32"), *(Buffer("temporary", "n", "fp32") for _ in range(length)))
    launches = tuple(
        Launch("k", (Argument(place), Argument(place + 1)), {"COUNT": "n"}, (place,), (place + 1,), ())
        for place in range(length)
    )
    return Plan((), (), buffers, {}, launches)


def test_a_chain_needs_two_pieces():
    layout = place(chain(10), {"n": 1024})
    assert layout.total == 10 * 4096
    assert layout.size == layout.bound == 2 * 4096


def test_sizes_follow_the_dims():
    assert place(chain(3), {"n": 0}).size == 0
    assert place(chain(3), {"n": 1}).size == 2 * ALIGNMENT
