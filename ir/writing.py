"""Writing files whole or not at all: beside their place first, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from optc.ir.errors import OutputError


@contextlib.contextmanager
def replacing(*paths: Path) -> Iterator[Sequence[Path]]:
    """Files to write instead of ``paths``, which take their places in the end, the last one first.

    Where anything goes wrong nothing is left of them, and what was there before is still there.

    Raises:
        OutputError: A path is a folder or cannot be written; about the first of the paths.
    """
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]
    try:
        for path in paths:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{str(path)!r} is a folder")
        yield temporary
        for source, target in zip(reversed(temporary), reversed(paths), strict=True):
            os.replace(source, target)
    except OSError as error:
        raise OutputError.of(error, paths[0]) from error
    finally:
        for file in temporary:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """An empty folder to fill instead of ``path``, which takes its place in the end.

    Args:
        path: The folder to write. What is there is replaced if it is one of ours.
        ours: Whether what is there may be replaced.

    Raises:
        OutputError: It cannot be written, or something else is there; nothing was changed then.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.absolute().parent) as beside:
            folder = Path(beside) / "new"
            folder.mkdir()
            yield folder
            if path.exists():
                if not ours(path):
                    raise OutputError("this is there, and no artifact of optc", where=str(path))
                shutil.rmtree(path)
            folder.rename(path)
    except OSError as error:
        raise OutputError.of(error, path) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file.

    Raises:
        OutputError: It cannot be written; nothing was changed then.
    """
    with replacing(path) as (file,):
        file.write_text(text, "utf-8")
