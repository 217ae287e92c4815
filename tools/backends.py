"""``optc backends``: what emits and runs artifacts, and why one cannot be used here."""

from __future__ import annotations

import click

from optc.plugins import environment
from optc.tools.console import show, table
from optc.tools.parameters import common


@click.command("backends", short_help="List the backends, and why one cannot be used here.")
@common
def command() -> None:
    """List the backends that --backend knows, whether each can be used here, and if not, why."""
    known = environment().backends
    rows = [
        (name, "ready" if probe.ready else "no", known.owner(name), probe.reason, probe.hint or "")
        for name, probe in known.probe().items()
    ]
    show(table(("backend", "usable", "from", "why", "hint"), rows))
