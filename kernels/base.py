"""What a kernel declares about itself, and what a kernel becomes for one use: a :class:`Specialization`.

A kernel is a ``@triton.jit`` function that iterates and accumulates; it never touches memory itself. What it reads and
writes is done by *hooks*, ``@triton.jit`` functions handed in as constexprs, so that any prologue (casts, gathers,
another layout, a normalization) and any epilogue (bias, activation, residual, a second output) is compiled into it.

Parameters stand in this order::

    def kernel(args, <sizes>, <hooks>, <constants>)

* ``args``: one tuple of pointers and 32-bit integers that the hooks alone look into.
* sizes: the extents of the iteration space. Each is a literal where it is the same in every run, else an ``i32``.
* hooks: called as ``HOOK(args, <index tensors>, mask)``, where index tensors broadcast against each other.
* constants: tile sizes (powers of two), flags and numbers that are fixed when the kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optc.ir.dims import evaluate, parse, symbols

#: Types that may stand in ``args`` and in signatures. 16-bit and boolean scalars changed their representation between
#: versions of Triton, so scalars are 32- or 64-bit integers and 32-bit floats only.
POINTERS = frozenset(
    f"*{name}"
    for name in ("i1", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "fp16", "bf16", "fp32", "fp64", "fp8e4nv")
)
SCALARS = frozenset({"i32", "i64", "fp32"})


@dataclass(frozen=True)
class Kernel:
    """A kernel as its module declares it.

    Attributes:
        name: What plans and reports call it.
        function: The ``@triton.jit`` function.
        grid: Up to three expressions over sizes and constants, in the syntax of :func:`optc.ir.dims.parse`
            (``ceildiv``, ``max``, ``//``, ...): the number of programs along each axis.
        sizes: Names of the parameters that are extents.
        hooks: Names of the parameters that are functions -> the indices that each is called with.
        constants: Names of the other compile-time parameters -> their defaults; None where the user must say.
        reference: The same computation in NumPy, on arrays.
    """

    name: str
    function: Any
    grid: tuple[str, ...]
    sizes: tuple[str, ...]
    hooks: Mapping[str, tuple[str, ...]]
    constants: Mapping[str, Any] = field(default_factory=dict)
    reference: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        declared = ["args", *self.sizes, *self.hooks, *self.constants]
        found = list(self.function.arg_names)
        if declared != found:
            raise TypeError(f"kernel {self.name!r} declares {declared}, but its function takes {found}")
        unknown = {s for text in self.grid for s in symbols(parse(text))} - {*self.sizes, *self.constants}
        if unknown or not 1 <= len(self.grid) <= 3:
            raise TypeError(f"the grid of kernel {self.name!r} is not over its sizes and constants: {unknown}")


@dataclass(frozen=True)
class Specialization:
    """A kernel with everything fixed that the compiler needs to know.

    Attributes:
        kernel: The kernel.
        args: Triton types of the members of ``args``, in order ("*fp16", "i32", ...). Pointers are 16-byte aligned.
        sizes: Per size its value, or None where it is a run-time argument.
        hooks: Per hook the ``@triton.jit`` function.
        constants: Values of constants; those left out have their defaults.
        num_warps: Warps per program.
        num_stages: Depth of the software pipeline.
    """

    kernel: Kernel
    args: tuple[str, ...]
    sizes: Mapping[str, int | None]
    hooks: Mapping[str, Any]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2

    def __post_init__(self) -> None:
        for kind, given, wanted in (
            ("sizes", set(self.sizes), set(self.kernel.sizes)),
            ("hooks", set(self.hooks), set(self.kernel.hooks)),
            (
                "constants",
                set(self.constants) | {k for k, v in self.kernel.constants.items() if v is not None},
                set(self.kernel.constants),
            ),
        ):
            if given != wanted:
                raise TypeError(f"{self.kernel.name}: {kind} are {sorted(wanted)}, not {sorted(given)}")
        for kind in self.args:
            if kind not in POINTERS | SCALARS:
                raise TypeError(f"{self.kernel.name}: an argument cannot be of type {kind!r}")

    @property
    def values(self) -> dict[str, Any]:
        """All constants, defaults included."""
        return {**self.kernel.constants, **self.constants}

    @property
    def runtime_sizes(self) -> tuple[str, ...]:
        """The sizes that are arguments, in order; they follow ``args`` in the parameter list."""
        return tuple(name for name in self.kernel.sizes if self.sizes[name] is None)

    def signature(self) -> dict[str, Any]:
        """The type of every parameter, as Triton's compiler takes it."""
        types: dict[str, Any] = dict.fromkeys(self.kernel.function.arg_names, "constexpr")
        return {**types, "args": tuple(self.args), **dict.fromkeys(self.runtime_sizes, "i32")}

    def constexprs(self) -> dict[str, Any]:
        """The value of every compile-time parameter."""
        static = {name: value for name, value in self.sizes.items() if value is not None}
        return {**static, **self.hooks, **self.values}

    def parameters(self) -> tuple[str, ...]:
        """What the compiled function takes: the types of ``args``, of the run-time sizes, and two scratch pointers."""
        return (*self.args, *("i32" for _ in self.runtime_sizes), "*scratch", "*scratch")

    def grid(self, sizes: Mapping[str, int] | None = None) -> tuple[int, int, int]:
        """The number of programs along each axis.

        Args:
            sizes: Values of the run-time sizes.
        """
        return evaluate_grid(self.kernel.grid, {**self.values, **self.sizes, **(sizes or {})})


def evaluate_grid(grid: Sequence[str], values: Mapping[str, Any]) -> tuple[int, int, int]:
    """The value of a grid's expressions; axes that are left out are 1."""
    known = {name: value for name, value in values.items() if isinstance(value, int)}
    x, y, z = (*(evaluate(parse(text), known) for text in grid), 1, 1)[:3]
    return x, y, z
