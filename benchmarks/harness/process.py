"""Run one command as a process of its own and account for its time and memory.

Standard library only, on purpose: on Linux the peak memory that a child reports is never below that of the process
that started it, so the process that measures has to stay small.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FOLDERS = re.compile(r"(?:/[^\s/:'\"]+)+/")  # of this machine, they say nothing to a reader elsewhere


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        seconds: Wall-clock time from start to exit, interpreter start and imports included.
        peak_bytes: Largest resident memory of the process.
        failure: Why it failed in one line, or None.
    """

    seconds: float
    peak_bytes: int
    failure: str | None


def run_measured(command: Sequence[str | Path], timeout: float, cwd: Path | None = None) -> Outcome:
    """Run ``command`` to its end, or kill it and what it started after ``timeout`` seconds."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        start = time.perf_counter()
        child = subprocess.Popen(
            [str(part) for part in command],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            start_new_session=True,
        )
        expired = threading.Event()
        watch = threading.Timer(timeout, _kill, (child.pid, expired))
        watch.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        finally:
            watch.cancel()
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        failure = _failure(child.returncode, log.read(), timeout if expired.is_set() else None)
    return Outcome(seconds, usage.ru_maxrss * 1024, failure)


def _kill(pid: int, expired: threading.Event) -> None:
    expired.set()
    os.killpg(pid, signal.SIGKILL)


def _failure(returncode: int, log: str, expired_after: float | None) -> str | None:
    if expired_after is not None:
        return f"no result after {expired_after:g} s"
    if returncode == 0:
        return None
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = _FOLDERS.sub("", lines[-1])[:100].replace("|", "/") if lines else "no message"
    how = signal.Signals(-returncode).name if returncode < 0 else f"exit {returncode}"
    return f"{how}: {last}"
