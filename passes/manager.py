"""Running a pipeline: every pass is timed, checked, and rolled back if it broke something."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir

from optc.ir.errors import OptcError, UsageError
from optc.ir.journal import Application, Journal, LimitReached
from optc.ir.matcher import Miss
from optc.ir.rewriter import RULE_KEY, Rewriter, sources
from optc.ir.targets import Target, suggestion
from optc.ir.verify import Interface, verify_structure
from optc.passes.base import (
    Attempt,
    Decision,
    LedgerRow,
    Numerics,
    Pass,
    PassContext,
    Remark,
    RuleRecord,
    all_graphs,
)
from optc.passes.guard import Trial, Watch, vetoes_for
from optc.passes.isolate import isolate
from optc.passes.pipeline import Fixpoint, Pipeline, leaves, print_pass, without
from optc.passes.veto import Veto, kept_away

#: A numeric check of a model after a pass of a numerics class: None if it is right, else what is wrong.
Check = Callable[[onnx_ir.Model, Numerics], str | None]


@dataclass
class PassRecord:
    """What one pass did, summed over all rounds in which it ran.

    Attributes:
        text: The pass as it stands in the pipeline text.
        seconds: Wall time, checks not included.
        runs: How often it ran.
        changes: Changes made to the graph that were kept.
        nodes: Nodes added less nodes removed.
        hits: Applications by rule.
        places: Names of original nodes where rules fired, for the first few times.
        status: "changed", "unchanged" or "rolled back": its last run broke something, and it was not run again; what
            earlier runs of it did, if they did anything, was kept.
        reason: Why it was rolled back.
    """

    name: str
    text: str
    numerics: Numerics
    seconds: float = 0.0
    check_seconds: float = 0.0
    runs: int = 0
    changes: int = 0
    nodes: int = 0
    hits: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    status: str = "unchanged"
    reason: str = ""
    remarks: list[Remark] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    ledger: list[LedgerRow] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    recipe: str = ""

    def undo(self, reason: str) -> None:
        """Record that nothing of what the pass did is in the result."""
        self.status, self.reason = "rolled back", reason
        self.changes = self.nodes = 0
        self.hits, self.places, self.recipe = {}, {}, ""
        for decision in self.decisions:
            if decision.kept:
                decision.kept, decision.reason = False, f"taken back: {reason}"
        for row in self.ledger:
            if row.taken:
                row.taken, row.reason = False, f"taken back: {reason}"
        for attempt in self.attempts:
            if attempt.kept:
                attempt.kept, attempt.reason = False, f"taken back: {reason}"


@dataclass
class PipelineResult:
    """The model after a pipeline, and what happened on the way.

    Attributes:
        model: The model.
        records: What each pass did.
        misses: The nearest misses of each rule when it was last tried, in passes that were not rolled back.
        rules: Every rule that was there to be tried, by name.
    """

    model: onnx_ir.Model
    records: list[PassRecord]
    misses: dict[str, list[Miss]]
    rules: dict[str, RuleRecord] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """What the lossy pass decided, as a file by which it can be done again; empty for nothing."""
        return next((record.recipe for record in self.records if record.recipe), "")

    @property
    def numerics(self) -> Numerics:
        """The widest numerics class among the passes of which something is in the model."""
        return _widest(self.records)


@dataclass
class PassManager:
    """Runs pipelines on models.

    Attributes:
        target: What the result will run on.
        services: Handed to the passes, see :class:`PassContext`.
        check: A numeric check after every pass that changed something (``--verify=each``); None for none.
        before: Called with each pass before it runs (progress).
        after: Called with the model and the record of each pass that ran (dumps).
        strict: Raise what a pass raises instead of rolling it back (for the developers of passes).
        journal: Numbers all applications; where it has a limit, the pipeline ends when that is reached.
    """

    target: Target
    services: Mapping[str, Any] = field(default_factory=dict)
    check: Check | None = None
    before: Callable[[Pass], None] = lambda item: None
    after: Callable[[onnx_ir.Model, PassRecord], None] = lambda model, record: None
    strict: bool = False
    journal: Journal = field(default_factory=Journal)

    def run(self, model: onnx_ir.Model, pipeline: Pipeline) -> PipelineResult:
        """Run a pipeline on a model, which is changed in place unless a pass had to be rolled back.

        The result's model honours the interface of the given one, whatever the passes do.
        """
        run = _Run(self, model)
        run.pipeline(pipeline)
        run.finish()
        return PipelineResult(run.ctx.model, list(run.records.values()), run.open_misses(), run.rules)


@dataclass
class _Ran:
    """One run of a pass.

    Attributes:
        ctx: What it worked on, and what it had to say.
        made: Changes of the graph.
        problem: What it broke; None if nothing.
        applications: The rewrites that it made.
        seconds: How long it ran.
        check_seconds: How long the checks took.
    """

    ctx: PassContext
    made: int
    problem: str | None
    applications: list[Application]
    seconds: float
    check_seconds: float


class _Run:
    """The state of one run."""

    def __init__(self, manager: PassManager, model: onnx_ir.Model, vetoes: Sequence[Veto] = ()) -> None:
        self.manager, self.vetoes = manager, tuple(vetoes)
        self.watch: Watch | None = None
        self.interface = Interface.of(model)
        self.misses: dict[str, list[Miss]] = {}
        self.rules: dict[str, RuleRecord] = {}
        self.ctx = self._context(model)
        self.records: dict[str, PassRecord] = {}
        #: Passes (by text) that were rolled back, and single rewrites that were taken back, each with the reason.
        self.guilty: dict[str, str] = {}
        self.taken_back: dict[Veto, str] = {}
        self._snapshot: onnx_ir.Model | None = None
        #: Passes (by text) that left the graph as it is since its last change: running them again is pointless.
        self._settled: set[str] = set()

    def _context(
        self, model: onnx_ir.Model, vetoes: Sequence[Veto] = (), journal: Journal | None = None
    ) -> PassContext:
        rewriter = Rewriter(model, journal=journal or self.manager.journal)
        context = PassContext(rewriter, self.manager.target, self.manager.services, rules=self.rules)
        context.vetoes = kept_away((*self.vetoes, *vetoes))
        return context

    def finish(self) -> None:
        """Let the records say what was taken back, whatever became of the records on the way."""
        for text, reason in self.guilty.items():
            record = self._record(text)
            record.status, record.reason = "rolled back", reason
        for veto, reason in self.taken_back.items():
            self._record(veto.step).remarks.append(Remark("taken back", str(veto), reason))

    def _record(self, text: str) -> PassRecord:
        name = text.partition("{")[0]
        return self.records.setdefault(text, PassRecord(name, text, Numerics.EXACT))

    def pipeline(self, pipeline: Pipeline) -> None:
        """Run a whole pipeline; what stands before a fusing pass is guarded."""
        start = 0
        for index, item in enumerate(pipeline):
            # A replay stops somewhere on the way: nothing is lost that a fusing pass has not come to yet.
            if isinstance(item, Pass) and item.guards and index > start and self.manager.journal.limit is None:
                self._guarded(pipeline[start : index + 1], item)
                start = index + 1
        self.items(pipeline[start:])

    def _guarded(self, items: Pipeline, fuse: Pass) -> None:
        """Run the passes up to a fusing one; again without what loses fusions, if anything does."""
        journal = self.manager.journal
        if _name_nodes(self.ctx.model, self.ctx.rewriter) or self._snapshot is None:
            self._snapshot = self.ctx.model.clone()
        before, numbered = self._snapshot, len(journal.applications)
        records, settled = copy.deepcopy(self.records), set(self._settled)
        self.watch = Watch(fuse)
        self.watch.look(self.ctx)
        self.items(items)
        first = self._outcome()
        if not first.lost or print_pass(fuse) in self.guilty:
            self.watch = None
            return

        def trial(vetoes: Sequence[Veto]) -> Trial:
            manager = PassManager(self.manager.target, self.manager.services)
            run = _Run(manager, before.clone(), (*self.vetoes, *vetoes))
            run.guilty = self.guilty
            run.watch = Watch(fuse, dict(self.watch.finds) if self.watch else {})
            run.items(items)
            return run._outcome()

        made = [one for one in journal.applications[numbered:] if one.step != print_pass(fuse)]
        vetoes = vetoes_for(trial, first, made)
        self.watch = None
        if not vetoes:
            return
        journal.resume(numbered, ())
        self.records, self._settled, self.vetoes = records, settled, (*self.vetoes, *vetoes)
        self.ctx, self._snapshot = self._context(before.clone()), before
        self.items(items)
        ops = Counter(find.op for find in first.lost)
        lost = ", ".join(f"{count} x {op}" for op, count in sorted(ops.items()))
        for veto in vetoes:
            reason = f"kept back by the guard of fusions: it would have lost {lost}"
            self._record(veto.step).remarks.append(Remark("skipped", veto.rule or "all of it", reason))

    def _outcome(self) -> Trial:
        lost = self.watch.lost(self.ctx.model) if self.watch is not None else frozenset()
        return Trial(lost, count_nodes(self.ctx.model))

    def items(self, pipeline: Pipeline) -> bool:
        changed = False
        for item in pipeline:
            if isinstance(item, Fixpoint):
                for _ in range(item.rounds):
                    if not self.items(item.items):
                        break
                    changed = True
            else:
                changed |= self.one(item)
        return changed

    def one(self, item: Pass) -> bool:
        """Run one pass; whether the graph was changed and stayed so."""
        text = print_pass(item)
        journal = self.manager.journal
        if text in self.guilty or text in self._settled or journal.exhausted:
            return False
        if any(veto.step == text and veto.rule is None for veto in self.vetoes):
            return False
        if self.watch is not None and item.restructures:
            self.watch.look(self.ctx)
        record = self.records.setdefault(text, PassRecord(item.name, text, item.numerics))
        self.manager.before(item)
        if self._snapshot is None:
            self._snapshot = self.ctx.model.clone()
        record.runs += 1
        before, numbered = count_nodes(self.ctx.model), len(journal.applications)
        attempt = self._attempt(item, self.ctx)
        record.seconds += attempt.seconds
        if attempt.problem is not None:
            start = time.perf_counter()
            attempt = self._without_the_guilty(item, attempt, numbered)
            record.check_seconds += time.perf_counter() - start
        record.check_seconds += attempt.check_seconds
        if attempt.problem is not None:
            self._roll_back(record, text, attempt.problem)
            return False
        self.ctx = attempt.ctx
        record.remarks.extend(self.ctx.remarks)
        record.decisions.extend(self.ctx.decisions)
        record.ledger.extend(self.ctx.ledger)
        record.attempts.extend(self.ctx.attempts)
        record.recipe = self.ctx.recipe
        record.nodes += count_nodes(self.ctx.model) - before
        for rule, count in self.ctx.hits.items():
            record.hits[rule] = record.hits.get(rule, 0) + count
        for rule, places in self.ctx.places.items():
            record.places.setdefault(rule, places)
        for rule, misses in self.ctx.misses.items():
            for miss in misses:
                if miss.anchor is not None and miss.anchor.graph is not None:
                    miss.anchor = None  # it holds, whatever becomes of the node now
            self.misses[rule] = misses
        record.changes += attempt.made
        if attempt.made:
            record.status = "changed"
            self._snapshot = None
            self._settled.clear()
        else:
            self._settled.add(text)
        self.manager.after(self.ctx.model, record)
        return bool(attempt.made)

    def _attempt(self, item: Pass, ctx: PassContext) -> _Ran:
        """Run a pass and check what it has made."""
        rewriter, journal = ctx.rewriter, ctx.rewriter.journal
        changes, numbered = rewriter.changes, len(journal.applications)
        ctx.hits, ctx.places, ctx.misses = {}, {}, {}
        ctx.recipe = ""
        ctx.remarks, ctx.decisions, ctx.ledger, ctx.attempts = [], [], [], []
        journal.step = print_pass(item)
        start = time.perf_counter()
        problem = None
        try:
            item.run(ctx)
        except LimitReached:
            pass
        except OptcError as error:
            if self.manager.strict or isinstance(error, UsageError):
                raise
            problem = " ".join([str(error), *getattr(error, "__notes__", ())])
        except Exception as error:  # a pass, ours or a plugin's, may fail in any way; the compile goes on without it
            if self.manager.strict:
                raise
            problem = " ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        seconds = time.perf_counter() - start
        made = ctx.rewriter.changes - changes if ctx.rewriter is rewriter else 1
        if made and len(journal.applications) == numbered:
            journal.end(item.name)  # a pass that is not made of rules counts as one application
        start = time.perf_counter()
        if problem is None and made:
            problem = self._broken(item, ctx.model)
        check_seconds = time.perf_counter() - start
        return _Ran(ctx, made, problem, journal.applications[numbered:], seconds, check_seconds)

    def _without_the_guilty(self, item: Pass, failed: _Ran, numbered: int) -> _Ran:
        """The same pass without the rewrites that are to blame, if they can be told; else what has failed."""
        journal = self.manager.journal
        if self._snapshot is None or journal.limit is not None or not failed.applications:
            return failed
        if item.numerics is Numerics.LOSSY:
            return failed  # what it does was decided as a whole; it would be decided anew, by another clock
        before = self._snapshot.clone()
        # Whether this is of use is not known yet: only then are the names given for good.
        named = _name_nodes(before, failed.ctx.rewriter)

        def again(vetoes: Sequence[Veto], limit: int | None) -> _Ran:
            return self._attempt(item, self._context(before.clone(), vetoes, Journal(limit)))

        found = isolate(again, again((), None) if named else failed, item.name)
        if found is None:
            return failed
        attempt, taken_back = found
        journal.resume(numbered, attempt.applications)
        attempt.ctx.rewriter.journal = journal
        self.vetoes = (*self.vetoes, *taken_back)
        self.taken_back.update(taken_back)
        return attempt

    def open_misses(self) -> dict[str, list[Miss]]:
        """The misses; of those at nodes that went during the pass, only what is there in other nodes, and not fused."""
        fusions = {name for name, record in self.rules.items() if record.makes}
        fused: set[str] = set()
        left: set[str] = set()
        for node in (node for graph in all_graphs(self.ctx.model) for node in graph):
            names = sources(node)
            made_by = node.metadata_props.get(RULE_KEY, "").split(",")
            (left if fusions.isdisjoint(made_by) else fused).update(names)

        def is_open(miss: Miss) -> bool:
            return miss.anchor is None or (not fused.intersection(miss.sources) and not left.isdisjoint(miss.sources))

        return {rule: [miss for miss in misses if is_open(miss)] for rule, misses in self.misses.items()}

    def _broken(self, item: Pass, model: onnx_ir.Model) -> str | None:
        problems = verify_structure(model) or self.interface.differences(Interface.of(model))
        if problems:
            return f"it left an invalid graph: {problems[0]}"
        if self.manager.check is None:
            return None
        # The model is compared with the original, so what earlier passes were allowed to do counts too.
        return self.manager.check(model, max(item.numerics, _widest(self.records.values())))

    def _roll_back(self, record: PassRecord, text: str, problem: str) -> None:
        if self._snapshot is None:
            raise RuntimeError("no snapshot to roll back to")
        # The snapshot is kept: the guard may want to go back to it once more.
        self.ctx = self._context(self._snapshot.clone())
        self.guilty[text] = problem
        record.status, record.reason = "rolled back", problem


def _name_nodes(model: onnx_ir.Model, rewriter: Rewriter) -> bool:
    """Give every node a name, by which it is known when it has become something else; whether any had none."""
    unnamed = [node for graph in all_graphs(model) for node in graph if not node.name]
    for node in unnamed:
        node.name = rewriter.fresh_name(node.op_type)
    return bool(unnamed)


def _widest(records: Iterable[PassRecord]) -> Numerics:
    return max((record.numerics for record in records if record.changes), default=Numerics.EXACT)


def skip_passes(pipeline: Pipeline, names: list[str]) -> Pipeline:
    """A pipeline without the passes of these names.

    Raises:
        UsageError: A name is not in the pipeline.
    """
    present = [item.name for item in leaves(pipeline)]
    for name in names:
        if name not in present:
            raise UsageError(
                f"--skip {name}: the pipeline has no such pass",
                hint=suggestion(name, present, f"it has: {', '.join(dict.fromkeys(present))}"),
            )
    return without(pipeline, frozenset(names))


def count_nodes(model: onnx_ir.Model) -> int:
    """Nodes of the main graph and its sub-graphs, Constant nodes not counted."""
    graphs = [model.graph, *model.graph.subgraphs()]
    return sum(node.op_type != "Constant" for graph in graphs for node in graph)
