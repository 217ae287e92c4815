"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from optc.ir.errors import UsageError

_F = TypeVar("_F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)

shape_option = click.option(
    "--shape",
    "--dim",
    "shapes",
    multiple=True,
    metavar="NAME=SIZES",
    help="Size of a symbolic dim (batch=8), a range of sizes where one is compiled or checked (batch=1..8,seq=1..512), "
    "or the whole shape of an input (x=1,3,224,224); may be repeated.",
)
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of drawn inputs.")
input_option = click.option("--input", "data", type=FILE, help="Inputs: an .npz file with an array per input.")
backend_option = click.option(
    "--backend-option",
    "backend_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the backend (workspace=4GiB); may be repeated. See docs/backends.md.",
)
calib_option = click.option(
    "--calib",
    type=FILE,
    metavar="DATA",
    help="Calibration inputs: an .npz or .npy file, a folder of them, or MODULE:FUNCTION; see docs/calibration.md.",
)
calib_cache_option = click.option(
    "--calib-cache",
    metavar="FOLDER|off",
    help="Where statistics over calibration data are kept.  [default: in the user's cache]",
)
check_option = click.option(
    "--check",
    metavar="MODULE:FUNCTION|TOLERANCE",
    help="Your check, called with the path of a candidate; it returns False or a text, or raises, if that is wrong. "
    "Or the largest relative L2 error of an output.  [default: the check of a compile]",
)
_verbose = click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show tracebacks of errors.")


def common(command: _F) -> _F:
    """The options that every command has."""
    return _verbose(command)


def names(given: tuple[str, ...]) -> tuple[str, ...]:
    """The names in a repeated option, each of which may hold several with commas between them."""
    return tuple(name.strip() for text in given for name in text.split(",") if name.strip())


def assignments(given: tuple[str, ...], option: str) -> dict[str, str]:
    """Values by name, from a repeated option of the form NAME=VALUE.

    Raises:
        UsageError: A text is not of that form, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"{option} {text}: not NAME=VALUE")
        if name.strip() in found:
            raise UsageError(f"{option} {text}: {name.strip()!r} is given twice")
        found[name.strip()] = value.strip()
    return found


def chosen_check(text: str | None) -> dict[str, Any]:
    """What ``--check`` means to a search: a number is a tolerance, anything else names a function.

    Raises:
        UsageError: The number is none that a tolerance can be.
    """
    if text is None:
        return {}
    try:
        tolerance = float(text)
    except ValueError:
        return {"check": text}
    if not 0 <= tolerance < float("inf"):
        raise UsageError(f"a tolerance is a number from 0 on, not {text!r}")
    return {"tolerance": tolerance}


def plural(count: int, noun: str) -> str:
    """ "1 node", "2 nodes"."""
    return f"{count} {noun}{'s' * (count != 1)}"
