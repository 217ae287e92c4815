"""Compiling the beginning of a pipeline, and judging what comes of it: what a search for a fault is made of."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir

from optc.backends.base import CompilingBackend
from optc.environment import Environment
from optc.equivalence import Reference
from optc.ir.errors import OptcError, UsageError
from optc.ir.functions import runnable
from optc.ir.journal import Application, Journal
from optc.ir.saving import save
from optc.numeric import Tolerance
from optc.options import Options
from optc.passes.base import Numerics
from optc.progress import Silent
from optc.rewriting import Plan, Rewriting
from optc.verification import Verifier

#: Says of a model (with the widest numerics class of what was done to it) why it is wrong; None if it is right.
Judge = Callable[[onnx_ir.Model, Numerics], str | None]


@dataclass(frozen=True)
class Prefix:
    """A compile that was stopped after some applications; ``problem`` is why it cannot be judged any further."""

    model: onnx_ir.Model
    applications: list[Application]
    numerics: Numerics
    problem: str | None


class Replay:
    """Runs the beginning of one pipeline on one model, as often as asked."""

    def __init__(self, original: onnx_ir.Model, options: Options, environment: Environment) -> None:
        self._rewriting = Rewriting(original, Plan.of(options, environment), options, Silent())

    def prefix(self, limit: int | None) -> Prefix:
        """The model after the first ``limit`` applications."""
        journal = Journal(limit)
        model = self._rewriting.original.clone()
        try:
            result = self._rewriting.run(journal, model=model, strict=True)
        except UsageError:
            raise
        except Exception as error:  # what a pass raises is a finding here, whatever it is
            journal.end(" ".join(getattr(error, "__notes__", ())).strip("()") or journal.step)
            return Prefix(model, journal.applications, Numerics.EXACT, f"{type(error).__name__}: {error}")
        broken = [f"{r.name}: {r.reason}" for r in result.records if r.status == "rolled back"]
        return Prefix(runnable(result.model), journal.applications, result.numerics, broken[0] if broken else None)

    def judge(self, tolerance: float | None) -> Judge:
        """The check of a compile, or one against a tolerance of the user's."""
        original, options = self._rewriting.original, self._rewriting.options
        if tolerance is None:
            plain = isinstance(self._rewriting.plan.backend, CompilingBackend)
            verifier = Verifier(original, options, self._rewriting.measure, plain)

            def verify(model: onnx_ir.Model, numerics: Numerics) -> str | None:
                found = verifier.verify(model, numerics)
                if found.status == "skipped":
                    raise UsageError(
                        f"the result cannot be checked: {found.reason}", hint="give a check of your own with --check"
                    )
                return found.reason if found.status == "failed" else None

            return verify
        limits = Tolerance(rel_l2=tolerance, element=float("inf"), zero=tolerance, integer_share=0.0)
        reference = Reference(original, seed=options.seed, fixed=options.shapes)

        def compare(model: onnx_ir.Model, numerics: Numerics) -> str | None:
            verdict = reference.check(model, limits)
            if verdict.state == "unverified":
                raise UsageError(f"the result cannot be checked: {verdict.reason}", hint="give a check with --check")
            return verdict.reason if verdict.state == "failed" else None

        return compare


def user_judge(check: Callable[[str], Any]) -> Judge:
    """A user's function as a judge; it sees files, so it may use whatever it likes."""

    def judge(model: onnx_ir.Model, numerics: Numerics) -> str | None:
        with tempfile.TemporaryDirectory(prefix="optc-check-") as folder:
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
