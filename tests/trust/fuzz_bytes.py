"""Attack all that reads files with damaged ones:  python -m tests.trust.fuzz_bytes --count 1000000 [--seed 0]

Models, their external data, artifacts, calibration samples, reproducers, pipelines, tables of targets and texts of
sizes are flipped, cut, spliced, and damaged in their structure. Reading one must succeed or be refused with an error
of ours, in bounded time and memory, and never end the process. The exit code is 1 if one does anything else.

A seed is one input: ``--seed 4711 --count 1 --keep FOLDER`` makes that one again and writes it down.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from optc.ir.errors import OptcError

from .children import Death, attempts
from .loaders import LOADERS

_BATCH = 4000
_SECONDS = 10.0
#: Address space that reading damaged files may take; the files are smaller than a hundredth of a percent of it.
_MEMORY = 1 << 30
_REPORT_EVERY = 50_000


class Attacker:
    """Makes damaged inputs and reads them; one number is one input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kinds = list(LOADERS)
        self._weights = [loader.weight for loader in LOADERS.values()]
        self._seeds = {name: loader.seeds(folder) for name, loader in LOADERS.items()}

    def input(self, seed: int) -> tuple[str, bytes]:
        """The name of a loader and what it is given."""
        rng = random.Random(seed)
        (kind,) = rng.choices(self._kinds, self._weights)
        files = self._seeds[kind]
        return kind, rng.choice(LOADERS[kind].damages)(rng.choice(files), rng, files)

    def __call__(self, seed: int) -> str:
        """ "loaded", "refused" or what went wrong, with the loader's name before it."""
        kind, data = self.input(seed)
        try:
            LOADERS[kind].read(data, self.folder)
        except OptcError:
            return f"{kind}: refused"
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            return f"{kind}: {type(error).__name__} at {where}: {' '.join(str(error).split())[:80]}"
        return f"{kind}: loaded"


def faults(
    count: int, seed: int, seen: Counter[str], *, jobs: int = 1, batch: int = _BATCH
) -> Iterator[tuple[int, str]]:
    """What was neither read nor refused, by seed; ``seen`` counts what became of all inputs."""
    memory_backed = Path("/dev/shm")
    place = memory_backed if memory_backed.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as folder:
        attacker = Attacker(Path(folder))
        seeds = range(seed, seed + count)
        for number, fate in attempts(attacker, seeds, jobs=jobs, batch=_BATCH, seconds=_SECONDS, memory=_MEMORY):
            what = f"{attacker.input(number)[0]}: {fate}" if isinstance(fate, Death) else fate
            seen[what] += 1
            if not what.endswith((": refused", ": loaded")):
                yield number, what


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for inputs that do harm")
    given = parser.parse_args()
    seen: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    start, reported = time.monotonic(), 0
    for first in range(given.seed, given.seed + given.count, _REPORT_EVERY):
        count = min(_REPORT_EVERY, given.seed + given.count - first)
        for number, what in faults(count, first, seen, jobs=given.jobs):
            place = what.rsplit(":", 1)[0]
            shown[place] += 1
            if shown[place] <= 3:
                print(f"seed {number}: {what}", flush=True)
            if given.keep is not None:
                given.keep.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory() as folder:
                    (given.keep / f"{number}.bin").write_bytes(Attacker(Path(folder)).input(number)[1])
        reported += count
        took = time.monotonic() - start
        print(f"{reported} inputs in {took:.0f} s, {reported / took:.0f} a second", flush=True)
    for kind in LOADERS:
        loaded, refused = seen[f"{kind}: loaded"], seen[f"{kind}: refused"]
        total = sum(times for what, times in seen.items() if what.startswith(f"{kind}: "))
        print(f"  {kind}: {total} inputs, {loaded} loaded, {refused} refused, {total - loaded - refused} faults")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"seeds {given.seed} to {given.seed + given.count - 1}; largest process {peak:.0f} MiB")
    return 1 if shown else 0


if __name__ == "__main__":
    sys.exit(main())
