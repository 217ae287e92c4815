"""How the benchmarks print and store what they found. Standard library only."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from harness import machine


def shown(value: float | None, form: str) -> str:
    """A number in a format; a dash for what was not measured."""
    return "-" if value is None else format(value, form)


def markdown(lines: list[list[str]]) -> str:
    """A markdown table that also reads well as plain text; short lines are filled up."""
    full = [[*line, *["-"] * (len(lines[0]) - len(line))] for line in lines]
    widths = [max(len(line[column]) for line in full) for column in range(len(lines[0]))]
    rows = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in full
    ]
    rows.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(rows)


def public(arguments: list[str]) -> list[str]:
    """The arguments as they may be stored: only the last part of paths that lead outside of here."""
    return [Path(part).name if part.startswith(("/", "~")) else part for part in arguments]


def document(
    title: str,
    script: str,
    told: list[str],
    versions: Iterable[Mapping[str, str]],
    conditions: str,
    tables: Mapping[str, str],
) -> str:
    """The stored form: what was measured, where, when, with what, and the command that repeats it.

    Args:
        title: The heading.
        script: File name of the benchmark.
        told: Its arguments, see :func:`public`.
        versions: Versions of the packages that took part, one mapping for each interpreter.
        conditions: One line on the settings.
        tables: Tables by title.
    """
    known = machine.describe()
    packages = sorted({pair for found in versions for pair in found.items()})
    lines = [
        f"# {title}",
        "",
        f"- date: {datetime.now(UTC):%Y-%m-%d}",
        f"- machine: {known['cpu']}, {known['cores']} cores, {known['memory']}, {known['flags']}; {known['system']}",
        f"- versions: Python {known['python']}, " + ", ".join(map(" ".join, packages)),
        f"- command: `{shlex.join(['python', f'benchmarks/{script}', *told])}`",
        f"- {conditions}",
        "",
        "Columns: see benchmarks/README.md. Measured, not estimated.",
    ]
    for name, text in tables.items():
        lines += ["", f"## {name}", "", text]
    return "\n".join(lines) + "\n"


def find_models(given: list[Path]) -> list[Path]:
    """The .onnx files named, and those directly in the folders named."""
    found = [path for entry in given for path in (sorted(entry.glob("*.onnx")) if entry.is_dir() else [entry])]
    missing = [str(path) for path in found if not path.is_file()]
    if missing or not found:
        raise SystemExit(f"no such model: {', '.join(missing)}" if missing else "no .onnx file in the folders given")
    return [path.resolve() for path in found]


def folder_bytes(folder: Path) -> int:
    """The size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
