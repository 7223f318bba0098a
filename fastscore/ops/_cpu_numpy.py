"""Float32 normals on a CPU without a compiler: the reference's bits, made in NumPy in buffers that stay in the cache.

In eager PyTorch every operation of `reference.philox` on 64-bit words brings fresh memory; in place in NumPy, a block
of counters at a time, the same words cost a half.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastscore.reference import philox

_BLOCK = 1 << 13  # counters at a time
_MULTIPLIERS = tuple(map(np.uint64, philox._MULTIPLIERS))
_MASK, _HALF = np.uint64(philox.MASK), np.uint64(32)
_RADIUS = np.float32(2.0 * math.log(2.0) * 2.0**-23)
_TURN = np.float32(2.0 * math.pi * 2.0**-34)

Words = NDArray[np.uint32]
Floats = NDArray[np.float32]
_local = threading.local()


def normals(n: int, width: int, seed: int, stream: int, step: int, first_chain: int) -> Floats:
    """Standard normals `[n, width]`, as `reference.philox.normals` makes them."""
    groups, out = -(-width // 4), np.empty((n, width), np.float32)
    rows = max(1, _BLOCK // groups)
    for start in range(0, n, rows):
        part = out[start : start + rows]
        chain = np.arange(first_chain + start, first_chain + start + len(part), dtype=np.uint64)
        w = _words(seed, stream, step, np.repeat(chain, groups), np.tile(np.arange(groups, dtype=np.uint64), len(part)))
        for pair in range(2 if width > 2 else 1):
            cosine, sine = _box_muller(w[2 * pair], w[2 * pair + 1])
            for lane, values in ((2 * pair, cosine), (2 * pair + 1, sine)):
                into = part[:, lane * groups : (lane + 1) * groups]
                into[...] = values.reshape(len(part), groups)[:, : into.shape[1]]
    return out


def _words(seed: int, stream: int, step: int, chain: NDArray[np.uint64], group: NDArray[np.uint64]) -> list[Words]:
    """Four words a counter; the upper halves of 64-bit words are dirty except where a product reads them."""
    c0, c1 = group, chain
    c2, c3, p0, p1 = _buffers(len(chain))
    c2[...] = step
    np.right_shift(chain, _HALF, out=c3)
    c3 *= np.uint64(256)
    c3 += np.uint64(stream)
    k0, k1 = seed & philox.MASK, seed >> 32 & philox.MASK
    for _ in range(philox._ROUNDS):
        c0 &= _MASK
        c2 &= _MASK
        np.multiply(c0, _MULTIPLIERS[0], out=p0)
        np.multiply(c2, _MULTIPLIERS[1], out=p1)
        np.right_shift(p1, _HALF, out=c0)
        np.right_shift(p0, _HALF, out=c2)
        c0 ^= c1
        c2 ^= c3
        c0 ^= np.uint64(k0)
        c2 ^= np.uint64(k1)
        c1, p1, c3, p0 = p1, c1, p0, c3
        k0, k1 = (k0 + philox._WEYL[0]) & philox.MASK, (k1 + philox._WEYL[1]) & philox.MASK
    return [c.astype(np.uint32) for c in (c0, c1, c2, c3)]


def _buffers(size: int) -> tuple[Any, ...]:
    kept: dict[int, tuple[Any, ...]] = _local.__dict__.setdefault("kept", {})
    if size not in kept:
        kept.clear()
        kept[size] = tuple(np.empty(size, np.uint64) for _ in range(4))
    return kept[size]


def _box_muller(even: Words, odd: Words) -> tuple[Floats, Floats]:
    """(r cos theta, r sin theta), operation by operation `philox.radius` and `philox.direction`."""
    upper = even >= 1 << 31
    t = (even ^ (even.view(np.int32) >> 31).view(np.uint32)).astype(np.float32)
    t += np.float32(0.5)
    t *= np.float32(2.0**-32)
    u = t.copy()
    np.subtract(np.float32(1), t, out=u, where=upper)
    bits = u.view(np.int32)
    exponent = (bits - np.int32(philox._SQRT_HALF)) & np.int32(-0x800000)
    f = (bits - exponent).view(np.float32)
    f -= np.float32(1)
    upper &= exponent == 0
    np.negative(t, out=f, where=upper)
    r = _polynomial(f, philox.LOG_COEFFICIENTS)
    r *= f
    r -= exponent.astype(np.float32) * _RADIUS
    np.sqrt(r, out=r)
    turned = odd + np.uint32(1 << 29)
    angle = (odd << np.uint32(2)).view(np.int32).astype(np.float32)
    angle *= _TURN
    square = angle * angle
    sine = _polynomial(square, philox.SIN_COEFFICIENTS)
    sine *= angle
    cosine = _polynomial(square, philox.COS_COEFFICIENTS)
    s, c = sine.view(np.uint32), cosine.view(np.uint32)
    swap = (s ^ c) & (np.uint32(0) - ((turned >> np.uint32(30)) & np.uint32(1)))
    s ^= swap
    c ^= swap
    s ^= turned & np.uint32(1 << 31)
    c ^= (turned + np.uint32(1 << 30)) & np.uint32(1 << 31)
    cosine *= r
    sine *= r
    return cosine, sine


def _polynomial(x: Floats, coefficients: tuple[float, ...]) -> Floats:
    value = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value *= x
        value += np.float32(c)
    return value
