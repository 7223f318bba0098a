"""Counter-based noise: a pure function of (seed, stream, step, chain, feature), never a state.

Philox-4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a key and a
counter to four 32-bit words. Where the seed, the stream, the step, the chain and the feature stand in them is the noise
contract, stream version 1:

    key (seed mod 2^32, seed div 2^32)      c0 = group      c1 = chain mod 2^32
                                            c2 = step       c3 = stream + 256 (chain div 2^32)

Words live in int64 tensors: the low 64 bits of a product do not depend on its sign, so wrapping int64 arithmetic gives
the exact unsigned halves on every device. A seed or a step may be an int or a 0-dim int64 tensor (so that a compiled
program or a CUDA graph need not be rebuilt for another one); a 64-bit seed beyond 2^63 - 1 wraps to the same bits.
"""

from __future__ import annotations

import enum
import math

import torch
from torch import Tensor

STREAM_VERSION = 1


class Stream(enum.IntEnum):
    """What a stream of noise is for; streams never share a word."""

    LANGEVIN = 0
    ACCEPT = 1
    PROBES = 2
    MOMENTA = 3
    DATA = 4
    INITIAL = 5


MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# -2 ln(1 + f) = f P(f) for f in [sqrt(1/2) - 1, sqrt(2) - 1), to a relative 1.7e-7.
LOG_COEFFICIENTS = (
    -1.9999998906458825,
    1.0000073026645644,
    -0.6667011735653527,
    0.499398165516169,
    -0.3980034641012609,
    0.34501696392269265,
    -0.32445048767948886,
    0.20213528246422405,
)
_SQRT_HALF = 0x3F3504F3  # the bits of sqrt(1/2) in float32
# Minimax polynomials of sin and cos on [-pi/4, pi/4] (Cephes, S. Moshier: sinf.c), to float32 accuracy.
SIN_COEFFICIENTS = (1.0, -1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4)
COS_COEFFICIENTS = (1.0, -0.5, 4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5)

Word = Tensor | int


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of Philox-4x32-10 as int64 tensors of values in [0, 2^32).

    Counter and key words are in [0, 2^32) and broadcast against each other; a word that is the same for many counters
    stays small until a round mixes it in, which makes the first rounds of a `[B, G]` grid of counters nearly free.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = (c0 & MASK) * _MULTIPLIERS[0], (c2 & MASK) * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1, (p0 >> 32) ^ c3 ^ k1, p0
        k0, k1 = (k0 + _WEYL[0]) & MASK, (k1 + _WEYL[1]) & MASK
    return tuple(torch.as_tensor(c & MASK) for c in (c0, c1, c2, c3))  # type: ignore[return-value]


def words(seed: Word, stream: int, step: Word, chain: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The contract: words of shape broadcast(chain, group) for int64 `chain` (global index, below 2^56) and `group`."""
    key = (seed & MASK, (seed >> 32) & MASK)
    counter = (group, chain & MASK, step, stream + 256 * (chain >> 32))
    return philox(counter, key)


def radius(word: Tensor, dtype: torch.dtype) -> Tensor:
    """sqrt(-2 ln u), u = (word + 0.5) 2^-32, for float32 or float64; the largest is sqrt(66 ln 2) = 6.7637.

    Float32 cannot hold u near 1, so words above 2^31 go through t = 1 - u, which it holds exactly. The logarithm is
    written out, u = 2^e (1 + f), -2 ln u = f P(f) - 2 e ln 2, and the root taken in float64, because torch's own on
    float32 are not rounded alike on all machines.
    """
    if dtype == torch.float64:
        return torch.sqrt(-2.0 * torch.log((word.to(dtype) + 0.5) * 2.0**-32))
    upper = word >= 1 << 31
    t = (torch.where(upper, MASK - word, word).to(torch.int32).to(dtype) + 0.5) * 2.0**-32
    u = torch.where(upper, 1.0 - t, t).view(torch.int32)
    exponent = (u - _SQRT_HALF) & -0x800000
    f = (u - exponent).view(dtype) - 1.0
    f = torch.where(upper & (exponent == 0), -t, f)
    log = polynomial(f, LOG_COEFFICIENTS) * f - exponent.to(dtype) * (2.0 * math.log(2.0) * 2.0**-23)
    return torch.sqrt(log.double()).to(dtype)


def direction(word: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos theta, sin theta), theta = 2 pi word 2^-32, for float32 or float64.

    The word is split exactly into the nearest quarter turn and a rest in [-pi/4, pi/4): no rounding of the angle.
    """
    turned = word + (1 << 29)
    angle = ((turned & 0x3FFFFFFF) - (1 << 29)).to(dtype) * (2.0 * math.pi * 2.0**-32)
    if dtype == torch.float64:
        cos, sin = torch.cos(angle), torch.sin(angle)
    else:
        square = angle * angle
        cos, sin = polynomial(square, COS_COEFFICIENTS), angle * polynomial(square, SIN_COEFFICIENTS)
    quarter = turned >> 30
    odd = (quarter & 1) == 1
    cos, sin = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    return torch.where(((quarter + 1) & 2) == 2, -cos, cos), torch.where((quarter & 2) == 2, -sin, sin)


def polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """sum_k coefficients[k] x^k by Horner's rule."""
    value = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + c
    return value


def normals(seed: Word, stream: int, step: Word, chain: Tensor, n_features: int, dtype: torch.dtype) -> Tensor:
    """Standard normals `[*chain.shape, n_features]`, float32 or float64, by Box-Muller.

    With G = ceil(n_features / 4), feature d is lane d div G of group d mod G: each of the four lanes is a contiguous
    quarter of the event. Words (w0, w1) give lanes 0 and 1, (w2, w3) lanes 2 and 3.
    """
    n_groups = -(-n_features // 4)
    group = torch.arange(n_groups, device=chain.device)
    w0, w1, w2, w3 = words(seed, stream, step, chain.unsqueeze(-1), group)
    lanes: list[Tensor] = []
    for even, odd in ((w0, w1), (w2, w3)) if n_features > 2 else ((w0, w1),):
        r = radius(even, dtype)
        cos, sin = direction(odd, dtype)
        lanes += [r * cos, r * sin]
    return torch.cat([lane[..., : max(0, n_features - i * n_groups)] for i, lane in enumerate(lanes)], -1)


def uniforms(seed: Word, stream: int, step: Word, chain: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniforms in (0, 1], one a chain: word 0 of group 0, (w + 0.5) 2^-32 (float32 can round to 1)."""
    w0, _, _, _ = words(seed, stream, step, chain, torch.zeros((), dtype=torch.int64, device=chain.device))
    return (w0.to(dtype) + 0.5) * 2.0**-32


def rademacher(seed: Word, stream: int, step: Word, chain: Tensor, n_features: int, dtype: torch.dtype) -> Tensor:
    """Signs `[*chain.shape, n_features]`, 1 - 2 bit: bit d mod 32 of word (d mod 128) div 32 of group d div 128."""
    group = torch.arange(-(-n_features // 128), device=chain.device)
    used = min(4, -(-n_features // 32))
    word = torch.stack(words(seed, stream, step, chain.unsqueeze(-1), group)[:used], -1)
    bits = (word.unsqueeze(-1) >> torch.arange(min(32, n_features), device=chain.device)) & 1
    return (1 - 2 * bits.flatten(-3)[..., :n_features].contiguous()).to(dtype)
