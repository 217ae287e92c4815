"""The pass that turns fused ops into operators of the target's runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.functions import FUSED_DOMAIN, drop_unused_functions, inline
from optc.ir.pattern import split_op
from optc.ir.rewriter import RULE_KEY, Rewriter
from optc.passes.base import Numerics, Pass, PassContext, all_graphs
from optc.passes.emit.claims import CLAIMS, Realisation, Recipe


class Kernels(Protocol):
    """The service "kernels": which operators the target's runtime really has."""

    def supports(
        self, domain: str, op: str, opset_version: int, dtypes: dict[str, onnx_ir.DataType], provider: str
    ) -> bool: ...


@dataclass(frozen=True)
class Emit(Pass):
    """Turn every fused op into an operator that the target has a kernel for, or back into what it was.

    Without the service "kernels" only operators of the ONNX standard are used.
    """

    name: ClassVar[str] = "emit"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    #: Take the one operator with the fused kernel even where it is known not to pay (to measure it).
    slow: bool = False

    def run(self, ctx: PassContext) -> None:
        unclaimed: Counter[str] = Counter()
        pending = [node for graph in all_graphs(ctx.model) for node in graph if node.domain == FUSED_DOMAIN]
        while pending:
            call = pending.pop()
            choice = choose(ctx, call, self.slow)
            if choice is None:
                unclaimed[f"{call.op_type} ({_type_name(ctx, call)})"] += 1
                pending.extend(_unfuse(ctx.rewriter, call))
            elif isinstance(choice, Recipe):
                with ctx.rewriter.at(call, call.metadata_props.get(RULE_KEY, "emit")):
                    _replace(ctx.rewriter, call, choice.build(ctx.rewriter, call))
                ctx.hit(choice.name)
            else:
                _realise(ctx.rewriter, call, choice)
                ctx.hit(f"{choice.domain or 'ai.onnx'}::{choice.op}")
        for what, count in sorted(unclaimed.items()):
            ctx.remark("skipped", f"{count} x {what}", f"no faster kernel on {ctx.target.provider}: left in its parts")
        drop_unused_functions(ctx.model)


def _unfuse(rw: Rewriter, call: onnx_ir.Node) -> list[onnx_ir.Node]:
    """Put back the original nodes; returns those that are fused ops themselves."""
    nodes = inline(rw, call)
    for node in nodes:
        tensor = rw.facts.tensor(node.outputs[0]) if node.op_type == "Constant" and not node.domain else None
        if tensor is not None:
            # Inside of a function constants are nodes; outside they are initializers, shared where they are equal.
            with rw.at(node, "constant"):
                rw.replace(node.outputs[0], rw.constant(tensor.numpy(), node.outputs[0].name or "const"))
            rw.erase(node)
    return [node for node in nodes if node.domain == FUSED_DOMAIN]


def choose(ctx: PassContext, call: onnx_ir.Node, slow: bool = False) -> Realisation | Recipe | None:
    """The first realisation of a fused op that the target runs, and runs faster; None if there is none."""
    for one in CLAIMS.get(call.op_type, ()):
        if isinstance(one, Recipe):
            if not slow and _can_cook(ctx, call, one):
                return one
        elif (slow or ctx.target.provider not in one.slow_on) and _fits(ctx, call, one):
            return one
    return None


def _can_cook(ctx: PassContext, call: onnx_ir.Node, recipe: Recipe) -> bool:
    if recipe.only_on and ctx.target.provider not in recipe.only_on:
        return False
    if any(_left_out(call, index) for index in range(recipe.inputs)) or not recipe.serves(call, ctx.facts):
        return False
    dtype = ctx.facts.dtype(call.inputs[0])
    return dtype is not None and all(_has_kernel(ctx, *split_op(op), {"T": dtype}) for op in recipe.ops)


def _fits(ctx: PassContext, call: onnx_ir.Node, one: Realisation) -> bool:
    if one.only_on and ctx.target.provider not in one.only_on:
        return False
    if (ctx.rewriter.opset(one.domain) or 1) < one.since or one.attributes(_attributes(call)) is None:
        return False
    if one.ones is not None and _left_out(call, one.ones) and _normalized_shape(ctx.facts, call) is None:
        return False
    dtypes = {variable: ctx.facts.dtype(call.inputs[index]) for variable, index in one.types.items()}
    return None not in dtypes.values() and _has_kernel(ctx, one.domain, one.op, dtypes)


def _has_kernel(ctx: PassContext, domain: str, op: str, dtypes: dict[str, onnx_ir.DataType]) -> bool:
    opset = ctx.rewriter.opset(domain) or 1
    kernels: Kernels | None = ctx.services.get("kernels")
    if kernels is None:
        return _in_standard(domain, op, opset, dtypes)
    return kernels.supports(domain, op, opset, dtypes, ctx.target.provider)


def _in_standard(domain: str, op: str, opset: int, dtypes: dict[str, onnx_ir.DataType]) -> bool:
    """Whether ONNX itself defines the operator for these types."""
    if domain:
        return False
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return False
    allowed = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
    return all(f"tensor({dtype.name.lower()})" in allowed.get(name, ()) for name, dtype in dtypes.items())


def _realise(rw: Rewriter, call: onnx_ir.Node, one: Realisation) -> None:
    """Replace the call by the operator."""
    positions = one.outputs[: len(call.outputs)]
    with rw.at(call, call.metadata_props.get(RULE_KEY, "emit")):
        inputs = list(call.inputs)[: one.takes]
        if one.ones is not None and _left_out(call, one.ones):
            inputs += [None] * (one.ones + 1 - len(inputs))
            dtype = rw.facts.dtype(call.inputs[0]).numpy()
            inputs[one.ones] = rw.constant(np.ones(_normalized_shape(rw.facts, call), dtype), "ones")
        made = rw.op(
            one.op, *inputs, domain=one.domain, outputs=max(positions) + 1, **one.attributes(_attributes(call))
        )
        results = [made] if isinstance(made, onnx_ir.Value) else list(made)
        for index, value in enumerate(results):
            if index not in positions:
                value.name = ""  # an optional output that nobody asks for
        _replace(rw, call, [results[position] for position in positions])


def _replace(rw: Rewriter, call: onnx_ir.Node, results: Sequence[onnx_ir.Value]) -> None:
    """Let the results stand for the call's outputs."""
    for old, new in zip(call.outputs, results, strict=False):
        rw.facts.assume(new, like=old)
        rw.keep_name(old, rw.replace(old, new))
    rw.erase(call)


def _attributes(call: onnx_ir.Node) -> dict[str, Any]:
    return {name: attr.value for name, attr in call.attributes.items()}


def _left_out(call: onnx_ir.Node, index: int) -> bool:
    return len(call.inputs) <= index or call.inputs[index] is None


def _normalized_shape(facts: Facts, call: onnx_ir.Node) -> tuple[int, ...] | None:
    """The shape of the normalized axes, if it is the same in every run."""
    shape, axis = facts.shape(call.inputs[0]), _attributes(call).get("axis", -1)
    dims = None if shape is None else shape[axis:]
    return dims if dims is not None and all(isinstance(dim, int) for dim in dims) else None


def _type_name(ctx: PassContext, call: onnx_ir.Node) -> str:
    dtype = ctx.facts.dtype(call.inputs[0])
    return "unknown type" if dtype is None else dtype.name.lower()
