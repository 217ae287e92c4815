"""``optc diff A B``: what differs between two models."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from optc.difference import Difference, difference
from optc.tools.console import show, table
from optc.tools.parameters import FILE, common, seed_option
from optc.units import size_text

#: Exit codes are those of diff(1).
_EXIT_DIFFERENT = 1
_OPS_SHOWN = 20


@click.command("diff", short_help="Show what differs between two models.")
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-4,
    show_default=True,
    help="Relative L2 error of an output up to which numbers count as equal.",
)
@click.option("--run/--no-run", default=True, show_default=True, help="Run both and compare what they compute.")
@click.option("--text", is_flag=True, help="Show the graphs' differences as text.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@seed_option
@common
@click.pass_context
def command(
    ctx: click.Context, first: Path, second: Path, tolerance: float, run: bool, text: bool, as_json: bool, seed: int
) -> None:
    """Compare FIRST and SECOND: interface, operators, weights, bytes, and the numbers that they compute.

    The exit code is 0 if they have the same interface and give equal numbers, within the tolerance, and 1 if not.
    """
    found = difference(first, second, run=run, seed=seed)
    equal = not found.interface and (found.worst is None or found.worst <= tolerance)
    if as_json:
        click.echo(json.dumps({**asdict(found), "equal": equal}, indent=2))
    else:
        _show(found, tolerance, run)
        if text:
            show("", found.text or "the graphs are the same")
    if not equal:
        ctx.exit(_EXIT_DIFFERENT)


def _show(found: Difference, tolerance: float, run: bool) -> None:
    if found.same_bytes:
        show("the files are equal byte by byte")
        return
    facts = [
        ("interface", "; ".join(found.interface) or "the same"),
        ("nodes", _pair(*found.nodes)),
        ("weights", _pair(*map(size_text, found.weight_bytes))),
        ("file", _pair(*map(size_text, found.file_bytes))),
        ("opsets", ", ".join(f"{domain or 'ai.onnx'} {_pair(*pair)}" for domain, pair in found.opsets.items())),
        ("numbers", _numbers(found, tolerance) if run else ""),
    ]
    show(table(("", ""), [(name, text) for name, text in facts if text]))
    if found.ops:
        rows = [(op, *counts, f"{counts[1] - counts[0]:+d}") for op, counts in list(found.ops.items())[:_OPS_SHOWN]]
        show("", table(("operator", "first", "second", ""), rows, right=("first", "second", "")))
        if len(found.ops) > _OPS_SHOWN:
            show(f"and {len(found.ops) - _OPS_SHOWN} more operators")


def _pair(a: object, b: object) -> str:
    return f"{a}, the same" if a == b else f"{a} -> {b}"


def _numbers(found: Difference, tolerance: float) -> str:
    if found.worst is None:
        return f"not compared: {found.not_compared}"
    worst = max(found.numbers, key=lambda entry: entry.error)
    if worst.problem:
        return f"different at {worst.at}: {worst.output} {worst.problem}".replace("  ", " ")
    verdict = "equal" if worst.error <= tolerance else "different"
    return f"{verdict}: relative L2 error up to {worst.error:.2g} ({worst.output} at {worst.at})"
