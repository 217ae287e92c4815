"""Options of a backend: what ``--backend-option NAME=VALUE`` may say, checked against a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optc.ir.errors import UsageError
from optc.ir.targets import suggestion


@dataclass(frozen=True)
class BackendOption:
    """One option.

    Attributes:
        name: As users write it ("builder-level").
        values: What it may be, for messages and documents ("0 to 5").
        meaning: One line on it.
        read: Its value from a text; raises ValueError.
        default: Where it is not given.
    """

    name: str
    values: str
    meaning: str
    read: Callable[[str], Any]
    default: Any = None


def read_options(backend: str, table: Sequence[BackendOption], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all options of a backend, with "_" for "-" in their names.

    Args:
        backend: The backend's name, for messages.
        table: Its options.
        given: Values by name, as texts or what texts stand for.

    Raises:
        UsageError: An option is not known, or cannot be what was given.
    """
    known = {option.name: option for option in table}
    values = {option.name: option.default for option in table}
    for name, value in given.items():
        key = name.replace("_", "-")
        if key not in known:
            listed = f"it has: {', '.join(known)}" if known else "it has none"
            raise UsageError(f"the {backend} backend has no option {name!r}", hint=suggestion(key, known, listed))
        try:
            values[key] = known[key].read(_text(value))
        except ValueError as error:
            raise UsageError(
                f"option {key!r} of the {backend} backend is {known[key].values}, not {value!r}"
            ) from error
    return {name.replace("-", "_"): value for name, value in values.items()}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def one_of(*choices: str) -> Callable[[str], str]:
    """Reads one of some words."""

    def read(text: str) -> str:
        word = text.strip().lower().replace("-", "_")
        if word not in choices:
            raise ValueError(text)
        return word

    return read


def flag(text: str) -> bool:
    """Reads true or false."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.strip().lower() not in words:
        raise ValueError(text)
    return words[text.strip().lower()]


def within(low: int, high: int) -> Callable[[str], int]:
    """Reads an integer in a range, both ends included."""

    def read(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError(text)
        return number

    return read


def byte_count(text: str) -> int:
    """Reads a number of bytes, as in 4GiB, 512MB or 1073741824; units are powers of two."""
    units = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
    word = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = word[-1:] if word[-1:] in units and not word[-1:].isdigit() else ""
    number = float(word.removesuffix(unit) if unit else word)
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return int(number * (1 << units[unit]))


__all__ = ["BackendOption", "byte_count", "flag", "one_of", "read_options", "within"]
