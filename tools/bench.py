"""``optc bench MODEL ...``: time models against each other."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import click

import optc
from optc.backends.timing import Timing, compare
from optc.inputs import input_specs
from optc.sources import load_samples
from optc.tools.console import show, table
from optc.tools.parameters import FILE, common, input_option, plural, seed_option, shape_option
from optc.tools.run import drawn, graph_of
from optc.units import seconds_text, size_text


@click.command("bench", short_help="Time models against each other.")
@click.argument("models", type=FILE, nargs=-1, required=True, metavar="MODEL [OTHER]...")
@click.option("--against", type=FILE, metavar="ORIGINAL", help="The model that all ratios refer to; else the first.")
@input_option
@shape_option
@seed_option
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Time to spend, about.")
@click.option("--threads", type=click.IntRange(1), help="Threads per operator.")
@common
def command(
    models: tuple[Path, ...],
    against: Path | None,
    data: Path | None,
    shapes: tuple[str, ...],
    seed: int,
    seconds: float,
    threads: int | None,
) -> None:
    """Time models in turns, on the same inputs, in one process.

    They take turns so that a machine that slows down slows down all of them, and are compared within each turn. The
    ratio is the time of the reference over that of the model: above 1 is faster.
    """
    names = list(dict.fromkeys(str(path) for path in ((against, *models) if against else models)))
    runners = {name: optc.load(name, threads=threads) for name in names}
    graph = graph_of(Path(names[0]), runners[names[0]])
    feeds = load_samples(data, input_specs(graph))[0] if data is not None else drawn(graph, shapes, seed)
    result = compare({name: partial(runner.run, feeds) for name, runner in runners.items()}, budget=seconds)
    sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
    settled = "" if result.stable else "; not settled, give it more --seconds"
    cores = plural(threads or os.cpu_count() or 1, "thread")
    show(f"on this CPU, {cores}, {sizes}; {result.rounds} rounds in turns{settled}", "")
    rows = [_row(timing) for timing in result.timings]
    headings = ("model", "size", "median", "quartiles", "ratio", "ratio quartiles")
    show(table(headings, rows, right=("size", "median", "ratio")))


def _row(timing: Timing) -> tuple[str, ...]:
    seconds, ratio = timing.seconds, timing.ratio
    return (
        timing.name,
        size_text(_size(Path(timing.name))),
        seconds_text(seconds.median),
        f"{seconds_text(seconds.low)} .. {seconds_text(seconds.high)}",
        f"{1 / ratio.median:.2f}x",
        f"{1 / ratio.high:.2f}x .. {1 / ratio.low:.2f}x",
    )


def _size(path: Path) -> int:
    """Bytes of a model; the weights of OpenVINO's files lie beside them."""
    weights = path.with_suffix(".bin") if path.suffix.lower() == ".xml" else None
    return path.stat().st_size + (weights.stat().st_size if weights is not None and weights.is_file() else 0)
