"""Which nodes give the same outputs whenever they are given the same inputs."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir

from optc.ir.functions import FUSED_DOMAIN
from optc.ir.verify import schema_of, subgraphs
from optc.passes.base import PassContext

#: Operators that draw random numbers.
_RANDOM = {
    ("", "RandomNormal"),
    ("", "RandomNormalLike"),
    ("", "RandomUniform"),
    ("", "RandomUniformLike"),
    ("", "Multinomial"),
    ("", "Bernoulli"),
    ("com.microsoft", "BiasDropout"),
    ("com.microsoft", "BitmaskDropout"),
    ("com.microsoft", "BitmaskBiasDropout"),
    ("com.microsoft", "Sampling"),
}
#: Domains whose operators are functions of their inputs although onnx has no schemas for them.
_TRUSTED_DOMAINS = {"com.microsoft", FUSED_DOMAIN}


def is_pure(node: onnx_ir.Node, ctx: PassContext) -> bool:
    """Whether the node may be computed once, earlier or not at all without anybody noticing.

    Operators of unknown domains (plugins) are not trusted; neither are those in ONNX's domains that it does not know.
    """
    return _is_pure(node, ctx, ctx.model.graph.opset_imports, {})


def _is_pure(
    node: onnx_ir.Node, ctx: PassContext, opsets: Mapping[str, int], known: dict[onnx_ir.OperatorIdentifier, bool]
) -> bool:
    if not all(_is_pure(inner, ctx, opsets, known) for graph in subgraphs(node) for inner in graph):
        return False
    key = node.op_identifier()
    function = ctx.model.functions.get(key)
    if function is not None:
        if key not in known:  # functions may call each other many times over
            known[key] = all(_is_pure(inner, ctx, function.opset_imports, known) for inner in function)
        return known[key]
    if (node.domain, node.op_type) in _RANDOM:
        return False
    if node.op_type == "Dropout" and node.domain == "":
        return not _drops(node, ctx, opsets.get("", 1))
    return node.domain in _TRUSTED_DOMAINS or schema_of(node, opsets.get(node.domain, 1)) is not None


def _drops(node: onnx_ir.Node, ctx: PassContext, version: int) -> bool:
    """Whether a Dropout may be in training mode."""
    if version < 7:
        mode = node.attributes.get("is_test")
        return mode is None or not mode.value
    if version < 12 or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    return ctx.facts.scalar(node.inputs[2]) not in (False, 0)
