"""Time several models in one process, turn by turn:  python latency.py SPEC.json JSON_OUT

SPEC holds {"models": {name: path}, "settings": [{dim: size}, ...], "threads": n, "seconds": s, "rounds": n}; the first
model is the original. JSON_OUT gets a list of {"dims": {...}, "models": {name: summary}}, one for each setting that
differs in a dim of the original's inputs. In every round each model runs once, in an order that rotates, so a slow
moment of the machine falls on all of them. ONNX Runtime optimizes each file fully, as it does for its users; threads
do not spin between runs, because on few cores the spinning of one session steals time from the next one.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from inputs import make_feeds, open_session

WARM_UP = 3


def summary(times: list[float], base: list[float]) -> dict[str, float]:
    """Median and quartile distance in ms, and the median over rounds of (original's time / own time)."""
    low, middle, high = statistics.quantiles(times, n=4)
    speed = statistics.median(b / t for b, t in zip(base, times, strict=True))
    return {"median_ms": 1e3 * middle, "iqr_ms": 1e3 * (high - low), "speed": speed, "rounds": len(times)}


def distinct(settings: list[dict[str, int]], names: set[str]) -> list[dict[str, int]]:
    """The settings cut down to these dims, each once."""
    kept = [{name: size for name, size in dims.items() if name in names} for dims in settings]
    return [dims for at, dims in enumerate(kept) if dims not in kept[:at]]


def interleaved(sessions: dict[str, Any], feeds: dict[str, Any], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Seconds of every run of every session, taken in turns."""
    for session in sessions.values():
        for _ in range(WARM_UP):
            session.run(None, feeds)
    names = list(sessions)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    count = 0
    while count < rounds and (count < 5 or time.perf_counter() < end):
        for step in range(len(names)):
            name = names[(count + step) % len(names)]
            start = time.perf_counter()
            sessions[name].run(None, feeds)
            times[name].append(time.perf_counter() - start)
        count += 1
    return times


def main(spec_path: str, out: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    sessions, broken = {}, {}
    for name, path in spec["models"].items():
        try:
            sessions[name] = open_session(path, optimize=True, threads=spec["threads"])
        except Exception as error:
            broken[name] = {"problem": " ".join(str(error).split())[:120]}
    base = next(iter(spec["models"]))
    dynamic = {dim for info in sessions[base].get_inputs() for dim in info.shape if isinstance(dim, str)}
    report = []
    for dims in distinct(spec["settings"], dynamic):
        times = interleaved(sessions, make_feeds(sessions[base], dims), spec["seconds"], spec["rounds"])
        report.append({"dims": dims, "models": broken | {name: summary(times[name], times[base]) for name in sessions}})
    Path(out).write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
