"""The test cases that come with the onnx package, made ready for ONNX Runtime.

Node cases hold one node (or its expansion into primitive ops) with inputs and expected outputs; ``simple``,
``pytorch-converted`` and ``pytorch-operator`` cases are small models with stored tensors.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.backend.test.loader import load_model_tests

STORED_KINDS = ("simple", "pytorch-converted", "pytorch-operator")


@dataclass(frozen=True)
class Case:
    """A model with what must come out of it.

    ``datasets`` holds pairs (inputs by name, expected outputs in order); values are arrays, lists (sequences)
    or None (an empty optional).
    """

    name: str
    model: onnx.ModelProto
    datasets: tuple[tuple[dict[str, Any], list[Any]], ...]
    rtol: float
    atol: float


def load_cases() -> list[Case]:
    """Every case, sorted by kind and name (the order must be the same in every process)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        node = load_model_tests(kind="node")
    cases = [
        _node_case(test) if test.data_sets is not None else _stored_case("", test)  # generated, or files (onnx < 1.23)
        for test in sorted(node, key=lambda test: test.name)
    ]
    for kind in STORED_KINDS:
        tests = sorted(load_model_tests(kind=kind), key=lambda test: test.name)
        cases += [_stored_case(kind, test) for test in tests]
    return cases


def _node_case(test: Any) -> Case:
    datasets = [([_value(v) for v in inputs], [_value(v) for v in outputs]) for inputs, outputs in test.data_sets]
    return _case(test.name.removeprefix("test_"), test.model, datasets, test.rtol, test.atol)


def _stored_case(kind: str, test: Any) -> Case:
    folder = Path(test.model_dir)
    model = onnx.load(folder / "model.onnx")
    datasets = []
    for data in sorted(folder.glob("test_data_set_*")):
        datasets.append(
            (
                [_read(data / f"input_{i}.pb", info) for i, info in enumerate(fed_inputs(model))],
                [_read(data / f"output_{i}.pb", info) for i, info in enumerate(model.graph.output)],
            )
        )
    name = test.name.removeprefix("test_")
    return _case(f"{kind}/{name}" if kind else name, model, datasets, test.rtol, test.atol)


def _case(name: str, model: onnx.ModelProto, datasets: list[tuple[list, list]], rtol: float, atol: float) -> Case:
    names = [info.name for info in fed_inputs(model)]
    named = tuple((dict(zip(names, inputs, strict=False)), outputs) for inputs, outputs in datasets)
    return Case(name, _within_runtime(model), named, rtol, atol)


def _value(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value)


def _read(path: Path, info: onnx.ValueInfoProto) -> Any:
    data = path.read_bytes()
    if info.type.HasField("sequence_type"):
        return [np.asarray(v) for v in numpy_helper.to_list(onnx.SequenceProto.FromString(data))]
    if info.type.HasField("optional_type"):
        return _value(numpy_helper.to_optional(onnx.OptionalProto.FromString(data)))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def fed_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Graph inputs that a caller has to feed: those without an initializer of the same name."""
    initialized = {tensor.name for tensor in model.graph.initializer}
    return [info for info in model.graph.input if info.name not in initialized]


# ---- what the installed ONNX Runtime can read ------------------------------------------------------------------------


@functools.cache
def _newest_readable() -> tuple[int, int]:
    """(IR version, opset) that the installed ONNX Runtime still reads."""

    def newest(candidates: Iterator[tuple[int, int]]) -> tuple[int, int]:
        for ir_version, opset in candidates:
            node = helper.make_node("Identity", ["x"], ["y"])
            x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
            model = helper.make_model(
                helper.make_graph([node], "probe", [x], [y]),
                ir_version=ir_version,
                opset_imports=[helper.make_opsetid("", opset)],
            )
            try:
                onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            except Exception:
                continue
            return ir_version, opset
        raise AssertionError("ONNX Runtime reads no model at all")

    ir_version, _ = newest((ir_version, 13) for ir_version in range(onnx.IR_VERSION, 6, -1))
    _, opset = newest((7, opset) for opset in range(onnx.defs.onnx_opset_version(), 12, -1))
    return ir_version, opset


def _within_runtime(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model stamped with versions that ONNX Runtime reads.

    The onnx package is usually ahead of ONNX Runtime. Most ops have not changed between the two opsets; for those
    that have, ONNX Runtime refuses or differs from the expected output and the case is not judged.
    """
    ir_version, opset = _newest_readable()
    domains = {entry.domain: entry.version for entry in model.opset_import}
    if model.ir_version <= ir_version and domains.get("", 0) <= opset:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(copy.ir_version, ir_version)
    for entry in copy.opset_import:
        if entry.domain == "":
            entry.version = min(entry.version, opset)
    return copy


# ---- variants of a case ----------------------------------------------------------------------------------------------


def with_weights(case: Case) -> Case | None:
    """Every tensor input but the first bound as an initializer: how most ops stand in real models."""
    return _bind(case, skip=1)


def frozen(case: Case) -> Case | None:
    """Every tensor input bound as an initializer, so that the whole model is constant."""
    return _bind(case, skip=0)


def open_dims(case: Case) -> Case | None:
    """Every input dim a symbol and no dim of an output known, so that no rewrite can lean on static shapes."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    changed = False
    for info in fed_inputs(model):
        if not info.type.HasField("tensor_type") or not info.type.tensor_type.HasField("shape"):
            continue
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            dim.dim_param = f"{info.name}_{axis}"
            changed = True
    for info in model.graph.output:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return replace(case, model=model) if changed else None


def _bind(case: Case, skip: int) -> Case | None:
    if len(case.datasets) != 1:
        return None
    inputs, outputs = case.datasets[0]
    tensors = [info.name for info in fed_inputs(case.model)[skip:] if info.type.HasField("tensor_type")]
    bound = {name: inputs[name] for name in tensors if isinstance(inputs.get(name), np.ndarray)}
    if not bound:
        return None
    feeds = {name: value for name, value in inputs.items() if name not in bound}
    return replace(case, model=bind(case.model, bound), datasets=((feeds, outputs),))


def bind(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of the model with these inputs turned into initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    types = {info.name: info.type.tensor_type.elem_type for info in copy.graph.input}
    for name, value in values.items():
        wanted = helper.tensor_dtype_to_np_dtype(types[name])
        value = value if types[name] == onnx.TensorProto.STRING else value.astype(wanted, copy=False)
        copy.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    if copy.ir_version >= 4:  # before that, every initializer is a graph input as well
        kept = [info for info in copy.graph.input if info.name not in values]
        del copy.graph.input[:]
        copy.graph.input.extend(kept)
    return copy


Variant = Callable[[Case], Case | None]
VARIANTS: dict[str, tuple[Variant, tuple[int, ...]]] = {
    # name: (how the case is changed, levels at which it is judged)
    "as shipped": (lambda case: case, (1, 2)),
    "weights constant": (with_weights, (2,)),
    "all constant": (frozen, (1,)),
    "open dims": (open_dims, (2,)),
}
