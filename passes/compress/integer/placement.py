"""Where a target wants its Q/DQ pairs, as data: one table of rules per kind of target.

No file serves two kinds. ONNX Runtime's CPU kernels want every convolution's *result* on a grid, and that grid's end at
the Relu; TensorRT wants only *inputs* on grids, zero points of 0, and nothing between a convolution and the sum behind
it. Sources: onnxruntime's qdq_selectors.cc, checked by running it (tests/passes/compress/integer); NVIDIA's "Working
with Quantized Types" and NvInfer.h, which were read and cannot be run here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir

from optc.ir.ops import int_attr
from optc.ir.targets import Target

DType = onnx_ir.DataType


class Result(enum.Enum):
    """What an integer kernel writes."""

    GRID = "grid"  # integers only: without a Q behind it the operator stays in floats
    FLOAT = "float"  # floats; a Q behind it is taken in by whoever reads it
    EITHER = "either"  # whichever is wanted


class Role(enum.Enum):
    """What an operator is to the placement."""

    LAYER = "layer"  # multiplies by constant weights: integers are worth a Q in front of it
    COMPUTES = "computes"  # has an integer kernel, worth it only where its inputs are integers already
    MOVES = "moves"  # moves elements or picks some: input and output are on one grid


@dataclass(frozen=True)
class Rule:
    """How one operator is run on integers.

    Attributes:
        role: What it is.
        result: What its kernel writes.
        operands: Inputs that must be on a grid; None for all.
        axis: For layers: the axis of the weights along which scales may differ; None where there may be one only.
        bias: For layers: which input is the bias; None for none.
    """

    role: Role
    result: Result
    operands: tuple[int, ...] | None = (0,)
    axis: Callable[[onnx_ir.Node], int | None] = lambda node: None
    bias: int | None = None


class Sums(enum.Enum):
    """What to do with the sum of a layer's result and something else (a residual block)."""

    OWN = "own"  # the sum is a kernel of its own, with both operands on grids
    JOINED = "joined"  # the layer's kernel adds: its own result stays float, the other operand is on a grid


@dataclass(frozen=True)
class Placement:
    """The rules of one kind of target.

    Attributes:
        name: What reports call it.
        activations: The integers' type.
        symmetric: Whether zero points must be in the middle.
        weight_limit: The largest integer of a weight.
        integer_bias: Whether biases are int32 with the scale of the products, or floats.
        rules: How each operator (of the default domain) is run on integers; others are not.
        folds: Activations that a layer's kernel takes in: where ``symmetric``, on any grid; otherwise if the grid ends
            where they clip.
        sums: How residual sums are placed.
        joins: Layers whose kernels add the other operand of a residual sum.
        unfit: Why a layer with weights of a shape has no integer kernel worth it; None if it may have.
        one_grid: Operators whose inputs and outputs are all on one grid, beside those that move.
        runs_here: Whether ONNX Runtime's CPU provider can prove the fusion.
        why_not: Why there is no static INT8 for such a target; None if there is.
    """

    name: str
    activations: DType = DType.UINT8
    symmetric: bool = False
    weight_limit: int = 127
    integer_bias: bool = True
    rules: Mapping[str, Rule] = None  # type: ignore[assignment]
    folds: frozenset[str] = frozenset({"Relu", "Clip"})
    sums: Sums = Sums.OWN
    joins: frozenset[str] = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
    unfit: Callable[[onnx_ir.Node, tuple[int, ...]], str | None] = lambda node, weight: None
    one_grid: frozenset[str] = frozenset()
    runs_here: bool = False
    why_not: str | None = None


def _first(node: onnx_ir.Node) -> int | None:
    return 0


def _last(node: onnx_ir.Node) -> int | None:
    return 1


def _columns(node: onnx_ir.Node) -> int | None:
    return 0 if int_attr(node, "transB", 0) else 1


def _outputs_of_transposed(node: onnx_ir.Node) -> int | None:
    """(C, M / group, ...): with groups, an index of the axis stands for several channels."""
    return 1 if int_attr(node, "group", 1) == 1 else None


def _computes(*ops: str, operands: tuple[int, ...] | None = (0,), result: Result = Result.GRID) -> dict[str, Rule]:
    return {op: Rule(Role.COMPUTES, result, operands) for op in ops}


def _moves(*ops: str) -> dict[str, Rule]:
    return {op: Rule(Role.MOVES, Result.GRID) for op in ops}


_MOVING = _moves("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather")

#: Measured with onnxruntime 1.31: MatMul and Gemm have kernels that write floats, Conv has not.
_ORT_CPU = {
    "Conv": Rule(Role.LAYER, Result.GRID, axis=_first, bias=2),
    "MatMul": Rule(Role.LAYER, Result.EITHER, axis=_last),
    "Gemm": Rule(Role.LAYER, Result.EITHER, axis=_columns, bias=2),
    **_computes("Add", "Mul", operands=(0, 1)),
    **_computes("Concat", operands=None),
    **_computes("GlobalAveragePool", "AveragePool", "LeakyRelu", "Sigmoid"),
    **_MOVING,
}

#: Inputs only; results become integers where the reader's Q comes right behind the layer or its activation.
_TENSORRT = {
    "Conv": Rule(Role.LAYER, Result.FLOAT, axis=_first, bias=2),
    "ConvTranspose": Rule(Role.LAYER, Result.FLOAT, axis=_outputs_of_transposed, bias=2),
    "MatMul": Rule(Role.LAYER, Result.FLOAT, axis=_last),
    "Gemm": Rule(Role.LAYER, Result.FLOAT, axis=_columns, bias=2),
    **_computes("Add", operands=(0, 1), result=Result.FLOAT),
    **_computes("GlobalAveragePool", "AveragePool", result=Result.FLOAT),
    **_moves("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Flatten"),
    "Concat": Rule(Role.MOVES, Result.GRID, None),
}

#: Rows, columns and channels that fill a tile of TensorRT's integer kernels.
_TILE, _HALF_TILE = 16, 8


def _tensorrt_unfit(node: onnx_ir.Node, weight: tuple[int, ...]) -> str | None:
    """Layers that NVIDIA's own quantizer (ModelOpt, onnx/quantization/graph_utils.py) leaves in floats."""
    if node.op_type in ("MatMul", "Gemm"):
        return f"TensorRT gains nothing below {_TILE} rows and columns" if min(weight) < _TILE else None
    if node.op_type != "Conv":
        return None
    outputs, inputs, *kernel = weight
    if outputs >= _TILE and inputs >= _TILE:
        return None
    if int_attr(node, "group", 1) > 1:
        return None if outputs % _HALF_TILE == 0 and min(kernel) >= 3 else "TensorRT gains nothing with so few channels"
    first = node.inputs[0] is not None and node.inputs[0].is_graph_input()
    fits = outputs % _HALF_TILE == 0 or inputs % _HALF_TILE == 0
    if fits and len(set(kernel)) == 1 and (first or max(outputs, inputs) >= _TILE):
        return None
    return "TensorRT gains nothing with so few channels"


#: Inputs only: its low precision transformations carry grids through what moves, joins or pools elements, and results
#: become integers where the next Q comes. Of a residual sum one operand is on a grid: that is as fast as both and more
#: precise (ResNet-50, openvino 2026.4, 1 thread: 3.7 times the speed in fp32 either way).
_OPENVINO = {
    "Conv": Rule(Role.LAYER, Result.FLOAT, axis=_first, bias=2),
    "ConvTranspose": Rule(Role.LAYER, Result.FLOAT, axis=_outputs_of_transposed, bias=2),
    "MatMul": Rule(Role.LAYER, Result.FLOAT, axis=_last),
    "Gemm": Rule(Role.LAYER, Result.FLOAT, axis=_columns, bias=2),
    **_computes("Add", operands=(0, 1), result=Result.FLOAT),
    **_computes("GlobalAveragePool", "AveragePool", result=Result.FLOAT),
    **_moves("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Flatten"),
}

#: Products with float results, whose epilogues take in what is pointwise; sums and pools stay in floats.
_TRITON = {
    "Conv": Rule(Role.LAYER, Result.FLOAT, axis=_first, bias=2),
    "MatMul": Rule(Role.LAYER, Result.FLOAT, axis=_last),
    "Gemm": Rule(Role.LAYER, Result.FLOAT, axis=_columns, bias=2),
    **_moves("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Flatten"),
}

X86_VNNI = Placement("onnxruntime on x86 with VNNI", rules=_ORT_CPU, runs_here=True)
X86 = Placement("onnxruntime on x86 without VNNI", weight_limit=63, rules=_ORT_CPU, runs_here=True)
ARM = Placement("onnxruntime on Arm", activations=DType.INT8, rules=_ORT_CPU, runs_here=True)
ORT_CUDA = Placement(
    "onnxruntime's CUDA provider",
    rules={},
    why_not="onnxruntime's CUDA provider has no integer kernels for Q/DQ; TensorRT has, or weights alone can be INT8",
)
TENSORRT = Placement(
    "TensorRT",
    activations=DType.INT8,
    symmetric=True,
    integer_bias=False,
    rules=_TENSORRT,
    sums=Sums.JOINED,
    joins=frozenset({"Conv", "ConvTranspose"}),  # behind a product comes a norm, whose input is better left in floats
    unfit=_tensorrt_unfit,
    one_grid=frozenset({"Concat"}),
)
TRITON = Placement(
    "Triton kernels",
    activations=DType.INT8,
    symmetric=True,
    integer_bias=False,
    rules=_TRITON,
)


OPENVINO = Placement("OpenVINO", integer_bias=False, rules=_OPENVINO, sums=Sums.JOINED)


@dataclass(frozen=True)
class _Row:
    """The placement of targets that run by this backend and provider and have these capabilities."""

    placement: Placement
    backend: str | None = None
    provider: str | None = None
    capabilities: frozenset[str] = frozenset()


#: The first row that fits.
_ROWS = (
    _Row(TENSORRT, backend="tensorrt"),
    _Row(TRITON, backend="triton", capabilities=frozenset({"int8-tensor-core"})),
    _Row(TENSORRT, provider="TensorrtExecutionProvider"),
    _Row(OPENVINO, provider="OpenVINO"),
    _Row(ORT_CUDA, provider="CUDAExecutionProvider"),
    _Row(ARM, provider="CPUExecutionProvider", capabilities=frozenset({"arm"})),
    _Row(X86_VNNI, provider="CPUExecutionProvider", capabilities=frozenset({"vnni"})),
    _Row(X86, provider="CPUExecutionProvider"),
)


def placement_for(target: Target, backend: str | None = None) -> Placement | str:
    """The placement for a target; or why there is none.

    Args:
        target: What the result will run on.
        backend: The backend that will compile it; the target's own by default.
    """
    backend = backend or target.backend
    for row in _ROWS:
        fits = (row.backend in (None, backend), row.provider in (None, target.provider))
        if all(fits) and row.capabilities <= target.capabilities:
            return row.placement if row.placement.why_not is None else row.placement.why_not
    return f"no placement of Q/DQ is known for {target.name}"


__all__ = [
    "ARM",
    "OPENVINO",
    "ORT_CUDA",
    "TENSORRT",
    "TRITON",
    "X86",
    "X86_VNNI",
    "Placement",
    "Result",
    "Role",
    "Rule",
    "Sums",
    "placement_for",
]
