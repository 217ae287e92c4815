"""From a model to the file that TensorRT's parser takes: plain operators, signed grids, one type per operation.

What is done here is exact. What TensorRT has and ONNX Runtime calls otherwise, or writes otherwise, is written as
TensorRT reads it; nothing is fused, as emission has done that, and the builder does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir

from optc.backends.tensorrt.operators import table
from optc.ir.facts import Facts
from optc.ir.functions import drop_unused_functions, inline, runnable
from optc.ir.metadata import CALIBRATION_KEY
from optc.ir.ops import int_attr, is_op, operand
from optc.ir.opset import adapt, obstacle, raise_opset
from optc.ir.rewriter import Rewriter, users

DType = onnx_ir.DataType
_RULE = "tensorrt"
#: The middle of uint8, which stands for 0 on a symmetric grid.
_MIDDLE = 128
#: ONNX Runtime takes LayerNormalization in any opset; ONNX has it from this one on.
_NORMALIZATION_SINCE = 17


def prepare(model: onnx_ir.Model) -> onnx_ir.Model:
    """The model as TensorRT is to read it; the one given is not changed.

    Fused ops and functions are their parts; codes of symmetric grids are signed; biases that were dequantized from
    integers are floats; constants have the type of what they are combined with; the opset is one that has all
    operators, and no newer than that.
    """
    copy = runnable(model)
    copy = copy.clone() if copy is model else copy
    rw = Rewriter(copy)
    _inline_functions(rw)
    for graph in copy.graphs():
        for node in list(graph):
            if node.graph is not None and node.domain in ("", "ai.onnx"):
                _rewrite(rw, node)
    if any(is_op(node, "LayerNormalization") for node in copy.graph.all_nodes()):
        _raise(rw, _NORMALIZATION_SINCE)
    for graph in copy.graphs():
        for node in graph:
            node.metadata_props.pop(CALIBRATION_KEY, None)
    _lower_ir_version(copy)
    return copy


def _inline_functions(rw: Rewriter) -> None:
    """Put the bodies of functions in place of their calls, as long as their opsets mean the same here."""
    imports = rw.model.graph.opset_imports
    pending = list(rw.model.graph.all_nodes())
    while pending:
        function = rw.model.functions.get(pending[-1].op_identifier())
        call = pending.pop()
        if function is None or call.graph is None:
            continue
        own = {domain: version for domain, version in function.opset_imports.items() if domain in imports}
        old = own.pop("", imports.get("", 0))
        if old > imports.get("", 0) or any(imports[domain] != version for domain, version in own.items()):
            continue  # the check names the call
        inserted = inline(rw, call)
        pending += inserted
        for node in inserted if old != imports.get("", 0) else ():
            if node.domain == "" and (node.op_type, node.domain, node.overload) not in rw.model.functions:
                adapt(rw, node, old, imports[""])
    drop_unused_functions(rw.model)


def _rewrite(rw: Rewriter, node: onnx_ir.Node) -> None:
    if node.op_type == "DequantizeLinear":
        if rw.facts.dtype(node.inputs[0]) == DType.INT32:
            _float_constant(rw, node)
        elif _around_middle(rw.facts, node) and rw.facts.is_const(node.inputs[0]):
            _signed_constant(rw, node)
    elif node.op_type == "QuantizeLinear" and _around_middle(rw.facts, node):
        _signed(rw, node)
    elif node.op_type == "Pow":
        _same_type(rw, node, 1)


# -- grids ------------------------------------------------------------------------------------------------------------


def _around_middle(facts: Facts, node: onnx_ir.Node) -> bool:
    """Whether the codes of a Quantize- or DequantizeLinear are uint8 with 128 for 0."""
    zero = facts.const(operand(node, 2))
    return zero is not None and zero.dtype == np.uint8 and bool((zero == _MIDDLE).all())


def _signed(rw: Rewriter, node: onnx_ir.Node) -> None:
    """int8 around 0 for uint8 around 128: both clip and round alike, so the floats behind are the same."""
    codes = node.outputs[0]
    readers = users(codes)
    if codes.is_graph_output() or not all(
        is_op(reader, "DequantizeLinear") and _around_middle(rw.facts, reader) for reader in readers
    ):
        return
    with rw.at(node, _RULE):
        signed = _around_zero(rw, node, node.inputs[0])
    for reader in readers:
        _dequantize(rw, reader, signed)


def _signed_constant(rw: Rewriter, node: onnx_ir.Node) -> None:
    codes, old = rw.facts.const(node.inputs[0]), node.inputs[0]
    assert codes is not None and old is not None
    signed = (codes.astype(np.int16) - _MIDDLE).astype(np.int8)
    with rw.at(node, _RULE):
        _dequantize(rw, node, rw.constant(signed, f"{old.name}_signed"))
    rw.erase_initializer(old)


def _dequantize(rw: Rewriter, node: onnx_ir.Node, codes: onnx_ir.Value) -> None:
    """Let floats come from other codes."""
    with rw.at(node, _RULE):
        floats = _around_zero(rw, node, codes)
        rw.facts.assume(floats, like=node.outputs[0])
        rw.keep_name(node.outputs[0], rw.replace(node.outputs[0], floats))
    rw.erase(node)


def _around_zero(rw: Rewriter, node: onnx_ir.Node, x: onnx_ir.Value | None) -> onnx_ir.Value:
    """The node again, with 0 for its zero point."""
    zero = rw.facts.const(node.inputs[2])
    assert zero is not None
    attributes = {name: attr.value for name, attr in node.attributes.items() if name != "output_dtype"}
    made: onnx_ir.Value = rw.op(
        node.op_type, x, node.inputs[1], rw.constant(np.zeros(zero.shape, np.int8), "zero"), **attributes
    )
    made.producer().metadata_props.update(node.metadata_props)  # type: ignore[union-attr]
    return made


def _float_constant(rw: Rewriter, node: onnx_ir.Node) -> None:
    """A constant that was dequantized from 32 bits (a bias) is the floats that it stands for."""
    codes, scale, zero = (rw.facts.const(operand(node, index)) for index in range(3))
    if codes is None or scale is None or (zero is not None and zero.any()) or int_attr(node, "block_size", 0):
        return
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[int_attr(node, "axis", 1)] = -1
    floats = (codes.astype(np.float32) * scale.astype(np.float32).reshape(shape)).astype(scale.dtype)
    with rw.at(node, _RULE):
        rw.replace(node.outputs[0], rw.constant(floats, node.inputs[0].name or "bias"))  # type: ignore[union-attr]
    rw.erase(node)


# -- types ------------------------------------------------------------------------------------------------------------


def _same_type(rw: Rewriter, node: onnx_ir.Node, index: int) -> None:
    """Give a constant operand the type of the first, where that can hold it exactly."""
    dtype, constant = rw.facts.dtype(node.inputs[0]), rw.facts.const(operand(node, index))
    if dtype is None or constant is None or rw.facts.dtype(node.inputs[index]) == dtype:
        return
    cast = constant.astype(dtype.numpy())
    if not np.array_equal(cast.astype(np.float64), constant.astype(np.float64)):
        return
    inputs = list(node.inputs)
    with rw.at(node, _RULE):
        inputs[index] = rw.constant(cast, inputs[index].name or "constant")  # type: ignore[union-attr]
        result = rw.op(node.op_type, *inputs, **{name: attr.value for name, attr in node.attributes.items()})
        rw.facts.assume(result, like=node.outputs[0])
        rw.keep_name(node.outputs[0], rw.replace(node.outputs[0], result))
    rw.erase(node)


# -- versions ---------------------------------------------------------------------------------------------------------


def _raise(rw: Rewriter, version: int) -> None:
    """Raise the opset if it is older and nothing is in the way; what cannot be is the check's to tell."""
    if rw.opset() < version <= table().opset[1] and obstacle(rw.model, rw.facts, version) is None:
        raise_opset(rw, version)


def _lower_ir_version(model: onnx_ir.Model) -> None:
    """The oldest form of file that has the model's opsets: parsers know those that were there when they were made."""
    standard = [
        onnx.helper.make_opsetid(domain, version)
        for domain, version in model.graph.opset_imports.items()
        if domain in ("", "ai.onnx.ml")
    ]
    wanted = onnx.helper.find_min_ir_version_for(standard, ignore_unknown=True)
    if wanted:
        model.ir_version = wanted


def quantizers(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    """The nodes that put tensors on grids, and those that read weights from grids."""
    for node in model.graph.all_nodes():
        if is_op(node, "QuantizeLinear") or (is_op(node, "DequantizeLinear") and node.inputs[0].is_initializer()):  # type: ignore[union-attr]
            yield node


__all__ = ["prepare", "quantizers"]
