"""``optc explain MODEL``: which rules fired, and why the others did not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import click

import optc
from optc.ir.errors import UsageError
from optc.ir.targets import suggestion
from optc.report import NearMiss, Report, RuleReport
from optc.tools.console import Bars, show, table
from optc.tools.parameters import FILE, common, plural


@click.command("explain", short_help="Show which rules fired, and why others did not.")
@click.argument("model", type=FILE)
@click.option(
    "-O", "level", type=int, default=2, show_default=True, metavar="LEVEL", help="The level whose pipeline is run."
)
@click.option("--target", default="cpu", show_default=True, help="What to optimize for; see 'optc targets'.")
@click.option("--passes", metavar="PIPELINE", help="Run this pipeline instead of the level's.")
@click.option(
    "--why", metavar="RULE", help="Show the nearest misses of rules or fused ops whose name begins like this."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@common
def command(model: Path, level: int, target: str, passes: str | None, why: str | None, as_json: bool) -> None:
    """Run the pipeline of a level on MODEL, write nothing, and say what fired and what nearly did.

    With --why, show for each place where a rule came near where it stopped, what it wanted and what it found there.
    """
    with nullcontext() if as_json else Bars() as bars:
        report = optc.compile(model, level=level, target=target, passes=passes, verify="off", progress=bars).report
    rules = report.rules if why is None else _chosen(report.rules, why)
    if as_json:
        click.echo(json.dumps(_data(report, rules), indent=2))
    elif why is None:
        _show_overview(report)
    else:
        for index, rule in enumerate(rules):
            _show_rule(rule, _misses(report, rule), first=index == 0)


def _chosen(rules: Sequence[RuleReport], text: str) -> list[RuleReport]:
    """The rules of a name, that make an op of this name, or whose name or op begins like this.

    Raises:
        UsageError: There is none.
    """
    wanted = text.lower().rpartition("::")[2]
    found = [rule for rule in rules if rule.name.startswith(wanted) or rule.makes.lower().startswith(wanted)]
    if not found:
        known = dict.fromkeys(name for rule in rules for name in (rule.name, rule.makes) if name)
        hint = suggestion(text, known, "optc explain MODEL --json names all rules that were tried")
        raise UsageError(f"no rule {text!r} was tried on this model", hint=hint)
    return found


def _misses(report: Report, rule: RuleReport) -> list[NearMiss]:
    return [miss for miss in report.near_misses if miss.rule == rule.name]


def _data(report: Report, rules: Sequence[RuleReport]) -> dict[str, object]:
    return {
        "nodes": [report.model.nodes, report.result.nodes],
        "pipeline": report.pipeline,
        "target": report.target,
        "rules": [{**asdict(rule), "near_misses": [asdict(miss) for miss in _misses(report, rule)]} for rule in rules],
        "skipped": [asdict(item) for item in report.skipped],
    }


def _show_overview(report: Report) -> None:
    show(f"nodes {report.model.nodes} -> {report.result.nodes} for {report.target}", "")
    fired = sorted((rule for rule in report.rules if rule.hits), key=lambda rule: (-rule.hits, rule.name))
    near = [(rule, _misses(report, rule)) for rule in report.rules if rule.near_misses]
    near.sort(key=lambda item: (-item[1][0].nearness, -item[1][0].size, item[0].name))
    if fired:
        rows = [(rule.name, rule.hits, _names(rule.examples[0]) if rule.examples else "") for rule in fired]
        show(table(("fired", "times", "for example at"), rows, right=("times",)), "")
    if near:
        rows = []
        for rule, misses in near:
            nearest = misses[0]
            rows.append((rule.name, rule.near_misses, f"{nearest.root}: {nearest.why}"))
        show(table(("came near", "places", "nearest"), rows, right=("places",)), "")
        show("all places of a rule: --why RULE")
    never = [rule.name for rule in report.rules if rule.makes and not rule.tried]
    if never:
        show(f"never tried, as no operator is there at which they begin: {', '.join(never)}")
    for item in report.skipped:
        show(f"skipped: {item.what}: {item.reason}")


def _show_rule(rule: RuleReport, misses: Sequence[NearMiss], first: bool) -> None:
    makes = f" (makes {rule.makes})" if rule.makes else ""
    where = f", for example at {'; '.join(map(_names, rule.examples))}" if rule.examples else ""
    fired = f"fired {plural(rule.hits, 'time')}{where}" if rule.hits else "did not fire"
    show(*([] if first else [""]), f"{rule.name}{makes}: {fired}")
    if rule.begins_at and not rule.tried:
        show(f"  never tried: it begins at {' or '.join(rule.begins_at)}, and there was none")
    elif not misses:
        show("  nowhere else did it come near" if rule.hits else "  nowhere did it come near")
    for miss in misses:
        reached = (
            f", {min(miss.matched, miss.size)} of at least {plural(miss.size, 'node')} reached" if miss.found else ""
        )
        show(f"  near {miss.root}{reached}")
        rows = [("stopped at", miss.at), ("wanted", miss.wanted), ("found", miss.found)]
        if not miss.found:
            rows = [("fits, but", miss.wanted)] if miss.at == miss.root else [("at", miss.at), ("but", miss.wanted)]
        show(*(f"    {name:10} {text}" for name, text in (*rows, ("made from", _names(miss.sources))) if text))


def _names(nodes: Sequence[str]) -> str:
    return ", ".join(nodes[:4]) + (f" and {len(nodes) - 4} more" if len(nodes) > 4 else "")
