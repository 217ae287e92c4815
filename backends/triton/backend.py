"""The backend "triton": compiles models to artifacts, and opens them. Triton and CUDA are loaded only when needed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir

from optc.backends.base import Artifact, OpSignature, Probe, Runner
from optc.backends.cache import cache_folder
from optc.backends.options import BackendOption, one_of, read_options
from optc.backends.triton import pointwise
from optc.backends.triton.expansions import EXPANSIONS
from optc.backends.triton.lower import CannotCompile
from optc.backends.triton.parts import PartsRunner, in_parts
from optc.backends.triton.rules import RULES
from optc.backends.triton.runtime import TritonRunner
from optc.ir.errors import BackendError
from optc.ir.functions import FUSED_DOMAIN
from optc.ir.names import join_op
from optc.ir.sizes import Size
from optc.ir.targets import Target

#: Triton has no tensor cores for what is older.
_OLDEST = 80
_HINT = "pip install 'optc[triton]' (Linux)"


#: What ``--backend-option`` may say.
OPTIONS = (
    BackendOption(
        "fallback",
        "none or onnxruntime",
        "what runs the nodes that cannot be compiled; without, they are an error",
        one_of("none", "onnxruntime"),
        "none",
    ),
)


class TritonBackend:
    """Compiles a whole model ahead of time to GPU kernels; see docs/artifact.md for what it writes.

    Args:
        given: Options, see :data:`OPTIONS`.
    """

    name = "triton"
    options = OPTIONS

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        self._settings = read_options(self.name, OPTIONS, given or {})

    def configured(self, given: Mapping[str, Any]) -> TritonBackend:
        """The same with options."""
        return TritonBackend(given)

    def probe(self) -> Probe:
        """Whether Triton is here to compile with. Running needs only an NVIDIA driver and cuda-bindings."""
        if importlib.util.find_spec("triton") is None:
            return Probe(False, "triton, which compiles the kernels, is not installed", _HINT)
        return Probe(True, "compiles for sm_80 and later without a GPU; no kernel was run on a GPU yet")

    def claims(self, op: OpSignature | onnx_ir.Node, target: Target | None = None) -> bool:
        """Whether there is a rule for the operator; single nodes may still be refused for their types or shapes."""
        if op.domain == FUSED_DOMAIN:
            return True  # what has no kernel of its own goes back to its parts
        key = join_op(op.domain, op.op_type)
        return key in RULES or key in EXPANSIONS or pointwise.has_code(key)

    def check(self, targets: Sequence[Target]) -> None:
        """Find out before the work that nothing can be compiled for these devices.

        Raises:
            BackendError: Triton is missing, or a device is no GPU or too old.
        """
        if importlib.util.find_spec("triton") is None:
            raise BackendError("triton, which compiles the kernels, is not installed", hint=_HINT)
        for target in targets:
            if target.arch is None:
                raise BackendError(
                    f"target {target.name!r} names no architecture to compile for",
                    hint="choose one of those that optc targets lists with an arch, as in --target=a100",
                )
            if int(target.arch.removeprefix("sm_")) < _OLDEST:
                raise BackendError(
                    f"target {target.name!r} ({target.arch}) is too old: kernels are compiled for sm_80 and later",
                    hint="use --backend=onnxruntime for it",
                )

    def compile(
        self, model: onnx_ir.Model, targets: Sequence[Target], out: Path, shapes: Mapping[str, Size]
    ) -> Artifact:
        """Compile a model for some devices and write the artifact.

        Args:
            model: The model; fused ops may be functions of the domain "optc".
            targets: The devices.
            out: The folder to write.
            shapes: Usual sizes of symbolic dims, for which tiles are chosen; or ranges, which the artifact then takes.

        Raises:
            BackendError: Some nodes cannot be compiled (all are named), a device is too old, or the model or the
                kernels cannot take a range.
        """
        self.check(targets)
        build = importlib.import_module("optc.backends.triton.build")
        cache = cache_folder("kernels")
        try:
            plan, files, remarks = build.build(model, targets, out, shapes, cache)
        except CannotCompile:
            if self._settings["fallback"] == "none":
                raise
            parts = importlib.import_module("optc.backends.triton.parts_build")
            files, remarks = parts.build_parts(model, targets, out, shapes, cache)
            return Artifact(self.name, out, tuple(files), remarks)
        notes = (
            f"{len(plan.launches)} launches of {len(plan.kernels)} kernels, compiled for "
            f"{', '.join(dict.fromkeys(target.arch or '' for target in targets))}; not run on a GPU yet",
        )
        return Artifact(self.name, out, tuple(files), (*notes, *remarks))

    def emit(self, model: onnx_ir.Model, target: Target, out: Path) -> Artifact:
        """Compile for one device."""
        return self.compile(model, [target], out, {})

    def open(self, path: Path, *, device: str = "cuda", **options: Any) -> Runner:
        """Open an artifact.

        Args:
            path: The folder.
            device: "cuda", or "interpreter" to run the same kernels on the CPU (slow).
            options: Ignored where they are None, as those of other backends are.

        Raises:
            BackendError: The artifact is damaged, or the device cannot run it; the message says why.
        """
        unknown = [name for name, value in options.items() if value is not None]
        if unknown:
            raise BackendError(f"the triton backend has no option {unknown[0]!r}", hint="it has: device")
        return PartsRunner(path, device) if in_parts(path) else TritonRunner(path, device)
