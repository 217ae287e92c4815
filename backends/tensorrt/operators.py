"""Which operators TensorRT's ONNX parser has, at which types, and within which bounds: ``operators.toml`` as objects.

The functions below are what passes know as the kernels of a runtime; the whole check of a graph is in
:mod:`optc.backends.tensorrt.check`.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import onnx
import onnx_ir

from optc.ir.records import record

DType = onnx_ir.DataType

#: What codes of quantized tensors may be; they are only found between a QuantizeLinear and a DequantizeLinear.
CODES = frozenset({DType.INT8, DType.INT4, DType.FLOAT8E4M3FN, DType.FLOAT4E2M1})
#: All element types that a tensor in TensorRT may have.
TYPES = CODES | {DType.FLOAT, DType.FLOAT16, DType.BFLOAT16, DType.INT32, DType.INT64, DType.BOOL, DType.UINT8}


@dataclass(frozen=True)
class Operator:
    """What TensorRT takes of an operator; the fields are described in ``operators.toml``."""

    types: frozenset[DType]
    makes: frozenset[DType] = frozenset()
    of: str = "input 0"
    constant: tuple[int, ...] = ()
    ranks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    absent: tuple[int, ...] = ()
    unread: tuple[int, ...] = ()
    attributes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    exactly: Mapping[str, str] = field(default_factory=dict)
    static: tuple[int, ...] = ()
    since: str = "10.0"

    def typed(self, node: onnx_ir.Node) -> onnx_ir.Value | None:
        """The value of a node whose type the table speaks of."""
        side, position = self.of.split()
        values = node.inputs if side == "input" else node.outputs
        return values[int(position)] if int(position) < len(values) else None


@dataclass(frozen=True)
class Table:
    """The whole table.

    Attributes:
        opset: The oldest and the newest version of the standard operators.
        operators: By name.
        instead: What to do about some that there are not.
    """

    opset: tuple[int, int]
    operators: Mapping[str, Operator]
    instead: Mapping[str, str]


@dataclass(frozen=True)
class _Row:
    """A block of the file."""

    ops: str
    types: tuple[str, ...]
    makes: tuple[str, ...] = ()
    of: str = "input 0"
    constant: tuple[int, ...] = ()
    ranks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    absent: tuple[int, ...] = ()
    unread: tuple[int, ...] = ()
    attributes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    exactly: Mapping[str, str] = field(default_factory=dict)
    static: tuple[int, ...] = ()
    since: str = "10.0"


@functools.cache
def table() -> Table:
    """The table, read once."""
    data = tomllib.loads(resources.files("optc.backends.tensorrt").joinpath("operators.toml").read_text("utf-8"))
    operators: dict[str, Operator] = {}
    for row in (record(_Row, entry) for entry in data["operators"]):
        types, makes = (
            frozenset(onnx_ir.DataType[name] for group in groups for name in data["types"][group])
            for groups in (row.types, row.makes)
        )
        own = {key: value for key, value in vars(row).items() if key not in ("ops", "types", "makes")}
        for op in row.ops.split():
            assert op not in operators, f"{op} is there twice"
            operators[op] = Operator(types, makes, **own)
    return Table((data["opset"][0], data["opset"][1]), operators, data["instead"])


def operator(domain: str, op: str) -> Operator | None:
    """What TensorRT takes of an operator; None if it has none of that name."""
    return table().operators.get(op) if domain in ("", "ai.onnx") else None


def supports(
    domain: str,
    op: str,
    opset_version: int,
    dtypes: Mapping[str, DType] | DType | None = None,
    provider: str = "",
) -> bool:
    """Whether a graph for TensorRT may be written with an operator.

    Args:
        domain: The op's domain; "" and "ai.onnx" are the same.
        op: The op type.
        opset_version: The opset version that the model imports for ``domain``.
        dtypes: Element type of the first input (or of the result), or by type variable; None asks for any.
        provider: Not looked at; TensorRT is the same everywhere.
    """
    known = operator(domain, op)
    low, high = table().opset
    if known is None or not low <= opset_version <= high or not defined(op, opset_version):
        return False
    wanted = dtypes.values() if isinstance(dtypes, Mapping) else [dtypes] if dtypes is not None else []
    return all(dtype in known.types | known.makes for dtype in wanted)


def float_precisions() -> tuple[str, ...]:
    """None: strongly typed networks compute in the types that the graph says."""
    return ()


@functools.cache
def defined(op: str, version: int) -> bool:
    """Whether ONNX has the operator in an opset; what it never had, or has no more, is not its to say."""
    if not onnx.defs.has(op):
        return True
    try:
        onnx.defs.get_schema(op, version, "")
    except onnx.defs.SchemaError:
        return False
    return True
