"""The backend "tensorrt": bundles for NVIDIA TensorRT, which need neither TensorRT nor a GPU, and engines.

TensorRT builds engines on the GPU that they are for, and not without one. So everything that can be done elsewhere is
done here: the graph is written for TensorRT's kernels, its types and scales are decided and checked, and a recipe says
how to build the engine. ``optc build`` finishes the job where TensorRT is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import onnx_ir

from optc.backends import cuda
from optc.backends.base import Artifact, Build, OpSignature, Probe
from optc.backends.options import BackendOption, byte_count, flag, one_of, read_options, within
from optc.backends.ort import OnnxRuntimeBackend, Session
from optc.backends.tensorrt import operators
from optc.backends.tensorrt.builder import build as build_engine
from optc.backends.tensorrt.bundle import evidence_of, write_bundle
from optc.backends.tensorrt.check import (
    NotTaken,
    Problem,
    check,
    input_problems,
    is_plugin,
    name_of,
    needed_version,
)
from optc.backends.tensorrt.library import INSTALL, OLDEST, installed_version, parse_version
from optc.backends.tensorrt.plugin_compiler import Added, add_plugins
from optc.backends.tensorrt.prepare import prepare
from optc.backends.tensorrt.profiles import profile
from optc.backends.tensorrt.recipe import COMPATIBILITIES, LEVELS, Device
from optc.backends.tensorrt.runner import EngineRunner
from optc.backends.tensorrt.sparse import CAPABILITY, PATTERN, sparse_layers
from optc.ir.errors import BackendError, UsageError
from optc.ir.functions import FUSED_DOMAIN, runnable
from optc.ir.targets import Target

#: What stands for an ONNX Runtime execution provider in a target.
PROVIDER = "TensorRT"
BUNDLE, ENGINE = ".trt", ".engine"


def _sizes(text: str) -> dict[str, int]:
    pairs = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip(): int(size) for name, _, size in pairs}


#: What ``--backend-option`` may say.
OPTIONS = (
    BackendOption("workspace", "a number of bytes, as in 4GiB", "limit of scratch memory", byte_count),
    BackendOption(
        "builder-level", "0 to 5", "how long the builder looks for kernels", within(LEVELS[0], LEVELS[-1]), 3
    ),
    BackendOption(
        "compatibility",
        ", ".join(COMPATIBILITIES).replace("_", "-"),
        "which other GPUs the engine shall run on, at some cost in speed",
        one_of(*COMPATIBILITIES),
        "none",
    ),
    BackendOption("version-compatible", "true or false", "let later versions of TensorRT run the engine", flag, False),
    BackendOption("weight-streaming", "true or false", "let weights stay in host memory", flag, False),
    BackendOption("refit", "true or false", "let weights be replaced in the built engine", flag, False),
    BackendOption("plugins", "true or false", "let kernels of optc do what TensorRT lacks", flag, True),
    BackendOption("timing-cache", "a file", "timings of kernels to start from", str),
    BackendOption("tune-for", "sizes of dims, as in batch=8,seq=128", "what the engine is tuned for", _sizes, {}),
)


class TensorRtBackend:
    """Writes bundles anywhere, and engines where TensorRT and a GPU are.

    Args:
        given: Options, see :data:`OPTIONS`.
    """

    name = "tensorrt"
    kernels = operators
    options = OPTIONS

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        self._settings = read_options(self.name, OPTIONS, given or {})

    def configured(self, given: Mapping[str, Any]) -> TensorRtBackend:
        """The backend with options.

        Raises:
            UsageError: One is not known or makes no sense.
        """
        return TensorRtBackend(given)

    def probe(self) -> Probe:
        """Ready to write bundles anywhere; the reason says what is missing for engines."""
        missing = _missing()
        if missing is None:
            return Probe(True, f"TensorRT {installed_version()}: builds engines, and writes bundles")
        return Probe(True, f"writes bundles; engines are built elsewhere: {missing}", INSTALL)

    def on(self, target: Target) -> Target:
        """The target as this backend compiles for it.

        Raises:
            BackendError: It is no NVIDIA GPU of a known architecture.
        """
        if target.arch is None or not target.arch.startswith("sm_"):
            raise BackendError(
                f"the tensorrt backend is for NVIDIA GPUs of a known architecture, and {target.name!r} names none",
                hint="choose one of those that optc targets lists with an arch, as in --target=a100",
            )
        return replace(target, provider=PROVIDER, backend=self.name)

    def here(self, target: Target) -> bool:
        """No: results are checked in ONNX Runtime, on the CPU."""
        return False

    def claims(self, op: OpSignature | onnx_ir.Node, target: Target | None = None) -> bool:
        """Whether TensorRT's parser takes the op as it stands."""
        if op.domain == FUSED_DOMAIN:
            return False
        return operators.operator(op.domain, op.op_type) is not None or (isinstance(op, onnx_ir.Node) and is_plugin(op))

    def problem(self, model: onnx_ir.Model) -> str | None:
        """Nothing: what passes could change is checked in the result, in :meth:`build`.

        Raises:
            NotTaken: The model's inputs are of kinds or types that there are not; all else that is wrong is named, too.
        """
        if input_problems(model):
            raise NotTaken(check(prepare(model)))
        return None

    def runner(self, model: onnx_ir.Model, *, plain: bool = False, few_runs: bool = False) -> Session:
        """A model in memory, in ONNX Runtime: TensorRT cannot run one without building an engine."""
        return OnnxRuntimeBackend().runner(runnable(model), plain=plain, few_runs=few_runs)

    def check_output(self, out: Path) -> None:
        """Find out before the work that an engine cannot be built here.

        Raises:
            UsageError: The name is that of neither a bundle nor an engine.
            BackendError: It is that of an engine, and TensorRT is not here.
        """
        if out.suffix.lower() not in (BUNDLE, ENGINE):
            raise UsageError(
                f"the tensorrt backend writes {BUNDLE} (a bundle) and {ENGINE}",
                where=str(out),
                hint=f"name it {out.stem}{BUNDLE}",
            )
        missing = _missing() if out.suffix.lower() == ENGINE else None
        if missing is not None:
            raise BackendError(
                f"an engine cannot be built here: {missing}",
                where=str(out),
                hint=f"write a bundle, -o {out.stem}{BUNDLE}, and build it where TensorRT is: optc build",
            )

    def emit(self, model: onnx_ir.Model, target: Target, out: Path) -> Artifact:
        """As :meth:`build`, with nothing known beside the graph."""
        return self.build(model, target, out, Build())

    def build(self, model: onnx_ir.Model, target: Target, out: Path, build: Build) -> Artifact:
        """Write a bundle, or with a name that ends in ``.engine`` an engine.

        Args:
            model: The model.
            target: What the engine is for.
            out: The bundle's folder, or the engine's file.
            build: Ranges and usual sizes of dims, which become the optimization profile.

        Raises:
            NotTaken: TensorRT does not take the model; all problems are named.
            OptcError: It cannot be written, or an option makes no sense.
        """
        self.check_output(out)
        settings = dict(self._settings)
        prepared = prepare(model)
        problems = check(prepared)
        added = Added()
        if problems and settings.pop("plugins", True):
            added, problems = _with_plugins(prepared, problems, target, build)
        if problems:
            raise NotTaken(problems)
        shapes, notes = profile(prepared, build.shapes, build.usual, settings.pop("tune_for"))
        cache = settings.pop("timing_cache")
        needed = needed_version(prepared)
        if added.plugins:
            notes = [*notes, f"kernels of optc do what TensorRT lacks: {'; '.join(added.about)}"]
        sparse = sparse_layers(prepared) if target.has(CAPABILITY) else []
        if sparse:
            notes = [
                *notes,
                f"{len(sparse)} layers have {PATTERN} weights, for which the builder may take sparse kernels",
            ]
        facts = {
            "devices": (Device(target.name, _capability(target)),),
            "profiles": (shapes,),
            "workspace_bytes": settings["workspace"],
            "builder_optimization_level": settings["builder_level"],
            "hardware_compatibility": settings["compatibility"],
            "version_compatible": settings["version_compatible"],
            "weight_streaming": settings["weight_streaming"],
            "refit": settings["refit"],
            "sparse_weights": bool(sparse),
            "notes": (*notes, f"it needs TensorRT {needed} or later"),
        }
        evidence = evidence_of(model, PurePath(build.data).name)
        timing_cache = Path(cache) if cache is not None else None
        if out.suffix.lower() == BUNDLE:
            files = write_bundle(prepared, out, evidence, facts, timing_cache, added)
            missing = _missing()
            where = "here" if missing is None else f"where TensorRT is ({missing} here)"
            told = f"the engine is built with: optc build {out}, {where}; nothing of it was run on a GPU"
            return Artifact(self.name, out, tuple(files), (*notes, told))
        with tempfile.TemporaryDirectory(prefix="optc-tensorrt-") as folder:
            bundle = Path(folder, f"{out.stem}{BUNDLE}")
            write_bundle(prepared, bundle, evidence, facts, timing_cache, added)
            built = build_engine(bundle, out)
        return Artifact(self.name, built.path, built.files, (*notes, *built.notes))

    def open(self, path: Path, **options: Any) -> EngineRunner:
        """Open an engine.

        Args:
            path: Its file.
            options: ``cuda_graphs`` and ``weight_budget``, see :class:`EngineRunner`.

        Raises:
            BackendError: It is a bundle, TensorRT or a GPU is not here, or the file is damaged.
            UsageError: There is no such option.
        """
        path = Path(path)
        if path.is_dir():
            raise BackendError(
                "this is a bundle, whose engine is not built yet",
                where=str(path),
                hint=f"optc build {path} builds it; optc run {path}/model.onnx runs its graph in ONNX Runtime",
            )
        given = {name: value for name, value in options.items() if value is not None}
        unknown = sorted(given.keys() - {"cuda_graphs", "weight_budget"})
        if unknown:
            hint = "it has: cuda_graphs, weight_budget"
            raise UsageError(f"the tensorrt backend has no option {unknown[0]!r}", hint=hint)
        return EngineRunner(path, **given)


def _missing() -> str | None:
    """What is missing to build and run engines here, in a few words; None if nothing is."""
    version = installed_version()
    if version is None:
        return "TensorRT is not installed"
    if parse_version(version) < OLDEST:
        return f"TensorRT {version} is too old"
    try:
        cuda.open_device()
    except BackendError as error:
        return error.what
    return None


def _with_plugins(
    model: onnx_ir.Model, problems: Sequence[Problem], target: Target, build: Build
) -> tuple[Added, list[Problem]]:
    """Let plugins do what TensorRT does not take, as far as our kernels can; and what is then left of the problems."""
    troubled = {problem.node for problem in problems}
    regions = [[node] for node in list(model.graph) if name_of(node) in troubled]
    added = add_plugins(model, regions, [target], build.shapes)
    left = []
    for problem in check(model):
        reason = added.refused.get(problem.node)
        if reason is not None:
            told = " ".join(reason.splitlines()[-1].split())
            problem = replace(problem, hint=f"{problem.hint}; our own kernels do not do it: {told}")
        left.append(problem)
    return added, left


def _capability(target: Target) -> str:
    """sm_80 as "8.0", sm_100 as "10.0"."""
    digits = (target.arch or "").removeprefix("sm_").rstrip("af")
    return f"{digits[:-1]}.{digits[-1]}"
