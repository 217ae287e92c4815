"""Finding the one rewrite that makes a result wrong.

Every application of a rewrite is numbered, and a compile can be stopped after any of them. Between the original, which
is right, and the result, which is wrong, there is a first application after which the check fails; a binary search
finds it in about log2(n) partial compiles.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir

from optc.callables import find_callable
from optc.environment import Environment
from optc.ir.errors import UsageError
from optc.ir.journal import Application
from optc.ir.model import ModelSource, load
from optc.ir.printer import print_model
from optc.options import Options
from optc.plugins import environment as default_environment
from optc.progress import Progress, Silent
from optc.replay import Judge, Prefix, Replay, user_judge

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
    replay = Replay(load(model), Options.of(**options), environment or default_environment())
    judge = user_judge(find_callable(check, "check")) if check is not None else replay.judge(tolerance)
    return _search(replay, judge, progress or Silent())


def _search(replay: Replay, judge: Judge, progress: Progress) -> Culprit | None:
    stage = "bisect"
    whole = replay.prefix(None)
    total = len(whole.applications)
    progress.start(stage, total.bit_length() + 2)

    def reason_against(prefix: Prefix, done: int) -> str | None:
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


def _change(before: onnx_ir.Model, after: onnx_ir.Model) -> str:
    old, new = (print_model(model).splitlines() for model in (before, after))
    return "\n".join(difflib.unified_diff(old, new, "before", "after", lineterm="", n=_CONTEXT_LINES))
