"""Which passes there are, by name; each is imported when it is first asked for."""

from __future__ import annotations

from optc.ir.errors import UsageError
from optc.ir.registry import Registry
from optc.passes.base import Pass

#: Built-in passes: name -> "module:class". A new pass is one more row.
BUILTIN: dict[str, str] = {
    "inline": "optc.passes.clean.inline:Inline",
    "fold": "optc.passes.clean.fold:Fold",
    "control-flow": "optc.passes.clean.control_flow:ControlFlow",
    "loop-invariants": "optc.passes.clean.invariants:LoopInvariants",
    "cse": "optc.passes.clean.cse:CommonSubexpressions",
    "dce": "optc.passes.clean.dce:DeadCodeElimination",
    "dedup": "optc.passes.clean.dedup:Deduplicate",
    "fuse": "optc.passes.fusion.fuse:Fuse",
    "emit": "optc.passes.emit.emit:Emit",
    "shapes": "optc.passes.clean.shapes:Shapes",
    "simplify": "optc.passes.clean.simplify:Simplify",
    "quantize-weights": "optc.passes.compress.weights.quantize_weights:QuantizeWeights",
    "equalize": "optc.passes.compress.equalize:Equalize",
    "split-convolutions": "optc.passes.compress.convolutions:SplitConvolutions",
    "split-projections": "optc.passes.compress.projections:SplitProjections",
    "inference-precision": "optc.passes.compress.precision:InferencePrecision",
    "mixed-precision": "optc.passes.precision.mixed:MixedPrecision",
    "low-rank": "optc.passes.compress.lowrank.factorize:LowRankPass",
    "quantize": "optc.passes.compress.quantize:Quantize",
    "dead-channels": "optc.passes.compress.prune.dead:DeadChannels",
    "prune": "optc.passes.compress.prune.prune:Prune",
    "sparsity": "optc.passes.compress.sparsity.sparsity:Sparsity",
    "compress": "optc.passes.compress.combine:Compress",
}


def pass_registry() -> Registry:
    """The built-in passes; plugins add theirs to the returned object."""
    return Registry("pass", BUILTIN)


def pass_class(registry: Registry, name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        UsageError: It is unknown, cannot be imported, is not a pass, or calls itself by another name.
    """
    loaded = registry.load(name)
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
        raise UsageError(f"{name!r} is not a pass: {loaded!r}")
    if loaded.name != name:
        raise UsageError(f"the pass registered as {name!r} calls itself {loaded.name!r}", hint="use one name for both")
    return loaded
