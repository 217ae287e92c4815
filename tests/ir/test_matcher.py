"""The matcher: what fits is found in every form that it is written in, what does not is missed with a reason."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx_ir
import pytest

from optc.ir import matcher
from optc.ir.facts import Facts
from optc.ir.matcher import Match, Miss, attribute, close, match
from optc.ir.model import load
from optc.ir.pattern import Const, Op, Pattern, Product, Sum, Var, build_pattern

HEADER = '<ir_version: 10, opset_import: ["": 17, "com.microsoft": 1]>'


def parse(body: str) -> onnx_ir.Model:
    model = load(onnx_ir.to_proto(onnx_ir.from_onnx_text(f"{HEADER} {body}")))
    for node in model.graph:
        node.name = node.name or f"{node.outputs[0].name}_node"
    return model


def values(model: onnx_ir.Model) -> dict[str, onnx_ir.Value]:
    found = {value.name: value for value in (*model.graph.inputs, *model.graph.initializers.values())}
    found.update({value.name: value for node in model.graph for value in node.outputs})
    return found


def attempt(function: Callable, model: onnx_ir.Model | str, root: str = "y", **options) -> Match | Miss:
    """Match the pattern of a function at the producer of a value; a bare text is the body of g(x, w) -> y."""
    if isinstance(model, str):
        model = parse(f"g (float[N, 4] x, float[N, 4] w) => (float[N, 4] y) {{ {model} }}")
    return match(build_pattern(function)[0], values(model)[root].producer(), Facts(model), "rule", **options)


def fits(function: Callable, model: onnx_ir.Model | str, root: str = "y") -> bool:
    return isinstance(attempt(function, model, root), Match)


def bound(found: Match | Miss) -> dict[str, object]:
    assert isinstance(found, Match), str(found)
    return {k: v.name if isinstance(v, onnx_ir.Value) else v for k, v in found.bindings.items()}


def constant(name: str, number: float, dims: str = "", kind: str = "float") -> str:
    number_text = str(number) if kind != "float" else repr(float(number))
    return f"{name} = Constant<value = {kind}{dims} {{{number_text}}}>() "


# sums and products ---------------------------------------------------------------------------------------------------


def groupings(terms: tuple[str, ...]) -> Iterator[object]:
    """Every binary tree over the terms in the order given."""
    if len(terms) == 1:
        yield terms[0]
    for cut in range(1, len(terms)):
        yield from itertools.product(groupings(terms[:cut]), groupings(terms[cut:]))


def written(tree: object, op: str) -> str:
    """The nodes that compute a tree, its root called y."""
    lines: list[str] = []

    def visit(part: object) -> str:
        if isinstance(part, str):
            return part
        name = f"t{len(lines)}"
        left, right = visit(part[0]), visit(part[1])
        name = f"t{len(lines)}"
        lines.append(f"{name} = {op}({left}, {right})")
        return name

    visit(tree)
    lines[-1] = "y" + lines[-1][lines[-1].index(" ") :]
    return " ".join(lines)


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_all_orders_and_groupings_of_four_terms(op):
    def four(p, x, a, b):
        return x * a * b * 3 if op == "Mul" else x + a + b + 3

    head = "ea = Exp(x) eb = Abs(x) " + constant("c", 3)

    def pattern(p, x):
        return four(p, x, p.Exp(x), p.Abs(x))

    count = 0
    for order in itertools.permutations(("x", "ea", "eb", "c")):
        for tree in groupings(order):
            found = attempt(pattern, head + written(tree, op))
            assert bound(found) == {"x": "x"}, tree
            assert len(found.nodes) == 5
            count += 1
    assert count == 24 * 5


def test_a_term_too_many_or_too_few_is_no_match():
    def pattern(p, x):
        return p.Exp(x) + p.Abs(x) + 1

    head = "e = Exp(x) a = Abs(x) " + constant("c", 1) + constant("d", 2)
    assert fits(pattern, head + "s = Add(e, a) y = Add(s, c)")
    assert not fits(pattern, head + "y = Add(e, a)")
    assert not fits(pattern, head + "s = Add(e, a) y = Add(s, d)")
    assert not fits(pattern, head + "s = Add(e, e) y = Add(s, c)")
    assert not fits(pattern, head + "s = Mul(e, a) y = Add(s, c)")


def test_constants_in_all_forms():
    def half(p, x):
        return p.Exp(x) * 0.5

    for form in (constant("h", 0.5), constant("h", 0.5, "[1]"), constant("h", 0.5, "[1, 1]")):
        assert fits(half, form + "e = Exp(x) y = Mul(e, h)")
        assert fits(half, form + "e = Exp(x) y = Mul(h, e)")
    assert fits(half, constant("h", 2) + "e = Exp(x) y = Div(e, h)")
    assert not fits(half, constant("h", 2) + "e = Exp(x) y = Div(h, e)")
    assert not fits(half, "h = Constant<value = float[2] {0.5, 0.5}>() e = Exp(x) y = Mul(e, h)")
    model = parse("g (float[N] x) => (float[N] y) <float h = {0.5}> { e = Exp(x) y = Mul(e, h) }")
    assert fits(half, model)
    default = parse("g (float[N] x, float h) => (float[N] y) <float h = {0.5}> { e = Exp(x) y = Mul(e, h) }")
    assert not fits(half, default), "a default is no constant"


def test_subtraction_of_a_constant_is_a_sum():
    def plus(p, x):
        return p.Exp(x) + 3

    assert fits(plus, constant("c", -3) + "e = Exp(x) y = Sub(e, c)")
    assert not fits(plus, constant("c", 3) + "e = Exp(x) y = Sub(e, c)")
    assert not fits(plus, constant("c", -3) + "e = Exp(x) y = Sub(c, e)")
    assert fits(lambda p, x: p.Exp(x) - 3, constant("c", -3) + "e = Exp(x) y = Add(c, e)")
    assert fits(lambda p, x: p.Exp(x) - 3, constant("c", 3) + "e = Exp(x) y = Sub(e, c)")


def test_division_of_integers_is_no_product():
    body = "g (int64[N] x) => (int64[N] y) { c = Constant<value = int64 {2}>() a = Abs(x) y = Div(a, c) }"
    assert not fits(lambda p, x: p.Abs(x) * 0.5, parse(body))
    assert fits(lambda p, x: p.op("Div", p.Abs(x), 2), parse(body))


def test_how_close_constants_must_be():
    single, half = onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16
    assert close(1.4142, math.sqrt(2), single) and not close(1.41, math.sqrt(2), single)
    assert close(float(np.float16(0.044715)), 0.044715, half) and not close(
        float(np.float16(0.044715)), 0.044715, single
    )
    assert close(float(np.float32(1 / 3)), 1 / 3, single)
    for exact in (0, 1, -1, 2, 0.5, 3.0, 6):
        assert close(float(exact), exact, half)
        assert not close(exact + 1e-3, exact, half) and not close(exact + 1e-7, exact, single)
    assert close(math.inf, math.inf, single) and not close(math.nan, math.nan, single)
    assert close(2, 2.0, onnx_ir.DataType.INT64) and not close(3, 2.0, onnx_ir.DataType.INT64)


# variables and constants ---------------------------------------------------------------------------------------------


def test_repeated_variables_want_the_same_value():
    def pattern(p, x):
        return p.op("Sub", p.Exp(x), p.Abs(x))

    assert fits(pattern, "e = Exp(x) a = Abs(x) y = Sub(e, a)")
    assert not fits(pattern, "e = Exp(x) a = Abs(w) y = Sub(e, a)")
    equal = constant("c", 2) + constant("d", 2) + "e = Exp(c) a = Abs(d) y = Sub(e, a)"
    assert fits(pattern, equal), "equal constants are the same value"
    other = constant("c", 2) + constant("d", 2, "[1]") + "e = Exp(c) a = Abs(d) y = Sub(e, a)"
    assert not fits(pattern, other), "of the same shape"


def test_any_is_not_bound():
    assert bound(attempt(lambda p: p.op("Sub", p.any(), p.any()), "y = Sub(x, w)")) == {}


def test_bound_constants():
    def pattern(p, x):
        return p.op("Sub", x, p.scalar("c"))

    found = attempt(pattern, constant("k", 7) + "y = Sub(x, k)")
    assert found.scalar("c") == 7 and found.x.name == "x" and found.get("z") is None and found.output.name == "y"
    with pytest.raises(AttributeError):
        _ = found.z
    assert not fits(pattern, "k = Constant<value = float[2] {1.0, 2.0}>() y = Sub(x, k)")
    assert fits(lambda p, x: p.op("Sub", x, p.const("c")), "k = Constant<value = float[2] {1.0, 2.0}>() y = Sub(x, k)")


# nodes ---------------------------------------------------------------------------------------------------------------


def test_optional_inputs():
    clip = constant("lo", 0) + constant("hi", 6)
    assert fits(lambda p, x: p.Clip(x, 0, 6), clip + "y = Clip(x, lo, hi)")
    assert not fits(lambda p, x: p.Clip(x, 0), clip + "y = Clip(x, lo, hi)")
    assert fits(lambda p, x: p.Clip(x, 0, ...), clip + "y = Clip(x, lo, hi)")
    assert fits(lambda p, x: p.Clip(x, None, 6), clip + 'y = Clip(x, "", hi)')
    assert not fits(lambda p, x: p.Clip(x, None, 6), clip + "y = Clip(x, lo, hi)")
    assert not fits(lambda p, x, c: p.Clip(x, c), "y = Clip(x)")
    assert fits(lambda p, x: p.Clip(x, None, None), "y = Clip(x)")
    assert not fits(lambda p, x, c: p.Clip(x, c, 6), clip + 'y = Clip(x, "", hi)')


def test_attributes():
    assert fits(lambda p, x: p.LeakyRelu(x, alpha=0.5), "y = LeakyRelu<alpha = 0.5>(x)")
    assert fits(lambda p, x: p.LeakyRelu(x, alpha=0.01), "y = LeakyRelu(x)"), "the schema's default"
    assert not fits(lambda p, x: p.LeakyRelu(x, alpha=0.5), "y = LeakyRelu(x)")
    for perm in ([1, 0], (1, 0)):
        assert fits(lambda p, x, perm=perm: p.Transpose(x, perm=perm), "y = Transpose<perm = [1, 0]>(x)")
    assert bound(attempt(lambda p, x, a: p.LeakyRelu(x, alpha=a), "y = LeakyRelu<alpha = 0.5>(x)"))["a"] == 0.5
    same = lambda p, x, a: p.LeakyRelu(p.LeakyRelu(x, alpha=a), alpha=a)  # noqa: E731
    assert fits(same, "t = LeakyRelu<alpha = 0.5>(x) y = LeakyRelu<alpha = 0.5>(t)")
    assert not fits(same, "t = LeakyRelu<alpha = 0.5>(x) y = LeakyRelu(t)")


def test_attribute_values():
    model = parse('g (float[N, 4] x) => (float[N, 4] y) { a = Softmax(x) y = Resize<mode = "linear">(a) }')
    softmax, resize = model.graph
    facts = Facts(model)
    assert attribute(softmax, "axis", facts) == -1
    assert attribute(softmax, "axis") is None, "without an opset there is no schema"
    assert attribute(softmax, "nothing", facts) is None
    assert attribute(resize, "mode", facts) == "linear"
    assert attribute(resize, "nearest_mode", facts) == "round_prefer_floor"
    reference = onnx_ir.Node(
        "", "Softmax", [], [onnx_ir.RefAttr("axis", "axis", onnx_ir.AttributeType.INT)], version=17
    )
    assert attribute(reference, "axis", facts) is None, "every call may give another"


def test_domains():
    gelu = lambda p, x: p.op("com.microsoft::Gelu", x)  # noqa: E731
    assert fits(gelu, "y = com.microsoft.Gelu(x)") and not fits(gelu, "y = Gelu(x)")
    assert not fits(lambda p, x: p.Gelu(x), "y = com.microsoft.Gelu(x)")


def test_commutative_operators():
    pattern = lambda p, x: p.Max(p.Exp(x), x)  # noqa: E731
    assert fits(pattern, "e = Exp(x) y = Max(e, x)") and fits(pattern, "e = Exp(x) y = Max(x, e)")
    assert not fits(lambda p, x: p.Pow(p.Exp(x), x), "e = Exp(x) y = Pow(x, e)")


def test_outputs_of_nodes_with_several():
    model = parse("g (float[N, 4] x) => (float[N, 2] y) { a, b = Split<axis = 1>(x) y = Add(a, b) }")
    first = lambda p, x: p.op("Split", x, output=0)  # noqa: E731
    both = lambda p, x: p.op("Split", x, output=1) + p.op("Split", x)  # noqa: E731
    assert fits(both, model)
    assert len(attempt(both, model).nodes) == 2
    assert not fits(lambda p, x: p.Add(p.op("Split", x), p.op("Split", x)), model)
    assert isinstance(attempt(first, model, "a"), Miss), "the other output is used outside"


def test_through():
    pattern = lambda p, x: p.Exp(p.through(("Cast", "Identity"), p.Abs(x)))  # noqa: E731
    assert fits(pattern, "a = Abs(x) y = Exp(a)")
    found = attempt(pattern, "a = Abs(x) b = Cast<to = 1>(a) c = Identity(b) y = Exp(c)")
    assert [node.op_type for node in found.nodes] == ["Exp", "Identity", "Cast", "Abs"]
    assert not fits(pattern, "a = Abs(x) b = Neg(a) y = Exp(b)")
    stuck = attempt(pattern, "b = Cast<to = 1>(x) y = Exp(b)")
    assert isinstance(stuck, Miss) and stuck.wanted == "Abs"


def test_a_failed_option_leaves_no_bindings():
    def pattern(p, x):
        first = p.op("Sub", p.bind("inner", p.Exp(p.bind("seen", x))), p.scalar("c") + 5)
        return p.one_of(first, p.op("Sub", p.Exp(x), p.Abs(p.bind("other", p.any()))))

    found = attempt(pattern, "e = Exp(x) a = Abs(w) y = Sub(e, a)")
    assert bound(found) == {"x": "x", "other": "w"}
    assert len(found.nodes) == 3 and len(set(found.nodes)) == 3
    deeper = lambda p, x: p.Neg(p.one_of(p.Exp(x), p.Exp(p.Abs(x)))) + p.Sqrt(x)  # noqa: E731
    assert bound(attempt(deeper, "a = Abs(x) e = Exp(a) n = Neg(e) s = Sqrt(x) y = Add(n, s)")) == {"x": "x"}


def test_square():
    pattern = lambda p, x: p.Exp(p.square(x))  # noqa: E731
    assert fits(pattern, "s = Mul(x, x) y = Exp(s)") and not fits(pattern, "s = Mul(x, w) y = Exp(s)")
    for two in (constant("two", 2), constant("two", 2, "", "int64")):
        assert fits(pattern, two + "s = Pow(x, two) y = Exp(s)")


# what must not be fused ----------------------------------------------------------------------------------------------


def test_a_value_used_elsewhere_stops_the_match():
    pattern = lambda p, x: p.Exp(p.Abs(x))  # noqa: E731
    shared = parse("g (float[N] x) => (float[N] y, float[N] z) { a = Abs(x) y = Exp(a) z = Neg(a) }")
    found = attempt(pattern, shared)
    assert isinstance(found, Miss) and "'a' is also used by 'z_node' (Neg)" in str(found)
    output = parse("g (float[N] x) => (float[N] y, float[N] a) { a = Abs(x) y = Exp(a) }")
    assert "'a' is an output of the graph" in str(attempt(pattern, output))
    branch = parse(
        "g (bool c, float[N] x) => (float[N] y, float[N] z) { a = Abs(x) y = Exp(a) "
        "z = If(c) <then_branch = t () => (float[N] p) { p = Neg(a) }, "
        "else_branch = e () => (float[N] q) { q = Neg(x) }> }"
    )
    assert "'a' is also used by" in str(attempt(pattern, branch))
    assert fits(lambda p, x: p.Exp(p.export("a", p.Abs(x))), shared)
    assert attempt(lambda p, x: p.Exp(p.export("a", p.Abs(x))), output).exported[0].name == "a"


def test_nodes_of_an_outer_graph_are_not_taken_in():
    model = parse(
        "g (bool c, float[N] x) => (float[N] y) { a = Abs(x) "
        "y = If(c) <then_branch = t () => (float[N] p) { p = Exp(a) }, "
        "else_branch = e () => (float[N] q) { q = Neg(x) }> }"
    )
    branch = values(model)["y"].producer().attributes["then_branch"].as_graph()
    root = next(iter(branch))
    found = match(build_pattern(lambda p, x: p.Exp(p.Abs(x)))[0], root, Facts(model), "rule")
    assert isinstance(found, Miss) and "outer graph" in str(found)
    assert isinstance(match(build_pattern(lambda p, x: p.Exp(x))[0], root, Facts(model), "rule"), Match)


def test_an_exported_value_must_not_come_back():
    pattern = lambda p, x, w: p.op("Sub", p.Exp(p.export("a", p.Abs(x))), w)  # noqa: E731
    model = parse(
        "g (float[N] x) => (float[N] y, float[N] v) { a = Abs(x) n = Neg(a) m = Sqrt(n) e = Exp(a) "
        "y = Sub(e, m) v = Neg(n) }"
    )
    found = attempt(pattern, model)
    assert isinstance(found, Miss) and "between two parts" in str(found)
    fine = parse(
        "g (float[N] x) => (float[N] y, float[N] n) { a = Abs(x) n = Neg(a) m = Sqrt(x) e = Exp(a) y = Sub(e, m) }"
    )
    assert fits(pattern, fine)


def test_refusals_make_the_matcher_try_the_next_way():
    pattern = lambda p, a, b: p.Max(a, b)  # noqa: E731
    seen: list[tuple] = []

    def refuse(found: Match) -> str | None:
        seen.append((found.a.name, found.b.name))
        return "a must be w" if found.a.name != "w" else None

    assert bound(attempt(pattern, "y = Max(x, w)", refuse=refuse)) == {"a": "w", "b": "x"}
    assert seen == [("x", "w"), ("w", "x")]
    assert "no way" in str(attempt(pattern, "y = Max(x, w)", refuse=lambda found: "no way"))


# misses --------------------------------------------------------------------------------------------------------------


def test_the_miss_is_the_nearest_one():
    pattern = lambda p, x: p.Exp(p.Abs(p.Neg(x)))  # noqa: E731
    found = attempt(pattern, "n = Sqrt(x) a = Abs(n) y = Exp(a)")
    assert isinstance(found, Miss)
    assert (found.rule, found.matched) == ("rule", 2)
    assert str(found) == "rule at 'y_node' (Exp): stopped at 'n_node' (Sqrt): wanted Neg, found Sqrt"
    assert "wanted alpha=0.5, found alpha=" in str(
        attempt(lambda p, x: p.Exp(p.LeakyRelu(x, alpha=0.5)), "a = LeakyRelu(x) y = Exp(a)")
    )
    assert "wanted 1 inputs, found 2 inputs" in str(
        attempt(lambda p, x: p.Exp(p.Clip(x)), constant("c", 1) + "a = Clip(x, c) y = Exp(a)")
    )
    assert "the constant 0.5" in str(
        attempt(lambda p, x: p.Exp(p.Abs(x) * 0.5), constant("c", 0.25) + "a = Abs(x) b = Mul(a, c) y = Exp(b)")
    )


def test_the_step_limit_ends_the_search_and_is_named(monkeypatch):
    terms = 9
    names = [f"e{i}" for i in range(terms)]
    body = " ".join(f"{name} = Exp(x)" for name in names)
    sums = f"s1 = Add(e0, e1) {' '.join(f's{i} = Add(s{i - 1}, e{i})' for i in range(2, terms - 1))}"
    body = f"{body} {sums} y = Add(s{terms - 2}, e{terms - 1})"

    def pattern(p, x):
        total = p.Exp(x)
        for _ in range(terms - 2):
            total = total + p.Exp(x)
        return total + p.Abs(x)

    monkeypatch.setattr(matcher, "_STEP_LIMIT", 500)
    found = attempt(pattern, body)
    assert isinstance(found, Miss) and "step limit" in str(found)


# against brute force -------------------------------------------------------------------------------------------------

LEAVES = ("x", "w", "1", "2")
trees = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["Add", "Mul", "Max", "Pow"]), inner, inner),
        st.tuples(st.sampled_from(["Exp", "Abs"]), inner),
    ),
    max_leaves=6,
)
patterns = st.recursive(
    st.sampled_from(("a", "b", "1", "2")),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["Add", "Mul", "Max", "Pow"]), inner, inner),
        st.tuples(st.sampled_from(["Exp", "Abs"]), inner),
    ),
    max_leaves=5,
)


def model_of(tree: tuple) -> onnx_ir.Model:
    """The tree as a graph in which every occurrence is a node of its own."""
    lines: list[str] = []

    def visit(part) -> str:
        if isinstance(part, str):
            return {"1": "one", "2": "two"}.get(part, part)
        arguments = ", ".join(visit(argument) for argument in part[1:])
        lines.append(f"t{len(lines)} = {part[0]}({arguments})")
        return f"t{len(lines) - 1}"

    visit(tree)
    lines[-1] = "y" + lines[-1][lines[-1].index(" ") :]
    return parse(f"g (float x, float w) => (float y) {{ {constant('one', 1)} {constant('two', 2)} {' '.join(lines)} }}")


def pattern_of(tree: tuple) -> Pattern:
    if isinstance(tree, str):
        return Const(int(tree)) if tree.isdigit() else Var(tree)
    arguments = tuple(pattern_of(argument) for argument in tree[1:])
    if tree[0] == "Add":
        return Sum.of(*arguments)
    if tree[0] == "Mul":
        return Product.of(*arguments)
    return Op((tree[0],), arguments)


def flat(tree, op: str) -> list:
    """The terms of a pattern's sum or product."""
    return (
        [term for part in tree[1:] for term in flat(part, op)] if isinstance(tree, tuple) and tree[0] == op else [tree]
    )


def cuts(tree, op: str, count: int) -> Iterator[list]:
    """All ways to see a graph's tree as ``count`` terms joined by ``op``."""
    if count == 1:
        yield [tree]
    elif isinstance(tree, tuple) and tree[0] == op:
        for size in range(1, count):
            for left, right in itertools.product(cuts(tree[1], op, size), cuts(tree[2], op, count - size)):
                yield left + right


def brute(pattern, tree, bindings: dict) -> Iterator[dict]:
    """Every way in which a tree matches a pattern, by trying all."""
    if isinstance(pattern, str):
        if pattern.isdigit():
            if tree == pattern:
                yield bindings
        elif bindings.get(pattern, tree) == tree:
            yield {**bindings, pattern: tree}
        return
    if pattern[0] in ("Add", "Mul"):
        terms = flat(pattern, pattern[0])
        options = (order for cut in cuts(tree, pattern[0], len(terms)) for order in itertools.permutations(cut))
    elif not isinstance(tree, tuple) or tree[0] != pattern[0]:
        return
    else:
        terms = list(pattern[1:])
        options = iter([tree[1:], tree[:0:-1]] if pattern[0] == "Max" else [tree[1:]])
    for option in options:
        partial = [bindings]
        for term, part in zip(terms, option, strict=True):
            partial = [new for old in partial for new in brute(term, part, old)]
        yield from partial


def distinct(tree) -> bool:
    """Whether no compound part occurs twice: the graph has a node for each, and they are different values."""
    seen: list = []

    def visit(part) -> None:
        if isinstance(part, tuple):
            seen.append(part)
            for argument in part[1:]:
                visit(argument)

    visit(tree)
    return len(seen) == len(set(seen))


@hypothesis.given(trees.filter(lambda t: isinstance(t, tuple)), patterns.filter(lambda t: isinstance(t, tuple)))
@hypothesis.settings(max_examples=300, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_the_matcher_agrees_with_brute_force(tree, pattern):
    hypothesis.assume(distinct(tree))
    hypothesis.assume(len(flat(pattern, "Add")) <= 4 and len(flat(pattern, "Mul")) <= 4)
    check_against_brute_force(tree, pattern)


@hypothesis.given(trees.filter(lambda t: isinstance(t, tuple)), st.data())
@hypothesis.settings(max_examples=200, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_a_tree_matches_itself_shuffled(tree, data):
    """Generalize the tree into a pattern, swap operands at random: it must match."""
    hypothesis.assume(distinct(tree))

    def shuffled(part):
        if isinstance(part, str):
            return {"x": "a", "w": "b"}.get(part, part)
        arguments = [shuffled(argument) for argument in part[1:]]
        if part[0] in ("Add", "Mul", "Max") and data.draw(st.booleans()):
            arguments.reverse()
        return (part[0], *arguments)

    model = model_of(tree)
    found = match(pattern_of(shuffled(tree)), values(model)["y"].producer(), Facts(model), "rule")
    assert isinstance(found, Match), str(found)


def check_against_brute_force(tree, pattern) -> None:
    model = model_of(tree)
    expected = list(brute(pattern, tree, {}))
    found = match(pattern_of(pattern), values(model)["y"].producer(), Facts(model), "rule")
    assert isinstance(found, Match) == bool(expected), (expected, str(found))
    if isinstance(found, Match):
        assert {name: rebuilt(value) for name, value in found.bindings.items()} in expected


def rebuilt(value: onnx_ir.Value):
    """The tree that a value computes."""
    node = value.producer()
    if node is None or node.op_type == "Constant":
        return {"one": "1", "two": "2"}.get(value.name, value.name)
    return (node.op_type, *(rebuilt(argument) for argument in node.inputs))
