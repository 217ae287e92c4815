"""Look at one result, in a process of its own:  python check.py ORIGINAL RESULT JSON_OUT [NAME=SIZE ...]

Writes the node count of RESULT and the worst relative L2 error of its outputs against those of ORIGINAL, on two sets of
seeded inputs with two sizes of the dynamic dims, both run by ONNX Runtime with its own optimizations off.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from inputs import make_feeds, open_session


def count_nodes(graph: onnx.GraphProto) -> int:
    """Nodes other than Constant, those of sub-graphs included."""
    total = 0
    for node in graph.node:
        total += node.op_type != "Constant"
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                total += count_nodes(attribute.g)
            total += sum(count_nodes(inner) for inner in attribute.graphs)
    return total


def relative_error(want: Any, got: Any) -> float:
    """Relative L2 error; infinite if shape, type or the place of non-finite values differ."""
    if not isinstance(want, np.ndarray):
        return 0.0 if repr(want) == repr(got) else float("inf")
    if want.shape != got.shape or want.dtype != got.dtype:
        return float("inf")
    if want.dtype.kind not in "fc":
        return 0.0 if np.array_equal(want, got) else float("inf")
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(got)) or not np.array_equal(want[~finite], got[~finite], equal_nan=True):
        return float("inf")
    a, b = want[finite].astype(np.float64), got[finite].astype(np.float64)
    gap = np.linalg.norm(a - b)
    return float(gap / max(np.linalg.norm(a), 1e-30)) if gap else 0.0


def main(original: str, result: str, out: str, *dims: str) -> None:
    sizes = {name: int(size) for name, size in (dim.split("=") for dim in dims)}
    model = onnx.load(result, load_external_data=False)
    report: dict[str, Any] = {"nodes": count_nodes(model.graph), "error": None, "problem": None}
    del model
    session = open_session(original, optimize=False)
    dynamic = {dim for info in session.get_inputs() for dim in info.shape if isinstance(dim, str)}
    other = {dim: sizes[dim] + 1 if dim in sizes else 3 + index for index, dim in enumerate(sorted(dynamic))}
    cases = [make_feeds(session, sizes, seed=0), make_feeds(session, other, seed=1)]
    signature = [[(info.name, info.type) for info in infos] for infos in (session.get_inputs(), session.get_outputs())]
    expected = [session.run(None, feeds) for feeds in cases]
    del session
    try:
        session = open_session(result, optimize=False)
        seen = [[(info.name, info.type) for info in infos] for infos in (session.get_inputs(), session.get_outputs())]
        if seen != signature:
            report["problem"] = "interface changed"
        else:
            pairs = [
                (w, g)
                for c, feeds in enumerate(cases)
                for w, g in zip(expected[c], session.run(None, feeds), strict=True)
            ]
            report["error"] = max(relative_error(want, got) for want, got in pairs)
    except Exception as error:
        report["problem"] = f"does not run: {' '.join(str(error).split())[:120]}"
    Path(out).write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
