"""Choosing tiles without a GPU: rules propose, the compiler disposes, arithmetic ranks.

Rules give a few candidates per kernel. Each is compiled, and what the cubin says of registers, spills and shared
memory tells how many blocks a multiprocessor holds. The rank is an *estimate* of time: waves of blocks times the work
of one, over how well a tile of that form feeds the tensor cores or the memory. Nothing here was measured on a GPU.

Sources of the rules: Triton's tutorials and ``triton_kernels`` (clamped powers of two), CUTLASS' profiled tile sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optc.ir.targets import Target
from optc.kernels.base import Specialization, evaluate_grid

if TYPE_CHECKING:  # it loads Triton, which those who only estimate do without
    from optc.kernels.compile import Compiled

_REGISTERS, _MAX_WARPS, _MAX_BLOCKS = 65536, 48, 24
#: Shared memory that the system keeps of every block.
_RESERVED_SHARED = 1024


@dataclass(frozen=True)
class Tile:
    """Compile-time values of a kernel, and how it is run."""

    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Choice:
    """The tile that was chosen, as compiled, and why."""

    tile: Tile
    compiled: Compiled
    reason: str


Sizes = Mapping[str, int]
#: Proposes tiles for sizes, and the bytes of an element.
Rule = Callable[[Sizes, int], list[Tile]]


def choose(
    kernel: str,
    make: Callable[[Tile], Specialization],
    build: Callable[[Specialization], Compiled],
    sizes: Sizes,
    item: int,
    target: Target,
    most: int = 2,
) -> Choice:
    """The best of a few tiles.

    Args:
        kernel: The kernel's name.
        make: Makes the kernel for a tile.
        build: Compiles it.
        sizes: Typical values of the kernel's sizes.
        item: Bytes of an element of its operands.
        target: The device.
        most: How many tiles to look at; more if they spill.
    """
    found: list[tuple[float, Choice]] = []
    for tile in ranked(kernel, sizes, item, target):
        spec = make(tile)
        compiled = build(spec)
        if compiled.shared > (target.shared_memory or 0):
            continue
        cost, reason = _judge(spec, compiled, sizes, target)
        found.append((cost, Choice(tile, compiled, reason)))
        if len(found) >= most and any(not choice.compiled.resources.spills for _, choice in found):
            break
    clean = [entry for entry in found if not entry[1].compiled.resources.spills]
    if not found:
        raise ValueError(f"no tile of kernel {kernel!r} fits into the shared memory of {target.name}")
    return min(clean or found, key=lambda entry: entry[0])[1]


def proposed(kernel: str, sizes: Sizes, item: int) -> list[Tile]:
    """Tiles that the rules propose.

    Args:
        kernel: The kernel's name.
        sizes: Typical values of its sizes; of those constants as well that lowering decides, as SPLITS.
        item: Bytes of an element of its operands.
    """
    return _RULES[kernel](sizes, item)


def ranked(kernel: str, sizes: Sizes, item: int, target: Target) -> list[Tile]:
    """Tiles that the rules propose, by what they are expected to cost, the cheapest first."""
    found = proposed(kernel, sizes, item)
    if kernel not in _PRODUCTS:
        return found
    return sorted(found, key=lambda tile: _matmul_cost(tile.constants, sizes, target.sm_count or 1, 1))


def _judge(spec: Specialization, compiled: Compiled, sizes: Sizes, target: Target) -> tuple[float, str]:
    """An estimate of the cost of a launch, and what it follows from."""
    blocks = math.prod(evaluate_grid(spec.kernel.grid, {**spec.values, **sizes}))
    resident = occupancy(compiled, target)
    waves = blocks / max(1, resident * (target.sm_count or 1))
    parts = [f"{key.removeprefix('BLOCK_').lower()} {value}" for key, value in spec.constants.items() if "BLOCK" in key]
    text = (
        f"{', '.join(parts)}, {compiled.num_warps} warps, {spec.num_stages} stages: {blocks} blocks, "
        f"{resident} at a time on each of {target.sm_count} multiprocessors, {waves:.2f} waves; "
        f"{compiled.resources.registers} registers, {compiled.resources.spills} spills, "
        f"{compiled.shared / 1024:.0f} KiB shared"
    )
    if spec.kernel.name not in _PRODUCTS:
        return math.ceil(waves) / max(1, resident), text
    cost = _matmul_cost(spec.values, sizes, target.sm_count or 1, resident)
    return cost, text


def _matmul_cost(constants: Mapping[str, Any], sizes: Sizes, multiprocessors: int, resident: int) -> float:
    """Relative time of a product: rounds of tiles, times the work of one over how well its form feeds the cores.

    A tile of m x n reads m + n for every m * n products, so small tiles wait for memory.
    """
    m, n = constants["BLOCK_M"], constants["BLOCK_N"]
    tiles = -(-sizes["M"] // m) * -(-sizes["N"] // n) * sizes["BATCH"] * sizes.get("SPLITS", 1)
    rounds = -(-tiles // multiprocessors)
    feed = m * n / (m * n + 32 * (m + n))
    hidden = 0.75 if resident == 1 else 1.0  # a second block computes while the first one waits
    return rounds * m * n / feed / hidden


def occupancy(compiled: Compiled, target: Target) -> int:
    """Blocks that a multiprocessor holds at a time."""
    registers = -(-max(compiled.resources.registers, 1) * 32 // 256) * 256 * compiled.num_warps
    shared = (target.shared_memory or 0) + _RESERVED_SHARED
    limits = [_MAX_BLOCKS, _MAX_WARPS // compiled.num_warps, _REGISTERS // registers]
    limits.append(shared // (compiled.shared + _RESERVED_SHARED))
    return max(1, min(limits))


def _power(n: int, low: int, high: int) -> int:
    """The power of two that holds ``n``, within bounds."""
    return min(max(1 << max(n - 1, 0).bit_length(), low), high)


#: Kernels whose tiles are those of a product on tensor cores.
_PRODUCTS = frozenset({"matmul", "matmul_split"})
#: (m, n, k, warps, stages) for 16-bit operands; 32-bit ones take half of k.
_MATMUL_TILES = (
    (128, 256, 32, 8, 3),
    (128, 128, 32, 8, 3),
    (128, 128, 64, 8, 3),
    (128, 64, 32, 4, 4),
    (64, 128, 32, 4, 4),
    (64, 64, 64, 4, 4),
    (32, 128, 64, 4, 4),
    (32, 64, 64, 4, 4),
    (16, 128, 64, 4, 4),
    (16, 64, 128, 4, 3),
    (64, 32, 64, 4, 4),
    (128, 32, 32, 4, 4),
    (32, 32, 64, 2, 4),
    (16, 32, 128, 2, 4),
    (16, 16, 128, 1, 4),
)


def _matmul(sizes: Sizes, item: int) -> list[Tile]:
    wide, tall = _power(sizes["N"], 16, 256), _power(sizes["M"], 16, 128)
    depth = _power(sizes["K"], 16, 128)
    found: dict[tuple[int, ...], None] = {}
    for m, n, k, warps, stages in _MATMUL_TILES:
        if m > tall or n > wide:
            continue
        k = min(k if item <= 2 else k // 2, depth)
        loops = -(-sizes["K"] // max(k, 16))
        found[(m, n, max(k, 16), warps, max(1, min(stages, loops)))] = None
    return [Tile({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, warps, stages) for m, n, k, warps, stages in found]


def _gemv(sizes: Sizes, item: int) -> list[Tile]:
    """Wide enough for whole cache lines of a row of the matrix, and narrower where that leaves too few programs.

    Every product of a tile is added up in a register of its own, so a tile has about 64 of them per thread. Loads are
    not pipelined: what one tile reads is all that is on its way, so tiles are as deep as registers allow.
    """
    wide = _power(sizes["N"], 16, 64)
    while wide > 16 and -(-sizes["N"] // wide) * sizes["BATCH"] < 128:
        wide //= 2
    depths = dict.fromkeys(min(_power(sizes["K"], 16, 512), most // wide) for most in (8192, 4096))
    return [Tile({"BLOCK_N": wide, "BLOCK_K": depth}, 4, 2) for depth in depths]


def _in_parts(rule: Rule) -> Rule:
    """The rule for a product whose sums are split: many short ones."""

    def split(sizes: Sizes, item: int) -> list[Tile]:
        parts = sizes["SPLITS"]
        return rule({**sizes, "K": -(-sizes["K"] // parts), "BATCH": sizes["BATCH"] * parts}, item)

    return split


def _depthwise(sizes: Sizes, item: int) -> list[Tile]:
    """Pixels of one channel, which lie side by side in memory."""
    wide = _power(sizes["BATCH"] * sizes["OUT_H"] * sizes["OUT_W"], 64, 512)
    return [Tile({"BLOCK_P": pixels, "BLOCK_C": 1}, 4 if pixels > 64 else 2, 1) for pixels in (wide, wide // 2)]


def _pointwise(sizes: Sizes, item: int) -> list[Tile]:
    """16 bytes for every thread of four warps; less where that leaves most multiprocessors without work."""
    block = 128 * max(1, 16 // max(item, 1))
    while block > 128 and sizes["COUNT"] < 128 * block:
        block //= 2
    return [Tile({"BLOCK": max(block, 128)}, 4, 1)]


def _rows(sizes: Sizes, item: int) -> list[Tile]:
    """Whole rows, several where they are short; about 8 elements a thread."""
    block = _power(sizes["COLUMNS"], 16, 16384)
    rows = max(1, min(1024 // block, 8)) if sizes["ROWS"] >= 1024 else 1
    warps = min(max(1, rows * block // 256), 16)
    return [Tile({"BLOCK": block, "ROWS_PER": rows}, warps, 1)]


def _long_rows(sizes: Sizes, item: int) -> list[Tile]:
    """Pieces of rows."""
    block = _power(sizes["COLUMNS"], 64, 4096)
    return [Tile({"BLOCK": block, "ROWS_PER": 1}, min(max(1, block // 512), 8), 1)]


def _attention(sizes: Sizes, item: int) -> list[Tile]:
    """FlashAttention-2's tiles for Ampere, in powers of two; few queries take few rows."""
    tall = _power(sizes["QUERIES"], 16, 128)
    wide = _power(sizes["KEYS"], 16, 64)
    tiles = [(m, n) for m, n in ((128, 64), (64, 64), (64, 32), (32, 32), (16, 64), (16, 32), (16, 16))]
    fitting = [(m, n) for m, n in tiles if m <= tall and n <= wide]
    return [Tile({"BLOCK_M": m, "BLOCK_N": n}, 8 if m >= 128 and item > 2 else 4, 2) for m, n in fitting]


def _attention_split(sizes: Sizes, item: int) -> list[Tile]:
    """As few rows as hold the queries of all heads that share keys; parts are short."""
    tall = _power(sizes["QUERIES"] * sizes["GROUP"], 16, 64)
    wide = _power(-(-sizes["KEYS"] // sizes["SPLITS"]), 16, 64)
    return [Tile({"BLOCK_M": tall, "BLOCK_N": width}, 4, 2) for width in dict.fromkeys((wide, max(wide // 2, 16)))]


def _attention_combine(sizes: Sizes, item: int) -> list[Tile]:
    """One row of a head for a program: there are few."""
    return [Tile({"BLOCK_M": 1}, 1, 1)]


_RULES: Mapping[str, Rule] = {
    "matmul": _matmul,
    "matmul_split": _in_parts(_matmul),
    "gemv": _gemv,
    "gemv_split": _in_parts(_gemv),
    "depthwise": _depthwise,
    "resize": _depthwise,
    "pool": _depthwise,
    "pointwise": _pointwise,
    "rows_norm": _rows,
    "rows_softmax": _rows,
    "rows_norm_loop": _long_rows,
    "rows_softmax_loop": _long_rows,
    "rows_reduce": _long_rows,
    "rows_arg": _long_rows,
    "rows_scan": _long_rows,
    "attention": _attention,
    "attention_split": _attention_split,
    "attention_combine": _attention_combine,
}
