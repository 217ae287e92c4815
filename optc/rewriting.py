"""A compile's work on the graph, as often as it is asked for: the whole pipeline, or its beginning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir

from optc.backends.base import Backend, BuildingBackend, CompilingBackend, HostBackend
from optc.backends.ort_eval import Evaluator
from optc.environment import Environment
from optc.host import chosen_backend, configured, host_of
from optc.ir.errors import UsageError
from optc.ir.functions import runnable
from optc.ir.journal import Journal
from optc.ir.targets import Target, find_target
from optc.measure import Measure
from optc.options import Options
from optc.passes.base import Pass
from optc.passes.manager import Check, PassManager, PassRecord, PipelineResult, skip_passes
from optc.passes.pipeline import Pipeline, with_options, without
from optc.progress import Progress
from optc.statistics import Collector

#: Passes that write a graph for a runtime with a fixed set of kernels; a backend that compiles does without.
_FOR_RUNTIMES = frozenset({"emit"})


@dataclass(frozen=True)
class Plan:
    """What options ask for, found in an environment and fit to be done.

    Attributes:
        targets: What the result will run on; the first is the one that rewriting looks at.
        backend: What writes it.
        pipeline: The passes.
    """

    targets: list[Target]
    backend: Backend
    pipeline: Pipeline

    @property
    def target(self) -> Target:
        """The target that rewriting looks at."""
        return self.targets[0]

    @property
    def host(self) -> HostBackend:
        """What runs graphs while they are made."""
        return host_of(self.backend)

    @classmethod
    def of(cls, options: Options, environment: Environment) -> Plan:
        """The plan.

        Raises:
            OptcError: Something that is named is not there, or does not go together.
        """
        targets = [find_target(name.strip(), environment.targets) for name in options.target.split(",")]
        backend = configured(environment.backends.get(chosen_backend(options, targets[0])), options.backend_options)
        if isinstance(backend, BuildingBackend) and options.output is not None:
            backend.check_output(options.output)
        pipeline = environment.pipeline(options.level, options.passes)
        if isinstance(backend, CompilingBackend):
            backend.check(targets)
            pipeline = without(pipeline, _FOR_RUNTIMES)
        elif len(targets) > 1:
            raise UsageError(
                f"the {backend.name} backend builds for one target at a time", hint="--backend=triton for several"
            )
        # The backend that was chosen, not the one that a target mostly has, is what passes write for.
        targets = [replace(host_of(backend).on(target), backend=backend.name) for target in targets]
        pipeline = with_options(skip_passes(pipeline, list(options.skip)), options.of_passes())
        return cls(targets, backend, pipeline)


@dataclass
class Rewriting:
    """One model and what is to be done with it.

    Attributes:
        original: The model; every run works on a copy.
        plan: What to do.
        options: What was asked for.
        progress: Is told how far the work is.
    """

    original: onnx_ir.Model
    plan: Plan
    options: Options
    progress: Progress

    def __post_init__(self) -> None:
        self.measure = Measure(self.original, self.plan.target, self.options, self.plan.host)
        self.statistics = Collector(self.measure, self.options, self.progress)
        compiling = isinstance(self.plan.backend, CompilingBackend)
        self._services: dict[str, Any] = {
            "evaluator": Evaluator(),
            # A backend that compiles has no integer kernels to write graphs for yet.
            "kernels": None if compiling else self.plan.host.kernels,
            "measure": self.measure,
            "progress": self.progress,
            "statistics": self.statistics,
        }

    def run(
        self,
        journal: Journal,
        *,
        model: onnx_ir.Model | None = None,
        check: Check | None = None,
        strict: bool = False,
        before: Callable[[Pass], None] = lambda item: None,
        after: Callable[[onnx_ir.Model, PassRecord], None] = lambda model, record: None,
    ) -> PipelineResult:
        """Run the pipeline on a copy of the original (``model`` if given); the rest is as in :class:`PassManager`."""
        manager = PassManager(self.plan.target, self._services, check, before, after, strict, journal)
        result = manager.run(model or self.original.clone(), self.plan.pipeline)
        if not isinstance(self.plan.backend, CompilingBackend):
            # "emit" was skipped or rolled back: nothing is written that a runtime might not know.
            result.model = runnable(result.model)
        return result


__all__ = ["Plan", "Rewriting"]
