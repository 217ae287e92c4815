"""The tables of docs/fusion.md are those of the registries; ``--update-golden`` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

from optc.passes.emit.claims import CLAIMS
from optc.passes.fusion.fuse import PHASES

DOCUMENT = Path(__file__).parents[1] / "docs" / "fusion.md"
_PROVIDERS = {"CPU": "CPUExecutionProvider", "CUDA": "CUDAExecutionProvider"}


def _rules() -> list[str]:
    rows = ["| rule | makes | what it finds |", "|---|---|---|"]
    for rule in (rule for phase in PHASES for rule in phase):
        what = getattr(rule, "doc", "").strip().splitlines()[0].replace("|", "\\|")
        rows.append(f"| `{rule.name}` | {getattr(rule, 'op', '')} | {what} |")
    return rows


def _operators(op: str, provider: str) -> str:
    names = []
    for claim in CLAIMS[op]:
        only_on = getattr(claim, "only_on", frozenset())
        if provider in getattr(claim, "slow_on", ()) or (only_on and provider not in only_on):
            continue
        name = getattr(claim, "name", None) or (f"{claim.domain}::{claim.op}" if claim.domain else claim.op)
        since = getattr(claim, "since", 1)
        names.append(f"`{name}`" + (f" (opset {since})" if since > 1 else ""))
    return " or ".join([*dict.fromkeys(names)]) or "its parts"


def _ops() -> list[str]:
    rows = [f"| fused op | {' | '.join(f'on {name}' for name in _PROVIDERS)} |", "|---|---|---|"]
    for op in CLAIMS:
        rows.append(f"| {op} | {' | '.join(_operators(op, provider) for provider in _PROVIDERS.values())} |")
    return rows


def test_tables_are_those_of_the_registries(update_golden: bool) -> None:
    text = stored = DOCUMENT.read_text("utf-8")
    for mark, rows in (("rules", _rules()), ("ops", _ops())):
        table = "\n".join(rows)
        text, count = re.subn(
            rf"<!-- {mark} -->\n.*?<!-- end -->",
            lambda _, mark=mark, table=table: f"<!-- {mark} -->\n{table}\n<!-- end -->",
            text,
            flags=re.S,
        )
        assert count == 1
    if update_golden:
        DOCUMENT.write_text(text, "utf-8")
    else:
        assert stored == text, "run pytest tests/test_fusion_docs.py --update-golden and look at the difference"


def test_every_fused_op_may_become_something() -> None:
    """An op that nothing claims would be taken apart on every target: then its rule only costs time."""
    made = {op for phase in PHASES for rule in phase if (op := getattr(rule, "op", ""))}
    assert made <= set(CLAIMS)
