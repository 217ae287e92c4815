"""A pass made of a GraphSurgeon script, for plugins whose authors have one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import onnx_graphsurgeon as gs
import onnx_ir

from optc.ir.errors import PassError
from optc.ir.rewriter import RULE_KEY, SOURCE_KEY, Rewriter, sources
from optc.ir.surgeon import fingerprint, from_gs, to_gs
from optc.passes.base import Numerics, Pass, PassContext

#: Changes the graph it is given, or returns another one.
Script = Callable[[gs.Graph], gs.Graph | None]


def script_pass(name: str, script: Script) -> type[Pass]:
    """The pass of a name that runs a script.

    Args:
        name: The pass's name.
        script: The script. Its attribute ``numerics``, if it has one, says how far it may move the numbers; by
            default no further than by rounding, so that one that does more is found out and rolled back.

    Raises:
        TypeError: What was given cannot be called.
    """
    if not callable(script):
        raise TypeError(f"{script!r} is not a function")

    def run(self: Pass, ctx: PassContext) -> None:
        _run(name, script, ctx)

    members: dict[str, Any] = {
        "name": name,
        "numerics": Numerics(getattr(script, "numerics", Numerics.ROUNDING)),
        "run": run,
        "__doc__": (script.__doc__ or "").strip() or f"GraphSurgeon script {getattr(script, '__name__', name)}.",
        "__module__": __name__,
    }
    return dataclasses.dataclass(frozen=True)(type(name, (Pass,), members))


def _run(name: str, script: Script, ctx: PassContext) -> None:
    graph = to_gs(ctx.model)
    before = fingerprint(graph)
    returned = script(graph)
    if returned is not None and not isinstance(returned, gs.Graph):
        raise PassError(f"the script returned a {type(returned).__name__}, neither a graph nor None")
    graph = graph if returned is None else returned
    if fingerprint(graph) == before:
        return
    model = from_gs(graph, ctx.model)
    _stamp(model, ctx.model, name)
    ctx.rewriter = Rewriter(model)
    ctx.hit(name)


def _stamp(model: onnx_ir.Model, before: onnx_ir.Model, name: str) -> None:
    """Say of every node that the script made which nodes it stands for: those that made its outputs before."""
    makers = {output.name: node for graph in _graphs(before) for node in graph for output in node.outputs}
    known = {(node.name, node.op_type) for node in makers.values()}
    for graph in _graphs(model):
        for node in graph:
            if RULE_KEY in node.metadata_props or (node.name and (node.name, node.op_type) in known):
                continue
            old = [makers[output.name] for output in node.outputs if output.name in makers]
            node.metadata_props[RULE_KEY] = name
            node.metadata_props[SOURCE_KEY] = ",".join(dict.fromkeys(s for maker in old for s in sources(maker)))


def _graphs(model: onnx_ir.Model) -> tuple[onnx_ir.Graph, ...]:
    return (model.graph, *model.graph.subgraphs())
