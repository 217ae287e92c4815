"""What compiled artifacts are made of, and what compiling costs. None of it needs a GPU.

    python benchmarks/triton_plan.py MODEL.onnx ... [--target a100] [--shape batch=1] [--store NAME]

Every model is compiled three times, each in a process of its own as a user starts it: with an empty store of kernels,
again with what the first one stored, and once more with an empty store, whose files must be those of the first. Where
a model has a goal, for launches or for seconds, it stands beside what was found; the exit status says whether all hold.
Seconds are those on the clock and, beside them, those of the processors, which other processes disturb less.
A size is given to those models that have a dim of that name.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness import machine
from harness.tables import document, find_models, markdown, public

from optc.backends.triton.artifact import open_artifact
from optc.backends.triton.memory import place
from optc.backends.triton.plan import Plan
from optc.backends.triton.ranges import TYPICAL
from optc.ir.model import load

RESULTS = Path(__file__).resolve().parent / "results"
HEADER = [
    "model", "launches", "goal", "kernels", "cold s", "processors", "warm s", "processors", "arena MiB", "of bound",
    "same bytes", "spills",
]  # fmt: skip
#: Most launches of a model.
LAUNCHES = {"bert_base": 90, "vit_b16": 95, "resnet50": 60, "llama_small": 80}
#: Most seconds of a compile without and with stored kernels, by model.
SECONDS = {"bert_base": (60.0, 5.0)}
#: The arena at most, in parts of the most that is alive at a time.
ARENA = 1.2


class Seconds(NamedTuple):
    """How long a compile took: on the clock, and of the processors."""

    clock: float
    processor: float


@dataclass(frozen=True)
class Found:
    """What was found of a model.

    Attributes:
        plan: The plan.
        cold: A compile with no stored kernels.
        warm: One with all of them.
        arena: Bytes of the arena at the usual sizes.
        bound: The most bytes that are alive at one launch.
        same: Whether two compiles wrote the same bytes.
    """

    plan: Plan
    cold: Seconds
    warm: Seconds
    arena: int
    bound: int
    same: bool

    def missed(self, name: str) -> list[str]:
        """The goals that do not hold."""
        cold, warm = SECONDS.get(name, (float("inf"), float("inf")))
        wanted = {
            f"{len(self.plan.launches)} launches": len(self.plan.launches) <= LAUNCHES.get(name, sys.maxsize),
            f"{self.cold.clock:.1f} s cold": self.cold.clock <= cold,
            f"{self.warm.clock:.1f} s warm": self.warm.clock <= warm,
            f"an arena of {self.arena} bytes where {self.bound} are alive": self.arena <= ARENA * self.bound,
            "other bytes the second time": self.same,
        }
        return [what for what, holds in wanted.items() if not holds]


def look(model: Path, target: str, shapes: Sequence[str]) -> Found:
    """Compile a model three times, and look at what comes out."""
    dims = {str(dim) for value in load(model).graph.inputs for dim in value.shape or ()}
    shapes = [shape for shape in shapes if shape.split("=")[0] in dims]
    with tempfile.TemporaryDirectory() as folder:
        stores = [Path(folder) / "first", Path(folder) / "first", Path(folder) / "second"]
        outs = [Path(folder) / f"{place}" / "m.optc" for place in range(len(stores))]
        seconds = [_compiled(model, target, shapes, *pair) for pair in zip(stores, outs, strict=True)]
        plan = open_artifact(outs[0]).plan
        usual = {name: int(size.split("..")[-1]) for name, size in (shape.split("=") for shape in shapes)}
        layout = place(plan, {dim: usual.get(dim, TYPICAL) for dim in plan.dims})
        return Found(plan, seconds[0], seconds[1], layout.size, layout.bound, _digest(outs[0]) == _digest(outs[2]))


def _compiled(model: Path, target: str, shapes: Sequence[str], store: Path, out: Path) -> Seconds:
    """How long a compile takes, from the start of the process to its end."""
    out.parent.mkdir()
    command = [sys.executable, "-m", "optc", str(model), "-O2", f"--target={target}", "-o", str(out)]
    for shape in shapes:
        command += ["--shape", shape]
    start, before = time.perf_counter(), _processor()
    done = subprocess.run(command, env={**os.environ, "OPTC_CACHE": str(store)}, capture_output=True, text=True)
    seconds = Seconds(time.perf_counter() - start, _processor() - before)
    if done.returncode:
        sys.exit(f"{model.name}: {done.stderr.strip()}")
    return seconds


def _processor() -> float:
    """Processor seconds of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _digest(folder: Path) -> str:
    """A digest of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def row(name: str, found: Found) -> list[str]:
    """A line of the table."""
    plan = found.plan
    spills = sum(variant.spills for entry in plan.kernels.values() for variant in entry.variants.values())
    return [
        name,
        str(len(plan.launches)),
        str(LAUNCHES.get(name, "-")),
        str(len(plan.kernels)),
        *(f"{seconds:.1f}" for seconds in (*found.cold, *found.warm)),
        f"{found.arena / 2**20:.1f}",
        f"{found.arena / max(found.bound, 1):.2f}x",
        "yes" if found.same else "NO",
        str(spills),
    ]


def _used(models: Mapping[str, Found]) -> str:
    """How often each kernel is launched, by model."""
    names = sorted({entry.kernel for found in models.values() for entry in found.plan.kernels.values()})
    lines = [["model", *names]]
    for name, found in models.items():
        launched = [found.plan.kernels[launch.kernel].kernel for launch in found.plan.launches]
        lines.append([name, *(str(launched.count(kernel) or "-") for kernel in names)])
    return markdown(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--target", default="a100")
    parser.add_argument("--shape", action="append", default=[], metavar="NAME=SIZE")
    parser.add_argument("--store", help="write results/NAME.md")
    arguments = parser.parse_args()
    models: dict[str, Found] = {}
    for model in find_models(arguments.models):
        models[model.stem] = found = look(model, arguments.target, arguments.shape)
        print(", ".join(f"{a} {b}" for a, b in zip(HEADER, row(model.stem, found), strict=True)), flush=True)
    table = markdown([HEADER, *(row(*pair) for pair in models.items())])
    missed = {name: found.missed(name) for name, found in models.items()}
    print(f"\n{table}\n\n{_used(models)}\n")
    for name, what in missed.items():
        if what:
            print(f"goals missed by {name}: {', '.join(what)}")
    if arguments.store:
        sizes = ", ".join(arguments.shape) or "none given"
        conditions = f"target {arguments.target}; sizes: {sizes}; nothing was run on a GPU"
        told, tables = public(sys.argv[1:]), {"Plans": table, "Launches": _used(models)}
        text = document("Plans of compiled models", "triton_plan.py", told, [machine.versions()], conditions, tables)
        (RESULTS / f"{arguments.store}.md").write_text(text, "utf-8")
    sys.exit(any(missed.values()))


if __name__ == "__main__":
    main()
