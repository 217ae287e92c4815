"""Time several models in one process, turn by turn:  python latency.py SPEC.json JSON_OUT

SPEC holds {"models": {name: path}, "dims": {name: size}, "threads": n, "seconds": s, "rounds": n}; the first model is
the original. In every round each model runs once, in an order that rotates, so a slow moment of the machine falls on
all of them. ONNX Runtime optimizes each file fully, as it does for its users; its threads do not spin between runs,
because on few cores the spinning of one session steals time from the next one.
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


def main(spec_path: str, out: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    sessions, report = {}, {}
    for name, path in spec["models"].items():
        try:
            sessions[name] = open_session(path, optimize=True, threads=spec["threads"])
        except Exception as error:
            report[name] = {"problem": " ".join(str(error).split())[:120]}
    base = next(iter(spec["models"]))
    feeds = make_feeds(sessions[base], spec["dims"])
    for session in sessions.values():
        for _ in range(WARM_UP):
            session.run(None, feeds)
    names = list(sessions)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + spec["seconds"]
    count = 0
    while count < spec["rounds"] and (count < 5 or time.perf_counter() < end):
        for step in range(len(names)):
            name = names[(count + step) % len(names)]
            start = time.perf_counter()
            sessions[name].run(None, feeds)
            times[name].append(time.perf_counter() - start)
        count += 1
    results: dict[str, Any] = report | {name: summary(times[name], times[base]) for name in names}
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
