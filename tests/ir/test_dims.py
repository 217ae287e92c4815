"""The algebra of symbolic dims agrees with integer arithmetic, and its text can be read back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optc.ir.dims import (
    BroadcastError,
    Dim,
    SymDim,
    bounds,
    broadcast,
    ceildiv,
    complexity,
    divide_exact,
    equal,
    evaluate,
    maximum,
    minimum,
    parse,
    product,
    provably_ge,
    provably_ne,
    provably_positive,
    symbol,
    symbols,
)

A, B, S = symbol("a"), symbol("b"), symbol("s")
ANY = symbol("$x")


def test_polynomials_have_one_form():
    assert (A + B) * (A - B) == A * A - B * B
    assert str((A + B) * (A - B)) == "a**2 - b**2"
    assert A + B == B + A and hash(A * B + 1) == hash(1 + B * A)
    assert A - A == 0 and type(A - A) is int
    assert (A + 3) - A == 3
    assert A * 0 == 0 and A * 1 is A
    assert equal(2 * A + A, 3 * A) and not equal(A, B)


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (12 * A // 4, "3*a"),
        ((4 * A + 6) // 4, "a + floordiv(6, 4)"),
        ((2 * A + 3) // 2, "a + 1"),
        ((A * B + B) // B, "a + 1"),
        (((A - 1) // 2 + 1 - 1) // 2 + 1, "floordiv(a - 1, 4) + 1"),
        (ceildiv(S, 4), "floordiv(s + 3, 4)"),
        ((8 * A + 5) % 4, "1"),
        ((A % 5) % 5, "mod(a, 5)"),
        (maximum(A, 0), "a"),
        (maximum(maximum(A - 2, 0) - 2, 0), "max(0, a - 4)"),
        (minimum(A, A + 1), "a"),
        (maximum(3, A, 5), "max(5, a)"),
    ],
)
def test_simplification(dim: Dim, text: str):
    assert dim == parse(text)


@pytest.mark.parametrize(
    ("dims", "result"),
    [
        ((A, A), A),
        ((A, 1), A),
        ((1, 1), 1),
        ((A, 5), 5),
        ((5, A), 5),
        ((A, 0), 0),
        ((A + 2, B), A + 2),
        ((2 * A, B), 2 * A),
        ((S, minimum(S, 512)), S),
    ],
)
def test_broadcast_that_is_settled(dims: tuple[Dim, ...], result: Dim):
    assert broadcast(*dims) == result


def test_broadcast_of_different_unknowns_is_neither():
    both = broadcast(A, B)
    assert both not in (A, B)
    assert both == broadcast(B, A) == broadcast(both, A, 1)
    assert evaluate(both, {"a": 1, "b": 7}) == 7
    assert evaluate(both, {"a": 7, "b": 1}) == 7
    assert evaluate(both, {"a": 0, "b": 1}) == 0
    with pytest.raises(BroadcastError):
        broadcast(2, 3)


def test_what_is_provable():
    assert provably_ge(A + 1, 1) and provably_positive(A * B + 1) and provably_ge(2 * A, 0)
    assert not provably_positive(A) and not provably_ge(A - 1, 0) and not provably_ge(A, B)
    assert not provably_ge(ANY, 0)
    assert provably_ne(A, -1) and provably_ne(2 * A, 5) and not provably_ne(A, 0) and not provably_ne(ANY, -1)
    assert bounds(A % 7) == (0, 6)
    assert bounds(minimum(A, 9)) == (0, 9)
    assert bounds(-A) == (-math.inf, 0)


def test_exact_division():
    assert divide_exact(12 * A * B, 4 * B) == 3 * A
    assert divide_exact(A * B + A, B + 1) == A
    assert divide_exact(A, 2) is None and divide_exact(A, B) is None and divide_exact(A + 1, A) is None
    assert divide_exact(A, 0) is None
    assert divide_exact(12, 5) is None and divide_exact(12, 4) == 3
    assert divide_exact(0, A) == 0


def test_truth_of_a_symbol_is_refused():
    with pytest.raises(TypeError):
        bool(A)


@pytest.mark.parametrize(
    "name",
    [
        "batch",
        "batch_size",
        "a + 1",
        "past-seq",
        "?",
        "",
        " ",
        "7",
        "lambda",
        "None",
        "a.b",
        "ﬁ",
        "fi",
        "'",
        "a*",
        "$x",
    ],
)
def test_any_name_is_one_symbol(name: str):
    assert symbols(symbol(name)) == {name}
    assert parse(str(symbol(name))) == symbol(name)
    assert parse(str(2 * symbol(name) + 1)) == 2 * symbol(name) + 1


@pytest.mark.parametrize(
    "text", ["a +", "a b", "f(a)", "a ** b", "a ** 99999999", "a[0]", "x" * 5000 + "(", "1.5", "(" * 500]
)
def test_unreadable_text_is_one_symbol(text: str):
    assert symbols(parse(text)) == {text}


def test_reading():
    assert parse("7") == 7
    assert parse("2*a + 1") == 2 * A + 1
    assert parse("(a + 1)//2") == (A + 1) // 2
    assert parse("max(a, b, 1)") == maximum(A, B, 1)
    assert parse("a**3") == A * A * A


def test_an_extremum_of_extrema_has_one_form():
    c, d = symbol("c"), symbol("d")
    sums = maximum(A + c, A + d, B + c, B + d, 7 - d)
    assert maximum(7 - d, maximum(A, B) + maximum(c, d)) == sums
    assert parse(str(sums)) == sums
    assert maximum(maximum(A, maximum(B + 1, c) + 2), A + 5) == maximum(A + 5, B + 3, c + 2)
    assert minimum(minimum(A, B) + minimum(c, d), A + c + 1) == minimum(B + d, A + d, c + B, c + A)


def test_big_extrema_stay_small():
    wide = sum((maximum(symbol(f"x{i}"), symbol(f"y{i}")) for i in range(20)), start=symbol("z"))
    assert complexity(maximum(wide, 9)) < 20000


def test_big_products_stay_small():
    wide = product(symbol(f"x{i}") + symbol(f"y{i}") for i in range(20))
    assert complexity(wide) < 2000
    bindings = {f"{letter}{i}": 1 for letter in "xy" for i in range(20)}
    assert evaluate(wide, bindings) == 2**20


# properties -------------------------------------------------------------------------------------------------------

_NAMES = ["a", "b", "c d", "$x", "$y"]


@st.composite
def _expressions(draw: st.DrawFn, depth: int = 4):
    """A dim, and a function of bindings that computes the same with plain integers."""
    if depth == 0 or draw(st.booleans()):
        if draw(st.booleans()):
            number = draw(st.integers(-6, 12))
            return number, lambda _: number
        name = draw(st.sampled_from(_NAMES))
        return symbol(name), lambda bindings: bindings[name]
    left, left_value = draw(_expressions(depth - 1))
    right, right_value = draw(_expressions(depth - 1))
    build, compute = draw(
        st.sampled_from(
            [
                (lambda x, y: x + y, lambda x, y: x + y),
                (lambda x, y: x - y, lambda x, y: x - y),
                (lambda x, y: x * y, lambda x, y: x * y),
                (lambda x, y: x // y, lambda x, y: x // y),
                (lambda x, y: x % y, lambda x, y: x % y),
                (ceildiv, lambda x, y: -(-x // y)),
                (maximum, max),
                (minimum, min),
            ]
        )
    )
    try:
        dim = build(left, right)
    except ZeroDivisionError:
        return left, left_value
    return dim, lambda bindings: compute(left_value(bindings), right_value(bindings))


_BINDINGS = st.fixed_dictionaries(
    {name: st.integers(-5, 9) if name.startswith("$") else st.integers(0, 9) for name in _NAMES}
)


@settings(max_examples=600, deadline=None)
@given(_expressions(), _BINDINGS)
def test_algebra_agrees_with_integers(expression, bindings: dict[str, int]):
    dim, compute = expression
    try:
        expected = compute(bindings)
    except ZeroDivisionError:
        return  # not defined there, so nothing is claimed
    assert evaluate(dim, bindings) == expected
    low, high = bounds(dim)
    assert low <= expected <= high


@settings(max_examples=400, deadline=None)
@given(_expressions())
def test_text_reads_back(expression):
    dim, _ = expression
    back = parse(str(dim))
    assert isinstance(dim, SymDim) == bool(symbols(dim))
    assert back == dim


@settings(max_examples=400, deadline=None)
@given(_expressions(), _expressions(), _BINDINGS)
def test_proofs_hold(left, right, bindings: dict[str, int]):
    (a, _), (b, _) = left, right
    try:
        x, y = evaluate(a, bindings), evaluate(b, bindings)
    except ZeroDivisionError:
        return
    assert not provably_ge(a, b) or x >= y
    assert not provably_ne(a, b) or x != y
    assert not equal(a, b) or x == y
    quotient = divide_exact(a, b)
    assert quotient is None or evaluate(quotient, bindings) * y == x


@settings(max_examples=600, deadline=None)
@given(st.lists(_expressions(depth=2), min_size=1, max_size=4), _BINDINGS)
def test_broadcast_is_sound(parts, bindings: dict[str, int]):
    dims = [dim for dim, _ in parts]
    try:
        values = [evaluate(dim, bindings) for dim in dims]
    except ZeroDivisionError:
        return
    if min(values) < 0 or len(set(values) - {1}) > 1:
        return  # such dims can not be, or can not be broadcast together
    assert evaluate(broadcast(*dims), bindings) == max((set(values) - {1}) or {1})
