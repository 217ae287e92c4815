"""Pipelines and sizes on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from optc.ir.model import load
from optc.ir.sizes import Size
from optc.passes.manager import skip_passes
from optc.passes.pipeline import print_pipeline
from optc.plugins import environment
from optc.shapes import dim_ranges


def show_pipeline(level: int, text: str | None, skip: Sequence[str]) -> None:
    """Print a pipeline to stdout, and why its steps stand where they stand to stderr."""
    known = environment()
    pipeline = skip_passes(known.pipeline(level, text), list(skip))
    if text is None:
        click.echo(f"# -O{level}: {known.levels[level].promise}", err=True)
        for step, why in known.levels[level].entries:
            click.echo(f"# {step}: {why}", err=True)
        for name, (side, anchor) in known.placements.items():
            click.echo(f"# {name}: {side} {anchor}, placed by a plugin", err=True)
    click.echo(print_pipeline(pipeline))


def sizes(model: Path, texts: Sequence[str]) -> dict[str, Size]:
    """Sizes or ranges by dim name, from ``--shape`` options."""
    return dim_ranges(texts, load(model)) if texts else {}
