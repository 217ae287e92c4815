"""The folder in which a sweep keeps its state: whole files only, so that a killed process can be followed by another.

``group-N.npz`` is a finished group of values; ``group-N.part.npz`` is one in the making, with the number of samples
that it has seen; ``plan.json`` says which values are in which group. All are written beside their place and renamed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optc.ir.errors import OutputError
from optc.ir.writing import replacing, write_text

_SAMPLES = "samples"
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class SweepFolder:
    """The state of one sweep on disk.

    Args:
        path: The folder; it is made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError.of(error, path) from error

    def plan(self) -> dict[str, Any] | None:
        """What :meth:`write_plan` wrote; None if there is nothing that can be read."""
        try:
            return json.loads((self.path / "plan.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        write_text(self.path / "plan.json", json.dumps(plan))

    def finished(self, group: int) -> Mapping[str, np.ndarray] | None:
        """The arrays of a finished group, each read when asked for; None if it is not finished."""
        try:
            return np.load(self._file(group), allow_pickle=False)
        except _UNREADABLE:
            return None

    def partial(self, group: int) -> tuple[int, dict[str, np.ndarray]] | None:
        """How many samples an unfinished group has seen, and its arrays; None if there is nothing to go on from."""
        try:
            with np.load(self._file(group, part=True), allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            return int(arrays.pop(_SAMPLES)), arrays
        except _UNREADABLE:
            return None

    def write(self, group: int, arrays: Mapping[str, np.ndarray], samples: int | None = None) -> None:
        """Write a group: one that has seen so many samples, or, without a number, one that is finished.

        Raises:
            OutputError: The disk is full, or the folder cannot be written to.
        """
        more: dict[str, Any] = {} if samples is None else {_SAMPLES: np.array(samples)}
        with (
            replacing(self._file(group, part=samples is not None)) as (file,),
            zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        ):
            for name, array in {**arrays, **more}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        if samples is None:
            self._file(group, part=True).unlink(missing_ok=True)

    def _file(self, group: int, *, part: bool = False) -> Path:
        return self.path / f"group-{group}{'.part' if part else ''}.npz"


def make_room(folder: Path, limit: int) -> None:
    """Remove the sweeps that were used longest ago until those in a folder take at most ``limit`` bytes.

    The one that was used last stays whatever its size.
    """
    found = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if (path / "plan.json").is_file():
                size = sum(file.stat().st_size for file in path.iterdir())
                found.append(((path / "plan.json").stat().st_mtime, size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found)[:-1]:
        if total > limit:
            shutil.rmtree(path, ignore_errors=True)
            total -= size
