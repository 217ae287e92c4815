"""Plugins on disk: a kernel in PTX for each architecture, and how it is launched, as data.

A bundle has one JSON file for each plugin with the PTX files beside it. They are compiled where the bundle is made, so
the machine that builds the engine needs neither Triton nor the model's source.

Sizes are expressions over the dims of the plugin's inputs, in the syntax of :func:`optc.ir.dims.parse`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir

from optc.ir.dims import Dim, parse, symbol, symbols
from optc.ir.errors import BackendError
from optc.ir.records import record

#: Version of the format. A reader refuses what is newer.
FORMAT = 1
#: The namespace of all of optc's plugins in TensorRT's registry.
NAMESPACE = "optc"


@dataclass(frozen=True)
class Port:
    """An input or output: its ONNX element type ("FLOAT16") and its dims."""

    dtype: str
    dims: tuple[str, ...]


@dataclass(frozen=True)
class PluginKernel:
    """A plugin's kernel for one architecture.

    Attributes:
        ptx: File of the bundle.
        symbol: The function in it. It takes the addresses of the inputs, the plugin's ``arguments``, and the addresses
            of the outputs.
        grid: Blocks along each axis.
        threads: Threads of a block.
        shared: Bytes of dynamic shared memory of a block.
        cuda: The toolkit whose PTX it is; a driver must know it.
    """

    ptx: str
    symbol: str
    grid: tuple[str, str, str]
    threads: int
    shared: int
    cuda: str


@dataclass(frozen=True)
class PluginFile:
    """A plugin.

    Attributes:
        name: Its name in the namespace "optc", which is that of the ONNX operator, too.
        inputs: Its inputs; every dim is a number or the name of a symbolic one.
        outputs: Its outputs.
        arguments: Values of the 32-bit integers that the kernel takes.
        kernels: By architecture ("sm_80").
        about: What it computes, for people.
        format: Version of the format.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    arguments: tuple[str, ...]
    kernels: Mapping[str, PluginKernel]
    about: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Raise ValueError for what does not fit together; the message says what."""
        problem = next(self._problems(), None)
        if problem is not None:
            raise ValueError(problem)

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """Where to find the value of each symbolic dim: the number of an input, and an axis of it."""
        found: dict[str, tuple[int, int]] = {}
        for number, port in enumerate(self.inputs):
            for axis, text in enumerate(port.dims):
                for name in symbols(parse(text)):
                    found.setdefault(name, (number, axis))
        return found

    def kernel(self, capability: tuple[int, int]) -> PluginKernel:
        """The kernel for a GPU.

        PTX of an architecture runs on later ones as well, but for that of sm_90 and later, which uses what only that
        generation has.

        Raises:
            BackendError: There is none for it.
        """
        wanted = capability[0] * 10 + capability[1]
        known = {int(arch.removeprefix("sm_")): kernel for arch, kernel in self.kernels.items()}
        fitting = [arch for arch in known if arch == wanted or (arch <= wanted and arch < 90)]
        if not fitting:
            raise BackendError(
                f"plugin {self.name!r} was compiled for {', '.join(self.kernels)}; this GPU is sm_{wanted}",
                hint="compile the model again with a --target of this generation",
            )
        return known[max(fitting)]

    def to_json(self) -> str:
        """As text, the same for equal plugins."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    def _problems(self) -> Iterator[str]:
        known: set[str] = set()
        for port in self.inputs:
            for text in port.dims:
                dim = parse(text)
                if not isinstance(dim, int) and dim != symbol(*symbols(dim)):
                    yield f"a dim of an input is {text!r}, not a number or a name"
                known |= symbols(dim)
        for port in (*self.inputs, *self.outputs):
            if port.dtype not in onnx_ir.DataType.__members__:
                yield f"an element type {port.dtype!r}"
        sizes = [*self.arguments, *(text for port in self.outputs for text in port.dims)]
        sizes += [text for kernel in self.kernels.values() for text in kernel.grid]
        for text in sizes:
            if not symbols(parse(text)) <= known:
                yield f"the size {text!r} is of dims that no input has"
        for arch in self.kernels:
            if not arch.removeprefix("sm_").isdecimal():
                yield f"an architecture {arch!r}"


def dims_of(texts: tuple[str, ...]) -> tuple[Dim, ...]:
    """Sizes as expressions."""
    return tuple(map(parse, texts))


def read_plugin(path: Path) -> PluginFile:
    """The plugin in a file.

    Raises:
        BackendError: It is damaged, or of a newer format.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        if isinstance(data, dict) and isinstance(data.get("format"), int) and data["format"] > FORMAT:
            raise BackendError(
                f"its format is {data['format']}, this optc reads up to {FORMAT}",
                where=str(path),
                hint="build it with the optc that made it, or a newer one",
            )
        return record(PluginFile, data)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BackendError(
            f"the plugin is damaged: {error}", where=str(path), hint="compile the model again"
        ) from error
