"""Dataclasses from what JSON and TOML hold, every value checked against the type that its field declares."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def record(kind: type[T], data: Any) -> T:
    """A dataclass from a mapping of its fields; lists become tuples where tuples are declared.

    Args:
        kind: The dataclass. Its fields may be of other dataclasses, unions, literals, tuples, lists, sets, mappings
            with text as keys, and plain types.
        data: Nested mappings, lists and plain values.

    Raises:
        ValueError: A field is missing, unknown or of another type; the message says where.
    """
    found: T = _read(kind, data, "")
    return found


def _read(hint: Any, value: Any, place: str) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _dataclass(hint, value, place)
    if origin in (Union, types.UnionType):
        return None if value is None and type(None) in parts else _any_of(parts, value, place)
    if origin is Literal:
        if isinstance(value, str | int) and value in parts:
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        if len(parts) == 2 and parts[1] is ...:
            return tuple(_read(parts[0], item, f"{place}[{at}]") for at, item in enumerate(value))
        if len(parts) == len(value):
            return tuple(_read(part, item, place) for part, item in zip(parts, value, strict=True))
    elif origin in (list, frozenset) and isinstance(value, list | tuple):
        return origin(_read(parts[0], item, f"{place}[{at}]") for at, item in enumerate(value))
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _read(parts[1], item, f"{place}.{key}") for key, item in value.items()}
    elif isinstance(hint, type):
        wanted: Any = (int, float) if hint is float else hint
        if isinstance(value, wanted) and (hint is bool or not isinstance(value, bool)):
            return value
    raise ValueError(f"{place.strip('.') or 'it'} cannot be {str(value)[:40]!r}")


def _any_of(parts: tuple[Any, ...], value: Any, place: str) -> Any:
    """What the first alternative that fits makes of a value."""
    *others, last = [part for part in parts if part is not type(None)]
    for part in others:
        try:
            return _read(part, value, place)
        except ValueError:
            continue
    return _read(last, value, place)


def _dataclass(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{place.strip('.') or 'it'} is no {kind.__name__}")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind) if field.init}
    for name in value:
        if name not in known:
            raise ValueError(f"{place.strip('.') or kind.__name__} has no {str(name)[:40]!r}")
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{f'{place}.{name}'.strip('.')} is missing")
    return kind(**{name: _read(hints[name], item, f"{place}.{name}") for name, item in value.items()})
