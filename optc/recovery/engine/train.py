"""Learning the constants of a piece of a graph, by gradient descent on its error against the original."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir
import torch
from torch import Tensor

from optc.ir.errors import UsageError
from optc.ir.facts import Facts
from optc.recovery.batches import Arrays, Shelf
from optc.recovery.engine.program import NodeFailed, Program, tensor_of, why_not
from optc.recovery.places import Numbers, Parameter

#: How often the state is judged on what was held out; the best one is kept.
_LOOKS = 10
#: A constant that is zero throughout (a bias, mostly) learns in units of this.
_ZERO_UNIT = 0.05
#: Codes are fixed at integers between these shares of all steps, at so many times.
_FIX_FROM, _FIX_TO, _FIXES = 0.3, 0.9, 50
#: Codes learn in units of at least so many.
_CODES_UNIT = 1.0
#: Steps over which the rate rises, as a share of all.
_WARM = 0.05


@dataclass(frozen=True)
class Learned:
    """What came of learning.

    Attributes:
        numbers: By name of the constant, of the shape of its :class:`~optc.recovery.places.Numbers`.
        before: Squared error over what was held out, relative to the square of the values, as computed here.
        after: The same with the numbers.
        steps: Steps that were done.
    """

    numbers: Mapping[str, np.ndarray]
    before: float
    after: float
    steps: int


def device_of(name: str) -> torch.device:
    """The device that is meant by "auto", "cpu" or "cuda".

    Raises:
        UsageError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("PyTorch finds no CUDA device here", hint="leave the device to 'auto', or say 'cpu'")
    return torch.device(name)


class _Constant:
    """One constant while it is learned: where it started, plus a step in units of its own size.

    Codes are floats at first. Then more and more of them are fixed at the nearest integer, those that are near to one
    first, while the others make up for it (incremental quantization, Zhou et al., 2017): codes that are rounded
    straight-through from the start would swing between two integers up to the end.
    """

    def __init__(self, numbers: Numbers, device: torch.device) -> None:
        self._numbers = numbers
        self._start = torch.from_numpy(np.array(numbers.start, np.float32)).to(device)
        self._free = None if numbers.free is None else torch.from_numpy(numbers.free.astype(np.float32)).to(device)
        self._unit = _unit(numbers)
        self._fixed: Tensor | None = None
        self._codes = self._start
        self.step = torch.zeros_like(self._start, requires_grad=True)

    def now(self) -> Tensor:
        """The constant as it learns."""
        moved = self.step if self._free is None else self.step * self._free
        numbers = self._start + self._unit * moved
        if self._numbers.low is None:
            return numbers
        assert self._numbers.high is not None
        numbers = torch.clamp(numbers, self._numbers.low, self._numbers.high)
        return numbers if self._fixed is None else torch.where(self._fixed, self._codes, numbers)

    def stored(self) -> Tensor:
        """The constant as it is stored."""
        return self.now() if self._numbers.low is None else self.now().round()

    def fix(self, share: float) -> None:
        """Fix a share of the codes, those that are fixed already included."""
        if self._numbers.low is None:
            return
        with torch.no_grad():
            numbers = self.now()
            far = (numbers - numbers.round()).abs().reshape(-1)
            chosen = torch.argsort(far, stable=True)[: round(share * far.numel())]
            fixed = torch.zeros_like(far, dtype=torch.bool)
            fixed[chosen] = True
            self._fixed, self._codes = fixed.reshape(numbers.shape), numbers.round()


def _unit(numbers: Numbers) -> float:
    start = numbers.start.astype(np.float64)
    if numbers.low is not None:
        # In codes: their zero point says nothing of their size, and few of them have to be able to reach each other.
        return max(float(start.std()), _CODES_UNIT)
    return float(np.sqrt(np.square(start).mean())) or _ZERO_UNIT


@dataclass(frozen=True)
class Piece:
    """What learns.

    Attributes:
        nodes: The nodes to run.
        parameters: What may change, with the numbers it starts from.
        targets: Values to be right.
        facts: Of the model.
        opsets: Opset version per domain.
    """

    nodes: Sequence[onnx_ir.Node]
    parameters: Sequence[tuple[Parameter, Numbers]]
    targets: Sequence[onnx_ir.Value]
    facts: Facts
    opsets: Mapping[str, int]


def reads(piece: Piece) -> list[str]:
    """The values that have to be fed."""
    return Program(piece.nodes, piece.facts, piece.opsets, torch.device("cpu")).reads


def outputs(piece: Piece, feeds: Arrays, device: torch.device) -> list[np.ndarray]:
    """The targets as they are before anything is learned.

    Raises:
        NodeFailed: A node cannot be run.
    """
    work = _Work(piece, device)
    with torch.no_grad():
        return [tensor.cpu().numpy() for tensor in work.run(feeds, stored=True)]


def learn(
    piece: Piece,
    train: tuple[Shelf, Shelf],
    held: tuple[Shelf, Shelf],
    steps: int,
    rate: float,
    seed: int,
    device: torch.device,
    told: Callable[[], None] = lambda: None,
) -> Learned:
    """Adam on the relative squared error of the targets, in the state that is best on what is held out.

    Args:
        piece: What learns.
        train: Batches of what is fed, and of what the targets should be: by the names of the targets.
        held: The same, held out.
        steps: Batches to learn from, each taken again when all were.
        rate: Learning rate: how far a constant may go in a step, as a share of the size of its numbers.
        seed: Of the order of the batches.
        device: Where to compute.
        told: Is called after every step.
    """
    with _deterministic():
        work = _Work(piece, device)
        steps_of = [constant.step for constant in work.constants.values()]
        sizes = _sizes(train[1], work.names)
        adam = torch.optim.Adam(steps_of, lr=rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _share(step, steps))
        before = best = work.error(held, sizes)
        kept = work.numbers()
        order = _order(len(train[0]), seed)
        every, fixing = max(steps // _LOOKS, 1), max(steps // _FIXES, 1)
        done = 0
        for done in range(1, steps + 1):
            if done % fixing == 0:
                work.fix(min(max((done / steps - _FIX_FROM) / (_FIX_TO - _FIX_FROM), 0.0), 1.0))
            index = next(order)
            adam.zero_grad()
            loss = work.loss(train[0][index], train[1][index], sizes)
            loss.backward()
            if not _finite(steps_of):
                break
            adam.step()
            schedule.step()
            told()
            if done % every == 0 or done == steps:
                error = work.error(held, sizes)
                if error < best:
                    best, kept = error, work.numbers()
    return Learned(kept, before, best, done)


class _Work:
    """A piece with its constants, on a device."""

    def __init__(self, piece: Piece, device: torch.device) -> None:
        self._piece, self._device = piece, device
        self._program = Program(piece.nodes, piece.facts, piece.opsets, device)
        self.names = [value.name or "" for value in piece.targets]
        self.constants = {parameter.name: _Constant(numbers, device) for parameter, numbers in piece.parameters}

    def numbers(self) -> dict[str, np.ndarray]:
        """The constants as they would be stored."""
        with torch.no_grad():
            return {name: constant.stored().cpu().numpy().copy() for name, constant in self.constants.items()}

    def fix(self, share: float) -> None:
        """Fix a share of all codes at integers."""
        for constant in self.constants.values():
            constant.fix(share)

    def run(self, feeds: Arrays, stored: bool = False) -> list[Tensor]:
        """The targets, with the constants as they learn, or as they would be stored."""
        state = _Constant.stored if stored else _Constant.now
        learned = {parameter.value: state(self.constants[parameter.name]) for parameter, _ in self._piece.parameters}
        tensors = {name: tensor_of(feeds[name], self._device) for name in self._program.reads}
        return self._program.run(tensors, learned, self._piece.targets)

    def loss(self, feeds: Arrays, targets: Arrays, sizes: Mapping[str, float], stored: bool = False) -> Tensor:
        """Mean squared errors as shares of the values' mean squares, summed over the targets."""
        parts = [
            (made - tensor_of(targets[name], self._device)).square().mean() / sizes[name]
            for name, made in zip(self.names, self.run(feeds, stored), strict=True)
        ]
        return torch.stack(parts).sum()

    def error(self, data: tuple[Shelf, Shelf], sizes: Mapping[str, float]) -> float:
        """The loss over a shelf; inf where it is not finite."""
        with torch.no_grad():
            losses = [float(self.loss(feeds, goals, sizes, True)) for feeds, goals in zip(*data, strict=True)]
        mean = sum(losses) / len(losses)
        return mean if math.isfinite(mean) else math.inf


def _sizes(targets: Shelf, names: Sequence[str]) -> dict[str, float]:
    """Mean squares of the targets."""
    sums = {name: [0.0, 0.0] for name in names}
    for arrays in targets:
        for name, total in sums.items():
            total[0] += float(np.square(arrays[name].astype(np.float64)).sum())
            total[1] += arrays[name].size
    return {name: (square / count if count else 0.0) or 1.0 for name, (square, count) in sums.items()}


def _share(step: int, steps: int) -> float:
    """The rate at a step as a share of the highest: a short rise, then half a cosine down to zero."""
    rise = max(int(_WARM * steps), 1)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def _order(count: int, seed: int) -> Iterator[int]:
    """Batches in a new order each time round."""
    rng = np.random.default_rng(seed)
    while True:
        yield from (int(index) for index in rng.permutation(count))


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.grad is None or bool(torch.isfinite(tensor.grad).all()) for tensor in tensors)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Kernels that give the same numbers every time, where there are such; as before in the end."""
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)


__all__ = ["Learned", "NodeFailed", "Piece", "device_of", "learn", "outputs", "reads", "why_not"]
