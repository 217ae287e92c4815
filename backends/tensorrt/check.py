"""The static check: what TensorRT will not take of a graph, all of it at once, before anybody has a GPU at hand.

TensorRT's builder and parser need a GPU to be made at all, so this is what can be said on any other machine: every
operator is held against a table (:mod:`optc.backends.tensorrt.operators`), every type against the rules of strongly
typed networks. What passes here may still be refused by a builder; what fails here is known to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir

from optc.backends.tensorrt.operators import CODES, TYPES, Operator, defined, operator, table
from optc.backends.tensorrt.quantized import findings, stray_codes
from optc.backends.tensorrt.shape_values import deciding_inputs
from optc.ir.errors import BackendError
from optc.ir.facts import Facts
from optc.ir.names import join_op
from optc.ir.ops import ints_attr, is_op, operand
from optc.ir.rewriter import users
from optc.ir.verify import subgraphs

DType = onnx_ir.DataType
_PLUGIN = "write a plugin for it (docs/tensorrt.md), or use another backend"
_INSTEAD: Mapping[DType, str] = {
    DType.DOUBLE: "TensorRT would compute it in single precision: export the model in float32",
    DType.STRING: "keep text processing outside of the model",
    DType.COMPLEX64: "write real and imaginary parts as two tensors",
    DType.COMPLEX128: "write real and imaginary parts as two tensors",
}
#: Attributes by which a node says that it is a plugin (onnx-tensorrt, FallbackPluginImporter).
_PLUGIN_MARKS = ("plugin_namespace", "plugin_version")
_MOST_K = 3840


@dataclass(frozen=True)
class Problem:
    """Something that TensorRT does not take.

    Attributes:
        node: Name of the node, or of the input.
        op: The operator, with its domain; "input" for an input of the model, "model" for the model as a whole.
        what: What is wrong.
        hint: What can be done about it.
    """

    node: str
    op: str
    what: str
    hint: str

    def __str__(self) -> str:
        return f"{self.op} {self.node!r}: {self.what}"


class NotTaken(BackendError):
    """TensorRT does not take a model; ``problems`` are all the reasons, ``details`` the same for reports."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        self.details = tuple(asdict(problem) for problem in self.problems)
        lines = "".join(f"\n  {problem}\n    {problem.hint}" for problem in self.problems)
        count = len(self.problems)
        super().__init__(
            f"TensorRT does not take this model, for {count} reason{'s' * (count != 1)}:{lines}",
            hint="--backend=onnxruntime takes it as it is",
        )


def is_plugin(node: onnx_ir.Node) -> bool:
    """Whether a node says of itself that it is a plugin."""
    return any(name in node.attributes for name in _PLUGIN_MARKS)


def name_of(node: onnx_ir.Node) -> str:
    """What problems call a node: its name, or that of its first output."""
    return node.name or node.outputs[0].name or ""


def check(model: onnx_ir.Model) -> list[Problem]:
    """What TensorRT does not take of a model, in the order of the graph; empty if nothing is known to be in the way."""
    return _Check(model).problems()


def input_problems(model: onnx_ir.Model) -> list[Problem]:
    """What TensorRT does not take of a model's inputs and outputs, which no pass changes."""
    return list(_Check(model).of_inputs())


def needed_version(model: onnx_ir.Model) -> str:
    """The first version of TensorRT that has all operators of a model that :func:`check` has nothing against."""
    found = [operator(node.domain, node.op_type) for node in model.graph.all_nodes()]
    versions = ["10.0", *(one.since for one in found if one is not None)]
    versions += ["10.9" for node in model.graph.all_nodes() if "aot" in node.attributes]
    return max(versions, key=lambda text: [int(part) for part in text.split(".")])


class _Check:
    def __init__(self, model: onnx_ir.Model) -> None:
        self.model, self.facts = model, Facts(model)
        # An input with a value of its own is a constant to TensorRT.
        self.fed = [value for value in model.graph.inputs if not value.is_initializer()]

    def problems(self) -> list[Problem]:
        return [*self._of_model(), *self.of_inputs(), *self._of_graph(self.model.graph)]

    def _of_model(self) -> Iterator[Problem]:
        low, high = table().opset
        version = self.model.graph.opset_imports.get("", high)
        if not low <= version <= high:
            yield Problem(
                self.model.graph.name or "model",
                "model",
                f"it is of opset {version}, TensorRT's parser takes {low} to {high}",
                f"export it with an opset from {low} to {high}",
            )

    def of_inputs(self) -> Iterator[Problem]:
        """What is wrong with inputs and outputs."""
        for value in (*self.model.graph.inputs, *self.model.graph.outputs):
            name = value.name or ""
            side = "input" if value.is_graph_input() else "output"
            if value.type is not None and not isinstance(value.type, onnx_ir.TensorType):
                yield Problem(name, side, "it is no tensor", "TensorRT exchanges tensors only")
            elif side == "input" and self.facts.rank(value) is None:
                yield Problem(name, side, "its rank is not known", "export the model with a shape for it")
            if side == "input":
                yield from self._of_type(value, name, side)

    def _of_graph(self, graph: onnx_ir.Graph) -> Iterator[Problem]:
        for value in graph.initializers.values():
            if value.uses():
                yield from self._of_type(value, value.name or "", "initializer")
        for node in graph:
            yield from self._of_node(node)
            for inner in subgraphs(node):
                yield from self._of_graph(inner)

    def _of_node(self, node: onnx_ir.Node) -> Iterator[Problem]:
        op, name = join_op(node.domain, node.op_type), name_of(node)
        known = operator(node.domain, node.op_type)
        if known is None:
            if not is_plugin(node):
                hint = table().instead.get(node.op_type, _PLUGIN) if not node.domain else _PLUGIN
                yield Problem(name, op, "TensorRT has no such operator", hint)
            return
        version = self.model.graph.opset_imports.get("", table().opset[1])
        if not defined(node.op_type, version):
            yield Problem(name, op, f"ONNX has no such operator in opset {version}", "export it with a later opset")
        for what, hint in (*self._bounds(node, known), *_SPECIAL.get(node.op_type, _nothing)(node, self.facts)):
            yield Problem(name, op, what, hint)
        for value in node.outputs:
            yield from self._of_type(value, name, op)

    def _of_type(self, value: onnx_ir.Value, name: str, op: str) -> Iterator[Problem]:
        """What is wrong with the type of a value, told of the one who makes it."""
        dtype = self._dtype(value)
        if dtype is None:
            return
        if dtype not in TYPES:
            hint = _INSTEAD.get(dtype, "cast it to int32, int64 or a float in the model")
            yield Problem(name, op, f"TensorRT has no {dtype.name.lower()}", hint)
        elif dtype in CODES:
            stray = stray_codes(value, self.facts)
            if stray is not None:
                yield Problem(name, op, *stray)
        elif dtype == DType.UINT8:
            reader = next((user for user in users(value) if not is_op(user, "Cast", "Shape", "Size")), None)
            if reader is not None and not is_op(value.producer(), "QuantizeLinear"):
                what = f"{reader.op_type} reads uint8, which is for inputs and outputs of the model"
                yield Problem(name, op, what, "cast it first")

    def _bounds(self, node: onnx_ir.Node, known: Operator) -> Iterator[tuple[str, str]]:
        """What is wrong with a node by the table."""
        dtype = self._dtype(known.typed(node))
        if dtype is not None and dtype in TYPES and dtype not in known.types:
            types = ", ".join(sorted(one.name.lower() for one in known.types))
            yield f"TensorRT has it for {types}, not for {dtype.name.lower()}", "cast its operands"
        for index in known.constant:
            value = operand(node, index)
            if value is not None and not self.facts.is_const(value) and self.facts.ints(value) is None:
                yield f"its input {index} must be a constant", "make it one, or try a higher -O"
        for position, ranks in known.ranks.items():
            rank = self.facts.rank(operand(node, int(position)))
            if rank is not None and rank not in ranks:
                yield f"its input {position} has rank {rank}, TensorRT takes {_either(ranks)}", "reshape it"
        for index in known.absent:
            if operand(node, index) is not None:
                yield f"TensorRT takes no input {index}", _PLUGIN
        for index in known.unread:
            if index < len(node.outputs) and (node.outputs[index].uses() or node.outputs[index].is_graph_output()):
                yield f"its output {index} is read, and TensorRT has none", _PLUGIN
        for attribute, allowed in known.attributes.items():
            wrong = [item for item in _items(node, attribute) if item not in allowed]
            if wrong:
                yield f"{attribute} is {wrong[0]}, TensorRT takes {_either(allowed)}", _PLUGIN
        for position, wanted in known.exactly.items():
            found = self._dtype(operand(node, int(position)))
            if found is not None and found.name != wanted:
                yield f"its input {position} is {found.name.lower()}, TensorRT takes {wanted.lower()}", "cast it"
        for index, source in deciding_inputs(node, self.facts, self.fed):
            what = (
                f"the values of {source!r} decide its shape (by its input {index}), and profiles have no range for them"
            )
            yield what, "fix them in the model, or compute them from shapes"
        for index in known.static:
            shape = self.facts.shape(operand(node, index))
            if shape is None or not all(isinstance(dim, int) for dim in shape):
                yield f"the dims of its input {index} must be known", "fix them in the model"

    def _dtype(self, value: onnx_ir.Value | None) -> DType | None:
        return None if value is None else self.facts.dtype(value) or value.dtype


# operators that need a closer look ------------------------------------------------------------------------------------

_Special = Callable[[onnx_ir.Node, Facts], Iterable[tuple[str, str]]]


def _nothing(node: onnx_ir.Node, facts: Facts) -> Iterable[tuple[str, str]]:
    return ()


def _few(node: onnx_ir.Node, facts: Facts) -> Iterator[tuple[str, str]]:
    """TopK."""
    count = facts.scalar(operand(node, 1))
    if count is not None and count >= _MOST_K:
        yield f"K is {count}, TensorRT takes less than {_MOST_K}", _PLUGIN


def _same_both_ways(node: onnx_ir.Node, facts: Facts) -> Iterator[tuple[str, str]]:
    """Recurrent layers."""
    direction = node.attributes.get("direction")
    if direction is None or direction.as_string() != "bidirectional":
        return
    for name in ("activations", "activation_alpha", "activation_beta"):
        items = _items(node, name)
        if items[: len(items) // 2] != items[len(items) // 2 :]:
            yield f"its {name} differ between the two directions", "split it into two layers of one direction each"


def _even_pads(node: onnx_ir.Node, facts: Facts) -> Iterator[tuple[str, str]]:
    """DeformConv."""
    pads = ints_attr(node, "pads") or ()
    if pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
        yield "its padding differs between the two ends of an axis", "pad before it"


def _one_rank(node: onnx_ir.Node, facts: Facts) -> Iterator[tuple[str, str]]:
    """If."""
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch") if name in node.attributes]
    for one, other in zip(*(branch.outputs for branch in branches), strict=False):
        ranks = facts.rank(one), facts.rank(other)
        if None not in ranks and ranks[0] != ranks[1]:
            yield f"its branches give {one.name!r} of rank {ranks[0]} and {other.name!r} of rank {ranks[1]}", _PLUGIN


def _nearest(node: onnx_ir.Node, facts: Facts) -> Iterator[tuple[str, str]]:
    """Resize."""
    modes = {name: _items(node, name) for name in ("coordinate_transformation_mode", "nearest_mode")}
    if modes["coordinate_transformation_mode"] == ["tf_half_pixel_for_nn"] and modes["nearest_mode"] not in (
        [],
        ["round_prefer_floor"],
    ):
        yield "with tf_half_pixel_for_nn TensorRT rounds by round_prefer_floor only", "export it with other coordinates"


def _constant_kinds(node: onnx_ir.Node, facts: Facts) -> Iterator[tuple[str, str]]:
    for name in ("sparse_value", "value_string", "value_strings"):
        if name in node.attributes:
            yield f"TensorRT takes no {name}", "write it as a dense tensor of numbers"


def _training(node: onnx_ir.Node, facts: Facts) -> Iterator[tuple[str, str]]:
    """Dropout."""
    if facts.scalar(operand(node, 2)):
        yield "it is in training mode", "export the model for inference"


def _one_type(*positions: int) -> _Special:
    """Operators that ONNX lets have operands of several types, and strongly typed networks do not."""

    def problems(node: onnx_ir.Node, facts: Facts) -> Iterator[tuple[str, str]]:
        found = {index: facts.dtype(operand(node, index)) for index in (0, *positions)}
        for index, dtype in found.items():
            if None not in (dtype, found[0]) and dtype != found[0]:
                names = [one.name.lower() for one in (dtype, found[0]) if one is not None]
                yield f"its input {index} is {names[0]}, its first {names[1]}", "cast one of them in the model"

    return problems


def _mask_type(node: onnx_ir.Node, facts: Facts) -> Iterator[tuple[str, str]]:
    """Attention."""
    if facts.dtype(operand(node, 3)) != DType.BOOL:
        yield from _one_type(1, 2, 3)(node, facts)
    else:
        yield from _one_type(1, 2)(node, facts)


_SPECIAL: Mapping[str, _Special] = {
    "Attention": _mask_type,
    "BatchNormalization": _one_type(1, 2, 3, 4),
    "Constant": _constant_kinds,
    "DeformConv": _even_pads,
    "DequantizeLinear": findings,
    "Dropout": _training,
    "GRU": _same_both_ways,
    "If": _one_rank,
    "LSTM": _same_both_ways,
    "LayerNormalization": _one_type(1, 2),
    "Pow": _one_type(1),
    "QuantizeLinear": findings,
    "RMSNormalization": _one_type(1),
    "RNN": _same_both_ways,
    "Resize": _nearest,
    "TopK": _few,
}


def _items(node: onnx_ir.Node, name: str) -> list[Any]:
    """The values of an attribute, which may be one or a list; none where it is left out."""
    attribute = node.attributes.get(name)
    if attribute is None:
        return []
    value = attribute.value
    return list(value) if isinstance(value, list | tuple) else [value]


def _either(items: Iterable[Any]) -> str:
    return " or ".join(map(str, items))


__all__ = ["NotTaken", "Problem", "check", "input_problems", "is_plugin", "needed_version"]
