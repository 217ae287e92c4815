"""Running kernels on the CPU, on NumPy memory, through the interpreter that Triton brings.

Triton decides when a function is decorated whether it will be compiled or interpreted. Here both are wanted in one
process, so interpreted twins of functions are made when they are needed: their source is rewritten as Triton's
interpreter does it, and they live in a copy of their module's names in which other kernels are twins as well.

What differs from a GPU: programs run one after the other, and shared memory, alignment, races and the rounding inside
of tensor cores are not modelled. Arithmetic in bfloat16 is done in float32 and rounded (Triton 3.9 computes on the bit
patterns, triton-lang/triton#4972).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter as backend
from triton.runtime.jit import JITFunction

from optc.kernels.base import Specialization, evaluate_grid

_BF16 = tl.bfloat16
#: Modules of Triton whose own functions are written in Triton.
_LIBRARY: tuple[ModuleType, ...] = (tl, tl.standard, tl.math, tl.core)


class Interpreter:
    """Runs launches; make it with :func:`interpreter`, which puts Triton back as it was afterwards."""

    def __init__(self) -> None:
        self._twins: dict[
            Callable[..., Any], Callable[..., Any]
        ] = {}  # by the plain function: hashing the other parses it

    def launch(
        self,
        spec: Specialization,
        args: Sequence[int],
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        """Run one kernel over its whole grid.

        Args:
            spec: The kernel; its hooks are the functions that a compiler would be given.
            args: The members of the kernel's ``args``: addresses for pointers, integers for scalars.
            sizes: The values of the run-time sizes.
        """
        given = dict(sizes or {})
        members = tuple(_argument(kind, value) for kind, value in zip(spec.args, args, strict=True))
        values: dict[str, Any] = {"args": members, **spec.constexprs()}
        values.update({name: _argument("i32", given[name]) for name in spec.runtime_sizes})
        values.update({name: self.twin(hook) for name, hook in spec.hooks.items()})
        function = self.twin(spec.kernel.function)
        grid = evaluate_grid(spec.kernel.grid, {**spec.values, **spec.sizes, **given})
        builder = backend.interpreter_builder
        builder.set_grid_dim(*grid)
        for z, y, x in np.ndindex(grid[::-1]):
            builder.set_grid_idx(int(x), int(y), int(z))
            function(**values)

    def twin(self, function: JITFunction) -> Callable[..., Any]:
        """The interpreted form of a function."""
        found = self._twins.get(function.fn)
        if found is None:
            names = _Names(self, function.fn.__globals__)
            names.update(interpreter_semantic=backend.interpreter_semantic)
            names.update(_InterpreterComparison=backend._InterpreterComparison)
            self._twins[function.fn] = found = _rewritten(function.fn, names)
        return found


class _Names(dict[str, Any]):
    """A module's names, in which kernels are replaced by their twins."""

    def __init__(self, owner: Interpreter, names: Mapping[str, Any]) -> None:
        super().__init__()
        for name, value in names.items():
            self[name] = _twinned(owner, value)


def _twinned(owner: Interpreter, value: Any) -> Any:
    """A value as interpreted code sees it: kernels as twins, and modules that hold some as such. Triton's own are not
    touched here; they are patched in place."""
    if isinstance(value, JITFunction):
        return _Lazy(owner, value)
    if isinstance(value, ModuleType) and not value.__name__.startswith("triton"):
        return _Module(owner, value)
    return value


class _Module:
    """A module whose kernels are twins."""

    def __init__(self, owner: Interpreter, module: ModuleType) -> None:
        self._owner, self._module = owner, module

    def __getattr__(self, name: str) -> Any:
        return _twinned(self._owner, getattr(self._module, name))


class _Lazy:
    """A kernel that is rewritten when it is first called."""

    def __init__(self, owner: Interpreter, function: JITFunction) -> None:
        self.owner, self.function = owner, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.owner.twin(self.function)(*args, **kwargs)


@contextlib.contextmanager
def interpreter() -> Iterator[Interpreter]:
    """Triton's language in its interpreted meaning, for this process, until the end of the block."""
    scope = backend._LangPatchScope()
    owner = Interpreter()
    with triton.knobs.runtime.scope(), np.errstate(all="ignore"):  # lanes outside of a mask may hold anything
        triton.knobs.runtime.interpret = True
        try:
            _patch_language(scope)
            _patch_library(scope, owner)
            _patch_arithmetic(scope)
            _patch_reduction(scope)
            yield owner
        finally:
            scope.restore()


def _argument(kind: str, value: int) -> tl.tensor:
    """A kernel argument: an address or a number."""
    if kind.startswith("*"):
        pointer = tl.pointer_type(tl.str_to_ty(kind[1:], None))
        return tl.tensor(backend.TensorHandle(np.array([value], np.uint64), pointer), pointer)
    dtype = {"i32": tl.int32, "i64": tl.int64, "fp32": tl.float32}[kind]
    return tl.tensor(backend.TensorHandle(np.array([value], backend._get_np_dtype(dtype)), dtype), dtype)


def _rewritten(function: Callable[..., Any], names: dict[str, Any]) -> Callable[..., Any]:
    """The function with assignments that make tensors, as Triton's interpreter wants them."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    definition.returns = None
    for argument in (*definition.args.args, *definition.args.kwonlyargs):
        argument.annotation = None
    tree = ast.fix_missing_locations(backend.ASTTransformer().visit(tree))
    space: dict[str, Any] = {}
    exec(compile(tree, inspect.getfile(function), "exec"), names, space)
    made: Callable[..., Any] = space[definition.name]
    return made


def _patch_language(scope: Any) -> None:
    """Builtins compute at once, on NumPy arrays."""
    builder = backend.interpreter_builder
    for module in (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base):
        backend._patch_builtin(module, builder, scope)
    backend._patch_lang_tensor(tl.tensor, scope)
    for module in (tl, tl.core):
        backend._patch_lang_core(module, scope)


def _patch_library(scope: Any, owner: Interpreter) -> None:
    """Triton's own functions (``tl.sum``, ``tl.cdiv``, ...) become twins, in place: they are looked up by attribute."""
    for module in _LIBRARY:
        scope.set_attr(module, "interpreter_semantic", backend.interpreter_semantic)
    plain = {member.fn for module in _LIBRARY for member in vars(module).values() if isinstance(member, JITFunction)}
    twins = {function: _rewritten(function, function.__globals__) for function in plain}
    for place in (*_LIBRARY, tl.tensor):
        for name, member in list(vars(place).items()):
            if isinstance(member, JITFunction) and member.fn in twins:
                scope.set_attr(place, name, twins[member.fn])


def _patch_arithmetic(scope: Any) -> None:
    """bfloat16 by way of float32; everything else as it is."""
    builder = backend.interpreter_builder
    cast, binary, unary, dot = builder.cast_impl, builder.binary_op, builder.unary_op, builder.create_dot
    handle = backend.TensorHandle

    def wide(value: Any) -> Any:
        if value.dtype.scalar != _BF16:
            return value
        return handle(np.asarray(value.data, np.uint16).view(ml_dtypes.bfloat16).astype(np.float32), tl.float32)

    def narrow(value: Any) -> Any:
        data = np.asarray(value.data, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
        return handle(data, _BF16)

    def cast_impl(source: Any, to: Any) -> Any:
        if source.dtype.scalar == _BF16 or to.scalar == _BF16:
            source = wide(source)
            return narrow(cast(source, tl.float32)) if to.scalar == _BF16 else cast(source, to)
        return cast(source, to)

    def binary_op(left: Any, right: Any, op: Any) -> Any:
        if left.dtype.scalar != _BF16:
            result = binary(left, right, op)
            # Triton gives comparisons the type of what is compared, and so what is broadcast from them.
            return handle(result.data, tl.int1) if result.data.dtype == np.bool_ else result
        data = op(wide(left).data, wide(right).data)
        return handle(data, tl.int1) if data.dtype == np.bool_ else narrow(handle(data, tl.float32))

    def unary_op(value: Any, op: Any) -> Any:
        return unary(value, op) if value.dtype.scalar != _BF16 else narrow(unary(wide(value), op))

    def create_dot(a: Any, b: Any, *rest: Any) -> Any:
        return dot(wide(a), wide(b), *rest)

    def fp_to_fp(source: Any, to: Any, rounding: Any) -> Any:
        if _BF16 in (source.dtype.scalar, to.scalar):
            return cast_impl(source, to)
        return original_fp_to_fp(source, to, rounding)

    original_fp_to_fp = builder.create_fp_to_fp
    # Checks of every addition for overflow, which nobody reads here, take most of the time.
    scope.set_attr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
    for name, function in (
        ("cast_impl", cast_impl),
        ("binary_op", binary_op),
        ("unary_op", unary_op),
        ("create_dot", create_dot),
        ("create_fp_to_fp", fp_to_fp),
    ):
        scope.set_attr(builder, name, function)


def _patch_reduction(scope: Any) -> None:
    """Reductions with a function of one's own: by halves, on whole arrays, instead of element by element."""

    def reduce(self: Any, input: tuple[tl.tensor, ...]) -> tuple[tl.tensor, ...]:
        axis = self.axis
        data = [x.handle.data if axis is not None else x.handle.data.reshape(-1) for x in input]
        while data[0].shape[axis or 0] > 1:
            halves = [np.split(x, 2, axis or 0) for x in data]
            low, high = ([self.to_tensor(h[i], x.dtype) for h, x in zip(halves, input, strict=True)] for i in (0, 1))
            found = self.combine_fn(*low, *high)
            data = [x.handle.data for x in (found if isinstance(found, tuple) else (found,))]
        if self.keep_dims:
            data = [x.reshape([1] * input[0].handle.data.ndim) if axis is None else x for x in data]
        else:
            data = [np.squeeze(x, axis or 0) for x in data]
        return tuple(self.to_tensor(x, i.dtype) for x, i in zip(data, input, strict=True))

    scope.set_attr(backend.ReduceOps, "generic_reduce", reduce)
