"""While TensorRT builds: what it says, how far it is, and stopping it.

TensorRT calls back from threads of its own, in which nothing may be raised. So these objects remember what happened
and let the build tell afterwards.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

#: How many different errors one message lists.
_MOST = 12
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Listener(Protocol):
    """Who is told how far the work is (``optc.progress.Progress`` is one)."""

    def start(self, stage: str, total: int | None = None) -> None: ...

    def advance(self, stage: str, steps: int = 1, text: str = "") -> None: ...

    def finish(self, stage: str) -> None: ...


class Log:
    """What TensorRT said: errors and warnings, each once, in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.errors: dict[str, None] = {}
        self.warnings: dict[str, None] = {}

    def told(self) -> str:
        """All errors, as the end of a message."""
        errors = list(self.errors)
        more = [f"and {len(errors) - _MOST} more"] if len(errors) > _MOST else []
        return "".join(f"\n  {line}" for line in (*errors[:_MOST], *more))

    def logger(self, trt: Any) -> Any:
        """A logger for TensorRT that writes into this."""
        keep = {int(trt.ILogger.Severity.WARNING): self.warnings}
        keep |= dict.fromkeys((int(trt.ILogger.Severity.ERROR), int(trt.ILogger.Severity.INTERNAL_ERROR)), self.errors)
        lock = self._lock

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                kept = keep.get(int(severity))
                if kept is not None:
                    with lock:
                        kept[" ".join(msg.split())] = None

        return Logger()


def monitor(trt: Any, listener: Listener, stopped: Callable[[], bool]) -> Any:
    """A progress monitor for TensorRT.

    Args:
        trt: TensorRT.
        listener: Is told of phases without a parent as stages, and of those inside of them as what is going on.
        stopped: Whether the build is to end.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._stages: dict[str, str] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock, contextlib.suppress(Exception):
                stage = self._stages.get(parent_phase or "")
                self._stages[phase_name] = stage or phase_name
                if stage is None:
                    listener.start(phase_name, num_steps)
                else:
                    listener.advance(stage, 0, phase_name)

        def phase_finish(self, phase_name: str) -> None:
            with self._lock, contextlib.suppress(Exception):
                if self._stages.pop(phase_name, None) == phase_name:
                    listener.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock, contextlib.suppress(Exception):
                if self._stages.get(phase_name) == phase_name:
                    listener.advance(phase_name)
            return not stopped()

    return Monitor()


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C end work that spends its time in native code.

    Yields a function that tells, in any thread, whether to stop. Python's own handlers run only when the main thread
    is back in Python, so the numbers of signals are read where the interpreter writes them at once. A signal that came
    is raised again in the end, with the handlers that were there before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)

        def stopped() -> bool:
            with contextlib.suppress(BlockingIOError):
                came.extend(number for number in reader.recv(64) if number in _SIGNALS)
            return bool(came)

        handlers = {number: signal.signal(number, lambda number, frame: None) for number in _SIGNALS}
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield stopped
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if stopped():
                signal.raise_signal(came[0])
