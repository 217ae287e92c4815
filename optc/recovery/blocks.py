"""Cutting a compressed model into blocks that learn one after the other.

What learned weights move flows through few values at some places: one, or two where a norm is fused with the sum before
it. Where each of these has its counterpart in the original, the model can be cut: the block before learns to give the
original's values, from what the compressed model itself feeds it (asymmetric reconstruction, as in Nagel et al.,
"Up or Down? Adaptive Rounding for Post-Training Quantization", 2020, and Li et al., "BRECQ", 2021).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir

from optc.ir.facts import Facts
from optc.ir.rewriter import reads
from optc.recovery.places import Parameter

#: Operators that tell of a tensor's shape only, which no weight moves.
_SHAPES = frozenset({"Shape", "Size"})
#: As many values may pass a cut.
WIDEST_CUT = 2
#: Products of matrices, by which blocks are measured.
_PRODUCTS = frozenset(
    {
        *("Conv", "ConvTranspose", "FusedConv", "QLinearConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"),
        *("MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger", "Attention"),
    }
)
#: A block of more products is cut where two values pass, too; these halves have at least so many.
_LARGE, _SMALLEST_HALF = 8, 2


@dataclass(frozen=True)
class Cut:
    """A place between two nodes of the graph.

    Attributes:
        place: The index of the node after it.
        values: What learned weights move and nodes behind it read.
    """

    place: int
    values: tuple[onnx_ir.Value, ...]


@dataclass(frozen=True)
class Block:
    """A piece of a model that learns as one.

    Attributes:
        name: What reports call it: its last value.
        nodes: All nodes of the graph in it, in order.
        targets: Its values to be as in the original: those at its end, and outputs of the model in it.
    """

    name: str
    nodes: tuple[onnx_ir.Node, ...]
    targets: tuple[onnx_ir.Value, ...]


def moved(nodes: Iterable[onnx_ir.Node], parameters: Iterable[Parameter], facts: Facts) -> set[onnx_ir.Value]:
    """What numbers of these nodes change where the parameters do; what is discrete does not count."""
    learned = {parameter.value for parameter in parameters}
    found: set[onnx_ir.Value] = set()
    for node in nodes:
        if node.op_type not in _SHAPES and any(value in found or value in learned for value in reads(node)):
            found.update(value for value in node.outputs if value.name and _carries(facts.dtype(value)))
    return found


def _carries(dtype: onnx_ir.DataType | None) -> bool:
    """Whether numbers of a type move with what they are made of: floats, and codes of a quantized graph."""
    if dtype is None or dtype.is_floating_point() or dtype == onnx_ir.DataType.INT32:
        return True
    return dtype.is_integer() and dtype.bitwidth <= 8 and dtype != onnx_ir.DataType.BOOL


def of_constants(graph: onnx_ir.Graph, facts: Facts) -> set[onnx_ir.Node]:
    """The nodes that make something of constants alone: weights of their codes, say."""
    found: set[onnx_ir.Node] = set()
    for node in graph:
        if all(facts.is_const(value) or value.producer() in found for value in reads(node) if value is not None):
            found.add(node)
    return found


def products(graph: onnx_ir.Graph, facts: Facts) -> set[onnx_ir.Node]:
    """The products with a weight."""
    early = of_constants(graph, facts)
    return {
        node
        for node in graph
        if node.op_type in _PRODUCTS
        and any(facts.is_const(value) or value.producer() in early for value in node.inputs if value is not None)
    }


def in_order(graph: onnx_ir.Graph, facts: Facts) -> list[onnx_ir.Node]:
    """The nodes of a graph, those that make something of constants alone where it is read."""
    early = of_constants(graph, facts)
    found: dict[onnx_ir.Node, None] = {}

    def place(node: onnx_ir.Node) -> None:
        for value in reads(node):
            producer = None if value is None else value.producer()
            if producer in early and producer not in found:
                place(producer)
        found[node] = None

    for node in graph:
        if node not in early:
            place(node)
    return list(found)


def cuts(nodes: Sequence[onnx_ir.Node], moving: Collection[onnx_ir.Value], facts: Facts) -> list[Cut]:
    """The places where at most :data:`WIDEST_CUT` moving values pass, all of them floats."""
    last: dict[onnx_ir.Value, int] = {}
    for index, node in enumerate(nodes):
        for value in reads(node):
            if value is not None and value in moving:
                last[value] = index
    found, alive = [], dict[onnx_ir.Value, None]()
    for index, node in enumerate(nodes):
        for value in [value for value in alive if last[value] <= index]:
            del alive[value]
        alive.update((value, None) for value in node.outputs if last.get(value, index) > index)
        if 0 < len(alive) <= WIDEST_CUT and all(_is_float(facts.dtype(value)) for value in alive):
            found.append(Cut(index + 1, tuple(alive)))
    return found


def _is_float(dtype: onnx_ir.DataType | None) -> bool:
    return dtype is not None and dtype.is_floating_point()


def divide(
    nodes: Sequence[onnx_ir.Node],
    places: Sequence[Cut],
    weighted: Collection[onnx_ir.Node],
    matched: Collection[onnx_ir.Value],
) -> list[Block]:
    """The blocks between cuts.

    Args:
        nodes: The graph's nodes in order.
        places: Where it may be cut.
        weighted: Products with a weight; a block has one, and what has none joins the next.
        matched: Values that have their counterpart in the original; a cut needs all of its values in it.
    """
    weight = [node in weighted for node in nodes]
    usable = [cut for cut in places if all(value in matched for value in cut.values)]
    narrow = [cut for cut in usable if len(cut.values) == 1]
    chosen: list[Cut] = []
    start, used = 0, set[onnx_ir.Value]()
    for cut, following in zip([*narrow, None], [*narrow[1:], None, None], strict=False):
        end = len(nodes) if cut is None else cut.place
        # The last of several cuts between two products, so that a block has its activation and its sum in it.
        if cut is not None and not any(weight[end : len(nodes) if following is None else following.place]):
            continue
        if sum(weight[start:end]) > _LARGE:
            inside = [one for one in usable if start < one.place < end]
            for one in inside:
                if min(sum(weight[start : one.place]), sum(weight[one.place : end])) >= _SMALLEST_HALF:
                    chosen.append(one)
                    start = one.place
        if cut is not None and any(weight[start:end]):
            chosen.append(cut)
            start = end
    blocks, start = [], 0
    for cut in [*chosen, None]:
        end = len(nodes) if cut is None else cut.place
        piece = tuple(nodes[start:end])
        ends = () if cut is None else tuple(value for value in cut.values if value not in used)
        outputs = [value for node in piece for value in node.outputs if value.is_graph_output() and value in matched]
        targets = tuple(dict.fromkeys((*ends, *outputs)))
        used.update(targets)
        start = end
        if targets:
            blocks.append(Block(targets[-1].name or "", piece, targets))
    return blocks


def program(
    block: Sequence[onnx_ir.Node],
    targets: Sequence[onnx_ir.Value],
    parameters: Sequence[Parameter],
    broken: Mapping[onnx_ir.Node, str],
    facts: Facts,
) -> tuple[list[onnx_ir.Node], list[Parameter]]:
    """The nodes to run in order to learn, and what can be learned by them.

    A parameter learns if its readers all lie in the block, something of the targets depends on it, and no node between
    is broken. What does not depend on such a parameter is not run, as its values stay what they are.

    Args:
        block: Nodes in order.
        targets: What is to be right.
        parameters: What may be learned.
        broken: Nodes that no gradient can be sent through, with the reason.
        facts: Of the model.
    """
    inside, floats = set(block), set(targets)
    needed: set[onnx_ir.Node] = set()
    for node in reversed(block):
        if any(value in floats for value in node.outputs):
            needed.add(node)
            floats.update(value for value in reads(node) if value is not None)
    # Backwards from broken nodes: whatever feeds one of them would move it.
    spoiled: set[onnx_ir.Node] = set()
    feeds: set[onnx_ir.Value] = set()
    for node in reversed(block):
        bad = node in broken and node in needed
        if bad or any(value in feeds and _carries(facts.dtype(value)) for value in node.outputs):
            spoiled.add(node)
            if node.op_type not in _SHAPES:
                feeds.update(value for value in reads(node) if value is not None)
    learned = [
        parameter
        for parameter in parameters
        if all(node in inside and node not in spoiled for node in parameter.readers)
        and any(node in needed for node in parameter.readers)
    ]
    moving = moved(block, learned, facts)
    return [node for node in block if node in needed and any(value in moving for value in node.outputs)], learned
