"""Running a pass on a small model and comparing with ONNX Runtime what it computes before and after."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort

from optc.ir.model import load
from optc.ir.rewriter import Rewriter
from optc.ir.saving import to_proto
from optc.ir.targets import builtin_targets
from optc.ir.verify import Interface, verify_structure
from optc.passes.base import Pass, PassContext, all_graphs

#: Dims tried for every symbol.
SIZES = (3, 1, 2, 0)
_SPECIAL = {
    "f": [np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0, -1.0, 0.5, 2.5, -3.25, 7.0],
    "i": [0, 1, -1, 2, -2, 3, 5, 100, -128, 127],
    "u": [0, 1, 2, 3, 5, 100, 127, 200, 255],
    "b": [False, True],
}


@dataclass
class Outcome:
    """What a pass made of a model.

    Attributes:
        ops: How many nodes of each operator are left, in sub-graphs too, Constant nodes not counted.
        hits: How often each rule fired.
        runs: How many of the tried inputs the original model accepts.
    """

    ops: Counter[str]
    hits: dict[str, int]
    runs: int
    model: onnx.ModelProto


def model_of(text: str, opset: int = 17) -> onnx.ModelProto:
    """A model from the ONNX text of its graph, ``g (float[N] x) => (float[N] y) { ... }``."""
    ir_version = 8 if opset < 21 else 10
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> {text}')


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def check(
    model: onnx.ModelProto | str,
    item: Pass,
    *,
    opset: int = 17,
    feeds: list[Mapping[str, np.ndarray]] | None = None,
    sizes: tuple[int, ...] = SIZES,
    tolerance: float = 0,
) -> Outcome:
    """Run a pass, and make sure that the result is valid, computes exactly the same, and is stable.

    With a ``tolerance`` (relative, and absolute for small numbers) floats may differ by that much.

    Where no feeds are given, every symbolic dim takes each of ``sizes``, and contents are random with all special
    values among them. What the original model refuses is skipped, except that it must accept something.
    """
    proto = model_of(model, opset) if isinstance(model, str) else model
    graph = load(proto)
    interface = Interface.of(graph)
    ctx = PassContext(Rewriter(graph), builtin_targets()["cpu"])
    item.run(ctx)
    assert not verify_structure(graph)
    assert not interface.differences(Interface.of(graph))
    assert not [remark for remark in ctx.remarks if "stopped after" in remark.reason]
    after = to_proto(graph)
    _assert_settles(after, item)
    reference, result = session(proto), session(after)
    runs = 0
    for feed in feeds if feeds is not None else draw_feeds(reference, sizes):
        try:
            wanted = reference.run(None, dict(feed))
        except Exception:
            continue  # an input that the original refuses
        runs += 1
        for a, b in zip(wanted, result.run(None, dict(feed)), strict=True):
            _assert_same(a, b, tolerance)
    ops = Counter(node.op_type for g in all_graphs(graph) for node in g if node.op_type != "Constant")
    return Outcome(ops, ctx.hits, runs, after)


def _assert_settles(model: onnx.ModelProto, item: Pass) -> None:
    """Running the pass again soon changes nothing; not at once, since facts inferred afresh may tell more."""
    for _ in range(4):
        ctx = PassContext(Rewriter(load(model)), builtin_targets()["cpu"])
        item.run(ctx)
        if ctx.rewriter.changes == 0:
            return
        model = to_proto(ctx.model)
    raise AssertionError(f"it does not settle: {ctx.hits}")


def _assert_same(a, b, tolerance: float) -> None:
    if isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_same(x, y, tolerance)
        return
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    if tolerance and a.dtype.kind == "f":
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(a, b)


def draw_feeds(reference: ort.InferenceSession, sizes: tuple[int, ...]) -> Iterator[dict[str, np.ndarray]]:
    """Feeds for all combinations of dims, deterministic."""
    names = list(
        dict.fromkeys(dim for info in reference.get_inputs() for dim in info.shape if not isinstance(dim, int))
    )
    generator = np.random.default_rng(7)
    for chosen in itertools.islice(itertools.product(sizes, repeat=len(names)), 64):
        dims = dict(zip(names, chosen, strict=True))
        yield {
            info.name: random_array(
                generator, [dim if isinstance(dim, int) else dims[dim] for dim in info.shape], info.type
            )
            for info in reference.get_inputs()
        }


def random_array(generator: np.random.Generator, shape: list[int], kind: str) -> np.ndarray:
    """Contents of an input: special values in random order."""
    names = {"float": "float32", "double": "float64"}
    kind = kind.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype(names.get(kind, kind))
    with np.errstate(all="ignore"):
        return generator.choice(np.array(_SPECIAL[dtype.kind]), size=shape).astype(dtype)
