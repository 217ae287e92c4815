"""Which kernels the installed ONNX Runtime has: read from its own registry, not from a list that goes stale.

``get_all_opkernel_def`` tells domain, op, provider, version range and type constraints of every kernel that is
compiled in. A kernel serves a node by ONNX Runtime's own rule (kernel_registry.cc): its start version is the version
in which the op was last changed, or that version lies inside the kernel's closed range. An open-ended range does
*not* cover later versions of the op.

For execution providers that are not installed here, :mod:`optc.backends.ort_cuda` holds an assumption.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as native

from optc.backends import ort_cuda
from optc.backends.base import OpSignature
from optc.backends.ort_values import type_text

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

DTypeLike = onnx_ir.DataType | str | type | np.dtype
How = Literal["kernel", "cast", "function"]

_OPEN_END = 2**31 - 1


@dataclass(frozen=True)
class _Kernel:
    start: int
    end: int
    types: Mapping[str, frozenset[str]]

    def serves(self, since_version: int, wanted: Iterable[tuple[frozenset[str], str]]) -> bool:
        """``wanted`` pairs the names under which a kernel may constrain a parameter with the parameter's type."""
        if self.start != since_version and not (self.start < since_version <= self.end < _OPEN_END):
            return False
        return all(text in self.types[name] for names, text in wanted for name in names if name in self.types)


@dataclass(frozen=True)
class _Schema:
    since_version: int
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    types: Mapping[str, frozenset[str]]

    def parameter(self, formals: tuple[tuple[str, str], ...], position: int) -> tuple[str, str] | None:
        """Name and type text of the formal at ``position``; a last, variadic one repeats."""
        return formals[min(position, len(formals) - 1)] if formals else None

    def names(self, key: str) -> frozenset[str]:
        """Every name under which a kernel may constrain ``key``: the type variable, and the formals that have it."""
        formals = (*self.inputs, *self.outputs)
        variable = next((text for name, text in formals if name == key), key)
        return frozenset(
            {variable, *(name for name, text in formals if text == variable)} if variable in self.types else {key}
        )

    def allows(self, key: str, text: str) -> bool:
        """Whether the op's schema permits the type at all."""
        variable = next((formal for name, formal in (*self.inputs, *self.outputs) if name == key), key)
        return text in self.types[variable] if variable in self.types else variable in (text, key)


@functools.cache
def _kernels() -> dict[tuple[str, str, str], list[_Kernel]]:
    table: dict[tuple[str, str, str], list[_Kernel]] = {}
    for kernel in native.get_all_opkernel_def():
        start, end = kernel.version_range
        types = {name: frozenset(allowed) for name, allowed in kernel.type_constraints.items()}
        table.setdefault((kernel.provider, kernel.domain, kernel.op_name), []).append(_Kernel(start, end, types))
    return table


@functools.cache
def _schemas() -> dict[tuple[str, str], list[_Schema]]:
    table: dict[tuple[str, str], list[_Schema]] = {}
    for schema in native.get_all_operator_schema():
        table.setdefault((schema.domain, schema.name), []).append(
            _Schema(
                schema.since_version,
                tuple((formal.name, formal.typeStr) for formal in schema.inputs),
                tuple((formal.name, formal.typeStr) for formal in schema.outputs),
                {one.type_param_str: frozenset(one.allowed_type_strs) for one in schema.type_constraints},
            )
        )
    return table


def _schema(domain: str, op: str, opset_version: int) -> _Schema | None:
    """The newest schema of the op that is not newer than ``opset_version``."""
    known = [one for one in _schemas().get((domain, op), ()) if one.since_version <= opset_version]
    return max(known, key=lambda one: one.since_version, default=None)


def supports(
    domain: str,
    op: str,
    opset_version: int,
    dtypes: Mapping[str, DTypeLike] | DTypeLike | None = None,
    provider: str = CPU,
) -> bool:
    """Whether the installed onnxruntime has a kernel for the op with these element types.

    Args:
        domain: The op's domain; "" and "ai.onnx" are the same.
        op: The op type.
        opset_version: The opset version the model imports for ``domain``.
        dtypes: Element type per type variable of the op's schema ("T", "T1", ...) or per formal parameter name; one
            bare type means the type variable of the first input; None asks for a kernel of any type. Type variables
            that are left out are not checked.
        provider: The execution provider. For one that is not installed the answer is the assumption recorded in
            :mod:`optc.backends.ort_cuda` (com.microsoft ops only; ops of other domains are taken to be there).

    Raises:
        ValueError: ``dtypes`` names a type variable that the op does not have.
    """
    domain = _canonical(domain)
    schema = _schema(domain, op, opset_version)
    if schema is None:
        return False
    given = _per_key(schema, dtypes)
    variables = {*schema.types, *(name for name, _ in (*schema.inputs, *schema.outputs))}
    strange = sorted(set(given) - variables)
    if strange:
        raise ValueError(f"{op} has no type variable {', '.join(strange)}; it has {', '.join(sorted(schema.types))}")
    if not all(schema.allows(key, text) for key, text in given.items()):
        return False
    return _has_kernel(provider, domain, op, schema, tuple((schema.names(key), text) for key, text in given.items()))


def float_precisions() -> tuple[str, ...]:
    """None: onnxruntime computes floats in the types of the graph."""
    return ()


def how(op: OpSignature, provider: str = CPU) -> How | None:
    """How the installed onnxruntime runs an op.

    Returns:
        "kernel": there is a kernel for these types. "cast": float16 without a kernel, run by the float32 kernel
        between casts that onnxruntime inserts (CPU only; slow). "function": no kernel, but the ONNX standard defines
        the op as a function, which onnxruntime inlines (whether the ops inside have kernels is not checked).
        None: it cannot be run. Unknown element types are taken to fit.
    """
    schema = _schema(op.domain, op.op_type, op.version)
    if schema is None:
        return None
    wanted = _wanted(schema, op)
    if not all(schema.allows(name, text) for name, text in wanted):
        return None
    if _has_kernel(provider, op.domain, op.op_type, schema, _named(schema, wanted)):
        return "kernel"
    half, single = type_text(onnx_ir.DataType.FLOAT16), type_text(onnx_ir.DataType.FLOAT)
    if provider == CPU and any(text == half for _, text in wanted):
        widened = [(name, single if text == half else text) for name, text in wanted]
        if _has_kernel(provider, op.domain, op.op_type, schema, _named(schema, widened)):
            return "cast"
    return "function" if _is_function(op) else None


def _canonical(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _text(dtype: DTypeLike) -> str:
    if isinstance(dtype, onnx_ir.DataType):
        return type_text(dtype)
    if isinstance(dtype, str):
        if "(" in dtype:
            return dtype
        name = {"FLOAT32": "FLOAT", "FLOAT64": "DOUBLE", "STR": "STRING"}.get(dtype.upper(), dtype.upper())
        return type_text(onnx_ir.DataType[name])
    return type_text(onnx_ir.DataType.from_numpy(np.dtype(dtype)))


def _per_key(schema: _Schema, dtypes: Mapping[str, DTypeLike] | DTypeLike | None) -> dict[str, str]:
    if dtypes is None:
        return {}
    if isinstance(dtypes, Mapping):
        return {key: _text(dtype) for key, dtype in dtypes.items()}
    formals = schema.inputs or schema.outputs
    return {formals[0][1]: _text(dtypes)} if formals else {}


def _wanted(schema: _Schema, op: OpSignature) -> list[tuple[str, str]]:
    """Formal name and type text of every input and output whose type is known."""
    pairs = []
    for formals, dtypes in ((schema.inputs, op.inputs), (schema.outputs, op.outputs)):
        for position, dtype in enumerate(dtypes):
            formal = schema.parameter(formals, position)
            if formal is not None and dtype is not None:
                pairs.append((formal[0], type_text(dtype)))
    return pairs


def _named(schema: _Schema, wanted: Iterable[tuple[str, str]]) -> tuple[tuple[frozenset[str], str], ...]:
    return tuple((schema.names(name), text) for name, text in wanted)


def _has_kernel(
    provider: str, domain: str, op: str, schema: _Schema, wanted: tuple[tuple[frozenset[str], str], ...]
) -> bool:
    if provider not in onnxruntime.get_available_providers():
        return ort_cuda.assumed(provider, domain, op, wanted)
    return any(one.serves(schema.since_version, wanted) for one in _kernels().get((provider, domain, op), ()))


def _is_function(op: OpSignature) -> bool:
    try:
        schema = onnx.defs.get_schema(op.op_type, min(op.version, onnx.defs.onnx_opset_version()), op.domain)
    except onnx.defs.SchemaError:
        return False
    # onnx's type stubs lack these two properties.
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


@functools.cache
def max_opset() -> int:
    """The newest ai.onnx opset that the installed onnxruntime accepts in a model."""
    newest = max(one.since_version for (domain, _), known in _schemas().items() if domain == "" for one in known)
    return next((version for version in range(newest, 0, -1) if _opens(version, 8)), 0)


@functools.cache
def max_ir_version() -> int:
    """The newest IR version that the installed onnxruntime accepts in a model."""
    return next((version for version in range(32, 0, -1) if _opens(max_opset(), version)), 0)


def _opens(opset: int, ir_version: int) -> bool:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    except Exception:  # onnxruntime's exceptions share no base class below Exception
        return False
    return True
