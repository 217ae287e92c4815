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
from optc.ir.names import label, split_op
from optc.ir.ops import is_op
from optc.ir.opset import NEWEST, adapt, obstacle, raise_opset, steps
from optc.ir.rewriter import RULE_KEY, Rewriter, users
from optc.passes.base import Numerics, Pass, PassContext, all_graphs
from optc.passes.driver import apply_rules
from optc.passes.emit.claims import CLAIMS, CPU, Realisation, Recipe
from optc.passes.emit.sums import sum_of_sums

#: The type of the first input, or of each type variable.
DTypes = onnx_ir.DataType | dict[str, onnx_ir.DataType]


class Kernels(Protocol):
    """The service "kernels": which operators the target's runtime really has."""

    def supports(self, domain: str, op: str, opset_version: int, dtypes: DTypes | None, provider: str) -> bool: ...


#: The opset from which on QuantizeLinear names the type that it makes.
_OUTPUT_TYPE_SINCE = 21
#: Behind these the runtime quantizes again what was dequantized before them.
_QUANTIZED_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "MaxPool")


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
        pending = [node for graph in all_graphs(ctx.model) for node in graph if node.domain == FUSED_DOMAIN]
        pending = self._at_best_opset(ctx, pending)
        unclaimed: Counter[tuple[str, str]] = Counter()
        while pending:
            call = pending.pop(0)
            vetoed = ctx.is_vetoed(call.metadata_props.get(RULE_KEY, "emit"), call)
            choice = "it was taken back" if vetoed else choose(ctx, call, self.slow)
            if isinstance(choice, str):
                unclaimed[f"{call.op_type} ({_type_name(ctx, call)})", choice] += 1
                pending[:0] = _unfuse(ctx.rewriter, call)
            elif isinstance(choice, Recipe):
                with ctx.rewriter.at(call, call.metadata_props.get(RULE_KEY, "emit")):
                    _replace(ctx.rewriter, call, choice.build(ctx.rewriter, call))
                ctx.hit(choice.name)
            else:
                _realise(ctx.rewriter, call, choice)
                ctx.hit(f"{choice.domain or 'ai.onnx'}::{choice.op}")
        for (what, reason), count in sorted(unclaimed.items()):
            ctx.remark("skipped", f"{count} x {what}", f"{reason}: left in its parts")
        drop_unused_functions(ctx.model)
        if ctx.target.provider == CPU:
            apply_rules(ctx, [sum_of_sums])

    def _at_best_opset(self, ctx: PassContext, calls: list[onnx_ir.Node]) -> list[onnx_ir.Node]:
        """Raise the model to the opset that the best realisations need, if nothing is in the way; what is left."""
        rw = ctx.rewriter
        kernels: Kernels | None = ctx.services.get("kernels")
        wanted = {call: choose(ctx, call, self.slow, NEWEST) for call in calls}
        needed = {choice.name: choice.since for choice in wanted.values() if isinstance(choice, Recipe)}
        version, old = max(needed.values(), default=0), rw.opset()
        if kernels is None or version <= old:
            return calls
        what = ", ".join(sorted(name for name, since in needed.items() if since > old))
        reason = (
            obstacle(ctx.model, ctx.facts, version)
            or _missing_kernel(ctx, kernels, version)
            or _moved_integers(ctx, old, version)
        )
        if reason is None:
            raise_opset(rw, version)
            ctx.hit(f"opset {old} to {version}")
        else:
            ctx.remark("skipped", f"opset {version} for {what}", reason)
        return calls


def _missing_kernel(ctx: PassContext, kernels: Kernels, version: int) -> str | None:
    """A node that the runtime can compute at the model's opset, but not at the new one."""
    old = ctx.rewriter.opset()
    seen = set()
    for graph in all_graphs(ctx.model):
        for node in graph:
            if node.domain != "":
                continue
            stepped, has_body = steps(node.op_type, old, version), _has_body(node.op_type, old)
            if not (stepped or has_body):
                continue
            dtype = ctx.facts.dtype(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
            if (node.op_type, dtype) in seen:
                continue
            seen.add((node.op_type, dtype))
            had, has = (
                kernels.supports("", node.op_type, opset, dtype, ctx.target.provider) for opset in (old, version)
            )
            if had and not has and stepped:
                return f"{label(node)}: the runtime has no kernel of opset {version}"
            if not had and has_body:
                return f"{label(node)}: without a kernel for {_type_name(ctx, node)} it runs by its definition only"
    return None


def _has_body(op_type: str, version: int) -> bool:
    """Whether an operator is defined by others, which ONNX Runtime (1.31) puts in its place in older opsets alone."""
    try:
        schema = onnx.defs.get_schema(op_type, version)
    except onnx.defs.SchemaError:
        return False
    return any(getattr(schema, kind, False) for kind in ("has_function", "has_context_dependent_function"))


def _moved_integers(ctx: PassContext, old: int, version: int) -> str | None:
    """Where ONNX Runtime (1.31) would write a QuantizeLinear of the wrong type: behind what moves dequantized int8."""
    if not old < _OUTPUT_TYPE_SINCE <= version:
        return None
    for graph in all_graphs(ctx.model):
        for node in graph:
            if is_op(node, "DequantizeLinear") and ctx.facts.dtype(node.inputs[0]) == onnx_ir.DataType.INT8:
                moved = any(is_op(user, *_QUANTIZED_MOVES) for user in users(node.outputs[0]))
                if moved and not ctx.facts.is_const(node.inputs[0]):
                    return f"{label(node)}: from opset {_OUTPUT_TYPE_SINCE} on the runtime cannot load what moves it"
    return None


def _unfuse(rw: Rewriter, call: onnx_ir.Node) -> list[onnx_ir.Node]:
    """Put back the original nodes, at the model's opset; returns those that are fused ops themselves."""
    old = rw.model.functions[call.op_identifier()].opset_imports.get("", rw.opset())
    nodes = inline(rw, call)
    for node in nodes:
        tensor = rw.facts.tensor(node.outputs[0]) if node.op_type == "Constant" and not node.domain else None
        if tensor is not None:
            # Inside of a function constants are nodes; outside they are initializers, shared where they are equal.
            with rw.at(node, "constant"):
                rw.replace(node.outputs[0], rw.constant(tensor.numpy(), node.outputs[0].name or "const"))
            rw.erase(node)
        elif not node.domain and old < rw.opset():
            adapt(rw, node, old, rw.opset())
    return [node for node in nodes if node.domain == FUSED_DOMAIN]


def choose(
    ctx: PassContext, call: onnx_ir.Node, slow: bool = False, opset: int | None = None
) -> Realisation | Recipe | str:
    """The first realisation of a fused op that the target runs, and runs faster; or why there is none.

    Args:
        ctx: The pass's context.
        call: The call of the fused op.
        slow: Take the one operator with a fused kernel even where it is slower.
        opset: Answer for this opset of the default domain instead of the model's.
    """
    opset = max(opset or 0, ctx.rewriter.opset())
    reasons = []
    for one in CLAIMS.get(call.op_type, ()):
        if isinstance(one, Recipe) and slow:
            continue
        if isinstance(one, Recipe):
            reason = _recipe_problem(ctx, call, one, opset)
        elif not slow and ctx.target.provider in one.slow_on:
            reason = f"{_spelled(one)} is no faster on {ctx.target.provider}"
        else:
            reason = _problem(ctx, call, one, opset)
        if reason is None:
            return one
        reasons.append(reason)
    return "; ".join(dict.fromkeys(reasons)) or f"nothing on {ctx.target.provider} computes it"


def _recipe_problem(ctx: PassContext, call: onnx_ir.Node, recipe: Recipe, opset: int) -> str | None:
    if recipe.only_on and ctx.target.provider not in recipe.only_on:
        return f"{recipe.name} was not measured on {ctx.target.provider}"
    if opset < recipe.since:
        return f"{recipe.name} needs opset {recipe.since}"
    if any(_left_out(call, index) for index in range(recipe.inputs)):
        return f"{recipe.name} wants an input that is left out"
    dtype = ctx.facts.dtype(call.inputs[0])
    if dtype is None:
        return "the type is not known"
    for op in recipe.ops:
        if not _has_kernel(ctx, *split_op(op), dtype, opset):
            return f"{ctx.target.provider} has no kernel of {op} for {dtype.name.lower()}"
    reason = recipe.problem(ctx.facts, call)
    return None if reason is None else f"{recipe.name}: {reason}"


def _problem(ctx: PassContext, call: onnx_ir.Node, one: Realisation, opset: int) -> str | None:
    name = _spelled(one)
    if one.only_on and ctx.target.provider not in one.only_on:
        return f"{name} was not measured on {ctx.target.provider}"
    if not one.domain and opset < one.since:
        return f"{name} needs opset {one.since}"
    if one.attributes(_attributes(call)) is None:
        return f"{name} cannot say this"
    if one.ones is not None and _left_out(call, one.ones) and _normalized_shape(ctx.facts, call) is None:
        return f"{name} needs a scale, whose size is not known"
    reason = one.problem(ctx.facts, call)
    if reason is not None:
        return f"{name}: {reason}"
    dtypes = {variable: ctx.facts.dtype(call.inputs[index]) for variable, index in one.types.items()}
    if None in dtypes.values():
        return "the type is not known"
    if not _has_kernel(ctx, one.domain, one.op, dtypes, opset):
        kinds = ", ".join(dtype.name.lower() for dtype in dtypes.values())
        return f"{ctx.target.provider} has no kernel of {name} for {kinds}"
    return None


def _spelled(one: Realisation) -> str:
    return f"{one.domain or 'ai.onnx'}::{one.op}"


def _has_kernel(ctx: PassContext, domain: str, op: str, dtypes: DTypes, opset: int) -> bool:
    """Whether the runtime has an operator for types: one of the first input, or of each type variable."""
    opset = (ctx.rewriter.opset(domain) or 1) if domain else opset
    kernels: Kernels | None = ctx.services.get("kernels")
    if kernels is None:
        return _in_standard(domain, op, opset, dtypes)
    return kernels.supports(domain, op, opset, dtypes, ctx.target.provider)


def _in_standard(domain: str, op: str, opset: int, dtypes: DTypes) -> bool:
    """Whether ONNX itself defines the operator for these types."""
    if domain:
        return False
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return False
    if isinstance(dtypes, onnx_ir.DataType):
        dtypes = {schema.inputs[0].type_str: dtypes}
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
