"""Which units of a group are needed least, and what removing them would cost.

What a unit is worth is what the layers that sum over it lose without it, after they have been fitted anew to what is
left (:mod:`optc.passes.compress.prune.repair`). With G = X^T X / n of a reader's input and its weight W (K, N),
removing the columns U costs tr(W_U^T [(G^-1)_UU]^-1 W_U): the optimal brain surgeon (Hassibi and Stork, 1993) for
several columns at once. The cheapest units go, G^-1 and W are updated, and so on. Without data a unit is worth the
size of the weights that make it times that of the weights that read it, which is a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from optc.ir.facts import Facts
from optc.ir.ops import int_attr
from optc.passes.calibration.store import Request, Statistics
from optc.passes.calibration.views import COLUMNS, Patches, View
from optc.passes.compress.prune.axes import Group, Structure
from optc.passes.compress.prune.scope import Weight

#: The least that is added to the diagonal of a Gram matrix, as a share of its mean, and how much more for every column
#: that there is per row: what few samples do not tell must not be read out of them.
_RIDGE, _RIDGE_PER_COLUMN = 1e-3, 0.15
#: Columns of patches up to which readers are looked at with data.
_WIDEST = 5000
#: Units that are removed between two updates of the inverse, as a share of all.
_STEP = 1 / 48
#: Rows of patches over all samples that make a Gram matrix of K columns, per column.
_ROWS_PER_COLUMN = 4


@dataclass(frozen=True, eq=False)
class Second:
    """What is known of the rows that a layer reads.

    Attributes:
        gram: X^T X / n, (K, K) float64.
        rows: How many rows that is the mean of.
    """

    gram: np.ndarray
    rows: int

    @property
    def ridge(self) -> float:
        """What is added to the diagonal."""
        share = _RIDGE + _RIDGE_PER_COLUMN * len(self.gram) / max(self.rows, 1)
        return share * max(float(np.trace(self.gram)) / len(self.gram), 1e-30)


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that sums over a group's units, as a product of rows (n, K) with a matrix (K, N).

    Attributes:
        weight: Where its units lie.
        view: How its input is seen as rows.
        taps: Columns per channel: 1 for products, the size of the kernel for convolutions.
    """

    weight: Weight
    view: View
    taps: int

    @property
    def x(self) -> onnx_ir.Value:
        """What it reads."""
        return self.weight.node.inputs[self.weight.x]

    def columns(self, positions: np.ndarray) -> np.ndarray:
        """Per column of its rows, what is given per channel."""
        return np.repeat(positions, self.taps)

    def matrix(self, facts: Facts) -> np.ndarray:
        """The weight as (K, N), float64."""
        array = facts.const(self.weight.value)
        assert array is not None
        if self.taps > 1:
            return array.reshape(len(array), -1).T.astype(np.float64)
        return np.moveaxis(array, self.weight.axis, 0).reshape(array.shape[self.weight.axis], -1).astype(np.float64)

    def stored(self, matrix: np.ndarray, like: np.ndarray) -> np.ndarray:
        """A matrix (K', N) in the form of the weight, of which fewer channels are left."""
        shape = list(like.shape)
        shape[self.weight.axis] = len(matrix) // self.taps
        if self.taps > 1:
            return np.ascontiguousarray(matrix.T.reshape(shape), dtype=like.dtype)
        others = [size for at, size in enumerate(shape) if at != self.weight.axis]
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(-1, *others), 0, self.weight.axis), dtype=like.dtype)


def readable(weight: Weight, facts: Facts, positions: int) -> Reader | str:
    """How a reader is fitted anew, or why it cannot be.

    Args:
        weight: The reader.
        facts: What is known.
        positions: Of a convolution's window that are looked at per image.
    """
    node = weight.node
    shape = facts.shape(weight.value) or ()
    if facts.dtype(weight.value) != onnx_ir.DataType.FLOAT or weight.x == weight.index:
        return "its weight is not in single precision"
    if weight.x != 0:
        return "its weight stands on the left"
    if node.op_type in ("Conv", "FusedConv"):
        if int_attr(node, "group", 1) != 1:
            return "it has groups"
        kernel = tuple(int(size) for size in shape[2:])
        taps = int(np.prod(kernel))
        if taps * len(weight.ids) > _WIDEST:
            return f"its patches have more than {_WIDEST} numbers"
        return Reader(weight, Patches.of(node, kernel, positions), taps)
    if node.op_type in ("MatMul", "Gemm", "FusedMatMul", "Attention") and len(shape) == 2:
        if int_attr(node, "transA", 0):
            return "its input is transposed"
        if len(weight.ids) > _WIDEST:
            return f"its rows have more than {_WIDEST} numbers"
        return Reader(weight, COLUMNS, 1)
    return f"nothing is known of how {node.op_type} sums"


def positions_for(samples: int, weight: Weight, facts: Facts) -> int:
    """Positions per image that are enough for a Gram matrix of a convolution's patches."""
    taps = int(np.prod([int(size) for size in (facts.shape(weight.value) or ())[2:]]))
    return int(np.clip(_ROWS_PER_COLUMN * len(weight.ids) * taps / max(samples, 1), 16, 512))


def gram_requests(readers: Iterable[Reader]) -> list[Request]:
    """What is to be known of the inputs of readers."""
    return [Request(reader.x.name or "", view=reader.view, gram=True) for reader in readers]


@dataclass(frozen=True, eq=False)
class Ranking:
    """The units of a group from the one that is needed least to the one that is needed most.

    Attributes:
        group: The group.
        order: Indices of units.
        errors: Relative L2 error of the outputs of the group's readers when so many are removed and the readers are
            fitted anew, (units + 1,), of the worst reader; None without data, when ``order`` is a guess.
        reason: Why it is a guess; empty if it is not.
    """

    group: Group
    order: np.ndarray
    errors: np.ndarray | None
    reason: str = ""


def by_magnitude(structure: Structure, group: Group, reason: str) -> Ranking:
    """Units by the size of the weights that make and read them."""
    made = _sizes(structure, group, group.writers)
    read = _sizes(structure, group, group.readers)
    return Ranking(group, np.argsort(made * read, kind="stable"), None, reason)


def _sizes(structure: Structure, group: Group, weights: Sequence[Weight]) -> np.ndarray:
    """Mean square of the weights of every unit, as a share of the layer's."""
    total = np.zeros(len(group))
    for weight in weights:
        array = structure.facts.const(weight.value)
        positions = structure.positions(group, weight.ids)
        if array is None or array.dtype.kind not in "f":
            continue
        others = tuple(axis for axis in range(array.ndim) if axis != weight.axis)
        squares = np.square(array.astype(np.float32)).sum(axis=others, dtype=np.float64)
        mine = positions >= 0
        total += np.bincount(positions[mine], squares[mine], len(group)) / max(squares.sum(), 1e-30)
    return total


def by_damage(
    structure: Structure, group: Group, readers: Sequence[Reader], grams: Mapping[int, Second], most: float = 1.0
) -> Ranking:
    """Units by what the readers lose.

    Args:
        structure: The graph.
        group: The group.
        readers: All of its readers.
        grams: What is known of each reader's input, by the reader's index.
        most: The share of the units up to which the errors are asked for.
    """
    sides = [_Side.of(structure, group, reader, grams[index]) for index, reader in enumerate(readers)]
    left = np.ones(len(group), bool)
    order: list[int] = []
    lost = np.zeros(len(sides))
    errors = [0.0]
    step = max(1, int(len(group) * _STEP))
    while left.sum() > 1 and len(order) < most * len(group):
        costs = np.where(left, sum(side.costs(left) / side.energy for side in sides), np.inf)
        units = np.argsort(costs, kind="stable")[: min(step, int(left.sum()) - 1)].tolist()
        before = lost.copy()
        left[units] = False
        lost += [side.remove(units) for side in sides]
        order += units
        # Those that go in one step share what it costs.
        for number in range(1, len(units) + 1):
            reached = before + (lost - before) * number / len(units)
            errors.append(float(np.sqrt(max(part / side.energy for part, side in zip(reached, sides, strict=True)))))
    rest = np.flatnonzero(left)
    filled = np.array(errors + [np.inf] * (len(group) + 1 - len(errors)))
    return Ranking(group, np.concatenate([order, rest]).astype(np.intp), filled)


class _Side:
    """One reader while units are taken from it.

    Args:
        columns: Columns of each unit, (units, columns per unit).
        weight: (K, N).
        second: What is known of the input.
    """

    def __init__(self, columns: list[np.ndarray], weight: np.ndarray, second: Second) -> None:
        self.columns, self.weight = columns, weight.copy()
        self.energy = max(float(np.sum(weight * (second.gram @ weight))), 1e-30)
        self.inverse = np.linalg.inv(second.gram + np.eye(len(second.gram)) * second.ridge)

    @classmethod
    def of(cls, structure: Structure, group: Group, reader: Reader, second: Second) -> _Side:
        positions = reader.columns(structure.positions(group, reader.weight.ids))
        mine = np.flatnonzero(positions >= 0)
        ordered = mine[np.argsort(positions[mine], kind="stable")]
        counts = np.bincount(positions[mine], minlength=len(group))
        return cls(np.split(ordered, np.cumsum(counts)[:-1]), reader.matrix(structure.facts), second)

    def costs(self, left: np.ndarray) -> np.ndarray:
        """What removing each unit that is left would cost."""
        costs = np.zeros(len(left))
        by_count: dict[int, list[int]] = {}
        for unit in np.flatnonzero(left).tolist():
            by_count.setdefault(len(self.columns[unit]), []).append(unit)
        for count, units in by_count.items():
            if count:
                mine = np.stack([self.columns[unit] for unit in units])
                blocks = self.inverse[mine[:, :, None], mine[:, None, :]]
                rows = self.weight[mine]
                costs[units] = np.einsum("ukn,ukn->u", rows, np.linalg.solve(blocks, rows))
        return costs

    def remove(self, units: Sequence[int]) -> float:
        """Take units out, and let the others stand in for them; what is lost."""
        mine = np.concatenate([self.columns[unit] for unit in units])
        if not len(mine):
            return 0.0
        block, reach = self.inverse[np.ix_(mine, mine)], self.inverse[:, mine]
        solved = np.linalg.solve(block, self.weight[mine])
        cost = float(np.sum(self.weight[mine] * solved))
        self.weight -= reach @ solved
        self.inverse -= reach @ np.linalg.solve(block, reach.T)
        self.weight[mine] = 0
        self.inverse[mine] = 0
        self.inverse[:, mine] = 0
        return cost


def grams_of(readers: Sequence[Reader], known: Statistics) -> dict[int, Second] | str:
    """The Gram matrix of each reader's input, or why one is not there."""
    grams = {}
    for index, (reader, request) in enumerate(zip(readers, gram_requests(readers), strict=True)):
        reason = known.why_not(request)
        if reason is not None:
            return reason
        second = Second(known.gram(request.value, reader.view), known.gram_rows(request.value, reader.view))
        if not np.isfinite(second.gram).all():
            return "its input is not finite"
        grams[index] = second
    return grams
