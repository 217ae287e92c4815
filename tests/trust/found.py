"""What to do with a failure: shrink it, name the rewrite that makes it, and write a test case of it."""

from __future__ import annotations

import contextlib
import random
import re
from pathlib import Path

import onnx
import onnx_ir

from optc.bisect import bisect
from optc.environment import Environment
from optc.ir.errors import OptcError
from optc.ir.model import load
from optc.ir.printer import Style, print_model
from optc.ir.saving import to_proto
from optc.reduce import reduce

from ..golden.case import Case, read_case, write_case
from ..passes.properties.judge import Subject, draw_feeds
from .attack import Outcome, attempt
from .children import Death, attempted

_STYLE = Style(digests=False, elements=1 << 20)
#: Sets of inputs that a candidate is tried on: other inputs of the model draw other numbers for all.
_SETS = 8


def failure(case: Case, environment: Environment) -> str | None:
    """What is wrong with a case now; None if nothing is."""
    return attempt(case.model(), int(case.headers["seed"]), _stages(case.headers["pipeline"]), environment, _SETS)[0]


def _stages(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";"))


def write_found(model: onnx.ModelProto, outcome: Outcome, folder: Path, environment: Environment) -> Path:
    """Write a failure as a case, and return its path; as an ONNX file where its text would not show it any more."""
    stages = tuple(text for text in outcome.pipelines if text)

    def reason(candidate: onnx.ModelProto) -> str | None:
        fate = attempted(lambda: attempt(candidate, outcome.seed, stages, environment, _SETS)[0])
        return str(fate) if isinstance(fate, Death) else fate

    folder.mkdir(parents=True, exist_ok=True)
    small = load(model)
    with contextlib.suppress(OptcError):  # it is not wrong with these inputs
        small = reduce(model, check=lambda path: reason(onnx.load(path))).model
    name = _culprit(to_proto(small), outcome, stages, environment)
    path = _free(folder, name)
    case = Case(
        path.with_suffix(".txt"),
        f"Found with seed {outcome.seed}: {' '.join(outcome.reason.split())[:160]}",
        {"pipeline": "; ".join(stages), "seed": str(outcome.seed)},
        {"input": print_model(small, _STYLE)},
    )
    write_case(case, {})
    try:
        if attempted(lambda: failure(read_case(case.path), environment)) is not None:
            return case.path
    except Exception:  # not all that a model holds can be written as text
        pass
    case.path.unlink()
    onnx.save(model, path.with_suffix(".onnx"))
    return path.with_suffix(".onnx")


def _culprit(model: onnx.ModelProto, outcome: Outcome, stages: tuple[str, ...], environment: Environment) -> str:
    """The rule to blame, or else the pass, as far as that can be told."""

    def right(path: str) -> str | None:
        fate = attempted(lambda: _wrong(model, onnx_ir.load(path), outcome.seed))
        return str(fate) if isinstance(fate, Death) else fate

    try:
        found = bisect(model, check=right, passes=",".join(stages), environment=environment)
    except Exception:
        found = None
    name = (found.application.rule or found.application.step) if found is not None else stages[0].split(",")[0]
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "unknown"


def _wrong(original: onnx.ModelProto, candidate: onnx_ir.Model, seed: int) -> str | None:
    try:
        Subject(original, draw_feeds(original, random.Random(seed), {}, _SETS)).check(candidate, 1e-5)
    except AssertionError as error:
        return str(error)
    return None


def _free(folder: Path, name: str) -> Path:
    """A path that is not taken."""
    number, path = 1, folder / name
    while path.with_suffix(".txt").exists() or path.with_suffix(".onnx").exists():
        number += 1
        path = folder / f"{name}-{number}"
    return path
