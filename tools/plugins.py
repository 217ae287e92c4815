"""``optc plugins``: what installed packages add."""

from __future__ import annotations

import click

from optc.ir.errors import OptcError
from optc.plugins import GROUP, Found, environment, installed
from optc.tools.console import show, table
from optc.tools.parameters import common


@click.command("plugins", short_help="List the plugins that are installed.")
@common
def command() -> None:
    """List the plugins that are installed, what each adds, and what is wrong with it."""
    found = installed()
    if not found:
        show(f"no plugins are installed (none announces itself under the entry-point group {GROUP!r})")
        return
    conflict = None
    try:
        environment(found)
    except OptcError as error:
        conflict = error
    rows = [(each.name, each.package, _adds(each), "; ".join(each.errors) or "none") for each in found]
    show(table(("plugin", "package", "adds", "errors"), rows))
    if conflict is not None:
        raise conflict


def _adds(found: Found) -> str:
    if found.plugin is None:
        return "nothing: it cannot be loaded"
    plugin = found.plugin
    tables = {"pass": plugin.passes, "rule": plugin.rules, "script": plugin.scripts, "backend": plugin.backends}
    parts = [f"{kind} {name}" for kind, entries in tables.items() for name in entries]
    return ", ".join(parts + (["targets"] if plugin.targets is not None else [])) or "nothing"
