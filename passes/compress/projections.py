"""The pass that takes projections out of ONNX Runtime's ``Attention``, so that they can be compressed as others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir

from optc.ir import ops
from optc.ir.rewriter import Rewriter
from optc.passes.base import Numerics, Pass, PassContext, all_graphs


@dataclass(frozen=True)
class SplitProjections(Pass):
    """Write com.microsoft::Attention as a product, a Split and a MultiHeadAttention."""

    name: ClassVar[str] = "split-projections"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def run(self, ctx: PassContext) -> None:
        for graph in all_graphs(ctx.model):
            for node in list(graph):
                if node.domain == "com.microsoft" and node.op_type == "Attention" and self._split(ctx.rewriter, node):
                    ctx.hit(self.name)

    def _split(self, rw: Rewriter, node: onnx_ir.Node) -> bool:
        source, weight, bias, *others = (*node.inputs, *[None] * 8)[:8]
        own = {name: attr.value for name, attr in node.attributes.items()}
        widths = own.pop("qkv_hidden_sizes", None)
        shape, mask = rw.facts.shape(weight), others[2]
        del others[2]
        plain = set(own) <= {"num_heads", "scale"} and not any(others) and len(node.outputs) == 1
        if not plain or shape is None or not isinstance(shape[1], int):
            return False  # a past, or another kind of mask: not what the pass `emit` writes
        with rw.at(node, self.name):
            product = rw.op("MatMul", source, weight)
            parts = ops.split(rw, product, widths or [shape[1] // 3] * 3, 2)
            result = rw.op("MultiHeadAttention", *parts, bias, None, mask, domain="com.microsoft", **own)
            rw.facts.assume(result, like=node.outputs[0])
            rw.keep_name(node.outputs[0], rw.replace(node.outputs[0], result))
        rw.erase(node)
        return True
