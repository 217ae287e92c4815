"""ONNX Runtime's error texts, turned into what is wrong, where, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from optc.ir.errors import BackendError, DataError, OptcError


@dataclass(frozen=True)
class _Rule:
    """One family of messages: named groups ``op``, ``node`` and ``why`` fill the templates."""

    pattern: re.Pattern[str]
    what: str
    hint: str | None = None
    error: type[OptcError] = BackendError


def _rule(pattern: str, what: str, hint: str | None = None, error: type[OptcError] = BackendError) -> _Rule:
    return _Rule(re.compile(pattern, re.DOTALL), what, hint, error)


_RULES = (
    _rule(
        r"while running (?P<op>\S+) node\. Name:'(?P<node>[^']*)' Status Message: (?P<why>.*)",
        "onnxruntime failed in {op}: {why}",
    ),
    _rule(
        r"Could not find an implementation for (?P<op>\S+) node with name '(?P<node>[^']*)'",
        "the installed onnxruntime has no kernel for {op} with these types",
        "target another type or provider, or let the op be decomposed",
    ),
    _rule(
        r"Fatal error: (?P<op>\S+) is not a registered function/op",
        "the installed onnxruntime does not know the op {op}",
        "a custom op needs its library; see the `custom_ops` option",
    ),
    _rule(
        r"Unsupported model IR version: (?P<op>\d+), max supported IR version: (?P<why>\d+)",
        "the model's IR version {op} is newer than the installed onnxruntime reads ({why})",
        "upgrade onnxruntime, or save the model with an older IR version",
    ),
    _rule(
        r"Opset (?P<op>\d+) is under development.*support for domain \S+ is till opset (?P<why>\d+)",
        "opset {op} is newer than the installed onnxruntime supports ({why})",
        "upgrade onnxruntime, or convert the model to an older opset",
    ),
    _rule(r"(?P<why>Type Error: .* in node \((?P<node>[^)]*)\) is invalid)", "invalid model: {why}"),
    _rule(r"Node \((?P<node>[^)]*)\) Op \((?P<op>\w+)\) \[\w+\] (?P<why>.*)", "invalid model: {op}: {why}"),
    _rule(
        r"Unexpected input data type\. Actual: \((?P<why>[^)]*\)?)\) ?, expected: \((?P<op>[^)]*\)?)\)",
        "an input has type {why} where the model takes {op}",
        error=DataError,
    ),
    _rule(
        r"(?P<why>(Invalid rank for input|Got invalid dimensions for input).*?)(Please fix|$)",
        "an input does not fit the model: {why}",
        error=DataError,
    ),
    _rule(r"bad_alloc|Failed to allocate|out of memory", "onnxruntime ran out of memory", "use smaller inputs"),
)
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE_LINE = re.compile(r"/\S+/onnxruntime/\S+:\d+ .*?\) ", re.DOTALL)


def user_error(error: BaseException, where: str | None = None) -> OptcError:
    """The :class:`OptcError` for an exception that onnxruntime raised.

    Args:
        error: The exception.
        where: The model's file, when there is one.
    """
    text = _PREFIX.sub("", str(error)).strip()
    for rule in _RULES:
        found = rule.pattern.search(text)
        if found:
            groups = {key: (value or "").strip() for key, value in found.groupdict().items()}
            place = f"node '{groups['node']}'" if groups.get("node") else None
            where = ", ".join(part for part in (where, place) if part) or None
            return rule.error(rule.what.format(**groups), where=where, hint=rule.hint)
    short = _SOURCE_LINE.sub("", text).splitlines()
    return BackendError(f"onnxruntime: {short[0] if short else type(error).__name__}", where=where)
