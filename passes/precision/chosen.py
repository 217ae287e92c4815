"""What the user's policy says of precision."""

from __future__ import annotations

import onnx_ir

from optc.ir.facts import Facts
from optc.passes.compress.layers import weighted_layers
from optc.passes.compress.policy import Policy
from optc.passes.compress.roles import RESIDUAL, roles_of
from optc.passes.compress.techniques import Option
from optc.passes.precision.narrow import Narrow

_SUMS = frozenset({"Add", "Sum", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})


def kept_by(
    policy: Policy, graph: onnx_ir.Graph, facts: Facts, narrow: Narrow, technique: str
) -> dict[onnx_ir.Node, str]:
    """The nodes that a policy keeps in single precision, each with the rule that says so.

    Weighted layers have the roles that other techniques see; sums of two values of one shape have the role
    ``residual``; all other nodes go by their names.
    """
    layers = list(weighted_layers(graph, facts, ("matmul", "conv", "lookup")))
    roles = {layer.node: own for layer, own in zip(layers, roles_of(layers, facts), strict=True)}
    option = Option(technique, narrow.name, None, 0)
    found: dict[onnx_ir.Node, str] = {}
    for node in graph if policy.rules else ():
        own = roles.get(node, frozenset({RESIDUAL}) if _adds_up(node, facts) else frozenset())
        reason = policy.forbids(option, node.name or "", own)
        if reason is not None:
            found[node] = reason
    return found


def _adds_up(node: onnx_ir.Node, facts: Facts) -> bool:
    if node.op_type not in _SUMS or len(node.inputs) < 2:
        return False
    a, b = node.inputs[:2]
    if a is None or b is None or facts.is_const(a) or facts.is_const(b):
        return False
    shape = facts.shape(a)
    return shape is not None and shape == facts.shape(b)
