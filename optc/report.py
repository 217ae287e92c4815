"""What a compile did, as data: the same facts on the screen, in Python and in a JSON file.

The JSON form is described in docs/report.md, and as a JSON Schema in docs/report.schema.json.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir

from optc.backends import timing
from optc.backends.base import Artifact
from optc.ir.matcher import Miss
from optc.ir.model import ModelSource
from optc.ir.names import join_op
from optc.ir.targets import Target
from optc.machine import file_digest, peak_memory, versions
from optc.options import Options
from optc.passes.base import Attempt, Decision, LedgerRow, Remark, RuleRecord
from optc.passes.manager import PassRecord, PipelineResult
from optc.units import seconds_text, size_text

#: Version of the JSON form; it grows by one when a key changes its meaning or goes away, not when one is added.
SCHEMA = 1
#: Examples per rule.
_EXAMPLES = 3


@dataclass
class ModelSummary:
    """What a model is made of.

    Attributes:
        nodes: Nodes of the main graph and its sub-graphs, Constant nodes not counted.
        ops: Nodes by operator ("MatMul", "com.microsoft::Gelu").
        weight_bytes: Bytes of all initializers, each stored tensor counted once.
        path: The file, if it is one.
        digest: "sha256:..." of the file, if it is one; of the ONNX file alone, not of external data. Only the JSON
            form has it: reading gigabytes again is not worth a line on the screen.
    """

    nodes: int
    ops: dict[str, int]
    weight_bytes: int
    path: str | None = None
    digest: str | None = None

    @classmethod
    def of(cls, model: onnx_ir.Model, path: str | os.PathLike[str] | None = None) -> ModelSummary:
        """Count a model; ``path`` is the file it came from or went to."""
        ops: Counter[str] = Counter()
        for graph in (model.graph, *model.graph.subgraphs()):
            ops.update(join_op(node.domain, node.op_type) for node in graph if node.op_type != "Constant")
        tensors = {
            id(value.const_value): value.const_value
            for graph in model.graphs()
            for value in graph.initializers.values()
            if value.const_value is not None
        }
        weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
        return cls(
            ops.total(),
            dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
            weight_bytes,
            os.fspath(path) if path is not None else None,
        )


@dataclass
class PassReport:
    """What one pass did, summed over all rounds in which it ran; fields as in :class:`PassRecord`."""

    name: str
    text: str
    numerics: str
    seconds: float
    check_seconds: float
    runs: int
    changes: int
    nodes: int
    hits: dict[str, int]
    status: str
    reason: str = ""
    remarks: list[Remark] = field(default_factory=list)

    @classmethod
    def of(cls, record: PassRecord) -> PassReport:
        """The pass manager's record of it."""
        values = {item.name: getattr(record, item.name) for item in dataclasses.fields(cls)}
        return cls(**{**values, "numerics": record.numerics.name.lower()})

    def skipped(self) -> list[Skipped]:
        """What this pass was not allowed to do, or left alone although it was asked to do it."""
        own = [Skipped(self.text, f"{self.status}: {self.reason}")] if self.status in ("rolled back", "skipped") else []
        for remark in self.remarks:
            if remark.kind in ("skipped", "taken back"):
                reason = remark.reason if remark.kind == "skipped" else f"{remark.kind}: {remark.reason}"
                own.append(Skipped(f"{self.name}: {remark.what}", reason))
        return own

    def problems(self) -> list[str]:
        """What of it was wrong, a line each."""
        own = [f"{self.text}: {self.reason}"] if self.status == "rolled back" else []
        taken_back = (remark for remark in self.remarks if remark.kind == "taken back")
        return own + [f"{self.text}: {remark.what}: {remark.reason}" for remark in taken_back]


@dataclass
class NearMiss:
    """A place where a rule almost fired; fields as in :class:`optc.ir.matcher.Miss`."""

    rule: str
    root: str
    at: str
    wanted: str
    found: str
    matched: int
    size: int = 1
    sources: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, miss: Miss) -> NearMiss:
        """The matcher's record of it."""
        values = {item.name: getattr(miss, item.name) for item in dataclasses.fields(cls)}
        return cls(**{**values, "sources": list(miss.sources)})

    def __str__(self) -> str:
        return f"{self.rule} at {self.root}: stopped at {self.at}: {self.why}"

    @property
    def nearness(self) -> float:
        """How much of the pattern fitted, 0 to 1."""
        return 1.0 if not self.found else min(1.0, self.matched / self.size)

    @property
    def why(self) -> str:
        """What it wanted and what it found, or why it was refused."""
        return f"wanted {self.wanted}, found {self.found}" if self.found else self.wanted


@dataclass
class RuleReport:
    """What became of one rule.

    Attributes:
        name: Its name.
        makes: The fused op that it makes; empty if it makes none.
        hits: How often it fired.
        examples: For the first few times, the nodes of the original model at which it fired.
        near_misses: In how many places it came near; those are in the report's ``near_misses``, which holds the
            nearest ones.
        begins_at: The operators at which its pattern begins.
        tried: How often it was tried; 0 where the model never had such an operator.
    """

    name: str
    makes: str
    hits: int
    examples: list[list[str]]
    near_misses: int
    begins_at: list[str] = field(default_factory=list)
    tried: int = 0

    @classmethod
    def all_of(cls, result: PipelineResult) -> list[RuleReport]:
        """All rules that were tried, and what passes without rules count, in the order of their first try."""
        names = dict.fromkeys([*result.rules, *(rule for record in result.records for rule in record.hits)])
        reports = []
        for name in names:
            hits = sum(record.hits.get(name, 0) for record in result.records)
            places = [list(place) for record in result.records for place in record.places.get(name, ())]
            near = sum(miss.telling for miss in result.misses.get(name, ()))
            rule = result.rules.get(name, RuleRecord())
            reports.append(cls(name, rule.makes, hits, places[:_EXAMPLES], near, list(rule.begins_at), rule.tried))
        return reports


@dataclass
class CheckedBinding:
    """One comparison of the result with the original.

    Attributes:
        dims: The sizes given to the symbolic dims.
        inputs: Where the inputs came from: "drawn", "calibration", ...
        worst_output: The output that differs most.
        worst_error: Its relative L2 error.
        passed: Whether all outputs are close enough.
        reason: Why not.
    """

    dims: dict[str, int]
    inputs: str
    worst_output: str | None = None
    worst_error: float | None = None
    passed: bool = True
    reason: str = ""


@dataclass
class Verification:
    """The numeric check of the result against the original.

    Attributes:
        status: "passed", "failed", "skipped" (it could not be done here, see ``reason``) or "off" (not asked for).
        tolerance: The relative L2 error allowed.
        worst_error: The largest one seen.
        checked: The comparisons made.
        skipped: Comparisons that could not be made, and why.
        reason: Why it failed or was skipped.
        rule: What was run after each pass and in the end, where every pass was checked; empty otherwise.
    """

    status: Literal["passed", "failed", "skipped", "off"]
    tolerance: float | None = None
    worst_error: float | None = None
    checked: list[CheckedBinding] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    reason: str = ""
    rule: str = ""

    def text(self) -> str:
        """One line on it."""
        if self.status == "off":
            return "off"
        if self.status != "passed":
            return f"{self.status}: {self.reason}"
        error = "" if self.worst_error is None else f", worst relative error {self.worst_error:.2g}"
        allowed = "" if self.tolerance is None else f" (allowed {self.tolerance:.2g})"
        count = len(self.checked)
        rule = f"; checked {self.rule}" if self.rule else ""
        return f"passed, {count} input set{'s' * (count != 1)}{error}{allowed}{rule}"


@dataclass
class Skipped:
    """Something that was left out, and why."""

    what: str
    reason: str


@dataclass
class Spread:
    """A median with its quartiles: seconds, or a ratio."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, spread: timing.Spread) -> Spread:
        """Of what the clock gave."""
        return cls(spread.median, spread.low, spread.high)


@dataclass
class Latency:
    """Time per run of the original and of the result, measured in turns on this machine.

    Attributes:
        measured: Whether anything was measured; if not, ``reason`` says why.
        before: Seconds per run of the original, or None.
        after: Seconds per run of the result, or None.
        ratio: Result over original within each round; below 1 is faster.
        how: How it was measured: device, inputs, rounds, threads.
        reason: Why nothing was measured.
    """

    measured: bool
    before: Spread | None = None
    after: Spread | None = None
    ratio: Spread | None = None
    how: str = ""
    reason: str = ""

    @classmethod
    def of(cls, comparison: timing.Comparison, how: str) -> Latency:
        """Of a comparison whose first candidate is the original and whose last is the result."""
        before, after = comparison.timings[0], comparison.timings[-1]
        settled = "" if comparison.stable else ", not settled"
        return cls(
            True,
            Spread.of(before.seconds),
            Spread.of(after.seconds),
            Spread.of(after.ratio),
            how=f"{how}, {comparison.rounds} rounds in turns{settled}",
        )

    def text(self) -> str:
        """One line on it."""
        if not self.measured or self.before is None or self.after is None or self.ratio is None:
            return f"not measured: {self.reason}" if self.reason else "not measured"
        faster = " .. ".join(f"{1 / ratio:.2f}" for ratio in (self.ratio.high, self.ratio.low))
        return (
            f"{seconds_text(self.before.median)} -> {seconds_text(self.after.median)}, "
            f"{1 / self.ratio.median:.2f}x within a round, quartiles {faster} ({self.how})"
        )


@dataclass
class ArtifactFile:
    """A file that was written; its digest is made for the JSON form."""

    path: str
    bytes: int
    digest: str | None = None

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> ArtifactFile:
        """Measure a file that is there."""
        return cls(os.fspath(path), os.path.getsize(path))


#: More files than these are told of by the folder that they are in.
_FILES_SHOWN = 4


@dataclass
class Report:
    """Everything that a compile has to say.

    Attributes:
        model: The model as it was given.
        result: The model as it became.
        options: The options in force, by name.
        pipeline: The pipeline in its text form.
        target: Name of the target.
        backend: Name of the backend.
        passes: What each pass did, in the order of their first run.
        rules: What became of each rule.
        near_misses: Where rules almost fired, those of each rule nearest first.
        verification: The numeric check.
        latency: Time before and after.
        decisions: Lossy changes proposed, kept and refused.
        ledger: Every option that was weighed for every layer, taken or not.
        attempts: The whole models that a search measured on its way.
        artifact: The files written, the one to open first.
        skipped: What was not done although the options asked for it, and why.
        notes: What else the user should know.
        versions: Versions of optc, Python and the packages on which the result may depend.
        seconds: Wall time of the compile.
        peak_memory: Largest resident size of the process so far, in bytes.
    """

    model: ModelSummary
    result: ModelSummary
    options: dict[str, Any] = field(default_factory=dict)
    pipeline: str = ""
    target: str = ""
    backend: str = ""
    passes: list[PassReport] = field(default_factory=list)
    rules: list[RuleReport] = field(default_factory=list)
    near_misses: list[NearMiss] = field(default_factory=list)
    verification: Verification = field(default_factory=lambda: Verification("off"))
    latency: Latency = field(default_factory=lambda: Latency(False, reason="not asked for"))
    decisions: list[Decision] = field(default_factory=list)
    ledger: list[LedgerRow] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    artifact: list[ArtifactFile] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)
    seconds: float = 0.0
    peak_memory: int | None = field(default_factory=peak_memory)

    @classmethod
    def of(
        cls,
        *,
        source: ModelSource,
        options: Options,
        backend: str,
        target: Target,
        pipeline: str,
        original: onnx_ir.Model,
        result: PipelineResult,
        verification: Verification,
    ) -> Report:
        """The report of a pipeline's run; :meth:`finish` adds what is known only once the artifact is written.

        Args:
            source: What the caller gave as the model.
            options: The options in force.
            backend: Name of the backend.
            target: What the result will run on.
            pipeline: The pipeline's text.
            original: The model as it was loaded.
            result: What the pass manager returned.
            verification: The numeric check of the result.
        """
        passes = [PassReport.of(record) for record in result.records]
        return cls(
            model=ModelSummary.of(original, source if isinstance(source, str | os.PathLike) else None),
            result=ModelSummary.of(result.model),
            options={item.name: getattr(options, item.name) for item in dataclasses.fields(options)},
            pipeline=pipeline,
            target=target.name,
            backend=backend,
            passes=passes,
            rules=RuleReport.all_of(result),
            near_misses=[NearMiss.of(miss) for misses in result.misses.values() for miss in misses if miss.telling],
            verification=verification,
            decisions=[decision for record in result.records for decision in record.decisions],
            ledger=[row for record in result.records for row in record.ledger],
            attempts=[attempt for record in result.records for attempt in record.attempts],
            skipped=[skipped for item in passes for skipped in item.skipped()],
        )

    def problems(self) -> list[str]:
        """What went wrong, a line each: passes that were rolled back, rewrites taken back, and a wrong result."""
        found = [problem for item in self.passes for problem in item.problems()]
        if self.verification.status == "failed":
            found.append(f"verification: {self.verification.reason}")
        return found

    def finish(self, artifact: Artifact | None, seconds: float) -> None:
        """Add the files that were written and the wall time of it all."""
        if artifact is not None:
            self.artifact = [ArtifactFile.of(file) for file in artifact.files]
            self.result.path = self.artifact[0].path
            self.notes.extend(artifact.notes)
        self.seconds = seconds
        self.peak_memory = peak_memory()

    def summary(self) -> str:
        """What matters most, in a few lines of plain text."""
        lines = [
            f"nodes {self.model.nodes} -> {self.result.nodes}, "
            f"weights {size_text(self.model.weight_bytes)} -> {size_text(self.result.weight_bytes)}",
            f"verification: {self.verification.text()}",
            f"latency: {self.latency.text()}",
        ]
        lines += [f"kept: {decision.what}: {decision.reason}" for decision in self.decisions if decision.kept]
        lines += [f"skipped: {item.what}: {item.reason}" for item in self.skipped]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, *self.written()])

    def written(self) -> list[str]:
        """What was written, in a line for each file, or in one for a whole folder."""
        if len(self.artifact) <= _FILES_SHOWN:
            return [f"wrote {file.path} ({size_text(file.bytes)})" for file in self.artifact]
        total = size_text(sum(file.bytes for file in self.artifact))
        return [f"wrote {os.path.dirname(self.artifact[0].path)} ({len(self.artifact)} files, {total})"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: dicts, lists, strings, numbers, booleans and None."""
        written = {os.path.abspath(file.path) for file in self.artifact}
        for file in self.artifact:
            file.digest = file.digest or file_digest(file.path)
        if self.artifact:
            self.result.digest = self.artifact[0].digest
        if self.model.path is not None and os.path.abspath(self.model.path) not in written:
            self.model.digest = self.model.digest or file_digest(self.model.path)
        return {"schema": SCHEMA, **_plain(self)}

    def to_json(self) -> str:
        """The JSON form; a number that is not finite is written as null."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):  # an option may be an array; its contents are data, not news
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return str(value)
