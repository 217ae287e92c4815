"""The build recipe: all that a machine with a GPU needs to know to make an engine of the ONNX file beside it.

A bundle is a folder ``model.trt`` with the ONNX file, ``build.json`` (the recipe), the evidence of every scale in it,
and a page on how to build it. Every file is named in the recipe with its size and digest, so that what is damaged,
incomplete or of a newer format is refused with the reason. The recipe holds no time, path or name of a machine: the
same model prepared twice gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from optc.ir.errors import BackendError
from optc.ir.records import record

#: Version of the format. A reader refuses what is newer.
FORMAT = 1
RECIPE, MODEL, EVIDENCE, README = "build.json", "model.onnx", "evidence.json", "README.md"

#: Which devices but the one that it is built on an engine shall run on (TensorRT's HardwareCompatibilityLevel).
Compatibility = Literal["none", "ampere_plus", "same_compute_capability"]
COMPATIBILITIES: tuple[str, ...] = get_args(Compatibility)
#: Builder optimization levels; TensorRT's own default is 3.
LEVELS = range(6)

_CAPABILITY = re.compile(r"[0-9]+\.[0-9]")


@dataclass(frozen=True)
class File:
    """A file of the bundle: its size in bytes and the hex SHA-256 of its contents."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Device:
    """What the engine is for.

    Attributes:
        name: optc's name of the target ("a100").
        compute_capability: NVIDIA's version of the architecture ("8.0").
    """

    name: str
    compute_capability: str


@dataclass(frozen=True)
class ShapeRange:
    """The shapes that an input may have, and the one to tune for; all of the input's rank, one int per dim."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]

    @property
    def is_static(self) -> bool:
        """Whether there is one shape only."""
        return self.minimum == self.maximum


@dataclass(frozen=True)
class Plugin:
    """A plugin that the ONNX file calls.

    Attributes:
        name: "namespace::op".
        files: Files of the bundle that it is made of.
    """

    name: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildRecipe:
    """How to build the engine.

    Attributes:
        files: Every file of the bundle but the recipe itself, by name relative to the folder.
        devices: What the engine is for; several where one engine serves them all.
        profiles: Optimization profiles; each has a range for every input of the network.
        model: The ONNX file.
        strongly_typed: Always, as types are those in the file (TensorRT 11 knows nothing else).
        workspace_bytes: Limit of scratch memory while it runs; None for the device's memory.
        builder_optimization_level: How long to search for kernels, 0 to 5.
        hardware_compatibility: Which other devices the engine shall run on.
        version_compatible: Whether later versions of TensorRT shall run it.
        weight_streaming: Whether weights may stay in host memory.
        refit: Whether weights can be replaced in the built engine.
        sparse_weights: Whether to look for 2:4 weights and for kernels that gain by them.
        timing_cache: File of the bundle with a timing cache to start from, if any.
        plugins: Plugins that the file calls.
        notes: Remarks for whoever builds it.
        format: Version of the format.
    """

    files: Mapping[str, File]
    devices: tuple[Device, ...] = ()
    profiles: tuple[Mapping[str, ShapeRange], ...] = ()
    model: str = MODEL
    strongly_typed: Literal[True] = True
    workspace_bytes: int | None = None
    builder_optimization_level: int = 3
    hardware_compatibility: Compatibility = "none"
    version_compatible: bool = False
    weight_streaming: bool = False
    refit: bool = False
    sparse_weights: bool = False
    timing_cache: str | None = None
    plugins: tuple[Plugin, ...] = ()
    notes: tuple[str, ...] = ()
    format: int = field(default=FORMAT)

    def __post_init__(self) -> None:
        """Raise ValueError for values that make no sense; the message says which."""
        for name in self.files:
            if not _is_inside(name):
                raise ValueError(f"files has {name!r}, which is no name inside of the bundle")
        named = [("model", self.model), *(("plugins", name) for plugin in self.plugins for name in plugin.files)]
        named += [("timing_cache", self.timing_cache)] if self.timing_cache is not None else []
        for key, name in named:
            if name not in self.files:
                raise ValueError(f"{key} names {name!r}, which is not among the files")
        if self.builder_optimization_level not in LEVELS:
            raise ValueError(f"builder_optimization_level is 0 to 5, not {self.builder_optimization_level}")
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise ValueError(f"workspace_bytes is a number of bytes, not {self.workspace_bytes}")
        for device in self.devices:
            if not _CAPABILITY.fullmatch(device.compute_capability):
                raise ValueError(f"compute_capability cannot be {device.compute_capability!r}")
        for profile in self.profiles:
            for name, shapes in profile.items():
                _check_range(name, shapes)
            if profile.keys() != self.profiles[0].keys():
                raise ValueError("the profiles are not of the same inputs")

    def to_json(self) -> str:
        """The recipe as text, the same for equal recipes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> BuildRecipe:
        """The recipe in a text.

        Raises:
            ValueError: It is none, or of a newer format (:class:`NewerFormat`); the message says why.
        """
        try:
            data = json.loads(text)
        except RecursionError as error:
            raise ValueError("it is no JSON") from error
        version = data.get("format") if isinstance(data, dict) else None
        if not isinstance(version, int) or isinstance(version, bool):
            raise ValueError("it does not say which format this is")
        if version > FORMAT:
            raise NewerFormat(version)
        return record(cls, data)


class NewerFormat(ValueError):
    """A recipe of a format that this optc does not know yet."""

    def __init__(self, version: int) -> None:
        super().__init__(f"its format is {version}, this optc reads up to {FORMAT}")


def is_bundle(path: Path) -> bool:
    """Whether a folder looks like a bundle, whole or not."""
    return path.is_dir() and ((path / RECIPE).is_file() or path.suffix == ".trt")


def digest(path: Path) -> File:
    """Size and digest of a file, which is read in pieces."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256")
        return File(stream.tell(), found.hexdigest())


def read_recipe(bundle: Path) -> BuildRecipe:
    """The recipe of a bundle, with all of its files checked against their digests.

    Args:
        bundle: The folder.

    Raises:
        BackendError: It is no bundle, or damaged, or of a newer format.
    """
    try:
        recipe = BuildRecipe.from_json((bundle / RECIPE).read_text("utf-8"))
    except NewerFormat as error:
        raise BackendError(
            str(error), where=str(bundle), hint="build it with the optc that made it, or a newer one"
        ) from error
    except OSError as error:
        what = f"{RECIPE} is missing" if bundle.is_dir() else "it is no folder that optc wrote for TensorRT"
        raise damaged(bundle, what) from error
    except ValueError as error:
        raise damaged(bundle, f"{RECIPE} cannot be read: {error}") from error
    for name, written in recipe.files.items():
        try:
            found = digest(bundle / name)
        except OSError as error:
            raise damaged(bundle, f"{name} is missing") from error
        if found.bytes != written.bytes:
            raise damaged(bundle, f"{name} has {found.bytes} bytes instead of {written.bytes}")
        if found.sha256 != written.sha256:
            raise damaged(bundle, f"{name} is not what was written (its digest differs)")
    return recipe


def write_recipe(folder: Path, recipe: BuildRecipe) -> Path:
    """Write the recipe into a folder that is being made; where it lies."""
    path = folder / RECIPE
    path.write_text(recipe.to_json(), "utf-8")
    return path


def digests(folder: Path, names: Iterable[str]) -> dict[str, File]:
    """Sizes and digests of some files of a folder, by name."""
    return {name: digest(folder / name) for name in sorted(names)}


def damaged(bundle: Path, what: str) -> BackendError:
    """The error for a bundle that is not as it was written."""
    return BackendError(f"the bundle is damaged: {what}", where=str(bundle), hint="compile the model again")


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


def _check_range(name: str, shapes: Any) -> None:
    ends = (shapes.minimum, shapes.optimum, shapes.maximum)
    if len({len(end) for end in ends}) != 1:
        raise ValueError(f"the shapes of {name!r} are not of one rank")
    for low, usual, high in zip(*ends, strict=True):
        if not 0 <= low <= usual <= high:
            raise ValueError(f"the shapes of {name!r} are not ordered: {low}, {usual}, {high}")


__all__ = [
    "COMPATIBILITIES",
    "EVIDENCE",
    "FORMAT",
    "LEVELS",
    "MODEL",
    "README",
    "RECIPE",
    "BuildRecipe",
    "Compatibility",
    "Device",
    "File",
    "NewerFormat",
    "Plugin",
    "ShapeRange",
    "damaged",
    "digest",
    "digests",
    "is_bundle",
    "read_recipe",
    "write_recipe",
]
