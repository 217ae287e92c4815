"""Sizes for symbolic dims as people write them: ``batch=8`` for a dim, ``batch=1..8`` for a range of sizes, and
``x=1,3,224,224`` for a whole input; several with commas between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import onnx_ir

from optc.backends.base import ValueSpec
from optc.inputs import input_specs, symbols
from optc.ir.errors import UsageError
from optc.ir.sizes import Size, read_size, size_label

#: A comma behind a size, where another NAME= follows.
_NEXT = re.compile(r"(?<=[0-9\s]),(?=[^,=]*[^,=\s][^,=]*=)")


def dim_sizes(texts: Iterable[str], model: onnx_ir.Model) -> dict[str, int]:
    """One size for each dim; see :func:`dim_ranges`.

    Raises:
        UsageError: Also where a text gives a range.
    """
    found: dict[str, int] = {}
    for name, size in dim_ranges(texts, model).items():
        if isinstance(size, tuple):
            raise UsageError(f"--shape {name}={size_label(size)}: one size is needed here, not a range")
        found[name] = size
    return found


def dim_ranges(texts: Iterable[str], model: onnx_ir.Model) -> dict[str, Size]:
    """Sizes or ranges by dim name, from texts such as ``batch=8``, ``batch=1..8,seq=128`` and ``x=1,3,224,224``.

    Args:
        texts: The texts. A name is an input's or a dim's; an anonymous dim is called ``input[axis]``.
        model: The model whose dims they are.

    Raises:
        UsageError: A text is not well formed, names nothing, contradicts a fixed dim or another text.
    """
    inputs = {spec.name: spec for spec in input_specs(model)}
    known = symbols(model)
    sizes: dict[str, Size] = {}

    def bind(name: str, size: Size, text: str) -> None:
        if sizes.setdefault(name, size) != size:
            raise UsageError(f"--shape {text}: dim {name!r} is {size_label(sizes[name])} elsewhere")

    for text in _assignments(texts, {*inputs, *known}):
        name, equals, right = text.rpartition("=")
        if not equals or not name:
            raise UsageError(f"--shape {text}: not NAME=SIZE or NAME=SIZE,SIZE,...", hint="as in --shape batch=8")
        try:
            given = [read_size(part) for part in right.split(",")]
        except ValueError as error:
            raise UsageError(
                f"--shape {text}: not NAME=SIZE or NAME=SIZE,SIZE,...: {error}", hint="as in --shape batch=1..8,seq=128"
            ) from error
        if name in inputs and (len(given) > 1 or name not in known):
            _bind_input(inputs[name], given, text, bind)
        elif name in known and len(given) == 1:
            bind(name, given[0], text)
        else:
            raise UsageError(
                f"--shape {text}: the model has no {'input' if len(given) > 1 else 'symbolic dim or input'} {name!r}",
                hint=f"its inputs are {'; '.join(map(str, inputs.values())) or 'none'}",
            )
    return sizes


def _assignments(texts: Iterable[str], names: Collection[str]) -> Iterator[str]:
    """The single assignments in texts. Names may hold any characters, so what is a name as a whole is not split."""
    for text in texts:
        if text.rpartition("=")[0] in names:
            yield text
        else:
            yield from (part.strip() for part in _NEXT.split(text))


def _bind_input(spec: ValueSpec, given: Sequence[Size], text: str, bind: Callable[[str, Size, str], None]) -> None:
    if spec.shape is None or len(given) != len(spec.shape):
        raise UsageError(f"--shape {text}: that is {len(given)} sizes", hint=f"the model takes {spec}")
    for axis, (dim, size) in enumerate(zip(spec.shape, given, strict=True)):
        if isinstance(dim, int) and dim >= 0:
            if dim != size:
                raise UsageError(f"--shape {text}: dim {axis} is fixed at {dim}", hint=f"the model takes {spec}")
        else:
            bind(dim if isinstance(dim, str) else f"{spec.name}[{axis}]", size, text)
