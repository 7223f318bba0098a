"""The gradient of `sum_b ds_b . s_b + g_b tr_b` for a network with one or two hidden layers: recomputed, not stored.

With the names of `mlp_forward`, `q = M d_1` and `e_l = phi_l''(z_l)`:

    dz_2 = (W_3' ds) * d_2 + g q * e_2,                                          `upper_kernel`
    dh_1 = W_2' dz_2 (+ W_3' ds if residual),   dd_1 = M' (g d_2) (+ g c),
    dz_1 = dh_1 * d_1 + dd_1 * e_1.                                              `lower_kernel`

With a probe v, M is W_2 and `g` is `g p` with `p = (C W_3)' v`; q is then zd_2, `g d_2` is dzd_2, and

    dd_1 = dhd_1 * zd_1,   dzd_1 = dhd_1 * d_1,   dhd_1 = W_2' dzd_2,   zd_1 = W_1 v;

v is made anew in both kernels, and written once for the products `dzd_1' v` and `v' (g hd_2)`.

With one hidden layer only the second runs, on `dh_1 = W_2' ds` and `dd_1 = g c`; without a trace, M, c and g are None,
and so is what is made of them. What the gradients of the weights
need is written, each array once, for one matrix product each outside (and `dx = W_1' dz_1`):

    dW_2 = dz_2' h_1,  dM = (g d_2)' d_1,  dW_1 = dz_1' x,  dW_{L+1} = ds' h_L;

sums over samples (`db_l`, `dc = sum g d_1`) as one row a program. The two accumulators of H x H that would spare this
traffic do not fit beside the rest in registers (they spill 3 KB a thread), and TF32 products need the batch, here
their inner side, contiguous.
"""

import triton
import triton.language as tl

from fastscore_kernels import activations, probes
from fastscore_kernels.mlp_tiles import (
    keep,
    keep_sum,
    matrix,
    product,
    projected,
    samples,
    second_layer,
    vector,
    weights_of,
)


@triton.jit(do_not_specialize=["n_rows", "first_chain", "key_low", "key_high", "number"])
def upper_kernel(
    dz2_ptr,
    gd2_ptr,
    phi2_ptr,
    hd2_ptr,
    h1_ptr,
    d1_ptr,
    v_ptr,
    dz2_sums_ptr,
    x_ptr,
    ds_ptr,
    g_ptr,
    u1_ptr,
    u2_ptr,
    w1_ptr,
    w2_ptr,
    w3_t_ptr,
    p_t_ptr,
    b1_ptr,
    b2_ptr,
    m_ptr,
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
    PROBE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    ABOVE: tl.constexpr,
):
    """`dz_2`, `g d_2`, and where they are wanted (else None) `phi_2(z_2)`, `h_1` and `d_1`; ABOVE units a program.

    With a PROBE `hd_1` for `d_1`, `g hd_2`, and the probe itself.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    start = tl.program_id(1) * ABOVE
    above = start + tl.arange(0, ABOVE)
    features = tl.arange(0, max(16, triton.next_power_of_2(D)))
    x = samples(x_ptr, first, n_rows, features, ROWS, D)
    v = None
    if PROBE is not None:
        v = probes.tile(key_low, key_high, first_chain + first + tl.arange(0, ROWS), features, D, PROBE, number)
        if v_ptr is not None:
            keep(v_ptr, v, first, tl.where(start == 0, n_rows, 0), features, ROWS, D)
    z2, carried = second_layer(
        h1_ptr, d1_ptr, x, v, u1_ptr, u2_ptr, w1_ptr, w2_ptr, b1_ptr, b2_ptr, m_ptr, first, n_rows, start,
        D, H1, H2, PHI1, PRECISION, ROWS, UNITS, ABOVE,
    )  # fmt: skip
    phi2, d2, e2 = activations.value_slope_and_curvature(z2, PHI2, False)
    if phi2_ptr is not None:
        keep(phi2_ptr, phi2, first, n_rows, above, ROWS, H2)
    dz2 = tl.zeros([ROWS, ABOVE], tl.float32)
    if m_ptr is not None:
        g = weights_of(g_ptr, first, n_rows, ROWS)
        dz2 += g * carried * e2  # before the product with the probe, beside which carried and e2 would fill registers
        if PROBE is not None:
            if hd2_ptr is not None:
                keep(hd2_ptr, g * d2 * carried, first, n_rows, above, ROWS, H2)
            p = product(v, matrix(p_t_ptr, above, features, H2, D), PRECISION)
            dz2 *= p
            g *= p
        keep(gd2_ptr, g * d2, first, n_rows, above, ROWS, H2)
    dz2 += projected(ds_ptr, w3_t_ptr, first, n_rows, above, ROWS, H2, D, PRECISION) * d2
    keep(dz2_ptr, dz2, first, n_rows, above, ROWS, H2)
    keep_sum(dz2_sums_ptr, dz2, above, H2)


@triton.jit(do_not_specialize=["n_rows", "first_chain", "key_low", "key_high", "number"])
def lower_kernel(
    dz1_ptr,
    dzd1_ptr,
    h1_ptr,
    dz1_sums_ptr,
    gd1_sums_ptr,
    x_ptr,
    dz2_ptr,
    gd2_ptr,
    ds_ptr,
    g_ptr,
    u1_ptr,
    w1_ptr,
    w2_t_ptr,
    w3_t_ptr,
    b1_ptr,
    m_t_ptr,
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
    DIRECT: tl.constexpr,
    PROBE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    BELOW: tl.constexpr,
):
    """`dz_1`, BELOW units a program, which takes UNITS units of the second layer at a time.

    With one hidden layer `dz2_ptr` is None and `h_1` is written here. DIRECT says that h_1 reaches the output by
    itself; c is None where `tr J` has no term `d_1 . c`.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    below = tl.program_id(1) * BELOW + tl.arange(0, BELOW)
    dh1 = tl.zeros([ROWS, BELOW], tl.float32)
    dd1 = tl.zeros([ROWS, BELOW], tl.float32)
    if dz2_ptr is not None:
        for start in range(0, H2, UNITS):
            units = start + tl.arange(0, UNITS)
            dz2 = samples(dz2_ptr, first, n_rows, units, ROWS, H2)
            dh1 += product(dz2, matrix(w2_t_ptr, below, units, H1, H2), PRECISION)
            if m_t_ptr is not None:
                gd2 = samples(gd2_ptr, first, n_rows, units, ROWS, H2)
                dd1 += product(gd2, matrix(m_t_ptr, below, units, H1, H2), PRECISION)
    if DIRECT:
        dh1 += projected(ds_ptr, w3_t_ptr, first, n_rows, below, ROWS, H1, D, PRECISION)
    if c_ptr is not None:
        dd1 += weights_of(g_ptr, first, n_rows, ROWS) * vector(c_ptr, below, H1)
    z1 = projected(x_ptr, w1_ptr, first, n_rows, below, ROWS, H1, D, PRECISION)
    if b1_ptr is not None:
        z1 += vector(b1_ptr, below, H1)
    if u1_ptr is not None:
        z1 += samples(u1_ptr, first, n_rows, below, ROWS, H1)
    h1, d1, e1 = activations.value_slope_and_curvature(z1, PHI1, False)
    if h1_ptr is not None:
        keep(h1_ptr, h1, first, n_rows, below, ROWS, H1)
    if c_ptr is not None:
        keep_sum(gd1_sums_ptr, weights_of(g_ptr, first, n_rows, ROWS) * d1, below, H1)
    dz1, bent = dh1 * d1, dd1 * e1  # two tiles beside the product with the probe, not four
    if PROBE is not None:
        if dzd1_ptr is not None:
            keep(dzd1_ptr, dd1 * d1, first, n_rows, below, ROWS, H1)
        features = tl.arange(0, max(16, triton.next_power_of_2(D)))
        v = probes.tile(key_low, key_high, first_chain + first + tl.arange(0, ROWS), features, D, PROBE, number)
        bent *= product(v, matrix(w1_ptr, below, features, H1, D), PRECISION)
    dz1 += bent
    keep(dz1_ptr, dz1, first, n_rows, below, ROWS, H1)
    keep_sum(dz1_sums_ptr, dz1, below, H1)
