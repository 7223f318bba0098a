"""Hutchinson's probes inside a kernel: the values of `noise.normal` and `noise.rademacher`, made where they are used.

Their stream is that of probes, 2, their step the number of the probe, their chain the global index of the sample.
"""

import triton
import triton.language as tl

from fastscore_kernels import philox


@triton.jit
def sign(word, bit):
    """1 - 2 bit of a word: the Rademacher variable of one feature."""
    return 1.0 - 2.0 * ((word >> bit.to(tl.uint32)) & 1).to(tl.float32)


@triton.jit
def tile(key_low, key_high, chain, features, D: tl.constexpr, KIND: tl.constexpr, number=0):
    """Probe `number` of samples `chain` `[rows]` (int64), `[rows, features]` in float32; `features` is `[n]`.

    KIND is "rademacher", which takes one counter a sample for 128 features, or "normal", of which every feature makes
    the pair it is one of: for the few features of a network on chip, not for images. Features from D on have some
    finite value; what they meet is 0.
    """
    chain, feature = chain[:, None], features[None, :]
    nothing = tl.zeros([1, 1], tl.int32)
    step = nothing + number
    if KIND == "rademacher":
        group = feature // 128 if D > 128 else nothing
        w0, w1, w2, w3 = philox.words(key_low, key_high, 2, step, chain, group)
        at = feature % 128 // 32
        return sign(tl.where(at == 0, w0, tl.where(at == 1, w1, tl.where(at == 2, w2, w3))), feature % 32)
    else:
        GROUPS: tl.constexpr = (D + 3) // 4
        w0, w1, w2, w3 = philox.words(key_low, key_high, 2, step, chain, feature % GROUPS)
        lane = feature // GROUPS
        cos, sin = philox.direction(tl.where(lane < 2, w1, w3), False)
        return philox.radius(tl.where(lane < 2, w0, w2), False) * tl.where(lane % 2 == 0, cos, sin)
