"""Writing hooks: the functions by which a kernel reads and writes, as source that a person can read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optc.backends.triton.expressions import TYPES, Address, Expr, walk
from optc.backends.triton.layout import Atom, Index
from optc.ir.dims import Dim, divide_exact, equal

HEADER = '''"""Written by optc: what the kernel {kernel!r} reads and writes.

{about}
"""

import triton
import triton.language as tl

from optc.kernels import functions
'''


@dataclass(frozen=True)
class Argument:
    """One member of a kernel's ``args``: the address of a buffer, or the value of a dim.

    Attributes:
        buffer: The buffer; None for a number.
        memory: The type of the buffer's elements, or "i32".
        dim: The number's value; None for an address.
    """

    buffer: int | None
    memory: str
    dim: Dim | None = None


@dataclass(frozen=True, eq=False)
class Store:
    """One write of a value.

    Attributes:
        buffer: Where to.
        memory: The type of the buffer's elements.
        index: The position, in elements.
        value: What is written.
        hook: The hook that writes it; None for the kernel's only one that writes.
    """

    buffer: int
    memory: str
    index: Index
    value: Expr
    hook: str | None = None


class Arguments:
    """The members of ``args``, numbered as they are first used."""

    def __init__(self) -> None:
        self.members: list[Argument] = []

    def address(self, buffer: int, memory: str) -> int:
        """The place of a buffer's address."""
        return self._place(Argument(buffer, memory))

    def dim(self, dim: Dim) -> int:
        """The place of a number."""
        return self._place(Argument(None, "i32", dim))

    def _place(self, argument: Argument) -> int:
        if argument not in self.members:
            self.members.append(argument)
        return self.members.index(argument)


class Hook:
    """One function under construction.

    Args:
        name: Its name.
        variables: The indices that the kernel calls it with, in order.
        extents: The number of values of each.
        arguments: The kernel's ``args``, shared by its hooks.
        value: Whether the kernel hands a value over.
    """

    def __init__(
        self, name: str, variables: Sequence[str], extents: Mapping[str, Dim], arguments: Arguments, value: bool
    ) -> None:
        self.name, self.variables, self.extents, self.arguments = name, tuple(variables), extents, arguments
        self.parameters = ("args", *variables, *(("value",) if value else ()), "mask")
        self.lines: list[str] = []
        self._names: dict[Expr, str] = {}
        self._masks: set[str] = set()
        self._taken: set[str] = set()

    def source(self) -> str:
        """The function."""
        body = self.lines or ["pass"]
        signature = ", ".join(self.parameters)
        return "\n".join(["@triton.jit", f"def {self.name}({signature}):", *(f"    {line}" for line in body), ""])

    def returns(self, expr: Expr) -> None:
        """Let the function return a value of the shape of all its indices, 0 outside of their extents."""
        text = self.value(expr)
        if expr.op == "load" and set(self.variables) <= variables_of(expr):
            self.lines.append(f"return {text}")
            return
        zeros = " + ".join(f"{name} * 0" for name in self.variables)
        self.lines.append(f"return tl.where(mask, {text}, ({zeros}).to({TYPES[expr.kind]}))")

    def store(self, store: Store) -> None:
        """Let the function write a value."""
        value = self.value(store.value)
        pointer = self._pointer(store.buffer, store.memory)
        position = self.index(store.index)
        for variable in self.variables:
            if variable not in store.index.variables():
                position += f" + {variable} * 0"  # an address for every element, also where they are the same
        kind = TYPES[store.memory]
        self.lines.append(f"tl.store({pointer} + ({position}), {self._as(value, store.value, kind)}, mask=mask)")

    def value(self, root: Expr) -> str:
        """The name, or the text, of an expression's value."""
        for node in walk([root]):
            if node not in self._names:
                self._names[node] = self._write(node)
        return self._names[root]

    def index(self, index: Index) -> str:
        """The text of an index."""
        parts = [self._scaled(count, self._atom(atom)) for count, atom in index.terms]
        if not parts or not equal(index.constant, 0):
            parts.append(self.dim(index.constant))
        return " + ".join(parts)

    def dim(self, dim: Dim) -> str:
        """The text of a number that may differ from run to run."""
        if isinstance(dim, int):
            return str(dim)
        factor = math.gcd(*(count for _, count in dim.terms))
        rest = divide_exact(dim, factor)
        if factor > 1 and rest is not None:  # written out: the compiler sees what addresses are multiples of
            return f"({self.dim(rest)} * {factor})"
        place = self.arguments.dim(dim)
        return self._taken_out(f"d{place}", place)

    # inside -------------------------------------------------------------------------------------------------------

    def _write(self, node: Expr) -> str:
        if node.op == "anchor":
            return "value"
        if node.op == "number":
            return _literal(node.data)
        if node.op == "index":
            return f"({self.index(node.data)})"
        if node.op == "dim":
            return self.dim(node.data)
        if node.op == "load":
            text = self._load(node)
        else:
            text = node.op
            for place, argument in enumerate(node.args):
                if argument.op == "number":  # a literal has no methods
                    text = text.replace(f"{{{place}}}.to(", f"tl.cast({self._names[argument]}, ")
                text = text.replace(f"{{{place}}}", self._names[argument])
        name = f"x{len(self._names)}"
        self.lines.append(f"{name} = {text}")
        return name

    def _load(self, node: Expr) -> str:
        where: Address = node.data
        position = self.index(where.index)
        indirect = node.args[: len(where.strides)]
        for argument, stride in zip(indirect, where.strides, strict=True):
            position += f" + {self._scaled(stride, self._names[argument])}"
        needed = [name for name in self.variables if name in variables_of(node)]
        conditions = ["mask"] if needed == list(self.variables) else [self._mask(name) for name in needed]
        if where.guarded:
            conditions.append(self._names[node.args[-1]])
        masked = f", mask={' & '.join(conditions)}, other={'0.0' if _is_float(where.memory) else '0'}"
        pointer = self._pointer(where.buffer, where.memory)
        text = f"tl.load({pointer} + ({position}){masked if conditions else ''})"
        return f"{text} != 0" if node.kind == "i1" else text if node.kind == where.memory else self._cast(text, node)

    def _cast(self, text: str, node: Expr) -> str:
        return f"{text}.to({TYPES[node.kind]})"

    def _mask(self, variable: str) -> str:
        name = f"in_{variable}"
        if name not in self._masks:
            self._masks.add(name)
            self.lines.append(f"{name} = {variable} < {self.dim(self.extents[variable])}")
        return name

    def _pointer(self, buffer: int, memory: str) -> str:
        place = self.arguments.address(buffer, memory)
        return self._taken_out(f"p{place}", place)

    def _taken_out(self, name: str, place: int) -> str:
        if name not in self._taken:
            self._taken.add(name)
            self.lines.append(f"{name} = args[{place}]")
        return name

    def _atom(self, atom: Atom) -> str:
        text = atom.base if isinstance(atom.base, str) else f"({self.index(atom.base)})"
        if not equal(atom.divisor, 1):
            text = f"({text} // {self.dim(atom.divisor)})"
        if not atom.top:
            text = f"({text} % {self.dim(atom.size)})"
        return text

    def _scaled(self, count: Dim, text: str) -> str:
        return text if equal(count, 1) else f"{text} * {self.dim(count)}"

    def _as(self, text: str, expr: Expr, kind: str) -> str:
        if expr.op == "number":
            return text
        return text if TYPES.get(expr.kind) == kind else f"{text}.to({kind})"


def variables_of(root: Expr) -> frozenset[str]:
    """The loop variables that an expression depends on, besides those of the anchor's result."""
    found: frozenset[str] = frozenset()
    for node in walk([root]):
        if node.op == "index":
            found |= node.data.variables()
        elif node.op == "load":
            found |= node.data.index.variables()
    return found


def depends_on_anchor(root: Expr) -> bool:
    """Whether an expression needs what the kernel computes."""
    return any(node.op == "anchor" for node in walk([root]))


def _is_float(memory: str) -> bool:
    return "fp" in memory or memory == "bf16"


def _literal(value: float | bool) -> str:
    if isinstance(value, float):
        text = repr(value)
        return f'float("{text}")' if text in ("inf", "-inf", "nan") else text
    return repr(value)
