"""A failure in one file: the model, what was asked for, and with which versions, ready to be run again.

A reproducer is a zip archive of ``reproducer.json`` and, unless it is very large, ``model.onnx`` with all its weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir

from optc.ir.errors import ModelError
from optc.ir.model import ModelSource, load
from optc.ir.records import record
from optc.ir.saving import save
from optc.ir.writing import replacing
from optc.machine import file_digest, versions
from optc.options import Options
from optc.report import ModelSummary

#: Version of the file's form.
FORM = 1
#: A model with more bytes of weights is referred to by its path and digest.
_LARGEST = 256 << 20
_DATA, _MODEL = "reproducer.json", "model.onnx"
#: No member of an archive is unpacked that says it is larger: a small archive can hold a very large one.
_LARGEST_MEMBER = 4 * _LARGEST
#: What reading a damaged archive raises.
_DAMAGED = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, ValueError, NotImplementedError, RuntimeError),
    MemoryError,  # a member may promise more than there is
)
#: Options that say where to write, or only make sense in the process that was running.
_NOT_KEPT = frozenset({"output", "dump_dir", "reproducer", "calib", "calib_cache", "metric", "max_drop"})


@dataclass(frozen=True)
class Reproducer:
    """What a reproducer holds.

    Attributes:
        problems: What went wrong, a line each.
        options: The options of the compile, without data and outputs.
        pipeline: The pipeline that was run, as text.
        versions: Of Python and the packages involved.
        source: Path and digest of the model's file, where it came from one.
        left_out: What was asked for that a replay does without ("calib", "metric").
    """

    problems: list[str]
    options: dict[str, Any]
    pipeline: str
    versions: dict[str, str]
    source: dict[str, str]
    left_out: list[str]


def write(
    path: Path,
    model: onnx_ir.Model,
    *,
    options: Options,
    pipeline: str,
    problems: list[str],
    source: ModelSource | None = None,
) -> None:
    """Write a reproducer, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    given = {item.name: getattr(options, item.name) for item in dataclasses.fields(options)}
    defaults = {item.name: item.default for item in dataclasses.fields(options)}
    kept = {name: value for name, value in given.items() if name not in _NOT_KEPT}
    asked = [name for name in ("calib", "metric") if given[name] is not defaults[name]]
    origin = {}
    if isinstance(source, str | os.PathLike) and os.path.isfile(source):
        origin = {"path": os.path.abspath(source), "digest": file_digest(source)}
    data = {
        "form": FORM,
        **dataclasses.asdict(Reproducer(problems, _plain(kept), pipeline, versions(), origin, asked)),
    }
    with replacing(path) as (file,), zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_DATA, json.dumps(data, indent=2))
        if ModelSummary.of(model).weight_bytes <= _LARGEST or not origin:
            with tempfile.TemporaryDirectory(prefix="optc-reproducer-") as folder:
                for part in save(model, Path(folder) / _MODEL):
                    archive.write(part, part.name)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[Reproducer, onnx_ir.Model]]:
    """What a reproducer holds and its model, which can be used inside of the ``with`` block.

    Raises:
        ModelError: It is no reproducer, is of a later form, or its model is not there any more.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="optc-reproducer-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                if any(member.file_size > _LARGEST_MEMBER for member in archive.infolist()):
                    raise ValueError("it is too large")
                data = json.loads(archive.read(_DATA))
                for name in archive.namelist():
                    if name in (_MODEL, f"{_MODEL}.data"):
                        archive.extract(name, folder)
        except _DAMAGED as error:
            raise ModelError(
                f"this is no reproducer ({error})", where=str(path), hint="'optc MODEL' writes one where it fails"
            ) from error
        if not isinstance(data, dict) or data.pop("form", None) != FORM:
            raise ModelError("another version of optc wrote this reproducer", where=str(path))
        try:
            found = record(Reproducer, data)
        except ValueError as error:
            raise ModelError(f"this reproducer is damaged ({error})", where=str(path)) from error
        inside = Path(folder) / _MODEL
        yield found, load(inside if inside.exists() else _origin(found, path))


def _origin(found: Reproducer, path: Path) -> Path:
    """The file that a reproducer refers to."""
    origin = Path(found.source.get("path", ""))
    if not origin.is_file():
        raise ModelError(f"the model {str(origin)!r} is not there any more", where=str(path))
    if file_digest(origin) != found.source.get("digest"):
        raise ModelError(f"the model {str(origin)!r} has changed since", where=str(path))
    return origin


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in options.items()}
