"""A stand-in for the module ``tensorrt``, generated from a stored surface: as strict as the bindings, and it remembers.

A class, attribute, enum member or argument that the bindings do not have fails as it does there: AttributeError for a
name, TypeError for a call that fits no overload. What a call does is up to *behaviours*, functions by "Class.method" or
"Class.property"; where there is none, a call returns something of the type that its signature promises.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from .surface import load

#: Names by which signatures call classes that Python knows under another one.
_ALIASES = {"IParserError": "ParserError", "IBuilder": "Builder"}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a signature: its name, the text of its type, and whether it may be left out."""

    name: str
    type: str
    optional: bool


@dataclass(frozen=True)
class Signature:
    """One overload."""

    parameters: tuple[Parameter, ...]
    returns: str

    def bind(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any] | None:
        """Arguments by name; None where they do not fit."""
        if len(arguments) > len(self.parameters):
            return None
        bound = {parameter.name: value for parameter, value in zip(self.parameters, arguments, strict=False)}
        known = {parameter.name for parameter in self.parameters}
        if any(name in bound or name not in known for name in named):
            return None
        bound.update(named)
        return bound if all(p.name in bound or p.optional for p in self.parameters) else None


def split(text: str) -> list[str]:
    """A text at the commas that stand outside of all brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "[(<{") - (char in "])>}")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def signature(text: str) -> Signature:
    """What a stored signature says; the first parameter of a method, itself, is left out."""
    found = re.match(r"\((.*)\) -> (.*)$", text)
    assert found is not None, text
    parameters = []
    for part in split(found[1]):
        declared, _, default = part.partition(" = ")
        name, _, kind = declared.partition(":")
        parameters.append(Parameter(name.strip(), kind.strip() or "object", bool(default)))
    first = parameters[0].name if parameters else ""
    return Signature(tuple(parameters[first in ("self", "arg0") :]), found[2].strip())


@dataclass
class Call:
    """A call that was made: "Class.method", on what, and the arguments by name."""

    name: str
    on: Any
    arguments: dict[str, Any]


@dataclass
class TensorRT:
    """The stand-in.

    Attributes:
        module: What to put in ``sys.modules["tensorrt"]``.
        calls: What was called, in order; "Class.property=" for attributes that were set.
        behaviours: What calls do, by "Class.method"; called with the object and the arguments by name.
    """

    major: int
    behaviours: dict[str, Callable[..., Any]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    module: ModuleType = field(init=False)

    def __post_init__(self) -> None:
        self._surface = load(self.major)
        self.module = module = ModuleType("tensorrt")
        module.__version__ = self._surface["version"]  # type: ignore[attr-defined]
        self._classes: dict[str, Any] = {}
        for name, members in self._surface["enums"].items():
            self._classes[name] = enum.IntEnum(name.split(".")[-1], members)  # type: ignore[arg-type]
        pending = dict(self._surface["classes"])
        while pending:
            for name, entry in list(pending.items()):
                if not any(base in pending for base in entry["bases"]):
                    self._classes[name] = self._class(name, pending.pop(name))
        for name, made in self._classes.items():
            outer, _, inner = name.rpartition(".")
            if outer:
                setattr(self._classes[outer], inner, made)
            else:
                setattr(module, name, made)
        severity = self._classes["ILogger.Severity"]
        for member in severity:  # what the bindings' __init__.py and export_values add
            setattr(self._classes["ILogger"], member.name, member)
        for name, member in self._surface["values"].items():
            setattr(module, name, self._classes["DataType"][member])
        for name, texts in self._surface["functions"].items():
            setattr(module, name, self._function(name, texts))

    def named(self, name: str) -> list[Call]:
        """The calls of one name."""
        return [call for call in self.calls if call.name == name]

    def one(self, name: str) -> dict[str, Any]:
        """The arguments of the only call of a name."""
        (call,) = self.named(name)
        return call.arguments

    # generating ---------------------------------------------------------------------------------------------------

    def _function(self, name: str, texts: list[str]) -> Callable[..., Any]:
        overloads = [_whole(text) for text in texts]

        def function(*arguments: Any, **named: Any) -> Any:
            return self._call(name, None, overloads, arguments, named)

        return function

    def _class(self, name: str, entry: Mapping[str, Any]) -> type:
        double, plain = self, name.split(".")[-1]
        bases = tuple(self._classes[base] for base in entry["bases"]) or (object,)
        known = {"_made", "_state"}

        def method(called: str, texts: list[str]) -> Callable[..., Any]:
            overloads = [signature(text) for text in texts]

            def run(self: Any, *arguments: Any, **named: Any) -> Any:
                return double._call(f"{plain}.{called}", self, overloads, arguments, named)

            return run

        def initialize(self: Any, *arguments: Any, **named: Any) -> None:
            if "__init__" not in entry["methods"]:
                raise TypeError(f"{plain}: No constructor defined!")
            overloads = [signature(text) for text in entry["methods"]["__init__"]]
            double._call(f"{plain}.__init__", self, overloads, arguments, named)
            object.__setattr__(self, "_made", True)
            if entry.get("sequence"):
                given = next(iter((*arguments, *named.values())), ())
                object.__setattr__(self, "_state", list(given) if not isinstance(given, int) else [None] * given)

        def assign(self: Any, key: str, value: Any) -> None:
            described = next((c[key] for c in _lineage(type(self)) if key in c), None)
            if described is None and type(self) in double._classes.values() and key not in known:
                raise AttributeError(f"'tensorrt.{plain}' object has no attribute '{key}'")
            if described is not None:
                if "set" not in described:
                    raise AttributeError(f"property '{key}' of 'tensorrt.{plain}' has no setter")
                overload = signature(described["set"])
                double._call(f"{plain}.{key}=", self, [overload], (value,), {})
            object.__setattr__(self, key, value)

        namespace: dict[str, Any] = {
            name: method(name, texts) for name, texts in entry["methods"].items() if name != "__init__"
        }
        for key, described in entry["properties"].items():
            namespace[key] = _Property(self, plain, key, described)
        namespace |= {"__init__": initialize, "__setattr__": assign, "_properties": entry["properties"]}
        if entry.get("sequence"):
            namespace["__len__"] = lambda self: len(self._state)
            namespace["__getitem__"] = lambda self, index: self._state[index]
            namespace["__iter__"] = lambda self: iter(self._state)
        return _Meta(plain, bases, namespace)

    # calling ------------------------------------------------------------------------------------------------------

    def make(self, name: str) -> Any:
        """An object of a class, as TensorRT itself makes them."""
        made = self._classes[name].__new__(self._classes[name])
        object.__setattr__(made, "_made", True)
        return made

    def _call(
        self, name: str, on: Any, overloads: list[Signature], arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> Any:
        for overload in overloads:
            bound = overload.bind(arguments, named)
            if bound is None:
                continue
            if all(self._fits(bound[p.name], p.type) for p in overload.parameters if p.name in bound):
                self.calls.append(Call(name, on, bound))
                behaviour = self.behaviours.get(name)
                return behaviour(on, **bound) if behaviour is not None else self._something(overload.returns)
        told = ", ".join([*map(repr, arguments), *(f"{key}={value!r}" for key, value in named.items())])
        raise TypeError(f"{name}(): incompatible function arguments: ({told}) fits none of {overloads}")

    def _class_named(self, text: str) -> Any:
        plain = text.split("::")[-1]
        return self._classes.get(_ALIASES.get(plain, plain), self._classes.get(text))

    def _fits(self, value: Any, kind: str) -> bool:
        if kind in ("object", "Callable", "CapsuleType"):
            return True
        if kind in ("str", "FallbackString"):
            return isinstance(value, str) or (value is None and kind == "str")
        if kind == "bool":
            return isinstance(value, bool | np.bool_)
        if kind == "SupportsInt":
            return isinstance(value, int | np.integer) and not isinstance(value, enum.Enum)
        if kind == "SupportsFloat":
            return isinstance(value, int | float)
        if kind == "Buffer":
            return _is_buffer(value)
        if kind in ("tuple", "list"):
            return isinstance(value, {"tuple": tuple, "list": list}[kind])
        if kind.startswith("Sequence["):
            return isinstance(value, list | tuple) and all(self._fits(item, kind[9:-1]) for item in value)
        if kind == "Dims" and isinstance(value, list | tuple):
            return all(isinstance(item, int) and not isinstance(item, bool) for item in value)
        cls = self._class_named(kind)
        assert cls is not None, f"the double does not know the type {kind}"
        return isinstance(value, cls) or (value is None and not issubclass(cls, enum.Enum))

    def _something(self, kind: str) -> Any:
        simple: dict[str, Any] = {"None": None, "bool": True, "int": 0, "str": "", "float": 0.0, "object": None}
        if kind in simple:
            return simple[kind]
        if kind.startswith(("list", "tuple")):
            return []
        cls = self._class_named(kind)
        assert cls is not None, f"the double does not know the type {kind}"
        return next(iter(cls)) if issubclass(cls, enum.Enum) else self.make(cls.__name__)


class _Meta(type):
    """As pybind11's: refuses objects of subclasses whose ``__init__`` forgot that of the class."""

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        made = super().__call__(*arguments, **named)
        if not getattr(made, "_made", False):
            raise TypeError(f"{cls.__name__}.__init__() must be called when overriding __init__")
        return made


class _Property:
    """An attribute: what was set, or what the behaviour says."""

    def __init__(self, double: TensorRT, owner: str, key: str, described: Mapping[str, str]) -> None:
        self._double, self._owner, self._key, self._described = double, owner, key, described

    def __get__(self, on: Any, owner: type) -> Any:
        if on is None:
            return self
        behaviour = self._double.behaviours.get(f"{self._owner}.{self._key}")
        if behaviour is not None:
            return behaviour(on)
        if self._key in vars(on):
            return vars(on)[self._key]
        return self._double._something(self._described["get"].partition(" -> ")[2])

    # A data descriptor would take over assignments; these go through __setattr__, which checks them.


def _lineage(cls: type) -> Iterator[Mapping[str, Any]]:
    return (vars(base)["_properties"] for base in cls.__mro__ if "_properties" in vars(base))


def _whole(text: str) -> Signature:
    """The signature of a function, which has no first parameter to leave out."""
    found = signature(text.replace("(", "(self, ", 1) if not text.startswith("()") else text.replace("(", "(self", 1))
    return found


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value)
    except TypeError:
        return False
    return True
