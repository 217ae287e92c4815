"""Thirty wrong rules of the kinds that optimizers are known for, to be planted in a pipeline and found again.

Each computes something else than what it replaces, in the same shape and type; what it has made itself it leaves alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir

from optc.environment import Environment
from optc.ir.rewriter import RULE_KEY, Rewriter
from optc.passes.base import Pass
from optc.passes.rule import NodeRule
from optc.passes.rule_pass import rule_pass
from optc.plugins import environment

Change = Callable[[Rewriter, onnx_ir.Node], onnx_ir.Value | None]
BUGS: dict[str, NodeRule] = {}


def bug(name: str, op: str) -> Callable[[Change], Change]:
    """Register a wrong rule for nodes of one operator; it does not fire on what it made itself."""

    def decorate(change: Change) -> Change:
        def function(rw: Rewriter, node: onnx_ir.Node) -> onnx_ir.Value | None:
            return None if name in node.metadata_props.get(RULE_KEY, "").split(",") else change(rw, node)

        BUGS[name] = NodeRule(name, frozenset({("", op)}), function)
        return change

    return decorate


def again(rw: Rewriter, node: onnx_ir.Node, *inputs: onnx_ir.Value | None, op: str = "", **changed: Any) -> Any:
    """The node once more, with some of it changed; None as an attribute leaves it out."""
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    return rw.op(op or node.op_type, *(inputs or node.inputs), outputs=len(node.outputs), **{**attributes, **changed})


def other_op(name: str, op: str, wrong: str) -> None:
    @bug(name, op)
    def change(rw: Rewriter, node: onnx_ir.Node) -> onnx_ir.Value | None:
        return again(rw, node, op=wrong)


def swapped(name: str, op: str, first: int = 0, second: int = 1) -> None:
    @bug(name, op)
    def change(rw: Rewriter, node: onnx_ir.Node) -> onnx_ir.Value | None:
        inputs = list(node.inputs)
        a, b = inputs[first], inputs[second]
        if rw.facts.shape(a) is None or rw.facts.shape(a) != rw.facts.shape(b):
            return None
        inputs[first], inputs[second] = b, a
        return again(rw, node, *inputs)


def dropped(name: str, op: str) -> None:
    """The node vanishes; what it read is read in its place."""

    @bug(name, op)
    def change(rw: Rewriter, node: onnx_ir.Node) -> onnx_ir.Value | None:
        x, result = node.inputs[0], node.outputs[0]
        same = rw.facts.shape(x) == rw.facts.shape(result) and rw.facts.dtype(x) == rw.facts.dtype(result)
        return x if same and rw.facts.shape(x) is not None else None


def other_attributes(name: str, op: str, **wrong: Any) -> None:
    @bug(name, op)
    def change(rw: Rewriter, node: onnx_ir.Node) -> onnx_ir.Value | None:
        present = {key: attr.value for key, attr in node.attributes.items()}
        return again(rw, node, **wrong) if {**present, **wrong} != present else None


def other_constant(name: str, op: str, index: int, wrong: Callable[[np.ndarray], np.ndarray]) -> None:
    @bug(name, op)
    def change(rw: Rewriter, node: onnx_ir.Node) -> onnx_ir.Value | None:
        array = rw.facts.const(node.inputs[index]) if index < len(node.inputs) else None
        if array is None:
            return None
        inputs = list(node.inputs)
        inputs[index] = rw.constant(np.asarray(wrong(array), array.dtype), "wrong")
        return again(rw, node, *inputs)


other_constant("scale-a-little-off", "Mul", 1, lambda c: c * 1.01)
other_constant("bias-of-the-first-channel", "Add", 1, lambda c: np.broadcast_to(c.ravel()[:1].reshape(()), c.shape))
other_constant("power-of-three", "Pow", 1, lambda c: c + 1)
other_constant("bound-too-low", "Clip", 2, lambda c: c / 2)
other_constant("slice-one-too-far", "Slice", 1, lambda c: c - 1)
other_constant("neighbour-index", "Gather", 1, lambda c: np.maximum(c - 1, 0) + (c == 0))
other_constant("padding-at-the-wrong-end", "Pad", 1, lambda c: np.roll(c, c.size // 2))
dropped("lost-activation", "Relu")
dropped("lost-root", "Sqrt")
dropped("lost-sign", "Neg")
dropped("lost-floor", "Floor")
dropped("lost-bias", "Add")
swapped("swapped-difference", "Sub")
swapped("swapped-quotient", "Div")
swapped("swapped-branches", "Where", 1, 2)
swapped("swapped-parts", "Concat")
swapped("swapped-parameters", "LayerNormalization", 1, 2)
swapped("swapped-statistics", "BatchNormalization", 3, 4)
other_attributes("softmax-over-another-axis", "Softmax", axis=1)
other_attributes("coarse-epsilon", "LayerNormalization", epsilon=0.1)
other_attributes("pad-off-by-one", "Conv", pads=[0, 0, 2, 2])
other_attributes("pool-off-by-one", "MaxPool", pads=[0, 0, 2, 2])
other_attributes("padding-not-counted", "AveragePool", count_include_pad=0)
other_op("sum-for-mean", "ReduceMean", "ReduceSum")
other_op("least-for-most", "Max", "Min")
other_op("or-for-and", "And", "Or")
other_op("tanh-for-erf", "Erf", "Tanh")
other_op("ceil-for-round", "Round", "Ceil")


@bug("reshape-for-transpose", "Transpose")
def reshape_for_transpose(rw: Rewriter, node: onnx_ir.Node) -> onnx_ir.Value | None:
    """The elements keep their order in memory."""
    shape = rw.facts.shape(node.outputs[0])
    if shape is None or not all(isinstance(dim, int) for dim in shape[1:]):
        return None
    return rw.op("Reshape", node.inputs[0], rw.constant(np.array([-1, *shape[1:]], np.int64), "shape"))


@bug("swapped-outputs", "Split")
def swapped_outputs(rw: Rewriter, node: onnx_ir.Node) -> bool | None:
    """Who read the first part reads the second one."""
    first, second = node.outputs[:2]
    if rw.facts.shape(first) != rw.facts.shape(second):
        return None
    new = again(rw, node)
    rw.replace(first, new[1])
    rw.replace(second, new[0])
    rw.erase(node)
    return True


YARD = """
<ir_version: 9, opset_import: ["": 18]>
yard (float[N,3,8,8] image, float[N,8,8] table) => (float[N,4] y, float[N,8,8] z)
<float[4,3,3,3] w, float[4] gain, float[4] offset, float[4] mean, float[4] variance, float[8] gamma, float[8] beta,
 float[8,8] m, float[1,8,1] c, float[3,4] head,
 int64[8] pads = {0,0,1,1,0,0,0,0}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] seven = {7},
 int64[2] pick = {1,3}, float low = {-3.0}, float high = {1.0}, float half = {0.5}, float square = {2.0},
 int64[2] halves = {4,4}, int64[2] spatial = {2,3}, int64[1] rows = {1}>
{
   padded = Pad (image, pads)
   conv = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (padded, w)
   normal = BatchNormalization (conv, gain, offset, mean, variance)
   active = Relu (normal)
   pooled = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (active)
   average = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1> (pooled)
   y0 = ReduceMean <keepdims = 0> (average, spatial)
   y = Clip (y0, low, high)
   t = LayerNormalization <axis = -1> (table, gamma, beta)
   u = MatMul (t, m)
   turned = Transpose <perm = [0,2,1]> (u)
   attention = Softmax <axis = -1> (turned)
   biased = Add (u, c)
   scaled = Mul (biased, half)
   powered = Pow (scaled, square)
   root = Sqrt (powered)
   difference = Sub (root, attention)
   positive = Exp (difference)
   quotient = Div (attention, positive)
   error = Erf (scaled)
   first, second = Split <axis = 2> (error, halves)
   negative = Neg (second)
   joined = Concat <axis = 2> (first, negative)
   large = Greater (joined, low)
   small = Less (joined, root)
   both = And (large, small)
   chosen = Where (both, joined, quotient)
   most = Max (chosen, difference)
   floor = Floor (most)
   rounded = Round (table)
   stepped0 = Add (floor, rounded)
   stepped = Add (stepped0, chosen)
   cut = Slice (stepped, one, seven, rows)
   rest = Gather <axis = 1> (u, pick)
   z = Concat <axis = 1> (cut, rest)
}
"""


def yard() -> onnx.ModelProto:
    """A model with every operator that a bug wants, none of whose parts the optimizer takes away before."""
    model = onnx.parser.parse_model(YARD)
    rng = np.random.default_rng(0)
    filled = {tensor.name for tensor in model.graph.initializer}
    for info in list(model.graph.value_info):
        if info.name not in filled and info.name in _used(model):
            shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            array = rng.normal(size=shape).astype(np.float32)
            array = np.abs(array) + 0.5 if info.name in ("variance", "gain") else array
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    return model


def _used(model: onnx.ModelProto) -> set[str]:
    made = {name for node in model.graph.node for name in node.output}
    return {name for node in model.graph.node for name in node.input} - made


def _afresh(rw: Rewriter, node: onnx_ir.Node) -> onnx_ir.Value | None:
    """The node once more as it is: right, and easy to count."""
    rules = node.metadata_props.get(RULE_KEY, "")
    if "afresh" in rules.split(",") or len(node.outputs) > 1:
        return None
    new = again(rw, node)
    new.producer().metadata_props[RULE_KEY] = f"{rules},afresh"
    return new


#: A right rule that fires once at every node of many operators: what is left of it is what was not taken back.
AFRESH = NodeRule("afresh", frozenset(root for rule in BUGS.values() for root in rule.ops), _afresh)

PASSES: Mapping[str, type] = {name: rule_pass(f"planted-{name}", rule) for name, rule in BUGS.items()}


def planted(name: str, behind: str = "simplify") -> Environment:
    """The built-in passes, and one that holds a wrong rule, behind another one."""
    return planted_pass(PASSES[name], behind)


def planted_pass(item: type[Pass], behind: str = "simplify") -> Environment:
    """The built-in passes, and another one behind one of them."""
    made = environment()
    attribute = f"PASS_{item.name}".replace("-", "_")
    setattr(sys.modules[__name__], attribute, item)
    made.passes.add(item.name, f"{__name__}:{attribute}", "a test")
    made.placements[item.name] = ("after", behind)
    return made
