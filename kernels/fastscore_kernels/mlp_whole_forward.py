"""Whole networks in one launch, values only: traces, exact of three and more hidden layers or estimated, and energies.

A program holds COLUMNS samples, each a column, with all units of a layer: what a layer gives is the right factor of the
next product, whose left factor, the weights, the tensor cores read from shared memory, where the hidden layers' stay.
So a layer costs registers for its slopes `d_l = phi_l'(z_l)` alone, and one of the D tangents at a time goes through,

    T_1 = d_1 * (W_1 C)_k,   Q_l = W_l T_{l-1},   T_l = d_l * Q_l (+ T_{l-1} if residual),
    tr(C J) = sum_k W_{L+1}[k] . T_L,                                                              `trace_kernel`

along a probe v alike, `T_1 = d_1 * W_1 v` and `v'CJv = (C W_{L+1})' v . T_L`, v made here; for an energy, with the
adjoints `a_L = w`, `a_{l-1} = W_l' (d_l a_l) (+ a_l)`, which need no tangents,

    s = -W_1' (d_1 a_1),   lap E = a_1 e_1 . |W_1|^2 + sum_k sum_{l > 1} a_l e_l . Q_l^2,          `energy_kernel`

with `e_l = phi_l''(z_l)` (the forward Laplacian of Li et al. 2024 with its sums exchanged: `reference.mlp`); along a
probe `v' (d2E/dx2) v = sum_l a_l e_l . Q_l^2` with `Q_1 = W_1 v`. Nothing but x, shifts and weights is read, nothing
but values per sample is written: a tangent of a layer, which costs four passes over [B, H] in memory layer by layer,
costs its product alone here.

Weights (W_1 to W_L), transposes, biases and shifts are tuples by layer; None where there is none. Edges are as in
`mlp_tiles`. PRECISION is as there, or "bf16x6": each weight is the sum of three of bfloat16, which lie APART (else 0).
"""

import triton
import triton.language as tl

from fastscore_kernels import activations, probes
from fastscore_kernels.mlp_tiles import matrix, product


@triton.jit
def column(ptr, units, N: tl.constexpr):
    """Entries of a bias or the like as a column `[n, 1]` of float32; 0 beyond its end."""
    return tl.load(ptr + units, mask=units < N, other=0.0).to(tl.float32)[:, None]


@triton.jit
def columns_of(ptr, first, n_rows, units, COLUMNS: tl.constexpr, N: tl.constexpr):
    """Samples `first` (int64) to `first + COLUMNS` of a contiguous `[n_rows, N]`, as columns; 0 beyond its edges."""
    rows = tl.arange(0, COLUMNS)[None, :]
    inside = (rows < n_rows - first) & (units[:, None] < N)
    return tl.load(ptr + first * N + (rows * N + units[:, None]), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def keep_forms(
    out_ptr, h, p_ptr, b_ptr, u_ptr, sign, first, n_rows, units, COLUMNS: tl.constexpr, H: tl.constexpr, D: tl.constexpr
):
    """Write `sign p_k . h + b_k + u_k` of every sample and k to `[n_rows, D]`, with p `[D, H]`; b or u may be None."""
    rows = tl.arange(0, COLUMNS)
    there = rows < n_rows - first
    for k in range(0, D):
        out = sign * tl.sum(h * column(p_ptr + k * H, units, H), 0)
        if b_ptr is not None:
            out += tl.load(b_ptr + k)
        if u_ptr is not None:
            out += tl.load(u_ptr + first * D + (rows * D + k), mask=there, other=0.0)
        tl.store(out_ptr + first * D + (rows * D + k), out, mask=there)


@triton.jit
def factor(ptr, rows, columns, N_ROWS: tl.constexpr, N_COLUMNS: tl.constexpr, APART: tl.constexpr):
    """A matrix of weights as `multiply` takes it, one or three."""
    if APART > 0:
        return (
            matrix(ptr, rows, columns, N_ROWS, N_COLUMNS),
            matrix(ptr + APART, rows, columns, N_ROWS, N_COLUMNS),
            matrix(ptr + 2 * APART, rows, columns, N_ROWS, N_COLUMNS),
        )
    else:
        return (matrix(ptr, rows, columns, N_ROWS, N_COLUMNS),)


@triton.jit
def transposed(w, APART: tl.constexpr):
    """The factor W'."""
    if APART > 0:
        return tl.trans(w[0]), tl.trans(w[1]), tl.trans(w[2])
    else:
        return (tl.trans(w[0]),)


@triton.jit
def multiply(w, t, PRECISION: tl.constexpr):
    """W t; in "bf16x6" the six largest of nine products of bfloat16, the smallest first: as exact as float32."""
    if PRECISION == "bf16x6":
        high = t.to(tl.bfloat16)
        rest = t - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = rest - middle.to(tl.float32)
        z = product(w[2], tl.trans(high), "bf16")
        z += product(w[1], tl.trans(middle), "bf16")
        z += product(w[0], tl.trans(low), "bf16")
        z += product(w[1], tl.trans(high), "bf16")
        z += product(w[0], tl.trans(middle), "bf16")
        return z + product(w[0], tl.trans(high), "bf16")
    else:
        return product(w[0], tl.trans(t), PRECISION)


@triton.jit
def preactivation(
    w, b_ptr, u_ptr, h, first, n_rows, units, COLUMNS: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr
):
    """z = W h + b + u, `[units, COLUMNS]`; b or u may be None."""
    z = multiply(w, h, PRECISION)
    if b_ptr is not None:
        z += column(b_ptr, units, N)
    if u_ptr is not None:
        z += columns_of(u_ptr, first, n_rows, units, COLUMNS, N)
    return z


@triton.jit(do_not_specialize=["n_rows", "first_chain", "key_low", "key_high"])
def trace_kernel(
    score_ptr,
    trace_ptr,
    x_ptr,
    seeds_ptr,
    last_ptr,
    weights,
    biases,
    shifts,
    n_rows,
    first_chain,
    key_low,
    key_high,
    D: tl.constexpr,
    K: tl.constexpr,
    PROBE: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTHS: tl.constexpr,
    PHIS: tl.constexpr,
    RESIDUALS: tl.constexpr,
    PRECISION: tl.constexpr,
    APART: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Score `[n, D]` and `tr(C J)` `[n]`; seeds are `(W_1 C)'`, `[D, H_1]`, last W_{L+1}, `[D, H_L]`; K is D.

    With a PROBE, its kind, K forms `[n, K]` instead; seeds are None then, and weights one more, `(C W_{L+1})'`.
    """
    first = tl.program_id(0).to(tl.int64) * COLUMNS
    units, features = tl.arange(0, WIDTH), tl.arange(0, max(16, triton.next_power_of_2(D)))
    h = columns_of(x_ptr, first, n_rows, features, COLUMNS, D)
    w = factor(weights[0], units, features, WIDTHS[0], D, APART)
    z = preactivation(w, biases[0], shifts[0], h, first, n_rows, units, COLUMNS, WIDTHS[0], PRECISION)
    h, d = activations.value_and_slope(z, tl.constexpr(PHIS[0]), False)
    slopes, inner = (d,), (w,)
    for layer in tl.static_range(1, DEPTH):
        w = factor(weights[layer], units, units, WIDTHS[layer], WIDTHS[layer - 1], APART)
        inner = inner + (w,)  # type: ignore[assignment]  # noqa: RUF005
        z = preactivation(w, biases[layer], shifts[layer], h, first, n_rows, units, COLUMNS, WIDTHS[layer], PRECISION)
        new, d = activations.value_and_slope(z, tl.constexpr(PHIS[layer]), False)
        h = new + h if RESIDUALS[layer] else new
        slopes = slopes + (d,)  # type: ignore[assignment]  # noqa: RUF005
    keep_forms(
        score_ptr, h, last_ptr, biases[DEPTH], shifts[DEPTH], 1.0, first, n_rows, units, COLUMNS, WIDTHS[DEPTH - 1], D
    )
    rows = tl.arange(0, COLUMNS)
    trace = tl.zeros([COLUMNS], tl.float32)
    for k in range(0, K):
        if PROBE is None:
            t = slopes[0] * column(seeds_ptr + k * WIDTHS[0], units, WIDTHS[0])
        else:
            v = tl.trans(probes.tile(key_low, key_high, first_chain + first + rows, features, D, PROBE, k))
            t = slopes[0] * multiply(inner[0], v, PRECISION)
        for layer in tl.static_range(1, DEPTH):
            q = multiply(inner[layer], t, PRECISION)
            t = slopes[layer] * q + t if RESIDUALS[layer] else slopes[layer] * q
        if PROBE is None:
            trace += tl.sum(t * column(last_ptr + k * WIDTHS[DEPTH - 1], units, WIDTHS[DEPTH - 1]), 0)
        else:
            leaving = factor(weights[DEPTH], units, features, WIDTHS[DEPTH - 1], D, APART)
            form = tl.sum(t * multiply(leaving, v, PRECISION), 0)
            tl.store(trace_ptr + first * K + (rows * K + k), form, mask=rows < n_rows - first)
    if PROBE is None:
        tl.store(trace_ptr + first + rows, trace, mask=rows < n_rows - first)


@triton.jit(do_not_specialize=["n_rows", "first_chain", "key_low", "key_high"])
def energy_kernel(
    energy_ptr,
    score_ptr,
    laplacian_ptr,
    x_ptr,
    seeds_ptr,
    last_ptr,
    squares_ptr,
    weights,
    turned,
    biases,
    shifts,
    n_rows,
    first_chain,
    key_low,
    key_high,
    D: tl.constexpr,
    K: tl.constexpr,
    PROBE: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTHS: tl.constexpr,
    PHIS: tl.constexpr,
    RESIDUALS: tl.constexpr,
    PRECISION: tl.constexpr,
    APART: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Energy `[n]`, score `[n, D]` and Laplacian `[n]`; seeds are W_1', squares `|W_1|^2` by rows, `[H_1]`, last is w.

    K is D, or 0 of one layer. With a PROBE, its kind, K forms `v' (d2E/dx2) v`, `[n, K]`, instead; squares are None
    then. The Laplacian's pointer is None where the score is all that is asked for.

    `turned` are W_2' to W_L', or None where tensor cores read a factor either way, as they do in bfloat16.
    """
    first = tl.program_id(0).to(tl.int64) * COLUMNS
    units, features = tl.arange(0, WIDTH), tl.arange(0, max(16, triton.next_power_of_2(D)))
    h = columns_of(x_ptr, first, n_rows, features, COLUMNS, D)
    w = factor(weights[0], units, features, WIDTHS[0], D, APART)
    z = preactivation(w, biases[0], shifts[0], h, first, n_rows, units, COLUMNS, WIDTHS[0], PRECISION)
    h, d, e = activations.value_slope_and_curvature(z, tl.constexpr(PHIS[0]), False)
    slopes, bends, inner = (d,), (e,), (w,)
    for layer in tl.static_range(1, DEPTH):
        w = factor(weights[layer], units, units, WIDTHS[layer], WIDTHS[layer - 1], APART)
        inner = inner + (w,)  # type: ignore[assignment]  # noqa: RUF005
        z = preactivation(w, biases[layer], shifts[layer], h, first, n_rows, units, COLUMNS, WIDTHS[layer], PRECISION)
        new, d, e = activations.value_slope_and_curvature(z, tl.constexpr(PHIS[layer]), False)
        h = new + h if RESIDUALS[layer] else new
        slopes, bends = slopes + (d,), bends + (e,)  # type: ignore[assignment]  # noqa: RUF005
    keep_forms(
        energy_ptr, h, last_ptr, biases[DEPTH], shifts[DEPTH], 1.0, first, n_rows, units, COLUMNS, WIDTHS[DEPTH - 1], 1
    )
    a = column(last_ptr, units, WIDTHS[DEPTH - 1]) + tl.zeros([WIDTH, COLUMNS], tl.float32)
    curvatures = (a * bends[DEPTH - 1],)
    for layer in tl.static_range(DEPTH - 1, 0, -1):
        if turned is None:
            below = multiply(transposed(inner[layer], APART), a * slopes[layer], PRECISION)
        else:
            w = factor(turned[layer - 1], units, units, WIDTHS[layer - 1], WIDTHS[layer], APART)
            below = multiply(w, a * slopes[layer], PRECISION)
        a = below + a if RESIDUALS[layer] else below
        curvatures = (a * bends[layer - 1],) + curvatures  # type: ignore[assignment]  # noqa: RUF005
    keep_forms(score_ptr, a * slopes[0], seeds_ptr, None, None, -1.0, first, n_rows, units, COLUMNS, WIDTHS[0], D)
    if laplacian_ptr is not None:
        rows = tl.arange(0, COLUMNS)
        laplacian = tl.zeros([COLUMNS], tl.float32)
        if PROBE is None:
            laplacian += tl.sum(curvatures[0] * column(squares_ptr, units, WIDTHS[0]), 0)
        for k in range(0, K):
            if PROBE is None:
                t = slopes[0] * column(seeds_ptr + k * WIDTHS[0], units, WIDTHS[0])
            else:
                v = tl.trans(probes.tile(key_low, key_high, first_chain + first + rows, features, D, PROBE, k))
                q = multiply(inner[0], v, PRECISION)
                laplacian = tl.sum(curvatures[0] * q * q, 0)
                t = slopes[0] * q
            for layer in tl.static_range(1, DEPTH):
                q = multiply(inner[layer], t, PRECISION)
                laplacian += tl.sum(curvatures[layer] * q * q, 0)
                if layer < DEPTH - 1:
                    t = slopes[layer] * q + t if RESIDUALS[layer] else slopes[layer] * q
            if PROBE is not None:
                tl.store(laplacian_ptr + first * K + (rows * K + k), laplacian, mask=rows < n_rows - first)
        if PROBE is None:
            tl.store(laplacian_ptr + first + rows, laplacian, mask=rows < n_rows - first)
