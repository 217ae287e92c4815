"""Convolutions as chains of smaller ones, fitted to what their patches look like.

A kernel W (N, C, T) sees patches of C channels at T taps each. Both forms here first mix channels, at every place
alike: z = P x with P (r, C); and the taps of z are then combined. Given P, the best way to do that is a least-squares
problem in the Gram matrix of the patches, and the best of a rank on top of it is reduced-rank regression; P comes from
the SVD of W unfolded along its channels, whitened by the channels' own Gram matrix.

* Tucker-2 (Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
  2016): channels are channels and taps are all positions of the kernel; a 1x1 mixes C to r, a kernel makes N' of those,
  a 1x1 makes N.
* Spatial (Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", 2014): "channels" are
  pairs of a channel and a row of the kernel, taps are its columns; a kernel (k, 1) and then one (1, k).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from optc.passes.compress.lowrank.spectrum import Spectrum, added_energy, spectrum

#: Rounds of choosing the channels for the outputs that were chosen, and these anew.
_ROUNDS = 2


@dataclass(frozen=True)
class Chain:
    """A kernel as a product.

    Attributes:
        mix: P, (groups, r, C).
        core: (groups, N', r, T).
        last: (groups, N, N'); None where the core makes the outputs themselves.
        error: Relative L2 error of the output, exact for the Gram matrix that it was fitted to.
    """

    mix: np.ndarray
    core: np.ndarray
    last: np.ndarray | None
    error: float

    def kernel(self) -> np.ndarray:
        """What the chain computes as one kernel, (groups, N, C, T)."""
        kernel = np.einsum("gort,grc->goct", self.core, self.mix)
        return kernel if self.last is None else np.einsum("gno,goct->gnct", self.last, kernel)


@dataclass(frozen=True)
class _Fitted:
    """One group's part of a chain, and the energy of what it loses."""

    mix: np.ndarray
    core: np.ndarray
    last: np.ndarray | None
    lost: float


class Kernel:
    """A kernel, and all chains that can be fitted to it.

    Args:
        weight: (groups, N, C, T), finite.
        gram: Of patches, (groups, C * T, C * T); None if nothing is known of them: all channels and taps count alike.
        damping: As for :func:`optc.passes.compress.lowrank.spectrum.spectrum`.
    """

    def __init__(self, weight: np.ndarray, gram: np.ndarray | None = None, damping: float = 0.0) -> None:
        self.weight = weight.astype(np.float64)
        self.gram, self._damping = gram, damping

    @cached_property
    def outputs(self) -> Spectrum:
        """Of the output as a whole: no chain with N' outputs inside gets below the error of rank N'."""
        groups, count, *_ = self.weight.shape
        return spectrum(self.weight.reshape(groups, count, -1), self.gram, self._damping)

    @cached_property
    def channels(self) -> Spectrum:
        """Of the channels, over all outputs and taps: about what is lost by mixing them to fewer."""
        return spectrum(self._unfolded(self.weight), self._channel_gram, self._damping)

    def chain(self, mixed: int, outputs: int | None = None) -> Chain:
        """The chain that mixes the channels of each group to ``mixed``, with so many outputs inside; None for N."""
        parts = [self._fit(group, mixed, outputs) for group in range(len(self.weight))]
        total, lost = self.outputs.total, sum(part.lost for part in parts)
        last = None if outputs is None else np.stack([part.last for part in parts if part.last is not None])
        error = float(np.sqrt(max(lost, 0.0) / total)) if total > 0 else 0.0
        return Chain(np.stack([part.mix for part in parts]), np.stack([part.core for part in parts]), last, error)

    def _fit(self, group: int, mixed: int, outputs: int | None) -> _Fitted:
        weight = self.weight[group]
        seen = self._seen[group]
        best: _Fitted | None = None
        basis = self.channels.basis[group, :, :mixed]
        unfolded = self._unfolded(self.weight[group : group + 1])[0]
        for _ in range(_ROUNDS):
            mix = np.linalg.qr((basis.T @ unfolded).T)[0].T
            fitted = self._regressed(group, weight, seen, mix, outputs)
            if best is None or fitted.lost < best.lost:
                best = fitted
            if fitted.last is None or fitted.last.shape[1] * self.weight.shape[3] < mixed:
                break
            # Channels for those outputs alone that were kept.
            kept = np.einsum("no,nct->oct", fitted.last, weight)[None]
            unfolded = self._unfolded(kept)[0]
            gram = None if self._channel_gram is None else self._channel_gram[group : group + 1]
            basis = spectrum(unfolded[None], gram, self._damping).basis[0, :, :mixed]
        assert best is not None
        return best

    def _regressed(
        self, group: int, weight: np.ndarray, seen: np.ndarray, mix: np.ndarray, outputs: int | None
    ) -> _Fitted:
        """The best use of mixed channels: least squares, and its principal components."""
        count, channels, taps = weight.shape
        mixed = len(mix)
        flat = mixed * taps
        # Y = W G F^T and H = F G F^T, where F mixes channels at every tap alike.
        cross = np.einsum("nct,rc->nrt", seen, mix, optimize=True).reshape(count, flat)
        plain = np.einsum("nct,rc->nrt", weight, mix, optimize=True).reshape(count, flat)
        if self.gram is None:
            core, inner, damped = plain, np.eye(flat), np.eye(flat)
        else:
            gram = self.gram[group].reshape(channels, taps * channels * taps)
            half = (mix @ gram).reshape(mixed * taps, channels, taps)
            inner = np.einsum("act,rc->art", half, mix, optimize=True).reshape(flat, flat)
            added = float(added_energy(self.gram, self._damping)[group])
            damped = inner + added * np.eye(flat)
            core = _solved(damped, (cross + added * plain).T).T
        last = None
        if outputs is not None:
            _, vectors = np.linalg.eigh(core @ damped @ core.T)
            last = vectors[:, ::-1][:, :outputs]
        kept = core if last is None else last @ (last.T @ core)
        whole = float(np.einsum("nct,nct->", seen, weight))
        lost = whole - 2 * float(np.sum(kept * cross)) + float(np.sum((kept @ inner) * kept))
        core = core if last is None else last.T @ core
        return _Fitted(mix, core.reshape(-1, mixed, taps), last, lost)

    @cached_property
    def _seen(self) -> np.ndarray:
        """W G, (groups, N, C, T)."""
        if self.gram is None:
            return self.weight
        groups, count, *_ = self.weight.shape
        return (self.weight.reshape(groups, count, -1) @ self.gram).reshape(self.weight.shape)

    @cached_property
    def _channel_gram(self) -> np.ndarray | None:
        """Of the channels, over all taps: (groups, C, C)."""
        if self.gram is None:
            return None
        groups, _, channels, taps = self.weight.shape
        return np.einsum("gitjt->gij", self.gram.reshape(groups, channels, taps, channels, taps)) / taps

    @staticmethod
    def _unfolded(weight: np.ndarray) -> np.ndarray:
        """(groups, N, C, T) as (groups, N * T, C)."""
        groups, count, channels, taps = weight.shape
        return np.swapaxes(weight, 2, 3).reshape(groups, count * taps, channels)


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``matrix^-1 @ right`` for a symmetric matrix that may be singular."""
    scale = np.trace(matrix) / len(matrix)
    if scale <= 0:
        return np.zeros_like(right)
    values, vectors = np.linalg.eigh(matrix)
    inverse = np.where(values > 1e-12 * scale * len(matrix), 1 / np.maximum(values, 1e-300), 0.0)
    return vectors @ (inverse[:, None] * (vectors.T @ right))
