"""Which model-local functions call which."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir

from optc.ir.errors import ModelError
from optc.ir.names import function_name

Functions = Mapping[onnx_ir.OperatorIdentifier, onnx_ir.Function]


def expanded_sizes(functions: Functions) -> dict[onnx_ir.OperatorIdentifier, int]:
    """How many nodes a call of each function becomes.

    Raises:
        ModelError: Functions call each other in a cycle.
    """
    sizes: dict[onnx_ir.OperatorIdentifier, int] = {}
    path: list[onnx_ir.OperatorIdentifier] = []
    # An explicit stack: chains of functions may be longer than Python's own allows.
    stack: list[tuple[onnx_ir.OperatorIdentifier, bool]] = [(key, False) for key in functions]
    while stack:
        key, done = stack.pop()
        if done:
            path.pop()
            callees = [node.op_identifier() for node in functions[key].all_nodes()]
            sizes[key] = sum(sizes.get(callee, 1) for callee in callees)
            continue
        if key in sizes:
            continue
        if key in path:
            cycle = " -> ".join(map(function_name, [*path[path.index(key) :], key]))
            raise ModelError(f"functions call each other in a cycle: {cycle}", hint="ONNX functions must not recurse")
        path.append(key)
        stack.append((key, True))
        stack.extend((callee, False) for callee in _callees(functions, key) if callee not in sizes)
    return sizes


def _callees(functions: Functions, key: onnx_ir.OperatorIdentifier) -> dict[onnx_ir.OperatorIdentifier, None]:
    return {node.op_identifier(): None for node in functions[key].all_nodes() if node.op_identifier() in functions}
