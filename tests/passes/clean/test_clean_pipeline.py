"""Random graphs keep their outputs under the clean-up passes, and come to rest."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from optc.ir.saving import to_proto

from .pipelines import CLEAN, check, floats, optimize

_UNARY = ("Neg", "Abs", "Relu", "Identity", "Floor", "Sign")
_BINARY = ("Add", "Sub", "Mul", "Max", "Min")
_SHAPE = [2, 3]


class _Builder:
    """Draws nodes over values of one shape, so that every draw is a valid graph."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.count = 0
        self.weights: list[onnx.TensorProto] = []

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def nodes(self, scope: list[str], size: int, depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        """Nodes that read from a scope, and the names that they add to it."""
        nodes: list[onnx.NodeProto] = []
        own: list[str] = []
        for _ in range(self.draw(st.integers(1, size))):
            kinds = ["unary", "binary", "binary", "constant", "weight", "shape", "expand", "dropout", "call"]
            kind = self.draw(st.sampled_from(kinds + ["if", "loop"] * bool(depth)))
            added, made = getattr(self, f"_{kind}")(scope + own, depth)
            nodes += added
            own += made
        return nodes, own

    def pick(self, scope: list[str]) -> str:
        return self.draw(st.sampled_from(scope))

    def _array(self) -> np.ndarray:
        value = self.draw(st.sampled_from([0.0, -0.0, 1.0, 2.0]))
        return np.full(_SHAPE, value, np.float32)

    def _unary(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        out = self.name()
        return [helper.make_node(self.draw(st.sampled_from(_UNARY)), [self.pick(scope)], [out])], [out]

    def _binary(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        out = self.name()
        op = self.draw(st.sampled_from(_BINARY))
        return [helper.make_node(op, [self.pick(scope), self.pick(scope)], [out])], [out]

    def _constant(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        out = self.name()
        return [helper.make_node("Constant", [], [out], value=numpy_helper.from_array(self._array()))], [out]

    def _weight(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        out = self.name()
        self.weights.append(numpy_helper.from_array(self._array(), out))
        return [], [out]

    def _shape(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        x, shape, flat, out = self.pick(scope), self.name(), self.name(), self.name()
        nodes = [
            helper.make_node("Shape", [self.pick(scope)], [shape]),
            helper.make_node("Flatten", [x], [flat], axis=0),
            helper.make_node("Reshape", [flat, shape], [out]),
        ]
        return nodes, [out]

    def _expand(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        shape, out = self.name(), self.name()
        fill = numpy_helper.from_array(np.array([3.0], np.float32))
        nodes = [
            helper.make_node("Shape", [self.pick(scope)], [shape]),
            helper.make_node("ConstantOfShape", [shape], [out], value=fill),
        ]
        return nodes, [out]

    def _dropout(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        out = self.name()
        return [helper.make_node("Dropout", [self.pick(scope)], [out, self.name()])], [out]

    def _call(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        out = self.name()
        name = self.draw(st.sampled_from(["plain", "branching"]))
        inputs = [self.pick(scope), self.pick(scope)]
        return [helper.make_node(name, inputs, [out], domain="local", alpha=self.draw(st.sampled_from([0.5, 2.0])))], [
            out
        ]

    def _body(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], str]:
        """Nodes whose last one makes the body's result."""
        nodes, own = self.nodes(scope, 3, depth - 1)
        out = self.name()
        return [*nodes, helper.make_node("Add", [self.pick(scope + own), self.pick(scope + own)], [out])], out

    def _condition(self) -> str:
        kind = self.draw(st.sampled_from(["c", "true", "false"]))
        if kind != "c" and all(weight.name != kind for weight in self.weights):
            self.weights.append(numpy_helper.from_array(np.array(kind == "true"), kind))
        return kind

    def _if(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        branches = {}
        for branch in ("then_branch", "else_branch"):
            nodes, out = self._body(scope, depth)
            outputs = [helper.make_tensor_value_info(out, TensorProto.FLOAT, _SHAPE)]
            branches[branch] = helper.make_graph(nodes, branch, [], outputs)
        out = self.name()
        return [helper.make_node("If", [self._condition()], [out], **branches)], [out]

    def _loop(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        index, before, goes_on, state = (self.name() for _ in range(4))
        nodes, out = self._body([*scope, state], depth)
        nodes.append(helper.make_node("Identity", [before], [goes_on]))
        body = helper.make_graph(
            nodes,
            "body",
            [
                helper.make_tensor_value_info(index, TensorProto.INT64, []),
                helper.make_tensor_value_info(before, TensorProto.BOOL, []),
                helper.make_tensor_value_info(state, TensorProto.FLOAT, _SHAPE),
            ],
            [
                helper.make_tensor_value_info(goes_on, TensorProto.BOOL, []),
                helper.make_tensor_value_info(out, TensorProto.FLOAT, _SHAPE),
            ],
        )
        trips = self.name()
        self.weights.append(numpy_helper.from_array(np.array(self.draw(st.integers(0, 3))), trips))
        result = self.name()
        return [helper.make_node("Loop", [trips, self._condition(), self.pick(scope)], [result], body=body)], [result]


_FUNCTIONS = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
agraph (float[2, 3] x) => (float[2, 3] y) { y = Neg (x) }
<domain: "local", opset_import: ["" : 21]>
plain <alpha> (a, b) => (r) { t = LeakyRelu <alpha: float = @alpha> (a)  r = Add (t, b) }
<domain: "local", opset_import: ["" : 21, "local" : 1]>
branching <alpha> (a, b) => (r) {
    k = Constant <value = float {0.0}> ()
    s = ReduceSum <keepdims = 0> (a)
    c = Greater (s, k)
    r = If (c) <
        then_branch = t () => (p) { p = local.plain <alpha: float = @alpha> (a, b) },
        else_branch = e () => (q) { q = Sub (b, a) }
    >
}
"""


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    builder = _Builder(draw)
    nodes, own = builder.nodes(["x", "w"], 8, 2)
    produced = [output for node in nodes for output in node.output if output in own]
    nodes.append(helper.make_node("Add", [builder.pick(own), "x"], ["last"]))
    names = dict.fromkeys([*draw(st.lists(st.sampled_from(produced or ["last"]), max_size=3)), "last"])
    graph = helper.make_graph(
        nodes,
        "random",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, draw(st.sampled_from([_SHAPE, ["N", 3]]))),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, _SHAPE),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        builder.weights,
    )
    functions = onnx.parser.parse_model(_FUNCTIONS).functions
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(proto=models(), condition=st.booleans())
def test_random_graphs_keep_their_outputs(proto: onnx.ModelProto, condition: bool) -> None:
    feeds = {"x": floats(2, 3), "w": floats(2, 3, seed=1), "c": np.array(condition)}
    done = check(proto, CLEAN, feeds)
    again = optimize(to_proto(done.model), CLEAN)
    assert sum(again.ops.values()) == sum(done.ops.values())
