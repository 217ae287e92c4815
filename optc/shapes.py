"""Sizes for symbolic dims as people write them: ``batch=8`` for a dim, ``x=1,3,224,224`` for a whole input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import onnx_ir

from optc.backends.base import ValueSpec
from optc.inputs import input_specs, symbols
from optc.ir.errors import UsageError


def dim_sizes(texts: Iterable[str], model: onnx_ir.Model) -> dict[str, int]:
    """Sizes by dim name, from texts such as ``batch=8`` and ``x=1,3,224,224``.

    Args:
        texts: The texts. A name is an input's or a dim's; an anonymous dim is called ``input[axis]``.
        model: The model whose dims they are.

    Raises:
        UsageError: A text is not well formed, names nothing, contradicts a fixed dim or another text.
    """
    inputs = {spec.name: spec for spec in input_specs(model)}
    known = symbols(model)
    sizes: dict[str, int] = {}

    def bind(name: str, size: int, text: str) -> None:
        if sizes.setdefault(name, size) != size:
            raise UsageError(f"--shape {text}: dim {name!r} is {sizes[name]} elsewhere")

    for text in texts:
        name, equals, right = text.rpartition("=")
        numbers = [part.strip() for part in right.split(",")]
        if not equals or not name or not all(number.isdecimal() for number in numbers):
            raise UsageError(f"--shape {text}: not NAME=SIZE or NAME=SIZE,SIZE,...", hint="as in --shape batch=8")
        given = [int(number) for number in numbers]
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


def _bind_input(spec: ValueSpec, given: Sequence[int], text: str, bind: Callable[[str, int, str], None]) -> None:
    if spec.shape is None or len(given) != len(spec.shape):
        raise UsageError(f"--shape {text}: that is {len(given)} sizes", hint=f"the model takes {spec}")
    for axis, (dim, size) in enumerate(zip(spec.shape, given, strict=True)):
        if isinstance(dim, int) and dim >= 0:
            if dim != size:
                raise UsageError(f"--shape {text}: dim {axis} is fixed at {dim}", hint=f"the model takes {spec}")
        else:
            bind(dim if isinstance(dim, str) else f"{spec.name}[{axis}]", size, text)
