"""Putting the page together: sections of HTML, the drawings' data, style and script, in one file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib import resources

import onnx_ir

from optc.ir.targets import Target
from optc.page.charts import pareto, roofline
from optc.page.markup import Markup, items, table, text
from optc.page.picture import picture
from optc.page.work import work
from optc.report import NearMiss, PassReport, Report
from optc.units import seconds_text, size_text

_NEAR_MISSES_SHOWN, _PLACES_SHOWN = 60, 3
_RULES_IN_WORDS = 4
_STATUS = {"passed": "good", "failed": "bad", "changed": "good", "rolled back": "bad"}


def render(
    report: Report, original: onnx_ir.Model, result: onnx_ir.Model, target: Target, bindings: Mapping[str, int]
) -> str:
    """The page.

    Args:
        report: What the compile has to say.
        original: The model as it was given.
        result: The model as it became.
        target: What it is for: its peak rates are the roof of the roofline plot.
        bindings: Sizes of the symbolic dims at which work is estimated.
    """
    name = report.model.path or original.graph.name or "model"
    sections = [
        ("What was done", _in_words(report)),
        ("The graph, before and after", _graphs()),
        ("Passes", _passes(report.passes)),
        ("What nearly fired", _near_misses(report.near_misses)),
        ("Error budget", _decisions(report)),
        ("Work of the operators", roofline(work(result, bindings), target, bindings)),
        ("Verification", _verification(report)),
        ("What was left out, and why", _ledger(report)),
        ("How it was made", _circumstances(report)),
    ]
    data = {side: dataclasses.asdict(picture(model)) for side, model in (("before", original), ("after", result))}
    body = "".join(f"<section><h2>{text(title)}</h2>{content}</section>" for title, content in sections if content)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>optc: {text(name)}</title><style>{_resource('page.css')}</style></head><body><main>"
        f"<h1>{text(name)}</h1><p class='lead'>optimized by optc for {text(report.target)} "
        f"at -O{text(report.options.get('level', '?'))}</p>{_cards(report)}{body}</main>"
        f"<script type='application/json' id='graphs'>{_json(data)}</script>"
        f"<script>{_resource('page.js')}</script></body></html>\n"
    )


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _json(data: object) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _cards(report: Report) -> str:
    before, after = report.model, report.result
    latency = report.latency
    speed = f"{1 / latency.ratio.median:.2f}x" if latency.ratio is not None else "not measured"
    times = (
        f"{seconds_text(latency.before.median)} to {seconds_text(latency.after.median)}, measured"
        if latency.before is not None and latency.after is not None
        else latency.reason
    )
    check = report.verification
    error = "" if check.worst_error is None else f"{check.worst_error:.2g} relative error"
    checked = f"verification: {error or check.reason or 'against the original'}"
    cards = [
        (_change(before.nodes, after.nodes), "nodes", ""),
        (_change(size_text(before.weight_bytes), size_text(after.weight_bytes)), "weights", ""),
        (speed, f"speed: {times}", ""),
        (check.status, checked, _STATUS.get(check.status, "warn")),
    ]
    shown = (
        f"<div class='card'><b class='{kind}'>{text(big)}</b><span>{text(small)}</span></div>"
        for big, small, kind in cards
    )
    return f"<div class='cards'>{''.join(shown)}</div>"


def _change(before: object, after: object) -> str:
    return f"{before} to {after}" if before != after else str(before)


def _in_words(report: Report) -> str:
    lines = []
    for item in report.passes:
        if item.status == "rolled back":
            lines.append(Markup(f"<span class='bad'>{text(item.name)} was rolled back</span>: {text(item.reason)}"))
        elif item.changes:
            top = sorted(item.hits.items(), key=lambda hit: -hit[1])
            words = ", ".join(f"{rule} {count} times" if count > 1 else rule for rule, count in top[:_RULES_IN_WORDS])
            more = f" and {len(top) - _RULES_IN_WORDS} more rules" if len(top) > _RULES_IN_WORDS else ""
            lines.append(Markup(f"<b>{text(item.name)}</b> ({text(item.numerics)}): {text(words + more)}"))
    fused = {rule.makes: 0 for rule in report.rules if rule.makes and rule.hits}
    for rule in report.rules:
        if rule.makes in fused:
            fused[rule.makes] += rule.hits
    made = ", ".join(f"{count} x {op}" for op, count in sorted(fused.items(), key=lambda entry: -entry[1]))
    summary = f"<p>Recognised and fused: {text(made)}.</p>" if made else "<p>Nothing was fused.</p>"
    return summary + items(lines)


def _graphs() -> str:
    panes = "".join(
        f"<div class='pane' id='{side}'><h3>{title}</h3><div class='canvas' tabindex='0'></div></div>"
        for side, title in (("before", "Before"), ("after", "After: coloured by the rule that made it"))
    )
    return (
        "<div class='tools'><input type='search' id='search' placeholder='Find an operator, a node or a rule'"
        " aria-label='Find an operator, a node or a rule'><span id='count' aria-live='polite'></span></div>"
        f"<div class='legend'></div><div class='graphs'>{panes}</div>"
        "<div id='about' aria-live='polite'><p>Choose a node to see what it was made from, or what it became.</p></div>"
    )


def _passes(passes: Sequence[PassReport]) -> str:
    longest = max((item.seconds for item in passes), default=0) or 1.0
    rows = []
    for item in passes:
        hits = "".join(
            f"<li>{text(rule)}: {count}</li>" for rule, count in sorted(item.hits.items(), key=lambda h: -h[1])
        )
        detail = f"<details><summary>{len(item.hits)} rules</summary><ul>{hits}</ul></details>" if hits else ""
        status = f"<span class='{_STATUS.get(item.status, '')}'>{text(item.status)}</span>"
        bar = f"<div class='bar' style='width:{100 * item.seconds / longest:.1f}%'></div>"
        nodes = f"{item.nodes:+d}" if item.nodes else ""
        rows.append(
            (item.text, seconds_text(item.seconds), Markup(bar), item.runs, nodes, Markup(status), Markup(detail))
        )
    heads = ("pass", "time", "share of the longest", "runs", "nodes", "status", "what fired")
    return table(heads, rows, ("time", "runs", "nodes"))


def _near_misses(misses: Sequence[NearMiss]) -> str:
    if not misses:
        return "<p>No rule came near without firing.</p>"
    groups: dict[tuple[str, str], list[str]] = {}
    for miss in misses:
        groups.setdefault((miss.rule, miss.why), []).append(miss.root)
    rows = []
    for (rule, why), places in list(groups.items())[:_NEAR_MISSES_SHOWN]:
        more = f" and {len(places) - _PLACES_SHOWN} more" if len(places) > _PLACES_SHOWN else ""
        rows.append((rule, why, len(places), ", ".join(places[:_PLACES_SHOWN]) + more))
    left = len(groups) - len(rows)
    rest = f"<p>and {left} more kinds; the JSON report has them all</p>" if left > 0 else ""
    return table(("rule", "because", "places", "near"), rows, ("places",)) + rest


def _decisions(report: Report) -> str:
    if not report.decisions:
        return ""
    budget = report.options.get("max_error")
    rows = [
        (
            item.what,
            ", ".join(item.where[:3]) + (f" and {len(item.where) - 3} more" if len(item.where) > 3 else ""),
            "kept" if item.kept else "refused",
            "" if item.error is None else f"{item.error:.2g}",
            "" if item.speedup is None else f"{item.speedup:.2f}x",
            "" if not item.bytes_saved else size_text(item.bytes_saved),
            item.reason,
        )
        for item in report.decisions
    ]
    heads = ("technique", "where", "verdict", "error", "speed", "saves", "because")
    budget_text = f"<p>The budget is a relative L2 error of {text(budget)}; every figure is measured.</p>"
    return budget_text + table(heads, rows, ("error", "speed", "saves")) + pareto(report.attempts, budget)


def _verification(report: Report) -> str:
    check = report.verification
    rows = [
        (
            ", ".join(f"{name}={size}" for name, size in item.dims.items()) or "fixed dims",
            item.inputs,
            item.worst_output or "",
            "" if item.worst_error is None else f"{item.worst_error:.2g}",
            Markup(f"<span class='{'good' if item.passed else 'bad'}'>{'passed' if item.passed else 'failed'}</span>"),
            item.reason,
        )
        for item in check.checked
    ]
    heads = ("sizes", "inputs", "worst output", "error", "verdict", "because")
    return f"<p>{text(check.text())}</p>" + (table(heads, rows, ("error",)) if rows else "")


def _ledger(report: Report) -> str:
    rows = [(item.what, item.reason) for item in (*report.skipped, *report.verification.skipped)]
    rows += [("note", note) for note in report.notes]
    return table(("what", "why"), rows) if rows else "<p>Nothing was left out.</p>"


def _circumstances(report: Report) -> str:
    facts = [
        ("pipeline", report.pipeline),
        ("backend", report.backend),
        ("time", seconds_text(report.seconds)),
        ("peak memory", size_text(report.peak_memory) if report.peak_memory else "unknown"),
        ("latency", report.latency.text()),
        ("files", ", ".join(f"{file.path} ({size_text(file.bytes)})" for file in report.artifact) or "none"),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
    ]
    return table(("", ""), facts)
