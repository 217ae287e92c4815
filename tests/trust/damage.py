"""Damaging files: blindly, by the structure of protobuf messages, and by that of JSON."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

#: Numbers that sizes, offsets and enumerations are damaged with.
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
#: What a value of JSON is damaged to.
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**40, 0.5, 1e308, "", "x", "../x", "/", "\0"),
    *("N", "N*N", "N//0", "9" * 30, [], {}, [[]], [None], {"": 0}, "é" * 50),
)

Damage = Callable[[bytes, random.Random, Sequence[bytes]], bytes]


def bytewise(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """One to four damages that know nothing: bits flipped, bytes cut, put in or set, pieces of other files."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + rng.choice([1, 2, 8, 64, 4096])]
        elif kind == 2:
            out[at:at] = varint(rng.choice(_NUMBERS))
        elif kind == 3:
            source = rng.choice(others)
            start = rng.randrange(len(source))
            out[at:at] = source[start : start + rng.choice([1, 8, 64, 512])]
        elif kind == 4 and out:
            out[at % len(out)] = rng.choice([0, 0x0A, 0x12, 0x7F, 0x80, 0xFF])
        else:
            del out[at:]
    return bytes(out)


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while True:
        out.append((number & 0x7F) | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(out)


# protobuf -------------------------------------------------------------------------------------------------------------


def protobuf(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """One to three damages of fields at any depth; the lengths around them fit again, so that parsers get there."""
    for _ in range(rng.randrange(1, 4)):
        data = _damaged_message(data, rng, others, 0)
    return data


def _damaged_message(data: bytes, rng: random.Random, others: Sequence[bytes], depth: int) -> bytes:
    fields = _fields(data)
    if not fields:
        return bytewise(data, rng, others) if data else varint(rng.choice(_NUMBERS))
    at = rng.randrange(len(fields))
    number, kind, content = fields[at]
    if kind == _BYTES and depth < 12 and rng.random() < 0.8 and _fields(content):
        fields[at] = number, kind, _damaged_message(content, rng, others, depth + 1)
        return _message(fields)
    what = rng.randrange(10)
    if what == 0:
        del fields[at]
    elif what == 1:
        fields.insert(rng.randrange(len(fields) + 1), fields[at])
    elif what == 2:
        fields[at : at + 1] = [fields[at]] * rng.choice([2, 3, 50])
    elif what == 3:
        fields[at] = rng.choice([number + 1, number - 1, 1, 2, 5, 7, 20, 1000]) or 1, kind, content
    elif what == 4:
        other = rng.choice([_VARINT, _FIXED64, _BYTES, _FIXED32])
        fields[at] = number, other, varint(rng.choice(_NUMBERS)) if other == _VARINT else bytes(_FIXED.get(other, 3))
    elif what == 5:
        pair = rng.randrange(len(fields))
        fields[at], fields[pair] = fields[pair], fields[at]
    elif what == 6:  # a piece of another message in its place
        source = _fields(rng.choice(others))
        for _ in range(rng.randrange(4)):
            inner = [found for _, kind_, content_ in source if kind_ == _BYTES and (found := _fields(content_))]
            source = rng.choice(inner) if inner else source
        if source:
            fields[at] = rng.choice(source)
    elif what == 7 and kind == _BYTES and depth < 12:  # a message inside of itself
        for _ in range(rng.choice([1, 2, 30, 200])):
            content = content + varint(number << 3 | _BYTES) + varint(len(content)) + content[:64]
            content = content[:20_000]
        fields[at] = number, kind, content
    elif what == 8:  # a length that lies
        raw = _message(fields[:at]) + varint(number << 3 | _BYTES) + varint(rng.choice(_NUMBERS))
        return raw + content + _message(fields[at + 1 :])
    elif kind == _VARINT:
        fields[at] = number, kind, varint(rng.choice((*_NUMBERS, *range(2, 40))))
    else:
        fields[at] = number, kind, bytewise(content, rng, others) if kind == _BYTES else rng.randbytes(len(content))
    return _message(fields)


def _fields(data: bytes) -> list[tuple[int, int, bytes]]:
    """The fields of a message: number, wire type and content; nothing if it is none."""
    fields, at = [], 0
    while at < len(data):
        tag, at = _varint_at(data, at)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 20 or kind not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
            return []
        start = at
        if kind == _VARINT:
            _, at = _varint_at(data, at)
        elif kind == _BYTES:
            length, start = _varint_at(data, at)
            at = start + length
        else:
            at += _FIXED[kind]
        if at > len(data):
            return []
        fields.append((number, kind, data[start:at]))
    return fields


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    return 0, len(data) + 1


def _message(fields: Sequence[tuple[int, int, bytes]]) -> bytes:
    return b"".join(
        varint(number << 3 | kind) + (varint(len(content)) if kind == _BYTES else b"") + content
        for number, kind, content in fields
    )


# JSON -----------------------------------------------------------------------------------------------------------------


def tree(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """One to three values of a JSON text made something else, left out, doubled or called by another name."""
    root = [json.loads(data)]
    for _ in range(rng.randrange(1, 4)):
        _damage_value(root, rng)
    text = json.dumps(root[0])
    return (text if rng.random() < 0.97 else "[" * 100_000 + text).encode()


def _damage_value(value: Any, rng: random.Random) -> None:
    """Go down at random and damage an entry of what is met."""
    keys = list(range(len(value))) if isinstance(value, list) else list(value)
    if not keys:
        return
    key = rng.choice(keys)
    inside = value[key]
    if isinstance(inside, list | dict) and inside and rng.random() < 0.85:
        _damage_value(inside, rng)
        return
    what = rng.randrange(4)
    if what == 0 and len(keys) > 1:
        del value[key]
    elif what == 1 and isinstance(value, dict):
        value[rng.choice(["x", "", f"{key}s", *keys])] = value.pop(key)
    elif what == 2 and isinstance(value, list):
        value.insert(key, inside)
    elif isinstance(inside, int | float) and rng.random() < 0.5:
        value[key] = inside + rng.choice([1, -1, 256, -(2**31)])
    else:
        value[key] = copy.deepcopy(rng.choice(_ODD))
