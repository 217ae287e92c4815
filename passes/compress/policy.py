"""Which layers may become what, said by the user: by role, kind of layer or name; the most specific rule wins.

As text: ``attention=int8;ffn=int4,int8;first,last=none``. As a TOML file, where a plain text gets long::

    [layers]
    attention = "int8"
    ffn = ["int4", "int8"]
    "encoder.layer.0.*" = "none"

What stands on the left is a role (:data:`optc.passes.compress.roles.ROLES`), ``*``, or a pattern of node names; on the
right are techniques, labels of options or parts of them ("int8" is in "dynamic-int8" and "block-int8-128"), ``none``
for leaving the layer as it is, or ``any``. A layer that no rule names may become anything.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from optc.ir.errors import UsageError
from optc.ir.targets import suggestion
from optc.passes.compress.roles import ROLES
from optc.passes.compress.techniques import Option


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        what: A role, ``*`` or a pattern of node names.
        allowed: What layers of it may become; empty for nothing.
    """

    what: str
    allowed: tuple[str, ...]

    def matches(self, name: str, roles: Collection[str]) -> bool:
        """Whether it speaks of a layer."""
        return self.what in roles or (self.what not in ROLES and fnmatchcase(name, self.what))

    @property
    def specificity(self) -> tuple[int, int]:
        """What wins: a name over a pattern of names, over first and last, over narrow roles, over wide ones, over *."""
        if self.what == "*":
            return 0, 0
        if self.what in ("first", "last"):
            return 3, 0
        if self.what in ROLES:
            return 1 + self.what.count("."), 0
        return (4 if any(sign in self.what for sign in "*?[") else 5), len(self.what)

    def allows(self, option: Option) -> bool:
        """Whether an option is among what it allows: all that it does to a layer, one thing after the other."""
        first, *others = option.label.split("+")
        return (
            "any" in self.allowed
            or any(fnmatchcase(option.label, one) for one in self.allowed)
            or (
                (option.technique in self.allowed or self._names(first)) and all(self._names(other) for other in others)
            )
        )

    def _names(self, label: str) -> bool:
        return any(one in label.split("-") or fnmatchcase(label, one) for one in self.allowed)

    def __str__(self) -> str:
        return f"{self.what}={','.join(self.allowed) or 'none'}"


@dataclass(frozen=True)
class Policy:
    """Rules, the most specific first; of two that are as specific, the later one."""

    rules: tuple[Rule, ...] = ()

    def rule(self, name: str, roles: Collection[str]) -> Rule | None:
        """The rule for a layer."""
        return next((rule for rule in self.rules if rule.matches(name, roles)), None)

    def forbids(self, option: Option, name: str, roles: Collection[str]) -> str | None:
        """Why an option may not be used for a layer; None if it may."""
        rule = self.rule(name, roles)
        return None if rule is None or rule.allows(option) else f"the policy says {rule}"


def read_policy(text: str) -> Policy:
    """A policy from its text, or from a TOML file if the text is a path that ends in ``.toml``.

    Raises:
        UsageError: It is not well formed, the file cannot be read, or it names no role that there is.
    """
    text = text.strip()
    where = text if text.endswith(".toml") else None
    pairs = _of_file(Path(text)) if where else _of_text(text)
    rules = [Rule(what, tuple(one for one in allowed if one != "none")) for what, allowed in pairs]
    for rule in rules:
        if rule.what not in ROLES and rule.what.isidentifier():
            hint = suggestion(rule.what, ROLES, f"roles are: {', '.join(ROLES)}; a node is named by a pattern")
            raise UsageError(f"there is no role {rule.what!r}", where=where, hint=hint)
    ordered = sorted(reversed(rules), key=lambda rule: rule.specificity, reverse=True)
    return Policy(tuple(ordered))


def _of_text(text: str) -> Iterable[tuple[str, list[str]]]:
    for part in filter(None, (part.strip() for part in text.split(";"))):
        names, sign, allowed = part.partition("=")
        if not sign or not names.strip() or not allowed.strip():
            raise UsageError(
                f"not a rule of a policy: {part!r}", hint="as in attention=int8;ffn=int4,int8;first,last=none"
            )
        for name in names.split(","):
            yield name.strip(), [one.strip() for one in allowed.split(",")]


def _of_file(path: Path) -> Iterable[tuple[str, list[str]]]:
    try:
        table = tomllib.loads(path.read_text("utf-8")).get("layers")
    except OSError as error:
        raise UsageError(f"the policy cannot be read: {error.strerror}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"not a TOML file: {error}", where=str(path)) from error
    if not isinstance(table, Mapping):
        raise UsageError("a policy has a table [layers]", where=str(path), hint='as in: [layers]\nattention = "int8"')
    for name, allowed in table.items():
        values = [allowed] if isinstance(allowed, str) else allowed
        if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
            raise UsageError(f"{name!r} is neither a text nor a list of texts", where=str(path))
        yield name, values
