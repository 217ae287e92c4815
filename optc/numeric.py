"""How far two sets of outputs lie apart, and how far they may.

Two numbers decide per float output: the relative L2 error ``||a - b|| / ||b||``, which says how good the result is as
a whole, and the worst element against the size of a typical one, which catches a single wild element that drowns in
the norm of a big tensor. Both must hold. NaN and infinities must stand at the same places. Integers, booleans and
strings must be equal.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir

from optc.passes.base import Numerics

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Tolerance:
    """How far an output may lie from its reference.

    Attributes:
        rel_l2: Largest relative L2 error.
        element: Largest error of one element, relative to the sum of its own magnitude and the reference's root mean
            square.
        zero: Largest error of one element where the reference is 0 throughout, and relative errors mean nothing.
        integer_step: Largest difference of 8-bit integer outputs; 1 for graphs that quantize, where a rounding
            difference before a quantizer may move its result by one step.
        integer_share: Largest share of elements of integer, boolean and string outputs that may differ otherwise: an
            argmax may flip where two scores are as good as equal, if scores may move at all.
    """

    rel_l2: float
    element: float
    zero: float
    integer_step: int = 0
    integer_share: float = 0.0

    def wider(self, factor: float) -> Tolerance:
        """The same for floats that may lie so many times farther off."""
        return replace(self, rel_l2=self.rel_l2 * factor, element=self.element * factor, zero=self.zero * factor)


#: Largest relative L2 error by class of numerics and the coarsest float type that the model computes in.
#:
#: "Exact" cannot mean bit-equal: the same formula takes another kernel when a weight was folded or a layout changed,
#: and sums in another order. Between ONNX Runtime's own optimization levels, trained vision and language networks of
#: up to 24 layers move by 2 to 11 eps (3e-7 to 1.3e-6 in float32), so "exact" allows for 80. "Rounding" allows for ten
#: times more, for formulas that cancel differently; half types leave less room, as their eps is 1e-3 and 8e-3.
#: "Approximate" and "lossy" take the error budget's default.
_REL_L2: dict[Numerics, dict[onnx_ir.DataType, float]] = {
    Numerics.EXACT: {
        onnx_ir.DataType.DOUBLE: 1e-13,
        onnx_ir.DataType.FLOAT: 1e-5,
        onnx_ir.DataType.FLOAT16: 5e-3,
        onnx_ir.DataType.BFLOAT16: 3e-2,
    },
    Numerics.ROUNDING: {
        onnx_ir.DataType.DOUBLE: 1e-11,
        onnx_ir.DataType.FLOAT: 1e-4,
        onnx_ir.DataType.FLOAT16: 1e-2,
        onnx_ir.DataType.BFLOAT16: 4e-2,
    },
    Numerics.APPROXIMATE: dict.fromkeys(
        (onnx_ir.DataType.DOUBLE, onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16), 3e-2
    ),
    Numerics.LOSSY: dict.fromkeys(
        (onnx_ir.DataType.DOUBLE, onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16), 3e-2
    ),
}
#: The same in graphs that quantize: a difference in rounding in front of a quantizer moves an element by a whole step.
#: ONNX Runtime's own optimization levels move the outputs of 8-bit networks by 1e-3 (8 layers) to 1.3e-2 (ResNet-50).
_QUANTIZED_REL_L2 = 2e-2
_COARSENESS = (
    onnx_ir.DataType.DOUBLE,
    onnx_ir.DataType.FLOAT,
    onnx_ir.DataType.FLOAT16,
    onnx_ir.DataType.BFLOAT16,
)
#: One element may be this many times farther off than the norm as a whole: the largest of 1e9 normally distributed
#: errors lies at 6.1 sigma, and errors of real kernels have heavier tails.
_ELEMENT_FACTOR = 30.0


def tolerance(
    numerics: Numerics,
    dtype: onnx_ir.DataType = onnx_ir.DataType.FLOAT,
    *,
    quantized: bool = False,
    max_error: float | None = None,
) -> Tolerance:
    """The tolerance for a class of numerics.

    Args:
        numerics: What the passes that ran may do to the numbers.
        dtype: The coarsest float type that the model computes in, see :func:`coarsest_float`.
        quantized: Whether the graph quantizes, see :attr:`Tolerance.integer_step`.
        max_error: The user's error budget (relative L2), which replaces the default for approximate and lossy work.
    """
    rel_l2 = _REL_L2[numerics].get(dtype, _REL_L2[numerics][onnx_ir.DataType.BFLOAT16])
    if quantized and numerics >= Numerics.ROUNDING:
        rel_l2 = max(rel_l2, _QUANTIZED_REL_L2)
    moves = numerics >= Numerics.APPROXIMATE
    if moves and max_error is not None:
        rel_l2 = max_error
    return Tolerance(
        rel_l2,
        element=_ELEMENT_FACTOR * rel_l2,
        zero=0.1 * rel_l2,
        integer_step=1 if quantized else 0,
        integer_share=rel_l2 if moves else 0.0,
    )


def coarsest_float(model: onnx_ir.Model) -> onnx_ir.DataType:
    """The float type with the fewest significant bits among the values that the model computes; FLOAT by default."""
    found = {value.dtype for graph in model.graphs() for node in graph for value in node.outputs}
    found |= {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    # The types of inner values need not be known; that of a Cast is.
    casts = [node.attributes.get("to") for graph in model.graphs() for node in graph if node.op_type == "Cast"]
    found |= {onnx_ir.DataType(to.as_int()) for to in casts if to is not None and not to.is_ref()}
    return next((dtype for dtype in reversed(_COARSENESS) if dtype in found), onnx_ir.DataType.FLOAT)


def quantizes(model: onnx_ir.Model) -> bool:
    """Whether a model quantizes anything."""
    nodes = (node for graph in model.graphs() for node in graph)
    return any("Quantize" in node.op_type or node.op_type.startswith("QLinear") for node in nodes)


@dataclass(frozen=True)
class OutputDiff:
    """One output against its reference.

    Attributes:
        name: The output.
        rel_l2: Relative L2 error; for integers, booleans and strings the share of elements that differ; inf where no
            number can say it (another shape, NaN in one of the two only).
        max_abs: Largest absolute difference of finite elements.
        compared: How many finite elements, or elements of other kinds, were compared.
        problem: What is wrong; None if the output is within its tolerance.
    """

    name: str
    rel_l2: float = 0.0
    max_abs: float = 0.0
    compared: int = 0
    problem: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the output is within its tolerance."""
        return self.problem is None


@dataclass(frozen=True)
class Comparison:
    """All outputs against their references, at one input.

    Attributes:
        outputs: One entry per output, in order.
        incomparable: Outputs that depend on random numbers: only shape and type were compared.
    """

    outputs: tuple[OutputDiff, ...]
    incomparable: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every output is within its tolerance."""
        return all(output.ok for output in self.outputs)

    @property
    def compared(self) -> int:
        """How many elements were compared; 0 means that nothing was."""
        return sum(output.compared for output in self.outputs)

    @property
    def worst(self) -> OutputDiff | None:
        """The output that is farthest off; one that fails before one that does not."""
        return max(self.outputs, key=lambda output: (not output.ok, output.rel_l2), default=None)

    @property
    def worst_output(self) -> str | None:
        """The name of the output that is farthest off."""
        return self.worst.name if self.worst else None

    @property
    def rel_l2(self) -> float:
        """The largest relative L2 error of any output."""
        return max((output.rel_l2 for output in self.outputs), default=0.0)

    @property
    def max_abs(self) -> float:
        """The largest absolute difference of any output."""
        return max((output.max_abs for output in self.outputs), default=0.0)


def compare_outputs(
    reference: Mapping[str, Any],
    candidate: Mapping[str, Any],
    limits: Tolerance,
    incomparable: Collection[str] = (),
) -> Comparison:
    """Compare outputs by name.

    Args:
        reference: What is right: arrays, lists of arrays (sequences), lists of dicts (maps) or None (an absent
            optional) by name.
        candidate: What to judge.
        limits: How far it may lie off.
        incomparable: Outputs of which only shape and type are compared.
    """
    diffs = []
    for name, expected in reference.items():
        if name not in candidate:
            diffs.append(OutputDiff(name, math.inf, problem="the output is missing"))
        elif name in incomparable:
            diffs.append(OutputDiff(name, problem=_kind_problem(expected, candidate[name])))
        else:
            diffs.append(_compare(name, expected, candidate[name], limits))
    diffs += [
        OutputDiff(name, math.inf, problem="the reference has no such output")
        for name in candidate
        if name not in reference
    ]
    return Comparison(tuple(diffs), tuple(name for name in reference if name in incomparable))


def compare_arrays(reference: np.ndarray, candidate: np.ndarray, limits: Tolerance, name: str = "") -> OutputDiff:
    """Compare two tensors; see the module's docstring for how."""
    reference, candidate = np.asarray(reference), np.asarray(candidate)
    problem = _kind_problem(reference, candidate)
    if problem is not None:
        return OutputDiff(name, math.inf, math.inf, problem=problem)
    if reference.size == 0:
        return OutputDiff(name)
    if not _is_float(reference.dtype):
        return _compare_exact(reference, candidate, limits, name)
    if reference.dtype.kind == "c":
        reference, candidate = (np.stack([array.real, array.imag]) for array in (reference, candidate))
    return _compare_floats(reference.reshape(-1), candidate.reshape(-1), reference.shape, limits, name)


def _compare(name: str, reference: Any, candidate: Any, limits: Tolerance) -> OutputDiff:
    if isinstance(reference, (list, tuple)) and isinstance(candidate, (list, tuple)):
        if len(reference) != len(candidate):
            problem = f"a sequence of {len(candidate)} instead of {len(reference)}"
            return OutputDiff(name, math.inf, problem=problem)
        parts = [
            _compare(f"{name}[{i}]", a, b, limits) for i, (a, b) in enumerate(zip(reference, candidate, strict=True))
        ]
        return _merge(name, parts)
    if isinstance(reference, Mapping) and isinstance(candidate, Mapping):
        if list(reference) != list(candidate):
            return OutputDiff(name, math.inf, problem="a map with other keys")
        return compare_arrays(np.array(list(reference.values())), np.array(list(candidate.values())), limits, name)
    if reference is None or candidate is None:
        same = reference is candidate
        return OutputDiff(
            name, 0.0 if same else math.inf, compared=int(same), problem=None if same else "absent in one"
        )
    return compare_arrays(reference, candidate, limits, name)


def _merge(name: str, parts: Sequence[OutputDiff]) -> OutputDiff:
    if not parts:
        return OutputDiff(name)
    worst = max(parts, key=lambda part: (not part.ok, part.rel_l2))
    problem = None if worst.ok else f"{worst.name}: {worst.problem}"
    return replace(
        worst,
        name=name,
        problem=problem,
        max_abs=max(part.max_abs for part in parts),
        compared=sum(part.compared for part in parts),
    )


def _kind_problem(reference: Any, candidate: Any) -> str | None:
    """What is wrong with shape and type."""
    if not isinstance(reference, np.ndarray) or not isinstance(candidate, np.ndarray):
        return None if type(reference) is type(candidate) else "a value of another kind"
    if reference.dtype != candidate.dtype and not (_is_text(reference.dtype) and _is_text(candidate.dtype)):
        return f"the type is {candidate.dtype} instead of {reference.dtype}"
    if reference.shape != candidate.shape:
        return f"the shape is {list(candidate.shape)} instead of {list(reference.shape)}"
    return None


def _is_text(dtype: np.dtype) -> bool:
    return dtype.kind in "OSU"


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind in "fc" or "float" in dtype.name


def _compare_exact(reference: np.ndarray, candidate: np.ndarray, limits: Tolerance, name: str) -> OutputDiff:
    differ = reference != candidate
    max_abs = 0.0
    if not _is_text(reference.dtype) and reference.dtype.kind != "b" and differ.any():
        wide = [
            array[differ].astype(np.int64 if array.dtype.itemsize < 8 else object) for array in (reference, candidate)
        ]
        distance = np.abs(wide[0] - wide[1])
        max_abs = float(distance.max())
        if reference.dtype.itemsize == 1 and limits.integer_step:
            differ[differ] = (distance > limits.integer_step).astype(bool)
    share = float(np.count_nonzero(differ)) / reference.size
    problem = None
    if share > limits.integer_share:
        place = tuple(int(index) for index in np.argwhere(differ)[0])
        where = f" at {list(place)}" if place else ""
        got, expected = (array.item(*place) for array in (candidate, reference))
        problem = f"{share:.2%} of the elements differ, first{where}: {got!r} instead of {expected!r}"
    return OutputDiff(name, share, max_abs, reference.size, problem)


def _chunks(reference: np.ndarray, candidate: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    for start in range(0, reference.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        yield start, reference[part].astype(np.float64), candidate[part].astype(np.float64)


def _compare_floats(
    reference: np.ndarray, candidate: np.ndarray, shape: tuple[int, ...], limits: Tolerance, name: str
) -> OutputDiff:
    """Both flat. Everything is divided by the largest magnitude first: squares of 1e200 or 1e-200 stay finite."""
    largest, compared = 0.0, 0
    for start, a, b in _chunks(reference, candidate):
        finite = np.isfinite(a)
        odd = ~finite | ~np.isfinite(b)
        agree = (a == b) | (np.isnan(a) & np.isnan(b))
        if (odd & ~agree).any():
            at = int(np.argmax(odd & ~agree))
            place = _place(start + at, shape)
            return OutputDiff(name, math.inf, math.inf, problem=f"{b[at]:g} instead of {a[at]:g}{place}")
        compared += int(finite.sum())
        if finite.any():
            largest = max(largest, float(np.abs(a[finite]).max()), float(np.abs(b[finite]).max()))
    if not compared or largest == 0.0:
        return OutputDiff(name, compared=compared)

    # Subnormal numbers cannot be divided by themselves without loss; 1e-300 is small enough to square beside 1.
    scale = max(largest, 1e-290)
    norm = error = worst = 0.0
    for _, a, b in _chunks(reference, candidate):
        a, b = a[np.isfinite(a)] / scale, b[np.isfinite(a)] / scale
        difference = np.abs(a - b)
        norm += float(np.dot(a, a))
        error += float(np.dot(difference, difference))
        worst = max(worst, float(difference.max(initial=0.0)))
    max_abs = worst * scale
    if norm == 0.0:
        rel_l2 = math.inf if error else 0.0
        problem = None
        if max_abs > limits.zero:
            problem = f"the reference is 0 throughout, but one element is {max_abs:.3g} off"
        return OutputDiff(name, 0.0 if problem is None else rel_l2, max_abs, compared, problem)
    rel_l2 = math.sqrt(error / norm)
    problem = None
    if not rel_l2 <= limits.rel_l2:
        problem = f"the relative L2 error is {rel_l2:.3g}, more than {limits.rel_l2:.3g}"
    else:
        problem = _wild_element(reference, candidate, shape, scale, math.sqrt(norm / compared), limits)
    return OutputDiff(name, rel_l2, max_abs, compared, problem)


def _wild_element(
    reference: np.ndarray,
    candidate: np.ndarray,
    shape: tuple[int, ...],
    scale: float,
    rms: float,
    limits: Tolerance,
) -> str | None:
    for start, a, b in _chunks(reference, candidate):
        finite = np.isfinite(a)
        a, b = np.where(finite, a, 0.0) / scale, np.where(finite, b, 0.0) / scale
        wild = np.abs(a - b) > limits.element * (np.abs(a) + rms)
        if wild.any():
            at = int(np.argmax(wild))
            place = _place(start + at, shape)
            return f"one element is far off: {b[at] * scale:.6g} instead of {a[at] * scale:.6g}{place}"
    return None


def _place(flat: int, shape: tuple[int, ...]) -> str:
    return f" at {[int(index) for index in np.unravel_index(flat, shape)]}" if shape else ""
