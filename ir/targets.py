"""Targets: what a result is built for, as data."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from optc.ir.errors import UsageError


@dataclass(frozen=True)
class Target:
    """A device, described by what it can do.

    Attributes:
        name: What the user writes after ``--target``.
        summary: One line on it.
        kind: "cpu" or "gpu".
        provider: The ONNX Runtime execution provider that runs on it.
        backend: The backend that compiles for it where none is named.
        capabilities: Named abilities ("int8-tensor-core", "sparse-2:4", ...).
        arch: The compiler's name of the architecture ("sm_80"), if it has one.
        sm_count: Streaming multiprocessors.
        shared_memory: Bytes of shared memory that one block may use.
        l2_cache: Bytes.
        bandwidth: Memory bandwidth, bytes per second.
        peak: Dense peak rate by precision, operations per second.
        granule: Channels that its vector or matrix units take at a time: sizes are best multiples of it.
    """

    name: str
    summary: str
    kind: str
    provider: str
    backend: str = "onnxruntime"
    capabilities: frozenset[str] = frozenset()
    arch: str | None = None
    sm_count: int | None = None
    shared_memory: int | None = None
    l2_cache: int | None = None
    bandwidth: float | None = None
    peak: Mapping[str, float] = field(default_factory=dict, hash=False)
    granule: int = 16

    def has(self, capability: str) -> bool:
        """Whether the target has a capability."""
        return capability in self.capabilities


def parse_targets(text: str, origin: str) -> dict[str, Target]:
    """Targets from TOML text, one table each.

    Raises:
        UsageError: It is no TOML, or a table has an unknown or a missing key or a kind that there is not.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not a TOML file: {error}", where=origin) from error
    return {name: _target(name, table, origin) for name, table in tables.items()}


def builtin_targets() -> dict[str, Target]:
    """The targets that optc knows by itself."""
    return parse_targets(resources.files("optc.ir").joinpath("targets.toml").read_text("utf-8"), "targets.toml")


def find_target(name: str, targets: Mapping[str, Target]) -> Target:
    """The target of a name.

    Raises:
        UsageError: There is none; the message says which there are.
    """
    if name not in targets:
        raise UsageError(f"unknown target {name!r}", hint=suggestion(name, targets, "optc targets lists them"))
    return targets[name]


def suggestion(name: str, known: Iterable[str], otherwise: str) -> str:
    """A hint on a name that is not known: the closest ones there are."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}? {otherwise}" if close else otherwise


def _target(name: str, table: Mapping[str, Any], origin: str) -> Target:
    try:
        target = Target(name=name, **{**table, "capabilities": frozenset(table.get("capabilities", ()))})
    except (TypeError, AttributeError) as error:
        raise UsageError(f"target {name!r} is not well described: {error}", where=origin) from error
    if target.kind not in ("cpu", "gpu"):
        raise UsageError(f"target {name!r} is of kind {target.kind!r}, neither cpu nor gpu", where=origin)
    return target
