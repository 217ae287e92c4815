"""``optc MODEL``: optimize a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

import optc
from optc.host import default_output
from optc.ir.errors import OptcError, OutputError, UsageError
from optc.ir.model import load
from optc.ir.writing import write_text
from optc.plugins import environment
from optc.tools import pipeline_text, summary
from optc.tools.console import Bars
from optc.tools.files import data_files
from optc.tools.page import PAGES, page_of
from optc.tools.parameters import (
    FILE,
    assignments,
    backend_option,
    calib_cache_option,
    calib_option,
    common,
    names,
    seed_option,
    shape_option,
)


@click.command("compile", short_help="Optimize a model.")
@click.argument("model", type=FILE, required=False)
@click.option(
    "-O",
    "level",
    type=int,
    default=2,
    show_default=True,
    metavar="LEVEL",
    help="0: check only. 1: exact clean-up. 2: and fusion, same precision. 3: and what an error budget allows.",
)
@click.option(
    "--target", default="cpu", show_default=True, help="What to optimize for (a100, or a100,h100); see 'optc targets'."
)
@click.option(
    "--backend", help="What emits the file; see 'optc backends'. auto: the fastest one here.  [default: the target's]"
)
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="File to write.  [default: MODEL.opt.onnx here, .opt.xml for OpenVINO, MODEL.trt for TensorRT, MODEL.optc of "
    "compiled kernels]",
)
@click.option(
    "--fallback",
    type=click.Choice(["none", "onnxruntime"]),
    help="What runs nodes that the triton backend cannot compile.  [default: none, they are an error]",
)
@backend_option
@click.option("--passes", metavar="PIPELINE", help="Run this pipeline instead of the level's.")
@click.option("--skip", multiple=True, metavar="PASS", help="Leave a pass out; may be repeated.")
@click.option("--print-pipeline", is_flag=True, help="Print the pipeline, as --passes takes it, and do nothing else.")
@click.option("--print-after-all", type=FILE, metavar="FOLDER", help="Write the graph there after every change.")
@click.option(
    "--stop-after", type=click.IntRange(0), metavar="N", help="Make only the first N rewrites; see 'optc bisect'."
)
@click.option("--time-passes", is_flag=True, help="Show the time of every pass.")
@calib_option
@calib_cache_option
@click.option("--metric", metavar="MODULE:FUNCTION", help="Your task metric, called with (outputs, labels).")
@click.option("--max-drop", metavar="AMOUNT", help="How far the metric may fall, as in 0.5% or 0.01.")
@click.option(
    "--max-error", type=float, default=0.03, show_default=True, help="Error budget: relative L2 error of the outputs."
)
@click.option("--objective", type=click.Choice(["latency", "size"]), help="What -O3 makes small.  [default: latency]")
@click.option(
    "--policy",
    metavar="RULES",
    help="Which layers may become what: attention=int8;ffn=int4;last=none, or a .toml file.",
)
@click.option("--recipe", type=FILE, help="Do what this file pins, without a search.")
@click.option("--save-recipe", type=FILE, help="Write what -O3 decided, for --recipe.")
@click.option(
    "--verify",
    type=click.Choice(["final", "each", "off"]),
    default="final",
    show_default=True,
    help="Compare with the original: at the end, after every pass as well, or not at all.",
)
@click.option("--measure/--no-measure", default=True, show_default=True, help="Time the result against the original.")
@shape_option
@seed_option
@click.option(
    "--report", type=FILE, help="Write a report: a page to look at if it ends in .html, else JSON; see docs/report.md."
)
@click.option(
    "--reproducer",
    type=FILE,
    help="Where to write what failed, for 'optc replay'.  [default: MODEL.reproducer.zip in the current folder]",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@common
def command(
    model: Path | None,
    output: Path | None,
    print_pipeline: bool,
    print_after_all: Path | None,
    time_passes: bool,
    shapes: tuple[str, ...],
    report: Path | None,
    reproducer: Path | None,
    quiet: bool,
    skip: tuple[str, ...],
    fallback: str | None,
    backend_options: tuple[str, ...],
    **options: Any,
) -> None:
    """Optimize MODEL for a target, prove that it still computes the same, and write it.

    The numbers stay the same at -O1, move by rounding at -O2, and by no more than the error budget at -O3.
    """
    skip = names(skip)
    if print_pipeline:
        pipeline_text.show_pipeline(options["level"], options["passes"], skip)
        return
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.", click.get_current_context())
    output = _output(model, output, options["target"], options["backend"])
    if report is not None:
        _check_report(report, model, output)
    with _error_report(report), nullcontext() if quiet else Bars() as bars:
        result = optc.compile(
            model,
            output=output,
            skip=skip,
            shapes=pipeline_text.sizes(model, shapes),
            dump_dir=print_after_all,
            backend_options=assignments(backend_options, "--backend-option")
            | ({"fallback": fallback} if fallback is not None else {}),
            reproducer=reproducer if reproducer is not None else Path(f"{model.stem}.reproducer.zip"),
            progress=bars,
            **options,
        )
    if report is not None:
        is_page = report.suffix.lower() in PAGES
        write_text(report, page_of(result, model, options["target"]) if is_page else result.report.to_json())
    if not quiet:
        summary.show_summary(result.report, all_passes=time_passes)


def _output(model: Path, output: Path | None, target: str, backend: str | None) -> Path:
    """Where to write; never over the model or its data."""
    if backend is None:
        known = environment().targets.get(target.split(",")[0])
        backend = known.backend if known is not None else None
    chosen = output if output is not None else default_output(model, backend or "")
    hint = "name another file with -o; optc keeps its input"
    if chosen.exists() and model.exists() and chosen.samefile(model):
        raise UsageError("the output is the model itself", where=str(chosen), hint=hint)
    data = chosen.with_name(f"{chosen.name}.data")
    for path in (chosen, data):
        if path.exists() and any(path.samefile(file) for file in data_files(load(model))):
            raise UsageError(f"{str(path)!r} holds the model's weights", where=str(chosen), hint=hint)
    return chosen


@contextmanager
def _error_report(report: Path | None) -> Iterator[None]:
    """Write why a compile came to nothing where its report was to be."""
    try:
        yield
    except OptcError as error:
        if report is not None and report.suffix.lower() not in PAGES:
            told = {"what": error.what, "where": error.where, "hint": error.hint, "details": list(error.details)}
            write_text(report, json.dumps({"error": told}, indent=2) + "\n")
        raise


def _check_report(report: Path, model: Path, output: Path) -> None:
    """Find out before the work that the report cannot be written where it was asked for."""
    if report.absolute() in (model.absolute(), output.absolute()):
        raise UsageError("the report would replace the model", where=str(report), hint="name another file")
    if not report.absolute().parent.is_dir():
        raise OutputError(f"the folder {str(report.absolute().parent)!r} does not exist", where=str(report))
