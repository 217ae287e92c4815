"""The guard of fusions: a clean-up must not make one impossible.

Before the clean-up, and before each of its passes that may take a pattern apart, what the fusing pass would find is
noted, by matching alone. When it has run, each of those finds is looked for in what it made. One whose nodes are still
there, several of them and none inside of a fused op, was lost on the way. Then the clean-up is run again on a copy with
one of its rewrites kept away from those nodes; one that brings the fusion back, and leaves fewer nodes than before, is
not made. What is gone altogether (dead, merged with its equal, folded) is no loss, nor is what became one node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir

from optc.ir.functions import FUSED_DOMAIN
from optc.ir.journal import Application
from optc.ir.rewriter import sources
from optc.passes.base import Find, Pass, PassContext, all_graphs
from optc.passes.veto import Veto

#: Pipelines that are run to find out what lost a fusion; the search ends with them.
_TRIALS = 8


@dataclass(frozen=True)
class Trial:
    """What a pipeline with vetoes came to: the finds that it loses, and the nodes that it leaves."""

    lost: frozenset[Find]
    nodes: int


@dataclass
class Watch:
    """The finds of one fusing pass on its way through the clean-up."""

    fuse: Pass
    finds: dict[tuple[str, frozenset[str]], Find] = field(default_factory=dict)
    _seen: tuple[object, int] | None = None

    def look(self, ctx: PassContext) -> None:
        """Note what would be found now, if anything has changed since the last time."""
        now = (ctx.rewriter, ctx.rewriter.changes)
        if now != self._seen:
            self._seen = now
            for find in self.fuse.finds(ctx):
                self.finds.setdefault((find.op, find.root), find)

    def lost(self, model: onnx_ir.Model) -> frozenset[Find]:
        """The finds whose nodes are still there after the fusing pass, and in no fused op."""
        fused: set[str] = set()
        left: dict[str, list[onnx_ir.Node]] = {}
        for node in (node for graph in all_graphs(model) for node in graph):
            if node.domain == FUSED_DOMAIN:
                fused.update(sources(node))
            elif node.op_type != "Constant":
                for name in sources(node):
                    left.setdefault(name, []).append(node)
        return frozenset(
            find
            for find in self.finds.values()
            if not find.root & fused
            and any(name in left for name in find.root)
            and len({node for name in find.parts for node in left.get(name, ())}) > 1
        )


def vetoes_for(
    trial: Callable[[Sequence[Veto]], Trial], first: Trial, applications: Sequence[Application]
) -> tuple[Veto, ...]:
    """What must not be done for the lost fusions to come back; nothing where none of a few trials helps.

    Args:
        trial: Runs the pipeline on a copy with vetoes.
        first: What it came to without any.
        applications: The rewrites that were made then, before the fusing pass.
    """
    vetoes: tuple[Veto, ...] = ()
    best, left = first, _TRIALS
    for op in dict.fromkeys(sorted(find.op for find in first.lost)):
        names = frozenset(name for find in first.lost if find.op == op for name in find.parts)
        for candidate in _candidates(applications, names):
            if not any(find.op == op for find in best.lost):
                break
            if not left:
                return vetoes
            left -= 1
            outcome = trial((*vetoes, *candidate))
            if outcome.nodes < best.nodes and len(outcome.lost) < len(best.lost):
                best, vetoes = outcome, (*vetoes, *candidate)
    return vetoes


def _candidates(applications: Sequence[Application], names: frozenset[str]) -> Iterator[tuple[Veto, ...]]:
    """Vetoes, the smallest first: one rule at the nodes of the fusion, all of them, a pass."""
    near = [one for one in reversed(applications) if names.intersection(one.sources)]
    rules = dict.fromkeys((one.step, one.rule) for one in near if one.rule != _pass_name(one.step))
    vetoes = [Veto(step, rule, names) for step, rule in rules]
    yield from ((veto,) for veto in vetoes)
    if len(vetoes) > 1:
        yield tuple(vetoes)
    whole = dict.fromkeys(one.step for one in reversed(applications) if one.rule == _pass_name(one.step))
    yield from ((Veto(step),) for step in whole)


def _pass_name(step: str) -> str:
    return step.partition("{")[0]


__all__ = ["Trial", "Watch", "vetoes_for"]
