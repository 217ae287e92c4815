"""Running many attempts in forked children, so that one that crashes, hangs or eats memory is a finding and no end.

A child works through a batch. What it is at is noted in memory that it shares with its parent, and every attempt has
two timers whose signals end the process, also from inside of native code: for what it computes, and how long it lasts.
"""

from __future__ import annotations

import faulthandler
import logging
import mmap
import os
import pickle
import resource
import select
import signal
import struct
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Death:
    """An attempt that ended its process.

    Attributes:
        signal: The signal's name; SIGPROF and SIGALRM are hangs. "exit" where the process ended itself.
    """

    signal: str

    @property
    def hang(self) -> bool:
        """Whether it took too long."""
        return self.signal in ("SIGPROF", "SIGALRM")

    def __str__(self) -> str:
        return "no answer in time" if self.hang else f"the process died of {self.signal}"


@dataclass
class _Child:
    pid: int
    pipe: int
    span: range
    at: mmap.mmap
    data: bytearray


def attempts(
    task: Callable[[int], T],
    seeds: range,
    *,
    jobs: int = 1,
    batch: int = 500,
    seconds: float = 60.0,
    patience: float = 60.0,
    memory: int | None = None,
) -> Iterator[tuple[int, T | Death]]:
    """What became of every seed, batch by batch.

    Args:
        task: Makes one attempt; its result is pickled.
        seeds: The seeds.
        jobs: Children at a time.
        batch: Attempts per child.
        seconds: What one attempt may compute.
        patience: How many times as long it may last, as others may use the machine too.
        memory: Bytes of address space that a child may take beyond what this process has.
    """
    waiting = [seeds[start : start + batch] for start in range(0, len(seeds), batch)][::-1]
    running: dict[int, _Child] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            child = _started(task, waiting.pop(), seconds, seconds * patience, memory)
            running[child.pipe] = child
        for pipe in select.select(list(running), [], [])[0]:
            child = running[pipe]
            piece = os.read(pipe, 1 << 16)
            child.data += piece
            if piece:
                continue
            del running[pipe]
            os.close(pipe)
            status = os.waitpid(child.pid, 0)[1]
            if status == 0:
                yield from zip(child.span, pickle.loads(child.data), strict=True)
                continue
            # The batch is made again without the one that it died of.
            (done,) = struct.unpack("q", child.at[:8])
            name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "exit"
            yield child.span[done], Death(name)
            waiting += [part for part in (child.span[done + 1 :], child.span[:done]) if part]


def attempted(task: Callable[[], T], seconds: float = 60.0) -> T | Death:
    """What became of a single attempt in a child of its own."""
    ((_, fate),) = attempts(lambda _: task(), range(1), seconds=seconds)
    return fate


def _started(task: Callable[[int], T], span: range, seconds: float, longest: float, memory: int | None) -> _Child:
    at = mmap.mmap(-1, 8)
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(writing)
        return _Child(pid, reading, span, at, bytearray())
    code = 1
    try:
        os.close(reading)
        faulthandler.disable()  # the parent tells of it
        logging.disable()
        warnings.simplefilter("ignore")
        if memory is not None:
            limit = _address_space() + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(number, signal.SIG_DFL)
        results = []
        for done, seed in enumerate(span):
            at[:8] = struct.pack("q", done)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.setitimer(signal.ITIMER_REAL, longest)
            results.append(task(seed))
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        with os.fdopen(writing, "wb") as stream:
            stream.write(pickle.dumps(results))
        code = 0
    except BaseException:  # a defect of the task itself
        traceback.print_exc()
    finally:
        os._exit(code)


def _address_space() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[0]) * resource.getpagesize()
