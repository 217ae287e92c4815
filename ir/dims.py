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
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from optc.ir.dims_core import (
    PLAIN_NAME,
    Dim,
    SymDim,
    bounds,
    bounds_within,
    complexity,
    divide_exact,
    function,
    sole_factor,
    symbol,
    terms_of,
    wrap,
)

__all__ = [
    "BroadcastError",
    "Dim",
    "SymDim",
    "bounds",
    "bounds_within",
    "broadcast",
    "ceildiv",
    "complexity",
    "divide_exact",
    "equal",
    "evaluate",
    "maximum",
    "minimum",
    "parse",
    "product",
    "provably_ge",
    "provably_ne",
    "provably_positive",
    "symbol",
    "symbols",
]

MAX_POWER = 64
#: An extremum of this many arguments takes over none from extrema inside of it, whose sums have products of them.
_MAX_ARGUMENTS = 32


class BroadcastError(ValueError):
    """Two dims can never be broadcast together."""


# building -------------------------------------------------------------------------------------------------------------


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
    return kept[0] if len(kept) == 1 else function("broadcast", tuple(sorted(kept, key=str)))


def _is_cut_of(part: Dim, whole: Dim) -> bool:
    """Whether ``part`` is ``min(whole, k)`` with ``k >= 1``: it can then be broadcast with ``whole`` to that only."""
    others = [other for other in _parts("min", part) if other != whole]
    return part != whole and len(others) < len(_parts("min", part)) and all(provably_ge(k, 1) for k in others)


def _parts(op: str, dim: Dim) -> tuple[Dim, ...]:
    """The arguments of ``dim`` if it is the n-ary function ``op``, else ``dim`` alone."""
    factor = sole_factor(dim)
    return factor.args if factor is not None and factor.op == op else (dim,)


def _shifted_parts(op: str, dim: Dim) -> tuple[Dim, ...] | None:
    """What ``max(a, b) + c`` is the maximum of: ``a + c`` and ``b + c``. None for what is no such sum."""
    for monomial, count in terms_of(dim):
        if count == 1 and len(monomial) == 1 and monomial[0].op == op:
            rest = dim - wrap(monomial[0])
            return tuple(arg + rest for arg in monomial[0].args)
    return None


def _flattened(op: str, dims: tuple[Dim, ...]) -> list[Dim]:
    """Different dims whose extremum is that of ``dims`` and none of which is one itself, unless they are too many."""
    flat: dict[Dim, None] = {}
    pending = list(dict.fromkeys(reversed(dims)))
    while pending:
        dim = pending.pop()
        parts = _shifted_parts(op, dim) if len(flat) + len(pending) < _MAX_ARGUMENTS else None
        if parts is None:
            flat[dim] = None
        else:
            pending.extend(part for part in parts if part not in flat)
    return list(flat)


def _extremum(op: str, dims: tuple[Dim, ...], wins: Callable[[Dim, Dim], bool], of_ints: Callable) -> Dim:
    parts = _flattened(op, dims)
    integers = [part for part in parts if isinstance(part, int)]
    if integers:
        parts = [part for part in parts if not isinstance(part, int)] + [of_ints(integers)]
    kept: list[Dim] = []
    for part in sorted(parts, key=str):
        if any(wins(other, part) for other in kept):
            continue
        kept = [other for other in kept if not wins(part, other)] + [part]
    return kept[0] if len(kept) == 1 else function(op, tuple(kept))


# asking ---------------------------------------------------------------------------------------------------------------


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


def symbols(dim: Dim) -> frozenset[str]:
    """The names of all symbols that ``dim`` depends on."""
    return frozenset(_walk_symbols(dim))


def _walk_symbols(dim: Dim) -> Iterator[str]:
    for monomial, _ in terms_of(dim):
        for factor in monomial:
            if factor.op == "symbol":
                yield factor.args[0]
            else:
                for arg in factor.args:
                    yield from _walk_symbols(arg)


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


def _broadcast_value(*values: int) -> int:
    rest = {value for value in values if value != 1}
    if len(rest) > 1:
        raise BroadcastError(f"dims {sorted(rest)} can not be broadcast together")
    return rest.pop() if rest else 1


_EVALUATE: dict[str, Callable[..., int]] = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "max": max,
    "min": min,
    "mul": lambda a, b: a * b,
    "broadcast": _broadcast_value,
}

# reading --------------------------------------------------------------------------------------------------------------


def parse(text: str) -> Dim:
    """Reads what ``str`` of a dim wrote, and integer expressions in Python syntax.

    Any text that is not such an expression is one symbol of that name, so this never fails. Beware: in ONNX a
    ``dim_param`` is a name without structure; :func:`symbol` keeps it so.
    """
    try:
        return _Reader().visit(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError, ZeroDivisionError, _Unreadable):
        return symbol(text)


_BUILD: dict[str, Callable[..., Dim]] = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "max": maximum,
    "min": minimum,
    "mul": lambda a, b: a * b,
    "broadcast": broadcast,
    "ceildiv": ceildiv,
}


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
        if not PLAIN_NAME.match(node.id):  # Python normalises other identifiers, which would merge distinct names
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
