"""Passes: whatever a rule cannot say."""

from dataclasses import dataclass
from typing import ClassVar

from optc.passes.base import Numerics, Pass, PassContext, all_graphs


@dataclass(frozen=True)
class MeanPool(Pass):
    """Global average pooling over few pixels as a mean over the spatial axes.

    Attributes:
        max_rank: Leave tensors of more dims alone.
    """

    name: ClassVar[str] = "mean-pool"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    max_rank: int = 4

    def run(self, ctx: PassContext) -> None:
        rewriter = ctx.rewriter
        for graph in all_graphs(ctx.model):
            for node in [node for node in graph if node.op_type == "GlobalAveragePool"]:
                rank = ctx.facts.rank(node.inputs[0])
                if rank is None or rank > self.max_rank:
                    ctx.remark("skipped", node.name, "its rank is unknown or too high")
                    continue
                if rewriter.opset() < 18:
                    ctx.remark("skipped", node.name, "before opset 18 the axes of ReduceMean are an attribute")
                    continue
                with rewriter.at(node, self.name):
                    axes = rewriter.constant(list(range(2, rank)), "axes")
                    rewriter.replace(node.outputs[0], rewriter.op("ReduceMean", node.inputs[0], axes, keepdims=1))
                    rewriter.erase(node)
                    ctx.hit(self.name)
