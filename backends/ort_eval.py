"""Evaluates constant sub-graphs with the very kernels that would compute them at run time.

One ONNX Runtime session runs a whole fragment with every optimization off. Constants are fed rather than serialized,
so big weights are not copied into a protobuf message. A fragment that fails as a whole is run node by node, and what
cannot be computed is reported, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir

from optc.backends import ort_fragment, ort_kernels
from optc.backends.ort import Session
from optc.backends.ort_fragment import NotConstantError, constant_array
from optc.ir.errors import OptcError
from optc.ir.verify import inner_nodes


@dataclass(frozen=True)
class Evaluation:
    """What came of a fragment.

    Attributes:
        values: One array per requested value, in order; None where it could not be computed. Strings come as object
            arrays, sequences as lists of arrays.
        failures: Why, per node that could not be evaluated; nodes that only lacked an input are listed too.
    """

    values: list[Any]
    failures: Mapping[onnx_ir.Node, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every requested value was computed."""
        return all(value is not None for value in self.values)


class Evaluator:
    """Evaluates nodes whose inputs are all constant.

    Args:
        opset_imports: Opset version per domain; None takes those of the graph that holds the nodes.
        functions: Model-local functions that the nodes may call.
        threads: Threads inside one operator.
    """

    def __init__(
        self,
        opset_imports: Mapping[str, int] | None = None,
        functions: Sequence[onnx_ir.Function] = (),
        threads: int = 1,
    ) -> None:
        self._opset_imports = opset_imports
        self._functions = tuple(functions)
        self._threads = threads

    def run(
        self,
        nodes: Sequence[onnx_ir.Node],
        feeds: Mapping[onnx_ir.Value, Any],
        outputs: Sequence[onnx_ir.Value],
        opset_imports: Mapping[str, int] | None = None,
    ) -> list[Any]:
        """The values of ``outputs``, None for those that cannot be computed; see :meth:`evaluate`.

        ``opset_imports`` are those of the nodes' model: sub-graphs do not have any of their own to tell.
        """
        if opset_imports is not None:
            return Evaluator(opset_imports, self._functions, self._threads).run(nodes, feeds, outputs)
        return self.evaluate(nodes, feeds, outputs).values

    def evaluate(
        self,
        nodes: Sequence[onnx_ir.Node],
        feeds: Mapping[onnx_ir.Value, Any] | None = None,
        outputs: Sequence[onnx_ir.Value] | None = None,
    ) -> Evaluation:
        """Evaluate ``nodes``, which must be in topological order, and say what could not be computed.

        The caller sees to it that no result is too big to hold (it knows the shapes) and that no node draws random
        numbers: a process that touches more memory than there is gets killed, not told.

        Args:
            nodes: The fragment. Inputs that none of them produces are initializers, outputs of Constant nodes, or
                keys of ``feeds``.
            feeds: Arrays for inputs that carry no constant themselves.
            outputs: The values wanted; None means every output of the last node.
        """
        if outputs is None:
            outputs = nodes[-1].outputs if nodes else []
        known = dict(feeds or {})
        rest = []
        for node in nodes:
            array = constant_array(node.outputs[0]) if node.op_type == "Constant" else None
            if array is None:
                rest.append(node)
            else:
                known[node.outputs[0]] = array
        wanted = [value for value in outputs if value not in known]
        if not wanted:
            return Evaluation([known[value] for value in outputs])
        if not any(_may_trap(node, known) for node in rest):
            try:
                results = self._session(rest, wanted, known)
                known.update(zip(wanted, results, strict=True))
                return Evaluation([known[value] for value in outputs])
            except (OptcError, NotConstantError):
                pass  # find out which nodes are to blame
        failures = self._one_by_one(rest, set(wanted), known)
        return Evaluation([known.get(value) for value in outputs], failures)

    def _one_by_one(
        self, nodes: Sequence[onnx_ir.Node], wanted: set[onnx_ir.Value], known: dict[onnx_ir.Value, Any]
    ) -> dict[onnx_ir.Node, str]:
        """Add what can be computed to ``known``; return why the rest cannot."""
        failures: dict[onnx_ir.Node, str] = {}
        for node in nodes:
            results = [value for value in node.outputs if value in wanted or value.uses()]
            if not results:
                continue
            try:
                _check_division(node, known)
                known.update(zip(results, self._session([node], results, known), strict=True))
            except NotConstantError as error:
                failures[node] = str(error)
            except OptcError as error:
                failures[node] = error.what
        return failures

    def _session(
        self, nodes: Sequence[onnx_ir.Node], wanted: Sequence[onnx_ir.Value], known: Mapping[onnx_ir.Value, Any]
    ) -> list[Any]:
        fragment = ort_fragment.build(nodes, wanted, known, self._imports(nodes), self._functions)
        session = Session(fragment.proto, optimization="off", threads=self._threads, arena=False)
        results = session.run(fragment.feeds)
        return [results[name] for name in fragment.outputs]

    def _imports(self, nodes: Sequence[onnx_ir.Node]) -> dict[str, int]:
        imports = dict(self._opset_imports or {})
        for node in nodes:
            if self._opset_imports is None and node.graph is not None:
                imports |= node.graph.opset_imports
            imports.setdefault(node.domain, node.version or 1)
        if "ai.onnx" in imports:
            imports.setdefault("", imports.pop("ai.onnx"))
        imports.setdefault("", ort_kernels.max_opset())
        return imports


# Integer division traps: dividing the smallest integer by -1 raises SIGFPE, and in some versions so does dividing by
# zero. Neither may take the compiler down with it.


def _divisor(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """The divisor of an integer division; None for any other node."""
    if node.op_type not in ("Div", "Mod") or node.domain not in ("", "ai.onnx") or len(node.inputs) != 2:
        return None
    divisor = node.inputs[1]
    if divisor is None or (divisor.dtype is not None and not divisor.dtype.is_integer()):
        return None
    return divisor


def _may_trap(node: onnx_ir.Node, known: Mapping[onnx_ir.Value, Any]) -> bool:
    if any(_may_trap(inner, known) for inner in inner_nodes(node)):
        return True
    divisor = _divisor(node)
    if divisor is None:
        return False
    array = known.get(divisor)
    array = constant_array(divisor) if array is None else array
    return array is None or (array.dtype.kind in "iu" and bool(np.isin(array, (0, -1)).any()))


def _check_division(node: onnx_ir.Node, known: Mapping[onnx_ir.Value, Any]) -> None:
    """Raise NotConstantError where running ``node`` could trap."""
    if any(_may_trap(inner, known) for inner in inner_nodes(node)):
        raise NotConstantError("a sub-graph divides integers by a value that is not known to be safe")
    divisor = _divisor(node)
    if divisor is None:
        return
    arrays = []
    for value in node.inputs:
        array = None if value is None else known.get(value)
        array = constant_array(value) if array is None and value is not None else array
        if array is None:
            raise NotConstantError(f"its input '{value.name if value else ''}' is not constant")
        arrays.append(array)
    dividend, by = arrays
    if by.dtype.kind not in "iu":
        return
    if (by == 0).any():
        raise NotConstantError("integer division by zero")
    if by.dtype.kind == "i" and (by == -1).any() and (dividend == np.iinfo(dividend.dtype).min).any():
        raise NotConstantError("integer division overflows")
