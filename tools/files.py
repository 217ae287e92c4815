"""The files that commands read and write; writing is whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from optc.ir.mapped import file_range, is_external
from optc.ir.writing import replacing


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an ``.npz`` file.

    Raises:
        OutputError: It cannot be written; nothing was changed then.
    """
    with replacing(path) as (file,), file.open("wb") as stream:
        np.savez(stream, **arrays)


def data_files(model: onnx_ir.Model) -> list[Path]:
    """The files beside a model that hold its weights, each once."""
    found: dict[Path, None] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            place = file_range(value.const_value) if is_external(value.const_value) else None
            if place is not None:
                found[Path(place[0])] = None
    return list(found)
