"""Pointwise operators as Triton code, as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx_ir

from optc.backends.triton.expressions import REGISTER, Expr, Pool
from optc.ir.names import join_op
from optc.ir.ops import int_attr

#: Operators with as many operands as the code says -> the code, for floats and for other numbers alike.
SIMPLE: Mapping[str, str] = {
    "Add": "({0} + {1})",
    "Sub": "({0} - {1})",
    "Mul": "({0} * {1})",
    "Neg": "(-{0})",
    "Abs": "tl.abs({0})",
    "And": "({0} & {1})",
    "Or": "({0} | {1})",
    "Xor": "({0} ^ {1})",
    "Not": "({0} == 0)",
    "BitwiseAnd": "({0} & {1})",
    "BitwiseOr": "({0} | {1})",
    "BitwiseXor": "({0} ^ {1})",
    "Equal": "({0} == {1})",
    "Greater": "({0} > {1})",
    "GreaterOrEqual": "({0} >= {1})",
    "Less": "({0} < {1})",
    "LessOrEqual": "({0} <= {1})",
    "Where": "tl.where({0}, {1}, {2})",
    "Relu": "tl.where({0} < 0, {0} * 0, {0})",
}
#: Operators on floats alone.
FLOAT: Mapping[str, str] = {
    "Sqrt": "tl.sqrt({0})",
    "Exp": "tl.exp({0})",
    "Log": "tl.log({0})",
    "Sin": "tl.sin({0})",
    "Cos": "tl.cos({0})",
    "Tan": "(tl.sin({0}) / tl.cos({0}))",
    "Erf": "tl.math.erf({0})",
    "Floor": "tl.floor({0})",
    "Ceil": "tl.ceil({0})",
    "Reciprocal": "(1.0 / {0})",
    "Sigmoid": "functions.sigmoid({0})",
    "Tanh": "functions.tanh({0})",
    "Sinh": "functions.sinh({0})",
    "Cosh": "functions.cosh({0})",
    "Softplus": "functions.softplus({0})",
    "Softsign": "({0} / (1.0 + tl.abs({0})))",
    "HardSwish": "({0} * functions.clip({0} / 6.0 + 0.5, 0.0, 1.0))",
    "Mish": "({0} * functions.tanh(functions.softplus({0})))",
    "IsNaN": "({0} != {0})",
    "Round": "functions.round_half_even({0})",
    "com.microsoft::Gelu": "functions.gelu({0})",
}
#: Operators with parameters: code with attributes as names -> their defaults.
PARAMETRIC: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "LeakyRelu": ("tl.where({0} < 0, {alpha} * {0}, {0})", {"alpha": 0.01}),
    "Elu": ("tl.where({0} < 0, {alpha} * (tl.exp({0}) - 1.0), {0})", {"alpha": 1.0}),
    "Selu": (
        "({gamma} * tl.where({0} < 0, {alpha} * (tl.exp({0}) - 1.0), {0}))",
        {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    ),
    "Celu": ("tl.where({0} < 0, {alpha} * (tl.exp({0} / {alpha}) - 1.0), {0})", {"alpha": 1.0}),
    "ThresholdedRelu": ("tl.where({0} > {alpha}, {0}, 0.0)", {"alpha": 1.0}),
    "HardSigmoid": ("functions.clip({alpha} * {0} + {beta}, 0.0, 1.0)", {"alpha": 0.2, "beta": 0.5}),
    "com.microsoft::QuickGelu": ("({0} * functions.sigmoid({alpha} * {0}))", {"alpha": 1.702}),
}
#: Operators that take any number of operands, and what joins two of them.
VARIADIC: Mapping[str, str] = {
    "Max": "functions.maximum({0}, {1})",
    "Min": "functions.minimum({0}, {1})",
    "Sum": "({0} + {1})",
    "Mean": "({0} + {1})",
}
_YIELDS_BOOL = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf", "Not"})

Build = Callable[[Pool, onnx_ir.Node, Sequence[Expr | None]], Expr]


def is_pointwise(node: onnx_ir.Node) -> bool:
    """Whether there is code for the node's operator."""
    return has_code(join_op(node.domain, node.op_type))


def has_code(op: str) -> bool:
    """Whether there is code for an operator; those of other domains are called as in "com.microsoft::Gelu"."""
    return op in SIMPLE or op in FLOAT or op in PARAMETRIC or op in VARIADIC or op in _BUILT


def build(pool: Pool, node: onnx_ir.Node, operands: Sequence[Expr | None], dtype: onnx_ir.DataType) -> Expr:
    """The node's result at one point.

    Args:
        pool: Makes expressions.
        node: The node.
        operands: The operands at that point; None for one left out.
        dtype: The result's element type.
    """
    op, given = join_op(node.domain, node.op_type), [x for x in operands if x is not None]
    if op in _BUILT:
        return _BUILT[op](pool, node, operands)
    kind = "i1" if op in _YIELDS_BOOL else REGISTER[dtype]
    if op in VARIADIC:
        total = given[0]
        for x in given[1:]:
            total = pool.make(VARIADIC[op], (total, x), kind)
        return _mean(pool, total, len(given)) if op == "Mean" else total
    if op in PARAMETRIC:
        code, defaults = PARAMETRIC[op]
        for name, default in defaults.items():
            attribute = node.attributes.get(name)
            code = code.replace(f"{{{name}}}", repr(default if attribute is None else attribute.as_float()))
        return pool.make(code, given, kind)
    return pool.make(SIMPLE.get(op) or FLOAT[op], given, kind)


def _mean(pool: Pool, total: Expr, count: int) -> Expr:
    return pool.make("({0} / {1})", (total, pool.number(float(count), total.kind)), total.kind)


def _divide(pool: Pool, node: onnx_ir.Node, operands: Sequence[Expr | None]) -> Expr:
    x, y = operands
    assert x is not None and y is not None
    return pool.make("({0} / {1})" if x.kind.startswith("fp") else "({0} // {1})", (x, y), x.kind)


def _power(pool: Pool, node: onnx_ir.Node, operands: Sequence[Expr | None]) -> Expr:
    """Powers that are products and roots as such; the general one by exp2 and log2."""
    x, y = operands
    assert x is not None and y is not None
    exponent = float(y.data) if y.op == "number" else math.nan
    code = {2.0: "({0} * {0})", 3.0: "({0} * {0} * {0})", 1.0: "{0}", 4.0: "(({0} * {0}) * ({0} * {0}))"}.get(exponent)
    if code is not None:
        return pool.make(code, (x,), x.kind)
    if x.kind.startswith("fp"):
        code = {0.5: "tl.sqrt({0})", -0.5: "(1.0 / tl.sqrt({0}))", -1.0: "(1.0 / {0})"}.get(exponent)
        if code is not None:
            return pool.make(code, (x,), x.kind)
    kind = "fp64" if "fp64" in (x.kind, y.kind) else "fp32"
    power = pool.make("functions.power({0}, {1})", (pool.cast(x, kind), pool.cast(y, kind)), kind)
    return pool.cast(power, x.kind)


def _clip(pool: Pool, node: onnx_ir.Node, operands: Sequence[Expr | None]) -> Expr:
    x, low, high = (*operands, None, None)[:3]
    assert x is not None
    for name, code in (("min", "functions.maximum({0}, {1})"), ("max", "functions.minimum({0}, {1})")):
        bound = low if name == "min" else high
        if bound is None and name in node.attributes:
            bound = pool.number(node.attributes[name].as_float(), x.kind)
        if bound is not None:
            x = pool.make(code, (x, bound), x.kind)
    return x


def _gelu(pool: Pool, node: onnx_ir.Node, operands: Sequence[Expr | None]) -> Expr:
    (x,) = operands
    assert x is not None
    approximate = node.attributes.get("approximate")
    tanh = approximate is not None and approximate.as_string() == "tanh"
    return pool.make("functions.gelu_tanh({0})" if tanh else "functions.gelu({0})", (x,), x.kind)


def _swish(pool: Pool, node: onnx_ir.Node, operands: Sequence[Expr | None]) -> Expr:
    (x,) = operands
    assert x is not None
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    return pool.make(f"({{0}} * functions.sigmoid({alpha!r} * {{0}}))", (x,), x.kind)


def _modulo(pool: Pool, node: onnx_ir.Node, operands: Sequence[Expr | None]) -> Expr:
    x, y = operands
    assert x is not None and y is not None
    if int_attr(node, "fmod", 0) or x.kind.startswith("u"):
        return pool.make("({0} % {1})", (x, y), x.kind)
    return pool.make("functions.modulo({0}, {1})", (x, y), x.kind)


def _sign(pool: Pool, node: onnx_ir.Node, operands: Sequence[Expr | None]) -> Expr:
    (x,) = operands
    assert x is not None
    return pool.cast(pool.make("(({0} > 0).to(tl.int32) - ({0} < 0).to(tl.int32))", (x,), "i32"), x.kind)


def _infinite(pool: Pool, node: onnx_ir.Node, operands: Sequence[Expr | None]) -> Expr:
    (x,) = operands
    assert x is not None
    sides = [
        f"({{0}} == {sign}float('inf'))"
        for sign, name in (("", "detect_positive"), ("-", "detect_negative"))
        if int_attr(node, name, 1)
    ]
    return pool.make(f"({' | '.join(sides)})" if sides else "({0} != {0}) & ({0} == {0})", (x,), "i1")


def _prelu(pool: Pool, node: onnx_ir.Node, operands: Sequence[Expr | None]) -> Expr:
    x, slope = operands
    assert x is not None and slope is not None
    return pool.make("tl.where({0} < 0, {0} * {1}, {0})", (x, slope), x.kind)


def _biased_gelu(code: str) -> Build:
    """A Gelu of a sum, where a bias is there."""

    def build_gelu(pool: Pool, node: onnx_ir.Node, operands: Sequence[Expr | None]) -> Expr:
        x, bias = (*operands, None)[:2]
        assert x is not None
        if bias is not None:
            x = pool.make("({0} + {1})", (x, bias), x.kind)
        return pool.make(code, (x,), x.kind)

    return build_gelu


_BUILT: Mapping[str, Build] = {
    "Div": _divide,
    "Pow": _power,
    "Clip": _clip,
    "Gelu": _gelu,
    "Swish": _swish,
    "Mod": _modulo,
    "Sign": _sign,
    "IsInf": _infinite,
    "PRelu": _prelu,
    "com.microsoft::BiasGelu": _biased_gelu("functions.gelu({0})"),
    "com.microsoft::FastGelu": _biased_gelu("functions.gelu_tanh({0})"),
}
