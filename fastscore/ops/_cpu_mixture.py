"""Langevin chains towards a Gaussian mixture on a CPU without a compiler, in NumPy with the chains last.

A sum over eight components of chains lies along the first axis, where it vectorises; the noise of many steps is made at
once; a block of chains goes through all steps before the next one does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastscore.ops import _cpu_numpy
from fastscore.ops.chain import Keep

Floats = NDArray[np.float32]
_NOISE = 1 << 16  # normals made at once


class Constants(NamedTuple):
    """A mixture of K components."""

    means: Floats
    """`[K, D]`."""
    inverse: Floats
    """L^-1 of every component, `[K, D]` or lower triangular `[K, D, D]`."""
    log_scale: Floats
    """`[K]`."""

    def common(self) -> np.float32 | None:
        """What all of L^-1 are, if they are one number on the diagonal."""
        first: np.float32 = self.inverse.flat[0]
        return first if self.inverse.ndim == 2 and bool((self.inverse == first).all()) else None


@np.errstate(all="ignore")
def chain(
    x: Floats,
    mixture: Constants,
    factors: tuple[Floats, Floats],
    clamp: tuple[float, float] | None,
    counters: tuple[int, int, int, int],
    keep: Keep,
    path: Floats,
) -> None:
    """Steps of the rows of x `[n, D]`, in place.

    Args:
        x: the states.
        mixture: the target.
        factors: step sizes and what the noise is multiplied with, `[n_steps, D]` each.
        clamp: (low, high) of every state, or None.
        counters: seed, stream, number of the first step, global index of row 0.
        keep: which states on the way go to path.
        path: `[n, keep.count, D]`.
    """
    (n, dim), (a, c) = x.shape, factors
    seed, stream, step, first_chain = counters
    state, many, common = np.ascontiguousarray(x.T), max(1, _NOISE // x.size), mixture.common()
    score, logits = np.empty((dim, n), np.float32), np.empty((len(mixture.means), n), np.float32)
    apart = np.empty((dim, len(mixture.means), n), np.float32)
    z = apart if common is not None else np.empty_like(apart)
    for start in range(0, len(a), many):
        steps = slice(start, min(start + many, len(a)))
        noise = _cpu_numpy.paths(n, dim, seed, stream, step + start, steps.stop - start, first_chain)
        noise *= c[steps, :, None]
        for done, (made, e) in enumerate(zip(a[steps], noise, strict=True), start + 1):
            _score(state, mixture, common, (apart, z, logits), score)
            score *= made[:, None]
            state += score
            state += e
            if clamp is not None:
                np.clip(state, *map(np.float32, clamp), out=state)
            if (index := keep.index(done)) is not None:
                path[:, index] = state.T
    x[...] = state.T


def _score(
    x: Floats, mixture: Constants, common: np.float32 | None, room: tuple[Floats, Floats, Floats], score: Floats
) -> None:
    """The score of states `[D, n]`, into `score`; the room is `[D, K, n]` twice (once if `common`) and `[K, n]`."""
    (means, inverse, log_scale), (apart, z, logits) = mixture, room
    full, precision = inverse.ndim == 3, np.float32(1) if common is None else common * common
    np.subtract(x[:, None], means.T[:, :, None], out=apart)
    if full:
        np.einsum("kdj,jkn->dkn", inverse, apart, out=z)
    elif common is None:
        np.multiply(apart, inverse.T[:, :, None], out=z)
    np.einsum("dkn,dkn->kn", z, z, out=logits)
    logits *= np.float32(-0.5) * precision
    logits += log_scale[:, None]
    if len(logits) > 1:
        logits -= logits.max(0)
        weights = np.exp(logits, out=logits)
        weights *= -precision / weights.sum(0)
    else:  # whose square may be infinite
        logits.fill(-precision)
        weights = logits
    if full:
        z *= weights
        np.einsum("kdj,dkn->jn", inverse, z, out=score)
    else:
        if common is None:
            z *= inverse.T[:, :, None]
        np.einsum("dkn,kn->dn", z, weights, out=score)
