"""A layer's activation on jets, and its adjoint: all that is not a matrix product, one launch each.

A jet is a value with K tangents and, for a Laplacian, a sum of second derivatives; a linear layer acts on each part
alike, an activation mixes them. With `d = phi'(z)`, `e = phi''(z)`, `f = phi'''(z)`, and `z = Wh + b + u`, where the
kernels add b and u:

    h = phi(z),   hd_k = d zd_k,   hl = d zl + e q,   q = sum_k c_k zd_k^2   (each + the same below, where residual)
    dz = d dh + e (sum_k dhd_k zd_k + dhl zl) + f dhl q,   dzd_k = d dhd_k + 2 e dhl c_k zd_k,   dzl = d dhl

(Li et al. 2024, the forward Laplacian; c_k is 1 there, and weighs a sample's tangents where they are given.) A form of
the tangents, `sum_h p_k hd_k`, is taken on the way; its gradient is `dhd_k = g_k p_k`. Values are `[n, H]`, tangents
`[n, K, H]`.
"""

import triton
import triton.language as tl

from fastscore_kernels import activations
from fastscore_kernels.mlp_tiles import keep, keep_sum, samples, vector


@triton.jit
def tangent_offsets(first, n_rows, k, units, ROWS: tl.constexpr, H: tl.constexpr, K: tl.constexpr):
    """Offsets of tangent k of some samples from that of the first, and which of them there are."""
    rows = tl.arange(0, ROWS)[:, None]
    return (rows * K + k) * H + units[None, :], (rows < n_rows - first) & (units[None, :] < H)


@triton.jit
def tangent(ptr, first, n_rows, k, units, ROWS: tl.constexpr, H: tl.constexpr, K: tl.constexpr):
    """Tangent k of rows `first` (int64) to `first + ROWS`, in float32; 0 beyond the edges."""
    offs, inside = tangent_offsets(first, n_rows, k, units, ROWS, H, K)
    return tl.load(ptr + first * (K * H) + offs, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def keep_tangent(ptr, values, first, n_rows, k, units, ROWS: tl.constexpr, H: tl.constexpr, K: tl.constexpr):
    """Write where `tangent` would read."""
    offs, inside = tangent_offsets(first, n_rows, k, units, ROWS, H, K)
    tl.store(ptr + first * (K * H) + offs, values, mask=inside)


@triton.jit
def numbers(ptr, first, n_rows, k, ROWS: tl.constexpr, K: tl.constexpr):
    """Entry k of some rows of `[n_rows, K]`, `[ROWS, 1]`; 0 beyond the last."""
    rows = tl.arange(0, ROWS)
    return tl.load(ptr + first * K + (rows * K + k), mask=rows < n_rows - first, other=0.0)[:, None]


@triton.jit
def weights_of_form(
    ptr, first, n_rows, k, units, ROWS: tl.constexpr, H: tl.constexpr, K: tl.constexpr, SHARED: tl.constexpr
):
    """p_k, `[ROWS, units]`: of each sample and tangent, or SHARED, one row for all; ones where there is none."""
    if ptr is None:
        return tl.full([1, units.shape[0]], 1.0, tl.float32)
    elif SHARED:
        return vector(ptr, units, H)
    else:
        return tangent(ptr, first, n_rows, k, units, ROWS, H, K)


@triton.jit
def preactivation(z_ptr, b_ptr, u_ptr, first, n_rows, units, ROWS: tl.constexpr, H: tl.constexpr):
    """z = Wh + b + u, of which Wh is in memory; b or u may be None."""
    z = samples(z_ptr, first, n_rows, units, ROWS, H)
    if b_ptr is not None:
        z += vector(b_ptr, units, H)
    if u_ptr is not None:
        z += samples(u_ptr, first, n_rows, units, ROWS, H)
    return z


@triton.jit(do_not_specialize=["n_rows"])
def forward_kernel(
    h_ptr,
    d_ptr,
    hd_ptr,
    hl_ptr,
    form_ptr,
    z_ptr,
    b_ptr,
    u_ptr,
    zd_ptr,
    zl_ptr,
    q_ptr,
    c_ptr,
    h_below_ptr,
    hd_below_ptr,
    hl_below_ptr,
    p_ptr,
    n_rows,
    H: tl.constexpr,
    K: tl.constexpr,
    PHI: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Whatever of `h`, `d`, `hd`, `hl` and the form has somewhere to go; q is given (`[H]`) where tangents are shared.

    The form is `[blocks of units, n, K]`, each block's sum apart.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    units = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    z = preactivation(z_ptr, b_ptr, u_ptr, first, n_rows, units, ROWS, H)
    h, d, e = activations.value_slope_and_curvature(z, PHI, False)
    if h_ptr is not None:
        if h_below_ptr is not None:
            h += samples(h_below_ptr, first, n_rows, units, ROWS, H)
        keep(h_ptr, h, first, n_rows, units, ROWS, H)
    if d_ptr is not None:
        keep(d_ptr, d, first, n_rows, units, ROWS, H)
    q = tl.zeros([ROWS, UNITS], tl.float32)
    if zd_ptr is not None:
        for k in range(0, K):
            zd = tangent(zd_ptr, first, n_rows, k, units, ROWS, H, K)
            hd = d * zd
            if hd_below_ptr is not None:
                hd += tangent(hd_below_ptr, first, n_rows, k, units, ROWS, H, K)
            if hd_ptr is not None:
                keep_tangent(hd_ptr, hd, first, n_rows, k, units, ROWS, H, K)
            if form_ptr is not None:
                total = tl.sum(hd * weights_of_form(p_ptr, first, n_rows, k, units, ROWS, H, K, SHARED), 1)
                rows = tl.arange(0, ROWS)
                start = (tl.program_id(1).to(tl.int64) * n_rows + first) * K
                tl.store(form_ptr + start + (rows * K + k), total, mask=rows < n_rows - first)
            squared = zd * zd
            if c_ptr is not None:
                squared *= numbers(c_ptr, first, n_rows, k, ROWS, K)
            q += squared
    if hl_ptr is not None:
        if q_ptr is not None:
            q += vector(q_ptr, units, H)
        hl = e * q
        if zl_ptr is not None:
            hl += d * samples(zl_ptr, first, n_rows, units, ROWS, H)
        if hl_below_ptr is not None:
            hl += samples(hl_below_ptr, first, n_rows, units, ROWS, H)
        keep(hl_ptr, hl, first, n_rows, units, ROWS, H)


@triton.jit(do_not_specialize=["n_rows"])
def backward_kernel(
    dz_ptr,
    dzd_ptr,
    dzl_ptr,
    dz_sums_ptr,
    dq_sums_ptr,
    z_ptr,
    b_ptr,
    u_ptr,
    zd_ptr,
    zl_ptr,
    q_ptr,
    c_ptr,
    dh_ptr,
    dd_ptr,
    dhd_ptr,
    dhl_ptr,
    g_ptr,
    p_ptr,
    n_rows,
    H: tl.constexpr,
    K: tl.constexpr,
    PHI: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """`dz` with its sums over samples, `dzd` and `dzl`, from what arrives in h, d, hd and hl (None: nothing).

    Where the form is taken, `dhd` is not read but made of g `[n, K]` and p.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    units = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    z = preactivation(z_ptr, b_ptr, u_ptr, first, n_rows, units, ROWS, H)
    _, d, e = activations.value_slope_and_curvature(z, PHI, False)
    on_slope = tl.zeros([ROWS, UNITS], tl.float32)
    q = tl.zeros([ROWS, UNITS], tl.float32)
    dhl = tl.zeros([ROWS, UNITS], tl.float32)
    if dd_ptr is not None:
        on_slope += samples(dd_ptr, first, n_rows, units, ROWS, H)
    if dhl_ptr is not None:
        dhl += samples(dhl_ptr, first, n_rows, units, ROWS, H)
    if zd_ptr is not None:
        for k in range(0, K):
            zd = tangent(zd_ptr, first, n_rows, k, units, ROWS, H, K)
            if dhd_ptr is not None:
                dhd = tangent(dhd_ptr, first, n_rows, k, units, ROWS, H, K)
            else:
                g = numbers(g_ptr, first, n_rows, k, ROWS, K)
                dhd = g * weights_of_form(p_ptr, first, n_rows, k, units, ROWS, H, K, SHARED)
            on_slope += dhd * zd
            dzd = d * dhd
            if dhl_ptr is not None:
                weighed = zd if c_ptr is None else zd * numbers(c_ptr, first, n_rows, k, ROWS, K)
                q += weighed * zd
                dzd += 2.0 * e * dhl * weighed
            keep_tangent(dzd_ptr, dzd, first, n_rows, k, units, ROWS, H, K)
    dz = tl.zeros([ROWS, UNITS], tl.float32)
    if dh_ptr is not None:
        dz += d * samples(dh_ptr, first, n_rows, units, ROWS, H)
    if dhl_ptr is not None:
        if q_ptr is not None:
            q += vector(q_ptr, units, H)
            keep_sum(dq_sums_ptr, dhl * e, units, H)
        if zl_ptr is not None:
            on_slope += dhl * samples(zl_ptr, first, n_rows, units, ROWS, H)
            keep(dzl_ptr, d * dhl, first, n_rows, units, ROWS, H)
        dz += dhl * q * activations.third(z, PHI)
    dz += on_slope * e
    keep(dz_ptr, dz, first, n_rows, units, ROWS, H)
    keep_sum(dz_sums_ptr, dz, units, H)
