"""Operators on codes, which are held as floats so that gradients pass: rounding is straight-through."""

from __future__ import annotations

import onnx_ir
import torch
from torch import Tensor

from optc.recovery.engine.layers import conv
from optc.recovery.engine.table import MS, OPERATORS, Call, broadcast_along, operator, rounded


def _along(x: Tensor, scale: Tensor, call: Call) -> Tensor:
    """A scale or zero point in the shape of what it belongs to."""
    block = call.integer("block_size", 0)
    if block and scale.dim() == x.dim():
        axis = call.integer("axis", 1)
        return scale.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return broadcast_along(scale, call.integer("axis", 1), x.dim())


def _range(call: Call, index: int) -> tuple[int, int]:
    """The codes of the type of the zero point at an input, or of what the node says."""
    value = call.node.inputs[index] if index < len(call.node.inputs) else None
    dtype = None if value is None else value.dtype
    dtype = dtype or onnx_ir.DataType(call.integer("output_dtype", 0) or int(onnx_ir.DataType.UINT8))
    if not dtype.is_integer():
        raise call.refuse(f"to {dtype.name.lower()} is not known")
    bits = dtype.bitwidth
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dtype.is_signed() else (0, (1 << bits) - 1)


@operator("QuantizeLinear")
def quantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    codes = rounded(x / _along(x, scale, call))
    return torch.clamp(codes if zero is None else codes + _along(x, zero.float(), call), *_range(call, 2))


@operator("DequantizeLinear")
def dequantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    centred = x.float() if zero is None else x.float() - _along(x, zero.float(), call)
    return centred * _along(x, scale, call)


OPERATORS[MS, "QuantizeLinear"] = quantize_linear
OPERATORS[MS, "DequantizeLinear"] = dequantize_linear


def _dynamic(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of 8 bits, scale and zero point of a tensor whose range is found in it (ONNX DynamicQuantizeLinear)."""
    high, low = torch.clamp(x.detach().max(), min=0), torch.clamp(x.detach().min(), max=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    return torch.clamp(rounded(x / scale) + zero, 0, 255), scale, zero


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _dynamic(x)


def _centred(codes: Tensor, zero: Tensor | None) -> Tensor:
    return codes.float() if zero is None else codes.float() - zero.float()


@operator("MatMulInteger")
def matmul_integer(
    call: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    a_zero = a_zero[:, None] if a_zero is not None and a_zero.numel() > 1 else a_zero
    return torch.matmul(_centred(a, a_zero), _centred(b, b_zero))


@operator("DynamicQuantizeMatMul", domain=MS)
def dynamic_quantize_matmul(
    call: Call, x: Tensor, b: Tensor, scale: Tensor, zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    codes, x_scale, x_zero = _dynamic(x)
    y = torch.matmul((codes - x_zero) * x_scale, _centred(b, zero) * scale)
    return y if bias is None else y + bias


@operator("MatMulIntegerToFloat", domain=MS)
def matmul_integer_to_float(
    call: Call,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    y = torch.matmul(_centred(a, a_zero) * a_scale, _centred(b, b_zero) * b_scale)
    return y if bias is None else y + bias


@operator("QLinearConv")
def qlinear_conv(
    call: Call,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    rank = weight.dim()
    scale = broadcast_along(w_scale, 0, rank)
    centred = weight.float() - broadcast_along(w_zero.float(), 0, rank)
    added = None if bias is None else bias.float() * (x_scale * w_scale)
    y = conv(call, (x.float() - x_zero.float()) * x_scale, centred * scale, added)
    assert isinstance(y, Tensor)
    return torch.clamp(rounded(y / y_scale) + y_zero.float(), *_range(call, 7))


@operator("MatMulNBits", domain=MS)
def matmul_nbits(
    call: Call,
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    groups: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """``codes`` are (N, blocks, block size), one by one."""
    if groups is not None:
        raise call.refuse("with an order of columns is not known")
    rows, blocks, _ = codes.shape
    bits = call.integer("bits", 4)
    middle: Tensor | float = float(1 << (bits - 1))
    if zeros is not None:
        value = call.node.inputs[3]
        dtype = None if value is None else value.dtype
        middle = _nbits_zeros(zeros, rows, blocks, bits, dtype is not None and dtype.is_floating_point())
    weight = (codes - middle) * scales.reshape(rows, blocks, 1)
    y = torch.matmul(x, weight.reshape(rows, -1)[:, : call.integer("K", 0)].T)
    return y if bias is None else y + bias


def _nbits_zeros(zeros: Tensor, rows: int, blocks: int, bits: int, is_float: bool) -> Tensor:
    """Zero points as (N, blocks, 1); packed along the blocks where they are codes."""
    if is_float:
        return zeros.reshape(rows, blocks, 1)
    per_byte = 8 // bits
    packed = zeros.reshape(rows, -1).long()
    parts = [(packed >> (place * bits)) & ((1 << bits) - 1) for place in range(per_byte)]
    return torch.stack(parts, -1).reshape(rows, -1)[:, :blocks, None].float()
