"""Raising the version of the standard operators that a model imports, without a change of its meaning.

Every step from one version of an operator to the next is in one of three tables: what only widened types or added what
may be left out; what a node can be adapted to, if nothing is in the way; and what is not done, with the reason. The
steps are those of onnx/docs/Changelog.md; what is said of each was read there, operator by operator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir

from optc.ir.errors import PassError
from optc.ir.facts import Facts
from optc.ir.functions import FUSED_DOMAIN
from optc.ir.names import label
from optc.ir.rewriter import Rewriter
from optc.ir.verify import subgraphs

#: From this version on operators broadcast as NumPy does; older models are left alone.
OLDEST = 7
#: The newest version that the tables know.
NEWEST = 23

_Node = onnx_ir.Node


@dataclass(frozen=True)
class Change:
    """A step of an operator that needs a look at the node.

    Attributes:
        problem: Why a node cannot take the step; None if it can.
        adapt: Gives the node its new form.
    """

    problem: Callable[[_Node, Facts], str | None] = lambda node, facts: None
    adapt: Callable[[Rewriter, _Node], None] = lambda rw, node: None


def obstacle(model: onnx_ir.Model, facts: Facts, version: int) -> str | None:
    """Why the default domain of a model cannot be raised to a version; None if it can.

    Sub-graphs are looked into. Functions other than fused ops are in the way: their bodies import versions of
    their own. The bodies of fused ops stay as they are; what is inlined of them later is :func:`adapt`'s.

    Returns:
        The first node in the way and what changed about its operator, or None.
    """
    old = model.graph.opset_imports.get("", 0)
    if not OLDEST <= old <= version <= NEWEST:
        return f"opset {old} cannot be raised to {version}: opsets {OLDEST} to {NEWEST} are known"
    if any(domain != FUSED_DOMAIN for domain, _, _ in model.functions):
        return "the model has functions"
    for node in _standard_nodes(model.graph):
        reason = _obstacle_at(node, facts, old, version)
        if reason is not None:
            return f"{label(node)}: {reason}"
    return None


def raise_opset(rw: Rewriter, version: int) -> None:
    """Raise the default domain of a model that :func:`obstacle` has nothing against.

    Raises:
        PassError: There is something against it; nothing was changed.
    """
    reason = obstacle(rw.model, rw.facts, version)
    if reason is not None:
        raise PassError(f"the opset cannot be raised to {version}: {reason}")
    imports = rw.model.graph.opset_imports
    old = imports.get("", 0)
    for node in list(_standard_nodes(rw.model.graph)):
        adapt(rw, node, old, version)
    imports[""] = version
    wanted = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)])
    rw.model.ir_version = max(rw.model.ir_version, wanted)


def adapt(rw: Rewriter, node: onnx_ir.Node, old: int, version: int) -> None:
    """Give one standard node, written for opset ``old``, the form that it has in ``version``.

    Raises:
        PassError: It has none.
    """
    reason = _obstacle_at(node, rw.facts, old, version)
    if reason is not None:
        raise PassError(f"{label(node)} cannot be raised from opset {old} to {version}: {reason}")
    for step in steps(node.op_type, old, version):
        change = CHANGED.get((node.op_type, step))
        if change is not None:
            with rw.at(node, "raise-opset"):
                change.adapt(rw, node)


@functools.cache
def steps(op_type: str, old: int, version: int) -> tuple[int, ...]:
    """The versions after ``old`` and up to ``version`` in which a standard operator changed."""
    return tuple(since for since in _history().get(op_type, ()) if old < since <= version)


@functools.cache
def _history() -> Mapping[str, tuple[int, ...]]:
    table: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            table.setdefault(schema.name, set()).add(schema.since_version)
    return {name: tuple(sorted(versions)) for name, versions in table.items()}


def _standard_nodes(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Node]:
    for node in graph:
        if node.domain in ("", "ai.onnx"):
            yield node
        for inner in subgraphs(node):
            yield from _standard_nodes(inner)


def _obstacle_at(node: onnx_ir.Node, facts: Facts, old: int, version: int) -> str | None:
    if node.op_type in _RUNTIME_OPS:
        return None
    if old < min(_history().get(node.op_type, (version + 1,))):
        return f"ONNX has no such operator in opset {old}"
    for step in steps(node.op_type, old, version):
        key = node.op_type, step
        if step in KEPT.get(node.op_type, ()):
            continue
        if key not in CHANGED:
            return f"opset {step} {REFUSED.get(key, 'changed it in a way that was not looked into')}"
        reason = CHANGED[key].problem(node, facts)
        if reason is not None:
            return f"opset {step}: {reason}"
    return None


# what a node is adapted to --------------------------------------------------------------------------------------------


def _operand(rw: Rewriter, node: _Node, index: int, array: np.ndarray, name: str) -> None:
    """Let a constant be input ``index`` of a node that has fewer inputs."""
    node.resize_inputs(max(len(node.inputs), index + 1))
    rw.set_input(node, index, rw.constant(array, name))


def _ints_to_input(name: str, index: int = 1) -> Change:
    """A list of integers that was an attribute is an input; none at all is none at all."""

    def become(rw: Rewriter, node: _Node) -> None:
        attribute = node.attributes.get(name)
        items = [] if attribute is None else list(attribute.as_ints())
        rw.set_attribute(node, name, None)
        if items:
            _operand(rw, node, index, np.array(items, np.int64), name)

    return Change(adapt=become)


def _split_evenly(rw: Rewriter, node: _Node) -> None:
    """Without sizes the number of pieces must be named."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        rw.set_attribute(node, "num_outputs", len(node.outputs))


def _softmax_problem(node: _Node, facts: Facts) -> str | None:
    axis, rank = _int(node, "axis", 1), facts.rank(node.inputs[0])
    if axis == -1 or (rank is not None and axis == rank - 1):
        return None
    return "before, all axes from `axis` on were one"


def _softmax(rw: Rewriter, node: _Node) -> None:
    rw.set_attribute(node, "axis", -1)


def _dtype(rw: Rewriter, node: _Node) -> np.dtype:
    dtype = rw.facts.dtype(node.inputs[0])
    assert dtype is not None  # `_float_input` asked
    return dtype.numpy()


def _bounds_to_inputs(rw: Rewriter, node: _Node) -> None:
    """Clip's bounds."""
    dtype = _dtype(rw, node)
    for index, name in ((1, "min"), (2, "max")):
        attribute = node.attributes.get(name)
        rw.set_attribute(node, name, None)
        if attribute is not None:
            _operand(rw, node, index, np.array(attribute.as_float(), dtype), name)


def _pads_to_inputs(rw: Rewriter, node: _Node) -> None:
    pads, value = list(node.attributes["pads"].as_ints()), node.attributes.get("value")
    for name in ("pads", "value"):
        rw.set_attribute(node, name, None)
    _operand(rw, node, 1, np.array(pads, np.int64), "pads")
    if value is not None:
        _operand(rw, node, 2, np.array(value.as_float(), _dtype(rw, node)), "pad_value")


def _slice_to_inputs(rw: Rewriter, node: _Node) -> None:
    for index, name in enumerate(("starts", "ends", "axes"), 1):
        attribute = node.attributes.get(name)
        rw.set_attribute(node, name, None)
        if attribute is not None:
            _operand(rw, node, index, np.array(attribute.as_ints(), np.int64), name)


def _count_to_input(rw: Rewriter, node: _Node) -> None:
    count = node.attributes["k"].as_int()
    rw.set_attribute(node, "k", None)
    _operand(rw, node, 1, np.array([count], np.int64), "k")


def _float_input(node: _Node, facts: Facts) -> str | None:
    dtype = facts.dtype(node.inputs[0])
    return None if dtype is not None and dtype.is_floating_point() else "the type of its input must be a float"


def _no_mask(node: _Node, facts: Facts) -> str | None:
    return "its mask is read" if any(_is_read(value) for value in node.outputs[1:]) else None


def _drop(*names: str) -> Callable[[Rewriter, _Node], None]:
    def change(rw: Rewriter, node: _Node) -> None:
        for name in names:
            rw.set_attribute(node, name, None)

    return change


def _inference_only(node: _Node, facts: Facts) -> str | None:
    return "its statistics are read, as in training" if any(map(_is_read, node.outputs[1:])) else None


def _not_per_element(node: _Node, facts: Facts) -> str | None:
    return None if _int(node, "spatial", 1) else "statistics per element are gone"


def _no_ceiling(node: _Node, facts: Facts) -> str | None:
    return "what the last window holds is not said alike" if _int(node, "ceil_mode", 0) else None


def _no_same_padding(node: _Node, facts: Facts) -> str | None:
    automatic = _text(node, "auto_pad", "NOTSET")
    return "the side of odd padding changed" if automatic.startswith("SAME") else None


def _plain_coordinates(node: _Node, facts: Facts) -> str | None:
    mode = _text(node, "coordinate_transformation_mode", "half_pixel")
    return f"the coordinates {mode} changed" if mode.startswith("tf_") else None


def _old_default(name: str, value: str) -> Callable[[Rewriter, _Node], None]:
    """Write the default of before down."""

    def change(rw: Rewriter, node: _Node) -> None:
        if name not in node.attributes:
            rw.set_attribute(node, name, value)

    return change


def _renamed_modes(rw: Rewriter, node: _Node) -> None:
    mode = _text(node, "mode", "bilinear")
    rw.set_attribute(node, "mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _int(node: _Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _text(node: _Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def _is_read(value: onnx_ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


# the tables -----------------------------------------------------------------------------------------------------------

#: Operators of ONNX Runtime that stand in the default domain; its versions mean nothing to them.
_RUNTIME_OPS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_AXES = _ints_to_input("axes")

#: (operator, version) -> what there is to do or to see to.
CHANGED: Mapping[tuple[str, int], Change] = {
    **{(f"Reduce{kind}", 18): _AXES for kind in _REDUCTIONS},
    ("ReduceSum", 13): _AXES,
    ("Squeeze", 13): _AXES,
    ("Unsqueeze", 13): _AXES,
    ("Split", 13): _ints_to_input("split"),
    ("Split", 18): Change(adapt=_split_evenly),
    **{(op, 13): Change(_softmax_problem, _softmax) for op in ("Softmax", "LogSoftmax", "Hardmax")},
    ("Clip", 11): Change(_float_input, _bounds_to_inputs),
    ("Pad", 11): Change(_float_input, _pads_to_inputs),
    ("Slice", 10): Change(adapt=_slice_to_inputs),
    ("TopK", 10): Change(adapt=_count_to_input),
    ("Erf", 13): Change(_float_input),
    ("Dropout", 10): Change(_no_mask),
    ("Dropout", 12): Change(_no_mask, _drop("ratio")),
    ("BatchNormalization", 9): Change(_not_per_element, _drop("spatial")),
    ("BatchNormalization", 14): Change(_inference_only),
    ("AveragePool", 19): Change(_no_ceiling),
    ("AveragePool", 22): Change(_no_ceiling),
    ("MaxPool", 22): Change(_no_ceiling),
    ("ConvTranspose", 11): Change(_no_same_padding),
    ("Resize", 13): Change(_plain_coordinates),
    ("Resize", 18): Change(_plain_coordinates),
    ("Resize", 19): Change(_plain_coordinates),
    ("RoiAlign", 16): Change(adapt=_old_default("coordinate_transformation_mode", "output_half_pixel")),
    ("GridSample", 20): Change(adapt=_renamed_modes),
}

#: (operator, version) -> what the version did to it, where a model stays as it is.
REFUSED: Mapping[tuple[str, int], str] = {
    ("DFT", 20): "made its axis an input with another default",
    ("GroupNormalization", 21): "made its scale and bias one number per channel",
    ("LpPool", 11): "says more of its padding",
    ("LpPool", 18): "says more of its windows",
    ("LpPool", 22): "says more of its windows",
    ("NegativeLogLikelihoodLoss", 13): "is for training",
    ("NegativeLogLikelihoodLoss", 22): "is for training",
    ("SoftmaxCrossEntropyLoss", 13): "is for training",
    ("NonMaxSuppression", 11): "says more of its defaults",
    ("OneHot", 11): "counts negative indices from the end, which were out of range",
    ("Resize", 11): "changed its coordinates",
    ("Scan", 9): "took the batch away",
    ("Scatter", 11): "has it no more",
    ("Upsample", 9): "made its scales an input",
    ("Upsample", 10): "has it no more",
}


def _kept(text: str) -> dict[str, frozenset[int]]:
    entries = (entry.split() for entry in text.split(";"))
    return {op: frozenset(map(int, versions)) for op, *versions in entries}


#: Operator -> versions that only took more types in, or added what may be left out and then changes nothing.
KEPT: Mapping[str, frozenset[int]] = {
    **_kept(
        "Abs 13; Acos 22; Acosh 22; Add 13 14; ArgMax 11 12 13; ArgMin 11 12 13; Asin 22; Asinh 22; Atan 22; Atanh "
        "22; AveragePool 10 11; BatchNormalization 15; Bernoulli 22; Cast 9 13 19 21 23; CastLike 19 21 23; Ceil "
        "13; Clip 12 13; Compress 11; Concat 11 13; Constant 9 11 12 13 19 21 23; ConstantOfShape 20 21 23; Conv "
        "11 22; ConvTranspose 22; Cos 22; Cosh 22; CumSum 14; DeformConv 22; DepthToSpace 11 13; DequantizeLinear "
        "13 19 21 23; Det 22; Div 13 14; Dropout 13 22; Elu 22; Equal 11 13 19; Exp 13; Expand 13; EyeLike 22; "
        "Flatten 9 11 13 21 23; Floor 13; GRU 14 22; Gather 11 13; GatherElements 13; GatherND 12 13; Gemm 9 11 "
        "13; GlobalAveragePool 22; GlobalLpPool 22; GlobalMaxPool 22; Greater 9 13; GreaterOrEqual 16; GridSample "
        "22; HardSigmoid 22; HardSwish 22; Hardmax 11; Identity 13 14 16 19 21 23; If 11 13 16 19 21 23; "
        "InstanceNormalization 22; IsInf 20; IsNaN 13 20; LRN 13; LSTM 14 22; LeakyRelu 16; Less 9 13; LessOrEqual "
        "16; Log 13; LogSoftmax 11; Loop 11 13 16 19 21 23; LpNormalization 22; MatMul 9 13; Max 8 12 13; MaxPool "
        "8 10 11 12; MaxRoiPool 22; MaxUnpool 11 22; Mean 8 13; MeanVarianceNormalization 13; Min 8 12 13; Mish "
        "22; Mod 13; Mul 13 14; Multinomial 22; Neg 13; NonZero 13; OptionalGetElement 18; OptionalHasElement 18; "
        "PRelu 9 16; Pad 13 18 19 21 23; Pow 12 13 15; QLinearMatMul 21; QuantizeLinear 13 19 21 23; RNN 14 22; "
        "RandomNormal 22; RandomNormalLike 22; RandomUniform 22; RandomUniformLike 22; Reciprocal 13; ReduceSum "
        "11; Relu 13 14; Reshape 13 14 19 21 23; RoiAlign 22; Round 22; Scan 11 16 19 21 23; ScatterElements 13 16 "
        "18; ScatterND 13 16 18; Selu 22; Shape 13 15 19 21 23; Sigmoid 13; Sign 13; Sin 22; Sinh 22; Size 13 19 "
        "21 23; Slice 11 13; Softmax 11; Softplus 22; Softsign 22; SpaceToDepth 13; Split 11; Sqrt 13; Squeeze 11 "
        "21 23; Sub 13 14; Sum 8 13; Tan 22; Tanh 13; ThresholdedRelu 22; Tile 13; TopK 11; Transpose 13 21 23; "
        "Unsqueeze 11 21 23; Where 16"
    ),
    **{f"Reduce{kind}": frozenset({11, 13}) for kind in _REDUCTIONS},
    **{f"Reduce{kind}": frozenset({11, 12, 13, 20}) for kind in ("Max", "Min")},
}
