"""Put optc beside other ONNX optimizers, in one run on one machine.

    python benchmarks/peers.py MODEL_OR_FOLDER ... [--peer-python PYTHON] [--store NAME]

Every contender optimizes every model in a process of its own, one at a time. For each the table shows nodes, bytes,
wall-clock time and peak memory of that whole process, the error of the result, and how fast ONNX Runtime runs it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import machine
from harness.contenders import Contender, contenders, interpreter
from harness.process import Outcome, run_measured

HERE = Path(__file__).resolve().parent
HARNESS = HERE / "harness"
RESULTS = HERE / "results"
WRONG = 1e-3  # relative L2 error beyond which a result is no longer a matter of rounding
HEADER = ("optimizer", "nodes", "bytes", "seconds", "peak MiB", "error", "median ms", "IQR ms", "speed")


@dataclass
class Row:
    """One contender on one model; None stands for what was not reached."""

    name: str
    path: Path
    outcome: Outcome | None = None
    problem: str | None = None
    size: int | None = None
    check: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> list[str]:
        """The row of the table; a failure takes the place of what it prevented."""
        error = self.check.get("error")
        if problem := self.problem or self.check.get("problem"):
            shown = problem
        elif error is None:
            shown = "-"
        else:
            shown = "exact" if error == 0 else f"{error:.1e}" if error <= WRONG else f"WRONG {error:.1e}"
        timing = self.latency
        return [
            self.name,
            _shown(self.check.get("nodes"), "d"),
            _shown(self.size, ",d"),
            _shown(self.outcome and self.outcome.seconds, ".2f"),
            _shown(self.outcome and self.outcome.peak_bytes / 2**20, ".0f"),
            shown,
            timing.get("problem") or _shown(timing.get("median_ms"), ".3f"),
            _shown(timing.get("iqr_ms"), ".3f"),
            f"{timing['speed']:.2f}x" if "speed" in timing else "-",
        ]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(contender: Contender, model: Path, folder: Path, options: argparse.Namespace) -> Row:
    """Let a contender optimize ``model`` into ``folder``."""
    row = Row(contender.name, folder / model.name)
    python = interpreter(contender, options.peer_python)
    if contender.package not in options.versions[python]:
        row.problem = "not installed"
        return row
    folder.mkdir()
    row.outcome = run_measured(contender.command(python, model, row.path), options.timeout, cwd=folder)
    row.problem = row.outcome.failure
    if row.problem is None and not row.path.exists():
        row.problem = "wrote no file"
    if row.problem is None:
        row.size = folder_bytes(folder)
    return row


def check(row: Row, model: Path, scratch: Path, options: argparse.Namespace) -> None:
    """Count nodes and compare outputs; the findings go into ``row``."""
    out = scratch / "check.json"
    out.unlink(missing_ok=True)
    dims = [f"{name}={size}" for name, size in options.dims.items()]
    done = run_measured([sys.executable, HARNESS / "check.py", model, row.path, out, *dims], options.timeout)
    row.check = json.loads(out.read_text()) if out.exists() else {"problem": f"check failed: {done.failure}"}


def time_all(rows: list[Row], scratch: Path, options: argparse.Namespace) -> None:
    """Interleaved latency of every result that runs; the first row is the original."""
    runnable = {row.name: row for row in rows if row.problem is None and not row.check.get("problem")}
    spec, out = scratch / "spec.json", scratch / "latency.json"
    models = {name: str(row.path) for name, row in runnable.items()}
    budget = options.seconds * len(models)
    spec.write_text(
        json.dumps(
            {
                "models": models,
                "dims": options.dims,
                "threads": options.threads,
                "seconds": budget,
                "rounds": options.rounds,
            }
        )
    )
    done = run_measured([sys.executable, HARNESS / "latency.py", spec, out], options.timeout + budget)
    timings = json.loads(out.read_text()) if out.exists() else {}
    for name, row in runnable.items():
        row.latency = timings.get(name, {"problem": done.failure or "no timing"})


def compare(model: Path, options: argparse.Namespace) -> list[Row]:
    """All rows of one model, the original first."""
    original = Row("original", model, size=sum(p.stat().st_size for p in model.parent.glob(f"{model.name}*")))
    rows = [original]
    with tempfile.TemporaryDirectory(prefix="peers-", dir=options.scratch) as name:
        scratch = Path(name)
        for contender in options.contenders:
            print(f"  {contender.name} ...", end="", file=sys.stderr, flush=True)
            rows.append(measure(contender, model, scratch / contender.name, options))
        for row in rows:
            if row.problem is None:
                check(row, model, scratch, options)
        if options.latency and not original.check.get("problem"):
            print("  latency ...", end="", file=sys.stderr, flush=True)
            time_all(rows, scratch, options)
    print(file=sys.stderr)
    return rows


def table(rows: list[Row]) -> str:
    """A markdown table that also reads well as plain text."""
    lines = [list(HEADER), *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    shown.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(shown)


def document(tables: dict[str, str], options: argparse.Namespace) -> str:
    """The stored form: what was measured, where, when, with what, and the command that repeats it."""
    known = machine.describe()
    packages = sorted({pair for found in options.versions.values() for pair in found.items()})
    inputs = ", ".join(f"{name}={size}" for name, size in options.dims.items()) or "1 for leading dims, 64 for others"
    lines = [
        f"# Peers: {options.store}",
        "",
        f"- date: {datetime.now(UTC):%Y-%m-%d}",
        f"- machine: {known['cpu']}, {known['cores']} cores, {known['memory']}, {known['flags']}; {known['system']}",
        f"- versions: Python {known['python']}, " + ", ".join(map(" ".join, packages)),
        f"- command: `{shlex.join(['python', 'benchmarks/peers.py', *options.told])}`",
        f"- optc options: `{options.optc_options}`; dynamic dims: {inputs}; threads: {options.threads or 'all cores'}",
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


def public(arguments: list[str]) -> list[str]:
    """The arguments as they may be stored: only the last part of paths that lead outside of here."""
    return [Path(part).name if part.startswith(("/", "~")) else part for part in arguments]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help=".onnx files, or folders of them")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter in which the peers are installed")
    parser.add_argument("--only", default="", help="contenders to run, by name, separated by commas")
    parser.add_argument("--optc-options", default="-O2 --target=cpu --verify=off --no-measure")
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=SIZE", help="size of a dynamic dim")
    parser.add_argument("--no-latency", dest="latency", action="store_false")
    parser.add_argument("--seconds", type=float, default=10, help="time per contender and model to spend on latency")
    parser.add_argument("--rounds", type=int, default=300, help="most runs per contender and model")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: one per core")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one contender on one model")
    parser.add_argument("--scratch", type=Path, help="folder for intermediate files")
    parser.add_argument("--store", metavar="NAME", help="write benchmarks/results/NAME.md")
    options = parser.parse_args(arguments)
    try:
        options.dims = {name: int(size) for name, size in (entry.split("=") for entry in options.dim)}
    except ValueError:
        parser.error("--dim wants NAME=SIZE")
    known = contenders(options.optc_options)
    wanted = [name for name in options.only.split(",") if name] or [contender.name for contender in known]
    if unknown := set(wanted) - {contender.name for contender in known}:
        parser.error(
            f"no contender is named {', '.join(sorted(unknown))}; there are: {', '.join(c.name for c in known)}"
        )
    options.contenders = [contender for contender in known if contender.name in wanted]
    options.told = public(arguments)
    options.models = find_models(options.models)
    options.versions = {python: machine.versions(python) for python in {sys.executable, options.peer_python}}
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    tables = {}
    for model in options.models:
        print(f"{model.name}:", end="", file=sys.stderr, flush=True)
        tables[model.name] = table(compare(model, options))
        print(f"\n{model.name}\n{tables[model.name]}", flush=True)
    if options.store:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{options.store}.md"
        path.write_text(document(tables, options))
        print(f"\nstored in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
