"""Engines on disk: TensorRT's own file, and beside it what optc knows of it, ``model.engine.json``.

An engine runs on the GPU generation and with the TensorRT version that it was built with, unless it was built to be
more compatible. TensorRT finds that out only while it loads the file, and says it in few words; so it is written down
and looked at before. An engine without the file beside it, as other tools write them, opens as well, unchecked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir

from optc.backends.base import Dim, ValueSpec
from optc.backends.tensorrt.inspector import Layer
from optc.backends.tensorrt.library import parse_version
from optc.backends.tensorrt.recipe import Compatibility, File, ShapeRange, digest
from optc.ir.errors import BackendError
from optc.ir.records import record

#: Version of the format. A reader refuses what is newer.
FORMAT = 1
_AGAIN = "build it again on this machine, from its bundle: optc build model.trt"


@dataclass(frozen=True)
class Tensor:
    """An input or output: its name, ONNX element type ("FLOAT16") and dims, with the names of symbolic ones."""

    name: str
    dtype: str
    dims: tuple[Dim, ...]

    @classmethod
    def of(cls, spec: ValueSpec) -> Tensor:
        """What a model's interface says."""
        return cls(spec.name, spec.dtype.name if spec.dtype is not None else "UNDEFINED", spec.shape or ())

    @property
    def spec(self) -> ValueSpec:
        """As runners describe it."""
        return ValueSpec(self.name, onnx_ir.DataType[self.dtype], self.dims)


@dataclass(frozen=True)
class EngineInfo:
    """What is known of an engine.

    Attributes:
        file: Size and digest of the engine's own file.
        tensorrt: The version that built it.
        device: The GPU that it was built on.
        compute_capability: The version of that GPU's architecture ("8.0").
        hardware_compatibility: On which other GPUs it runs.
        version_compatible: Whether later versions of TensorRT run it.
        recipe: Digest of the recipe that it was built from.
        inputs: Its inputs.
        outputs: Its outputs.
        profiles: The shapes that it takes, by input; several where it was tuned for several ranges.
        layers: What it is made of.
        format: Version of the format.
    """

    file: File
    tensorrt: str
    device: str
    compute_capability: str
    hardware_compatibility: Compatibility
    version_compatible: bool
    recipe: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    profiles: tuple[Mapping[str, ShapeRange], ...] = ()
    layers: tuple[Layer, ...] = ()
    format: int = FORMAT

    def to_json(self) -> str:
        """As text, the same for equal contents."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether it was built for a GPU of this architecture."""
        major, _, minor = self.compute_capability.partition(".")
        if self.hardware_compatibility == "ampere_plus":
            return capability >= (8, 0)
        return capability == (int(major), int(minor))

    def runs_with(self, version: str) -> bool:
        """Whether a version of TensorRT loads it."""
        if not self.version_compatible:
            return version.split(".")[:3] == self.tensorrt.split(".")[:3]
        built, here = parse_version(self.tensorrt), parse_version(version)
        return built <= here and here[0] - built[0] <= 1

    def check(self, path: Path, version: str, device: str, capability: tuple[int, int]) -> None:
        """Refuse an engine that was built for something else.

        Args:
            path: The engine's file.
            version: The version of TensorRT here.
            device: The GPU's name here.
            capability: Its architecture.

        Raises:
            BackendError: The message names what it was built for and what is here.
        """
        here = ".".join(map(str, capability))
        if not self.runs_on(capability):
            others = " and later" if self.hardware_compatibility == "ampere_plus" else ""
            raise BackendError(
                f"the engine was built on {self.device}, for compute capability {self.compute_capability}{others}; "
                f"this GPU is {device}, with {here}",
                where=str(path),
                hint=_AGAIN,
            )
        if not self.runs_with(version):
            raise BackendError(
                f"the engine was built by TensorRT {self.tensorrt}, this is TensorRT {version}",
                where=str(path),
                hint=_AGAIN if self.version_compatible else f"{_AGAIN}, or pip install 'tensorrt=={self.tensorrt}'",
            )


def info_path(engine: Path) -> Path:
    """Where it is written what is known of an engine."""
    return engine.with_name(f"{engine.name}.json")


def read_info(engine: Path) -> EngineInfo | None:
    """What is known of an engine, whose file is compared with it; None where nobody wrote it down.

    Raises:
        BackendError: There is no engine, or it or what is known of it is damaged or of a newer format.
    """
    if not engine.is_file():
        raise BackendError("no such file", where=str(engine), hint="check the path")
    beside = info_path(engine)
    try:
        data = json.loads(beside.read_text("utf-8"))
        version = data.get("format") if isinstance(data, dict) else None
        if not isinstance(version, int) or isinstance(version, bool):
            raise ValueError("it does not say which format this is")
        if version > FORMAT:
            raise BackendError(
                f"its format is {version}, this optc reads up to {FORMAT}",
                where=str(beside),
                hint="run it with the optc that made it, or a newer one",
            )
        info = record(EngineInfo, data)
        for tensor in (*info.inputs, *info.outputs):
            if tensor.dtype not in onnx_ir.DataType.__members__:
                raise ValueError(f"{tensor.name!r} is of an unknown type")
        parts = [part for part in info.compute_capability.split(".") if part.isdecimal()]
        if len(parts) != 2:
            raise ValueError(f"compute_capability cannot be {info.compute_capability!r}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise BackendError(
            f"what optc wrote of the engine is damaged: {error}",
            where=str(beside),
            hint=f"{_AGAIN}; or delete this file to open the engine unchecked",
        ) from error
    found = digest(engine)
    if found != info.file:
        what = f"it has {found.bytes} bytes instead of {info.file.bytes}" if found.bytes != info.file.bytes else ""
        raise BackendError(
            f"the engine is not the one that was built: {what or 'its digest differs'}", where=str(engine), hint=_AGAIN
        )
    return info
