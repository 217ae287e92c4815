"""Constant folding inside a byte budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from optc.ir.names import label
from optc.ir.verify import outer_reads
from optc.passes.base import Pass, PassContext, all_graphs
from optc.passes.clean.fold_plan import Plan, make_plan

#: Where the model remembers what folding was allowed and has used up; it is not saved.
_WEIGHTS, _SPENT, _TOLD = "optc.fold.weights", "optc.fold.spent", "optc.fold.told"
#: A node that could not be evaluated is not tried again.
_FAILED = "optc.fold.failed"
#: Results of about this many bytes are computed at a time.
_BATCH_BYTES = 1 << 26


@dataclass(frozen=True)
class Fold(Pass):
    """Compute what depends on constants only, as far as the model does not grow by it.

    Constant nodes become initializers. Of the largest sub-graphs that depend on constants only, no more than the
    values that the rest of the model reads are stored; they are computed with the kernels that would compute them at
    run time. Integer contents that are the same in every run (shape arithmetic over known dims) are stored too,
    whatever they depend on.

    What is stored may make the model larger by ``growth`` times the size of its weights plus ``slack`` bytes, over all
    runs of the pass; weights and nodes that are no longer needed are credited. ``slack`` is not for what a small node
    can write out again at any time (ConstantOfShape, Expand, Tile). No value of more than ``limit`` bytes is computed.
    Large weights that are only moved around (Transpose, Reshape) are not computed at all but read in the new order
    when they are needed; all else that is computed takes at most ``memory`` bytes. With ``moved=false`` those that are
    transposed for matrix products only are left to rules that let the products read them as they are stored.
    DequantizeLinear is never folded: that would undo the quantization.
    """

    name = "fold"
    restructures = False

    growth: float = 0.01
    slack: int = 4096
    limit: int = 1 << 28
    memory: int = 1 << 30
    moved: bool = True

    def run(self, ctx: PassContext) -> None:
        _lift_constants(ctx)
        meta = ctx.model.meta
        weights = meta.setdefault(_WEIGHTS, _weight_bytes(ctx.model))
        spent = meta.setdefault(_SPENT, 0)
        evaluator = ctx.services.get("evaluator")
        while True:
            plan = make_plan(
                ctx,
                budget=int(self.growth * weights) - spent,
                slack=self.slack,
                limit=self.limit,
                memory=self.memory,
                evaluate=evaluator is not None,
                moved=self.moved,
                excluded=lambda node: _FAILED in node.meta,
            )
            failed = _apply(ctx, plan, evaluator)
            spent += plan.cost
            self._tell(ctx, plan, failed)
            if not failed:
                break
            # Every round excludes nodes for good; what the failed ones read may now be stored in their stead.
        meta[_SPENT] = spent

    def _tell(self, ctx: PassContext, plan: Plan, failed: Sequence[onnx_ir.Node]) -> None:
        """Say what was left, each kind once."""
        left = {
            "constant values": (
                plan.too_large,
                f"storing it and the like costs more than growth={self.growth:g} allows",
            ),
            "constant nodes": (failed, "it and the like cannot be evaluated"),
        }
        told = ctx.model.meta.setdefault(_TOLD, set())
        for what, (nodes, reason) in left.items():
            if nodes and what not in told:
                told.add(what)
                ctx.remark("skipped", f"folding of {what} such as {label(nodes[0])}", reason)


def _weight_bytes(model: onnx_ir.Model) -> int:
    graphs = all_graphs(model)
    return sum(v.const_value.nbytes for g in graphs for v in g.initializers.values() if v.const_value is not None)


# Constant nodes ---------------------------------------------------------------------------------------------------


def _lift_constants(ctx: PassContext) -> None:
    """Make initializers of Constant nodes, in sub-graphs too, and pass over Identity nodes of them.

    A node that makes a graph's output stays what it is.
    """
    lifted: dict[onnx_ir.TensorProtocol, onnx_ir.Value] = {}
    for graph in list(all_graphs(ctx.model)):
        for node in graph:
            if node.domain != "" or node.op_type not in ("Constant", "Identity") or node.outputs[0].is_graph_output():
                continue
            value, source = node.outputs[0], node.inputs[0] if node.inputs else None
            if source is not None and ctx.facts.is_const(source):
                ctx.rewriter.replace(value, source)
                ctx.rewriter.erase(node)
                continue
            tensor = ctx.facts.tensor(value)
            if tensor is None:
                continue
            # Copies of a function's body share their tensors.
            shared = lifted.get(tensor)
            if shared is not None and shared.is_initializer():
                ctx.rewriter.replace(value, shared)
            else:
                lifted[tensor] = ctx.rewriter.materialize(value, tensor)
            ctx.rewriter.erase(node)
            ctx.hit("constant")


# everything else --------------------------------------------------------------------------------------------------


def _apply(ctx: PassContext, plan: Plan, evaluator: Any) -> list[onnx_ir.Node]:
    """Store the plan's values; the nodes that turn out not to be computable are marked and returned."""
    failed: list[onnx_ir.Node] = []
    learned = False
    for batch in _batches(plan):
        for value, tensor in _tensors(ctx, plan, batch, evaluator).items():
            node = value.producer()
            if node is None or node.graph is None:
                continue
            if tensor is None or tensor.nbytes > plan.allowed(value) or ctx.is_vetoed("fold", node):
                failed.extend(_culprits(ctx, plan, value, evaluator) or [node])
                continue
            shape = ctx.facts.shape(value)
            learned |= shape is None or not all(isinstance(dim, int) for dim in shape)
            with ctx.rewriter.at(node, "fold", plan.slice(value) if value.is_graph_output() else ()):
                ctx.rewriter.materialize(value, tensor)
            _erase(ctx, node)
            ctx.hit("fold")
    if learned:
        ctx.rewriter.relearn()
    for node in failed:
        node.meta[_FAILED] = True
    return failed


def _culprits(ctx: PassContext, plan: Plan, value: onnx_ir.Value, evaluator: Any) -> list[onnx_ir.Node]:
    """Of the nodes that a value is computed by, those that cannot be computed."""
    nodes = plan.ancestors([value])
    wanted = [v for node in nodes for v in node.outputs if v.uses() or v is value]
    arrays = _evaluate(ctx, plan, nodes, wanted, evaluator)
    return list(dict.fromkeys(v.producer() for v, array in zip(wanted, arrays, strict=True) if array is None))  # type: ignore[misc]


def _erase(ctx: PassContext, node: onnx_ir.Node) -> None:
    """Remove a folded node with its producers, and the weights that only they read."""
    read = []
    pending: list[onnx_ir.Node] = [node]
    seen = set(pending)
    while pending:
        for value in outer_reads(pending.pop()):
            read.append(value)
            producer = value.producer()
            if producer is not None and producer not in seen:
                seen.add(producer)
                pending.append(producer)
    ctx.rewriter.erase(node)
    for value in read:
        if value.is_initializer():
            ctx.rewriter.erase_initializer(value)


def _batches(plan: Plan) -> Iterable[list[onnx_ir.Value]]:
    batch: list[onnx_ir.Value] = []
    size = 0
    for value in plan.values:
        batch.append(value)
        size += plan.allowed(value)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _tensors(
    ctx: PassContext, plan: Plan, values: Sequence[onnx_ir.Value], evaluator: Any
) -> Mapping[onnx_ir.Value, onnx_ir.TensorProtocol | None]:
    """The contents of values: as the facts know them, else as the evaluator computes them."""
    views = {v: tensor for v in values if v in plan.views and (tensor := _lazy(plan.views[v], v, ctx)) is not None}
    wanted = [value for value in values if value not in plan.known and value not in views]
    arrays = _evaluate(ctx, plan, plan.ancestors(wanted), wanted, evaluator)
    computed = {**plan.known, **dict(zip(wanted, arrays, strict=True))}
    return {value: views.get(value) or _tensor(computed[value], ctx.facts.dtype(value)) for value in values}


def _evaluate(
    ctx: PassContext, plan: Plan, nodes: Sequence[onnx_ir.Node], wanted: Sequence[onnx_ir.Value], evaluator: Any
) -> list[Any]:
    if not wanted:
        return []
    for node in nodes:
        # The evaluator runs a division alone, with care, unless it can see that it is not one of integers.
        for value in node.inputs if node.op_type in ("Div", "Mod") else ():
            dtype = ctx.facts.dtype(value)
            if value is not None and value.type is None and dtype is not None:
                value.type = onnx_ir.TensorType(dtype)
    feeds = {value: plan.known[value] for node in nodes for value in outer_reads(node) if value in plan.known}
    return evaluator.run(nodes, feeds, wanted, ctx.model.graph.opset_imports)


def _lazy(view: Callable[[], np.ndarray], value: onnx_ir.Value, ctx: PassContext) -> onnx_ir.TensorProtocol | None:
    """A large weight that was only moved around: it is read when it is needed, from where it lies."""
    dtype, shape = ctx.facts.dtype(value), ctx.facts.shape(value)
    if dtype is None or shape is None:
        return None
    return onnx_ir.LazyTensor(lambda: onnx_ir.Tensor(view(), dtype=dtype), dtype, onnx_ir.Shape(shape))  # type: ignore[arg-type]


def _tensor(array: Any, dtype: onnx_ir.DataType | None) -> onnx_ir.TensorProtocol | None:
    if not isinstance(array, np.ndarray):
        return None  # not computed, or a sequence
    if array.dtype.kind in "OSU":
        texts = [item.encode() if isinstance(item, str) else bytes(item) for item in array.reshape(-1)]
        return onnx_ir.StringTensor(texts, shape=onnx_ir.Shape(array.shape))
    return onnx_ir.Tensor(np.asarray(array, order="C"), dtype=dtype)
