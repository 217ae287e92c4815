"""Whether a rewritten model computes what the given one does, on inputs of all kinds."""

from __future__ import annotations

import faulthandler
import functools
import math
import os
import random
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
import onnx.inliner
import onnx_ir
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_dequantize_linear import DequantizeLinear_19
from onnx.reference.ops.op_quantize_linear import QuantizeLinear_19

from optc.backends import ort_kernels
from optc.backends.ort import Optimization, Session
from optc.backends.ort_eval import Evaluator
from optc.ir.errors import OptcError
from optc.ir.functions import expanded
from optc.ir.model import load
from optc.ir.saving import to_proto
from optc.ir.targets import builtin_targets
from optc.ir.verify import Interface, verify_structure
from optc.numeric import coarsest_float, quantizes
from optc.passes.manager import PassManager
from optc.passes.pipeline import Pipeline

from .mutants import all_nodes, as_type, forget

#: Numbers up to this vanish beside the constants that they are added to: (x - 1) + 1 is nothing then, or x.
_VANISHING = 1e-12
#: Refusals of what the runtime's own optimizer wrote. From opset 21 on ONNX Runtime 1.31 writes a QuantizeLinear of
#: another type behind what moves dequantized int8; a compile tries the result and takes such a pass back.
_RUNTIME_FAULTS = ("does not match y_zero_point type",)
#: Relative L2 error allowed besides what the original itself is off, by type.
TOLERANCES = {"float32": 1e-5, "float64": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
_ROUNDING = 1e-5
#: About the smallest number of half precision.
_LEAST = 1e-7
#: How many times as far as the original from a computation in double precision the result may be.
_FACTOR = 4.0
#: Share of the largest number of a type from which on a sum on the way may overflow.
_FAR = 1e-4
#: Products with weights that are constants are packed, and then round differently from those with computed ones.
_UNPACKED = {"session.disable_prepacking": "1"}
_SERVICES = {"kernels": ort_kernels, "evaluator": Evaluator()}
_SIZES = (2, 3, 1, 5, 0)
#: Seconds after which a run on tiny inputs counts as failed.
_PATIENCE = 20
#: What reads a mask.
_MASKING = {"Add", "Where", "Unsqueeze", "Expand", "Cast"}

Feeds = Mapping[str, np.ndarray]
Outputs = Mapping[str, np.ndarray]


@dataclass
class Verdict:
    """What became of a mutant.

    Attributes:
        runs: Feeds on which both were compared.
        hits: Applications of rules.
    """

    runs: int = 0
    hits: dict[str, int] = field(default_factory=dict)


class Original:
    """A mutant as it is given: what it computes, with every optimization of the runtime off.

    Raises:
        OptcError: The runtime does not take it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.session = Session(model, optimization="off", threads=1, config=_UNPACKED)
        self._exact: Session | None = None

    def run(self, feeds: Feeds) -> Outputs | None:
        """The outputs, or None if the model refuses these inputs."""
        if _has_empty(feeds) and not _survives(lambda: self.session.run(feeds) is not None):
            return None
        try:
            return self.session.run(feeds)
        except OptcError:
            return None

    def packed(self, feeds: Feeds) -> Outputs:
        """The outputs where the runtime packs weights, as it does unless it is told not to."""
        return Session(self.model, optimization="off", threads=1).run(feeds)

    def exact(self, feeds: Feeds) -> Outputs | None:
        """The outputs in double precision, or None where neither the runtime nor the reference can tell them."""
        wide_feeds = {n: _widened(array) for n, array in feeds.items()}
        try:
            if self._exact is None:
                self._exact = Session(self._wide, optimization="off", threads=1, config=_UNPACKED)
            return self._exact.run(wide_feeds)
        except OptcError:
            return _by_reference(self._wide, wide_feeds)

    @functools.cached_property
    def _wide(self) -> onnx.ModelProto:
        wide = onnx.ModelProto()
        wide.CopyFrom(self.model)
        for kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT):
            as_type(wide, TensorProto.DOUBLE, source=kind)
        forget(wide)
        return wide

    @functools.cached_property
    def refused_when_optimized(self) -> bool:
        """Whether the runtime's own optimizer spoils the original."""
        return not _succeeds(lambda: bool(Session(self.model, optimization="all", threads=1)))

    def stepwise(self, feeds: Feeds) -> Outputs | None:
        """The outputs with every value rounded to its type, which the runtime does not where its kernels are wider."""
        return _by_reference(self.model, feeds)

    def misjudged(self, feeds: Feeds, want: Outputs, tolerance: float) -> bool:
        """Whether the runtime's own optimizer changes what the original computes, or cannot cope with it."""

        def same() -> bool:
            got = Session(self.model, optimization="all", threads=1).run(feeds)
            return not any(_difference(got[name], want[name], tolerance) for name in want)

        return not (_survives(same) if _has_empty(feeds) else _succeeds(same))

    def normalizes_single_numbers(self, feeds: Feeds) -> bool:
        """Whether a normalization is over one number at these sizes, of which nothing but rounding is left.

        Without a scale and a bias of its own the kernel's errors happen to cancel there.
        """
        try:
            graph = self._sized(feeds).graph
        except Exception:
            return False
        shapes = {v.name: v.type.tensor_type.shape.dim for v in (*graph.value_info, *graph.input, *graph.output)}
        normalized = (shapes.get(node.input[0]) for node in graph.node if node.op_type == "InstanceNormalization")
        return any(dims and all(dim.dim_value == 1 for dim in list(dims)[2:]) for dims in normalized)

    def _sized(self, feeds: Feeds) -> onnx.ModelProto:
        """The model for inputs of these sizes, with all shapes that follow; raises where they do not fit together."""
        fixed = onnx.ModelProto()
        fixed.CopyFrom(self.model)
        for value in fixed.graph.input:
            if value.name in feeds:
                for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True):
                    dim.dim_value = size
        return onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)

    def legal(self, feeds: Feeds, want: Outputs) -> bool:
        """Whether the shapes of these inputs fit together; the runtime is not strict where it has nothing to do."""
        try:
            known = self._sized(feeds)
        except Exception:
            return False
        for value in known.graph.output:
            dims = value.type.tensor_type.shape.dim
            shape = getattr(want[value.name], "shape", ())
            if len(dims) == len(shape) and any(
                dim.HasField("dim_value") and dim.dim_value != size for dim, size in zip(dims, shape, strict=True)
            ):
                return False
        return _joins_fit(known.graph)

    @property
    def ops(self) -> set[str]:
        return {node.op_type for node in all_nodes(self.model.graph)}


def _joins_fit(graph: onnx.GraphProto) -> bool:
    """Whether what is joined is of one size along all other axes; the runtime leaves out what is empty, and a hole."""
    values = (*graph.value_info, *graph.input, *graph.output)
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    for node in graph.node:
        if node.op_type == "Concat":
            axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
            parts = [shapes[name] for name in node.input if name in shapes]
            others = {tuple(size for at, size in enumerate(p) if at != axis % len(p)) for p in parts if p}
            if len(others) > 1 and any(0 in part for part in parts):
                return False
    return True


#: Of older opsets the reference has no quantizers; these compute the same.
_OLD_QUANTIZERS: list[type[OpRun]] = [
    type(name, (base,), {"op_domain": "", "op_schema": onnx.defs.get_schema(name, 19)})
    for name, base in (("QuantizeLinear", QuantizeLinear_19), ("DequantizeLinear", DequantizeLinear_19))
]


class BiasGelu(OpRun):
    """The activation of ONNX Runtime, for the reference; the operator's name is that of the class."""

    op_domain = "com.microsoft"

    def _run(self, x: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray]:
        added = (x + bias).astype(np.float64)
        return ((added * (1 + np.vectorize(math.erf)(added / math.sqrt(2))) / 2).astype(x.dtype),)


def _by_reference(model: onnx.ModelProto, feeds: Feeds) -> Outputs | None:
    try:
        names = [value.name for value in model.graph.output]
        if model.functions:  # the reference does not take attributes of functions
            model = onnx.inliner.inline_local_functions(model)
        old = any(entry.domain == "" and entry.version < 19 for entry in model.opset_import)
        operators = [BiasGelu, *(_OLD_QUANTIZERS if old else ())]
        found = ReferenceEvaluator(model, new_ops=operators).run(names, dict(feeds))
    except Exception:  # not every operator has a reference
        return None
    same = all(isinstance(array, np.ndarray) for array in found)
    return dict(zip(names, found, strict=True)) if same else None


def _refuses(session: Session, feed: Feeds) -> str | None:
    """The error with which a model refuses inputs."""
    try:
        session.run(feed)
    except OptcError as error:
        return str(error)
    return None


def _is_runtime_fault(error: OptcError) -> bool:
    return any(text in str(error) for text in _RUNTIME_FAULTS)


def _has_empty(feeds: Feeds) -> bool:
    return any(not array.size for array in feeds.values())


def _succeeds(function: Callable[[], bool]) -> bool:
    try:
        return function()
    except OptcError:
        return False


def _survives(function: Callable[[], bool]) -> bool:
    """Whether a function returns true; in a process of its own, as kernels may die of empty tensors."""
    child = os.fork()
    if child == 0:
        done = False
        faulthandler.disable()  # a death here is an answer, not news
        signal.alarm(_PATIENCE)
        try:
            done = _succeeds(function)
        finally:
            os._exit(0 if done else 1)
    return os.waitpid(child, 0)[1] == 0


class Subject:
    """A model with inputs and what it makes of them, to judge rewritten models by.

    Args:
        model: The model.
        feeds: Inputs; those that it refuses are left out.

    Raises:
        OptcError: The runtime does not take the model, or optc does not.
    """

    def __init__(self, model: onnx.ModelProto, feeds: Sequence[Feeds]) -> None:
        self.original, self.given = Original(model), load(model)
        self.wanted = [(feed, want) for feed in feeds if (want := self.original.run(feed)) is not None]
        self._interface = Interface.of(self.given)
        # A model that computes in half precision on the way rounds to that, whatever its outputs are; and where the
        # runtime has wider kernels only, it rounds less where fewer nodes lie between.
        coarsest = coarsest_float(self.given).numpy().name
        # Its optimizer rounds the activations of products with quantized weights (MatMulNBits at accuracy level 4).
        self._rounded = 1e-2 if quantizes(self.given) else 0.0
        self._coarse = TOLERANCES[coarsest] if coarsest in ("float16", "bfloat16") else 0.0

    def check_interface(self, result: onnx_ir.Model) -> None:
        """Whether a rewritten model is well formed and takes and gives what the original does."""
        problems = verify_structure(result) or self._interface.differences(Interface.of(result))
        assert not problems, problems[0]

    def check(self, result: onnx_ir.Model, tolerance: float) -> None:
        """Compare a rewritten model, as it is given to the runtime and as the runtime optimizes it.

        Raises:
            AssertionError: It is wrong.
        """
        self.check_interface(result)
        after = to_proto(expanded(result))
        optimizations: tuple[Optimization, ...] = ("off", "all")
        for optimization in optimizations:
            # What the runtime's own optimizer does to the result moves it by rounding.
            allowed = tolerance if optimization == "off" else max(tolerance, _ROUNDING, self._rounded)
            allowed = max(allowed, self._coarse)
            try:
                config = _UNPACKED if optimization == "off" else None
                session = Session(after, optimization=optimization, threads=1, config=config)
            except OptcError as error:
                if optimization == "all" and (_is_runtime_fault(error) or self.original.refused_when_optimized):
                    return
                raise AssertionError(f"the runtime refuses the result ({optimization}): {error}") from error
            for feed, want in self.wanted:
                _compare(session, self.original, feed, want, optimization, allowed)


def judge(model: onnx.ModelProto, feeds: Sequence[Feeds], *stages: Pipeline, tolerance: float = 1e-5) -> Verdict:
    """Rewrite a model by pipelines one after another, and compare after each that changed something.

    Returns:
        What was compared: nothing, where the runtime does not take the model or these inputs.

    Raises:
        AssertionError: The result is wrong.
        OptcError: A pass failed.
    """
    try:
        subject = Subject(model, feeds)
    except OptcError:
        return Verdict()
    verdict = Verdict(len(subject.wanted))
    now = subject.given.clone()
    for pipeline in stages if subject.wanted else ():
        result = PassManager(builtin_targets()["cpu"], _SERVICES, strict=True).run(now, pipeline)
        now = result.model
        for record in result.records:
            for rule, count in record.hits.items():
                verdict.hits[rule] = verdict.hits.get(rule, 0) + count
        if any(record.changes for record in result.records):
            subject.check(now, tolerance)
        else:
            subject.check_interface(now)
    return verdict


def _compare(
    session: Session, original: Original, feed: Feeds, want: Outputs, optimization: Optimization, tolerance: float
) -> None:
    if _has_empty(feed) and any(getattr(value, "size", 1) for value in want.values()):
        return  # sums over nothing: several kernels write nothing then, and what stands in memory is not the same twice
    try:
        problem = _problem(session, original, feed, want, tolerance)
    except OptcError as error:
        problem = f"the result refuses inputs that the original takes: {error}"
    if problem is None:
        return
    if (optimization == "all" or _has_empty(feed)) and original.misjudged(feed, want, tolerance):
        return
    if not original.legal(feed, want):
        return
    inputs = {name: (array.shape, array.dtype.name) for name, array in feed.items()}
    raise AssertionError(f"{problem} (optimization {optimization}, inputs {inputs})")


def _problem(session: Session, original: Original, feed: Feeds, want: Outputs, tolerance: float) -> str | None:
    """What is wrong with the outputs for these inputs."""
    if _has_empty(feed):
        if not _survives(lambda: _refuses(session, feed) or True):
            return "the result crashes"
        # Fused kernels that say that they take no empty tensor are told of in docs/fusion.md.
        kernel = re.search(r"onnxruntime failed in (\w+)", _refuses(session, feed) or "")
        if kernel and kernel[1] not in original.ops:
            return None
    got = session.run(feed)
    assert list(got) == list(want)
    for name, expected in want.items():
        problem = _difference(got[name], expected, tolerance)
        if problem is None:
            continue
        if not tolerance and _difference(got[name], original.packed(feed)[name], 0.0) is None:
            continue  # constants are folded by the kernels of production, which pack the weights of products
        if not (tolerance and _is_rounding(original, feed, name, got[name], expected, tolerance)):
            return f"{name}: {problem}"
    return None


def _is_rounding(
    original: Original, feed: Feeds, name: str, got: np.ndarray, want: np.ndarray, tolerance: float
) -> bool:
    """Whether an output is no worse than the original's: by the truth, or by what rounding does to it."""
    if np.issubdtype(want.dtype, np.floating) and max(_largest(got), _largest(want)) <= _VANISHING:
        return True
    for run in (original.exact, lambda given: original.run(_shaken(given)), original.stepwise):
        other = run(feed)
        if other is not None and _no_worse(got, want, other[name], tolerance):
            return True
    return original.normalizes_single_numbers(feed)


def _largest(array: np.ndarray) -> float:
    return float(np.max(np.abs(array), initial=0))


def _difference(got: np.ndarray, want: np.ndarray, tolerance: float) -> str | None:
    """What is wrong with an output, or None."""
    if isinstance(want, list) or isinstance(got, list):
        return None if len(got) == len(want) and all(map(np.array_equal, got, want)) else "another sequence"
    if got.size == want.size == 0 and got.dtype == want.dtype:
        return None  # indices into something too small are no error where there are none of them
    if (got.shape, got.dtype) != (want.shape, want.dtype):
        return f"{got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    if np.array_equal(got, want, equal_nan=want.dtype.kind in "fV"):
        return None
    if want.dtype.kind not in "fV" or tolerance == 0:
        return f"{got} instead of {want}"
    a, b = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return f"{a[~finite][:4]} instead of {b[~finite][:4]}"
    if not np.isfinite(a[finite]).all():
        return f"{a[finite & ~np.isfinite(a)][:4]} where numbers are finite"
    with np.errstate(all="ignore"):
        error = np.linalg.norm(a[finite] - b[finite]) / np.linalg.norm(b[finite])
        # What half precision rounds to nothing need not be nothing where the runtime computes wider.
        if tolerance >= TOLERANCES["float16"] and np.abs(a[finite] - b[finite]).max(initial=0) < _LEAST:
            return None
    allowed = max(tolerance, TOLERANCES[want.dtype.name])
    return None if error <= allowed else f"relative L2 error {error:.2e} > {allowed:.0e}"


def _no_worse(got: np.ndarray, want: np.ndarray, exact: np.ndarray, tolerance: float) -> bool:
    """Whether the result is not much further from the truth than the original: then it is rounding that differs.

    Where the type of the model overflows on the way to a finite result, any result will do.
    """
    if got.shape != want.shape or got.dtype != want.dtype or got.dtype.kind not in "fV":
        return False
    a, b, c = (array.astype(np.float64) for array in (got, want, exact))
    with np.errstate(all="ignore"):
        far = np.isfinite(c) & ((np.abs(c) > ml_dtypes.finfo(want.dtype).max * _FAR) | ~np.isfinite(b))
        # Where the truth is not finite, a result that says so is right, even if the original does not.
        left = ~(far | (~np.isfinite(c) & ((a == c) | (np.isnan(a) & np.isnan(c)))))
        a, b, c = a[left], b[left], c[left]
        if not np.array_equal(a[~np.isfinite(b)], b[~np.isfinite(b)], equal_nan=True):
            return False
        a, b, c = (array[np.isfinite(b)] for array in (a, b, c))
        if not (np.isfinite(a).all() and np.isfinite(c).all()):
            return False
        allowed = max(tolerance, TOLERANCES[want.dtype.name])
        return bool(np.linalg.norm(a - c) <= _FACTOR * np.linalg.norm(b - c) + allowed * np.linalg.norm(c))


def _shaken(feeds: Feeds) -> dict[str, np.ndarray]:
    """The inputs with floats moved by about one rounding."""
    rng = np.random.default_rng(1)
    moved = {}
    for name, array in feeds.items():
        if array.dtype.name in TOLERANCES:
            step = float(ml_dtypes.finfo(array.dtype).eps)
            array = (array.astype(np.float64) * (1 + step * rng.choice([-1, 1], array.shape))).astype(array.dtype)
        moved[name] = array
    return moved


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.name in TOLERANCES else array


# inputs -----------------------------------------------------------------------------------------------------------


def draw_feeds(
    model: onnx.ModelProto, chance: random.Random, constants: Mapping[str, np.ndarray], count: int = 3
) -> list[Feeds]:
    """Inputs for a model: sizes for its symbolic dims, and numbers of all kinds.

    Args:
        model: The model.
        chance: Where they come from.
        constants: What inputs that were constants held.
        count: How many sets of inputs.
    """
    # One draw for all of it: the contents are not what a failing example should be told by.
    rng = np.random.default_rng(chance.getrandbits(32))
    return [_feed(model, rng, constants, plain=index == 0) for index in range(count)]


def _feed(model: onnx.ModelProto, rng: np.random.Generator, constants: Mapping[str, np.ndarray], plain: bool) -> Feeds:
    known = {tensor.name for tensor in model.graph.initializer}
    sizes: dict[str, int] = {}
    feeds = {}
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for value in model.graph.input:
        if value.name in known:
            continue
        kind = value.type.tensor_type
        shape = [
            max(dim.dim_value, 0) or _size(dim.dim_param or f"{value.name}{i}", sizes, rng, plain)
            for i, dim in enumerate(kind.shape.dim)
        ]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        held = constants.get(value.name)
        if held is not None and list(held.shape) == shape and rng.random() < 0.7:
            feeds[value.name] = held.astype(dtype)
        else:
            hides = readers.get(value.name, set()) <= _MASKING
            feeds[value.name] = _contents(value.name, dtype, shape, rng, plain, hides)
    return feeds


def _size(name: str, sizes: dict[str, int], rng: np.random.Generator, plain: bool) -> int:
    """A size for a symbolic dim; one that was loosened (``u7_8``, ``u7_B``) mostly has the size that it had."""
    if name not in sizes:
        _, mark, old = name.partition("_") if name[:1] == "u" and name[1:2].isdigit() else ("", "", "")
        if mark and (plain or rng.random() < 0.7):
            sizes[name] = int(old) if old.isdigit() else _size(old, sizes, rng, plain)
        else:
            sizes[name] = int(rng.choice(_SIZES[:4] if plain else _SIZES))
    return sizes[name]


def _contents(
    name: str, dtype: np.dtype, shape: Sequence[int], rng: np.random.Generator, plain: bool, hides: bool
) -> np.ndarray:
    if dtype.kind == "b":
        share = 0.5 if plain else rng.choice([0.0, 0.5, 1.0])
        return rng.random(shape) < share
    if dtype.kind == "O":
        return rng.choice(np.array(["", "a", "b c"], object), shape)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    if dtype.kind in "iu":
        if dtype.itemsize == 1:
            info = np.iinfo(dtype)
            return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        return rng.integers(0, 2, shape).astype(dtype)
    if "var" in name:
        return rng.uniform(0.5, 1.5, shape).astype(dtype)
    narrow = dtype.name == "float16"
    how = "normal" if plain else rng.choice(["normal", "large", "tiny", "zero", "equal", *["hiding"] * hides])
    normal = rng.standard_normal(shape)
    with np.errstate(over="ignore"):
        numbers = {
            "normal": normal,
            "large": normal * (30 if narrow else 1e4),
            "tiny": normal * (1e-4 if narrow else 1e-20),
            "zero": np.where(normal > 0, 0.0, -0.0),
            "equal": np.full(shape, 0.7),
            "hiding": _hiding(rng, shape, dtype),
        }[how]
        return np.asarray(numbers).astype(dtype)


def _hiding(rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """What masks hold: zero where something is shown, and very low numbers where it is hidden, which may be all."""
    lowest = float(ml_dtypes.finfo(dtype).min)
    low = rng.choice([-np.inf, lowest, lowest / 2, -1e4])
    return np.where(rng.random(shape) < rng.choice([0.5, 1.0]), low, 0.0)
