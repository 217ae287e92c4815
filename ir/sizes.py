"""What a symbolic dim may be: one size, or a range of sizes. Written ``8`` and ``1..8``, both ends included."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Integral
from typing import Any, TypeAlias

#: One size, or the smallest and the largest.
Size: TypeAlias = "int | tuple[int, int]"

_TEXT = re.compile(r"\s*([0-9]+)\s*(?:\.\.\s*([0-9]+)\s*)?")


def read_size(given: Any) -> Size:
    """A size or a range from an integer, a pair of integers, or text such as ``8`` and ``1..8``.

    Raises:
        ValueError: It is none, it is negative, or the range ends before it begins; the message says which.
    """
    if isinstance(given, str):
        match = _TEXT.fullmatch(given)
        if match is None:
            raise ValueError("neither a size nor a range like 1..8")
        given = int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))
    ends = list(given) if isinstance(given, tuple | list) else [given]
    if len(ends) != (2 if isinstance(given, tuple | list) else 1) or not all(map(_is_integer, ends)):
        raise ValueError("neither a size nor a range like 1..8")
    if min(ends) < 0:
        raise ValueError("sizes are 0 or more")
    if ends[0] > ends[-1]:
        raise ValueError(f"the range ends at {ends[1]}, before it begins")
    return int(given) if len(ends) == 1 else (int(ends[0]), int(ends[1]))


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def size_label(size: Size) -> str:
    """A size or a range as people write it."""
    return f"{size[0]}..{size[1]}" if isinstance(size, tuple) else str(size)


def nearest(size: Size, wanted: int) -> int:
    """The allowed size that is nearest to ``wanted``."""
    return min(max(wanted, size[0]), size[1]) if isinstance(size, tuple) else size


def spread(size: Size, wanted: int) -> int:
    """``wanted`` where it is allowed, else one inside of the range: 1 is its begin, others mostly stay different."""
    if not isinstance(size, tuple):
        return size
    low, high = size
    return wanted if low <= wanted <= high else low + (wanted - 1) % (high - low + 1)


def allowed(bindings: Mapping[str, int], sizes: Mapping[str, Size], spreading: bool = False) -> dict[str, int]:
    """Values of dims, those moved that are not allowed: to the nearest size, or spread over the range."""
    move = spread if spreading else nearest
    return {name: move(sizes[name], value) if name in sizes else value for name, value in bindings.items()}
