"""``optc build``: the engine of a bundle that was written for TensorRT."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from optc.backends.tensorrt.backend import ENGINE
from optc.backends.tensorrt.builder import build
from optc.backends.tensorrt.recipe import read_recipe
from optc.ir.errors import OutputError
from optc.tools.console import Bars
from optc.tools.parameters import FILE, common
from optc.units import size_text


@click.command("build", short_help="Build the engine of a TensorRT bundle, on the GPU that it is for.")
@click.argument("bundle", type=FILE)
@click.option("-o", "--output", type=FILE, help="The engine.  [default: BUNDLE with the ending .engine]")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@common
def command(bundle: Path, output: Path | None, quiet: bool) -> None:
    """Build the engine of BUNDLE, a folder that --backend=tensorrt wrote, with TensorRT and the GPU of this machine.

    Nothing else is needed: the bundle says how.
    """
    read_recipe(bundle)  # what is no bundle, or damaged, is told of before what may be missing to build it
    output = output if output is not None else Path(bundle.name).with_suffix(ENGINE)
    if not output.absolute().parent.is_dir():
        raise OutputError(f"the folder {str(output.absolute().parent)!r} does not exist", where=str(output))
    with nullcontext() if quiet else Bars() as bars:
        built = build(bundle, output, bars)
    if not quiet:
        for note in built.notes:
            click.echo(f"note: {note}")
        for file in built.files:
            click.echo(f"wrote {file} ({size_text(file.stat().st_size)})")
