"""Fused attention: one kernel, without the matrix of scores in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir

from optc.backends.triton.expressions import TYPES, Expr
from optc.backends.triton.groups import Coordinates, Group, Value
from optc.backends.triton.hooks import Store
from optc.backends.triton.layout import Index, flat, variable
from optc.backends.triton.lower import Lowering, Rule, Unsupported
from optc.ir.dims import Dim, equal, product
from optc.ir.functions import FUSED_DOMAIN
from optc.ir.ops import int_attr
from optc.kernels.splits import attention_splits

#: Scores below this are hidden, whatever they were; sums of larger ones stay finite.
_HIDES = -1e30
_PLAIN_INPUTS = 4


def takes(node: onnx_ir.Node) -> bool:
    """Whether a fused attention is one that the rule knows: keys and values come whole, without a past apart."""
    return (
        node.domain == FUSED_DOMAIN
        and node.op_type == "Attention"
        and len(node.outputs) == 1
        and all(value is None for value in node.inputs[_PLAIN_INPUTS:])
    )


class _Heads:
    """Queries, keys or values, which come as heads (B, N, S, H) or with the heads in the last axis (B, S, N * H).

    With ``prologue`` what nobody else reads is computed where it is loaded: queries are read once per tile, keys and
    values once for every tile of queries.
    """

    def __init__(self, lowering: Lowering, x: Value, heads: int, prologue: bool = False) -> None:
        self.lowering, self.x, self.heads = lowering, x, heads
        if len(x.shape) == 4:
            self.batch, _, self.length, size = x.shape
        elif len(x.shape) == 3:
            self.batch, self.length, width = x.shape
            size = width // heads
        else:
            raise Unsupported(f"operands of {len(x.shape)} dims are not supported")
        if not isinstance(size, int):
            raise Unsupported("the size of a head is not known")
        self.size = size
        if not prologue or x.compute is None:
            lowering.stored(x)

    def read(self, b: Index, head: Index, place: Index, d: Index) -> Expr:
        """An element, as it lies in memory."""
        if len(self.x.shape) == 4:
            coordinates: Coordinates = (b, head, place, d)
        else:
            coordinates = (b, place, flat((head, d), (self.heads, self.size)))
        x, builder = self.x, self.lowering.builder
        if x.view is not None:
            return builder.load(x.view, x.memory, x.memory, coordinates)
        return builder.pool.make(f"{{0}}.to({TYPES[x.memory]})", (builder.element(x, coordinates),), x.memory)


@dataclass(frozen=True)
class _Scores:
    """What becomes of the products of queries and keys.

    Attributes:
        scale: They are multiplied with it.
        softcap: Their bound; 0 for none.
        bias: What is added at coordinates (batch, head, query, key); None for nothing.
        causal: Whether the last query sees all keys, and each one before it one key less.
    """

    scale: float
    softcap: float = 0.0
    bias: Callable[[Coordinates], Expr] | None = None
    causal: bool = False


def attention(lowering: Lowering, node: onnx_ir.Node) -> None:
    """softmax(scale * q k^T + mask) v; queries that see no key at all give 0."""
    heads = node.attributes["num_heads"].as_int()
    shared = int_attr(node, "kv_num_heads", heads)
    q = _Heads(lowering, lowering.needed(node, 0), heads, prologue=True)
    k = _Heads(lowering, lowering.needed(node, 1), shared)
    v = _Heads(lowering, lowering.needed(node, 2), shared)
    mask = lowering.operand(node, 3)
    shape = (q.batch, heads, q.length, k.length)

    def bias(coordinates: Coordinates) -> Expr:
        assert mask is not None
        return _bias(lowering, node, mask, coordinates, shape)

    scale = node.attributes["scale"].as_float()
    softcap = node.attributes["softcap"].as_float() if "softcap" in node.attributes else 0.0
    _attend(lowering, node, q, k, v, _Scores(scale, softcap, None if mask is None else bias))


def multi_head(lowering: Lowering, node: onnx_ir.Node) -> None:
    """ONNX Runtime's MultiHeadAttention, of which :mod:`.expansions` has left queries, keys, values and masks."""
    heads = int_attr(node, "num_heads", 1)
    packed = len(lowering.needed(node, 0).shape) != 3 or lowering.operand(node, 1) is None
    if packed or lowering.operand(node, 3) is not None or len(node.inputs) > 6:
        raise Unsupported("packed operands, and caches that are written in place, are not supported")
    q, k, v = (_Heads(lowering, lowering.needed(node, place), heads, prologue=place == 0) for place in range(3))
    padding, added = lowering.operand(node, 4), lowering.operand(node, 5)
    filling = node.attributes["mask_filter_value"].as_float() if "mask_filter_value" in node.attributes else -10000.0
    shape, pool = (q.batch, heads, q.length, k.length), lowering.pool
    if padding is not None:
        lowering.stored(padding)

    def bias(coordinates: Coordinates) -> Expr:
        total = None
        if padding is not None:
            there = _is_there(lowering, padding, coordinates, shape)
            total = pool.make("tl.where({0}, 0.0, {1})", (there, pool.number(filling, "fp32")), "fp32")
        if added is not None:
            element = _finite(lowering, added, coordinates, shape)
            total = element if total is None else pool.make("({0} + {1})", (total, element), "fp32")
        assert total is not None
        return total

    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else 0.0
    masked = padding is not None or added is not None
    causal = bool(int_attr(node, "unidirectional", 0))
    _attend(lowering, node, q, k, v, _Scores(scale or q.size**-0.5, 0.0, bias if masked else None, causal))


def _is_there(lowering: Lowering, padding: Value, coordinates: Coordinates, scores: tuple[Dim, ...]) -> Expr:
    """Whether a key is no padding, by a mask of (B, T) or (B, S, T), or by lengths (B,)."""
    b, _, m, n = coordinates
    if len(padding.shape) == 1 and equal(padding.shape[0], scores[0]):
        length = lowering.element(padding, (b,))
        return lowering.pool.make("({0} < {1})", (lowering.pool.index(n, length.kind), length), "i1")
    shapes = {2: (scores[0], scores[3]), 3: (scores[0], *scores[2:])}
    if len(padding.shape) not in shapes:
        raise Unsupported(f"a mask of shape ({', '.join(map(str, padding.shape))}) is not supported")
    at = (b, n) if len(padding.shape) == 2 else (b, m, n)
    element = lowering.element(padding, lowering.broadcast(padding, at, shapes[len(padding.shape)]))
    return lowering.pool.cast(element, "i1")


def _attend(lowering: Lowering, node: onnx_ir.Node, q: _Heads, k: _Heads, v: _Heads, scores: _Scores) -> None:
    """Define a node's result: the values, weighted by the scores."""
    output = node.outputs[0]
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    heads, shared = q.heads, k.heads
    if k.size != v.size:
        raise Unsupported("keys and values of different sizes are not supported")
    space: dict[str, Dim] = {"b": q.batch, "h": heads, "m": q.length, "d": v.size}
    inside: dict[str, Dim] = {"hk": shared, "n": k.length}
    b, h, m, d, hk, n = (variable(name, extent) for name, extent in {**space, **inside}.items())
    before = k.length - q.length if scores.causal else 0
    group = Group(
        "attention",
        space,
        {"QUERIES": q.length, "KEYS": k.length, "HEADS": heads, "BATCH": q.batch, "OFFSET": before},
        constants={
            "DIM": q.size,
            "V_DIM": v.size,
            "SCALE": scores.scale,
            "CAUSAL": scores.causal,
            "HAS_BIAS": scores.bias is not None,
            "SOFTCAP": scores.softcap,
            "GROUP": heads // shared,
            "BLOCK_D": _power(q.size),
            "BLOCK_V": _power(v.size),
        },
        results={"LOAD_Q": q.read(b, h, m, d), "LOAD_K": k.read(b, hk, n, d), "LOAD_V": v.read(b, hk, n, d)},
        reduced=inside,
        nodes=[node.name or output.name or ""],
    )
    nothing = lowering.pool.number(0.0, "fp32")
    group.results["LOAD_BIAS"] = nothing if scores.bias is None else scores.bias((b, h, m, n))
    lowering.builder.add(group)
    sizes = lowering.tuning.numbers({name: group.sizes[name] for name in ("QUERIES", "KEYS", "HEADS", "BATCH")})
    parts = 1 if sizes is None else attention_splits(sizes, heads // shared, lowering.tuning.targets)
    if parts > 1:
        group = _in_parts(lowering, group, parts)
    joined = flat((h, d), (heads, v.size))
    matrix = (flat((b, m), (q.batch, q.length)), joined)
    coordinates = {2: matrix, 3: (b, m, joined), 4: (b, h, m, d)}[len(shape)]
    expr = lowering.pool.make("anchor", (), "fp32", id(group))
    lowering.define(output, Value(shape, dtype, group=group, expr=expr, coordinates=coordinates))


def _in_parts(lowering: Lowering, group: Group, parts: int) -> Group:
    """Let programs share the keys of a head, and add a group that puts their parts together.

    Args:
        lowering: The lowering.
        group: The attention; it has been added, and nothing has joined it.
        parts: How many parts of the keys there are.

    Returns:
        The new group, which has the loop variables of the old one.
    """
    pool, builder = lowering.pool, lowering.builder
    whole = dict(group.space)
    split = {"b": whole["b"], "h": whole["h"], "split": parts, "m": whole["m"]}
    state = flat([variable(name, extent) for name, extent in split.items()], list(split.values()))
    partial = flat([state, variable("d", whole["d"])], [product(split.values()), whole["d"]])
    places = {"PARTIAL": partial, "TOP": state, "TOTAL": state}
    count = product(split.values())
    buffers = {name: builder.buffer(count * (whole["d"] if name == "PARTIAL" else 1), "fp32") for name in places}
    anchor = pool.make("anchor", (), "fp32", id(group))
    group.kernel, group.space = "attention_split", {**split, "d": whole["d"]}
    group.constants["SPLITS"] = parts
    group.stores = [Store(buffers[name], "fp32", place, anchor, f"STORE_{name}") for name, place in places.items()]
    return builder.add(
        Group(
            "attention_combine",
            whole,
            {name: group.sizes[name] for name in ("QUERIES", "HEADS", "BATCH")},
            {name: group.constants[name] for name in ("V_DIM", "BLOCK_V", "SPLITS")},
            {f"LOAD_{name}": builder.read(buffers[name], "fp32", place) for name, place in places.items()},
            {"split": parts},
            nodes=list(group.nodes),
        )
    )


def _bias(
    lowering: Lowering, node: onnx_ir.Node, mask: Value, coordinates: Coordinates, scores: tuple[Dim, ...]
) -> Expr:
    """What is added to a score."""
    if "fill" not in node.attributes:
        return _finite(lowering, mask, coordinates, scores)
    pool, fill = lowering.pool, node.attributes["fill"].as_float()
    element = _read_often(lowering, mask, coordinates, scores)
    hidden = pool.number(fill if fill == float("-inf") else max(fill, _HIDES), "fp32")
    nothing = pool.number(0.0, "fp32")
    choices = (hidden, nothing) if int_attr(node, "hidden", 0) else (nothing, hidden)
    return pool.make("tl.where({0}, {1}, {2})", (element, *choices), "fp32")


def _finite(lowering: Lowering, mask: Value, coordinates: Coordinates, scores: tuple[Dim, ...]) -> Expr:
    """A mask's element. Hiding numbers become one that cannot overflow with the score that it is added to."""
    code = f'tl.where({{0}} == float("-inf"), {{0}}, functions.maximum({{0}}, {_HIDES!r}))'
    element = _read_often(lowering, mask, coordinates, scores)
    return lowering.pool.make(code, (lowering.pool.cast(element, "fp32"),), "fp32")


def _read_often(lowering: Lowering, mask: Value, coordinates: Coordinates, scores: tuple[Dim, ...]) -> Expr:
    """A mask's element; it is read for every head."""
    if mask.view is None and mask.compute is not None:
        lowering.stored(mask)
    return lowering.element(mask, lowering.broadcast(mask, coordinates, scores))


def _power(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def rotary(lowering: Lowering, node: onnx_ir.Node) -> None:
    """Heads turned by the angles of their positions: x * cos + turned(x) * sin, where the halves of the last axis
    change places and the second one its sign (Su et al., 2021). Pointwise, but for where it reads."""
    x, output = lowering.readable(lowering.needed(node, 0)), node.outputs[0]
    cos, sin = (lowering.readable(lowering.needed(node, place)) for place in (2, 3))
    shape, dtype = lowering.shape(output), lowering.dtype(output)
    size = shape[-1]
    if not isinstance(size, int) or int_attr(node, "interleaved", 0):
        raise Unsupported("its pairs are not halves of a known size")
    pool, builder, half = lowering.pool, lowering.builder, size // 2

    def compute(coordinates: Coordinates, guard: Expr | None) -> Expr:
        *lead, d = coordinates
        partner = (d + half).split((2, size))[1]
        turned = builder.element(x, (*lead, partner), guard)
        turned = pool.make(f"tl.where({{0}} < {half}, -{{1}}, {{1}})", (pool.index(d), turned), x.register)
        tables = [builder.element(t, lowering.broadcast(t, coordinates, shape), guard) for t in (cos, sin)]
        operands = (builder.element(x, coordinates, guard), tables[0], turned, tables[1])
        return pool.make("({0} * {1} + {2} * {3})", operands, x.register)

    for table in (cos, sin):
        lowering.broadcast(table, tuple(Index() for _ in shape), shape)
    lowering.define(output, Value(shape, dtype, compute=compute, name=node.name or ""))


RULES: dict[str, Rule] = {
    f"{FUSED_DOMAIN}::Attention": attention,
    f"{FUSED_DOMAIN}::RotaryEmbedding": rotary,
    "com.microsoft::MultiHeadAttention": multi_head,
}
