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
    state, many = np.ascontiguousarray(x.T), max(1, _NOISE // x.size)
    score = np.empty((dim, n), np.float32)
    z, work = (np.empty((dim, len(mixture.means), n), np.float32) for _ in range(2))
    for start in range(0, len(a), many):
        steps = slice(start, min(start + many, len(a)))
        noise = _cpu_numpy.paths(n, dim, seed, stream, step + start, steps.stop - start, first_chain)
        noise *= c[steps, :, None]
        for done, (made, e) in enumerate(zip(a[steps], noise, strict=True), start + 1):
            _score(state, mixture, z, work, score)
            score *= made[:, None]
            state += score
            state += e
            if clamp is not None:
                np.clip(state, *map(np.float32, clamp), out=state)
            if (index := keep.index(done)) is not None:
                path[:, index] = state.T
    x[...] = state.T


def _score(x: Floats, mixture: Constants, z: Floats, work: Floats, score: Floats) -> None:
    """The score of states `[D, n]`, into `score`; z and work are `[D, K, n]`."""
    means, inverse, log_scale = mixture
    np.subtract(x[:, None], means.T[:, :, None], out=work)
    if inverse.ndim == 2:
        np.multiply(work, inverse.T[:, :, None], out=z)
    else:
        np.einsum("kdj,jkn->dkn", inverse, work, out=z)
    np.square(z, out=work)
    logits = work[0]
    for part in work[1:]:
        logits += part
    logits *= np.float32(-0.5)
    logits += log_scale[:, None]
    logits -= logits.max(0)
    weights = np.exp(logits, out=logits)
    weights /= -weights.sum(0)
    z *= weights
    if inverse.ndim == 2:
        z *= inverse.T[:, :, None]
        z.sum(1, out=score)
    else:
        np.einsum("kdj,dkn->jn", inverse, z, out=score)
