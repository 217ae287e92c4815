"""The judge and the mutants find the mistakes that rules make: each of these planted ones."""

from __future__ import annotations

import random

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import Phase, given, settings
from onnx import numpy_helper

from optc.ir.errors import PassError
from optc.ir.ops import made_by
from optc.passes.base import Numerics
from optc.passes.rule import NodeRule, node_rule, rule
from optc.passes.rule_pass import rule_pass

from .judge import draw_feeds, judge
from .mutants import mutate
from .settings import CHANCE, quick


@node_rule("any-zero", "Add")
def forgets_shapes(rw, node):
    """x + 0 is x: not where the zero broadcasts x."""
    zero = rw.facts.const(node.inputs[1])
    return node.inputs[0] if zero is not None and not zero.any() else None


@node_rule("any-axis", "Softmax", numerics=Numerics.ROUNDING)
def forgets_an_attribute(rw, node):
    return rw.op("Softmax", node.inputs[0], axis=-1) if node.attributes["axis"].as_int() != -1 else None


@node_rule("any-factor", "Mul", numerics=Numerics.ROUNDING)
def forgets_a_constant(rw, node):
    """x / sqrt(2) taken for any product with about 0.7."""
    factor = rw.facts.scalar(node.inputs[1])
    if factor is None or not 0.69 < factor < 0.72 or factor == np.float32(0.70710677):
        return None
    return rw.op(
        "Mul", node.inputs[0], rw.constant(np.float32(0.70710677).astype(rw.facts.const(node.inputs[1]).dtype))
    )


@node_rule("no-guard", "Where")
def forgets_rows_that_are_hidden(rw, node):
    """Softmax is never NaN: it is where a mask of minus infinity hides all."""
    return node.inputs[2] if made_by(node.inputs[0], "IsNaN") is not None else None


@node_rule("wide-enough", "Sqrt", numerics=Numerics.ROUNDING)
def forgets_the_range(rw, node):
    """sqrt(x * x) by way of half precision."""
    narrow = rw.op("Cast", node.inputs[0], to=10)
    if made_by(node.inputs[0], "Cast") is not None:
        return None
    like = rw.facts.dtype(node.inputs[0])
    return rw.op("Sqrt", rw.op("Cast", narrow, to=int(like)))


@rule("same-sum", Numerics.ROUNDING)
def forgets_equality(p, x, z):
    return x + z


@forgets_equality.build
def _(rw, found):
    """x + z is 2 * x: only where x is z."""
    return rw.op("Mul", found.x, rw.constant(np.array(2, found.facts.dtype(found.x).numpy())))


_MODELS = {
    "any-zero": "(float[N,3] x) => (float[A,B] y) <float zero = {0}> { y = Add(x, zero) }",
    "any-axis": "(float[N,3] x) => (float[A,B] y) { y = Softmax<axis = -1>(x) }",
    "any-factor": "(float[N,3] x) => (float[A,B] y) <float c = {0.70710677}> { y = Mul(x, c) }",
    "no-guard": "(float[N,3] x, float[N,3] m) => (float[A,B] y) <float zero = {0}> "
    "{ s = Add(x, m) p = Softmax<axis = -1>(s) n = IsNaN(p) y = Where(n, zero, p) }",
    "wide-enough": "(float[N,3] x) => (float[A,B] y) { s = Mul(x, x) y = Sqrt(s) }",
    "same-sum": "(float[N,3] x, float[N,3] z) => (float[A,B] y) { a = Add(x, x) y = Mul(a, z) }",
}
_RULES = (
    forgets_shapes,
    forgets_an_attribute,
    forgets_a_constant,
    forgets_rows_that_are_hidden,
    forgets_the_range,
    forgets_equality,
)


@pytest.mark.parametrize("planted", _RULES, ids=lambda planted: planted.name)
def test_planted_mistakes_are_found(planted: NodeRule) -> None:
    text = f'<ir_version: 8, opset_import: ["": 17]> g {_MODELS[planted.name]}'
    model = onnx.parser.parse_model(text)
    pipeline = (rule_pass("planted", planted)(),)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def check(rng: random.Random) -> None:
        mutant, _ = mutate(model, rng)
        judge(mutant, draw_feeds(mutant, rng, constants), pipeline)

    with pytest.raises((AssertionError, PassError)):
        settings(quick, max_examples=200, phases=[Phase.generate])(given(CHANCE)(check))()
