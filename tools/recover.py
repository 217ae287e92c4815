"""``optc recover``: a compressed model learns from its original."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from optc.ir.errors import OutputError
from optc.recovery.recover import BlockReport, Recovery, Settings, recover
from optc.tools.console import Bars, show, table
from optc.tools.parameters import FILE, calib_option, common, plural
from optc.units import size_text

_DEFAULT = Settings()


@click.command("recover", short_help="Let a compressed model learn from its original.")
@click.argument("compressed", type=FILE)
@click.option("--original", type=FILE, required=True, metavar="MODEL", help="The model that COMPRESSED was made from.")
@calib_option
@click.option("-o", "--output", type=FILE, help="The model to write.  [default: COMPRESSED with .recovered.onnx]")
@click.option(
    "--steps",
    type=click.IntRange(0),
    default=_DEFAULT.steps,
    show_default=True,
    help="Steps per block, and for the whole model.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=_DEFAULT.learning_rate,
    show_default=True,
    help="How far a weight may go in a step, as a share of the size of the weights beside it.",
)
@click.option(
    "--batch", type=click.IntRange(1), default=_DEFAULT.batch, show_default=True, help="Rows that a step looks at."
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=_DEFAULT.held_out,
    show_default=True,
    help="Share of the data that is judged by and not learned from.",
)
@click.option("--blocks/--no-blocks", default=True, show_default=True, help="Let blocks learn one by one first.")
@click.option("--whole/--no-whole", default=True, show_default=True, help="Let the whole model learn in the end.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default=_DEFAULT.device,
    show_default=True,
    help="Where PyTorch computes.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of draws and orders.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@common
def command(
    compressed: Path,
    original: Path,
    calib: Path | None,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Let COMPRESSED learn from the model it was made from, on calibration data, by PyTorch (pip install
    'optc[recover]').

    The graph stays as it is; the weights alone change, stored codes included. What is not nearer to the original on
    samples that were held out is taken back.
    """
    if calib is None:
        raise click.UsageError("--calib is missing: there is nothing to learn from")
    output = output if output is not None else Path(compressed.name).with_suffix(".recovered.onnx")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"the folder {str(output.absolute().parent)!r} does not exist", where=str(output))
    with Bars(quiet or as_json) as bars:
        found = recover(compressed, original, calib, output=output, progress=bars, **settings)
    if as_json:
        click.echo(json.dumps(_facts(found), indent=2))
    elif not quiet:
        _show(found)


def _facts(found: Recovery) -> dict[str, Any]:
    names = ("before", "after", "gained", "left", "learned_from", "judged_by", "seconds")
    facts: dict[str, Any] = {name: getattr(found, name) for name in names}
    return facts | {"blocks": [asdict(block) for block in found.blocks], "files": [str(file) for file in found.files]}


def _show(found: Recovery) -> None:
    if found.blocks:
        rows = [
            (block.name, f"{block.numbers:,d}", _error(block.before), _error(block.after), _outcome(block))
            for block in found.blocks
        ]
        show(table(("block", "numbers", "error before", "after", ""), rows, right=("numbers", "error before", "after")))
    for node, why in found.left.items():
        show(f"left as it is, with what is before it in its block: {node}: {why}")
    data = f"{plural(found.judged_by, 'batch').replace('batchs', 'batches')} held out"
    if found.gained:
        show(f"relative L2 error of the worst output on {data}: {found.before:.4g} -> {found.after:.4g}")
    else:
        show(f"nothing was gained on {data}, so the model was written as it came in ({found.before:.4g})")
    for file in found.files:
        show(f"wrote {file} ({size_text(file.stat().st_size)})")


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.4g}"


def _outcome(block: BlockReport) -> str:
    return "kept" if block.kept else f"taken back: {block.reason}" if block.after is not None else block.reason
