"""How many programs share a sum, where tiles alone leave most of a GPU without work.

What is compared are *estimates*, in clock cycles: of the best tiles for whole sums, and of those for parts of them
together with adding the parts up. Short sums are never split, nor are those whose tiles fill the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from optc.ir.targets import Target
from optc.kernels.tiles import Tile, proposed

#: The clock that peak rates and bandwidths are translated with, per second.
_CLOCK = 1.4e9
#: A step of a pipelined loop takes this long at least, as what it loads is that far away; without a pipeline the other.
_STEP, _TRIP = 250, 1000
#: One kernel more: its start, and waiting until the last program of the one before has ended.
_LAUNCH = 3500
#: Bytes that a multiprocessor gets from the second cache per cycle.
_L2 = 64
#: Programs of one multiprocessor that wait for memory at the same time.
_TOGETHER = 4
_COUNTS = (2, 3, 4, 6, 8, 12, 16)
#: Tiles of this side feed tensor cores well; where they fill half of the device, sums stay whole.
_SIDE = 64
#: Parts are only taken if they are estimated to need less of the time than this: where parts are added up by a kernel
#: that runs anyway, and where that takes one more. Estimates are not better than that.
_FREE, _ONE_MORE = 0.8, 0.65


def product_splits(kernel: str, sizes: Mapping[str, int], item: int, targets: Iterable[Target], free: bool) -> int:
    """Into how many parts to split the sums of a product; 1 leaves them whole.

    Args:
        kernel: "matmul" or "gemv".
        sizes: M, N, K and BATCH.
        item: Bytes of an element of its operands.
        targets: The devices; what pays on all of them is done.
        free: Whether the parts are added up by a kernel that runs anyway.
    """
    return min((_splits(kernel, sizes, item, target, free) for target in targets), default=1)


def _splits(kernel: str, sizes: Mapping[str, int], item: int, target: Target, free: bool) -> int:
    if min(sizes.values()) < 1:
        return 1
    tiles = math.ceil(sizes["M"] / _SIDE) * math.ceil(sizes["N"] / _SIDE) * sizes["BATCH"]
    if tiles * (1 if free else 2) > (target.sm_count or 1):
        return 1
    most = (_FREE if free else _ONE_MORE) * _cycles(kernel, sizes, item, target, 1)
    best, count = most, 1
    for splits in _COUNTS:
        parts = splits * sizes["M"] * sizes["N"] * sizes["BATCH"] * 4
        added = 2 * parts / (_L2 / 2 * (target.sm_count or 1)) + (0 if free else _LAUNCH)
        cycles = _cycles(kernel, sizes, item, target, splits) + added
        if cycles < best:
            best, count = cycles, splits
    return count


def _cycles(kernel: str, sizes: Mapping[str, int], item: int, target: Target, splits: int) -> float:
    """Estimated cycles of a product in parts, with the best tile of the rules."""
    tiles = proposed(kernel if splits == 1 else f"{kernel}_split", {**sizes, "SPLITS": splits}, item)
    estimate = {"matmul": _matmul, "gemv": _gemv}[kernel]
    return min(estimate(tile, sizes, item, target, splits) for tile in tiles)


def _matmul(tile: Tile, sizes: Mapping[str, int], item: int, target: Target, splits: int) -> float:
    m, n, k = (tile.constants[f"BLOCK_{axis}"] for axis in "MNK")
    here = _per_multiprocessor(math.ceil(sizes["M"] / m) * math.ceil(sizes["N"] / n), sizes, target, splits)
    steps = math.ceil(math.ceil(sizes["K"] / splits) / k)
    rate = target.peak.get("fp16" if item <= 2 else "tf32", 1e14) / 2 / (target.sm_count or 1) / _CLOCK
    busy = max(m * n * k / rate, (m + n) * k * item / _L2)
    return steps * max(_STEP * math.ceil(here / _TOGETHER), here * busy)


def _gemv(tile: Tile, sizes: Mapping[str, int], item: int, target: Target, splits: int) -> float:
    n, k = (tile.constants[f"BLOCK_{axis}"] for axis in "NK")
    here = _per_multiprocessor(math.ceil(sizes["N"] / n), sizes, target, splits)
    steps = math.ceil(math.ceil(sizes["K"] / splits) / k)
    read = sizes["N"] * sizes["K"] * sizes["BATCH"] * item
    return max(steps * _TRIP * math.ceil(here / _TOGETHER), read / ((target.bandwidth or 1e12) / _CLOCK))


def _per_multiprocessor(tiles: int, sizes: Mapping[str, int], target: Target, splits: int) -> int:
    return math.ceil(tiles * sizes["BATCH"] * splits / (target.sm_count or 1))


#: Keys of one part at least, and parts at most.
_KEYS, _PARTS = 128, 32
#: Rows of queries that a tile of the kernel for parts takes at most.
_QUERIES = 64


def attention_splits(sizes: Mapping[str, int], group: int, targets: Iterable[Target]) -> int:
    """Into how many parts to split the keys of an attention; 1 leaves them whole.

    Few queries and many keys are split, where there are at most half as many tiles of queries as multiprocessors.

    Args:
        sizes: QUERIES, KEYS, HEADS and BATCH.
        group: Heads of queries that share a head of keys.
        targets: The devices.
    """
    rows = sizes["QUERIES"] * group
    if rows > _QUERIES or min(sizes.values()) < 1:
        return 1
    tiles = sizes["HEADS"] // group * sizes["BATCH"]
    found = []
    for target in targets:
        free = (target.sm_count or 1) // tiles
        count = min(free, sizes["KEYS"] // _KEYS, _PARTS)
        found.append(count if free >= 2 and count >= 2 else 1)
    return min(found, default=1)
