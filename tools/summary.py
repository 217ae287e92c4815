"""The summary that a compile ends with."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from optc.ir.errors import printable
from optc.passes.base import Attempt
from optc.report import PassReport, Report
from optc.tools.console import show, table
from optc.tools.parameters import plural
from optc.units import seconds_text, size_text

#: Rules shown per pass, most frequent first.
_RULES_SHOWN = 4
_STATUS_STYLE = {"rolled back": "red", "skipped": "yellow", "changed": "green"}


def show_summary(report: Report, *, all_passes: bool = False) -> None:
    """Print a report.

    Args:
        report: The report.
        all_passes: Show the passes that changed nothing as well, and all times.
    """
    before, after = report.model, report.result
    rows: list[tuple[object, ...]] = [
        ("nodes", _change(before.nodes, after.nodes, str)),
        ("weights", _change(before.weight_bytes, after.weight_bytes, size_text)),
        ("verified", _verified(report)),
        ("latency", report.latency.text()),
        ("took", f"{seconds_text(report.seconds)}{_memory(report.peak_memory)}"),
    ]
    show(table(("", ""), rows), "")
    passes = [item for item in report.passes if all_passes or item.status != "unchanged"]
    if passes:
        show(_passes(passes, all_passes), "")
    if report.attempts:
        show(_attempts(report.attempts), "")
    for decision in report.decisions:
        verdict = "kept" if decision.kept else "refused"
        places = f" ({plural(len(decision.where), 'place')})" if decision.where else ""
        show(f"{verdict}: {decision.what}{places}: {decision.reason}")
    for item in report.skipped:
        show(f"skipped: {item.what}: {item.reason}")
    for skipped in report.verification.skipped:
        show(f"not verified: {skipped.what}: {skipped.reason}")
    for note in report.notes:
        show(f"note: {note}")
    show(*report.written())


def _attempts(attempts: Sequence[Attempt]) -> object:
    """What was tried as a whole model, the smallest error first."""
    rows = []
    for item in sorted(attempts, key=lambda item: item.error):
        layers = ", ".join(f"{label} {count}" for label, count in item.options.items())
        speed = f"{item.speedup:.2f}x" if item.speedup else ""
        seconds = seconds_text(item.seconds) if item.seconds else ""
        verdict = Text("kept", "green") if item.kept else Text(printable(item.reason), "yellow")
        rows.append((layers, f"{item.error:.3g}", size_text(item.bytes), seconds, speed, verdict))
    heads = ("tried (layers)", "error", "weights", "layers' time", "speed", "")
    return table(heads, rows, right=heads[1:5])


def _change(before: int, after: int, text: object) -> str:
    share = f" ({(after - before) / before:+.0%})" if before and after != before else ""
    return f"{text(before)} -> {text(after)}{share}"  # type: ignore[operator]


def _verified(report: Report) -> Text:
    style = {"passed": "green", "failed": "red"}.get(report.verification.status, "yellow")
    return Text(printable(report.verification.text()), style)


def _memory(peak: int | None) -> str:
    return f", peak memory {size_text(peak)}" if peak else ""


def _passes(passes: Sequence[PassReport], all_passes: bool) -> object:
    total = sum(item.seconds for item in passes) or 1.0
    rows = []
    for item in passes:
        hits = sorted(item.hits.items(), key=lambda hit: (-hit[1], hit[0]))
        shown = ", ".join(f"{rule} {count}" for rule, count in hits[:_RULES_SHOWN])
        more = f", {len(hits) - _RULES_SHOWN} more rules" if len(hits) > _RULES_SHOWN else ""
        took = seconds_text(item.seconds) + (f" ({item.seconds / total:.0%})" if all_passes else "")
        status = Text(item.status, _STATUS_STYLE.get(item.status, ""))
        rows.append((item.text, took, f"{item.nodes:+d}" if item.nodes else "", status, shown + more))
    return table(("pass", "time", "nodes", "status", "hits"), rows, right=("time", "nodes"))
