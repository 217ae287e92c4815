"""Attack the loaders with damaged files:  python -m tests.trust.fuzz_bytes --count 1000000 [--seed 0]

Models and reproducers are cut, spliced and flipped; loading one must succeed or be refused with an error of
ours, in bounded time and memory, and never end the process. The exit code is 1 if one does anything else.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx

from optc import reproducer
from optc.ir.errors import OptcError
from optc.ir.model import load
from optc.ir.verify import verify_structure
from optc.options import Options

from .graphs import graph

_CHUNK = 2000
_SECONDS_PER_CHUNK = 300
_MEMORY = 6 << 30
#: Numbers that sizes, offsets and enumerations are damaged with.
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def damaged(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One to four random damages."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + rng.choice([1, 2, 8, 64, 4096])]
        elif kind == 2:
            out[at:at] = _varint(rng.choice(_NUMBERS))
        elif kind == 3:
            source = rng.choice(others)
            start = rng.randrange(len(source))
            out[at:at] = source[start : start + rng.choice([1, 8, 64, 512])]
        elif kind == 4 and out:
            out[at % len(out)] = rng.choice([0, 0x0A, 0x12, 0x7F, 0x80, 0xFF])
        else:
            del out[at:]
    return bytes(out)


def _varint(number: int) -> bytes:
    out = bytearray()
    while True:
        out.append((number & 0x7F) | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(out)


def load_model(path: Path) -> None:
    verify_structure(load(path))


def load_reproducer(path: Path) -> None:
    with reproducer.opened(path):
        pass


def seeds(folder: Path) -> dict[str, tuple[Callable[[Path], None], list[bytes]]]:
    """Files to damage, by kind."""
    models = [graph(seed, 8).SerializeToString() for seed in range(12)]
    archive = folder / "seed.zip"
    model = load(onnx.load_from_string(models[0]))
    reproducer.write(archive, model, options=Options(), pipeline="dce", problems=["x"])
    return {"onnx": (load_model, models), "reproducer.zip": (load_reproducer, [archive.read_bytes()])}


def attack(seed: int, count: int) -> Counter[str]:
    """Load ``count`` damaged files."""
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        kinds = seeds(folder)
        for number in range(seed, seed + count):
            rng = random.Random(number)
            kind = rng.choices(list(kinds), [9, 1])[0]
            loader, files = kinds[kind]
            path = folder / f"damaged.{kind}"
            path.write_bytes(damaged(rng.choice(files), rng, files))
            try:
                loader(path)
                seen["loaded"] += 1
            except OptcError:
                seen["refused"] += 1
            except Exception as error:
                seen[f"seed {number}: {type(error).__name__}: {str(error)[:100]}"] += 1
    return seen


def _confine() -> None:
    """Let a process fail rather than take all memory, and keep warnings about damaged models to itself."""
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    total: Counter[str] = Counter()
    start = time.monotonic()
    # Fresh processes: one that dies is noticed, and what a parser does not give back is gone.
    context = multiprocessing.get_context("spawn")
    for first in range(given.seed, given.seed + given.count, _CHUNK):
        count = min(_CHUNK, given.seed + given.count - first)
        with context.Pool(1, _confine) as pool:
            task = pool.apply_async(attack, (first, count))
            try:
                total += task.get(_SECONDS_PER_CHUNK)
            except multiprocessing.TimeoutError:
                total[f"seeds {first} to {first + count - 1}: no answer after {_SECONDS_PER_CHUNK} s, or a crash"] += 1
    bad = {what: times for what, times in total.items() if what not in ("loaded", "refused")}
    for what in sorted(bad)[:50]:
        print(what)
    took = time.monotonic() - start
    print(
        f"{given.count} files in {took:.0f} s: {total['loaded']} loaded, {total['refused']} refused, {len(bad)} faults"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
