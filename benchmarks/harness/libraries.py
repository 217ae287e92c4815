"""Call the optimizers that have no command line of their own:  python libraries.py NAME MODEL OUT [OPTION]

Runs in the interpreter of the peer, so it needs that peer and nothing of optc.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

EMBEDDABLE = 1_800_000_000  # bytes; a protobuf file ends at 2 GiB


def weight_bytes(model: str) -> int:
    """Size of the model file and of the data files beside it that share its name."""
    return sum(path.stat().st_size for path in Path(model).parent.glob(f"{Path(model).name}*"))


def onnxruntime_extended(model: str, out: str) -> None:
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = out
    options.log_severity_level = 3
    if weight_bytes(model) > EMBEDDABLE:
        key = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(key, f"{Path(out).name}.data")
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnxscript_optimize_and_rewrite(model: str, out: str) -> None:
    onnx_ir = importlib.import_module("onnx_ir")
    optimizer = importlib.import_module("onnxscript.optimizer")
    rewriter = importlib.import_module("onnxscript.rewriter")
    graph = onnx_ir.load(model)
    optimizer.optimize(graph)
    graph = rewriter.rewrite(graph)
    onnx_ir.save(graph, out, external_data=f"{Path(out).name}.data" if weight_bytes(model) > EMBEDDABLE else None)


def onnxruntime_transformers(model: str, out: str, model_type: str) -> None:
    """Graph fusions only; the heads are left for it to find in the graph, as its documentation advises."""
    optimizer = importlib.import_module("onnxruntime.transformers.optimizer")
    result = optimizer.optimize_model(model, model_type=model_type, num_heads=0, hidden_size=0, opt_level=0)
    result.save_model_to_file(out, use_external_data_format=weight_bytes(model) > EMBEDDABLE)


LIBRARIES = {
    "onnxruntime": onnxruntime_extended,
    "transformers": onnxruntime_transformers,
    "onnxscript": onnxscript_optimize_and_rewrite,
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    LIBRARIES[name](*arguments)
