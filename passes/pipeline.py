"""Pipelines as text: ``inline,fixpoint<8>(fold{growth=0.01},cse,dce)`` parses to passes and prints back.

Grammar::

    pipeline := item ("," item)*
    item     := "fixpoint" ("<" int ">")? "(" pipeline ")" | name ("{" key "=" value ("," key "=" value)* "}")?
    value    := word | quoted string | "[" (value ("," value)*)? "]"

A word means what the type of its option says: a number, true or false, none, or itself.
The form follows MLIR's textual pass pipelines; options as dataclass fields follow xDSL.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optc.ir.errors import UsageError
from optc.ir.registry import Registry
from optc.ir.targets import suggestion
from optc.passes.base import Pass
from optc.passes.registry import pass_class

DEFAULT_ROUNDS = 8


@dataclass(frozen=True)
class Fixpoint:
    """Items that are repeated until a whole round changes nothing, at most ``rounds`` times."""

    rounds: int
    items: tuple[Item, ...]

    def __str__(self) -> str:
        return f"fixpoint<{self.rounds}>({print_pipeline(self.items)})"


Item = Pass | Fixpoint
Pipeline = tuple[Item, ...]


def print_pipeline(items: Pipeline) -> str:
    """The text that :func:`parse_pipeline` reads back to the same pipeline; defaults are left out."""
    return ",".join(str(item) if isinstance(item, Fixpoint) else print_pass(item) for item in items)


def print_pass(item: Pass) -> str:
    """One pass with the options that differ from their defaults."""
    options = []
    for option in dataclasses.fields(item):
        value = getattr(item, option.name)
        default = option.default if option.default_factory is dataclasses.MISSING else option.default_factory()
        if value != default:
            options.append(f"{option.name}={_print_value(value)}")
    return f"{item.name}{{{','.join(options)}}}" if options else item.name


def leaves(items: Pipeline) -> Iterator[Pass]:
    """All passes of a pipeline in order, each once per place where it stands."""
    for item in items:
        if isinstance(item, Fixpoint):
            yield from leaves(item.items)
        else:
            yield item


def without(items: Pipeline, names: frozenset[str]) -> Pipeline:
    """The pipeline less the passes of these names."""
    kept: list[Item] = []
    for item in items:
        if isinstance(item, Fixpoint):
            inner = without(item.items, names)
            if inner:
                kept.append(Fixpoint(item.rounds, inner))
        elif item.name not in names:
            kept.append(item)
    return tuple(kept)


def with_options(items: Pipeline, options: Mapping[str, Any]) -> Pipeline:
    """The pipeline with these options set in every pass that has them.

    Raises:
        UsageError: No pass has one of them.
    """
    missing = set(options)

    def changed(item: Item) -> Item:
        if isinstance(item, Fixpoint):
            return Fixpoint(item.rounds, tuple(map(changed, item.items)))
        own = {name: value for name, value in options.items() if name in item.__dataclass_fields__}
        missing.difference_update(own)
        return dataclasses.replace(item, **own) if own else item

    result = tuple(map(changed, items))
    if missing:
        raise UsageError(
            f"no pass of the pipeline has the option {sorted(missing)[0]!r}", hint="it belongs to lossy passes: use -O3"
        )
    return result


def parse_pipeline(text: str, registry: Registry) -> Pipeline:
    """Parse a pipeline.

    Raises:
        UsageError: The text is not well formed, or names an unknown pass or option; the message says where.
    """
    parser = _Parser(text, registry)
    items = parser.pipeline()
    parser.end()
    return items


def _print_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(map(_print_value, value))}]"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][\w.:/-]*", value, re.ASCII) and value != "none"
        return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


_TOKEN = re.compile(r'\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[\w.:/+-]+)|(?P<mark>[(){}<>\[\],=]))')


class _Word(str):
    """An unquoted value, to be read as its option's type says."""


class _Parser:
    """Recursive descent over tokens, with places for messages."""

    def __init__(self, text: str, registry: Registry) -> None:
        self.text, self.registry, self.position = text, registry, 0

    def pipeline(self) -> Pipeline:
        items = [self.item()]
        while self.take(","):
            items.append(self.item())
        return tuple(items)

    def item(self) -> Item:
        name = self.word("the name of a pass")
        if name == "fixpoint":
            rounds = DEFAULT_ROUNDS
            if self.take("<"):
                number = self.word("a number of rounds")
                if not number.isdecimal() or int(number) < 1:
                    self.fail(f"fixpoint<...> takes a positive number of rounds, not {number!r}")
                rounds = int(number)
                self.expect(">")
            self.expect("(")
            items = self.pipeline()
            self.expect(")")
            return Fixpoint(rounds, items)
        cls = pass_class(self.registry, name)
        options: dict[str, Any] = {}
        if self.take("{"):
            while not self.take("}"):
                if options:
                    self.expect(",")
                key = self.word("the name of an option")
                if key in options:
                    self.fail(f"option {key!r} is given twice")
                self.expect("=")
                options[key] = self.value()
        return make_pass(cls, options)

    def value(self) -> Any:
        if self.take("["):
            values: list[Any] = []
            while not self.take("]"):
                if values:
                    self.expect(",")
                values.append(self.value())
            return tuple(values)
        token = self.next("a value", "word", "string")
        if token.lastgroup == "string":
            return re.sub(r"\\(.)", r"\1", token.group("string")[1:-1], flags=re.DOTALL)
        return _Word(token.group("word"))

    def next(self, what: str, *kinds: str) -> re.Match[str]:
        token = _TOKEN.match(self.text, self.position)
        if token is None or token.lastgroup not in kinds:
            self.fail(f"{what} is missing")
        self.position = token.end()
        return token

    def take(self, mark: str) -> bool:
        token = _TOKEN.match(self.text, self.position)
        if token is None or token.group("mark") != mark:
            return False
        self.position = token.end()
        return True

    def expect(self, mark: str) -> None:
        if not self.take(mark):
            self.fail(f"{mark!r} is missing")

    def word(self, what: str) -> str:
        return self.next(what, "word").group("word")

    def end(self) -> None:
        if self.text[self.position :].strip():
            self.fail("the text goes on after the pipeline's end")

    def fail(self, what: str) -> typing.NoReturn:
        before, after = self.text[: self.position], self.text[self.position :]
        raise UsageError(
            f"pipeline text: {what} here: {before}>>>{after}", hint="see optc passes for names and options"
        )


def make_pass(cls: type[Pass], options: dict[str, Any]) -> Pass:
    """A pass with checked options.

    Raises:
        UsageError: An option is unknown or its value is of another type.
    """
    hints = typing.get_type_hints(cls)
    known = {option.name for option in dataclasses.fields(cls)}
    converted = {}
    for key, value in options.items():
        if key not in known:
            raise UsageError(
                f"pass {cls.name!r} has no option {key!r}",
                hint=suggestion(key, known, f"its options are: {', '.join(sorted(known)) or 'none'}"),
            )
        converted[key] = _convert(value, hints[key], f"option {key!r} of pass {cls.name!r}")
    return cls(**converted)


def _convert(value: Any, hint: Any, what: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, _Word) and value == "none"):
            return _checked(None, types.NoneType in arguments, hint, what)
        hint = next(argument for argument in arguments if argument is not types.NoneType)
        return _convert(value, hint, what)
    if origin is tuple:
        values = value if isinstance(value, tuple) else (value,)
        return tuple(_convert(item, arguments[0], what) for item in values)
    if origin is typing.Literal:
        value = next((argument for argument in arguments if str(argument) == str(value)), value)
        if value not in arguments:
            raise UsageError(f"{what} is one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    if isinstance(value, _Word):
        value = _read_word(value, hint)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    return _checked(value, isinstance(value, hint) and (hint is bool or not isinstance(value, bool)), hint, what)


def _checked(value: Any, fits: bool, hint: Any, what: str) -> Any:
    if not fits:
        raise UsageError(f"{what} is of type {getattr(hint, '__name__', hint)}, not {value!r}")
    return value


def _read_word(word: _Word, hint: type) -> Any:
    """What a word means where a value of a type is wanted; the word itself where it does not mean one."""
    if hint is bool:
        return {"true": True, "false": False}.get(word, str(word))
    if hint in (int, float):
        try:
            return hint(word)
        except ValueError:
            return str(word)
    return str(word)
