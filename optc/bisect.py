"""Finding the one rewrite that makes a result wrong.

Every application of a rewrite is numbered, and a compile can be stopped after any of them. Between the original, which
is right, and the result, which is wrong, there is a first application after which the check fails; a binary search
finds it in about log2(n) partial compiles.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir

from optc.backends import ort_kernels
from optc.backends.ort_eval import Evaluator
from optc.callables import find_callable
from optc.environment import Environment
from optc.equivalence import Reference
from optc.ir.errors import OptcError, UsageError
from optc.ir.functions import expanded, has_fused_ops
from optc.ir.journal import Application, Journal
from optc.ir.model import ModelSource, load
from optc.ir.printer import print_model
from optc.ir.saving import save
from optc.ir.targets import find_target
from optc.measure import Measure
from optc.numeric import Tolerance
from optc.options import Options
from optc.passes.base import Numerics
from optc.passes.manager import PassManager, skip_passes
from optc.plugins import environment as default_environment
from optc.progress import Progress, Silent
from optc.verification import Verifier

#: Says of a model (with the widest numerics class of what was done to it) why it is wrong; None if it is right.
Judge = Callable[[onnx_ir.Model, Numerics], str | None]
_CONTEXT_LINES = 2


@dataclass(frozen=True)
class Culprit:
    """The first application after which the check fails.

    Attributes:
        application: Which it is.
        total: How many applications the whole compile makes.
        reason: What the check says of the model with it.
        change: The model's text before and after it, as a unified diff.
    """

    application: Application
    total: int
    reason: str
    change: str


@dataclass(frozen=True)
class _Prefix:
    """A compile that was stopped after some applications; ``problem`` is why it cannot be judged any further."""

    model: onnx_ir.Model
    applications: list[Application]
    numerics: Numerics
    problem: str | None


def bisect(
    model: ModelSource,
    *,
    check: str | Callable[[str], Any] | None = None,
    tolerance: float | None = None,
    environment: Environment | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Culprit | None:
    """Find the rewrite that makes the result of a compile wrong; None if the result is right.

    Args:
        model: As for :func:`optc.compile`.
        check: The user's check, a callable or ``module:function``. It is given the path of a candidate as an ONNX file
            and says that it is wrong by returning False or a text, or by raising. By default a candidate is compared
            with the original as a compile does it.
        tolerance: With the default check: how large the relative L2 error of an output may be.
        environment: Passes and targets to use; those installed by default.
        progress: Is told how far the work is.
        options: See :class:`optc.options.Options`.

    Raises:
        OptcError: The model or an option is no good, or the original itself does not pass the check.
    """
    replay = _Replay(load(model), Options.of(**options), environment or default_environment())
    judge = _user_judge(find_callable(check, "check")) if check is not None else replay.judge(tolerance)
    return _search(replay, judge, progress or Silent())


class _Replay:
    """Runs the beginning of one pipeline on one model, as often as asked."""

    def __init__(self, original: onnx_ir.Model, options: Options, environment: Environment) -> None:
        self.original, self.options = original, options
        self._target = find_target(options.target, environment.targets)
        self._pipeline = skip_passes(environment.pipeline(options.level, options.passes), list(options.skip))
        self._measure = Measure(original, self._target, options)

    def prefix(self, limit: int | None) -> _Prefix:
        """The model after the first ``limit`` applications."""
        journal = Journal(limit)
        services = {
            "evaluator": Evaluator(),
            "kernels": ort_kernels,
            "measure": self._measure,
            "progress": Silent(),
        }
        manager = PassManager(self._target, services, strict=True, journal=journal)
        model = self.original.clone()
        try:
            result = manager.run(model, self._pipeline)
        except UsageError:
            raise
        except Exception as error:  # what a pass raises is a finding here, whatever it is
            journal.end(" ".join(getattr(error, "__notes__", ())).strip("()") or journal.step)
            return _Prefix(model, journal.applications, Numerics.EXACT, f"{type(error).__name__}: {error}")
        broken = [f"{r.name}: {r.reason}" for r in result.records if r.status == "rolled back"]
        done = expanded(result.model) if has_fused_ops(result.model) else result.model
        return _Prefix(done, journal.applications, result.numerics, broken[0] if broken else None)

    def judge(self, tolerance: float | None) -> Judge:
        """The check of a compile, or one against a tolerance of the user's."""
        if tolerance is None:
            verifier = Verifier(self.original, self.options, self._measure)

            def verify(model: onnx_ir.Model, numerics: Numerics) -> str | None:
                found = verifier.verify(model, numerics)
                if found.status == "skipped":
                    raise UsageError(
                        f"the result cannot be checked: {found.reason}", hint="give a check of your own with --check"
                    )
                return found.reason if found.status == "failed" else None

            return verify
        limits = Tolerance(rel_l2=tolerance, element=float("inf"), zero=tolerance, integer_share=0.0)
        reference = Reference(self.original, seed=self.options.seed, fixed=self.options.shapes)

        def compare(model: onnx_ir.Model, numerics: Numerics) -> str | None:
            verdict = reference.check(model, limits)
            if verdict.state == "unverified":
                raise UsageError(f"the result cannot be checked: {verdict.reason}", hint="give a check with --check")
            return verdict.reason if verdict.state == "failed" else None

        return compare


def _search(replay: _Replay, judge: Judge, progress: Progress) -> Culprit | None:
    stage = "bisect"
    whole = replay.prefix(None)
    total = len(whole.applications)
    progress.start(stage, total.bit_length() + 2)

    def reason_against(prefix: _Prefix, done: int) -> str | None:
        progress.advance(stage, 1, f"after {done} of {total}")
        return prefix.problem or judge(prefix.model, prefix.numerics)

    reason = reason_against(whole, total)
    if reason is None:
        progress.finish(stage)
        return None
    first = replay.prefix(0)
    if (found := reason_against(first, 0)) is not None:
        raise UsageError(f"the check fails on the original already: {found}")
    good, bad = 0, total
    before, after = first, whole
    while bad - good > 1:
        middle = (good + bad) // 2
        prefix = replay.prefix(middle)
        found = reason_against(prefix, middle)
        if found is None:
            good, before = middle, prefix
        else:
            bad, after, reason = middle, prefix, found
    progress.finish(stage)
    return Culprit(whole.applications[bad - 1], total, reason, _change(before.model, after.model))


def _user_judge(check: Callable[[str], Any]) -> Judge:
    """A user's function as a judge; it sees files, so it may use whatever it likes."""

    def judge(model: onnx_ir.Model, numerics: Numerics) -> str | None:
        with tempfile.TemporaryDirectory(prefix="optc-bisect-") as folder:
            path = Path(folder) / "candidate.onnx"
            save(model, path)
            try:
                answer = check(str(path))
            except OptcError:
                raise
            except Exception as error:  # an assertion, most often; any other failure speaks against the candidate too
                return f"{type(error).__name__}: {error}"
        if isinstance(answer, str):
            return answer or None
        return "the check says that it is wrong" if answer is False else None

    return judge


def _change(before: onnx_ir.Model, after: onnx_ir.Model) -> str:
    old, new = (print_model(model).splitlines() for model in (before, after))
    return "\n".join(difflib.unified_diff(old, new, "before", "after", lineterm="", n=_CONTEXT_LINES))
