"""``--backend=auto``: every runtime for CPUs that is installed gets a result of its own, and the fastest is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from optc.backends import timing
from optc.backends.base import HostBackend
from optc.environment import Environment
from optc.host import ENDINGS
from optc.ir.errors import BackendError, OptcError
from optc.ir.model import ModelSource
from optc.ir.targets import find_target
from optc.measure import Measure
from optc.options import Options
from optc.report import Latency
from optc.units import seconds_text


class Compile(Protocol):
    """One compile for one backend."""

    measure: Measure

    def run(self, source: ModelSource) -> Any: ...

    def write(self, result: Any, options: Options, start: float) -> None: ...


@dataclass
class _Candidate:
    job: Compile
    result: Any


def compile(
    source: ModelSource, options: Options, environment: Environment, job_of: Callable[[Options], Compile]
) -> Any:
    """Compile for every backend that runs the target here, and keep the fastest result.

    Args:
        source: The model.
        options: The options, whose backend is "auto".
        environment: The backends there are.
        job_of: Makes a compile of options that name a backend.

    Raises:
        OptcError: None of them gets anywhere; the error is that of the first.
    """
    start = time.perf_counter()
    target = find_target(options.target.split(",")[0].strip(), environment.targets)
    ending = options.output.suffix.lower() if options.output is not None else ""
    if target.kind != "cpu" or ending in ENDINGS:
        result = job_of(replace(options, backend=None)).run(source)
        why = f"nothing else writes {ending}" if ending in ENDINGS else f"{target.name} is not here to try others on"
        result.report.notes.append(f"backend auto: {result.report.backend}, as {why}")
        return result
    notes: list[str] = []
    candidates = dict(_candidates(source, options, environment, job_of, notes))
    right = {name: one for name, one in candidates.items() if one.result.report.verification.status != "failed"}
    notes += [f"{name}: its result is wrong" for name in candidates if right and name not in right]
    best, figures, latency = _fastest(right or candidates)
    result = candidates[best].result
    result.report.notes.append(f"backend auto: {'; '.join([figures, *notes])}")
    if options.measure:
        result.report.latency = latency
    candidates[best].job.write(result, options, start)
    return result


def _candidates(
    source: ModelSource,
    options: Options,
    environment: Environment,
    job_of: Callable[[Options], Compile],
    notes: list[str],
) -> Iterator[tuple[str, _Candidate]]:
    """A result of every runtime; why there is none of another goes to the notes."""
    first: OptcError | None = None
    any_result = False
    target = find_target(options.target.split(",")[0].strip(), environment.targets)
    for name, backend in _hosts(environment):
        if not backend.here(target):
            continue
        probe = backend.probe()
        if not probe.ready:
            notes.append(f"{name} was not there: {probe.reason}" + (f" ({probe.hint})" if probe.hint else ""))
            continue
        try:
            job = job_of(replace(options, backend=name, output=None, save_recipe=None, measure=False))
            yield name, _Candidate(job, job.run(source))
            any_result = True
        except BackendError as error:
            first = first or error
            notes.append(f"{name}: {error.what}")
    if not any_result and first is not None:
        raise first


def _hosts(environment: Environment) -> Iterator[tuple[str, HostBackend]]:
    """The backends that run graphs on this machine."""
    for name in environment.backends:
        try:
            backend = environment.backends.get(name)
        except OptcError:
            continue  # a plugin's that cannot be loaded; `optc backends` tells of it
        if isinstance(backend, HostBackend):
            yield name, backend


def _fastest(candidates: dict[str, _Candidate]) -> tuple[str, str, Latency]:
    """The fastest result's backend, the figures of all, and its time against the original's in ONNX Runtime."""
    names = list(candidates)
    measure = candidates[names[0]].job.measure
    if len(names) == 1:
        return names[0], f"only {names[0]} could be tried", measure.latency(candidates[names[0]].result.model)
    try:
        runners = {"original": measure.open(measure.original)}
        runners |= {name: one.job.measure.open(one.result.model) for name, one in candidates.items()}
        feeds = measure.latency_feeds
        compared = timing.compare({name: partial(one.run, feeds) for name, one in runners.items()}, budget=8.0)
    except OptcError as error:
        return names[0], f"{names[0]}, as they could not be timed: {error.what}", Latency(False, reason=error.what)
    best = min(names, key=lambda name: compared[name].ratio.median)
    figures = ", ".join(f"{name} {seconds_text(compared[name].seconds.median)}" for name in names)
    ends = timing.Comparison((compared["original"], compared[best]), compared.rounds, compared.elapsed, compared.stable)
    how = f"the original in {names[0]}, the result in {best}, on this CPU, {measure.sizes}"
    return best, f"{figures} at {measure.sizes}; {best} was kept", Latency.of(ends, how)
