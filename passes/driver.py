"""Applying rules until none fires: a worklist over the graph, fed by the rewriter's events, bounded per rule."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir

from optc.ir.journal import LimitReached
from optc.ir.matcher import Miss
from optc.ir.names import join_op, label
from optc.ir.rewriter import sources
from optc.passes.base import PassContext, RuleRecord, all_graphs
from optc.passes.rule import Rule

#: Applications of one rule per node of the graph it started on (plus a constant); more means that rules fight.
_CAP_PER_NODE, _CAP_BASE = 8, 64
#: Near misses kept per rule.
_MISSES_KEPT = 12


class _Worklist:
    """Nodes to look at, each at most once; a listener of the rewriter."""

    def __init__(self, nodes: Iterable[onnx_ir.Node]) -> None:
        self._queue = deque(nodes)
        self._queued = set(self._queue)

    def push(self, node: onnx_ir.Node) -> None:
        if node.graph is not None and node not in self._queued:
            self._queue.append(node)
            self._queued.add(node)

    def pop(self) -> onnx_ir.Node | None:
        while self._queue:
            node = self._queue.popleft()
            self._queued.discard(node)
            if node.graph is not None:
                return node
        return None

    def changed(self, node: onnx_ir.Node) -> None:
        self.push(node)
        self._push_users(node)

    def _push_users(self, node: onnx_ir.Node) -> None:
        for value in node.outputs:
            for use in value.uses():
                self.push(use.node)


def apply_rules(ctx: PassContext, rules: Sequence[Rule]) -> int:
    """Apply rules everywhere, in the main graph and in sub-graphs, until none fires.

    Rules are tried at a node in the order given; nodes are visited in topological order, then as changes happen.
    A rule that reaches its bound is switched off, and a remark names it together with the rules that fired last.

    Returns:
        How many times a rule fired.
    """
    index: dict[tuple[str, str], list[Rule]] = {}
    for rule in rules:
        begins_at = tuple(join_op(*root) for root in sorted(rule.roots))
        ctx.rules.setdefault(rule.name, RuleRecord(getattr(rule, "op", ""), begins_at))
        for root in sorted(rule.roots):
            index.setdefault(root, []).append(rule)
    nodes = [node for graph in all_graphs(ctx.model) for node in graph]
    cap = _CAP_BASE + _CAP_PER_NODE * len(nodes)
    worklist = _Worklist(node for node in nodes if (node.domain, node.op_type) in index)
    fired: dict[str, int] = {}
    off: set[str] = set()
    recent: deque[str] = deque(maxlen=8)
    misses: dict[tuple[str, onnx_ir.Node], Miss] = {}
    journal = ctx.rewriter.journal
    ctx.rewriter.listeners.append(worklist)
    try:
        while (node := worklist.pop()) is not None:
            journal.begin()  # at the end of a replay not even a rule that only looks is run any more
            for rule in index.get((node.domain, node.op_type), ()):
                if rule.name in off or ctx.is_vetoed(rule.name, node):
                    continue
                ctx.rules[rule.name].tried += 1
                numbered = len(journal.applications)
                try:
                    outcome = rule.apply(ctx.rewriter, node)
                except LimitReached:
                    raise
                except Exception as error:
                    error.add_note(f"(rule {rule.name} at {label(node)})")
                    if len(journal.applications) == numbered:  # so that whoever looks for what failed finds it there
                        journal.end(rule.name, sources(node), sources(node))
                    raise
                if isinstance(outcome, Miss):
                    misses[rule.name, node] = outcome
                elif outcome:
                    misses.pop((rule.name, node), None)
                    fired[rule.name] = fired.get(rule.name, 0) + 1
                    recent.append(rule.name)
                    ctx.hit(rule.name, place=sources(node))
                    if fired[rule.name] >= cap:
                        off.add(rule.name)
                        fighting = ", ".join(dict.fromkeys(recent))
                        ctx.remark(
                            "skipped", rule.name, f"stopped after {cap} applications; rules that fired last: {fighting}"
                        )
                    worklist.push(node)
                    break
    finally:
        ctx.rewriter.listeners.remove(worklist)
    _keep_misses(ctx, rules, misses)
    return sum(fired.values())


def _keep_misses(ctx: PassContext, rules: Sequence[Rule], misses: Mapping[tuple[str, onnx_ir.Node], Miss]) -> None:
    """Keep the nearest misses; they stand for what the rules said of the graph before.

    One of a fusion at a node that has gone since is kept too, unless the rule came near again where the node was: what
    another rule made of a part of its pattern does not fuse any more. Whether it fused after all is seen at the end.
    """
    found: dict[str, list[Miss]] = {rule.name: [] for rule in rules}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for (name, node), miss in sorted(misses.items(), key=lambda item: item[0][1].graph is None):
        miss.sources, miss.anchor = sources(node), node
        if node.graph is None and (not ctx.rules[name].makes or (name, miss.sources) in seen or not miss.telling):
            continue
        seen.add((name, miss.sources))
        found[name].append(miss)
    for name, kept in found.items():
        kept.sort(key=lambda miss: (-miss.nearness, -miss.matched))
        ctx.misses[name] = kept[:_MISSES_KEPT]
