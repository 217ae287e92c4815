"""``optc targets``: what a model can be optimized for."""

from __future__ import annotations

import click

from optc.ir.targets import Target, find_target
from optc.plugins import environment
from optc.tools.console import show, table
from optc.tools.parameters import common
from optc.units import size_text


@click.command("targets", short_help="List the targets, or describe one.")
@click.argument("name", required=False)
@common
def command(name: str | None) -> None:
    """List the targets that --target knows, or describe one."""
    known = environment()
    if name is not None:
        show(table(("", ""), _facts(find_target(name, known.targets))))
        return
    rows = [
        (target.name, target.kind, target.arch or "", known.target_owners.get(target.name, "optc"), target.summary)
        for target in known.targets.values()
    ]
    show(table(("target", "kind", "arch", "from", "what it is"), rows))


def _facts(target: Target) -> list[tuple[str, str]]:
    sizes = {"shared memory per block": target.shared_memory, "L2 cache": target.l2_cache}
    facts = [
        ("target", target.name),
        ("what it is", target.summary),
        ("provider", target.provider),
        ("arch", target.arch or ""),
        ("multiprocessors", str(target.sm_count or "")),
        *((name, size_text(size)) for name, size in sizes.items() if size),
        ("bandwidth", f"{target.bandwidth / 1e9:.0f} GB/s" if target.bandwidth else ""),
        ("peak", ", ".join(f"{kind} {rate / 1e12:g} T/s" for kind, rate in target.peak.items())),
        ("capabilities", ", ".join(sorted(target.capabilities))),
    ]
    return [(name, text) for name, text in facts if text]
