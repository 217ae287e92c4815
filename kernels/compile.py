"""Ahead-of-time compilation: a :class:`~optc.kernels.base.Specialization` and an architecture in, a cubin out.

Needs neither a GPU nor a driver nor torch. The same input gives the same bytes: line information, which holds the
path of the source, is left out. What was compiled once is kept on disk under a digest of all that goes in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from optc.ir.errors import BackendError
from optc.kernels.base import Specialization
from optc.kernels.inspect import Resources, inspect
from optc.kernels.ptx import entry

#: Part of every key: raise it when what is stored changes.
_FORMAT = 2
#: From this architecture on the assembler of the newest toolkit is needed.
_NEWEST_TOOLKIT_FROM = 100


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture.

    Attributes:
        cubin: The code.
        ptx: The same before it was assembled.
        symbol: The name of the function in it.
        arch: The architecture, 80 for sm_80.
        num_warps: Warps of a block, as the compiler settled it.
        shared: Bytes of dynamic shared memory.
        scratch: Bytes of global scratch memory per program.
        parameters: Bytes of each parameter, in order.
        cuda: Version of the toolkit whose assembler made it ("12.9").
        resources: What it needs of a multiprocessor.
    """

    cubin: bytes
    ptx: str
    symbol: str
    arch: int
    num_warps: int
    shared: int
    scratch: int
    parameters: tuple[int, ...]
    cuda: str
    resources: Resources


def compile_kernel(spec: Specialization, arch: int, cache: Path | None = None) -> Compiled:
    """Compile a kernel.

    Args:
        spec: The kernel and all that is fixed about it.
        arch: The architecture as a number: 80, 86, 89, 90, 100.
        cache: A folder to keep results in; None keeps nothing.

    Raises:
        BackendError: The compiler refused it, or the function's parameters are not those that a launch will pass.
    """
    name = key(spec, arch)
    stored = _read(cache / name, arch) if cache is not None else None
    if stored is not None:
        return stored
    compiled = _compile(spec, arch)
    if cache is not None:
        _write(cache / name, compiled)
    return compiled


def key(spec: Specialization, arch: int) -> str:
    """A digest of all that goes into a compilation."""
    parts = {
        "format": _FORMAT,
        "triton": triton.__version__,
        "toolkit": _assembler(arch).version,
        "arch": arch,
        "kernel": spec.kernel.function.cache_key,
        "signature": {name: str(kind) for name, kind in spec.signature().items()},
        "constexprs": {
            name: value.cache_key if isinstance(value, JITFunction) else repr(value)
            for name, value in spec.constexprs().items()
        },
        "options": _options(spec),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _options(spec: Specialization) -> dict[str, Any]:
    return {"num_warps": spec.num_warps, "num_stages": spec.num_stages, "num_ctas": 1, "enable_fp_fusion": True}


def _assembler(arch: int) -> Any:
    """The oldest toolkit that knows the architecture, so that older drivers load what it makes."""
    tools = triton.knobs.nvidia
    return tools.ptxas if arch < _NEWEST_TOOLKIT_FROM else tools.ptxas_blackwell


@contextlib.contextmanager
def _reproducible(arch: int) -> Iterator[None]:
    knobs = triton.knobs
    assembler = _assembler(arch)
    with (
        tempfile.TemporaryDirectory(prefix="optc-triton-") as folder,
        knobs.cache.scope(),
        knobs.compilation.scope(),
        knobs.nvidia.scope(),
    ):
        knobs.cache.dir = folder
        knobs.compilation.disable_line_info = True
        if arch < _NEWEST_TOOLKIT_FROM:
            knobs.nvidia.ptxas_blackwell = assembler.path
        yield


def _compile(spec: Specialization, arch: int) -> Compiled:
    pointers = {(0, place): [["tt.divisibility", 16]] for place, kind in enumerate(spec.args) if kind.startswith("*")}
    source = ASTSource(
        fn=spec.kernel.function, signature=spec.signature(), constexprs=spec.constexprs(), attrs=pointers
    )
    with _reproducible(arch):
        try:
            made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=_options(spec))
        except Exception as error:  # the compiler's own errors are of many kinds
            raise BackendError(
                f"kernel {spec.kernel.name!r} does not compile for sm_{arch}: {_innermost(error)}",
                hint="please report this, with the model",
            ) from error
    cubin, metadata = made.asm["cubin"], made.metadata
    symbol, declared = entry(made.asm["ptx"])
    parameters = tuple(parameter.bytes for parameter in declared)
    wanted = tuple(8 if kind.startswith("*") or kind == "i64" else 4 for kind in spec.parameters())
    if parameters != wanted:
        raise BackendError(
            f"kernel {spec.kernel.name!r} takes parameters of {parameters} bytes, a launch passes {wanted}",
            hint=f"triton {triton.__version__} passes arguments in another way; install one that optc allows",
        )
    if metadata.profile_scratch_size:
        raise BackendError(f"kernel {spec.kernel.name!r} was instrumented", hint="unset Triton's profiling variables")
    return Compiled(
        cubin=cubin,
        ptx=made.asm["ptx"],
        symbol=symbol,
        arch=arch,
        num_warps=metadata.num_warps,
        shared=metadata.shared,
        scratch=metadata.global_scratch_size,
        parameters=parameters,
        cuda=_assembler(arch).version,
        resources=inspect(cubin),
    )


def _innermost(error: BaseException) -> str:
    """What went wrong in the function that was called last; the errors around it only repeat the calls."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _read(folder: Path, arch: int) -> Compiled | None:
    """What is stored under a key; None where there is nothing, or not all of it."""
    try:
        data: Mapping[str, Any] = json.loads((folder / "kernel.json").read_text("utf-8"))
        cubin, ptx = (folder / "kernel.cubin").read_bytes(), (folder / "kernel.ptx").read_text("utf-8")
    except (OSError, ValueError):
        return None
    if _digest(cubin, ptx) != data.get("digest"):
        return None
    fields = {name: value for name, value in data.items() if name not in ("digest", "resources", "parameters")}
    return Compiled(
        cubin=cubin, ptx=ptx, resources=Resources(**data["resources"]), parameters=tuple(data["parameters"]), **fields
    )


def _write(folder: Path, compiled: Compiled) -> None:
    """Store a result: each file beside its place, then renamed; the digest tells whether they belong together."""
    data = {**asdict(compiled), "digest": _digest(compiled.cubin, compiled.ptx)}
    del data["cubin"], data["ptx"]
    with contextlib.suppress(OSError):  # a cache that cannot be written is no reason to fail
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as beside:
            (Path(beside) / "kernel.json").write_text(json.dumps(data, indent=1, sort_keys=True), "utf-8")
            (Path(beside) / "kernel.cubin").write_bytes(compiled.cubin)
            (Path(beside) / "kernel.ptx").write_text(compiled.ptx, "utf-8")
            for name in ("kernel.cubin", "kernel.ptx", "kernel.json"):
                os.replace(Path(beside) / name, folder / name)


def _digest(cubin: bytes, ptx: str) -> str:
    return hashlib.sha256(cubin + ptx.encode()).hexdigest()
