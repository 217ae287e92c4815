"""Attack the optimizer with models:  python -m tests.trust.fuzz --graphs 10000 --mutants 2000 [--seed 0] [--jobs 1]

``--graphs`` grows random ones (see tests/trust/graphs), ``--mutants`` changes golden cases and, where a folder of
exam models lies beside this repository, those. Each goes through -O2, then what of -O3 is not lossy, and often through
-O1, a single pass, a pair or a random order of passes. What comes out must be valid and give the numbers of the
original, which ONNX Runtime runs with its own optimizations off; models that the runtime or onnx's checker does not
take are left out and counted. Every model is tried in a forked child, so a crash or a hang is a finding too.

A seed is one model: a range of seeds can be run in parts, and one again. What fails is shrunk, traced to its rewrite,
and written as a test case, to tests/golden/found or the folder of ``--out``. The exit code is 1 if anything fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx

from optc.plugins import environment

from ..golden.case import FOUND
from .attack import ATTACKS, Attack, Outcome, known_rules
from .children import Death, attempts
from .found import write_found

_BATCH, _SECONDS, _MEMORY = 100, 120.0, 8 << 30
_REPORT_EVERY = 500


def outcomes(attack: Attack, seeds: range, jobs: int = 1) -> Iterator[Outcome]:
    """What became of the model of every seed."""
    for seed, fate in attempts(attack, seeds, jobs=jobs, batch=_BATCH, seconds=_SECONDS, memory=_MEMORY):
        if not isinstance(fate, Death):
            yield fate
            continue
        # The runtime dies of some models as they are: that is nothing that optc could mend.
        ((_, alone),) = attempts(attack.original, range(seed, seed + 1), seconds=_SECONDS, memory=_MEMORY)
        verdict = "left out" if isinstance(alone, Death) else "wrong"
        yield Outcome(seed, verdict, str(fate), pipelines=attack.pipelines(seed))


class Tally:
    """Counts of a run."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.ops: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        self.verdicts[outcome.verdict] += 1
        self.hits.update(outcome.hits)
        if outcome.verdict == "left out":
            self.left_out[outcome.reason.split(":")[0][:60]] += 1
        else:
            self.ops.update(outcome.ops)

    def line(self, seconds: float) -> str:
        v = self.verdicts
        return f"{v['right']} right, {v['wrong']} wrong, {v['left out']} left out, in {seconds:.0f} s"

    def coverage(self) -> str:
        """How much of ONNX and of optc's rules was met."""
        of_onnx = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
        met = of_onnx & set(self.ops)
        fired, rules = {name for name, times in self.hits.items() if times}, known_rules()
        lines = [
            f"operators: {len(met)} of the {len(of_onnx)} of onnx.defs, and {len(set(self.ops) - of_onnx)} others",
            f"  never: {', '.join(sorted(of_onnx - met))}",
            f"rules: {len(rules & fired)} of {len(rules)} fired, {sum(self.hits.values())} times",
            f"  never: {', '.join(sorted(rules - fired)) or 'none'}",
            "  most: " + ", ".join(f"{name} {times}" for name, times in self.hits.most_common(10)),
            "  least: " + ", ".join(f"{name} {times}" for name, times in self.hits.most_common()[:-11:-1]),
            "left out: " + "; ".join(f"{reason} ({times})" for reason, times in self.left_out.most_common(6)),
        ]
        return "\n".join(lines)


def run(attack: Attack, seeds: range, tally: Tally, out: Path, jobs: int, say: Callable[[str], None]) -> None:
    """Attack with a range of seeds, and write down what fails."""
    start = time.monotonic()
    for number, outcome in enumerate(outcomes(attack, seeds, jobs), 1):
        tally.add(outcome)
        if outcome.verdict == "wrong":
            path = write_found(attack.model(outcome.seed), outcome, out, attack.environment)
            say(f"{attack.name} {outcome.seed}: {outcome.reason} -> {path}")
        if number % _REPORT_EVERY == 0 or number == len(seeds):
            say(f"{attack.name}: {tally.line(time.monotonic() - start)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, attack in ATTACKS.items():
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help=attack.__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FOUND, help="folder for the cases of failures")
    given = parser.parse_args()
    tally = Tally()
    for name, kind in ATTACKS.items():
        count = getattr(given, name)
        if count:
            seeds = range(given.seed, given.seed + count)
            run(kind(environment()), seeds, tally, given.out, given.jobs, lambda text: print(text, flush=True))
    print(tally.coverage())
    return 1 if tally.verdicts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
