"""What two models have in common and what not: interface, operators, weights, numbers."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir

from optc.equivalence import Reference
from optc.ir.model import load
from optc.ir.printer import Style, print_model
from optc.ir.verify import Interface
from optc.machine import file_digest
from optc.numeric import Tolerance
from optc.report import ModelSummary

#: Every difference is to be told, none to be judged.
_ANY = Tolerance(rel_l2=float("inf"), element=float("inf"), zero=float("inf"), integer_step=255, integer_share=1.0)
_CONTEXT_LINES = 1


@dataclass
class NumberDifference:
    """How far one output of the second model lies from that of the first, at one choice of sizes.

    Attributes:
        at: The sizes.
        output: Its name.
        error: Relative L2 error, or the share of elements that differ where they are no floats; inf where no number
            can say it.
        max_abs: The largest absolute difference.
        problem: Why there is no number; empty if there is one.
    """

    at: str
    output: str
    error: float = 0.0
    max_abs: float = 0.0
    problem: str = ""


@dataclass
class Difference:
    """All differences between a first and a second model.

    Attributes:
        interface: What differs in names, order, types and dims of inputs and outputs, a line each.
        opsets: Domain -> version in the first and in the second one; 0 where it is not imported.
        nodes: How many nodes each has.
        ops: Operator -> nodes in the first and in the second one, where they differ.
        weight_bytes: Bytes of the weights of each.
        file_bytes: Bytes of each file, without external data.
        same_bytes: Whether the files are equal byte by byte.
        numbers: Every output at several sizes, if both could be run.
        not_compared: Why numbers could not be compared; empty if they were.
        text: The graphs as text, as a unified diff.
    """

    interface: list[str]
    opsets: dict[str, tuple[int, int]]
    nodes: tuple[int, int]
    ops: dict[str, tuple[int, int]]
    weight_bytes: tuple[int, int]
    file_bytes: tuple[int, int]
    same_bytes: bool
    numbers: list[NumberDifference] = field(default_factory=list)
    not_compared: str = ""
    text: str = ""

    @property
    def worst(self) -> float | None:
        """The largest error of an output; None if nothing was compared."""
        return max((entry.error for entry in self.numbers), default=None)


def difference(
    first: str | os.PathLike[str], second: str | os.PathLike[str], *, run: bool = True, seed: int = 0
) -> Difference:
    """Compare two models.

    Args:
        first: An ONNX file.
        second: Another one.
        run: Run both and compare their outputs, on inputs that are drawn.
        seed: Seed of the inputs.

    Raises:
        ModelError: One of them is no model.
    """
    paths, models = (Path(first), Path(second)), (load(Path(first)), load(Path(second)))
    summaries = [ModelSummary.of(model) for model in models]
    a, b = (summary.ops for summary in summaries)
    found = Difference(
        interface=_interface(*models),
        opsets=_pairs(*(dict(model.opset_imports) for model in models)),
        nodes=(summaries[0].nodes, summaries[1].nodes),
        ops=dict(sorted(_pairs(a, b).items(), key=lambda item: (-abs(item[1][0] - item[1][1]), item[0]))),
        weight_bytes=(summaries[0].weight_bytes, summaries[1].weight_bytes),
        file_bytes=(paths[0].stat().st_size, paths[1].stat().st_size),
        same_bytes=file_digest(paths[0]) == file_digest(paths[1]),
        text=_text(*models),
    )
    if run:
        _compare_numbers(found, models[0], models[1], seed)
    return found


def _interface(first: onnx_ir.Model, second: onnx_ir.Model) -> list[str]:
    one, other = Interface.of(first), Interface.of(second)
    return list(dict.fromkeys([*one.differences(other), *other.differences(one)][:20])) if one != other else []


def _pairs(a: dict[str, int], b: dict[str, int]) -> dict[str, tuple[int, int]]:
    ours, theirs = Counter(a), Counter(b)
    return {name: (ours[name], theirs[name]) for name in {**a, **b} if ours[name] != theirs[name]}


def _text(first: onnx_ir.Model, second: onnx_ir.Model) -> str:
    style = Style(canonical=True)
    old, new = (print_model(model, style).splitlines() for model in (first, second))
    return "\n".join(difflib.unified_diff(old, new, "first", "second", lineterm="", n=_CONTEXT_LINES))


def _compare_numbers(found: Difference, first: onnx_ir.Model, second: onnx_ir.Model, seed: int) -> None:
    verdict = Reference(first, seed=seed).check(second, _ANY)
    for check in verdict.checks:
        if check.comparison is None:
            found.numbers.append(NumberDifference(check.label, "", float("inf"), float("inf"), check.error or ""))
            continue
        for output in check.comparison.outputs:
            found.numbers.append(
                NumberDifference(check.label, output.name, output.rel_l2, output.max_abs, output.problem or "")
            )
    if not found.numbers:
        found.not_compared = verdict.reason or "nothing could be compared"
