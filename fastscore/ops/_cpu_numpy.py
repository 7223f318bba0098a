"""Float32 normals on a CPU without a compiler: the reference's bits, made in NumPy in buffers that stay in the cache.

In eager PyTorch every operation of `reference.philox` on 64-bit words brings fresh memory; here they are done in place,
a block of counters at a time, and those of several steps of a chain at once.
"""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray

from fastscore.reference import philox

_BLOCK = 1 << 14  # counters at a time
_MULTIPLIERS = tuple(map(np.uint64, philox._MULTIPLIERS))
_MASK, _HALF = np.uint64(philox.MASK), np.uint64(32)
_RADIUS = np.float32(2.0 * math.log(2.0) * 2.0**-23)
_TURN = np.float32(2.0 * math.pi * 2.0**-34)

Wide = NDArray[np.uint64]
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
        group, flat = np.arange(groups, dtype=np.uint64), groups == 1
        at = (group[:, None] if flat else group[None], chain[None] if flat else chain[:, None], _same(step))
        for lane, values in enumerate(_lanes(seed, stream, at, min(width, 4))):
            if (into := part[:, lane * groups : (lane + 1) * groups]).size:
                into[...] = (values.T if flat else values)[:, : into.shape[1]]
    return out


def paths(n: int, width: int, seed: int, stream: int, step: int, n_steps: int, first_chain: int) -> Floats:
    """The normals of many steps, chains last: `[n_steps, width, n]`."""
    groups, out = -(-width // 4), np.empty((n_steps, width, n), np.float32)
    chain, group = np.arange(first_chain, first_chain + n, dtype=np.uint64)[None], np.arange(groups, dtype=np.uint64)
    many = max(1, _BLOCK // (n * groups))
    for start in range(0, n_steps, many):
        part = out[start : start + many]
        steps = np.arange(step + start, step + start + len(part), dtype=np.uint64)
        for first in range(0, n, _BLOCK):
            some = slice(first, first + _BLOCK)
            at = (np.tile(group, len(part))[:, None], chain[:, some], np.repeat(steps, groups)[:, None])
            for lane, values in enumerate(_lanes(seed, stream, at, min(width, 4))):
                if (into := part[:, lane * groups : (lane + 1) * groups, some]).size:
                    into[...] = values.reshape(len(part), groups, -1)[:, : into.shape[1]]
    return out


def _same(number: int) -> Wide:
    return np.full((1, 1), number, np.uint64)


def _lanes(seed: int, stream: int, at: tuple[Wide, Wide, Wide], n_lanes: int) -> list[Floats]:
    """Two or four lanes of normals at the counters (group, chain, step), which broadcast to `[rows, columns]`."""
    words = [word.astype(np.uint32) for word in _words(seed, stream, at, 4 if n_lanes > 2 else 2)]
    return [lane for pair in range(len(words) // 2) for lane in _box_muller(words[2 * pair], words[2 * pair + 1])]


def _words(seed: int, stream: int, at: tuple[Wide, Wide, Wide], wanted: int) -> list[Wide]:
    """The first two or all four words, in the lower halves of 64 bits.

    A word that is the same along an axis stays small until a round mixes it in, which makes the first rounds nearly
    free; what only words that are not wanted depend on is left out.
    """
    c0, c1, c2 = at
    c0, c1, c2, c3 = c0, c1 & _MASK, c2, np.uint64(stream) + np.uint64(256) * (c1 >> _HALF)
    work = _Work(np.broadcast_shapes(c0.shape, c1.shape, c2.shape))
    k0, k1 = seed & philox.MASK, seed >> 32 & philox.MASK
    for left in reversed(range(philox._ROUNDS)):
        lower = wanted > 2 or left > 0  # whether c2 and c3 are still of use
        p1 = work.product(c2, _MULTIPLIERS[1])
        p0 = work.product(c0, _MULTIPLIERS[0]) if lower else c0
        c0, c1 = work.mixed(p1, c1, k0) if wanted > 2 or left != 1 else c1, p1
        c2, c3 = (work.mixed(p0, c3, k1), p0) if lower else (c2, c3)
        k0, k1 = (k0 + philox._WEYL[0]) & philox.MASK, (k1 + philox._WEYL[1]) & philox.MASK
    return [np.broadcast_to(c, work.shape) for c in (c0, c1, c2, c3)[:wanted]]


class _Work:
    """Arithmetic on words in buffers that are used again; the upper halves of words are left dirty."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        kept: dict[tuple[int, ...], list[Wide]] = _local.__dict__.setdefault("kept", {})
        if shape not in kept:
            kept.clear()
            kept[shape] = [np.empty(shape, np.uint64) for _ in range(6)]
        self.shape, self.all, self.free = shape, kept[shape], list(kept[shape])

    def product(self, c: Wide, by: np.uint64) -> Wide:
        """The lower half of c times `by`; c is used up."""
        if not self.owns(c):
            small: Wide = (c & _MASK) * by
            return small
        c &= _MASK
        c *= by
        return c

    def mixed(self, p: Wide, c: Wide, k: int) -> Wide:
        """(p div 2^32) ^ c ^ k; c is used up."""
        key = np.uint64(k)
        if not self.owns(p):
            upper = (p >> _HALF) ^ key
            if self.owns(c):
                c ^= upper
                return c
            if np.broadcast_shapes(upper.shape, c.shape) != self.shape:
                small: Wide = upper ^ c
                return small
            filled = self.free.pop()
            np.bitwise_xor(c, upper, out=filled)
            return filled
        made = self.free.pop()
        np.right_shift(p, _HALF, out=made)
        made ^= c if self.owns(c) else c ^ key
        if self.owns(c):
            self.free.append(c)
            made ^= key
        return made

    def owns(self, c: Wide) -> bool:
        """Whether c is one of the buffers."""
        return any(c is buffer for buffer in self.all)


def _box_muller(even: Words, odd: Words) -> tuple[Floats, Floats]:
    """(r cos theta, r sin theta), operation by operation `philox.radius` and `philox.direction`."""
    upper = even.view(np.int32) >> 31
    t = (even.view(np.int32) ^ upper).astype(np.float32)
    t += np.float32(0.5)
    t *= np.float32(2.0**-32)
    bits = _chosen(upper, np.float32(1) - t, t).view(np.int32)
    exponent = (bits - np.int32(philox._SQRT_HALF)) & np.int32(-0x800000)
    f = (bits - exponent).view(np.float32)
    f -= np.float32(1)
    upper &= (exponent == 0).view(np.int8) * np.int32(-1)
    f = _chosen(upper, np.negative(t, out=t), f)
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
    swap = (turned << np.uint32(1)).view(np.int32) >> 31
    swap = (s ^ c) & swap.view(np.uint32)
    s ^= swap
    c ^= swap
    s ^= turned & np.uint32(1 << 31)
    c ^= (turned + np.uint32(1 << 30)) & np.uint32(1 << 31)
    cosine *= r
    sine *= r
    return cosine, sine


def _chosen(mask: NDArray[np.int32], yes: Floats, no: Floats) -> Floats:
    """`yes` where mask is -1, `no` where it is 0, by bits; in the memory of `yes`."""
    bits, other = yes.view(np.int32), no.view(np.int32)
    bits ^= other
    bits &= mask
    bits ^= other
    return yes


def _polynomial(x: Floats, coefficients: tuple[float, ...]) -> Floats:
    value = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value *= x
        value += np.float32(c)
    return value
