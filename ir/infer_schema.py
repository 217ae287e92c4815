"""Inference by the ``onnx`` package's own per-operator functions, for operators without an entry of their own.

They know nothing of symbolic arithmetic, and some take a dim without a value for 0. So they are asked twice: with
symbols as opaque names, and with the symbols replaced by distinct large primes. What both answers agree on is believed.
They are given the data of constant inputs, never symbolic contents.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir
from onnx import shape_inference

from optc.ir.dims import Dim
from optc.ir.infer_base import Context, DType, Fact, Result, Shape

MAX_DATA = 1024
"""Constant inputs of at most this many elements are handed over."""


def find_schema(node: onnx_ir.Node, version: int | None) -> onnx.defs.OpSchema | None:
    """The schema of the operator at this opset version, if ``onnx`` knows it."""
    if version is None:
        return None
    try:
        return onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return None


def infer_by_schema(ctx: Context, schema: onnx.defs.OpSchema) -> Result:
    """Asks ``onnx``; whatever it can not tell is unknown."""
    node = ctx.node
    if node.op_type in _WRONG or any(attr.type in _GRAPHS or attr.is_ref() for attr in node.attributes.values()):
        return None
    proto = onnx_ir.to_proto(node)
    names: dict[Dim, str] = {}
    shapes: dict[str, Shape | None] = {}
    dtypes: dict[str, int] = {}
    data: dict[str, onnx.TensorProto] = {}
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        name = proto.input[index] = f"in{index}"
        dtype, shapes[name], *_ = ctx.fact(index)
        if dtype is None:
            return None
        dtypes[name] = int(dtype)
        for dim in shapes[name] or ():
            if not isinstance(dim, int):
                names.setdefault(dim, f"dim{len(names)}")
        tensor = ctx.knowledge.tensor(value)
        if tensor is not None and tensor.size <= MAX_DATA:
            data[name] = onnx_ir.to_proto(tensor)

    def ask(spelling: Mapping[Dim, int | str]) -> list[onnx.TypeProto | None]:
        types = {}
        for name, shape in shapes.items():
            dims = None if shape is None else [dim if isinstance(dim, int) else spelling[dim] for dim in shape]
            types[name] = onnx.helper.make_tensor_type_proto(dtypes[name], dims)
        try:
            inferred = shape_inference.infer_node_outputs(schema, proto, types, data)
        except Exception:  # the C++ functions raise all sorts of things for nodes that they do not understand
            inferred = {}
        return [inferred.get(name) for name in proto.output]

    by_name = ask(names)
    if not names:
        return [_fact(ctx, answer, answer, {}) for answer in by_name]
    primes = dict(zip(names, _PRIMES, strict=False))
    if len(primes) < len(names):
        return None
    meanings = {(names[dim], prime): dim for dim, prime in primes.items()}
    return [_fact(ctx, *answers, meanings) for answers in zip(by_name, ask(primes), strict=True)]


_GRAPHS = frozenset({onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS})
_WRONG = frozenset({"STFT"})
"""Operators whose function contradicts the specification (STFT: takes one-sided results for two-sided)."""

_PRIMES = (10007, 10009, 10037, 10039, 10061, 10067, 10069, 10079, 10091, 10093, 10099, 10103)


def _fact(
    ctx: Context,
    proto: onnx.TypeProto | None,
    witness: onnx.TypeProto | None,
    meanings: Mapping[tuple[str, int], Dim],
) -> Fact:
    """What two answers agree on; ``meanings`` takes the two spellings of a dim to the dim."""
    if proto is None or not proto.HasField("tensor_type"):
        return Fact()
    tensor = proto.tensor_type
    dtype = DType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Fact(dtype)
    dims = list(tensor.shape.dim)
    others = list(witness.tensor_type.shape.dim) if witness is not None else []
    if len(dims) != len(others):
        return Fact(dtype, ctx.fresh_shape(len(dims)) if witness is None else None)
    shape: list[Dim] = []
    for dim, other in zip(dims, others, strict=True):
        if dim.HasField("dim_value") and other.HasField("dim_value") and dim.dim_value == other.dim_value >= 0:
            shape.append(dim.dim_value)
        else:
            meaning = meanings.get((dim.dim_param, other.dim_value))
            shape.append(ctx.fresh() if meaning is None else meaning)
    return Fact(dtype, tuple(shape))
