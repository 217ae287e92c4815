"""Plugins: what installed packages add to optc.

A package announces one :class:`Plugin` object under the entry-point group ``optc.plugins``. Everything in it is named
by import strings and imported when it is first used; what is broken is listed with its error and breaks nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from optc.environment import Environment
from optc.ir.errors import OptcError, UsageError
from optc.ir.targets import parse_targets
from optc.passes.registry import pass_class

GROUP = "optc.plugins"
#: What turns the objects of a plugin's table into passes.
_ADAPTERS = {"passes": "", "rules": "optc.passes.rule_pass:rule_pass", "scripts": "optc.passes.script_pass:script_pass"}


@dataclass(frozen=True)
class Plugin:
    """What a package adds. All names live in one space per kind, shared with optc's own and other plugins'.

    Attributes:
        name: The plugin's name, for messages.
        passes: Pass name -> "module:Class", a subclass of :class:`optc.passes.base.Pass`.
        rules: Pass name -> "module:rule", a rule or a list of rules; each entry becomes a pass that applies them.
        scripts: Pass name -> "module:function", a GraphSurgeon script ``f(graph) -> graph or None``; each becomes a
            pass too.
        targets: A TOML file of targets, as optc's own targets.toml.
        backends: Backend name -> "module:attribute", a backend or a class that makes one.
        place: Where passes join the levels: pass name -> "after:NAME" or "before:NAME" of another pass. A pass
            without a place runs only when ``--passes`` names it.
    """

    name: str
    passes: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)
    targets: str | Path | Traversable | None = None
    backends: Mapping[str, str] = field(default_factory=dict)
    place: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Found:
    """A plugin that is installed.

    Attributes:
        name: Its entry point's name.
        package: The distribution that brings it, with its version.
        plugin: The plugin; None if it could not be loaded.
        errors: What is wrong with it; empty if all of it works as far as it was loaded.
    """

    name: str
    package: str
    plugin: Plugin | None = None
    errors: list[str] = field(default_factory=list)


def installed() -> list[Found]:
    """The plugins that are installed, by name; nothing of them is imported but their entry points' modules."""
    entries = sorted(metadata.entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))
    return [_load(entry) for entry in dict.fromkeys(entries)]


def environment(plugins: Iterable[Found] | None = None) -> Environment:
    """Optc's own passes, targets and backends, with those of plugins.

    Args:
        plugins: The plugins to add, those installed by default. What is wrong with one is added to its ``errors``.

    Raises:
        UsageError: Two plugins, or a plugin and optc, bring a thing of the same name; the message names both.
    """
    result = Environment()
    found = list(installed() if plugins is None else plugins)
    for each in found:
        if each.plugin is not None:
            _register(result, each, each.plugin)
    for each in found:
        if each.plugin is not None:
            _place(result, each, each.plugin)
    return result


def _load(entry: metadata.EntryPoint) -> Found:
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "?"
    found = Found(entry.name, package)
    try:
        loaded = entry.load()
        if not isinstance(loaded, Plugin):
            raise TypeError(f"{entry.value} is not an optc.plugins.Plugin but a {type(loaded).__name__}")
        found.plugin = loaded
    except Exception as error:  # a plugin may fail in any way; it must not take optc down
        found.errors.append(f"{type(error).__name__}: {error}")
    return found


def _register(target: Environment, found: Found, plugin: Plugin) -> None:
    owner = f"{plugin.name} ({found.package})"
    for table, adapter in _ADAPTERS.items():
        for name, location in getattr(plugin, table).items():
            if _well_formed(found, table, name, location):
                target.passes.add(name, location, owner, adapter)
    for name, location in plugin.backends.items():
        if _well_formed(found, "backends", name, location):
            target.backends.add(name, location, owner)
    if plugin.targets is not None:
        for described in _guarded(found, partial(_targets, plugin.targets)) or []:
            target.add_target(described, owner)


def _well_formed(found: Found, table: str, name: str, location: Any) -> bool:
    module, _, attribute = str(location).partition(":")
    if isinstance(location, str) and module and attribute:
        return True
    found.errors.append(f'{table}: {name!r} is to be "module:attribute", not {location!r}')
    return False


def _targets(source: Any) -> list[Any]:
    file = Path(source) if isinstance(source, str) else source
    return list(parse_targets(file.read_text("utf-8"), str(file)).values())


def _place(target: Environment, found: Found, plugin: Plugin) -> None:
    """Let passes join the levels; one that cannot be loaded, or whose neighbour is unknown, stays out."""
    for name, where in plugin.place.items():
        side, _, anchor = where.partition(":")
        if side not in ("before", "after") or anchor not in target.passes:
            known = "is not a pass" if side in ("before", "after") else 'is to be "before:PASS" or "after:PASS"'
            found.errors.append(f"place: {name!r}: {where!r} {known}")
        elif _guarded(found, partial(pass_class, target.passes, name)) is not None:
            target.placements[name] = (side, anchor)


def _guarded(found: Found, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except OptcError as error:
        found.errors.append(error.what)
    except Exception as error:  # as in _load
        found.errors.append(f"{type(error).__name__}: {error}")
    return None


__all__ = ["GROUP", "Found", "Plugin", "UsageError", "environment", "installed"]
