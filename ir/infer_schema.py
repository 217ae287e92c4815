"""Inference by the ``onnx`` package's own per-operator functions, for operators without an entry of their own.

They know nothing of symbolic arithmetic: symbols go in as opaque names, and a dim comes back as an integer, one of the
names, or unknown. They are given constant inputs' data, never symbolic contents.
"""

from __future__ import annotations

import onnx
import onnx_ir
from onnx import shape_inference

from optc.ir.dims import Dim
from optc.ir.infer_base import Context, DType, Fact, Result

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
    if any(attr.type in _GRAPHS or attr.is_ref() for attr in node.attributes.values()):
        return None
    proto = onnx_ir.to_proto(node)
    names: dict[str, Dim] = {}
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        name = proto.input[index] = f"in{index}"
        dtype, shape, *_ = ctx.fact(index)
        if dtype is None:
            return None
        dims = None if shape is None else [_spell(dim, names) for dim in shape]
        types[name] = onnx.helper.make_tensor_type_proto(int(dtype), dims)
        tensor = ctx.knowledge.tensor(value)
        if tensor is not None and tensor.size <= MAX_DATA:
            data[name] = onnx_ir.to_proto(tensor)
    try:
        inferred = shape_inference.infer_node_outputs(schema, proto, types, data)
    except Exception:  # the C++ functions raise all sorts of things for nodes that they do not understand
        return None
    return [_fact(ctx, inferred.get(name), names) for name in proto.output]


_GRAPHS = frozenset({onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS})


def _spell(dim: Dim, names: dict[str, Dim]) -> int | str:
    if isinstance(dim, int):
        return dim
    for name, known in names.items():
        if known == dim:
            return name
    name = f"dim{len(names)}"
    names[name] = dim
    return name


def _fact(ctx: Context, proto: onnx.TypeProto | None, names: dict[str, Dim]) -> Fact:
    if proto is None or not proto.HasField("tensor_type"):
        return Fact()
    tensor = proto.tensor_type
    dtype = DType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Fact(dtype)
    shape: list[Dim] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            shape.append(dim.dim_value)
        else:
            shape.append(names[dim.dim_param] if dim.dim_param in names else ctx.fresh())
    return Fact(dtype, tuple(shape))
