"""Peak memory and time of calibrating one model on the same samples: optc's sweep beside other calibrators.

    python benchmarks/calibration.py MODEL ... [--samples 8,32] [--peer-python PYTHON] [--nncf-python PYTHON]

Every calibrator runs in a process of its own with a limit on its memory, on the same files, which it reads one by one.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness import machine
from harness.process import Outcome, run_measured
from harness.tables import document, find_models, markdown, public

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SCRIPT = HERE / "harness" / "calibrators.py"


@dataclass(frozen=True)
class Contender:
    """A calibrator: its name in harness/calibrators.py, the package that it needs, and whose interpreter runs it."""

    name: str
    package: str
    python: str = "own"


CONTENDERS = (
    Contender("optc", "optc"),
    Contender("optc-gram", "optc"),
    Contender("ort-minmax", "onnxruntime"),
    Contender("ort-percentile", "onnxruntime"),
    Contender("ort-entropy", "onnxruntime"),
    Contender("onnxsim-minmax", "onnxsim", "peer"),
    Contender("onnxsim-entropy", "onnxsim", "peer"),
    Contender("nncf", "nncf", "nncf"),
)


def cells(outcome: Outcome | None, reason: str) -> list[str]:
    if outcome is None:
        return [reason, "-"]
    if outcome.failure is not None:
        return [f"{outcome.peak_bytes / 2**20:.0f}, then {outcome.failure}", f"{outcome.seconds:.1f}"]
    return [f"{outcome.peak_bytes / 2**20:.0f}", f"{outcome.seconds:.1f}"]


def measure(contender: Contender, model: Path, folder: Path, options: argparse.Namespace) -> tuple[Outcome | None, str]:
    python = options.pythons[contender.python]
    if contender.package != "optc" and contender.package not in options.versions[contender.python]:
        return None, "not installed"
    with tempfile.TemporaryDirectory(dir=options.scratch) as cwd:
        return run_measured([python, SCRIPT, contender.name, model, folder], options.timeout, Path(cwd)), ""


def table(model: Path, options: argparse.Namespace) -> str:
    header = ["calibrator"] + [f"{what}, {count}" for count in options.samples for what in ("peak MiB", "seconds")]
    rows = {contender.name: [contender.name] for contender in options.contenders}
    for count in options.samples:
        with tempfile.TemporaryDirectory(prefix="calibration-", dir=options.scratch) as folder:
            drawn = run_measured([sys.executable, SCRIPT, "samples", model, folder, str(count), *options.dim], 600)
            if drawn.failure is not None:
                raise SystemExit(f"{model.name}: no samples: {drawn.failure}")
            for contender in options.contenders:
                print(f"  {model.name}, {count} samples: {contender.name}", file=sys.stderr, flush=True)
                rows[contender.name] += cells(*measure(contender, model, Path(folder), options))
    return markdown([header, *rows.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--samples", default="8,32", help="numbers of samples, with commas between them")
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=SIZE")
    parser.add_argument("--only", default=",".join(each.name for each in CONTENDERS))
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has onnxsim")
    parser.add_argument("--nncf-python", default=sys.executable, help="interpreter that has nncf and openvino")
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("--memory", type=float, default=12, help="GiB of address space that a process may take")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--store", help="write results/NAME.md")
    options = parser.parse_args()
    options.samples = [int(count) for count in options.samples.split(",")]
    options.contenders = [each for each in CONTENDERS if each.name in options.only.split(",")]
    options.pythons = {"own": sys.executable, "peer": options.peer_python, "nncf": options.nncf_python}
    options.versions = {key: machine.versions(python) for key, python in options.pythons.items()}
    limit = int(options.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    tables = {}
    for model in find_models(options.models):
        tables[model.stem] = table(model, options)
        print(f"\n{model.stem}\n\n{tables[model.stem]}\n", flush=True)
    if options.store:
        sizes = ", ".join(options.dim) or "usual sizes"
        conditions = f"processes limited to {options.memory:g} GiB of address space; {sizes}"
        text = document(
            "Calibration: peak memory and time",
            "calibration.py",
            public(sys.argv[1:]),
            options.versions.values(),
            conditions,
            tables,
        )
        (RESULTS / f"{options.store}.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
