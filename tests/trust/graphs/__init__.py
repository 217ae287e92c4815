"""A generator of valid ONNX graphs: random operators, types, shapes, symbolic dims, opsets, sub-graphs and functions.

What graphs grow by is registered by the modules of this folder; :mod:`.builder` says how.
"""

from __future__ import annotations

import random

import onnx
from hypothesis import strategies as st
from onnx import helper

from . import elementwise, inner, layers, movement, pieces
from .builder import BFLOAT, DOUBLE, FLOAT, HALF, SIZES, SYMBOLS, Builder, Dim, Value, grow, info

__all__ = ["graph", "grown", "models"]

_FAMILIES = (elementwise, inner, layers, movement, pieces)
_OPSETS = (11, 12, 13, 14, 15, 16, 17, 17, 18, 18, 19, 20, 21, 22, 23)
_REALS = (FLOAT,) * 7 + (HALF, DOUBLE, BFLOAT)


def graph(seed: int, nodes: int = 14, operators: bool = False) -> onnx.ModelProto:
    """A random model.

    Args:
        seed: Another seed is another model.
        nodes: About how many nodes it has.
        operators: Use ONNX's operator tests as pieces as well, which takes some seconds to begin with.
    """
    return grown(random.Random(seed), nodes, operators)


def models(most: int = 14) -> st.SearchStrategy[onnx.ModelProto]:
    """The same models as a strategy of Hypothesis, which shrinks them."""
    chance = st.randoms(use_true_random=False)
    return st.builds(grown, chance, st.integers(1, most))


def grown(rng: random.Random, nodes: int, operators: bool = False) -> onnx.ModelProto:
    """A model in which ``rng`` decides everything; see :func:`graph`."""
    real = rng.choice(_REALS)
    b = Builder(rng, max(rng.choice(_OPSETS), 13 if real == BFLOAT else 0), real)
    for _ in range(rng.randrange(1, 4)):
        shape: list[Dim] = [rng.choice(SIZES) for _ in range(rng.choice([2, 3, 3, 4]))]
        if b.chance(0.5):
            shape[0] = rng.choice(SYMBOLS)
        if b.chance(0.15):
            shape[-1] = rng.choice(SYMBOLS)
        b.input(b.real, shape)
    for _ in range(20 * nodes):
        if len(b.nodes) >= nodes:
            break
        if operators and b.chance(0.2):
            b.grow(pieces.put_operator_test)
        else:
            grow(b)
    if not b.nodes:
        b.add("Neg", [b.inputs[0]], b.inputs[0].shape)
    return _model(b)


def _model(b: Builder) -> onnx.ModelProto:
    read = {name for node in b.nodes for name in node.input}
    made = {name for node in b.nodes for name in node.output}
    there = {value.name: value for value in b.values if value.name in made}
    last: list[Value] = [value for name, value in there.items() if name not in read]
    extra = [value for name, value in there.items() if name in read and b.chance(0.08)]
    ends = [value for value in b.ends if value.name not in there]
    outputs = [*map(info, (*last, *extra)), *ends]
    inputs = [info(value) for value in b.inputs]
    # An initializer that is an input as well is a default, which callers may replace.
    inputs += [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in b.initializers
        if tensor.data_type in _REALS and b.chance(0.02)
    ]
    imports = [helper.make_opsetid("", b.opset), helper.make_opsetid("fuzz", 1)]
    imports += [helper.make_opsetid(domain, 1) for domain in sorted(b.domains)]
    return helper.make_model(
        helper.make_graph(b.nodes, "fuzz", inputs, outputs or [info(b.values[-1])], b.initializers),
        opset_imports=imports,
        functions=b.functions,
        ir_version=b.rng.choice([8, 9, 10]),
    )
