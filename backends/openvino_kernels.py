"""Which operators OpenVINO reads: asked of the installed version, not of a list that goes stale.

Its reader of ONNX files tells a node for which it has no rule from one of which it only makes no sense. So a model of a
single node says whether there is a rule; types are those that the CPU plugin computes in.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import onnx
import onnx_ir
from onnx import TensorProto, helper

from optc.backends.openvino_library import core

#: Types that values may have. Not double, which the CPU plugin would compute in single precision.
TYPES = frozenset(
    onnx_ir.DataType[name]
    for name in (
        *("FLOAT", "FLOAT16", "BFLOAT16", "BOOL", "INT4", "UINT4"),
        *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)),
    )
)
_NO_RULE = "No conversion rule found"


def supports(
    domain: str,
    op: str,
    opset_version: int,
    dtypes: Mapping[str, onnx_ir.DataType] | onnx_ir.DataType | None = None,
    provider: str = "",
) -> bool:
    """Whether a graph for OpenVINO may be written with an operator.

    Operators of ONNX Runtime's own domain may not: OpenVINO reads most of them, but takes them to the parts that it
    finds and fuses in plain graphs as well, and files with them open nowhere else.

    Args:
        domain: The op's domain; "" and "ai.onnx" are the same.
        op: The op type.
        opset_version: The opset version that the model imports for ``domain``.
        dtypes: Element type of the first input, or by type variable; None asks for any.
        provider: Not looked at; OpenVINO is the same everywhere.
    """
    if domain not in ("", "ai.onnx") or not reads("", op, opset_version):
        return False
    wanted = dtypes.values() if isinstance(dtypes, Mapping) else [dtypes] if dtypes is not None else []
    return all(dtype in TYPES for dtype in wanted)


def float_precisions() -> tuple[str, ...]:
    """Narrower types in which this CPU computes floats, with instructions of its own."""
    capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(told for told, name in (("bf16", "BF16"), ("f16", "FP16")) if name in capabilities)


@functools.cache
def reads(domain: str, op: str, version: int) -> bool:
    """Whether OpenVINO has a rule for an operator of any domain."""
    inputs = [f"i{index}" for index in range(_input_count(domain, op, version))]
    node = helper.make_node(op, inputs, ["o"], domain=domain)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    output = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    imports = {"": 21, domain: version}
    model = helper.make_model(
        helper.make_graph([node], "probe", infos, [output]),
        opset_imports=[helper.make_opsetid(name, number) for name, number in imports.items()],
        ir_version=10,
    )
    try:
        core().read_model(model.SerializeToString())
    except Exception as error:  # it says no more of what it raises
        return _NO_RULE not in str(error)
    return True


def _input_count(domain: str, op: str, version: int) -> int:
    try:
        return max(1, onnx.defs.get_schema(op, version, domain).min_input)
    except onnx.defs.SchemaError:
        return 1


def problem(model: onnx_ir.Model) -> str | None:
    """Why OpenVINO cannot run a model as it stands; None where nothing is known to be in the way."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if not isinstance(value.type, onnx_ir.TensorType):
            return f"{value.name!r} is no tensor, and OpenVINO exchanges nothing else"
    for value in model.graph.inputs:
        if value.shape is None:
            return f"the rank of input {value.name!r} is not known, which OpenVINO's CPU plugin needs"
    for node in model.graph.all_nodes():
        reason = _node_problem(model, node)
        if reason is not None:
            return f"node {node.name or node.outputs[0].name!r}: {reason}"
    return None


def _node_problem(model: onnx_ir.Model, node: onnx_ir.Node) -> str | None:
    if node.op_identifier() in model.functions:
        return None  # it is its body that is run
    version = model.graph.opset_imports.get(node.domain, 1)
    if not reads("" if node.domain == "ai.onnx" else node.domain, node.op_type, version):
        return f"OpenVINO has no rule for {node.domain or 'ai.onnx'}::{node.op_type} of version {version}"
    for dtype in _types(node):
        if dtype == onnx_ir.DataType.DOUBLE:
            return f"{node.op_type} computes in double, which OpenVINO would compute in single precision"
        if dtype not in TYPES:
            return f"{node.op_type} computes in {dtype.name.lower()}, which OpenVINO does not"
    return None


def _types(node: onnx_ir.Node) -> Iterator[onnx_ir.DataType]:
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype is not None:
            yield value.dtype
