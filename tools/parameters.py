"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)

shape_option = click.option(
    "--shape",
    "--dim",
    "shapes",
    multiple=True,
    metavar="NAME=SIZES",
    help="Size of a symbolic dim (batch=8) or the whole shape of an input (x=1,3,224,224); may be repeated.",
)
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of drawn inputs.")
input_option = click.option("--input", "data", type=FILE, help="Inputs: an .npz file with an array per input.")
_verbose = click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show tracebacks of errors.")


def common(command: _F) -> _F:
    """The options that every command has."""
    return _verbose(command)


def plural(count: int, noun: str) -> str:
    """ "1 node", "2 nodes"."""
    return f"{count} {noun}{'s' * (count != 1)}"
