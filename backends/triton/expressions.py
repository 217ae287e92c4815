"""What a kernel computes at each point of its loops: expressions over loads, the anchor's result and loop indices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir

from optc.backends.triton.layout import Index
from optc.backends.triton.plan import DECLARED
from optc.ir.dims import Dim

_T = onnx_ir.DataType
#: How elements lie in memory, by element type: the name in Triton.
MEMORY: Mapping[onnx_ir.DataType, str] = {onnx_ir.DataType[name]: kind for name, kind in DECLARED.items()}
#: How they are computed with: 16-bit floats in 32 bits, so that a chain of operators rounds once.
REGISTER: Mapping[onnx_ir.DataType, str] = {
    **MEMORY,
    _T.FLOAT16: "fp32",
    _T.BFLOAT16: "fp32",
    _T.BOOL: "i1",
}
#: Triton's objects for the names.
TYPES: Mapping[str, str] = {
    "fp32": "tl.float32",
    "fp16": "tl.float16",
    "bf16": "tl.bfloat16",
    "fp64": "tl.float64",
    "i64": "tl.int64",
    "i32": "tl.int32",
    "i16": "tl.int16",
    "i8": "tl.int8",
    "i1": "tl.int1",
    "u64": "tl.uint64",
    "u32": "tl.uint32",
    "u16": "tl.uint16",
    "u8": "tl.uint8",
}


@dataclass(frozen=True)
class Address:
    """Where a load reads.

    Attributes:
        buffer: The buffer.
        memory: The type of its elements.
        index: The position in elements, as far as it is known from the loops.
        strides: What each of the load's index operands is multiplied with and added.
        guarded: Whether the last operand is a condition under which alone something is read; elsewhere it is 0.
    """

    buffer: int
    memory: str
    index: Index
    strides: tuple[Dim, ...] = ()
    guarded: bool = False


@dataclass(frozen=True, eq=False)
class Expr:
    """A node of an expression; equal expressions of one :class:`Pool` are one object.

    Attributes:
        op: "load", "anchor" (what the kernel hands to the hook), "number", "index", "dim", or Triton code with
            ``{0}``, ``{1}`` ... for the operands.
        args: The operands.
        kind: The type that it is computed in.
        data: An Address, a number, an Index or a Dim, depending on ``op``.
    """

    op: str
    args: tuple[Expr, ...]
    kind: str
    data: Any = None


class Pool:
    """Makes expressions, each once."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Expr] = {}

    def make(self, op: str, args: Sequence[Expr], kind: str, data: Any = None) -> Expr:
        """The expression of these parts."""
        key = (op, tuple(map(id, args)), kind, repr(data) if op == "number" else data)
        found = self._made.get(key)
        if found is None:
            self._made[key] = found = Expr(op, tuple(args), kind, data)
        return found

    def number(self, value: float | bool, kind: str) -> Expr:
        """A literal."""
        return self.make("number", (), kind, value)

    def index(self, index: Index, kind: str = "i32") -> Expr:
        """The value of an index, as a number to compute with."""
        made = self.make("index", (), "i32", index)
        return made if kind == "i32" else self.cast(made, kind)

    def cast(self, x: Expr, kind: str) -> Expr:
        """``x`` in another type; to 16-bit floats it is rounded and comes back as 32-bit."""
        if kind in ("fp16", "bf16"):
            return self.make(f"{{0}}.to({TYPES[kind]}).to(tl.float32)", (self.cast(x, "fp32"),), "fp32")
        if x.kind == kind:
            return x
        if x.op == "number":
            return self.number(_converted(x.data, kind), kind)
        if kind == "i1":
            return self.make("({0} != 0)", (x,), "i1")
        return self.make(f"{{0}}.to({TYPES[kind]})", (x,), kind)


def _converted(value: Any, kind: str) -> Any:
    return bool(value) if kind == "i1" else float(value) if kind.startswith("fp") else int(value)


def walk(roots: Sequence[Expr]) -> Iterator[Expr]:
    """All parts of some expressions, each once, operands first."""
    seen: set[Expr] = set()
    for root in roots:
        stack = [(root, iter(root.args))]
        if root in seen:
            continue
        seen.add(root)
        while stack:
            node, rest = stack[-1]
            for child in rest:
                if child not in seen:
                    seen.add(child)
                    stack.append((child, iter(child.args)))
                    break
            else:
                stack.pop()
                yield node


def loads(roots: Sequence[Expr]) -> Iterator[Address]:
    """What some expressions read."""
    return (node.data for node in walk(roots) if node.op == "load")
