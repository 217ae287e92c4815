"""The polynomials behind symbolic dims: their canonical form and arithmetic. :mod:`optc.ir.dims` is the face of it.

A polynomial is a sum of monomials with integer counts; a monomial is a product of factors; a factor is a symbol or an
opaque function of dims. Terms are kept in graded lexicographic order of their texts, which makes the form canonical and
division exact where it can be.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TypeAlias

MAX_SIZE = 256
"""A product is multiplied out unless the result would have more factors than this; then it is one ``mul`` factor."""

MAX_DIVISION_STEPS = 64

PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

Bounds: TypeAlias = "tuple[int | float, int | float]"


class Factor:
    """A symbol (``op == "symbol"``, ``args == (name,)``) or a function of dims. Identified by its text."""

    __slots__ = ("args", "bounds", "op", "size", "text")

    def __init__(self, op: str, args: tuple) -> None:
        self.op, self.args = op, args
        if op == "symbol":
            (name,) = args
            plain = PLAIN_NAME.match(name) and not keyword.iskeyword(name)
            self.text = name if plain else repr(name)
            self.bounds: Bounds = (-math.inf, math.inf) if name.startswith("$") else (0, math.inf)
            self.size = 1
        else:
            self.text = f"{op}({', '.join(map(str, args))})"
            self.bounds = _BOUNDS[op](*map(bounds, args))
            self.size = 1 + sum(complexity(arg) for arg in args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Factor) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return self.text


Monomial: TypeAlias = "tuple[Factor, ...]"


def _order(monomial: Monomial) -> tuple:
    """Graded lexicographic order, the leading monomial first."""
    return -len(monomial), [factor.text for factor in monomial]


class SymDim:
    """An immutable, hashable, non-constant integer polynomial. Build one with :func:`symbol` and arithmetic."""

    __slots__ = ("_bounds", "_hash", "_text", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        """Not for direct use: ``terms`` must already be canonical (see :func:`_collect`)."""
        self.terms = terms
        self._text: str | None = None
        self._bounds: Bounds | None = None
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
        return _collect([*terms_of(self), *terms_of(other)])

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
            return function("mul", tuple(sorted((self, other), key=str)))
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


@lru_cache(maxsize=4096)
def symbol(name: str) -> SymDim:
    """The unknown called exactly ``name``, whatever characters it holds."""
    return wrap(Factor("symbol", (name,)))


# asking ---------------------------------------------------------------------------------------------------------------


def bounds(dim: Dim) -> Bounds:
    """Inclusive lower and upper bounds (``-inf``/``inf`` where there is none known)."""
    if isinstance(dim, int):
        return dim, dim
    if dim._bounds is None:
        low: int | float = 0
        high: int | float = 0
        for monomial, count in dim.terms:
            span: Bounds = (count, count)
            for factor in monomial:
                span = _span_product(span, factor.bounds)
            low, high = low + span[0], high + span[1]
        dim._bounds = low, high
    return dim._bounds


def bounds_within(dim: Dim, ranges: Mapping[str, Bounds]) -> Bounds:
    """Like :func:`bounds`, where the symbols in ``ranges`` are known to lie between these values."""
    if isinstance(dim, int):
        return dim, dim
    low: int | float = 0
    high: int | float = 0
    for monomial, count in dim.terms:
        span: Bounds = (count, count)
        for factor in monomial:
            if factor.op == "symbol":
                span = _span_product(span, ranges.get(factor.args[0], factor.bounds))
            else:
                span = _span_product(span, _BOUNDS[factor.op](*(bounds_within(arg, ranges) for arg in factor.args)))
        low, high = low + span[0], high + span[1]
    return low, high


def complexity(dim: Dim) -> int:
    """How big the expression is: the number of factors in it, at any depth. 0 for an integer."""
    return 0 if isinstance(dim, int) else sum(factor.size for monomial, _ in dim.terms for factor in monomial)


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
    quotient: list[tuple[Monomial, int]] = []
    rest = a
    while not (isinstance(rest, int) and rest == 0):
        (monomial, count), *_ = terms_of(rest)
        left = _without(monomial, lead)
        if left is None or count % lead_count or len(quotient) >= MAX_DIVISION_STEPS:
            return None
        quotient.append((left, count // lead_count))
        rest = rest - _collect([quotient[-1]]) * b
    return _collect(quotient)


# canonical form -------------------------------------------------------------------------------------------------------


def wrap(factor: Factor) -> SymDim:
    return SymDim((((factor,), 1),))


def function(op: str, args: tuple[Dim, ...]) -> SymDim:
    return wrap(Factor(op, args))


def terms_of(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, SymDim) else (((), int(dim)),)


def _collect(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    counts: dict[Monomial, int] = {}
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


def _merge(a: Monomial, b: Monomial) -> Monomial:
    if not a or not b:
        return a or b
    return tuple(sorted(a + b, key=lambda factor: factor.text))


def _without(monomial: Monomial, part: Monomial) -> Monomial | None:
    left = list(monomial)
    for factor in part:
        if factor not in left:
            return None
        left.remove(factor)
    return tuple(left)


def _render(terms: tuple[tuple[Monomial, int], ...]) -> str:
    text = ""
    for monomial, count in terms:
        powers = [f.text if n == 1 else f"{f.text}**{n}" for f, n in _powers(monomial)]
        if abs(count) != 1 or not powers:
            powers.insert(0, str(abs(count)))
        sign = " - " if count < 0 else " + "
        text += (sign if text else sign.strip(" +")) + "*".join(powers)
    return text


def _powers(monomial: Monomial) -> list[tuple[Factor, int]]:
    powers: dict[Factor, int] = {}
    for factor in monomial:
        powers[factor] = powers.get(factor, 0) + 1
    return list(powers.items())


def sole_factor(dim: Dim) -> Factor | None:
    """The factor that ``dim`` consists of, if it is just one."""
    if isinstance(dim, SymDim) and len(dim.terms) == 1:
        (monomial, count) = dim.terms[0]
        if count == 1 and len(monomial) == 1:
            return monomial[0]
    return None


# division -------------------------------------------------------------------------------------------------------------


def _floordiv(a: Dim, b: Dim) -> Dim:
    if isinstance(b, SymDim):
        exact = divide_exact(a, b)
        return exact if exact is not None else function("floordiv", (a, b))
    if isinstance(a, int) or b == 0:
        return int(a // b) if isinstance(a, int) else function("floordiv", (a, b))
    if b < 0:
        return _floordiv(-a, -b)
    # floor((b*q + r) / b) = q + floor(r / b), and common factors of r and b cancel
    quotient = _collect([(monomial, count // b) for monomial, count in a.terms])
    rest = _collect([(monomial, count % b) for monomial, count in a.terms])
    low, high = bounds(rest)
    if low >= 0 and high < b:
        return quotient
    common = math.gcd(b, *(count for monomial, count in terms_of(rest) if monomial))
    rest = _collect([(monomial, count // common) for monomial, count in terms_of(rest)])
    b //= common
    if b == 1:
        return quotient + rest
    constant = next((count for monomial, count in terms_of(rest) if not monomial), 0)
    inner = sole_factor(rest - constant)
    if inner is not None and inner.op == "floordiv" and isinstance(inner.args[1], int) and inner.args[1] > 0:
        numerator, divisor = inner.args  # floor((floor(x / m) + c) / n) = floor((x + c*m) / (m*n))
        return quotient + _floordiv(numerator + constant * divisor, divisor * b)
    return quotient + function("floordiv", (rest, b))


def _mod(a: Dim, b: Dim) -> Dim:
    if isinstance(b, SymDim):
        return 0 if divide_exact(a, b) is not None else function("mod", (a, b))
    if isinstance(a, int) or b == 0:
        return int(a % b) if isinstance(a, int) else function("mod", (a, b))
    if b < 0:
        return -_mod(-a, -b)
    rest = _collect([(monomial, count % b) for monomial, count in a.terms])
    low, high = bounds(rest)
    if low >= 0 and high < b:
        return rest
    return function("mod", (rest, b))


# bounds of functions --------------------------------------------------------------------------------------------------


def _times(a: int | float, b: int | float) -> int | float:
    return 0 if a == 0 or b == 0 else a * b


def _span_product(a: Bounds, b: Bounds) -> Bounds:
    corners = [_times(x, y) for x in a for y in b]
    return min(corners), max(corners)


def _floordiv_bounds(a: Bounds, b: Bounds) -> Bounds:
    if b[0] < 0:
        return -math.inf, math.inf
    b = max(b[0], 1), max(b[1], 1)  # where the divisor is 0, nothing is claimed
    corners = [x if math.isinf(x) else (0 if x >= 0 else -1) if math.isinf(y) else x // y for x in a for y in b]
    return min(corners), max(corners)


def _mod_bounds(a: Bounds, b: Bounds) -> Bounds:
    if b[0] < 0:
        return -math.inf, math.inf
    return 0, min(b[1] - 1, a[1]) if a[0] >= 0 else b[1] - 1


_BOUNDS: dict[str, Callable[..., Bounds]] = {
    "floordiv": _floordiv_bounds,
    "mod": _mod_bounds,
    "max": lambda *spans: (max(low for low, _ in spans), max(high for _, high in spans)),
    "min": lambda *spans: (min(low for low, _ in spans), min(high for _, high in spans)),
    "mul": _span_product,
    "broadcast": lambda *spans: (min(low for low, _ in spans), max(high for _, high in spans)),
}
