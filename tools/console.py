"""What the commands print with: tables and progress bars, plain where nobody watches."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import IO, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from optc.ir.errors import printable

#: Columns of output that goes into a file or a pipe, where nothing should be wrapped.
_PIPE_WIDTH = 10_000


class _Console(Console):
    """A console that leaves it to the command line what a reader that has gone means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(stream: IO[str] | None = None) -> Console:
    """A console on a stream, stdout by default: colours and wrapping in a terminal only."""
    stream = stream or sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return _Console(file=stream, width=width, highlight=False, soft_wrap=not stream.isatty())


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> Table:
    """A plain table.

    Args:
        columns: Headings.
        rows: Cells, printed as text (markup means nothing in them).
        right: Headings of the columns that are aligned to the right.
    """
    made = Table(show_header=any(columns), box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(printable(str(cell))) for cell in row))
    return made


def show(*things: object) -> None:
    """Print tables and lines to stdout; text is printed as it is."""
    out = console()
    with out.capture() as captured:
        for thing in things:
            out.print(Text(printable(thing)) if isinstance(thing, str) else thing)
    # Tables are padded to their full width, which is noise in a file.
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


class Bars:
    """A compile's stages as progress bars on stderr, if that is a terminal; gone when the work is over.

    Args:
        quiet: Show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
            console=Console(file=sys.stderr),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, stage: str, total: int | None = None) -> None:
        """A stage begins, perhaps again."""
        if stage in self._tasks:
            self._progress.reset(self._tasks[stage], total=total, now="")
        else:
            self._tasks[stage] = self._progress.add_task(stage, total=total, now="")

    def advance(self, stage: str, steps: int = 1, text: str = "") -> None:
        """Steps were done."""
        if stage in self._tasks:
            self._progress.update(self._tasks[stage], advance=steps, now=text)

    def finish(self, stage: str) -> None:
        """The stage is over."""
        if stage in self._tasks:
            task = self._tasks[stage]
            done = max(self._progress.tasks[task].completed, 1)
            self._progress.update(task, total=done, completed=done, now="")
