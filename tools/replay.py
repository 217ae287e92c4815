"""``optc replay FILE``: run a failed compile again from the reproducer that it left."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

import optc
from optc import reproducer
from optc.machine import versions
from optc.tools.console import Bars, show
from optc.tools.parameters import FILE, common

_EXIT_FAILS = 1


@click.command("replay", short_help="Run a failed compile again from its reproducer.")
@click.argument("file", type=FILE)
@click.option("-o", "--output", type=FILE, help="Write the reproducer's model there, for 'optc bisect' and 'reduce'.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@common
@click.pass_context
def command(ctx: click.Context, file: Path, output: Path | None, quiet: bool) -> None:
    """Run the compile that FILE describes again. The exit code is 1 if it fails still, and 0 if it fails no more."""
    with reproducer.opened(file) as (found, model):
        if output is not None:
            optc.compile(model, level=0, verify="off", output=output)
        here = versions()
        changed = [
            f"{name} {version} (now {here.get(name, 'missing')})"
            for name, version in found.versions.items()
            if here.get(name) != version
        ]
        with nullcontext() if quiet else Bars() as bars:
            problems = _problems(found, model, bars)
    if not quiet:
        show("it was:", *(f"  {line}" for line in found.problems))
        if changed:
            show(f"other versions: {', '.join(changed)}")
        if found.left_out:
            show(f"left out in a replay: {', '.join(found.left_out)}")
        show("it is now:" if problems else "it does not fail any more", *(f"  {line}" for line in problems))
    if problems:
        ctx.exit(_EXIT_FAILS)


def _problems(found: reproducer.Reproducer, model: object, bars: Bars | None) -> list[str]:
    options = {**found.options, "passes": found.pipeline, "skip": (), "measure": False}
    try:
        return optc.compile(model, progress=bars, **options).report.problems()  # type: ignore[arg-type]
    except optc.OptcError:
        raise
    except Exception as error:  # the failure that was to be replayed, or another one
        return [f"{type(error).__name__}: {error}"]
