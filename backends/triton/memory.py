"""The arena: one piece of memory for all temporaries, shared by those that are never needed at the same time.

A temporary lives from the launch that writes it first to the last one that reads it. Placing intervals of different
sizes without overlap in the least space is NP-hard; taking the largest first and putting each at the lowest place
where it fits comes close (greedy by size: Pisarchyk and Lee, "Efficient memory management for deep neural net
inference", 2020).

Where every dim has a range, each temporary gets the most that it can need within them: one arena then serves all sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optc.backends.triton.plan import Buffer, Plan, most_bytes, nbytes

#: Every buffer starts at a multiple of this many bytes: what kernels are told, and a cache line besides.
ALIGNMENT = 256


@dataclass(frozen=True)
class Layout:
    """Where temporaries lie.

    Attributes:
        offsets: Byte offset in the arena, by buffer.
        size: Bytes of the arena.
        total: Bytes of all temporaries together.
        bound: The most bytes that are alive at one launch: no arena can be smaller.
    """

    offsets: Mapping[int, int]
    size: int
    total: int
    bound: int


def lifetimes(plan: Plan) -> dict[int, tuple[int, int]]:
    """For every temporary the first launch that writes and the last that uses it."""
    found: dict[int, tuple[int, int]] = {}
    for place, launch in enumerate(plan.launches):
        for buffer in (*launch.reads, *launch.writes):
            if plan.buffers[buffer].role == "temporary":
                first, _ = found.get(buffer, (place, place))
                found[buffer] = (first, place)
    return found


def place(plan: Plan, bindings: Mapping[str, int]) -> Layout:
    """Where every temporary lies, for these values of the symbolic dims; see :attr:`Plan.arena`."""
    alive = lifetimes(plan)
    sizes = {buffer: _aligned(needed(plan, plan.buffers[buffer], bindings)) for buffer in alive}
    offsets = assign(alive, sizes)
    return Layout(
        offsets=offsets,
        size=max((offsets[buffer] + sizes[buffer] for buffer in alive), default=0),
        total=sum(sizes.values()),
        bound=_peak(alive, sizes, len(plan.launches)),
    )


def needed(plan: Plan, buffer: Buffer, bindings: Mapping[str, int]) -> int:
    """The bytes to keep for a buffer: what these sizes take, or the most that the plan's ranges allow.

    Raises:
        DataError: It has more elements than kernels can count.
    """
    most = most_bytes(buffer, plan.ranges) if plan.arena == "largest" else None
    return nbytes(buffer, bindings) if most is None else most


def assign(alive: Mapping[int, tuple[int, int]], sizes: Mapping[int, int]) -> dict[int, int]:
    """Offsets such that buffers which are alive at the same time do not overlap."""
    offsets: dict[int, int] = {}
    for buffer in sorted(alive, key=lambda b: (-sizes[b], alive[b], b)):
        first, last = alive[buffer]
        taken = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in offsets
            if alive[other][0] <= last and first <= alive[other][1]
        )
        offsets[buffer] = _lowest_gap(taken, sizes[buffer])
    return offsets


def _lowest_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    end = 0
    for start, stop in taken:
        if start - end >= size:
            return end
        end = max(end, stop)
    return end


def _peak(alive: Mapping[int, tuple[int, int]], sizes: Mapping[int, int], launches: int) -> int:
    change = [0] * (launches + 1)
    for buffer, (first, last) in alive.items():
        change[first] += sizes[buffer]
        change[last + 1] -= sizes[buffer]
    peak = now = 0
    for step in change:
        now += step
        peak = max(peak, now)
    return peak


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
