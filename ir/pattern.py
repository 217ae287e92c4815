"""The pattern language: a pattern is written as a function that reads like the maths.

::

    def gelu(p, x):
        return x * 0.5 * (1 + p.Erf(x / SQRT2))

The function is called once, with a :class:`PatternBuilder` and one variable per further parameter, and what it
returns is a tree of the classes below. Sums and products are associative and commutative, constants match scalars in
any form (initializer, Constant node, rank 0 or more), division by a constant is multiplication by its inverse.
The idea of patterns as traced functions is onnxscript's; associative matching by splitting terms follows the
term-rewriting literature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from optc.ir.names import split_op

#: Operators whose two inputs may be swapped, besides the sums and products.
COMMUTATIVE = {"Add", "Mul", "Equal", "And", "Or", "Xor", "Max", "Min", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}

#: What a match has of its own, so that no variable can go by it.
_TAKEN = frozenset({"bindings", "exported", "facts", "get", "nodes", "output", "root", "scalar"})

Scalar = int | float | bool


class Pattern:
    """A tree that a value is matched against."""

    def __add__(self, other: Pattern | Scalar) -> Pattern:
        return Sum.of(self, lift(other))

    def __radd__(self, other: Scalar) -> Pattern:
        return Sum.of(lift(other), self)

    def __mul__(self, other: Pattern | Scalar) -> Pattern:
        return Product.of(self, lift(other))

    def __rmul__(self, other: Scalar) -> Pattern:
        return Product.of(lift(other), self)

    def __sub__(self, other: Pattern | Scalar) -> Pattern:
        if isinstance(other, int | float):
            return Sum.of(self, Const(-other))
        return Op(("Sub",), (self, other))

    def __rsub__(self, other: Scalar) -> Pattern:
        return Op(("Sub",), (lift(other), self))

    def __truediv__(self, other: Pattern | Scalar) -> Pattern:
        if isinstance(other, int | float):
            return Product.of(self, Const(1 / other))
        return Op(("Div",), (self, other))

    def __rtruediv__(self, other: Scalar) -> Pattern:
        return Op(("Div",), (lift(other), self))

    def __matmul__(self, other: Pattern) -> Pattern:
        return Op(("MatMul",), (self, other))

    def __neg__(self) -> Pattern:
        return Op(("Neg",), (self,))

    @property
    def roots(self) -> frozenset[tuple[str, str]]:
        """The (domain, op) pairs that a node must be one of to match at its root; empty for 'any value'."""
        return frozenset()

    @property
    def least(self) -> frozenset[object]:
        """One key for each node that the smallest match has; what several parts of a pattern share counts once."""
        return frozenset()


@dataclass(frozen=True, eq=False)
class Var(Pattern):
    """Any value; the same name matches the same value (or an equal constant) everywhere."""

    name: str


@dataclass(frozen=True, eq=False)
class Const(Pattern):
    """A constant. With a value: a scalar equal to it within the rounding of its dtype. With a name: bound to it."""

    value: Scalar | None = None
    name: str | None = None
    scalar: bool = True


@dataclass(frozen=True, eq=False)
class Op(Pattern):
    """A node of one of several operators, seen from one of its outputs.

    Attributes:
        ops: Operator names, with the domain as in ``"com.microsoft::Gelu"``.
        inputs: Patterns of the inputs; None for one that must be absent. Trailing inputs that are not listed must be
            absent unless ``rest`` is set.
        attributes: Attribute values that the node must have; a Var binds the value. An attribute that the node does
            not have counts with the schema's default.
        output: Which of the node's outputs the matched value is.
        rest: Whether the node may have further inputs.
    """

    ops: tuple[str, ...]
    inputs: tuple[Pattern | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    output: int = 0
    rest: bool = False

    @cached_property
    def roots(self) -> frozenset[tuple[str, str]]:
        return frozenset(split_op(op) for op in self.ops)

    @cached_property
    def least(self) -> frozenset[object]:
        return frozenset({id(self)}).union(*(pattern.least for pattern in self.inputs if pattern is not None))


@dataclass(frozen=True, eq=False)
class OneOf(Pattern):
    """The first of several patterns that matches."""

    options: tuple[Pattern, ...]

    @cached_property
    def roots(self) -> frozenset[tuple[str, str]]:
        return frozenset().union(*(option.roots for option in self.options))

    @cached_property
    def least(self) -> frozenset[object]:
        return min((option.least for option in self.options), key=len)


@dataclass(frozen=True, eq=False)
class Through(Pattern):
    """``inner``, with any number of single-input nodes of these operators between (export noise: Cast, Identity)."""

    ops: tuple[str, ...]
    inner: Pattern

    @cached_property
    def roots(self) -> frozenset[tuple[str, str]]:
        return self.inner.roots | frozenset(split_op(op) for op in self.ops)

    @cached_property
    def least(self) -> frozenset[object]:
        return self.inner.least


@dataclass(frozen=True, eq=False)
class Named(Pattern):
    """``inner``, its value bound to a name.

    Attributes:
        exported: The value may also be used outside of the match (it becomes an output of the fused op).
    """

    name: str
    inner: Pattern
    exported: bool = False

    @cached_property
    def roots(self) -> frozenset[tuple[str, str]]:
        return self.inner.roots

    @cached_property
    def least(self) -> frozenset[object]:
        return self.inner.least


class _Flat(Pattern):
    """A sum or product of at least two terms, in any order and grouping."""

    terms: tuple[Pattern, ...]

    @classmethod
    def of(cls, *terms: Pattern) -> Pattern:
        flat: list[Pattern] = []
        for term in terms:
            flat.extend(term.terms if isinstance(term, cls) else (term,))
        return cls(tuple(flat))  # type: ignore[call-arg]

    @cached_property
    def least(self) -> frozenset[object]:
        joints = frozenset((id(self), index) for index in range(len(self.terms) - 1))
        return joints.union(*(term.least for term in self.terms))


@dataclass(frozen=True, eq=False)
class Sum(_Flat):
    """Terms joined by Add, or by Sub of a constant."""

    terms: tuple[Pattern, ...]

    @cached_property
    def roots(self) -> frozenset[tuple[str, str]]:
        return frozenset({("", "Add"), ("", "Sub")})


@dataclass(frozen=True, eq=False)
class Product(_Flat):
    """Factors joined by Mul, or by Div by a constant."""

    terms: tuple[Pattern, ...]

    @cached_property
    def roots(self) -> frozenset[tuple[str, str]]:
        return frozenset({("", "Mul"), ("", "Div")})


class PatternBuilder:
    """The ``p`` that pattern functions get: ``p.Erf(x)`` matches a node, the methods below build the rest.

    ``p.Conv(x, w, ..., group=1)``: keyword arguments are attributes, ``...`` at the end allows further inputs,
    None stands for an input that is absent. Domains: ``p.op("com.microsoft::Gelu", x)``.
    """

    def __getattr__(self, op_type: str) -> Callable[..., Op]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.op(op_type, *inputs, **attributes)

    def op(self, ops: str | Sequence[str], *inputs: Any, output: int = 0, **attributes: Any) -> Op:
        rest = bool(inputs) and inputs[-1] is Ellipsis
        given = inputs[:-1] if rest else inputs
        return Op(
            (ops,) if isinstance(ops, str) else tuple(ops),
            tuple(None if i is None else lift(i) for i in given),
            attributes,
            output=output,
            rest=rest,
        )

    def const(self, name: str | None = None) -> Const:
        """Any constant, of any shape."""
        return Const(None, name, scalar=False)

    def scalar(self, name: str | None = None) -> Const:
        """Any constant of exactly one element."""
        return Const(None, name)

    def one_of(self, *options: Pattern) -> OneOf:
        """The first alternative that matches."""
        return OneOf(tuple(options))

    def through(self, ops: str | Sequence[str], inner: Pattern) -> Through:
        """``inner`` below any number of these single-input nodes."""
        return Through((ops,) if isinstance(ops, str) else tuple(ops), inner)

    def bind(self, name: str, inner: Pattern) -> Named:
        """``inner``, bound to a name."""
        return Named(name, inner)

    def export(self, name: str, inner: Pattern) -> Named:
        """``inner``, bound to a name and allowed to be used outside of the match as well."""
        return Named(name, inner, exported=True)

    def square(self, x: Pattern) -> Pattern:
        """x * x or Pow(x, 2)."""
        return self.one_of(self.Pow(x, 2.0), self.op("Mul", x, x))

    def any(self) -> Var:
        """A value of no interest."""
        return Var("_")


def build_pattern(function: Callable[..., Pattern | tuple[Pattern, ...]]) -> tuple[Pattern, tuple[str, ...]]:
    """Trace a pattern function.

    Returns:
        The pattern and the names of the function's variables, in order.
    """
    names = tuple(inspect.signature(function).parameters)[1:]
    if taken := sorted(_TAKEN.intersection(names)):
        raise TypeError(f"pattern function {function.__name__}: {taken[0]!r} means something else on a match")
    pattern = function(PatternBuilder(), *(Var(name) for name in names))
    if not isinstance(pattern, Pattern) or not pattern.roots:
        raise TypeError(f"pattern function {function.__name__} must return an operator, a sum or a product")
    return pattern, names


def lift(value: Pattern | Scalar) -> Pattern:
    """A Python number as a constant pattern."""
    return value if isinstance(value, Pattern) else Const(value)
