"""The files that commands read and write; writing is whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from optc.ir.errors import OutputError
from optc.ir.mapped import file_range, is_external


def write_text(path: Path, text: str) -> None:
    """Write a text file.

    Raises:
        OutputError: It cannot be written; nothing was changed then.
    """
    _write(path, lambda file: file.write_text(text, "utf-8"))


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an ``.npz`` file.

    Raises:
        OutputError: It cannot be written; nothing was changed then.
    """

    def save(file: Path) -> None:
        with file.open("wb") as stream:
            np.savez(stream, **arrays)

    _write(path, save)


def data_files(model: onnx_ir.Model) -> list[Path]:
    """The files beside a model that hold its weights, each once."""
    found: dict[Path, None] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            place = file_range(value.const_value) if is_external(value.const_value) else None
            if place is not None:
                found[Path(place[0])] = None
    return list(found)


def _write(path: Path, work: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        work(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError.of(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
