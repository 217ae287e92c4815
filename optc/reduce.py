"""Shrinking a model that shows a failure to a small one that shows it still.

What is tried is kept only if the failure is still there, so the result needs no trust in the steps (delta debugging;
Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", TSE 2002). From coarse to fine: fixed dims,
fewer outputs, a cut behind and a cut before the failure, single nodes, smaller tensors, constant inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir
from onnx_ir.convenience import extract

from optc.callables import find_callable
from optc.environment import Environment
from optc.inputs import draw_inputs, symbols
from optc.ir.errors import OptcError, UsageError
from optc.ir.facts import Facts
from optc.ir.model import ModelSource, load
from optc.options import Options
from optc.passes.base import Numerics
from optc.passes.manager import count_nodes
from optc.plugins import environment as default_environment
from optc.progress import Progress, Silent
from optc.replay import Replay, user_judge

#: Sizes of the symbolic dims that are tried, all of them alike and then all different.
_ALIKE, _PRIMES = (2, 3, 1, 8), (2, 3, 5, 7, 11, 13)
#: Sizes that a dim of the weights and inputs may shrink to.
_SMALLER = (1, 2, 3, 4)
_ROUNDS = 4

#: Says why a model fails; None if it does not.
Fails = Callable[[onnx_ir.Model], str | None]


@dataclass
class Reduced:
    """A small model that fails.

    Attributes:
        model: The model.
        reason: What the check says of it.
        nodes: Nodes of the model given, and of this one.
        tried: How many candidates were checked.
    """

    model: onnx_ir.Model
    reason: str
    nodes: tuple[int, int]
    tried: int = 0


def reduce(
    model: ModelSource,
    *,
    check: str | Callable[[str], Any] | None = None,
    tolerance: float | None = None,
    environment: Environment | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Reduced:
    """Shrink a model as far as the failure that it shows stays.

    Args:
        model: The model that fails, as for :func:`optc.compile`.
        check: The user's check, a callable or ``module:function``: it is given the path of a candidate and says that it
            fails by returning False or a text, or by raising. By default a model fails if compiling it raises or gives
            a wrong result.
        tolerance: With the default check: how large the relative L2 error of an output may be.
        environment: Passes and targets to use; those installed by default.
        progress: Is told how far the work is.
        options: See :class:`optc.options.Options`.

    Raises:
        OptcError: The model or an option is no good, or the model does not fail.
    """
    chosen, passes = Options.of(**options), environment or default_environment()
    fails: Fails = (
        _by_user(check) if check is not None else lambda candidate: _by_compiling(candidate, chosen, passes, tolerance)
    )
    original = load(model)
    reason = fails(original)
    if reason is None:
        raise UsageError("the model does not fail the check: there is nothing to reduce", hint="is it the right check?")
    state = _State(original.clone(), reason, fails, progress or Silent())
    state.progress.start("reduce")
    for step in (_fix_dims, _one_output, _cut_behind, _cut_before):
        step(state)
    for _ in range(_ROUNDS):
        before = state.kept
        for step in (_drop_nodes, _shrink, _constant_inputs):
            step(state)
        if state.kept == before:
            break
    state.progress.finish("reduce")
    return Reduced(state.model, state.reason, (count_nodes(original), count_nodes(state.model)), state.tried)


def _by_user(check: str | Callable[[str], Any]) -> Fails:
    judge = user_judge(find_callable(check, "check"))
    return lambda candidate: judge(candidate, Numerics.EXACT)


def _by_compiling(
    candidate: onnx_ir.Model, options: Options, environment: Environment, tolerance: float | None
) -> str | None:
    """Why a compile of the candidate fails; a candidate that cannot be judged does not count as failing."""
    replay = Replay(candidate, options, environment)
    done = replay.prefix(None)
    try:
        return done.problem or replay.judge(tolerance)(done.model, done.numerics)
    except UsageError:
        return None


@dataclass
class _State:
    """The smallest failing model so far."""

    model: onnx_ir.Model
    reason: str
    fails: Fails
    progress: Progress
    tried: int = 0
    kept: int = 0

    def offer(self, candidate: onnx_ir.Model | None) -> bool:
        """Keep a candidate if it fails."""
        if candidate is None:
            return False
        self.tried += 1
        self.progress.advance("reduce", 1, f"{count_nodes(self.model)} nodes")
        try:
            reason = self.fails(candidate)
        except OptcError:  # no model that could be judged has come of it
            reason = None
        if reason is None:
            return False
        self.model, self.reason = candidate, reason
        self.kept += 1
        return True


def _fix_dims(state: _State) -> None:
    """Give every symbolic dim of the inputs a size."""
    names = list(symbols(state.model))
    if not names:
        return
    sizes = [dict.fromkeys(names, size) for size in _ALIKE]
    sizes.insert(1, {name: _PRIMES[at % len(_PRIMES)] for at, name in enumerate(names)})
    any(state.offer(_with_dims(state.model, bindings)) for bindings in sizes)


def _with_dims(model: onnx_ir.Model, bindings: dict[str, int]) -> onnx_ir.Model | None:
    feeds = draw_inputs(model, bindings)
    copy = model.clone()
    for value in copy.graph.inputs:
        value.shape = onnx_ir.Shape(feeds[value.name or ""].shape)
    for value in copy.graph.outputs:
        value.shape = None
    for node in copy.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    return _part(copy, list(copy.graph.inputs), list(copy.graph.outputs))


def _one_output(state: _State) -> None:
    """Keep one output alone."""
    count = len(state.model.graph.outputs)
    if count > 1:
        any(
            state.offer(_part(state.model, list(state.model.graph.inputs), [state.model.graph.outputs[at]]))
            for at in range(count)
        )


def _cut_behind(state: _State) -> None:
    """Drop nodes at the end, as many at once as goes: the output of an earlier one becomes the only output."""
    step = len(state.model.graph) // 2
    while step:
        nodes = list(state.model.graph)
        if step >= len(nodes) or not state.offer(_until(state.model, nodes[-1 - step])):
            step //= 2


def _until(model: onnx_ir.Model, node: onnx_ir.Node) -> onnx_ir.Model | None:
    value = next((value for value in node.outputs if value.name), None)
    return None if value is None else _part(model, list(model.graph.inputs), [value])


def _cut_before(state: _State) -> None:
    """Drop nodes at the beginning, as many at once as goes: what crosses the cut becomes an input."""
    step = len(state.model.graph) // 2
    while step:
        if step >= len(state.model.graph) or not state.offer(_behind(state.model, step)):
            step //= 2


def _behind(model: onnx_ir.Model, at: int) -> onnx_ir.Model | None:
    """The nodes from position ``at`` on."""
    early = set(list(model.graph)[:at])
    crossing = [
        value
        for node in early
        for value in node.outputs
        if value.is_graph_output() or any(use.node not in early for use in value.uses())
    ]
    return _part(model, [*model.graph.inputs, *crossing], list(model.graph.outputs))


def _drop_nodes(state: _State) -> None:
    """Take out one node after another: its result becomes an input, or one of its inputs stands for it."""
    at = len(state.model.graph) - 1
    while at >= 0:
        nodes = list(state.model.graph)
        if at < len(nodes):
            node = nodes[at]
            kept = state.offer(_without(state.model, node)) or any(
                state.offer(_bypassed(state.model, node, index)) for index in range(len(node.inputs))
            )
            if kept:
                at = min(at, len(state.model.graph))
        at -= 1


def _without(model: onnx_ir.Model, node: onnx_ir.Node) -> onnx_ir.Model | None:
    outputs = [value for value in model.graph.outputs if value.producer() is not node]
    if len(outputs) < len(model.graph.outputs) or not outputs:
        # A node at the end: what it reads is looked at in its place.
        outputs += [value for value in node.inputs if value is not None and value.producer() is not None]
    values = [value for value in node.outputs if value.uses()]
    return _part(model, [*model.graph.inputs, *values], list(dict.fromkeys(outputs)))


def _bypassed(model: onnx_ir.Model, node: onnx_ir.Node, index: int) -> onnx_ir.Model | None:
    """Let what reads a node's first output read its input of equal shape and type."""
    facts, x, y = Facts(model), node.inputs[index], node.outputs[0]
    if x is None or len(node.outputs) != 1 or y.is_graph_output():
        return None
    if facts.shape(x) is None or (facts.shape(x), facts.dtype(x)) != (facts.shape(y), facts.dtype(y)):
        return None
    position = list(model.graph).index(node)
    copy = model.clone()
    twin = list(copy.graph)[position]
    twin.outputs[0].replace_all_uses_with(twin.inputs[index])  # type: ignore[arg-type]
    return _part(copy, list(copy.graph.inputs), list(copy.graph.outputs))


def _shrink(state: _State) -> None:
    """Make dims of weights and inputs smaller: all that have one size together, as they most often belong together."""
    sizes = sorted({dim for shape in _shapes(state.model) for dim in shape if dim > 1}, reverse=True)
    for size in sizes:
        any(
            state.offer(_resized(state.model, size, smaller, shapes_too))
            for smaller in _SMALLER
            if smaller < size
            for shapes_too in (True, False)
        )


def _shapes(model: onnx_ir.Model) -> Iterator[tuple[int, ...]]:
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        if value.shape is not None and value.shape.is_static():
            yield value.shape.numpy()


def _resized(model: onnx_ir.Model, size: int, smaller: int, shapes_too: bool) -> onnx_ir.Model | None:
    copy = model.clone()
    for value in copy.graph.inputs:
        if value.shape is not None:
            value.shape = onnx_ir.Shape([smaller if dim == size else dim for dim in value.shape])
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype == onnx_ir.DataType.STRING:
            continue
        array = tensor.numpy()
        cut = array[tuple(slice(smaller) if dim == size else slice(None) for dim in array.shape)]
        if shapes_too and array.dtype == np.int64 and array.ndim == 1:
            cut = np.where(cut == size, smaller, cut)
        if cut is not array:
            value.const_value = onnx_ir.tensor(np.ascontiguousarray(cut), dtype=tensor.dtype, name=value.name)
            value.shape = onnx_ir.Shape(cut.shape)
    for node in copy.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    return _part(copy, list(copy.graph.inputs), list(copy.graph.outputs))


def _constant_inputs(state: _State) -> None:
    """Make constants of the inputs, one after another, as long as one input is left."""
    for name in [value.name for value in state.model.graph.inputs]:
        if len(state.model.graph.inputs) > 1:
            state.offer(_with_constant(state.model, name or ""))


def _with_constant(model: onnx_ir.Model, name: str) -> onnx_ir.Model | None:
    if symbols(model):
        return None
    feed = draw_inputs(model, {})[name]
    copy = model.clone()
    value = next(value for value in copy.graph.inputs if value.name == name)
    copy.graph.inputs.remove(value)
    value.const_value = onnx_ir.tensor(feed, name=name)
    copy.graph.register_initializer(value)
    return copy


def _part(
    model: onnx_ir.Model, inputs: Sequence[onnx_ir.Value], outputs: Sequence[onnx_ir.Value]
) -> onnx_ir.Model | None:
    """The part of a model between these values, as a model of its own; None where it is not one."""
    facts = Facts(model)
    for value in (*inputs, *outputs):
        dtype, shape = facts.dtype(value), facts.shape(value)
        if dtype is None or shape is None:
            return None
        value.type = value.type or onnx_ir.TensorType(dtype)
        value.shape = onnx_ir.Shape([dim if isinstance(dim, int) else str(dim) for dim in shape])
    fed = [value for value in inputs if not value.is_initializer()]
    try:
        graph = extract(model.graph, list(dict.fromkeys(fed)), list(dict.fromkeys(outputs)))
    except ValueError:
        return None
    for value in list(graph.inputs):
        if not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)
    if len(graph) == 0:
        return None
    return onnx_ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
