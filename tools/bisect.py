"""``optc bisect MODEL``: find the one rewrite that makes the result wrong."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from optc import bisect
from optc.tools import pipeline_text
from optc.tools.console import Bars, show
from optc.tools.parameters import FILE, check_option, chosen_check, common, names, seed_option, shape_option


@click.command("bisect", short_help="Find the rewrite that makes the result wrong.")
@click.argument("model", type=FILE)
@click.option("-O", "level", type=int, default=2, show_default=True, metavar="LEVEL", help="The level to search in.")
@click.option("--target", default="cpu", show_default=True, help="What to optimize for; see 'optc targets'.")
@click.option("--passes", metavar="PIPELINE", help="Search in this pipeline instead of the level's.")
@click.option("--skip", multiple=True, metavar="PASS", help="Leave a pass out; may be repeated.")
@check_option
@shape_option
@seed_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@common
def command(
    model: Path, check: str | None, shapes: tuple[str, ...], skip: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Find the first rewrite after which MODEL's result is wrong, and show what it changed.

    Every application of a rewrite has a number; 'optc MODEL --stop-after N' makes only the first N of them.
    """
    with nullcontext() if as_json else Bars() as bars:
        culprit = bisect.bisect(
            model,
            progress=bars,
            shapes=pipeline_text.sizes(model, shapes),
            skip=names(skip),
            **chosen_check(check),
            **options,
        )
    if as_json:
        click.echo(json.dumps(asdict(culprit) if culprit is not None else None, indent=2))
    elif culprit is None:
        show("the result passes the check: there is nothing to find")
    else:
        _show(culprit)


def _show(culprit: bisect.Culprit) -> None:
    found = culprit.application
    show(
        f"rewrite {found.number} of {culprit.total} makes the result wrong: {found.rule}, in {found.step}",
        *([f"  made from  {', '.join(found.sources)}"] if found.sources else []),
        f"  the check  {culprit.reason}",
        f"  replay it  --stop-after {found.number} (wrong), --stop-after {found.number - 1} (right)",
        "",
        culprit.change,
    )
