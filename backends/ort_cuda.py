"""An assumption about execution providers that the installed ONNX Runtime does not contain.

Compiling for a GPU on a machine without one needs to know which fused ops the CUDA provider will have there. The
table below was taken from ONNX Runtime's own list (docs/OperatorKernels.md, section CUDAExecutionProvider); it was
**not run here**. Where onnxruntime-gpu is installed its registry is asked instead and this table is not read.

Ops outside com.microsoft are taken to be there: the CUDA provider covers most of ai.onnx, and onnxruntime falls back
to the CPU provider for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable

_F = frozenset({"tensor(float)", "tensor(float16)"})
_FB = _F | {"tensor(bfloat16)"}
_FBD = _FB | {"tensor(double)"}
_HALF = frozenset({"tensor(float16)", "tensor(bfloat16)"})
_I32 = frozenset({"tensor(int32)"})
_I64 = frozenset({"tensor(int64)"})
_U8 = frozenset({"tensor(uint8)"})
_INT8 = frozenset({"tensor(int8)"})
_BYTE = frozenset({"tensor(int8)", "tensor(uint8)"})
_FLOAT = frozenset({"tensor(float)"})

#: com.microsoft op -> type variable -> element types, CUDAExecutionProvider.
CUDA_CONTRIB: dict[str, dict[str, frozenset[str]]] = {
    "Attention": {"T": _F, "M": _I32},
    "BiasAdd": {"T": _F},
    "BiasGelu": {"T": _FBD},
    "BiasSoftmax": {"T": _F | {"tensor(double)"}},
    "BiasSplitGelu": {"T": _F},
    "DecoderMaskedMultiHeadAttention": {"T": _F},
    "DequantizeLinear": {"T1": _BYTE, "T2": frozenset({"tensor(float16)"})},
    "EmbedLayerNormalization": {"T": _F, "T1": _I32},
    "FastGelu": {"T": _FBD},
    "FusedConv": {"T": _FLOAT},
    "FusedMatMul": {"T": _FBD},
    "GatherBlockQuantized": {
        "T1": frozenset({"tensor(int4)", "tensor(uint4)", "tensor(uint8)"}),
        "T2": _FB,
        "Tind": _I32 | _I64,
    },
    "Gelu": {"T": _FBD},
    "GroupNorm": {"T": _F},
    "GroupQueryAttention": {"T": _HALF, "M": _I32},
    "LongformerAttention": {"T": _F},
    "MatMulBnb4": {"T1": _FB, "T2": _U8},
    "MatMulNBits": {"T1": _FB, "T2": _U8, "T3": _FB | _U8},
    "MoE": {"T": _FB},
    "MultiHeadAttention": {"T": _FB, "M": _I32},
    "NhwcConv": {"T": _F},
    "PackedAttention": {"T": _F},
    "PackedMultiHeadAttention": {"T": _F},
    "PagedAttention": {"T": _HALF, "S": _I32},
    "QAttention": {"T1": _INT8, "T2": _INT8, "T3": _F, "T4": _I32},
    "QMoE": {"T": _HALF, "T1": _U8, "T2": _HALF},
    "QuantizeLinear": {"T1": frozenset({"tensor(float16)"}), "T2": _BYTE},
    "QuickGelu": {"T": _FBD},
    "RelativePositionBias": {"T": _F, "U": _I64},
    "RotaryEmbedding": {"T": _FB, "M": _I64},
    "SkipGroupNorm": {"T": _F},
    "SkipLayerNormalization": {"T": _FB},
    "SkipSimplifiedLayerNormalization": {"T": _FB},
    "SparseAttention": {"T": _HALF, "M": _I32},
}

_TABLES = {"CUDAExecutionProvider": CUDA_CONTRIB}


def assumed(provider: str, domain: str, op: str, wanted: Iterable[tuple[frozenset[str], str]]) -> bool:
    """Whether a provider that is not installed is taken to have a kernel.

    Args:
        provider: The execution provider; False for one without a table, except for ops outside com.microsoft.
        domain: The op's domain.
        op: The op type.
        wanted: Pairs of (names under which a type may be constrained, type text such as ``tensor(float)``).
    """
    if domain != "com.microsoft":
        return True
    types = _TABLES.get(provider, {}).get(op)
    if types is None:
        return False
    return all(text in types[name] for names, text in wanted for name in names if name in types)
