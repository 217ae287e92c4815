"""``optc passes``: which passes there are."""

from __future__ import annotations

import dataclasses
import inspect

import click

from optc.environment import Environment
from optc.ir.errors import OptcError
from optc.passes.base import Pass
from optc.passes.pipeline import leaves
from optc.passes.registry import pass_class
from optc.plugins import environment
from optc.tools.console import show, table
from optc.tools.parameters import common


@click.command("passes", short_help="List the passes, or describe one.")
@click.argument("name", required=False)
@common
def command(name: str | None) -> None:
    """List the passes that --passes and --skip know, or describe one with its options."""
    known = environment()
    if name is not None:
        _describe(known, name)
        return
    levels, rows = _levels(known), []
    for entry in known.passes:
        try:
            cls = pass_class(known.passes, entry.name)
            rows.append((entry.name, cls.numerics.name.lower(), levels.get(entry.name, ""), entry.owner, cls.summary()))
        except OptcError as error:
            rows.append((entry.name, "broken", "", entry.owner, error.what))
    show(table(("pass", "numerics", "levels", "from", "what it does"), rows))


def _levels(known: Environment) -> dict[str, str]:
    """In which levels each pass runs."""
    found: dict[str, list[str]] = {}
    for number in sorted(known.levels):
        for name in dict.fromkeys(item.name for item in leaves(known.pipeline(number))):
            found.setdefault(name, []).append(f"-O{number}")
    return {name: " ".join(levels) for name, levels in found.items()}


def _describe(known: Environment, name: str) -> None:
    cls: type[Pass] = pass_class(known.passes, name)
    show(f"{name}: numerics {cls.numerics.name.lower()}", "", inspect.cleandoc(cls.__doc__ or ""))
    rows = []
    for option in dataclasses.fields(cls):
        default = option.default_factory() if callable(option.default_factory) else option.default
        rows.append((option.name, str(option.type), "" if default is dataclasses.MISSING else repr(default)))
    if rows:
        show("", table(("option", "type", "default"), rows), "", f"as in: --passes '{name}{{{rows[0][0]}=...}}'")
