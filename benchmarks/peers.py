"""Put optc beside other ONNX optimizers, in one run on one machine.

    python benchmarks/peers.py MODEL_OR_FOLDER ... [--peer-python PYTHON] [--store NAME]

Every contender optimizes every model in a process of its own, one at a time. For each the table shows nodes, bytes,
wall-clock time and peak memory of that whole process, the error of the result, and how fast ONNX Runtime runs it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import machine
from harness.contenders import Contender, contenders, interpreter
from harness.process import Outcome, run_measured
from harness.tables import document, find_models, folder_bytes, markdown, public, shown

HERE = Path(__file__).resolve().parent
HARNESS = HERE / "harness"
RESULTS = HERE / "results"
WRONG = 1e-3  # relative L2 error beyond which a result is no longer a matter of rounding
HEADER = ("optimizer", "nodes", "bytes", "seconds", "peak MiB", "error")
TIMING = ("median ms", "IQR ms", "speed")


@dataclass
class Row:
    """One contender on one model; None stands for what was not reached."""

    name: str
    path: Path
    outcome: Outcome | None = None
    problem: str | None = None
    size: int | None = None
    check: dict[str, Any] = field(default_factory=dict)
    latency: list[dict[str, Any]] = field(default_factory=list)  # one for each setting of the dynamic dims

    def cells(self) -> list[str]:
        """The row of the table; a failure takes the place of what it prevented."""
        error = self.check.get("error")
        if problem := self.problem or self.check.get("problem"):
            found = problem
        elif error is None:
            found = "-"
        else:
            found = "exact" if error == 0 else f"{error:.1e}" if error <= WRONG else f"WRONG {error:.1e}"
        return [
            self.name,
            shown(self.check.get("nodes"), "d"),
            shown(self.size, ",d"),
            shown(self.outcome and self.outcome.seconds, ".2f"),
            shown(self.outcome and self.outcome.peak_bytes / 2**20, ".0f"),
            found,
            *(cell for timing in self.latency for cell in _timing_cells(timing)),
        ]


@dataclass
class Comparison:
    """All rows of one model, the original first, and the settings of the dims at which they were timed."""

    rows: list[Row]
    settings: list[dict[str, int]]

    def varied(self) -> list[str]:
        """What tells the settings apart, as in ``seq=8``; one empty text if there is one setting only."""
        names = {name for dims in self.settings for name in dims if len({d.get(name) for d in self.settings}) > 1}
        return [",".join(f"{name}={dims[name]}" for name in sorted(names & set(dims))) for dims in self.settings]


def _timing_cells(timing: dict[str, Any]) -> list[str]:
    return [
        timing.get("problem") or shown(timing.get("median_ms"), ".3f"),
        shown(timing.get("iqr_ms"), ".3f"),
        f"{timing['speed']:.2f}x" if "speed" in timing else "-",
    ]


def measure(contender: Contender, model: Path, folder: Path, options: argparse.Namespace) -> Row:
    """Let a contender optimize ``model`` into ``folder``."""
    row = Row(contender.name, folder / model.name)
    python = interpreter(contender, options.peer_python)
    if contender.package not in options.versions[python]:
        row.problem = "not installed"
        return row
    folder.mkdir()
    row.outcome = run_measured(
        contender.command(python, model, row.path, options.model_types.get(model.name, "bert")),
        options.timeout,
        cwd=folder,
    )
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
    dims = [f"{name}={size}" for name, size in options.settings[0].items()]
    done = run_measured([sys.executable, HARNESS / "check.py", model, row.path, out, *dims], options.timeout)
    row.check = json.loads(out.read_text()) if out.exists() else {"problem": f"check failed: {done.failure}"}


def time_all(rows: list[Row], scratch: Path, options: argparse.Namespace) -> list[dict[str, int]]:
    """Interleaved latency of every result that runs, at the settings that differ for this model."""
    runnable = {row.name: row for row in rows if row.problem is None and not row.check.get("problem")}
    spec, out = scratch / "spec.json", scratch / "latency.json"
    budget = options.seconds * len(runnable)
    wanted = {
        "models": {name: str(row.path) for name, row in runnable.items()},
        "settings": options.settings,
        "threads": options.threads,
        "seconds": budget,
        "rounds": options.rounds,
    }
    spec.write_text(json.dumps(wanted))
    limit = options.timeout + budget * len(options.settings)
    done = run_measured([sys.executable, HARNESS / "latency.py", spec, out], limit)
    failed = [{"dims": {}, "models": {name: {"problem": done.failure or "no timing"} for name in runnable}}]
    timings = json.loads(out.read_text()) if out.exists() else failed
    for row in rows:
        row.latency = [timing["models"].get(row.name, {}) for timing in timings]
    return [timing["dims"] for timing in timings]


def compare(model: Path, options: argparse.Namespace) -> Comparison:
    original = Row("original", model, size=sum(p.stat().st_size for p in model.parent.glob(f"{model.name}*")))
    rows, settings = [original], []
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
            settings = time_all(rows, scratch, options)
    print(file=sys.stderr)
    return Comparison(rows, settings)


def table(comparison: Comparison) -> str:
    """One line for each optimizer."""
    heads = [f"{head} {setting}".rstrip() for setting in comparison.varied() for head in TIMING]
    return markdown([[*HEADER, *heads], *(row.cells() for row in comparison.rows)])


def nodes_of_all(found: dict[str, Comparison]) -> str:
    """Nodes of every model by every optimizer."""
    names = [row.name for row in next(iter(found.values())).rows]
    return markdown(
        [["model", *names]]
        + [[name, *(shown(row.check.get("nodes"), "d") for row in one.rows)] for name, one in found.items()]
    )


def speeds_of_all(found: dict[str, Comparison]) -> str:
    """Speed of every optimizer's results, each model at each setting, with the geometric mean over all that ran."""
    names = [row.name for row in next(iter(found.values())).rows][1:]
    lines, all_speeds = [], {name: [] for name in names}
    for model, one in found.items():
        for at, setting in enumerate(one.varied()):
            speeds = [row.latency[at].get("speed") if at < len(row.latency) else None for row in one.rows[1:]]
            for name, speed in zip(names, speeds, strict=True):
                all_speeds[name] += [] if speed is None else [speed]
            lines.append([f"{model} {setting}".rstrip(), *(shown(speed, ".2f") for speed in speeds)])
    means = [shown(statistics.geometric_mean(speeds) if speeds else None, ".3f") for speeds in all_speeds.values()]
    return markdown([["model", *names], *lines, ["geometric mean", *means]])


def summary(found: dict[str, Comparison]) -> dict[str, str]:
    """Tables over all models, by title."""
    tables = {"nodes": nodes_of_all(found)}
    if any(one.settings for one in found.values()):
        tables["speed against the original"] = speeds_of_all(found)
    return tables


def conditions(options: argparse.Namespace) -> str:
    """The settings of a run in one line."""
    inputs = " ".join(options.dim) or "1 for leading dims, 64 for others"
    threads = options.threads or "all cores"
    return f"optc options: `{options.optc_options}`; dynamic dims: {inputs}; threads: {threads}"


def settings(given: list[str]) -> list[dict[str, int]]:
    """The n-th sizes of all dims together, for each n; a dim with one size keeps it.

    Raises:
        ValueError: A size is no number, or two dims have several sizes and not as many.
    """
    sizes = {name: [int(size) for size in text.split(",")] for name, text in (entry.split("=") for entry in given)}
    count = max((len(several) for several in sizes.values()), default=1)
    if any(len(several) not in (1, count) for several in sizes.values()):
        raise ValueError("sizes do not pair up")
    return [{name: several[min(at, len(several) - 1)] for name, several in sizes.items()} for at in range(count)]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help=".onnx files, or folders of them")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter in which the peers are installed")
    parser.add_argument("--only", default="", help="contenders to run, by name, separated by commas")
    parser.add_argument("--optc-options", default="-O2 --target=cpu --verify=off --no-measure")
    parser.add_argument(
        "--dim", action="append", default=[], metavar="NAME=SIZE[,SIZE...]", help="sizes of a dynamic dim to time at"
    )
    parser.add_argument(
        "--model-type", action="append", default=[], metavar="FILE=TYPE", help="what to tell ort-transformers"
    )
    parser.add_argument("--no-latency", dest="latency", action="store_false")
    parser.add_argument("--seconds", type=float, default=10, help="time per contender and model to spend on latency")
    parser.add_argument("--rounds", type=int, default=300, help="most runs per contender and model")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: one per core")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one contender on one model")
    parser.add_argument("--scratch", type=Path, help="folder for intermediate files")
    parser.add_argument("--store", metavar="NAME", help="write benchmarks/results/NAME.md")
    options = parser.parse_args(arguments)
    try:
        options.settings = settings(options.dim)
    except ValueError:
        parser.error("--dim wants NAME=SIZE or NAME=SIZE,SIZE..., with as many sizes wherever there are several")
    options.model_types = dict(entry.split("=", 1) for entry in options.model_type)
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
    found = {}
    for model in options.models:
        print(f"{model.name}:", end="", file=sys.stderr, flush=True)
        found[model.name] = compare(model, options)
        print(f"\n{model.name}\n{table(found[model.name])}", flush=True)
    overall = summary(found) if len(found) > 1 else {}
    for title, text in overall.items():
        print(f"\n{title}\n{text}", flush=True)
    if options.store:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{options.store}.md"
        tables = overall | {name: table(one) for name, one in found.items()}
        title, versions = f"Peers: {options.store}", options.versions.values()
        path.write_text(document(title, "peers.py", options.told, versions, conditions(options), tables))
        print(f"\nstored in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
