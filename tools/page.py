"""The report's page, for the commands that write it."""

from __future__ import annotations

from pathlib import Path

from optc import Result
from optc.inputs import usual_bindings
from optc.ir.model import load
from optc.ir.sizes import allowed
from optc.ir.targets import find_target
from optc.page import render
from optc.plugins import environment

#: Endings of files that are pages.
PAGES = frozenset({".html", ".htm"})


def page_of(result: Result, model: Path, target: str) -> str:
    """The page on a compile of the model in a file."""
    original = load(model)
    bindings = allowed(usual_bindings(original, {}), result.report.options.get("shapes", {}))
    return render(result.report, original, result.model, find_target(target, environment().targets), bindings)
