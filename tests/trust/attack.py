"""One attempt at the optimizer: a model, pipelines, and whether what comes out is right."""

from __future__ import annotations

import contextlib
import functools
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import onnx
from onnx import numpy_helper

from optc.backends.ort import Session
from optc.environment import Environment
from optc.ir.errors import OptcError
from optc.ir.model import load
from optc.passes.base import Numerics
from optc.passes.clean import rules_shapes, simplify
from optc.passes.fusion.fuse import fusions
from optc.passes.levels import builtin_levels
from optc.passes.pipeline import Pipeline, leaves, parse_pipeline
from optc.randomness import random_outputs

from ..golden.case import CASES, read_case
from ..passes.properties.judge import Subject, draw_feeds, judge
from ..passes.properties.mutants import all_nodes, mutate
from .graphs import graph

#: Models of others, where a folder of them lies beside this repository.
EXAMS = Path(__file__).resolve().parents[3] / "shared" / "exams" / "models"
_LARGEST_EXAM = 200_000
#: Lossy passes measure, which takes seconds; they have tests of their own.
_LAST = Numerics.APPROXIMATE


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt.

    Attributes:
        seed: Which it was.
        verdict: "right", "wrong" or "left out", where there was nothing to judge.
        reason: Why it is wrong or was left out.
        pipelines: The pipelines that it went through; where it is wrong, those with which it is wrong: one alone, or
            several one after another.
        ops: Nodes of the model by operator.
        hits: Applications of rules.
    """

    seed: int
    verdict: str
    reason: str = ""
    pipelines: tuple[str, ...] = ()
    ops: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)


class Attack:
    """Attempts by seed.

    Args:
        environment: The passes.
    """

    name: ClassVar[str]

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self._names = [
            entry.name for entry in environment.passes if entry.owner == "optc" and entry.load().numerics < _LAST
        ]
        second, third = (environment.pipeline(level, None) for level in (2, 3))
        tail = tuple(item for item in third[len(second) :] if _exact_class(item))
        #: What every model goes through: -O2, and then what -O3 adds to it that is not lossy.
        self.levels = (builtin_levels()[2].text, _text(tail))

    def model(self, seed: int) -> onnx.ModelProto:
        """The model of a seed."""
        raise NotImplementedError

    def pipelines(self, seed: int) -> tuple[str, ...]:
        """What the model of a seed goes through besides the levels: nothing, or one pipeline."""
        rng = random.Random(f"pipeline {seed}")
        kind = rng.random()
        if kind < 0.5:
            return ()
        if kind < 0.65:
            return (builtin_levels()[1].text,)
        count = 1 if kind < 0.8 else 2 if kind < 0.9 else rng.randrange(3, 8)
        return (",".join(rng.choice(self._names) for _ in range(count)),)

    def original(self, seed: int) -> None:
        """Run the model as it is, and open it as in production, where the runtime's optimizer sees it."""
        model = self.model(seed)
        Subject(model, draw_feeds(model, random.Random(seed), {}))
        with contextlib.suppress(OptcError):
            Session(model, threads=1)

    def __call__(self, seed: int) -> Outcome:
        model = self.model(seed)
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:
            return Outcome(seed, "left out", f"the checker: {error}")
        if not all(value.type.HasField("tensor_type") for value in model.graph.input):
            return Outcome(seed, "left out", "an input is no tensor")
        try:
            if random_outputs(load(model)):
                return Outcome(seed, "left out", "it draws random numbers")
        except OptcError as error:
            return Outcome(seed, "left out", f"the loader: {error}")
        ops = Counter(node.op_type for node in all_nodes(model.graph))
        hits: Counter[str] = Counter()
        runs = 0
        for stages in (self.levels, *((text,) for text in self.pipelines(seed))):
            reason, hit, runs = attempt(model, seed, stages, self.environment)
            hits.update(hit)
            if reason is not None:
                return Outcome(seed, "wrong", reason, stages, ops, hits)
            if not runs:
                return Outcome(seed, "left out", "the runtime does not take it", stages)
        return Outcome(seed, "right", ops=ops, hits=hits)


def attempt(
    model: onnx.ModelProto, seed: int, stages: tuple[str, ...], environment: Environment, count: int = 3
) -> tuple[str | None, dict[str, int], int]:
    """Put a model through pipelines, one after another, on ``count`` sets of inputs that the seed decides.

    Returns:
        What is wrong, or None; how often each rule fired; on how many inputs it was compared.
    """
    pipelines = [parse_pipeline(text, environment.passes) for text in stages if text]
    exact = all(item.numerics == Numerics.EXACT for pipeline in pipelines for item in leaves(pipeline))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.raw_data}
    feeds = draw_feeds(model, random.Random(seed), constants, count)
    try:
        verdict = judge(model, feeds, *pipelines, tolerance=0.0 if exact else 1e-5)
    except AssertionError as error:
        return str(error).split("\n")[0], {}, 0
    except OptcError as error:
        return f"{type(error).__name__}: {error}", {}, 0
    except Exception as error:  # what a pass raises is a finding, whatever it is
        return f"{type(error).__name__}: {error}", {}, 0
    return None, verdict.hits, verdict.runs


def _exact_class(item: object) -> bool:
    return all(leaf.numerics < _LAST for leaf in leaves((item,)))  # type: ignore[arg-type]


def _text(pipeline: Pipeline) -> str:
    return ",".join(item.name for item in leaves(pipeline))


class Graphs(Attack):
    """random graphs"""

    name = "graphs"

    def model(self, seed: int) -> onnx.ModelProto:
        return graph(seed, 12, operators=True)


class Mutants(Attack):
    """mutants of golden cases, and of the exam models where there are any"""

    name = "mutants"

    def model(self, seed: int) -> onnx.ModelProto:
        rng = random.Random(f"mutant {seed}")
        originals = _originals()
        mutant, _ = mutate(rng.choice(originals), rng, most=4)
        return _with_outputs(mutant)


def _with_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shapes of its outputs, which mutations make untrue, as shape inference finds them."""
    try:
        known = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:
        return model
    for value, inferred in zip(model.graph.output, known.graph.output, strict=True):
        value.CopyFrom(inferred)
    return model


@functools.cache
def _originals() -> list[onnx.ModelProto]:
    """Golden cases, and as many models of others as there are."""
    found = [read_case(path).model() for path in sorted(CASES.glob("*.txt"))]
    for path in sorted(EXAMS.rglob("*.onnx")):
        if path.stat().st_size <= _LARGEST_EXAM:
            try:
                model = onnx.load(path)
                onnx.checker.check_model(model)
            except Exception:
                continue
            found.append(model)
    return found


#: By the name of their options.
ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in (Graphs, Mutants)}


def known_rules() -> set[str]:
    """The names of all rules of the clean-up and of the fusions."""
    return {*fusions(), *simplify.RULES, *(rule.name for rule in rules_shapes.RULES)}
