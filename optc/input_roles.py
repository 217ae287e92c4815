"""What a model does with each of its inputs, so that values drawn for them are valid.

An integer input may be an index into a table, an attention mask, a shape or a length; random numbers would make the
model fail, or exercise nothing. The graph tells which: each input is followed through ops that keep its values (or
shift and scale them by constants) to the ops that give them a meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import onnx_ir

from optc.backends.ort_fragment import constant_array

Kind = Literal["index", "length", "between", "reshape", "mask", "positive", "unit", "plain"]
AxisSize = int | str | None
_T = TypeVar("_T")


@dataclass(frozen=True)
class Limit:
    """``0 <= scale * x + low`` and ``scale * x + high < size`` must hold for every element ``x``.

    ``size`` is a number, the text of a symbolic dim, or None when it is not known.
    """

    size: AxisSize
    scale: float = 1.0
    low: float = 0.0
    high: float = 0.0

    def bounds(self, evaluate: Callable[[AxisSize], int | None]) -> tuple[int, int]:
        """Smallest and largest valid ``x``; an unknown size counts as 1."""
        size = evaluate(self.size)
        last = (1 if size is None else size) - 1
        ends = (-self.low / self.scale, (last - self.high) / self.scale)
        return math.ceil(min(ends)), math.floor(max(ends))


@dataclass(frozen=True)
class Role:
    """How to draw an input.

    Attributes:
        kind: "index" and "length" obey ``limits`` (a length is at least 1); "between" draws from ``low`` to ``high``;
            "reshape" is a shape that fits any tensor; "mask" is 0 and 1, never all 0 in a row; "positive" and "unit"
            restrict floats to where the function applied to them is defined; "plain" is anything.
        why: The evidence, for the report.
        limits: See :class:`Limit`.
        low: Smallest value.
        high: Largest value.
    """

    kind: Kind
    why: str = ""
    limits: tuple[Limit, ...] = ()
    low: int = 0
    high: int = 0


#: Which role wins when an input is used in several ways: an invalid index fails, an odd mask does not.
_PRIORITY: tuple[Kind, ...] = ("index", "length", "reshape", "between", "mask", "positive", "unit", "plain")

#: Ops whose output holds values of the operands at these positions; None means all operands.
_KEEPS: dict[str, tuple[int, ...] | None] = {
    "Abs": (0,),
    "Cast": (0,),
    "CastLike": (0,),
    "Clip": (0,),
    "Concat": None,
    "DepthToSpace": (0,),
    "Dropout": (0,),
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "Identity": (0,),
    "Max": None,
    "Min": None,
    "Pad": (0,),
    "Reshape": (0,),
    "Slice": (0,),
    "SpaceToDepth": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Trilu": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}

#: (op, operand) -> (operand that is indexed, its axis: a number or the attribute that holds it, default 0).
_INDEXES: dict[tuple[str, int], tuple[int, int | str]] = {
    ("Gather", 1): (0, "axis"),
    ("GatherElements", 1): (0, "axis"),
    ("ScatterElements", 1): (0, "axis"),
    ("Scatter", 1): (0, "axis"),
    ("GatherBlockQuantized", 1): (0, "gather_axis"),
    ("ArrayFeatureExtractor", 1): (0, -1),
    ("EmbedLayerNormalization", 0): (2, 0),
    ("EmbedLayerNormalization", 1): (4, 0),
    ("EmbedLayerNormalization", 8): (3, 0),
    ("com.microsoft.RotaryEmbedding", 1): (2, 0),
    ("RotaryEmbedding", 3): (1, 0),
    ("NegativeLogLikelihoodLoss", 1): (0, 1),
    ("SoftmaxCrossEntropyLoss", 1): (0, 1),
}

#: (op, operand) -> (operand whose extent bounds the length, its axis).
_LENGTHS: dict[tuple[str, int], tuple[int, int | str]] = {
    ("LSTM", 4): (0, 0),
    ("GRU", 4): (0, 0),
    ("RNN", 4): (0, 0),
    ("ReverseSequence", 1): (0, "time_axis"),
}

#: (op, operand) -> values that are valid whatever the other operands are, or nearly so.
_BETWEEN: dict[tuple[str, int], tuple[int, int]] = {
    ("Expand", 1): (1, 1),
    ("ConstantOfShape", 0): (1, 4),
    ("Range", 0): (0, 0),
    ("Range", 1): (1, 5),
    ("Range", 2): (1, 1),
    ("Tile", 1): (1, 2),
    ("TopK", 1): (1, 1),
    ("Slice", 1): (0, 0),
    ("Slice", 2): (1, 4),
    ("Slice", 3): (0, 0),
    ("Slice", 4): (1, 1),
    ("Pad", 1): (0, 1),
    ("Resize", 2): (1, 2),
    ("Resize", 3): (4, 8),
    ("Upsample", 1): (1, 2),
    ("Loop", 0): (1, 3),
    ("OneHot", 1): (4, 8),
    ("Squeeze", 1): (0, 0),
    ("Unsqueeze", 1): (0, 0),
    ("CumSum", 1): (0, 0),
    ("CenterCropPad", 1): (1, 4),
    ("Trilu", 1): (0, 1),
    ("NonMaxSuppression", 2): (1, 4),
    ("BitShift", 1): (0, 3),
}

_MASKS = {
    ("Not", 0),
    ("And", 0),
    ("And", 1),
    ("Or", 0),
    ("Or", 1),
    ("Where", 0),
    ("Compress", 1),
    ("CumSum", 0),
    ("com.microsoft.Attention", 3),
    ("QAttention", 5),
    ("MultiHeadAttention", 4),
    ("EmbedLayerNormalization", 7),
}
_COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_DOMAINS: dict[str, Kind] = {
    "Log": "positive",
    "Sqrt": "positive",
    "Acosh": "positive",
    "Reciprocal": "positive",
    "Acos": "unit",
    "Asin": "unit",
    "Atanh": "unit",
}


def input_roles(model: onnx_ir.Model) -> dict[str, Role]:
    """The role of every input of the model's graph, by name."""
    return {
        value.name or "": _role(value, model)
        for value in model.graph.inputs
        if (value.name or "") not in model.graph.initializers
    }


@dataclass(frozen=True)
class _Flow:
    """A value whose elements are ``scale * x + c`` of an input's elements ``x``, with ``low <= c <= high``."""

    value: onnx_ir.Value
    scale: float = 1.0
    low: float = 0.0
    high: float = 0.0


def _role(value: onnx_ir.Value, model: onnx_ir.Model) -> Role:
    found: dict[Kind, list[Role]] = {}
    seen: set[onnx_ir.Value] = set()
    flows = [_Flow(value)]
    while flows:
        flow = flows.pop()
        if flow.value in seen:
            continue
        seen.add(flow.value)
        for node, position in flow.value.uses():
            role = _meaning(node, position, flow, direct=flow.value is value)
            if role is not None:
                found.setdefault(role.kind, []).append(role)
            flows.extend(_onward(node, position, flow, model))
    for kind in _PRIORITY:
        if kind in found:
            roles = found[kind]
            limits = tuple(dict.fromkeys(limit for role in roles for limit in role.limits))
            return Role(kind, roles[0].why, limits, max(r.low for r in roles), min(r.high for r in roles))
    if value.dtype == onnx_ir.DataType.BOOL:
        return Role("mask", "it is boolean")
    if "mask" in (value.name or "").lower():
        return Role("mask", "its name")
    return Role("plain")


def _meaning(node: onnx_ir.Node, position: int, flow: _Flow, direct: bool) -> Role | None:
    """The role that a use gives to the input, if any."""
    op = node.op_type
    where = f"{op} '{node.name}'" if node.name else op
    kinds: tuple[tuple[Mapping[tuple[str, int], tuple[int, int | str]], Kind], ...]
    kinds = ((_INDEXES, "index"), (_LENGTHS, "length"))
    for table, kind in kinds:
        entry = _look_up(table, node, position)
        if entry is not None:
            size = _axis_size(node, *entry)
            limit = Limit(size, flow.scale, flow.low, flow.high) if flow.scale else Limit(size)
            text = f"it indexes {size if size is not None else 'unknown'} entries in {where}"
            return Role(kind, text if kind == "index" else f"it is a length in {where}", (limit,))
    if op == "OneHot" and position == 0:
        depth = _constant(node, 1)
        return Role(
            "index", f"it is a class in {where}", (Limit(None if depth is None else int(depth.reshape(-1)[0])),)
        )
    if op in ("GatherND", "ScatterND") and position == 1:
        sizes = [_axis_size(node, 0, axis) for axis in range(_rank(node.inputs[0]))]
        return Role("index", f"it indexes in {where}", tuple(Limit(size) for size in sizes) or (Limit(None),))
    if op == "Reshape" and position == 1:
        return Role("reshape", f"it is a shape in {where}")
    if op.startswith("Reduce") and position == 1:
        return Role("between", f"it names axes in {where}")
    between = _look_up(_BETWEEN, node, position)
    if between is not None:
        return Role("between", f"operand {position} of {where}", low=between[0], high=between[1])
    if _is_mask_use(node, position):
        return Role("mask", f"it is a mask in {where}")
    if direct and op in _DOMAINS:
        return Role(_DOMAINS[op], f"{where} is applied to it")
    return None


def _is_mask_use(node: onnx_ir.Node, position: int) -> bool:
    op = node.op_type
    if (op, position) in _MASKS or (f"{node.domain}.{op}", position) in _MASKS:
        return True
    if op == "Cast":
        return node.attributes.get_int("to", 0) == onnx_ir.DataType.BOOL
    other = _constant(node, 1 - position) if len(node.inputs) == 2 else None
    if other is None or other.dtype.kind not in "iufb" or other.size == 0:
        return False
    if op == "Sub":
        return position == 1 and bool((other == 1).all())  # the (1 - mask) * -inf of many exporters
    return op in _COMPARISONS and bool(np.isin(other, (0, 1)).all())


def _onward(node: onnx_ir.Node, position: int, flow: _Flow, model: onnx_ir.Model) -> Iterator[_Flow]:
    """Where the input's values go from here."""
    inner = list(_inner_inputs(node, position, model))
    yield from (_Flow(value, flow.scale, flow.low, flow.high) for value in inner)
    if inner or not node.outputs:
        return
    out = node.outputs[0]
    keeps = _KEEPS.get(node.op_type, ())
    if keeps is None or position in keeps:
        yield from (_Flow(one, flow.scale, flow.low, flow.high) for one in node.outputs)
    elif node.op_type == "Neg":
        yield _Flow(out, -flow.scale, -flow.high, -flow.low)
    elif node.op_type in ("Add", "Sub", "Mul") and len(node.inputs) == 2:
        constant = _constant(node, 1 - position)
        if constant is None or constant.size == 0 or constant.dtype.kind not in "iuf":
            return
        low, high = float(constant.min()), float(constant.max())
        if node.op_type == "Add":
            yield _Flow(out, flow.scale, flow.low + low, flow.high + high)
        elif node.op_type == "Sub" and position == 0:
            yield _Flow(out, flow.scale, flow.low - high, flow.high - low)
        elif node.op_type == "Sub":
            yield _Flow(out, -flow.scale, low - flow.high, high - flow.low)
        elif low == high and low != 0:
            ends = sorted((flow.low * low, flow.high * low))
            yield _Flow(out, flow.scale * low, *ends)


def _inner_inputs(node: onnx_ir.Node, position: int, model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    """The value inside a called function or a loop body that an operand becomes."""
    function = model.functions.get(node.op_identifier())
    if function is not None:
        yield from function.inputs[position : position + 1]
    elif node.op_type in ("Loop", "Scan") and "body" in node.attributes and (node.op_type == "Scan" or position >= 2):
        yield from node.attributes["body"].as_graph().inputs[position : position + 1]


def _look_up(table: Mapping[tuple[str, int], _T], node: onnx_ir.Node, position: int) -> _T | None:
    qualified = table.get((f"{node.domain}.{node.op_type}", position))
    return table.get((node.op_type, position)) if qualified is None else qualified


def _constant(node: onnx_ir.Node, position: int) -> np.ndarray | None:
    value = node.inputs[position] if position < len(node.inputs) else None
    return None if value is None else constant_array(value)


def _rank(value: onnx_ir.Value | None) -> int:
    return len(value.shape) if value is not None and value.shape is not None else 0


def _axis_size(node: onnx_ir.Node, position: int, axis: int | str) -> AxisSize:
    value = node.inputs[position] if position < len(node.inputs) else None
    if value is None:
        return None
    if isinstance(axis, str):
        axis = node.attributes.get_int(axis, 0)
    shape = value.const_value.shape if value.const_value is not None else value.shape
    if shape is None:
        array = constant_array(value)
        shape = onnx_ir.Shape(array.shape) if array is not None else None
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    dim = shape[axis]
    return dim if isinstance(dim, int) else dim.value
