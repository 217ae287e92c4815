"""Work that is boxed in time, each piece in a process that may crash or be stopped without taking the rest along.

A worker is told names and prints one line of JSON for each as it is done; whoever started it reads them until the time
is over. A name at which a worker dies is noted with what it said, and another worker goes on behind it.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: What lines of a worker begin with that are meant for whoever started it.
MARK = "::result:: "


@dataclass
class Found:
    """What came of some pieces of work.

    Attributes:
        results: By name, what was printed.
        failed: By name, what went wrong.
        left: Names for which there was no time.
    """

    results: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def say(name: str, result: Any) -> None:
    """Tell whoever started this worker what came of a name."""
    print(MARK + json.dumps({"name": name, "result": result}), flush=True)


def work(
    command: Callable[[Sequence[str]], Sequence[str]],
    names: Sequence[str],
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Found:
    """Let workers do some pieces of work.

    Args:
        command: The command line of a worker for some names.
        names: The pieces, the most important first.
        seconds: How long it may take altogether.
        environment: Of the workers; that of this process by default.
    """
    found, waiting, end = Found(), list(names), time.monotonic() + seconds
    while waiting and time.monotonic() < end:
        output, code = _one(command(waiting), end, found, environment)
        waiting = [name for name in waiting if name not in found.results and name not in found.failed]
        if code is None:
            break
        if waiting:
            found.failed[waiting.pop(0)] = f"exit status {code}: {output[-600:].strip() or 'it said nothing'}"
    found.left = waiting
    return found


def _one(
    command: Sequence[str], end: float, found: Found, environment: Mapping[str, str] | None
) -> tuple[str, int | None]:
    """One worker: what else it said, and its exit status, or None where it had to be stopped."""
    process = subprocess.Popen(
        list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    said = ""
    try:
        while True:
            line = lines.get(timeout=max(end - time.monotonic(), 0.01))
            if line is None:
                return said, process.wait()
            if line.startswith(MARK):
                told = json.loads(line.removeprefix(MARK))
                if isinstance(told["result"], dict) and "error" in told["result"]:
                    found.failed[told["name"]] = told["result"]["error"]
                else:
                    found.results[told["name"]] = told["result"]
            else:
                said += line
    except queue.Empty:
        return said, None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def _read(stream: Any, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def in_turns(
    contenders: Mapping[str, Callable[[], Any]],
    measure: Callable[[Callable[[], Any], int], float],
    seconds: float,
    rounds: int = 7,
) -> dict[str, dict[str, float]]:
    """Times of several contenders, taken in turns.

    Args:
        contenders: What to call.
        measure: Runs something so many times; the milliseconds that one took.
        seconds: About how long all may take together.
        rounds: How often each has its turn.

    Returns:
        By contender, ``ms`` (the median of the rounds), ``low`` and ``high`` (quartiles).
    """
    counts = {}
    for name, run in contenders.items():
        measure(run, 3)
        once = max(measure(run, 3), 1e-4)
        share = 1e3 * seconds / len(contenders) / rounds
        counts[name] = int(min(max(share / once, 1), 1000))
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for turn in range(rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            taken[name].append(measure(contenders[name], counts[name]))
    found = {}
    for name, times in taken.items():
        times.sort()
        found[name] = {"ms": times[len(times) // 2], "low": times[len(times) // 4], "high": times[3 * len(times) // 4]}
    return found
