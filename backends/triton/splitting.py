"""Products whose sums are shared by several programs, which write their parts to memory.

What adds the parts up, always in the same order, is a generated kernel: it takes the pointwise work behind the product
along, as a product does, and a normalization takes it into its own kernel. So in front of one, parts cost no launch.
"""

from __future__ import annotations

import onnx_ir

from optc.backends.triton.expressions import Expr
from optc.backends.triton.groups import Group
from optc.backends.triton.hooks import Store
from optc.backends.triton.layout import Index, flat, variable
from optc.backends.triton.lower import Lowering
from optc.backends.triton.plan import ITEM_SIZE
from optc.ir.dims import product
from optc.ir.rewriter import users
from optc.kernels.splits import product_splits

#: What takes the kernel in front of it in, and what only hands it on.
_TAKES = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "Softmax", "LogSoftmax"})
_HANDS_ON = frozenset({"Add", "Sub", "Mul", "Cast", "Reshape", "Identity", "Flatten", "Unsqueeze", "Squeeze"})


def splits(lowering: Lowering, group: Group, memory: str, result: onnx_ir.Value) -> int:
    """Into how many parts a product's sums are to be split; 1 leaves them whole."""
    sizes = lowering.tuning.numbers(group.sizes)
    if sizes is None:
        return 1
    return product_splits(
        group.kernel, sizes, ITEM_SIZE[memory], lowering.tuning.targets, _meets_rows(result, len(_HANDS_ON))
    )


def in_parts(lowering: Lowering, group: Group, splits: int, name: str) -> tuple[Group, Index, Index, Index, Expr]:
    """Let a product write parts of its sums, and add a group that adds them up.

    Args:
        lowering: The lowering.
        group: The product; it has been added, and nothing has joined it.
        splits: How many parts.
        name: What the new group is called.

    Returns:
        The new group; where it is in the product's batch, rows and columns; and the sum there.
    """
    extents = list(group.space.values())
    count = product(extents)
    buffer = lowering.builder.buffer(count * splits, "fp32")
    group.kernel = f"{group.kernel}_split"
    group.constants["SPLITS"] = splits
    group.space = {"split": splits, **group.space}
    place = flat([variable(name, extent) for name, extent in group.space.items()], list(group.space.values()))
    group.stores.append(Store(buffer, "fp32", place, lowering.pool.make("anchor", (), "fp32", id(group))))
    adding, (at,) = lowering.builder.pointwise((count,), name)
    total: Expr | None = None
    for part in range(splits):
        one = lowering.builder.read(buffer, "fp32", at + count * part)
        total = one if total is None else lowering.pool.make("({0} + {1})", (total, one), "fp32")
    assert total is not None
    z, m, n = at.split(extents)
    return adding, z, m, n, total


def _meets_rows(value: onnx_ir.Value, steps: int) -> bool:
    """Whether what is computed from a value soon meets a kernel that takes the work before it along."""
    for node in users(value) if steps else ():
        if node.op_type in _TAKES:
            return True
        if node.op_type in _HANDS_ON and _meets_rows(node.outputs[0], steps - 1):
            return True
    return False
