"""Which nodes of a graph compute in a narrower type: those that may, where the casts around them are worth it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import int_attr, is_op, operand
from optc.passes.precision.costs import Costs
from optc.passes.precision.cut import Cut
from optc.passes.precision.kinds import Kind, Row, is_product, row_of
from optc.passes.precision.narrow import Narrow
from optc.passes.precision.ranges import ENDLESS, Ranges
from optc.passes.precision.slots import Slots, Supports, slots_of

_FLOAT = onnx_ir.DataType.FLOAT
#: Why a node stays that could be narrow.
NOT_WORTH = "the casts around it would cost more than it gains (an estimate)"
_ROUNDED = "integers are made of it, and a rounding error can move them by one"
#: Operators that make whole numbers of what is computed before them.
_ROUNDING = frozenset({"Floor", "Ceil", "Round", "Mod"})
_COUNTED = "it holds integers that are not known to be small enough to be exact"


@dataclass(frozen=True)
class Plan:
    """What becomes narrow.

    Attributes:
        narrow: The type.
        slots: For every node that computes in it, the places that change.
        reasons: For every other node that has floats of single precision, why it stays.
        masking: Values whose very negative numbers may become the lowest of the type.
    """

    narrow: Narrow
    slots: Mapping[onnx_ir.Node, Slots]
    reasons: Mapping[onnx_ir.Node, str]
    masking: frozenset[onnx_ir.Value] = frozenset()

    def reads(self, node: onnx_ir.Node, place: int) -> bool:
        """Whether a node reads an input in the narrow type."""
        return node in self.slots and place in self.slots[node].inputs

    def makes(self, value: onnx_ir.Value) -> bool:
        """Whether a value is computed in the narrow type."""
        node = value.producer()
        return node is not None and node in self.slots and value.index() in self.slots[node].outputs


@dataclass
class Planner:
    """Plans for one graph.

    Attributes:
        graph: The main graph of a model.
        facts: What is known of it.
        ranges: Says what fits.
        costs: Says what pays.
        supports: Asks the target's runtime for kernels; None where only the standard is asked.
    """

    graph: onnx_ir.Graph
    facts: Facts
    ranges: Ranges
    costs: Costs
    supports: Supports | None = None
    _slots: dict[onnx_ir.Node, Slots] = field(default_factory=dict, init=False)
    _pinned: dict[onnx_ir.Node, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for node in self.graph:
            if not self._has_floats(node):
                continue
            row = row_of(node)
            slots: Slots | str = row.reason if row.kind is Kind.WIDE else ""
            if not slots:
                slots = slots_of(node, row, self.facts, self.ranges.narrow, self.supports)
            reason = slots if isinstance(slots, str) else self._problem(node, row, slots)
            if reason:
                self._pinned[node] = reason
            elif isinstance(slots, Slots) and (slots.inputs or slots.outputs):
                self._slots[node] = slots
        self._keep_exact()

    @property
    def candidates(self) -> Collection[onnx_ir.Node]:
        """The nodes that may become narrow."""
        return self._slots.keys()

    def plan(self, kept: Mapping[onnx_ir.Node, str] | None = None) -> Plan:
        """The cheapest plan.

        Args:
            kept: Further nodes that stay, each with the reason.
        """
        kept = kept or {}
        free = [node for node in self._slots if node not in kept]
        low = self._cheapest(free)
        # What only looks at a value (its shape, say) is not worth telling of.
        reasons = {node: kept.get(node, NOT_WORTH) for node, s in self._slots.items() if s.outputs and node not in low}
        reasons |= self._pinned
        ordered = {node: reasons[node] for node in self.graph if node in reasons}
        return Plan(
            self.ranges.narrow,
            {node: slots for node, slots in self._slots.items() if node in low},
            ordered,
            self.ranges.masking,
        )

    def _keep_exact(self) -> None:
        """Keep what computes positions and indices: what is rounded to integers, back to the last product."""
        pending = [node for node, reason in self._pinned.items() if reason == _ROUNDED or node.op_type in _ROUNDING]
        while pending:
            for value in pending.pop().inputs:
                node = value.producer() if value is not None else None
                if node in self._slots and not is_product(node) and self.facts.dtype(value) == _FLOAT:
                    del self._slots[node]
                    self._pinned[node] = _ROUNDED
                    pending.append(node)

    # -- what may be narrow -----------------------------------------------------------------------------------------

    def _has_floats(self, node: onnx_ir.Node) -> bool:
        return node.op_type != "Constant" and any(
            self.facts.dtype(value) == _FLOAT for value in (*node.inputs, *node.outputs)
        )

    def _problem(self, node: onnx_ir.Node, row: Row, slots: Slots) -> str | None:
        """Why a node must stay; None if nothing is known against it."""
        values = [node.inputs[index] for index in slots.inputs] + [node.outputs[index] for index in slots.outputs]
        present = [value for value in values if value is not None]
        for value in present:
            if _is_bound(node, value) and self.facts.is_const(value):
                continue  # what is beyond the type bounds nothing in it either
            problem = self.ranges.problem(value)
            if problem is not None:
                return problem
        if is_op(node, "Cast"):
            return self._cast_problem(node)
        if is_op(node, "ConstantOfShape"):
            return self._filled_problem(node)
        if row.kind is not Kind.CAREFUL:
            return None
        if row.away_from_zero is not None and self._normal_constant(operand(node, row.away_from_zero)):
            return None
        for value in present:
            if not self.ranges.fits(value):
                return f"{row.reason}; {self._unknown(value)}"
        if row.away_from_zero is not None:
            divisor = operand(node, row.away_from_zero)
            if divisor is None or not self.ranges.away_from_zero(divisor):
                return f"{row.reason}; {divisor.name if divisor else 'it'!r} is not known to stay away from zero"
        if row.up_to is not None and not all(self.ranges.within(value, row.up_to) for value in present):
            return f"{row.reason}; it is not known to stay below {row.up_to:g}"
        return None

    def _unknown(self, value: onnx_ir.Value) -> str:
        if self.ranges.real:
            return f"nothing was seen of {value.name!r}"
        return f"how large {value.name!r} becomes is not proven, and there is no calibration data"

    def _cast_problem(self, node: onnx_ir.Node) -> str | None:
        source, to = self.facts.dtype(node.inputs[0]), onnx_ir.DataType(int_attr(node, "to", 0))
        counts = self.ranges.narrow.integers
        if source == _FLOAT and to != _FLOAT and not to.is_floating_point() and to != onnx_ir.DataType.BOOL:
            return _ROUNDED
        if source != _FLOAT and to == _FLOAT and not (source is not None and source.is_floating_point()):
            return None if self.ranges.within(node.outputs[0], counts) else _COUNTED
        return None

    def _filled_problem(self, node: onnx_ir.Node) -> str | None:
        fill = float(node.attributes["value"].as_tensor().numpy().reshape(-1)[0]) if "value" in node.attributes else 0.0
        narrow = self.ranges.narrow
        if math.isinf(fill) or (fill < -ENDLESS and node.outputs[0] in self.ranges.masking):
            return None
        if abs(fill) > narrow.largest or 0 < abs(fill) < narrow.smallest:
            return f"it is filled with {fill:.3g}, which {narrow.name} has no number for"
        return None

    def _normal_constant(self, value: onnx_ir.Value | None) -> bool:
        array = self.facts.const(value)
        return array is not None and bool((abs(array) >= self.ranges.narrow.smallest).all())

    # -- what is worth it -------------------------------------------------------------------------------------------

    def _cheapest(self, free: Collection[onnx_ir.Node]) -> set[onnx_ir.Node]:
        """The nodes that are narrow in the division of least cost.

        A value is cast once, whoever reads it: so what a cast costs hangs on the value, not on its readers.
        """
        cut = Cut()
        things = {node: cut.thing(high=self.costs.gain(node, self._slots[node])) for node in free}
        for value in self._values():
            if self.facts.dtype(value) != _FLOAT:
                continue
            maker = value.producer()
            made = things.get(maker) if maker and value.index() in self._made_by(maker) else None
            uses = [(use.node, use.idx) for use in value.uses()]
            readers = {things[node] for node, place in uses if node in things and place in self._slots[node].inputs}
            wide = value.is_graph_output() or any(
                node not in things or place not in self._slots[node].inputs for node, place in uses
            )
            cost = self.costs.cast(value)
            if readers:
                up = cut.thing(low=0.0 if made is not None else cost)  # low as soon as any reader is
                for reader in readers:
                    cut.apart(reader, up, math.inf)
                if made is not None:
                    cut.apart(up, made, cost)
            if made is not None and (wide or readers):
                down = cut.thing(low=math.inf if wide else 0.0)  # high as soon as any reader is
                cut.apart(made, down, cost)
                for reader in readers:
                    cut.apart(down, reader, math.inf)
        low = cut.low()
        return {node for node, thing in things.items() if thing in low}

    def _made_by(self, node: onnx_ir.Node) -> tuple[int, ...]:
        return self._slots[node].outputs if node in self._slots else ()

    def _values(self) -> Iterator[onnx_ir.Value]:
        yield from self.graph.inputs
        for node in self.graph:
            yield from node.outputs


def _is_bound(node: onnx_ir.Node, value: onnx_ir.Value) -> bool:
    return is_op(node, "Clip") and value in node.inputs[1:]
