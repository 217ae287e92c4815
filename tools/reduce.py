"""``optc reduce MODEL``: shrink a model that fails to a small one that fails still."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from optc import reduce
from optc.ir.errors import UsageError
from optc.ir.printer import print_model
from optc.ir.saving import save
from optc.tools import pipeline_text
from optc.tools.console import Bars, show
from optc.tools.parameters import (
    FILE,
    check_option,
    chosen_check,
    common,
    names,
    plural,
    seed_option,
    shape_option,
)

#: Models of up to so many nodes are shown.
_SHOWN = 12


@click.command("reduce", short_help="Shrink a model that fails to a small one that fails still.")
@click.argument("model", type=FILE)
@click.option("-O", "level", type=int, default=2, show_default=True, metavar="LEVEL", help="The level that fails.")
@click.option("--target", default="cpu", show_default=True, help="What to optimize for; see 'optc targets'.")
@click.option("--passes", metavar="PIPELINE", help="The pipeline that fails, instead of the level's.")
@click.option("--skip", multiple=True, metavar="PASS", help="Leave a pass out; may be repeated.")
@check_option
@click.option("-o", "--output", type=FILE, help="File to write.  [default: MODEL.reduced.onnx in the current folder]")
@shape_option
@seed_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@common
def command(
    model: Path,
    check: str | None,
    output: Path | None,
    shapes: tuple[str, ...],
    skip: tuple[str, ...],
    quiet: bool,
    **options: Any,
) -> None:
    """Shrink MODEL as far as the failure that it shows stays: fewer outputs, nodes and inputs, smaller tensors.

    Without --check a model fails if compiling it raises or gives a wrong result.
    """
    output = output if output is not None else Path(f"{model.stem}.reduced.onnx")
    if output.exists() and model.exists() and output.samefile(model):
        raise UsageError("the output is the model itself", where=str(output), hint="name another file with -o")
    with nullcontext() if quiet else Bars() as bars:
        reduced = reduce.reduce(
            model,
            progress=bars,
            shapes=pipeline_text.sizes(model, shapes),
            skip=names(skip),
            **chosen_check(check),
            **options,
        )
    save(reduced.model, output)
    if quiet:
        return
    before, after = reduced.nodes
    show(
        f"{plural(before, 'node')} -> {plural(after, 'node')}, {plural(reduced.tried, 'candidate')} tried",
        f"it fails: {reduced.reason}",
        f"wrote {output}",
    )
    if after <= _SHOWN:
        show("", print_model(reduced.model).rstrip())
