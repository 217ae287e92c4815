"""Which constants of a model may be learned, and how each is stored.

A constant is learned where every node that reads it is one of the table below and reads it at a place listed there. It
keeps its name, type and shape; zeros of a sparse weight stay zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import int_attr, operand
from optc.passes.compress.weights.packing import pack, tensor_of, unpack

#: "weight" floats of any shape; "vector" floats along one axis (other constants there may be masks); "codes" integers
#: that stand for floats; "scale" what such integers are multiplied by.
Role = Literal["weight", "vector", "codes", "scale"]

MS = "com.microsoft"
_NORM: Mapping[int, Role] = {1: "vector", 2: "vector"}
_LAYER: Mapping[int, Role] = {1: "weight", 2: "vector"}
_PRODUCT: Mapping[int, Role] = {0: "weight", 1: "weight"}
_BROADCAST: Mapping[int, Role] = {0: "vector", 1: "vector"}
#: (domain, operator) -> place -> role.
LEARNED: Mapping[tuple[str, str], Mapping[int, Role]] = {
    ("", "Conv"): _LAYER,
    ("", "ConvTranspose"): _LAYER,
    ("", "Gemm"): {0: "weight", 1: "weight", 2: "vector"},
    ("", "MatMul"): _PRODUCT,
    ("", "Transpose"): {0: "weight"},
    ("", "Add"): _BROADCAST,
    ("", "Mul"): _BROADCAST,
    ("", "Sum"): {place: "vector" for place in range(8)},
    ("", "PRelu"): {1: "vector"},
    ("", "LayerNormalization"): _NORM,
    ("", "RMSNormalization"): _NORM,
    ("", "SimplifiedLayerNormalization"): _NORM,
    ("", "BatchNormalization"): _NORM,
    ("", "InstanceNormalization"): _NORM,
    ("", "GroupNormalization"): _NORM,
    ("", "QuantizeLinear"): {0: "weight"},
    ("", "DequantizeLinear"): {0: "codes", 1: "scale"},
    ("", "MatMulInteger"): {1: "codes"},
    ("", "QLinearConv"): {3: "codes"},
    (MS, "QuantizeLinear"): {0: "weight"},
    (MS, "DequantizeLinear"): {0: "codes", 1: "scale"},
    (MS, "FusedConv"): _LAYER,
    (MS, "FusedGemm"): {0: "weight", 1: "weight", 2: "vector"},
    (MS, "FusedMatMul"): _PRODUCT,
    (MS, "BiasGelu"): {1: "vector"},
    (MS, "FastGelu"): {1: "vector"},
    (MS, "SkipLayerNormalization"): {2: "vector", 3: "vector", 4: "vector"},
    (MS, "SkipSimplifiedLayerNormalization"): {2: "vector", 3: "vector"},
    (MS, "Attention"): _LAYER,
    (MS, "MultiHeadAttention"): {3: "vector"},
    (MS, "MatMulNBits"): {1: "codes", 2: "scale", 5: "vector"},
    (MS, "DynamicQuantizeMatMul"): {1: "codes", 2: "scale", 4: "vector"},
    (MS, "MatMulIntegerToFloat"): {1: "codes", 3: "scale", 6: "vector"},
}
#: Where the codes of a node stand, and their zero points.
_CODES: Mapping[str, tuple[int, int]] = {
    "DequantizeLinear": (0, 2),
    "MatMulInteger": (1, 3),
    "QLinearConv": (3, 5),
    "MatMulNBits": (1, 3),
    "DynamicQuantizeMatMul": (1, 3),
    "MatMulIntegerToFloat": (1, 5),
}
#: Wider integers (biases of 32 bits) have no rounding worth learning, and do not fit into floats.
_WIDEST_CODES = 8
#: Constants beyond this are masks or guards, no weights.
_LARGEST = 1e4
#: Codes of which as many are zero are sparse on purpose; a few zeros are what rounding gives.
_SPARSE = 0.5


@dataclass(frozen=True)
class Parameter:
    """A constant that may be learned.

    Attributes:
        value: The constant.
        role: What it is.
        readers: The nodes that read it.
    """

    value: onnx_ir.Value
    role: Role
    readers: tuple[onnx_ir.Node, ...]

    @property
    def name(self) -> str:
        """Its name in the graph."""
        return self.value.name or ""


def parameters_of(model: onnx_ir.Model, facts: Facts) -> list[Parameter]:
    """The constants of the main graph that may be learned, in the order of the nodes that read them."""
    found: dict[onnx_ir.Value, Parameter] = {}
    for node in model.graph:
        for place in LEARNED.get((node.domain, node.op_type), ()):
            value = operand(node, place)
            if value is None or value in found or not facts.is_const(value):
                continue
            roles = {_role(use.node, use.idx, facts, model.graph) for use in value.uses()}
            role = roles.pop() if len(roles) == 1 else None
            if role is not None and not value.is_graph_output():
                readers = tuple(dict.fromkeys(use.node for use in value.uses()))
                found[value] = Parameter(value, role, readers)
    return list(found.values())


def _role(node: onnx_ir.Node, place: int, facts: Facts, graph: onnx_ir.Graph) -> Role | None:
    """What a node reads at a place, if that may be learned."""
    role = LEARNED.get((node.domain, node.op_type), {}).get(place)
    value = node.inputs[place]
    tensor = facts.tensor(value)
    if role is None or tensor is None or tensor.size == 0 or node.graph is not graph:
        return None
    if role in ("codes", "scale"):
        codes = facts.tensor(operand(node, _CODES[node.op_type][0]))
        if codes is None or not codes.dtype.is_integer() or codes.dtype.bitwidth > _WIDEST_CODES:
            return None
        return role if role == "codes" or tensor.dtype.is_floating_point() else None
    if not tensor.dtype.is_floating_point():
        return None
    if role == "vector" and sum(size != 1 for size in tensor.shape.numpy()) != 1:
        return None
    largest = float(np.abs(tensor.numpy().astype(np.float32)).max())
    return role if largest <= _LARGEST else None


# how they are stored --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Numbers:
    """A constant as floats that can be learned.

    Attributes:
        start: What is stored now, float32: the numbers themselves, or codes; packed ones lie one by one.
        free: True where a number may change, of the same shape; None for everywhere.
        low: The smallest code; None for what is no code.
        high: The largest code.
    """

    start: np.ndarray
    free: np.ndarray | None = None
    low: int | None = None
    high: int | None = None


def read(parameter: Parameter, facts: Facts) -> Numbers:
    """The numbers of a parameter."""
    tensor = facts.tensor(parameter.value)
    assert tensor is not None
    if parameter.role != "codes":
        start = tensor.numpy().astype(np.float32)
        free = start != 0 if parameter.role == "weight" and start.ndim >= 2 else None
        return Numbers(start, None if free is None or free.all() else free)
    reader = parameter.readers[0]
    start = stored_codes(reader, tensor)
    low, high = _code_range(reader, tensor.dtype)
    zero = _zero_codes(reader, facts)
    sparse = zero is not None and float((start == zero).mean()) >= _SPARSE
    return Numbers(start, start != zero if sparse else None, low, high)


def stored_codes(node: onnx_ir.Node, tensor: onnx_ir.TensorProtocol) -> np.ndarray:
    """The codes that a node reads, float32; those of MatMulNBits as (N, blocks, block size)."""
    array = tensor.numpy()
    if node.op_type == "MatMulNBits":
        bits, block = int_attr(node, "bits", 4), int_attr(node, "block_size", 0)
        rows = int_attr(node, "N", 0)
        packed = array.reshape(rows, -1, block * bits // 8)
        array = unpack(packed, bits, block)
    return array.astype(np.float32)


def _code_range(node: onnx_ir.Node, dtype: onnx_ir.DataType) -> tuple[int, int]:
    bits = int_attr(node, "bits", 4) if node.op_type == "MatMulNBits" else dtype.bitwidth
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dtype.is_signed() else (0, (1 << bits) - 1)


def _zero_codes(node: onnx_ir.Node, facts: Facts) -> float | None:
    """The code that means zero, where there is one for the whole tensor."""
    zeros = operand(node, _CODES[node.op_type][1])
    if zeros is None:
        return float(1 << (int_attr(node, "bits", 4) - 1)) if node.op_type == "MatMulNBits" else 0.0
    array = facts.const(zeros) if node.op_type != "MatMulNBits" else None
    if array is None:
        return None
    flat = array.astype(np.float32).reshape(-1)
    return float(flat[0]) if (flat == flat[0]).all() else None


def written(parameter: Parameter, numbers: np.ndarray, facts: Facts) -> onnx_ir.TensorProtocol:
    """A tensor that holds learned numbers, of the type and shape that are stored now.

    Args:
        parameter: Where they belong.
        numbers: As :func:`read` gave them, of the same shape.
        facts: Of the model.
    """
    old = facts.tensor(parameter.value)
    assert old is not None
    shape = tuple(old.shape.numpy())
    if parameter.role != "codes":
        return onnx_ir.Tensor(np.ascontiguousarray(numbers.reshape(shape).astype(old.dtype.numpy())), dtype=old.dtype)
    reader = parameter.readers[0]
    codes = np.rint(numbers).astype(np.int16)
    if reader.op_type == "MatMulNBits":
        packed = pack(codes.astype(np.uint8), int_attr(reader, "bits", 4))
        return onnx_ir.Tensor(np.ascontiguousarray(packed.reshape(shape)), dtype=old.dtype)
    return tensor_of(np.ascontiguousarray(codes.reshape(shape).astype(np.uint8)), old.dtype)
