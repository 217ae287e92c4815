"""``optc report MODEL``: a page that shows what a compile does and why."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

import optc
from optc.ir.errors import UsageError
from optc.ir.writing import write_text
from optc.tools import pipeline_text
from optc.tools.console import Bars, show
from optc.tools.page import PAGES, page_of
from optc.tools.parameters import FILE, calib_cache_option, calib_option, common, names, seed_option, shape_option


@click.command("report", short_help="Write a page that shows what a compile does and why.")
@click.argument("model", type=FILE)
@click.option("-O", "level", type=int, default=2, show_default=True, metavar="LEVEL", help="The level to show.")
@click.option("--target", default="cpu", show_default=True, help="What to optimize for; see 'optc targets'.")
@click.option("--passes", metavar="PIPELINE", help="Run this pipeline instead of the level's.")
@click.option("--skip", multiple=True, metavar="PASS", help="Leave a pass out; may be repeated.")
@calib_option
@calib_cache_option
@click.option("--measure/--no-measure", default=True, show_default=True, help="Time the result against the original.")
@click.option("-o", "--output", type=FILE, help="The page.  [default: MODEL.report.html in the current folder]")
@shape_option
@seed_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@common
def command(
    model: Path,
    target: str,
    output: Path | None,
    shapes: tuple[str, ...],
    skip: tuple[str, ...],
    quiet: bool,
    **options: Any,
) -> None:
    """Compile MODEL, write no model, and write one page on it: the graph before and after, passes, misses, budget."""
    output = output if output is not None else Path(f"{model.stem}.report.html")
    if output.suffix.lower() not in PAGES:
        raise UsageError("a page ends in .html", where=str(output), hint="'optc MODEL --report FILE.json' writes JSON")
    with nullcontext() if quiet else Bars() as bars:
        result = optc.compile(
            model,
            target=target,
            progress=bars,
            shapes=pipeline_text.sizes(model, shapes),
            skip=names(skip),
            **options,
        )
    write_text(output, page_of(result, model, target))
    if not quiet:
        show(f"wrote {output}")
