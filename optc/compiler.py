"""The driver: load, rewrite, verify, emit, report."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir

from optc import auto, reproducer
from optc.backends.base import Artifact, Build, BuildingBackend, CompilingBackend, Runner
from optc.environment import Environment
from optc.host import AUTO, ENDINGS, FOLDERS
from optc.inputs import symbols
from optc.ir.errors import BackendError, OptcError, OutputError, UsageError
from optc.ir.journal import Journal
from optc.ir.metadata import MADE_FOR, PRECISION_KEY
from optc.ir.model import ModelSource, load
from optc.ir.printer import print_model
from optc.ir.saving import to_proto
from optc.ir.sizes import Size
from optc.ir.targets import suggestion
from optc.ir.writing import write_text
from optc.measure import Measure
from optc.options import Options
from optc.passes.base import Pass
from optc.passes.manager import PassRecord, PipelineResult
from optc.passes.pipeline import leaves, print_pipeline
from optc.plugins import environment as default_environment
from optc.progress import Progress, Silent
from optc.report import Report, Verification
from optc.rewriting import Plan, Rewriting
from optc.verification import Verifier


@dataclass
class Result:
    """What a compile gives back.

    Attributes:
        model: The optimized model.
        report: What was done, what was left alone, and why.
        artifact: The file that was written; None if no output was asked for.
    """

    model: onnx_ir.Model
    report: Report
    artifact: Path | None


def compile(
    model: ModelSource,
    *,
    environment: Environment | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Optimize a model for a target and, with ``output``, write the artifact.

    Args:
        model: A path, an ``onnx.ModelProto`` or an ``onnx_ir.Model``; it is not changed.
        environment: Passes, targets and backends to use; those installed by default.
        progress: Is told how far the work is.
        options: See :class:`optc.options.Options`.

    Raises:
        OptcError: The model, an option or the output is no good; nothing was written then.
    """
    checked, environment, progress = Options.of(**options), environment or default_environment(), progress or Silent()
    if checked.backend == AUTO:
        return auto.compile(model, checked, environment, lambda given: _Compile(given, environment, progress))
    return _Compile(checked, environment, progress).run(model)


def optimize(model: ModelSource, **options: Any) -> onnx.ModelProto:
    """Optimize a model and return it as one self-contained ``onnx.ModelProto``; arguments as for :func:`compile`."""
    return to_proto(compile(model, **options).model)


def open_artifact(path: str | os.PathLike[str], *, environment: Environment | None = None, **options: Any) -> Runner:
    """Open a model or an artifact that :func:`compile` wrote, ready to run.

    Args:
        path: The file.
        environment: Backends to choose from.
        options: Options of the backend's runner (threads, providers, ...).

    An ONNX file is opened with the backend that it was made for where that is installed, else with ONNX Runtime.
    """
    path = Path(path)
    backends = (environment or default_environment()).backends
    if path.is_dir():
        return backends.get(ENDINGS.get(path.suffix.lower(), "triton")).open(path, **options)
    if path.suffix.lower() in ENDINGS:
        return backends.get(ENDINGS[path.suffix.lower()]).open(path, **options)
    model = load(path)  # what is no model, or lacks its data, is refused in plain words; weights are not read
    made_for = model.metadata_props.get(MADE_FOR, "")
    backend = backends.get(made_for) if made_for in backends else None
    if backend is None or not backend.probe().ready:
        backend = backends.get("onnxruntime")
    return backend.open(path, **options)


class _Compile:
    """One compile."""

    def __init__(self, options: Options, environment: Environment, progress: Progress) -> None:
        self.options, self.environment, self.progress = options, environment, progress
        self.plan = Plan.of(options, environment)
        self.measure: Measure
        self.recipe: Any = None
        for path in (options.output, options.save_recipe):
            _check_output(path)

    def run(self, source: ModelSource) -> Result:
        start = time.perf_counter()
        self.progress.start("load")
        original = load(source)
        for key in (MADE_FOR, PRECISION_KEY):
            original.metadata_props.pop(key, None)  # of an earlier compile
        self.progress.finish("load")
        try:
            result = self._compile(original, source, start)
        except OptcError:
            raise  # it says what is wrong with what was given
        except Exception as error:
            if self._reproducer(original, source, [f"{type(error).__name__}: {error}"]):
                error.add_note(f"run it again with: optc replay {self.options.reproducer}")
            raise
        report = result.report
        problems = report.problems()
        if problems and self._reproducer(original, source, problems):
            report.notes.append(f"what went wrong can be run again with: optc replay {self.options.reproducer}")
        return result

    def _reproducer(self, original: onnx_ir.Model, source: ModelSource, problems: list[str]) -> bool:
        """Write down what failed, if that was asked for; whether it could be written."""
        if self.options.reproducer is None:
            return False
        try:
            reproducer.write(
                self.options.reproducer,
                original,
                options=self.options,
                pipeline=print_pipeline(self.plan.pipeline),
                problems=problems,
                source=source,
            )
        except OutputError:
            return False  # a failure must not be hidden by that of writing it down
        return True

    def _compile(self, original: onnx_ir.Model, source: ModelSource, start: float) -> Result:
        _check_shapes(self.options.shapes, original)
        rewriting = Rewriting(original, self.plan, self.options, self.progress)
        self.measure = rewriting.measure
        self.measure.check_data()
        problem = self.plan.host.problem(original)
        if problem is not None:
            raise BackendError(
                f"{self.plan.host.name} cannot run this model: {problem}", hint="use --backend=onnxruntime"
            )
        result, verification = self._passes(rewriting)
        self.recipe = result.recipe
        report = Report.of(
            source=source,
            options=self.options,
            backend=self.plan.backend.name,
            target=self.plan.target,
            pipeline=print_pipeline(self.plan.pipeline),
            original=original,
            result=result,
            verification=verification,
        )
        if self.plan.target.kind != "cpu":
            report.notes.append(
                f"built for {self.plan.target.name}, which is not here: the result was only run on this CPU"
            )
        report.notes += rewriting.statistics.notes()
        if self.options.stop_after is not None:
            report.notes.append(f"stopped after {self.options.stop_after} applications of rewrites, as asked")
        if self.options.measure:
            self.progress.start("measure")
            report.latency = rewriting.measure.latency(result.model)
            self.progress.finish("measure")
        # Last of all: whatever goes wrong or is interrupted before this leaves no file behind.
        done = Result(result.model, report, None)
        self.write(done, self.options, start)
        return done

    def write(self, result: Result, options: Options, start: float) -> None:
        """Write what was asked for, and finish the report; ``start`` is when the work began."""
        artifact = self._emit(result.model, options.output) if options.output is not None else None
        if options.save_recipe is not None:
            result.report.notes.append(_save_recipe(options.save_recipe, self.recipe))
        result.report.finish(artifact, time.perf_counter() - start)
        result.artifact = artifact.path if artifact is not None else None

    def _passes(self, rewriting: Rewriting) -> tuple[PipelineResult, Verification]:
        """Run the pipeline; if the result is wrong, again with checks that find out which rewrites are to blame."""
        plain = isinstance(self.plan.backend, CompilingBackend)
        verifier = Verifier(rewriting.original, self.options, rewriting.measure, plain)
        result = self._pipeline(rewriting, verifier if self.options.verify == "each" else None)
        if self.options.verify == "off":
            return result, Verification("off")
        verification = self._verify(verifier, result)
        if verification.status == "failed":
            # The checks after the passes now look at what was wrong in the end.
            result = self._pipeline(rewriting, verifier)
            verification = self._verify(verifier, result)
        if verification.status == "failed":
            # No single pass is to blame, yet the result is wrong: hand the original back and say so.
            for record in result.records:
                if record.changes:
                    record.undo(f"the result was wrong as a whole: {verification.reason}")
            result = PipelineResult(rewriting.original.clone(), result.records, result.misses, result.rules)
            verification = self._verify(verifier, result)
        return result, verification

    def _verify(self, verifier: Verifier, result: PipelineResult) -> Verification:
        self.progress.start("verify")
        verification = verifier.verify(result.model, result.numerics)
        self.progress.finish("verify")
        return verification

    def _pipeline(self, rewriting: Rewriting, verifier: Verifier | None) -> PipelineResult:
        stage = "passes"

        def before(item: Pass) -> None:
            self.progress.advance(stage, 1, item.name)

        self.progress.start(stage, len(list(leaves(self.plan.pipeline))))
        result = rewriting.run(
            Journal(self.options.stop_after),
            check=verifier.problem if verifier is not None else None,
            strict=self.options.strict,
            before=before,
            after=_Dumps(self.options.dump_dir),
        )
        self.progress.finish(stage)
        return result

    def _emit(self, model: onnx_ir.Model, output: Path) -> Artifact:
        self.progress.start("emit")
        if isinstance(self.plan.backend, BuildingBackend):
            build = Build(self.options.shapes, self.measure.usual_sizes, self.measure.data)
            artifact = self.plan.backend.build(model, self.plan.target, output, build)
        elif isinstance(self.plan.backend, CompilingBackend):
            artifact = self.plan.backend.compile(model, self.plan.targets, output, self.options.shapes)
        else:
            artifact = self.plan.backend.emit(model, self.plan.target, output)
        self.progress.finish("emit")
        return artifact


class _Dumps:
    """Writes the graph as text after every pass that changed it (``--print-after-all``)."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.count = folder, 0
        self.changes: dict[str, int] = {}

    def __call__(self, model: onnx_ir.Model, record: PassRecord) -> None:
        if self.folder is None or self.changes.get(record.text) == record.changes:
            return
        self.changes[record.text] = record.changes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self.count:03d}-{record.name}.onnxtxt"
            path.write_text(print_model(model), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write there: {error.strerror}", where=str(self.folder)) from error
        self.count += 1


def _save_recipe(path: Path, recipe: str) -> str:
    """Write a recipe; a note on it."""
    if not recipe:
        return f"no recipe was written to {path}: nothing was compressed"
    write_text(path, recipe)
    return f"wrote the recipe {path}: --recipe does the same again, without a search"


def _check_shapes(shapes: Mapping[str, Size], model: onnx_ir.Model) -> None:
    """Refuse sizes of dims that the model does not have: they are typing errors."""
    known = symbols(model)
    for name in shapes:
        if name not in known:
            hint = suggestion(name, known, f"its symbolic dims are: {', '.join(known) or 'none'}")
            raise UsageError(f"the model has no symbolic dim {name!r}", hint=hint)


def _check_output(output: Path | None) -> None:
    """Find out before the work, not after it, that the result cannot be written."""
    if output is None:
        return
    folder = output.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"the folder {str(folder)!r} does not exist", where=str(output), hint="create it first")
    if output.is_dir() and output.suffix.lower() not in FOLDERS:
        raise OutputError("this is a folder", where=str(output), hint="name a file in it")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the folder {str(folder)!r} is not writable", where=str(output), hint="choose another one")


__all__ = ["OptcError", "Result", "compile", "open_artifact", "optimize"]
