"""Writing a plan into a graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir

from optc.ir.functions import FUSED_DOMAIN
from optc.ir.mapped import release
from optc.ir.ops import is_op
from optc.ir.rewriter import Rewriter, copy_attributes
from optc.passes.precision.bodies import narrowed_body
from optc.passes.precision.plan import Plan
from optc.passes.precision.ranges import ENDLESS

_FLOAT = onnx_ir.DataType.FLOAT
RULE = "mixed-precision"
#: Where large constants go: gets each, and returns what stands for it.
Keep = Callable[[onnx_ir.TensorProtocol], onnx_ir.TensorProtocol]


def write(rewriter: Rewriter, plan: Plan, keep: Keep = lambda tensor: tensor) -> None:
    """Make the nodes of a plan compute in its type.

    Args:
        rewriter: Of the model that the plan was made for.
        plan: The plan.
        keep: Where large constants go.
    """
    _Writer(rewriter, plan, keep).run()


class _Writer:
    def __init__(self, rewriter: Rewriter, plan: Plan, keep: Keep) -> None:
        self.rewriter, self.plan, self.keep = rewriter, plan, keep
        self._narrow: dict[onnx_ir.Value, onnx_ir.Value] = {}  # what a value is in the narrow type
        self._clones: dict[onnx_ir.Node, onnx_ir.Node] = {}

    def run(self) -> None:
        graph = self.rewriter.model.graph
        constants = set()
        for node in list(graph):
            if node in self.plan.slots:
                constants |= {node.inputs[index] for index in self.plan.slots[node].inputs}
                with self.rewriter.at(node, RULE):
                    self._rewrite(node)
        for node, clone in reversed(self._clones.items()):
            name = node.name
            self.rewriter.erase(node)
            clone.name = name
        for value in constants:
            if value is not None and value.is_initializer():
                self.rewriter.erase_initializer(value)

    def _rewrite(self, node: onnx_ir.Node) -> None:
        slots, facts = self.plan.slots[node], self.rewriter.facts
        inputs = list(node.inputs)
        for index in slots.inputs:
            value = inputs[index]
            assert value is not None  # it has a type
            inputs[index] = self.narrowed(value)
        clone = onnx_ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(self._attributes(node).values()),
            overload=self._overload(node),
            num_outputs=len(node.outputs),
            name=node.name,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )
        for index, (old, new) in enumerate(zip(node.outputs, clone.outputs, strict=True)):
            new.name = self.rewriter.fresh_name(f"{old.name}_{self.plan.narrow.name}") if old.name else ""
            new.type = onnx_ir.TensorType(self.plan.narrow.dtype) if index in slots.outputs else old.type
            new.shape = old.shape
        self.rewriter.insert(clone)
        self._clones[node] = clone
        for index, (old, new) in enumerate(zip(node.outputs, clone.outputs, strict=True)):
            shape = facts.shape(old)
            if shape is not None:
                facts.assume_shape(new, shape)
            if index not in slots.outputs:
                self.rewriter.keep_name(old, self.rewriter.replace(old, new))
                continue
            self._narrow[old] = new
            if self._is_read_wide(old):
                wide = self._cast(new, _FLOAT, f"{old.name}_fp32")
                self._narrow[self.rewriter.replace(old, wide)] = new
            else:
                self.rewriter.keep_name(old, new)

    def _is_read_wide(self, value: onnx_ir.Value) -> bool:
        return value.is_graph_output() or any(not self.plan.reads(use.node, use.idx) for use in value.uses())

    def _attributes(self, node: onnx_ir.Node) -> dict[str, onnx_ir.Attr]:
        attributes = dict(copy_attributes(node))
        dtype = self.plan.narrow.dtype
        if is_op(node, "Cast") and self.plan.slots[node].outputs:
            attributes["to"] = onnx_ir.AttrInt64("to", int(dtype))
        elif is_op(node, "ConstantOfShape"):
            given = attributes.get("value")
            fill = np.zeros(1, np.float32) if given is None else given.as_tensor().numpy()
            tensor = onnx_ir.Tensor(self._rounded(fill, masks=True), dtype=dtype)
            attributes["value"] = onnx_ir.AttrTensor("value", tensor)
        return attributes

    def _overload(self, node: onnx_ir.Node) -> str:
        """The function that a fused op calls in the narrow type."""
        if node.domain != FUSED_DOMAIN:
            return node.overload
        return narrowed_body(self.rewriter, node, self.plan.slots[node], self.plan.narrow)

    # -- values -----------------------------------------------------------------------------------------------------

    def narrowed(self, value: onnx_ir.Value) -> onnx_ir.Value:
        """A value in the narrow type; it is made once."""
        if value not in self._narrow:
            self._narrow[value] = self._constant(value) or self._uncast(value) or self._down(value)
        return self._narrow[value]

    def _constant(self, value: onnx_ir.Value) -> onnx_ir.Value | None:
        tensor = self.rewriter.facts.tensor(value)
        if tensor is None:
            return None
        array = self._rounded(tensor.numpy(), masks=value in self.plan.masking)
        narrow = onnx_ir.Tensor(array, dtype=self.plan.narrow.dtype)
        release(tensor)
        return self.rewriter.constant(self.keep(narrow), f"{value.name}_{self.plan.narrow.name}")

    def _uncast(self, value: onnx_ir.Value) -> onnx_ir.Value | None:
        """What a value was in the narrow type already, before the model cast it."""
        node = value.producer()
        if node is None or not is_op(node, "Cast"):
            return None
        source = node.inputs[0]
        return source if self.rewriter.facts.dtype(source) == self.plan.narrow.dtype else None

    def _down(self, value: onnx_ir.Value) -> onnx_ir.Value:
        # Max broadcasts from opset 8 on.
        if value in self.plan.masking and not self.plan.makes(value) and self.rewriter.opset() >= 8:
            lowest = self.rewriter.constant(np.float32(-self.plan.narrow.largest / 2), "lowest")
            value = self.rewriter.op("Max", value, lowest)  # what is lower would become minus infinity
        return self._cast(value, self.plan.narrow.dtype, f"{value.name}_{self.plan.narrow.name}")

    def _cast(self, value: onnx_ir.Value, dtype: onnx_ir.DataType, name: str) -> onnx_ir.Value:
        made: onnx_ir.Value = self.rewriter.op("Cast", value, to=int(dtype))
        made.name, made.type, made.shape = self.rewriter.fresh_name(name), onnx_ir.TensorType(dtype), value.shape
        return made

    def _rounded(self, array: np.ndarray, masks: bool) -> np.ndarray:
        """A constant in the narrow type. What stands for minus infinity becomes half of the lowest number, so that a
        sum of two masks still fits."""
        narrow = self.plan.narrow
        if masks and array.size and float(np.min(array)) < -ENDLESS:
            array = np.where(np.isfinite(array), np.maximum(array, -narrow.largest / 2), array)
        return narrow.rounded(array)
