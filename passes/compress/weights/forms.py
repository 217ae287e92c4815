"""How quantized weights are written so that a target computes with them as they are, without a copy in full precision.

Each form is one row of :data:`FORMS`; what a runtime really fuses is a fact about it, with its source beside the row.
A block-wise DequantizeLinear in front of a Conv, a Gemm with ``transB`` or a Gather is fused by none of them (it would
be run every time), so it is not written there; convolutions of 1x1 kernels are written as products of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir

from optc.ir.rewriter import Rewriter
from optc.passes.compress.weights.codes import Codes, Grid, Zeros
from optc.passes.compress.weights.packing import pack, tensor_of

MS = "com.microsoft"
_ANY: frozenset[Zeros] = frozenset({"none", "integer"})
#: Blocks that MatMulNBits and GatherBlockQuantized know: powers of two from 16 on (ContribOperators.md).
_POWERS = (256, 128, 64, 32, 16)


@dataclass(frozen=True)
class Form:
    """One way to write a product with quantized weights, or a look-up in them.

    Attributes:
        name: How reports call it.
        backend: The backend whose runtime fuses it.
        operator: Domain, operator and version that the runtime must have a kernel for.
        grids: The zero points that it has for each width of codes.
        positive: Whether its scales must be above zero.
        block: The width in which it can store blocks of a width, for K columns; None if it cannot. 0 stands for all.
        product: Writes ``x @ W.T`` for x (..., K); returns (..., N). None if it has none.
        lookup: Writes the rows of W at indices; None if it has none.
        opset: The version of the standard operators that it needs.
        rounds_activations: Whether activations are rounded to 8 bits as they come.
    """

    name: str
    backend: str
    operator: tuple[str, str, int]
    grids: Mapping[int, frozenset[Zeros]] = field(hash=False)
    positive: bool
    block: Callable[[int, int], int | None]
    product: Callable[[Rewriter, onnx_ir.Value, Codes, str], onnx_ir.Value] | None = None
    lookup: Callable[[Rewriter, onnx_ir.Value, Codes, str], onnx_ir.Value] | None = None
    opset: int = 1
    rounds_activations: bool = False

    def why_not(self, grid: Grid, columns: int) -> str | None:
        """Why weights on a grid, with K = ``columns``, cannot be written in this form; None if they can."""
        if grid.zeros not in self.grids.get(grid.bits, ()):
            points = "zero points in the middle" if grid.zeros == "none" else f"{grid.zeros} zero points"
            return f"{self.name} has no codes of {grid.bits} bits with {points}"
        if self.positive and not grid.positive and grid.zeros == "none":
            return f"{self.name} needs scales above zero"
        if self.block(grid.width(columns), columns) is None:
            return f"{self.name} has no blocks of {grid.width(columns)} for {columns} columns"
        return None


def usable_forms(backend: str, supports: Callable[[str, str, int], bool]) -> list[Form]:
    """The forms that a backend's runtime fuses and has kernels for.

    Args:
        backend: Name of the backend.
        supports: Says whether the target's runtime has a kernel, by domain, operator and version.
    """
    return [form for form in FORMS if form.backend == backend and supports(*form.operator)]


def stored_in_blocks(codes: Codes, width: int) -> Codes:
    """The same weights in narrower blocks, several of which have one scale.

    Args:
        codes: Blocks whose width is a multiple of ``width``, or a single one, which is filled up.
        width: The new width.
    """
    if width == codes.block:
        return codes
    rows, blocks, old = codes.codes.shape
    missing = -old % width
    shaped = codes.codes
    if missing:
        assert blocks == 1, "only a single block can be filled up"
        shaped = np.concatenate([shaped, np.broadcast_to(_middle(codes), (rows, 1, missing))], axis=2)
    times = (old + missing) // width
    scales = np.repeat(codes.scales, times, axis=1)
    zeros = None if codes.zeros is None else np.repeat(codes.zeros, times, axis=1)
    return replace(codes, codes=shaped.reshape(rows, blocks * times, width), scales=scales, zeros=zeros)


def _middle(codes: Codes) -> np.ndarray:
    """Codes that mean about zero in the last block, (N, 1, 1) uint8."""
    if codes.zeros is None:
        return np.full((codes.rows, 1, 1), 1 << (codes.bits - 1), np.uint8)
    return np.rint(codes.zeros[:, -1:, None]).clip(0, (1 << codes.bits) - 1).astype(np.uint8)


# -- MatMulNBits and GatherBlockQuantized (onnxruntime/docs/ContribOperators.md) --------------------------------------


def _power_of_two(width: int, columns: int) -> int | None:
    """A block that the operators know, in which blocks of this width can be stored."""
    if width in _POWERS:
        return width
    if width >= columns:  # one block for all of K: any narrower one will do, the wider the better
        return next((power for power in _POWERS if columns % power == 0), 32)
    return next((power for power in _POWERS if width % power == 0), None)


def _narrowed(codes: Codes) -> Codes:
    width = _power_of_two(codes.block, codes.columns)
    assert width is not None, "the form was asked before whether it has such blocks"
    return stored_in_blocks(codes, width)


def _packed_zeros(codes: Codes) -> np.ndarray | None:
    if codes.zeros is None or codes.zeros.dtype != np.uint8:
        return codes.zeros
    return pack(codes.zeros, codes.bits)


def matmul_nbits(accuracy_level: int) -> Callable[[Rewriter, onnx_ir.Value, Codes, str], onnx_ir.Value]:
    """The writer of com.microsoft::MatMulNBits.

    Args:
        accuracy_level: 4 rounds activations to 8 bits in blocks; 0 computes with them as they are.
    """

    def write(rewriter: Rewriter, x: onnx_ir.Value, codes: Codes, name: str) -> onnx_ir.Value:
        codes = _narrowed(codes)
        return rewriter.op(
            "MatMulNBits",
            x,
            *_constants(rewriter, pack(codes.codes, codes.bits), codes, name),
            domain=MS,
            K=codes.columns,
            N=codes.rows,
            bits=codes.bits,
            block_size=codes.block,
            accuracy_level=accuracy_level,
        )

    return write


def _gather_block_quantized(rewriter: Rewriter, indices: onnx_ir.Value, codes: Codes, name: str) -> onnx_ir.Value:
    codes = _narrowed(codes)
    data = pack(codes.codes.reshape(codes.rows, -1)[:, : codes.columns], codes.bits)
    stored, *others = _constants(rewriter, data, codes, name)
    return rewriter.op(
        "GatherBlockQuantized",
        stored,
        indices,
        *others,
        domain=MS,
        gather_axis=0,
        quantize_axis=1,
        block_size=codes.block,
        bits=codes.bits,
    )


def _constants(rewriter: Rewriter, data: np.ndarray, codes: Codes, name: str) -> list[onnx_ir.Value]:
    values = [
        rewriter.constant(data, f"{name}_int{codes.bits}"),
        rewriter.constant(codes.scales, f"{name}_scale"),
    ]
    zeros = _packed_zeros(codes)
    return values if zeros is None else [*values, rewriter.constant(zeros, f"{name}_zero")]


# -- block-wise DequantizeLinear (ONNX opset 21) ----------------------------------------------------------------------


def _dividing(width: int, columns: int) -> int | None:
    return width if columns % width == 0 else None


def _dequantized_product(rewriter: Rewriter, x: onnx_ir.Value, codes: Codes, name: str) -> onnx_ir.Value:
    """MatMul with a weight (K, N) that is dequantized along axis 0: the only place where TensorRT fuses it."""
    signed = (codes.codes.reshape(codes.rows, -1).T ^ np.uint8(1 << (codes.bits - 1))).astype(np.uint8)
    if codes.bits == 4:  # the sign's bit is the fourth
        signed |= np.where(signed & 8, np.uint8(0xF0), np.uint8(0))
    weight = rewriter.constant(tensor_of(signed, onnx_ir.DataType[f"INT{codes.bits}"]), f"{name}_int{codes.bits}")
    if codes.codes.shape[1] == 1:  # a scale per output
        scale = rewriter.constant(codes.scales[:, 0], f"{name}_scale")
        return rewriter.op("MatMul", x, rewriter.op("DequantizeLinear", weight, scale, axis=1))
    scale = rewriter.constant(np.ascontiguousarray(codes.scales.T), f"{name}_scale")
    return rewriter.op("MatMul", x, rewriter.op("DequantizeLinear", weight, scale, axis=0, block_size=codes.block))


def _nbits(name: str, accuracy_level: int) -> Form:
    return Form(
        name,
        "onnxruntime",
        (MS, "MatMulNBits", 1),
        # Zero points of 8-bit codes must be codes: with others the kernel does not open (ONNX Runtime 1.31).
        grids={4: _ANY | {"float"}, 8: _ANY},
        positive=False,
        block=_power_of_two,
        product=matmul_nbits(accuracy_level),
        rounds_activations=accuracy_level == 4,
    )


#: Every form, the preferred ones of a backend first.
FORMS: tuple[Form, ...] = (
    # Activations in blocks of 8 bits: what the CPU's integer instructions are for (MLAS SQNBitGemm, CompInt8).
    _nbits("MatMulNBits, int8 activations", 4),
    _nbits("MatMulNBits", 0),
    Form(
        "GatherBlockQuantized",
        "onnxruntime",
        (MS, "GatherBlockQuantized", 1),
        grids={4: _ANY, 8: _ANY},
        positive=False,
        block=_power_of_two,
        lookup=_gather_block_quantized,
    ),
    # TensorRT 10 and later: weight-only quantization of products, symmetric, scales above zero, K a multiple of the
    # block; of 8 bits only with activations of 8 bits ("Working with Quantized Types", and IDequantizeLayer).
    Form(
        "blocked DequantizeLinear",
        "tensorrt",
        ("", "DequantizeLinear", 21),
        grids={4: frozenset({"none"})},
        positive=True,
        block=_dividing,
        product=_dequantized_product,
        opset=21,
    ),
    # Codes in the order in which a tile of a kernel reads them: there is no kernel yet, so nothing is written.
    Form(
        "Triton tiles",
        "triton",
        ("optc", "QuantizedMatMul", 1),
        grids={4: _ANY, 8: _ANY},
        positive=False,
        block=lambda width, columns: None,
    ),
)
