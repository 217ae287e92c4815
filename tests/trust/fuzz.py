"""Attack the optimizer with random graphs:  python -m tests.trust.fuzz --count 10000 [--seed 0] [--out FOLDER]

Every graph goes through a level, a single pass, a pair of passes or a random order of them; what comes out must be
valid and give the numbers of the original, which ONNX Runtime runs with its own optimizations off. Failures are shrunk
and written to FOLDER, as models and as text. The exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from optc.environment import Environment
from optc.ir.errors import OptcError, UsageError
from optc.ir.model import load
from optc.ir.printer import print_model
from optc.ir.saving import save
from optc.options import Options
from optc.passes.base import Numerics
from optc.plugins import environment as default_environment
from optc.reduce import reduce
from optc.replay import Replay

from .graphs import graph

#: Passes that measure, which takes seconds, are attacked by tests of their own.
_NO_LOSSY = Numerics.APPROXIMATE


@dataclass(frozen=True)
class Finding:
    """A graph that the optimizer got wrong."""

    seed: int
    options: dict[str, object]
    reason: str


def options_for(seed: int, environment: Environment) -> dict[str, object]:
    """What the graph of a seed goes through."""
    rng = random.Random(f"pipeline {seed}")
    kind = rng.random()
    if kind < 0.5:
        return {"level": 2}
    if kind < 0.65:
        return {"level": 1}
    names = [entry.name for entry in environment.passes if entry.load().numerics < _NO_LOSSY and entry.owner == "optc"]
    count = 1 if kind < 0.8 else 2 if kind < 0.9 else rng.randrange(3, 8)
    return {"passes": ",".join(rng.choice(names) for _ in range(count))}


def attack(model: onnx.ModelProto, options: dict[str, object], environment: Environment) -> str | None:
    """Why the result of a compile is wrong; None if it is right or the original itself does not run."""
    replay = Replay(load(model), Options.of(**options), environment)
    done = replay.prefix(None)
    if done.problem is not None:
        return done.problem
    try:
        return replay.judge(None)(done.model, done.numerics)
    except UsageError:
        return None


def findings(count: int, seed: int, seen: Counter[str]) -> Iterator[Finding]:
    """Attack with ``count`` graphs; ``seen`` counts what became of them."""
    environment = default_environment()
    for number in range(seed, seed + count):
        model, options = graph(number), options_for(number, environment)
        try:
            reason = attack(model, options, environment)
        except OptcError as error:
            reason = f"refused: {error}"
        seen["wrong" if reason else "right"] += 1
        if reason:
            yield Finding(number, options, reason)


def keep(finding: Finding, folder: Path) -> Path:
    """Shrink what failed and write it down."""
    model = graph(finding.seed)
    path = folder / f"fuzz-{finding.seed}.onnx"
    try:
        reduced = reduce(model, **finding.options).model  # type: ignore[arg-type]
    except UsageError:  # it is refused rather than wrong, which does not shrink
        reduced = load(model)
    save(reduced, path)
    path.with_suffix(".txt").write_text(f"# {finding.options}\n# {finding.reason}\n{print_model(reduced)}")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for failures, shrunk")
    given = parser.parse_args()
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
    seen: Counter[str] = Counter()
    start = time.monotonic()
    for finding in findings(given.count, given.seed, seen):
        where = f" -> {keep(finding, given.out)}" if given.out is not None else ""
        print(f"seed {finding.seed} {finding.options}: {finding.reason}{where}", flush=True)
    print(f"{given.count} graphs in {time.monotonic() - start:.0f} s: {seen['right']} right, {seen['wrong']} wrong")
    return 1 if seen["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
