"""The pattern language: what functions trace to, and what is refused."""

from __future__ import annotations

import pytest

from optc.ir.pattern import Const, Named, OneOf, Op, PatternBuilder, Product, Sum, Through, Var, build_pattern, lift

p = PatternBuilder()
X, Y, Z = Var("x"), Var("y"), Var("z")


def constants(pattern: Sum | Product) -> list[object]:
    return [term.value for term in pattern.terms if isinstance(term, Const)]


def test_sums_and_products_are_flat():
    total = (X + Y) + (Z + 1)
    assert isinstance(total, Sum) and len(total.terms) == 4 and constants(total) == [1]
    assert len((2 * X * (Y * Z)).terms) == 4
    nested = X * (Y + Z)
    assert isinstance(nested, Product) and isinstance(nested.terms[1], Sum)


def test_minus_and_division_of_constants_turn_over():
    assert constants(X - 2) == [-2]
    assert constants(X / 4) == [0.25]
    assert (X - Y).ops == ("Sub",) and (X / Y).ops == ("Div",)
    assert (1 - X).ops == ("Sub",) and isinstance((1 - X).inputs[0], Const)
    assert (1 / X).ops == ("Div",)
    assert (-X).ops == ("Neg",) and (X @ Y).ops == ("MatMul",)
    with pytest.raises(ZeroDivisionError):
        X / 0


def test_builder():
    conv = p.Conv(X, Y, ..., group=1)
    assert isinstance(conv, Op) and conv.rest and len(conv.inputs) == 2 and conv.attributes == {"group": 1}
    gap = p.Clip(X, None, 6)
    assert gap.inputs[1] is None and gap.inputs[2].value == 6 and not gap.rest
    assert p.op("com.microsoft::Gelu", X).roots == {("com.microsoft", "Gelu")}
    assert p.op(["Relu", "Tanh"], X).roots == {("", "Relu"), ("", "Tanh")}
    assert p.op("Split", X, output=1).output == 1
    assert not p.const("w").scalar and p.scalar("eps").scalar
    assert isinstance(p.bind("a", X), Named) and p.export("a", X).exported and not p.bind("a", X).exported
    assert isinstance(p.square(X), OneOf) and p.any().name == "_"
    with pytest.raises(AttributeError):
        _ = p._private


def test_roots():
    assert (X + Y).roots == {("", "Add"), ("", "Sub")}
    assert (X * Y).roots == {("", "Mul"), ("", "Div")}
    assert X.roots == Const(1).roots == frozenset()
    assert p.one_of(p.Relu(X), X * Y).roots == {("", "Relu"), ("", "Mul"), ("", "Div")}
    assert p.through("Cast", p.Relu(X)).roots == {("", "Cast"), ("", "Relu")}
    assert p.export("a", p.Relu(X)).roots == {("", "Relu")}
    assert isinstance(p.through(("Cast",), X), Through)


def test_tracing():
    def gelu(p, x, w):
        return p.Erf(x) * w

    pattern, names = build_pattern(gelu)
    assert names == ("x", "w") and isinstance(pattern, Product)
    assert lift(pattern) is pattern and lift(3).value == 3


@pytest.mark.parametrize("function", [lambda p, x: x, lambda p, x: 3, lambda p, x: p.const("c"), lambda p, x: None])
def test_a_pattern_needs_a_root(function):
    with pytest.raises(TypeError, match="must return"):
        build_pattern(function)


@pytest.mark.parametrize("name", ["facts", "nodes", "output", "root", "scalar", "get", "bindings", "exported"])
def test_names_that_a_match_has_itself_are_refused(name):
    namespace: dict = {}
    exec(f"def function(p, {name}):\n    return p.Relu({name})", namespace)
    with pytest.raises(TypeError, match=name):
        build_pattern(namespace["function"])
