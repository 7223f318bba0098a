"""Counter-based noise inside a kernel: the Triton twin of `fastscore.reference.philox`, equal to it word for word.

Own code instead of `tl.philox` and `tl.randn`: the stream may not change with Triton, and `tl.randn` clamps at 5.68
sigma and uses 31 of 32 bits. Every function works on loaded values of any block shape.
"""

import triton
import triton.language as tl

_M0 = tl.constexpr(0xD2511F53)
_M1 = tl.constexpr(0xCD9E8D57)
_W0 = tl.constexpr(0x9E3779B9)
_W1 = tl.constexpr(0xBB67AE85)
_TWO_PI_34 = tl.constexpr(2.0 * 3.14159265358979323846 * 2.0**-34)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Four uint32 words of Philox-4x32-10 from uint32 counter and key words (Salmon et al., SC 2011)."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * _M0
        p1 = c2.to(tl.uint64) * _M1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 += _W0
        k1 += _W1
    return c0, c1, c2, c3


@triton.jit
def tile(n_chains, n_groups, BLOCK_CHAINS: tl.constexpr, BLOCK_GROUPS: tl.constexpr):
    """This program's tile of counters, groups running fastest: the first row and, within it, rows and groups.

    The first row is an int64 scalar, so that what is multiplied by the width of a row is wide; the rows
    `[BLOCK_CHAINS, 1]`, the groups `[1, BLOCK_GROUPS]` and their offsets are int32. `inside` masks both.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(n_groups, BLOCK_GROUPS)
    first_row = (program // blocks).to(tl.int64) * BLOCK_CHAINS
    rows = tl.arange(0, BLOCK_CHAINS)[:, None]
    groups = (program % blocks) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)[None, :]
    inside = (rows < n_chains - first_row) & (groups < n_groups)
    return first_row, rows, groups, inside


@triton.jit
def words(key_low, key_high, stream, step, chain, group):
    """The noise contract: seed words and step as the bits of int32, int64 `chain` (global index), int32 `group`."""
    chain, group = tl.broadcast(chain, group)
    zero = tl.zeros(chain.shape, tl.uint32)
    c2 = zero + step.to(tl.uint32)
    c3 = (stream + ((chain >> 32) << 8)).to(tl.uint32)
    k0 = zero + key_low.to(tl.uint32)
    k1 = zero + key_high.to(tl.uint32)
    return philox(group.to(tl.uint32), chain.to(tl.uint32), c2, c3, k0, k1)


@triton.jit
def radius(word, DOUBLE: tl.constexpr):
    """sqrt(-2 ln u), u = (word + 0.5) 2^-32: through t = 1 - u for words above 2^31, which float32 holds exactly.

    u = 2^e (1 + f) with f in [sqrt(1/2) - 1, sqrt(2) - 1) and -2 ln u = -2 e ln 2 + f P(f), P = -2 ln(1 + f) / f to a
    relative 1.7e-7. (Triton's own logarithm is a longer polynomial, guarded for arguments that cannot occur here.)
    """
    if DOUBLE:
        return tl.sqrt(-2.0 * tl.log((word.to(tl.float64) + 0.5) * 2.0**-32))
    else:
        upper = word >= 0x80000000
        t = tl.minimum(word, word ^ 0xFFFFFFFF).to(tl.float32) * 2.0**-32 + 2.0**-33
        u = tl.where(upper, 1.0 - t, t).to(tl.int32, bitcast=True)
        exponent = (u - 0x3F3504F3) & -0x800000
        f = (u - exponent).to(tl.float32, bitcast=True) - 1.0
        f = tl.where(upper & (exponent == 0), -t, f)
        p = 0.20213528246422405 * f - 0.32445048767948886
        p = p * f + 0.34501696392269265
        p = p * f - 0.3980034641012609
        p = p * f + 0.499398165516169
        p = p * f - 0.6667011735653527
        p = p * f + 1.0000073026645644
        p = p * f - 1.9999998906458825
        return tl.sqrt(p * f - exponent.to(tl.float32) * (1.3862943611198906 * 2.0**-23))


@triton.jit
def direction(word, DOUBLE: tl.constexpr):
    """(cos theta, sin theta), theta = 2 pi word 2^-32, folded exactly to [-pi/4, pi/4]."""
    angle = (word << 2).to(tl.int32, bitcast=True)
    turned = word + 0x20000000
    odd = (turned & 0x40000000) != 0
    flip_cos = (turned + 0x40000000) & 0x80000000
    flip_sin = turned & 0x80000000
    if DOUBLE:
        rest = angle.to(tl.float64) * _TWO_PI_34
        cos, sin = _cos_sin_double(rest)
        c = tl.where(odd, sin, cos)
        s = tl.where(odd, cos, sin)
        return tl.where(flip_cos != 0, -c, c), tl.where(flip_sin != 0, -s, s)
    else:
        rest = angle.to(tl.float32) * _TWO_PI_34
        cos, sin = _cos_sin_single(rest)
        c = tl.where(odd, sin, cos).to(tl.uint32, bitcast=True) ^ flip_cos
        s = tl.where(odd, cos, sin).to(tl.uint32, bitcast=True) ^ flip_sin
        return c.to(tl.float32, bitcast=True), s.to(tl.float32, bitcast=True)


@triton.jit
def _cos_sin_single(x):
    """(cos x, sin x) on [-pi/4, pi/4] to float32 accuracy (coefficients: Cephes, S. Moshier, sinf.c)."""
    y = x * x
    p = -1.9515295891e-4 * y + 8.3321608736e-3
    p = p * y - 1.6666654611e-1
    p = p * y + 1.0
    q = 2.443315711809948e-5 * y - 1.388731625493765e-3
    q = q * y + 4.166664568298827e-2
    q = q * y - 0.5
    return q * y + 1.0, x * p


@triton.jit
def _cos_sin_double(x):
    """The same to float64 accuracy (Cephes, sin.c): no table and no slow path, so nothing in local memory."""
    y = x * x
    p = 1.58962301576546568060e-10 * y - 2.50507477628578072866e-8
    p = p * y + 2.75573136213857245213e-6
    p = p * y - 1.98412698295895385996e-4
    p = p * y + 8.33333333332211858878e-3
    p = p * y - 1.66666666666666307295e-1
    q = -1.13585365213876817300e-11 * y + 2.08757008419747316778e-9
    q = q * y - 2.75573141792967388112e-7
    q = q * y + 2.48015872888517045348e-5
    q = q * y - 1.38888888888730564116e-3
    q = q * y + 4.16666666666665929218e-2
    return q * y * y - 0.5 * y + 1.0, p * y * x + x


@triton.jit
def normals(w0, w1, w2, w3, DOUBLE: tl.constexpr):
    """Four standard normals, lanes 0 to 3 of a group, by Box-Muller."""
    r = radius(w0, DOUBLE)
    cos, sin = direction(w1, DOUBLE)
    s = radius(w2, DOUBLE)
    cos2, sin2 = direction(w3, DOUBLE)
    return r * cos, r * sin, s * cos2, s * sin2


def as_int32(*words: int) -> tuple[int, ...]:
    """The low 32 bits of each word as an int32: one argument type for every seed and step, so nothing is recompiled."""
    return tuple(((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000 for word in words)
