"""Symbolic dims: exact integer algebra over the unknown dims of a model.

A :data:`Dim` is an ``int``, or a :class:`SymDim`: a polynomial with integer coefficients over *factors*. A factor is
a symbol (a named unknown integer) or an opaque function of dims (``floordiv``, ``mod``, ``max``, ``min``,
``broadcast``, ``mul``). Polynomials are kept in one canonical form, so two dims that print alike are equal, and
``==`` means *provably equal for every value of the symbols*. That ``a != b`` holds says nothing: ask
:func:`provably_ne`.

What is assumed:

* A symbol is a run-time dim, so it is >= 0; 0 is possible. Symbols whose name starts with ``$`` are exempt: they stand
  for integers of either sign (contents of integer tensors).
* An expression is only claimed where it is defined: ``floordiv`` and ``mod`` where the divisor is not 0,
  ``broadcast`` where its arguments can be broadcast together.
* Integers are unbounded; no wrap-around at 2**63.
"""

from __future__ import annotations

import ast
import keyword
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TypeAlias

MAX_SIZE = 256
"""A product is multiplied out unless the result would have more factors than this; then it is one ``mul`` factor."""

MAX_DIVISION_STEPS = 64
MAX_POWER = 64

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_Bounds: TypeAlias = "tuple[int | float, int | float]"


class BroadcastError(ValueError):
    """Two dims can never be broadcast together."""


class _Factor:
    """A symbol (``op == "symbol"``, ``args == (name,)``) or a function of dims. Identified by its text."""

    __slots__ = ("args", "bounds", "op", "size", "text")

    def __init__(self, op: str, args: tuple) -> None:
        self.op, self.args = op, args
        if op == "symbol":
            (name,) = args
            plain = _PLAIN_NAME.match(name) and not keyword.iskeyword(name)
            self.text = name if plain else repr(name)
            self.bounds: _Bounds = (-math.inf, math.inf) if name.startswith("$") else (0, math.inf)
            self.size = 1
        else:
            self.text = f"{op}({', '.join(map(str, args))})"
            self.bounds = _BOUNDS[op](*map(bounds, args))
            self.size = 1 + sum(complexity(arg) for arg in args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Factor) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return self.text


_Monomial: TypeAlias = "tuple[_Factor, ...]"


def _order(monomial: _Monomial) -> tuple:
    """Graded lexicographic order, the leading monomial first."""
    return -len(monomial), [factor.text for factor in monomial]


class SymDim:
    """An immutable, hashable, non-constant integer polynomial. Build one with :func:`symbol` and arithmetic."""

    __slots__ = ("_bounds", "_hash", "_text", "terms")

    def __init__(self, terms: tuple[tuple[_Monomial, int], ...]) -> None:
        """Not for direct use: ``terms`` must already be canonical (see :func:`_collect`)."""
        self.terms = terms
        self._text: str | None = None
        self._bounds: _Bounds | None = None
        self._hash: int | None = None

    # identity -----------------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, SymDim) and hash(self) == hash(other) and self.terms == other.terms

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(self.terms)
        return self._hash

    def __str__(self) -> str:
        if self._text is None:
            self._text = _render(self.terms)
        return self._text

    def __repr__(self) -> str:
        return f"SymDim({str(self)!r})"

    def __bool__(self) -> bool:
        raise TypeError(f"whether the symbolic dim {self} is zero is not known; compare it explicitly")

    # arithmetic ---------------------------------------------------------------------------------------------------

    def __add__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            if not other:
                return self
        elif not isinstance(other, SymDim):
            return NotImplemented
        return _collect([*_terms(self), *_terms(other)])

    __radd__ = __add__

    def __neg__(self) -> SymDim:
        return SymDim(tuple((monomial, -count) for monomial, count in self.terms))

    def __sub__(self, other: Dim) -> Dim:
        return self + -other if isinstance(other, int | SymDim) else NotImplemented

    def __rsub__(self, other: int) -> Dim:
        return -self + other if isinstance(other, int) else NotImplemented

    def __mul__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            if other in (0, 1):
                return self if other else 0
            return SymDim(tuple((monomial, count * int(other)) for monomial, count in self.terms))
        if not isinstance(other, SymDim):
            return NotImplemented
        if complexity(self) * len(other.terms) + complexity(other) * len(self.terms) > MAX_SIZE:
            return _function("mul", tuple(sorted((self, other), key=str)))
        return _collect([(_merge(m, n), c * d) for m, c in self.terms for n, d in other.terms])

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return _floordiv(self, other) if isinstance(other, int | SymDim) else NotImplemented

    def __rfloordiv__(self, other: int) -> Dim:
        return _floordiv(other, self) if isinstance(other, int) else NotImplemented

    def __mod__(self, other: Dim) -> Dim:
        return _mod(self, other) if isinstance(other, int | SymDim) else NotImplemented

    def __rmod__(self, other: int) -> Dim:
        return _mod(other, self) if isinstance(other, int) else NotImplemented


Dim: TypeAlias = int | SymDim


# building ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def symbol(name: str) -> SymDim:
    """The unknown called exactly ``name``, whatever characters it holds."""
    return _wrap(_Factor("symbol", (name,)))


def maximum(*dims: Dim) -> Dim:
    """The largest of one or more dims."""
    return _extremum("max", dims, provably_ge, max)


def minimum(*dims: Dim) -> Dim:
    """The smallest of one or more dims."""
    return _extremum("min", dims, lambda a, b: provably_ge(b, a), min)


def ceildiv(a: Dim, b: Dim) -> Dim:
    """``a / b`` rounded towards plus infinity."""
    return (a + (b - 1)) // b if provably_positive(b) else -(-a // b)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of all dims; 1 for none."""
    result: Dim = 1
    for dim in dims:
        result = dim * result
    return result


def broadcast(*dims: Dim) -> Dim:
    """The dim that results from broadcasting, NumPy style, given that the run does not fail.

    Two dims broadcast when they are equal or one is 1. ``a`` with 5 is 5, since ``a`` must then be 1 or 5. ``a`` with
    ``b`` is neither: it is the opaque, commutative ``broadcast(a, b)``.

    Raises:
        BroadcastError: When two dims are different integers, none of them 1.
    """
    parts = {part: None for dim in dims for part in _parts("broadcast", dim) if part != 1}
    if len(parts) < 2:
        return next(iter(parts), 1)
    settled = {part for part in parts if provably_ne(part, 1)}  # what is not 1 is the result
    integers = {part for part in settled if isinstance(part, int)}
    if len(integers) > 1:
        raise BroadcastError(f"dims {sorted(integers)} can not be broadcast together")
    if settled:
        return min(settled, key=lambda part: (not isinstance(part, int), str(part)))
    kept = [part for part in parts if not any(_is_cut_of(part, other) for other in parts)]
    return kept[0] if len(kept) == 1 else _function("broadcast", tuple(sorted(kept, key=str)))


def _is_cut_of(part: Dim, whole: Dim) -> bool:
    """Whether ``part`` is ``min(whole, k)`` with ``k >= 1``: it can then be broadcast with ``whole`` to that only."""
    others = [other for other in _parts("min", part) if other != whole]
    return part != whole and len(others) < len(_parts("min", part)) and all(provably_ge(k, 1) for k in others)


# asking -----------------------------------------------------------------------------------------------------------


def bounds(dim: Dim) -> _Bounds:
    """Inclusive lower and upper bounds (``-inf``/``inf`` where there is none known)."""
    if isinstance(dim, int):
        return dim, dim
    if dim._bounds is None:
        low: int | float = 0
        high: int | float = 0
        for monomial, count in dim.terms:
            span: _Bounds = (count, count)
            for factor in monomial:
                span = _span_product(span, factor.bounds)
            low, high = low + span[0], high + span[1]
        dim._bounds = low, high
    return dim._bounds


def equal(a: Dim, b: Dim) -> bool:
    """Whether ``a == b`` for every value of the symbols."""
    return a == b


def provably_ge(a: Dim, b: Dim) -> bool:
    """Whether ``a >= b`` can be shown for every value of the symbols."""
    return bounds(a - b)[0] >= 0


def provably_positive(a: Dim) -> bool:
    """Whether ``a >= 1`` can be shown for every value of the symbols."""
    return bounds(a)[0] >= 1


def provably_ne(a: Dim, b: Dim) -> bool:
    """Whether ``a != b`` can be shown for every value of the symbols."""
    difference = a - b
    if isinstance(difference, int):
        return difference != 0
    low, high = bounds(difference)
    if low > 0 or high < 0:
        return True
    constant = next((count for monomial, count in difference.terms if not monomial), 0)
    return constant % math.gcd(*(count for monomial, count in difference.terms if monomial)) != 0


def divide_exact(a: Dim, b: Dim) -> Dim | None:
    """The ``q`` with ``q * b == a`` for every value of the symbols, or None when there is none (or ``b`` is 0)."""
    if isinstance(b, int):
        if b == 0:
            return None
        if isinstance(a, int):
            return a // b if a % b == 0 else None
        if any(count % b for _, count in a.terms):
            return None
        return _collect([(monomial, count // b) for monomial, count in a.terms])
    (lead, lead_count), *_ = b.terms
    quotient: list[tuple[_Monomial, int]] = []
    rest = a
    while not (isinstance(rest, int) and rest == 0):
        (monomial, count), *_ = _terms(rest)
        left = _without(monomial, lead)
        if left is None or count % lead_count or len(quotient) >= MAX_DIVISION_STEPS:
            return None
        quotient.append((left, count // lead_count))
        rest = rest - _collect([quotient[-1]]) * b
    return _collect(quotient)


def symbols(dim: Dim) -> frozenset[str]:
    """The names of all symbols that ``dim`` depends on."""
    return frozenset(_walk_symbols(dim))


def complexity(dim: Dim) -> int:
    """How big the expression is: the number of factors in it, at any depth. 0 for an integer."""
    return 0 if isinstance(dim, int) else sum(factor.size for monomial, _ in dim.terms for factor in monomial)


def evaluate(dim: Dim, bindings: Mapping[str, int]) -> int:
    """The value of ``dim`` where the symbols have the values in ``bindings``.

    Raises:
        KeyError: When a symbol has no value.
        ZeroDivisionError: Where the expression is not defined.
    """
    if isinstance(dim, int):
        return dim
    total = 0
    for monomial, count in dim.terms:
        for factor in monomial:
            if factor.op == "symbol":
                count *= bindings[factor.args[0]]
            else:
                count *= _EVALUATE[factor.op](*(evaluate(arg, bindings) for arg in factor.args))
        total += count
    return total


def parse(text: str) -> Dim:
    """Reads what ``str`` of a dim wrote, and integer expressions in Python syntax.

    Any text that is not such an expression is one symbol of that name, so this never fails. Beware: in ONNX a
    ``dim_param`` is a name without structure; :func:`symbol` keeps it so.
    """
    try:
        return _Reader().visit(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError, ZeroDivisionError, _Unreadable):
        return symbol(text)


# canonical form ---------------------------------------------------------------------------------------------------


def _wrap(factor: _Factor) -> SymDim:
    return SymDim((((factor,), 1),))


def _function(op: str, args: tuple[Dim, ...]) -> SymDim:
    return _wrap(_Factor(op, args))


def _terms(dim: Dim) -> tuple[tuple[_Monomial, int], ...]:
    return dim.terms if isinstance(dim, SymDim) else (((), int(dim)),)


def _collect(terms: Iterable[tuple[_Monomial, int]]) -> Dim:
    counts: dict[_Monomial, int] = {}
    for monomial, count in terms:
        counts[monomial] = counts.get(monomial, 0) + count
    kept = [(monomial, count) for monomial, count in counts.items() if count]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    if len(kept) > 1:
        kept.sort(key=lambda term: _order(term[0]))
    return SymDim(tuple(kept))


def _merge(a: _Monomial, b: _Monomial) -> _Monomial:
    if not a or not b:
        return a or b
    return tuple(sorted(a + b, key=lambda factor: factor.text))


def _without(monomial: _Monomial, part: _Monomial) -> _Monomial | None:
    left = list(monomial)
    for factor in part:
        if factor not in left:
            return None
        left.remove(factor)
    return tuple(left)


def _render(terms: tuple[tuple[_Monomial, int], ...]) -> str:
    text = ""
    for monomial, count in terms:
        powers = [f.text if n == 1 else f"{f.text}**{n}" for f, n in _powers(monomial)]
        if abs(count) != 1 or not powers:
            powers.insert(0, str(abs(count)))
        sign = " - " if count < 0 else " + "
        text += (sign if text else sign.strip(" +")) + "*".join(powers)
    return text


def _powers(monomial: _Monomial) -> list[tuple[_Factor, int]]:
    powers: dict[_Factor, int] = {}
    for factor in monomial:
        powers[factor] = powers.get(factor, 0) + 1
    return list(powers.items())


def _sole(dim: Dim) -> _Factor | None:
    """The factor that ``dim`` consists of, if it is just one."""
    if isinstance(dim, SymDim) and len(dim.terms) == 1:
        (monomial, count) = dim.terms[0]
        if count == 1 and len(monomial) == 1:
            return monomial[0]
    return None


def _parts(op: str, dim: Dim) -> tuple[Dim, ...]:
    """The arguments of ``dim`` if it is the n-ary function ``op``, else ``dim`` alone."""
    factor = _sole(dim)
    return factor.args if factor is not None and factor.op == op else (dim,)


def _shifted_parts(op: str, dim: Dim) -> tuple[Dim, ...]:
    """Like :func:`_parts`, and ``max(a, b) + c`` is split into ``a + c`` and ``b + c``."""
    for monomial, count in _terms(dim):
        if count == 1 and len(monomial) == 1 and monomial[0].op == op:
            rest = dim - _wrap(monomial[0])
            return tuple(arg + rest for arg in monomial[0].args)
    return (dim,)


def _extremum(op: str, dims: tuple[Dim, ...], wins: Callable[[Dim, Dim], bool], of_ints: Callable) -> Dim:
    parts = list(dict.fromkeys(part for dim in dims for part in _shifted_parts(op, dim)))
    integers = [part for part in parts if isinstance(part, int)]
    if integers:
        parts = [part for part in parts if not isinstance(part, int)] + [of_ints(integers)]
    kept: list[Dim] = []
    for part in sorted(parts, key=str):
        if any(wins(other, part) for other in kept):
            continue
        kept = [other for other in kept if not wins(part, other)] + [part]
    return kept[0] if len(kept) == 1 else _function(op, tuple(kept))


def _floordiv(a: Dim, b: Dim) -> Dim:
    if isinstance(b, SymDim):
        exact = divide_exact(a, b)
        return exact if exact is not None else _function("floordiv", (a, b))
    if isinstance(a, int) or b == 0:
        return int(a // b) if isinstance(a, int) else _function("floordiv", (a, b))
    if b < 0:
        return _floordiv(-a, -b)
    # floor((b*q + r) / b) = q + floor(r / b), and common factors of r and b cancel
    quotient = _collect([(monomial, count // b) for monomial, count in a.terms])
    rest = _collect([(monomial, count % b) for monomial, count in a.terms])
    low, high = bounds(rest)
    if low >= 0 and high < b:
        return quotient
    common = math.gcd(b, *(count for monomial, count in _terms(rest) if monomial))
    rest = _collect([(monomial, count // common) for monomial, count in _terms(rest)])
    b //= common
    if b == 1:
        return quotient + rest
    constant = next((count for monomial, count in _terms(rest) if not monomial), 0)
    inner = _sole(rest - constant)
    if inner is not None and inner.op == "floordiv" and isinstance(inner.args[1], int) and inner.args[1] > 0:
        numerator, divisor = inner.args  # floor((floor(x / m) + c) / n) = floor((x + c*m) / (m*n))
        return quotient + _floordiv(numerator + constant * divisor, divisor * b)
    return quotient + _function("floordiv", (rest, b))


def _mod(a: Dim, b: Dim) -> Dim:
    if isinstance(b, SymDim):
        return 0 if divide_exact(a, b) is not None else _function("mod", (a, b))
    if isinstance(a, int) or b == 0:
        return int(a % b) if isinstance(a, int) else _function("mod", (a, b))
    if b < 0:
        return -_mod(-a, -b)
    rest = _collect([(monomial, count % b) for monomial, count in a.terms])
    low, high = bounds(rest)
    if low >= 0 and high < b:
        return rest
    return _function("mod", (rest, b))


def _walk_symbols(dim: Dim) -> Iterator[str]:
    for monomial, _ in _terms(dim):
        for factor in monomial:
            if factor.op == "symbol":
                yield factor.args[0]
            else:
                for arg in factor.args:
                    yield from _walk_symbols(arg)


# the functions ----------------------------------------------------------------------------------------------------


def _broadcast_value(*values: int) -> int:
    rest = {value for value in values if value != 1}
    if len(rest) > 1:
        raise BroadcastError(f"dims {sorted(rest)} can not be broadcast together")
    return rest.pop() if rest else 1


def _times(a: int | float, b: int | float) -> int | float:
    return 0 if a == 0 or b == 0 else a * b


def _span_product(a: _Bounds, b: _Bounds) -> _Bounds:
    corners = [_times(x, y) for x in a for y in b]
    return min(corners), max(corners)


def _floordiv_bounds(a: _Bounds, b: _Bounds) -> _Bounds:
    if b[0] < 0:
        return -math.inf, math.inf
    b = max(b[0], 1), b[1]  # where the divisor is 0, nothing is claimed
    corners = [x if math.isinf(x) else (0 if x >= 0 else -1) if math.isinf(y) else x // y for x in a for y in b]
    return min(corners), max(corners)


def _mod_bounds(a: _Bounds, b: _Bounds) -> _Bounds:
    if b[0] < 0:
        return -math.inf, math.inf
    return 0, min(b[1] - 1, a[1]) if a[0] >= 0 else b[1] - 1


_EVALUATE: dict[str, Callable[..., int]] = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "max": max,
    "min": min,
    "mul": lambda a, b: a * b,
    "broadcast": _broadcast_value,
}

_BOUNDS: dict[str, Callable[..., _Bounds]] = {
    "floordiv": _floordiv_bounds,
    "mod": _mod_bounds,
    "max": lambda *spans: (max(low for low, _ in spans), max(high for _, high in spans)),
    "min": lambda *spans: (min(low for low, _ in spans), min(high for _, high in spans)),
    "mul": _span_product,
    "broadcast": lambda *spans: (min(low for low, _ in spans), max(high for _, high in spans)),
}

_BUILD: dict[str, Callable[..., Dim]] = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "max": maximum,
    "min": minimum,
    "mul": lambda a, b: a * b,
    "broadcast": broadcast,
    "ceildiv": ceildiv,
}


# reading ----------------------------------------------------------------------------------------------------------


class _Unreadable(Exception):
    """The text is no dim expression."""


class _Reader(ast.NodeVisitor):
    _OPERATORS: Mapping[type, Callable[[Dim, Dim], Dim]] = {
        ast.Add: lambda a, b: a + b,
        ast.Sub: lambda a, b: a - b,
        ast.Mult: lambda a, b: a * b,
        ast.FloorDiv: lambda a, b: a // b,
        ast.Mod: lambda a, b: a % b,
    }

    def visit_Name(self, node: ast.Name) -> Dim:
        if not _PLAIN_NAME.match(node.id):  # Python normalises other identifiers, which would merge distinct names
            raise _Unreadable
        return symbol(node.id)

    def visit_Constant(self, node: ast.Constant) -> Dim:
        if isinstance(node.value, str):
            return symbol(node.value)
        if type(node.value) is int:
            return node.value
        raise _Unreadable

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Dim:
        if not isinstance(node.op, ast.USub):
            raise _Unreadable
        return -self.visit(node.operand)

    def visit_BinOp(self, node: ast.BinOp) -> Dim:
        left = self.visit(node.left)
        if isinstance(node.op, ast.Pow):
            power = node.right.value if isinstance(node.right, ast.Constant) else None
            if type(power) is not int or not 1 <= power <= MAX_POWER:
                raise _Unreadable
            return product([left] * power)
        if type(node.op) not in self._OPERATORS:
            raise _Unreadable
        return self._OPERATORS[type(node.op)](left, self.visit(node.right))

    def visit_Call(self, node: ast.Call) -> Dim:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in _BUILD or node.keywords or not node.args:
            raise _Unreadable
        try:
            return _BUILD[name](*map(self.visit, node.args))
        except TypeError as error:
            raise _Unreadable from error

    def generic_visit(self, node: ast.AST) -> Dim:
        raise _Unreadable
