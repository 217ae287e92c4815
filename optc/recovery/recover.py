"""Recovery of a compressed model: block by block against the original, then as a whole; the graph stays as it is.

Every step is judged by ONNX Runtime on samples that nothing was learned from: what is not nearer to the original there
is taken back, and in the end so is everything, if the outputs are not nearer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from optc.backends.ort import OnnxRuntimeBackend
from optc.inputs import input_specs
from optc.ir.errors import ModelError, UsageError
from optc.ir.facts import Facts
from optc.ir.model import ModelSource, load
from optc.ir.rewriter import Rewriter
from optc.ir.saving import save
from optc.ir.verify import Interface
from optc.numeric import coarsest_float, quantizes
from optc.progress import Progress, Silent
from optc.recovery.batches import Arrays, Shelf, capture, relative_errors, split
from optc.recovery.blocks import Block, cuts, divide, in_order, moved, products, program
from optc.recovery.match import match
from optc.recovery.places import Parameter, parameters_of, read, written
from optc.recovery.torch_library import engine
from optc.sources import open_samples

#: What a block computes in PyTorch may differ so much from what it computes in ONNX Runtime: in single precision, and
#: where kernels round activations to codes or halves.
_SAME, _SAME_ROUNDED = 1e-3, 5e-2
_STAGE = "recover"
#: What reports call the model as a whole.
WHOLE = "the whole model"


@dataclass(frozen=True)
class Settings:
    """How to learn.

    Attributes:
        steps: Steps per block, and for the whole model; a step looks at one batch. 0 leaves everything as it is.
        learning_rate: How far a weight may go in a step, as a share of the size of the weights beside it.
        batch: Rows of a batch, where inputs have a batch dim of any size.
        held_out: The share of the data to judge by.
        blocks: Whether blocks learn one by one first.
        whole: Whether the whole model learns in the end.
        seed: Of draws and orders.
        device: "auto", "cpu" or "cuda".
    """

    steps: int = 300
    learning_rate: float = 3e-3
    batch: int = 32
    held_out: float = 0.2
    blocks: bool = True
    whole: bool = True
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, fits, rule in (
            ("steps", self.steps >= 0, "at least 0"),
            ("learning_rate", 0 < self.learning_rate < 1, "between 0 and 1"),
            ("batch", self.batch >= 1, "at least 1"),
            ("held_out", 0 < self.held_out < 1, "between 0 and 1"),
            ("device", self.device in ("auto", "cpu", "cuda"), "auto, cpu or cuda"),
        ):
            if not fits:
                raise UsageError(f"{name} is {rule}, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class BlockReport:
    """What became of a block.

    Attributes:
        name: The block: its last value, or :data:`WHOLE`.
        numbers: How many numbers could be learned in it.
        before: Relative L2 error of its values on what was held out (root mean square over several); None if unknown.
        after: The same with what was learned.
        kept: Whether that was kept.
        reason: Why not; empty if it was.
    """

    name: str
    numbers: int = 0
    before: float | None = None
    after: float | None = None
    kept: bool = False
    reason: str = ""


@dataclass
class Recovery:
    """What came of a recovery.

    Attributes:
        model: The model, with what was learned.
        before: Relative L2 error of the worst output on what was held out, as it came in.
        after: The same of ``model``.
        blocks: What became of each block, in order.
        left: Nodes that nothing before them could learn through -> why.
        learned_from: Batches that were learned from.
        judged_by: Batches that were held out.
        seconds: How long it took.
        files: The files that were written.
    """

    model: onnx_ir.Model
    before: float = 0.0
    after: float = 0.0
    blocks: list[BlockReport] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    learned_from: int = 0
    judged_by: int = 0
    seconds: float = 0.0
    files: list[Path] = field(default_factory=list)

    @property
    def gained(self) -> bool:
        """Whether anything of what was learned is in the model."""
        return self.after < self.before


def recover(
    compressed: ModelSource,
    original: ModelSource,
    calib: Any,
    *,
    output: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Recovery:
    """Let a compressed model learn from its original, by PyTorch (``pip install 'optc[recover]'``).

    Names, types, shapes and structure of the graph stay; the weights alone change. Weights stored as codes (Q/DQ,
    MatMulNBits, integer products) are learned with straight-through rounding and stored as codes again, their scales
    too; zeros of a weight stay zero.

    Args:
        compressed: The compressed model: pruned, quantized, of low rank, or anything else with the same interface.
        original: What it was made from.
        calib: Samples, as for :func:`optc.compile`.
        output: An ``.onnx`` file to write, whole or not at all.
        progress: Is told how far the work is.
        settings: See :class:`Settings`.

    Returns:
        The model, never worse on held-out samples than it came in, and what became of every block.

    Raises:
        OptcError: A model or the data are no good or do not fit together, or PyTorch is not installed.
    """
    chosen = Settings(**settings)
    models = (load(compressed), load(original))
    _check_interfaces(*models)
    work = _Work(*models, calib, chosen, progress or Silent())
    found = work.run()
    if output is not None:
        found.files = save(found.model, output)
    return found


def _check_interfaces(compressed: onnx_ir.Model, original: onnx_ir.Model) -> None:
    ours, theirs = Interface.of(compressed), Interface.of(original)
    for kind in ("inputs", "outputs"):
        a, b = ([entry[:2] for entry in getattr(one, kind)] for one in (ours, theirs))
        if a != b:
            raise ModelError(
                f"the compressed model's {kind} are {a}, the original's {b}",
                hint="recovery needs the model from which the compressed one was made",
            )


class _Work:
    """One recovery."""

    def __init__(
        self, compressed: onnx_ir.Model, original: onnx_ir.Model, calib: Any, settings: Settings, progress: Progress
    ) -> None:
        self.engine = engine()
        self.device = self.engine.device_of(settings.device)
        self.model, self.original = compressed, original
        self.settings, self.progress = settings, progress
        specs = input_specs(original)
        samples = open_samples(calib, specs)
        self.train, self.held = split(samples, specs, settings.batch, settings.held_out, settings.seed)
        self.rewriter = Rewriter(compressed)
        self.parameters = parameters_of(compressed, self.facts)
        self.opener = partial(OnnxRuntimeBackend().runner, plain=True, few_runs=True)
        self.report = Recovery(compressed, learned_from=len(self.train), judged_by=len(self.held))
        rounds = quantizes(compressed) or any(parameter.role == "codes" for parameter in self.parameters)
        narrow = coarsest_float(compressed) not in (onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE)
        self.same = _SAME_ROUNDED if rounds or narrow else _SAME

    @property
    def facts(self) -> Facts:
        return self.rewriter.facts

    def run(self) -> Recovery:
        start = time.monotonic()
        nodes = tuple(in_order(self.model.graph, self.facts))
        outputs = [value for value in self.model.graph.outputs if isinstance(value.type, onnx_ir.TensorType | None)]
        names = {value.name or "": value.name or "" for value in outputs}
        expected = capture(self.original, names, self.held, self.opener)
        self.report.before = best = self._error(expected, names)
        if self.settings.steps:
            blocks, pairs = self._blocks(nodes)
            pairs |= names
            whole = Block(WHOLE, nodes, tuple(value for value in outputs if _is_float(self.facts, value)))
            self.progress.start(_STAGE, (len(blocks) + 1) * self.settings.steps)
            before = self._contents()
            if len(blocks) > 1 and self.settings.blocks:
                for block in blocks:
                    self._learn(block, pairs)
                error = self._error(expected, names)
                if not error < best:
                    self._restore(before)
                    self._take_back(f"the outputs were no nearer to the original's with it ({error:.4g}, {best:.4g})")
                best = min(best, error)
            if whole.targets and (self.settings.whole or len(blocks) < 2):
                before = self._contents()
                self._learn(whole, pairs)
                error = self._error(expected, names)
                if not error <= best:
                    self._restore(before)
                    self._take_back("the worst output was no nearer to the original's with it", only=WHOLE)
                best = min(best, error)
            self.progress.finish(_STAGE)
        self.report.after = best
        self.report.seconds = time.monotonic() - start
        return self.report

    # -- planning ---------------------------------------------------------------------------------------------------

    def _blocks(self, nodes: Sequence[onnx_ir.Node]) -> tuple[list[Block], dict[str, str]]:
        """The blocks, and what values of theirs are called in the original."""
        moving = moved(nodes, self.parameters, self.facts)
        places = cuts(nodes, moving, self.facts)
        wanted = list(dict.fromkeys(value.name or "" for cut in places for value in cut.values))
        pairs = match(self.model, wanted, self.original, self.held[0], self.opener) if wanted else {}
        ends = {value for value in self.model.graph.outputs if _is_float(self.facts, value)}
        matched = {value for cut in places for value in cut.values if value.name in pairs} | ends
        return divide(nodes, places, products(self.model.graph, self.facts), matched), pairs

    # -- learning ---------------------------------------------------------------------------------------------------

    def _learn(self, block: Block, pairs: Mapping[str, str]) -> None:
        self.progress.advance(_STAGE, 0, block.name)
        found = self._try(block, pairs)
        self.report.blocks.append(found)

    def _try(self, block: Block, pairs: Mapping[str, str]) -> BlockReport:
        broken = {node: why for node in block.nodes if (why := self.engine.why_not(node)) is not None}
        while True:
            nodes, learned = program(block.nodes, block.targets, self.parameters, broken, self.facts)
            made = {value for node in nodes for value in node.outputs}
            targets = [value for value in block.targets if value in made]
            if not learned or not targets:
                self._note(broken, block)
                return BlockReport(block.name, reason=_nothing(broken))
            numbers = [(parameter, read(parameter, self.facts)) for parameter in learned]
            piece = self.engine.Piece(nodes, numbers, targets, self.facts, self.model.graph.opset_imports)
            names = [value.name or "" for value in targets]
            reads = self.engine.reads(piece)
            held = capture(self.model, [*reads, *names], self.held, self.opener)
            try:
                found = self.engine.outputs(piece, held[0], self.device)
            except self.engine.NodeFailed as error:
                broken[error.node] = str(error)
                continue
            break
        self._note(broken, block)
        count = sum(item.start.size for _, item in numbers)
        apart = _apart(found, held[0], names)
        if apart > self.same:
            return BlockReport(block.name, count, reason=f"PyTorch computes it otherwise (relative error {apart:.2g})")
        wanted = {name: pairs[name] for name in names}
        goals = self._goals(wanted, self.held)
        before = relative_errors(goals, held, {name: name for name in names})
        train = capture(self.model, reads, self.train, self.opener)
        result = self.engine.learn(
            piece,
            (train, self._goals(wanted, self.train)),
            (held, goals),
            self.settings.steps,
            self.settings.learning_rate,
            self.settings.seed,
            self.device,
            partial(self.progress.advance, _STAGE),
        )
        old = self._contents(learned)
        for parameter in learned:
            self.rewriter.set_contents(parameter.value, written(parameter, result.numbers[parameter.name], self.facts))
        now = capture(self.model, names, self.held, self.opener)
        after = relative_errors(goals, now, {name: name for name in names})
        first, last = _together(before), _together(after)
        if last < first:
            return BlockReport(block.name, count, first, last, True)
        self._restore(old)
        return BlockReport(
            block.name, count, first, last, reason="it was no nearer to the original on held-out samples"
        )

    def _goals(self, wanted: Mapping[str, str], inputs: Shelf) -> Shelf:
        """The original's values, by the names that they have in the compressed model."""
        found = capture(self.original, list(dict.fromkeys(wanted.values())), inputs, self.opener)
        renamed = Shelf()
        for arrays in found:
            renamed.add({name: arrays[other] for name, other in wanted.items()})
        return renamed

    def _note(self, broken: Mapping[onnx_ir.Node, str], block: Block) -> None:
        """Say which nodes kept what is before them from learning."""
        moving = moved(block.nodes, self.parameters, self.facts)
        for node, why in broken.items():
            if any(value in moving for value in node.inputs):
                self.report.left.setdefault(node.name or node.outputs[0].name or node.op_type, why)

    # -- judging ----------------------------------------------------------------------------------------------------

    def _error(self, expected: Shelf, names: Mapping[str, str]) -> float:
        """The relative L2 error of the worst output on what is held out."""
        found = capture(self.model, names, self.held, self.opener)
        return max(relative_errors(expected, found, names).values(), default=0.0)

    def _contents(self, which: Sequence[Parameter] | None = None) -> dict[onnx_ir.Value, onnx_ir.TensorProtocol]:
        values = [parameter.value for parameter in (self.parameters if which is None else which)]
        return {value: tensor for value in values if (tensor := self.facts.tensor(value)) is not None}

    def _restore(self, contents: Mapping[onnx_ir.Value, onnx_ir.TensorProtocol]) -> None:
        for value, tensor in contents.items():
            if self.facts.tensor(value) is not tensor:
                self.rewriter.set_contents(value, tensor)

    def _take_back(self, why: str, only: str | None = None) -> None:
        for index, block in enumerate(self.report.blocks):
            if block.kept and only in (None, block.name):
                taken = BlockReport(block.name, block.numbers, block.before, block.after, False, why)
                self.report.blocks[index] = taken


def _is_float(facts: Facts, value: onnx_ir.Value) -> bool:
    dtype = facts.dtype(value)
    return dtype is not None and dtype.is_floating_point()


def _nothing(broken: Mapping[onnx_ir.Node, str]) -> str:
    reasons = list(dict.fromkeys(broken.values()))
    return f"nothing in it can be learned{': ' + '; '.join(reasons) if reasons else ''}"


def _apart(found: Sequence[np.ndarray], expected: Arrays, names: Sequence[str]) -> float:
    """The largest relative L2 error of what PyTorch computed against what ONNX Runtime did."""
    shelves = (Shelf(), Shelf())
    shelves[0].add({name: expected[name] for name in names})
    shelves[1].add(dict(zip(names, found, strict=True)))
    return max(relative_errors(*shelves, {name: name for name in names}).values())


def _together(errors: Mapping[str, float]) -> float:
    """The root mean square of errors."""
    return float(np.sqrt(np.mean([error**2 for error in errors.values()])))


__all__ = ["WHOLE", "BlockReport", "Recovery", "Settings", "recover"]
