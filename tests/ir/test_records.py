"""Dataclasses from nested data: what does not fit is refused with its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from optc.ir.records import record


@dataclass(frozen=True)
class Inner:
    count: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    parts: tuple[Inner, ...]
    pair: tuple[int, int | None]
    kind: Literal["a", "b"] = "a"
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()
    anything: Any = None


GOOD = {"name": "x", "parts": [{"count": 1}, {"count": 2, "share": 1}], "pair": [3, None], "flags": ["u", "u"]}


def test_what_fits() -> None:
    found = record(Outer, {**GOOD, "by_name": {"k": {"count": 4}}, "anything": [1]})
    assert found == Outer("x", (Inner(1), Inner(2, 1)), (3, None), "a", {"k": Inner(4)}, frozenset("u"), [1])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": 1}, "name cannot be '1'"),
        ({"name": None}, "name cannot be 'None'"),
        ({"parts": [{"count": 1}, {}]}, r"parts\[1\].count is missing"),
        ({"parts": [{"count": True}]}, r"parts\[0\].count cannot be 'True'"),
        ({"parts": {"count": 1}}, "parts cannot be"),
        ({"parts": [[]]}, r"parts\[0\] is no Inner"),
        ({"pair": [1]}, "pair cannot be"),
        ({"pair": [1, "x"]}, "pair cannot be 'x'"),
        ({"kind": "c"}, "kind cannot be 'c'"),
        ({"kind": []}, "kind cannot be"),
        ({"by_name": {"k": {"count": 1, "more": 2}}}, "by_name.k has no 'more'"),
        ({"by_name": {3: {"count": 1}}}, "by_name cannot be"),
        ({"other": 1}, "Outer has no 'other'"),
    ],
)
def test_what_does_not(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        record(Outer, {**GOOD, **wrong})


def test_no_mapping_at_all() -> None:
    with pytest.raises(ValueError, match="it is no Outer"):
        record(Outer, [1, 2])
