"""What verification costs: compiles with --verify=final and --verify=each against the same without any.

    python benchmarks/verification.py MODEL.onnx ... [-O 2] [--rounds 5] [--store NAME]

Whole compiles, from loading to the written file, in turns in one process. The processor time of the process is taken,
all of its threads together, which other processes disturb least; wall-clock time stands beside it. Ratios are taken
within a round, and their median is shown. The peak of memory is that of a process of its own for each way.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from harness import machine
from harness.process import run_measured

import optc

RESULTS = Path(__file__).resolve().parent / "results"
WAYS = ("off", "final", "each")
_ONE = "import sys, optc; optc.compile(sys.argv[1], level=int(sys.argv[2]), verify=sys.argv[3], output=sys.argv[4])"


def _rounds(model: Path, level: int, rounds: int, output: Path) -> dict[str, list[tuple[float, float]]]:
    """Processor time and wall time of each way in each round; a first round is not counted."""
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for turn in range(rounds + 1):
        for shift in range(len(WAYS)):
            way = WAYS[(turn + shift) % len(WAYS)]
            start = time.process_time(), time.perf_counter()
            result = optc.compile(model, level=level, verify=way, output=output)  # type: ignore[arg-type]
            end = time.process_time(), time.perf_counter()
            if result.report.verification.status not in ("passed", "off"):
                sys.exit(f"{model}: {result.report.verification.text()}")
            if turn:
                times[way].append((end[0] - start[0], end[1] - start[1]))
    return times


def _peaks(model: Path, level: int) -> list[int]:
    """Bytes of the largest resident memory of a process, for each way."""
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "o.onnx")
        commands = [[sys.executable, "-c", _ONE, str(model.absolute()), str(level), way, output] for way in WAYS]
        return [run_measured(command, timeout=900).peak_bytes for command in commands]


def _row(model: Path, level: int, rounds: int, peaks: list[int]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        times = _rounds(model, level, rounds, Path(folder) / "o.onnx")

    def ratio(way: str, clock: int) -> str:
        pairs = zip(times["off"], times[way], strict=True)
        return f"{statistics.median(b[clock] / a[clock] for a, b in pairs):.2f}x"

    off = statistics.median(processor for processor, _ in times["off"])
    ratios = [ratio(way, clock) for clock in (0, 1) for way in WAYS[1:]]
    return [model.name, f"{off:.2f}", *ratios, *(f"{peak / 2**20:.0f}" for peak in peaks)]


def _table(rows: list[list[str]]) -> list[str]:
    head = ["model", "off, s", "final", "each", "final, wall", "each, wall", *(f"{way}, MiB" for way in WAYS)]
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("-O", dest="level", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", help="write results/NAME.md")
    arguments = parser.parse_args()
    # A process is never measured smaller than the one that started it: before that one grows.
    peaks = [_peaks(model, arguments.level) for model in arguments.models]
    rows = [
        _row(model, arguments.level, arguments.rounds, own) for model, own in zip(arguments.models, peaks, strict=True)
    ]
    lines = _table(rows)
    print("\n".join(lines))
    if arguments.store:
        about, versions = machine.describe(), machine.versions()
        names = " ".join(model.name for model in arguments.models)
        head = [
            "# What verification costs",
            "",
            f"- date: {datetime.now(UTC):%Y-%m-%d}",
            f"- machine: {about['cpu']}, {about['cores']} cores, {about['memory']}; {about['system']}",
            f"- versions: Python {about['python']}, {', '.join(f'{name} {text}' for name, text in versions.items())}",
            f"- command: `python benchmarks/verification.py {names} -O {arguments.level} --rounds {arguments.rounds}`",
            "",
            "Processor seconds of a compile without verification, and how many times that it takes with it; see",
            "benchmarks/README.md. Measured, not estimated.",
            "",
        ]
        (RESULTS / f"{arguments.store}.md").write_text("\n".join([*head, *lines, ""]), "utf-8")


if __name__ == "__main__":
    main()
