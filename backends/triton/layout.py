"""Where elements are: indices of the loops of a kernel, and strided views of buffers.

An :class:`Index` is an integer that depends on the loop variables of a kernel: a sum of *atoms* with coefficients,
where an atom is ``(variable // divisor) % size``. Reshapes split and join atoms, transposes permute them, so movement
costs nothing until somebody has to store the result; and most of what is split is joined again by the time that an
address is computed. The algebra is that of CuTe's layouts, on names instead of numbers.

A :class:`View` says where each element of a tensor lies in its buffer, in elements: each logical dim is one or more
:class:`Part` of a size and a stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optc.ir.dims import Dim, divide_exact, equal, product, provably_ge


@dataclass(frozen=True)
class Atom:
    """``(base // divisor) % size``, a number from 0 to ``size - 1``.

    Attributes:
        base: A loop variable, or an index that does not come apart.
        divisor: What it is divided by.
        size: The number of values.
        top: Whether ``base // divisor`` is below ``size`` anyway, so that the remainder need not be taken.
    """

    base: str | Index
    divisor: Dim
    size: Dim
    top: bool

    def variables(self) -> frozenset[str]:
        """The loop variables that it depends on."""
        return frozenset((self.base,)) if isinstance(self.base, str) else self.base.variables()


@dataclass(frozen=True)
class Index:
    """A sum of atoms with coefficients, and a constant."""

    terms: tuple[tuple[Dim, Atom], ...] = ()
    constant: Dim = 0

    def variables(self) -> frozenset[str]:
        """The loop variables that it depends on."""
        return frozenset(name for _, atom in self.terms for name in atom.variables())

    def __add__(self, other: Index | Dim) -> Index:
        if not isinstance(other, Index):
            return Index(self.terms, self.constant + other)
        return Index(_merged((*self.terms, *other.terms)), self.constant + other.constant)

    def __mul__(self, factor: Dim) -> Index:
        if isinstance(factor, int) and factor == 0:
            return Index()
        return Index(_merged([(count * factor, atom) for count, atom in self.terms]), self.constant * factor)

    def split(self, sizes: Sequence[Dim]) -> tuple[Index, ...]:
        """The coordinates of this index, which counts a space of these sizes in row-major order."""
        found = []
        inner: Dim = 1
        for place in reversed(range(len(sizes))):
            found.append(_digit(self, inner, sizes[place], top=place == 0))
            inner = inner * sizes[place]
        return tuple(reversed(found))

    def substitute(self, variable: str, index: Index) -> Index:
        """The index with a loop variable replaced."""
        result = Index((), self.constant)
        for count, atom in self.terms:
            if variable not in atom.variables():
                result = result + Index(((count, atom),))
            elif isinstance(atom.base, str):
                result = result + _digit(index, atom.divisor, atom.size, atom.top) * count
            else:
                inner = atom.base.substitute(variable, index)
                result = result + _digit(inner, atom.divisor, atom.size, atom.top) * count
        return result


def variable(name: str, extent: Dim) -> Index:
    """A loop variable that runs from 0 to ``extent - 1``."""
    return Index() if equal(extent, 1) else Index(((1, Atom(name, 1, extent, True)),))


def flat(coordinates: Sequence[Index], sizes: Sequence[Dim]) -> Index:
    """The row-major position of coordinates in a space of these sizes."""
    total = Index()
    inner: Dim = 1
    for coordinate, size in zip(reversed(coordinates), reversed(sizes), strict=True):
        total = total + coordinate * inner
        inner = inner * size
    return total


def _merged(terms: Sequence[tuple[Dim, Atom]]) -> tuple[tuple[Dim, Atom], ...]:
    """Terms with those joined that are digits of one number next to each other."""
    kept = [(count, atom) for count, atom in terms if not equal(count, 0) and not equal(atom.size, 1)]
    changed = True
    while changed:
        changed = False
        for i, (high_count, high) in enumerate(kept):
            for j, (low_count, low) in enumerate(kept):
                if i == j or high.base != low.base:
                    continue
                if equal(high.divisor, low.divisor * low.size) and equal(high_count, low_count * low.size):
                    joined = Atom(low.base, low.divisor, low.size * high.size, high.top)
                    kept = [term for k, term in enumerate(kept) if k not in (i, j)] + [(low_count, joined)]
                    changed = True
                    break
                if i < j and high == low:
                    kept = [term for k, term in enumerate(kept) if k not in (i, j)] + [(high_count + low_count, low)]
                    changed = True
                    break
            if changed:
                break
    return tuple(sorted(kept, key=str))


def _digit(index: Index, divisor: Dim, size: Dim, top: bool) -> Index:
    """``(index // divisor) % size``; ``top`` says that the remainder changes nothing."""
    if equal(size, 1):
        return Index()
    high: list[tuple[Dim, Atom]] = []
    low: list[tuple[Dim, Atom]] = []
    period = divisor * size
    for count, atom in index.terms:
        if not top and divide_exact(count, period) is not None:
            continue  # whole turns
        quotient = divide_exact(count, divisor)
        if quotient is not None:
            high.append((quotient, atom))
        else:
            low.append((count, atom))
    constant_high = divide_exact(index.constant, divisor)
    if equal(index.constant, 0):
        constant_high = 0
    low_span = _span(low)
    if constant_high is not None and low_span is not None and provably_ge(divisor, low_span):
        # What is below the divisor vanishes; what is above stays, if it cannot pass the size.
        span = _span(high)
        if top or (span is not None and provably_ge(size, span + constant_high)):
            return Index(_merged(high), constant_high)
        if len(high) == 1 and equal(high[0][0], 1) and equal(constant_high, 0):
            atom = high[0][1]
            if _inside(atom, size):
                return Index(((1, Atom(atom.base, atom.divisor, size, False)),))
            return _opaque(index, divisor, size, top)
    if len(index.terms) == 1 and equal(index.terms[0][0], 1) and equal(index.constant, 0):
        atom = index.terms[0][1]
        rest = divide_exact(atom.size, divisor)
        if atom.top:
            return Index(((1, Atom(atom.base, atom.divisor * divisor, size, top)),))
        if rest is not None and top:
            return Index(((1, Atom(atom.base, atom.divisor * divisor, rest, False)),))
        if rest is not None and divide_exact(rest, size) is not None:
            return Index(((1, Atom(atom.base, atom.divisor * divisor, size, False)),))
    return _by_factor(index, divisor, size, top) or _opaque(index, divisor, size, top)


def _by_factor(index: Index, divisor: Dim, size: Dim, top: bool) -> Index | None:
    """``(index // divisor) % size`` where what is below some coefficient neither reaches it nor carries into it."""
    for factor, _ in index.terms:
        if equal(factor, 1):
            continue
        parts = [(divide_exact(count, factor), (count, atom)) for count, atom in index.terms]
        high = [(quotient, term[1]) for quotient, term in parts if quotient is not None]
        low = [term for quotient, term in parts if quotient is None]
        span, constant = _span(low), divide_exact(index.constant, factor) if index.constant != 0 else 0
        if span is None or constant is None or not provably_ge(factor, span):
            continue
        above = Index(_merged(high), constant)
        rest = divide_exact(divisor, factor)
        if rest is not None:
            return _digit(above, rest, size, top)
        rest = divide_exact(size, factor)
        if equal(divisor, 1) and rest is not None:
            return _digit(above, 1, rest, top) * factor + Index(_merged(low))
    return None


def _inside(atom: Atom, size: Dim) -> bool:
    """Whether the remainder by ``size`` of an atom is a remainder of its base."""
    return atom.top or divide_exact(atom.size, size) is not None


def _opaque(index: Index, divisor: Dim, size: Dim, top: bool) -> Index:
    if equal(divisor, 1) and top:
        return index
    return Index(((1, Atom(index, divisor, size, top)),))


def _span(terms: Sequence[tuple[Dim, Atom]]) -> Dim | None:
    """One more than the largest value of a sum of terms with coefficients that are not negative."""
    total: Dim = 1
    for count, atom in terms:
        if not provably_ge(count, 0):
            return None
        total = total + count * (atom.size - 1)
    return total


@dataclass(frozen=True)
class Part:
    """``size`` steps of ``stride`` elements."""

    size: Dim
    stride: Dim


@dataclass(frozen=True)
class View:
    """Where the elements of a tensor lie.

    Attributes:
        buffer: The buffer's number.
        dims: Per logical dim its parts, the slowest first; a dim of 1 has none.
        offset: The first element, counted from the start of the buffer.
    """

    buffer: int
    dims: tuple[tuple[Part, ...], ...]
    offset: Dim = 0

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The size of every logical dim."""
        return tuple(product(part.size for part in parts) for parts in self.dims)

    def address(self, coordinates: Sequence[Index]) -> Index:
        """The position in the buffer of the element at these coordinates."""
        total = Index((), self.offset)
        for coordinate, parts in zip(coordinates, self.dims, strict=True):
            for digit, part in zip(coordinate.split([part.size for part in parts]), parts, strict=True):
                total = total + digit * part.stride
        return total

    def plain(self) -> bool:
        """Whether every dim is one run of equal steps."""
        return all(len(parts) <= 1 for parts in self.dims)

    def transposed(self, perm: Sequence[int]) -> View:
        """The axes in another order."""
        return View(self.buffer, tuple(self.dims[axis] for axis in perm), self.offset)

    def expanded(self, shape: Sequence[Dim]) -> View:
        """Broadcast to a shape, by steps of 0."""
        missing = len(shape) - len(self.dims)
        dims = []
        for place, size in enumerate(shape):
            parts = self.dims[place - missing] if place >= missing else ()
            repeat = (Part(size, 0),) if not parts and not equal(size, 1) else parts
            dims.append(repeat)
        return View(self.buffer, tuple(dims), self.offset)

    def sliced(self, axis: int, start: Dim, step: int, size: Dim) -> View | None:
        """``size`` elements of an axis; None where its steps are not equal."""
        parts = self.dims[axis]
        if len(parts) > 1:
            whole = product(part.size for part in parts)
            return self if equal(whole, size) and equal(start, 0) and step == 1 else None
        stride: Dim = parts[0].stride if parts else 0
        dim = () if equal(size, 1) else (Part(size, stride * step),)
        return View(self.buffer, (*self.dims[:axis], dim, *self.dims[axis + 1 :]), self.offset + stride * start)

    def reshaped(self, shape: Sequence[Dim]) -> View | None:
        """The same elements in row-major order under another shape; None where a dim would not be a run of parts."""
        left = [part for parts in self.dims for part in parts]
        dims = []
        for size in reversed(shape):
            taken: list[Part] = []
            wanted = size
            while not equal(wanted, 1):
                if not left:
                    return None
                part = left.pop()
                rest = divide_exact(wanted, part.size)
                if rest is not None:
                    taken.insert(0, part)
                    wanted = rest
                    continue
                more = divide_exact(part.size, wanted)
                if more is None:
                    return None
                taken.insert(0, Part(wanted, part.stride))
                left.append(Part(more, part.stride * wanted))
                wanted = 1
            dims.append(_joined(taken))
        return None if left else View(self.buffer, tuple(reversed(dims)), self.offset)


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts with those joined that continue each other."""
    found: list[Part] = []
    for part in parts:
        if found and equal(found[-1].stride, part.stride * part.size):
            found[-1] = Part(found[-1].size * part.size, part.stride)
        else:
            found.append(part)
    return tuple(found)


def dense(buffer: int, shape: Sequence[Dim], order: Sequence[int] | None = None, offset: Dim = 0) -> View:
    """Elements without gaps.

    Args:
        buffer: The buffer.
        shape: The logical dims.
        order: Axes from the slowest to the fastest; row-major by default.
        offset: The first element.
    """
    dims: list[tuple[Part, ...]] = [()] * len(shape)
    inner: Dim = 1
    for axis in reversed(order if order is not None else range(len(shape))):
        if not equal(shape[axis], 1):
            dims[axis] = (Part(shape[axis], inner),)
            inner = inner * shape[axis]
    return View(buffer, tuple(dims), offset)
