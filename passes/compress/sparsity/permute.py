"""Which input channels share a group: an order of the channels in which the pattern keeps more of what matters.

Of each group only the largest weights stay, so that groups of large ones lose much and groups of small ones nothing.
Channels are dealt out by size, and then swapped between two groups as long as that keeps more (Pool and Yu, "Channel
Permutations for N:M Sparsity", 2021).
"""

from __future__ import annotations

import numpy as np

from optc.ir.sparsity import Pattern

#: Rounds, in each of which every group is held against one other; so many without a gain end it.
_ROUNDS, _PATIENCE = 100, 8
#: Rows of scores that a search looks at; all others have a say in whether its result is taken.
_ROWS = 256


def kept(scores: np.ndarray, pattern: Pattern) -> float:
    """The sum of the scores (R, C) that the pattern keeps."""
    return float(np.sum(scores, where=pattern.largest(scores), dtype=np.float64))


def best_order(scores: np.ndarray, pattern: Pattern, seed: int = 0) -> np.ndarray | None:
    """An order of channels that keeps more than the one there is.

    Args:
        scores: (R, C), 0 or more: what every weight is worth. R are rows, and the positions of a kernel.
        pattern: What will be kept.
        seed: Of what is drawn.

    Returns:
        (C,), where the channel at each place comes from; None if no better one was found. Channels of a last group that
        is shorter stay where they are.
    """
    whole = scores.shape[1] // pattern.group
    if whole < 2:
        return None
    count = whole * pattern.group
    rng = np.random.default_rng(seed)
    rows = scores if len(scores) <= _ROWS else scores[np.sort(rng.choice(len(scores), _ROWS, replace=False))]
    columns = np.ascontiguousarray(rows[:, :count].T, np.float32)  # (C, R)
    dealt = np.argsort(-columns.sum(axis=1), kind="stable").reshape(pattern.group, whole).T
    starts = (np.arange(count).reshape(whole, -1), dealt)
    start = max(starts, key=lambda groups: float(_top(columns[groups], pattern.kept)[0].sum()))
    found = _improved(start, columns, pattern.kept, rng)
    order = np.concatenate([found.reshape(-1), np.arange(count, scores.shape[1])])
    return order if kept(scores[:, order], pattern) > kept(scores, pattern) else None


def _improved(groups: np.ndarray, columns: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Groups (S, M) of channels after swaps between pairs of them, as long as these keep more of the columns (C, R)."""
    groups, idle = groups.copy(), 0
    for _ in range(_ROUNDS):
        pairs = rng.permutation(len(groups))[: len(groups) // 2 * 2].reshape(-1, 2)
        swapped = _swap(groups, pairs, columns, count)
        idle = 0 if swapped else idle + 1
        if idle == _PATIENCE:
            break
    return groups


def _swap(groups: np.ndarray, pairs: np.ndarray, columns: np.ndarray, count: int) -> bool:
    """Do the best swap of one channel in every pair of groups, if it gains anything; whether any did."""
    firsts, seconds = groups[pairs[:, 0]], groups[pairs[:, 1]]
    base = sum(_top(columns[part], count)[0].sum(axis=1) for part in (firsts, seconds))
    best, choice = base * (1 + 1e-6) + 1e-30, np.full(len(pairs), -1)
    size = groups.shape[1]
    one, other = (
        _entering(columns[firsts], columns[seconds], count),
        _entering(columns[seconds], columns[firsts], count),
    )
    for number in range(size * size):
        leaving, coming = divmod(number, size)
        value = one[leaving][coming] + other[coming][leaving]
        better = value > best
        best[better], choice[better] = value[better], number
    moved = np.flatnonzero(choice >= 0)
    leaving, coming = np.divmod(choice[moved], size)
    groups[pairs[moved, 0], leaving] = seconds[moved, coming]
    groups[pairs[moved, 1], coming] = firsts[moved, leaving]
    return bool(len(moved))


def _entering(blocks: np.ndarray, others: np.ndarray, count: int) -> list[list[np.ndarray]]:
    """What blocks (S, M, R) keep if their channel i makes room for channel j of others (S, M, R): [i][j], (S,).

    Something more among the others adds what it is larger by than the smallest that was kept.
    """
    result = []
    for leaving in range(blocks.shape[1]):
        total, least = _top(np.delete(blocks, leaving, axis=1), count)
        base = total.sum(axis=1)
        result.append(
            [base + np.maximum(others[:, coming] - least, 0).sum(axis=1) for coming in range(others.shape[1])]
        )
    return result


def _top(blocks: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of blocks (S, M, R) the sum of the ``count`` largest along M, and the last of these, (S, R) each.

    So many rounds of a bubble sort.
    """
    left = [blocks[:, index] for index in range(blocks.shape[1])]
    total = least = np.zeros_like(left[0])
    for _ in range(count):
        largest, rest = left[0], []
        for one in left[1:]:
            rest.append(np.minimum(largest, one))
            largest = np.maximum(largest, one)
        total, least, left = total + largest, largest, rest
    return total, least
