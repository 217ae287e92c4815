"""Put optc -O3 beside other quantizers, in one run on one machine, on the same inputs.

    python benchmarks/quantization.py MODEL_OR_FOLDER ... [--cache FOLDER] [--only NAME,...] [--store quantization]

Every contender builds every model in a process of its own and is kept in the cache; then the results are opened in one
process, their outputs compared with the original's on inputs that no contender saw, and timed in turns. optc's error
budget for a model is the error of the best result that ONNX Runtime's own quantization gives for it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import machine
from harness.process import run_measured
from harness.tables import document, find_models, folder_bytes, markdown, public, shown

HERE = Path(__file__).resolve().parent
HARNESS = HERE / "harness"
RESULTS = HERE / "results"
#: The folders whose files decide what optc does: its results are built anew when one of them changed.
SOURCES = ("optc", "ir", "passes", "backends", "kernels", "tools")
HEADER = ("result", "bytes", "build s", "build MiB", "SQNR dB", "median ms", "IQR ms", "speed")
#: Calibration samples are drawn from seed 0 on, those on which errors are measured from here on.
UNSEEN = 1000
DEFAULT_BUDGET = 0.03


@dataclass(frozen=True)
class Contender:
    """Who quantizes how.

    Attributes:
        name: The row's name.
        build: What to call: a name of harness/quantizers.py, or "optc BACKEND"; None for the original.
        ending: Of the file it writes.
        open: What its file is opened with, see harness/quality.py.
        packages: What has to be installed.
        precision: What OpenVINO is told to compute floats in; None leaves it to OpenVINO.
    """

    name: str
    build: str | None
    ending: str = ".onnx"
    open: str = "onnxruntime"
    packages: tuple[str, ...] = ("onnxruntime",)
    precision: str | None = None


_OPENVINO = {"ending": ".xml", "open": "openvino"}
CONTENDERS = (
    Contender("original", None),
    Contender("ORT dynamic", "ort-dynamic"),
    Contender("ORT dynamic, per channel", "ort-dynamic-channel"),
    Contender("ORT static", "ort-static"),
    Contender("OpenVINO fp32", "openvino", packages=("openvino",), precision="f32", **_OPENVINO),
    Contender("OpenVINO as it comes", "openvino", packages=("openvino",), **_OPENVINO),
    Contender("NNCF, floats fp32", "nncf", packages=("openvino", "nncf"), precision="f32", **_OPENVINO),
    Contender("NNCF as it comes", "nncf", packages=("openvino", "nncf"), **_OPENVINO),
    Contender("optc onnxruntime", "optc onnxruntime", open="optc", packages=("optc",)),
    Contender("optc openvino", "optc openvino", ending=".xml", open="optc", packages=("optc", "openvino")),
    Contender("optc auto", "optc auto", open="optc", packages=("optc",)),
)
#: Whose best SQNR is what optc has to reach.
BAR = ("ORT dynamic", "ORT dynamic, per channel", "ORT static")


@dataclass
class Built:
    """What a contender's process did, as it is kept in the cache."""

    path: str
    size: int | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    problem: str | None = None


@dataclass
class Row:
    """One contender on one model."""

    contender: Contender
    built: Built
    found: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> list[str]:
        """The row of the table; a failure takes the place of what it prevented."""
        built, found = self.built, self.found
        problem = built.problem or found.get("problem")
        quality = found.get("sqnr")
        return [
            self.contender.name,
            shown(built.size, ",d"),
            shown(built.seconds, ".1f"),
            shown(built.peak_bytes and built.peak_bytes / 2**20, ".0f"),
            problem or ("exact" if quality == float("inf") else shown(quality, ".1f")),
            shown(found.get("median_ms"), ".2f"),
            shown(found.get("iqr_ms"), ".2f"),
            f"{found['speed']:.2f}x" if "speed" in found else "-",
        ]


class Bench:
    """All contenders on one model.

    Args:
        model: The model.
        options: The command line.
    """

    def __init__(self, model: Path, options: argparse.Namespace) -> None:
        self.model, self.options = model, options
        self.digest = _digest([model, *sorted(model.parent.glob(f"{model.name}.data"))])
        self.folder = options.cache / f"{model.stem}-{self.digest[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.calibration = self._samples("calibration", options.samples, 0)
        self.unseen = self._samples("unseen", options.unseen, UNSEEN)

    def run(self) -> list[Row]:
        """Build what is not in the cache, then measure all of it together."""
        rows = []
        for contender in self.options.contenders:
            print(f"  {contender.name} ...", end="", file=sys.stderr, flush=True)
            rows.append(Row(contender, self._build(contender, self._budget(rows, contender))))
        print("  measure ...", file=sys.stderr, flush=True)
        self._measure(rows, self.options.seconds * len(rows))
        return rows

    def _budget(self, rows: Sequence[Row], contender: Contender) -> float | None:
        """The error that optc is allowed: that of the best of ONNX Runtime's own results."""
        if not (contender.build or "").startswith("optc"):
            return None
        if self.options.max_error is not None:
            return float(self.options.max_error)
        bar = [row for row in rows if row.contender.name in BAR and row.built.problem is None]
        if bar and any("sqnr" not in row.found for row in bar):
            self._measure([rows[0], *bar], 0, self.calibration)
        best = max((row.found["sqnr"] for row in bar if row.found.get("sqnr", -1.0) > 0), default=None)
        return DEFAULT_BUDGET if best is None else float(f"{10 ** (-best / 20):.4g}")

    def _samples(self, name: str, count: int, seed: int) -> Path:
        path = self.folder / f"{name}-{count}{''.join(f'-{dim}' for dim in self.options.dim)}.npz"
        if not path.exists():
            drawn = path.with_suffix(".part")
            command = ["samples", self.model, drawn, count, seed, *self.options.dim]
            done = run_measured(_script("quantizers.py", *command), self.options.timeout)
            if done.failure is not None:
                raise SystemExit(f"{self.model.name}: no inputs can be drawn: {done.failure}")
            drawn.rename(path)
        return path

    def _build(self, contender: Contender, budget: float | None) -> Built:
        if contender.build is None:
            return Built(str(self.model), sum(p.stat().st_size for p in self.model.parent.glob(f"{self.model.name}*")))
        if missing := [name for name in contender.packages if name not in self.options.versions]:
            return Built("", problem=f"{', '.join(missing)} not installed")
        command = self._command(contender, budget)
        versions = [f"{name} {self.options.versions.get(name)}" for name in machine.PACKAGES]
        own = [self.options.sources] if contender.build.startswith("optc") else []
        key = hashlib.sha256(json.dumps([command, versions, own]).encode()).hexdigest()[:12]
        folder = self.folder / f"{contender.build.replace(' ', '-')}-{key}"
        record = folder / "built.json"
        if record.exists():
            return Built(**json.loads(record.read_text()))
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "result").mkdir(parents=True)
        out = folder / "result" / f"{self.model.stem}{contender.ending}"
        outcome = run_measured([part.replace("{out}", str(out)) for part in command], self.options.timeout, cwd=folder)
        built = Built(str(out), None, outcome.seconds, outcome.peak_bytes, outcome.failure)
        if built.problem is None and not out.exists():
            built.problem = "wrote no file"
        if built.problem is None:
            built.size = folder_bytes(out.parent)
            record.write_text(json.dumps(asdict(built)))
        return built

    def _command(self, contender: Contender, budget: float | None) -> list[str]:
        assert contender.build is not None
        if not contender.build.startswith("optc "):
            return _script("quantizers.py", contender.build, self.model, "{out}", self.calibration)
        _, backend = contender.build.split()
        command = [sys.executable, "-m", "optc.tools.cli", str(self.model), f"--backend={backend}", "-o", "{out}"]
        command += [f"--calib={self.calibration}", f"--max-error={budget}", "--report=report.json"]
        return command + self.options.optc_options.split()

    def _measure(self, rows: Sequence[Row], seconds: float, samples: Path | None = None) -> None:
        runnable = {row.contender.name: row for row in rows if row.built.problem is None}
        with tempfile.TemporaryDirectory(prefix="quantization-") as name:
            spec, out = Path(name, "spec.json"), Path(name, "found.json")
            models = {
                name: {"path": row.built.path, "open": row.contender.open, "precision": row.contender.precision}
                for name, row in runnable.items()
            }
            wanted = {"models": models, "samples": str(samples or self.unseen), "seconds": seconds}
            spec.write_text(json.dumps(wanted | {"threads": self.options.threads, "rounds": self.options.rounds}))
            done = run_measured(_script("quality.py", spec, out), self.options.timeout + seconds)
            found = json.loads(out.read_text()) if out.exists() else {}
        for name, row in runnable.items():
            row.found = found.get(name, {"problem": done.failure or "not measured"})


def _script(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HARNESS / name), *map(str, arguments)]


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def sources() -> str:
    """A digest of optc's own code."""
    root = HERE.parent
    found = [path for folder in SOURCES for path in (root / folder).rglob("*") if path.suffix in (".py", ".toml")]
    return _digest(sorted(found))


def table(rows: Sequence[Row]) -> str:
    """One line for each result."""
    return markdown([list(HEADER), *(row.cells() for row in rows)])


def summary(found: Mapping[str, Sequence[Row]]) -> str:
    """Speed and SQNR of all results on all models, with the geometric mean of the speeds."""
    names = [row.contender.name for row in next(iter(found.values()))]
    lines, speeds = [], {name: [] for name in names}
    for model, rows in found.items():
        cells = [model]
        for row in rows:
            speed, quality = row.found.get("speed"), row.found.get("sqnr")
            speeds[row.contender.name] += [] if speed is None else [speed]
            cells.append("-" if speed is None else f"{speed:.2f}x {shown(quality, '.1f')} dB")
        lines.append(cells)
    means = [shown(statistics.geometric_mean(taken) if taken else None, ".2f") for taken in speeds.values()]
    return markdown([["model", *names], *lines, ["geometric mean", *means]])


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help=".onnx files, or folders of them")
    parser.add_argument("--only", default="", help="contenders to run, by name, separated by semicolons")
    parser.add_argument("--cache", type=Path, help="folder in which results are kept for the next run")
    parser.add_argument("--optc-options", default="-O3 --target=cpu --no-measure")
    parser.add_argument("--max-error", type=float, help="optc's budget, instead of the error of ORT's best result")
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=SIZE", help="size of a dynamic dim")
    parser.add_argument("--samples", type=int, default=16, help="calibration samples to draw")
    parser.add_argument("--unseen", type=int, default=8, help="samples to draw on which errors are measured")
    parser.add_argument("--seconds", type=float, default=5, help="time per contender and model to spend on latency")
    parser.add_argument("--rounds", type=int, default=300, help="most runs per contender and model")
    parser.add_argument("--threads", type=int, default=2, help="of every runtime; 0: one per core")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one contender on one model")
    parser.add_argument("--store", metavar="NAME", help="write benchmarks/results/NAME.md")
    options = parser.parse_args(arguments)
    known = [contender.name for contender in CONTENDERS]
    wanted = [name.strip() for name in options.only.split(";") if name.strip()] or known
    if unknown := set(wanted) - set(known):
        parser.error(f"no contender is named {', '.join(sorted(unknown))}; there are: {'; '.join(known)}")
    options.contenders = [one for one in CONTENDERS if one.build is None or one.name in wanted]
    options.told, options.versions, options.sources = public(arguments), machine.versions(), sources()
    options.models = find_models(options.models)
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    kept = tempfile.TemporaryDirectory(prefix="quantization-") if options.cache is None else None
    options.cache = Path(kept.name) if kept is not None else options.cache.resolve()
    found: dict[str, list[Row]] = {}
    for model in options.models:
        print(f"{model.name}:", end="", file=sys.stderr, flush=True)
        found[model.name] = Bench(model, options).run()
        print(f"\n{model.name}\n{table(found[model.name])}", flush=True)
    tables = {"speed and SQNR of all": summary(found)} if len(found) > 1 else {}
    for title, text in tables.items():
        print(f"\n{title}\n{text}", flush=True)
    if options.store:
        tables |= {name: table(rows) for name, rows in found.items()}
        conditions = (
            f"dynamic dims: {' '.join(options.dim) or 'usual sizes, batch 1'}; threads: {options.threads or 'all'}; "
        )
        conditions += f"{options.samples} calibration samples, {options.unseen} others for the error, all drawn"
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{options.store}.md"
        text = document("Quantization", "quantization.py", options.told, [options.versions], conditions, tables)
        path.write_text(text)
        print(f"\nstored in {path}")
    if kept is not None:
        kept.cleanup()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
