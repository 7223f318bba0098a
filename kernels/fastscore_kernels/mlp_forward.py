"""Score and exact trace of a network with one or two hidden layers, in one launch that writes nothing else.

z_1 = W_1 x + b_1 + u_1, h_l = phi_l(z_l), s = W_{L+1} h_L + b_{L+1} + u_{L+1}, d_l = phi_l'(z_l), and

    one hidden layer:   tr J = d_1 . c
    two hidden layers:  tr J = d_2' M d_1,  M = W_2 * (W_1 W_3)';  with h_2 = h_1 + phi_2(z_2), + d_1 . c

c and M are formed once a call, outside (`fastscore.ops.mlp_forms.Bilinear`, which has the mathematics); they and the
trace are None where the score alone is asked for. With a probe v, for Hutchinson's estimate of two hidden layers,

    v'Jv = p . hd_2,  hd_2 = d_2 * W_2 hd_1,  hd_1 = d_1 * W_1 v,  p = (C W_3)' v,

so that W_2 stands where M does, hd_1 where d_1 does, and p weighs the sum; v is made here and nowhere stored.
"""

import triton
import triton.language as tl

from fastscore_kernels import activations, probes
from fastscore_kernels.mlp_tiles import keep, matrix, preactivation, product, samples, second_layer, vector


@triton.jit(do_not_specialize=["n_rows", "first_chain", "key_low", "key_high", "number"])
def forward_kernel(
    score_ptr,
    trace_ptr,
    x_ptr,
    u1_ptr,
    u2_ptr,
    u3_ptr,
    w1_ptr,
    w2_ptr,
    w3_ptr,
    p_t_ptr,
    b1_ptr,
    b2_ptr,
    b3_ptr,
    m_ptr,
    c_ptr,
    n_rows,
    first_chain,
    key_low,
    key_high,
    number,
    D: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,
    PHI1: tl.constexpr,
    PHI2: tl.constexpr,
    DIRECT: tl.constexpr,
    PROBE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    ABOVE: tl.constexpr,
):
    """ABOVE units of the second layer at a time and, for them, UNITS of the first.

    With one hidden layer W_2, b_2, u_2 and M are None, W_3 is its output. DIRECT says that h_1 reaches the output by
    itself: there is one hidden layer, or the second is residual; else c is None. PROBE is the kind of v, or None.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    features = tl.arange(0, max(16, triton.next_power_of_2(D)))
    x = samples(x_ptr, first, n_rows, features, ROWS, D)
    v = None
    if PROBE is not None:
        v = probes.tile(key_low, key_high, first_chain + first + tl.arange(0, ROWS), features, D, PROBE, number)
    score = tl.zeros([ROWS, features.shape[0]], tl.float32)
    trace = tl.zeros([ROWS], tl.float32)
    if DIRECT:
        for start in range(0, H1, UNITS):
            units = start + tl.arange(0, UNITS)
            z1 = preactivation(x, w1_ptr, b1_ptr, u1_ptr, first, n_rows, units, features, ROWS, H1, D, PRECISION)
            h1, d1 = activations.value_and_slope(z1, PHI1, False)
            score += product(h1, matrix(w3_ptr, features, units, D, H1), PRECISION)
            if c_ptr is not None:
                trace += tl.sum(d1 * vector(c_ptr, units, H1), 1)
    if w2_ptr is not None:
        for start in range(0, H2, ABOVE):
            above = start + tl.arange(0, ABOVE)
            z2, carried = second_layer(
                None, None, x, v, u1_ptr, u2_ptr, w1_ptr, w2_ptr, b1_ptr, b2_ptr, m_ptr, first, n_rows, start,
                D, H1, H2, PHI1, PRECISION, ROWS, UNITS, ABOVE,
            )  # fmt: skip
            h2, d2 = activations.value_and_slope(z2, PHI2, False)
            if PROBE is not None:
                carried *= product(v, matrix(p_t_ptr, above, features, H2, D), PRECISION)
            if m_ptr is not None:
                trace += tl.sum(d2 * carried, 1)
            score += product(h2, matrix(w3_ptr, features, above, D, H2), PRECISION)
    if b3_ptr is not None:
        score += vector(b3_ptr, features, D)
    if u3_ptr is not None:
        score += samples(u3_ptr, first, n_rows, features, ROWS, D)
    keep(score_ptr, score, first, n_rows, features, ROWS, D)
    if trace_ptr is not None:
        rows = tl.arange(0, ROWS)
        tl.store(trace_ptr + first + rows, trace, mask=rows < n_rows - first)
