"""What the kernels of the structured networks share: products on tensor cores, and tiles of weights and of samples.

A program holds ROWS samples. A network's widths and dimension are compile-time constants, padded to powers of two (at
least 16, the least a product takes); entries beyond the edges of a matrix are loaded as 0, so that a padded unit,
whatever its activation gives at 0, meets a weight of 0. Every matrix is read along its contiguous side by a product
`a b'`, which is what the tensor cores of sm_90 ask for in TF32.
"""

import triton
import triton.language as tl

from fastscore_kernels import activations

_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """`a b'`, `[M, K]` by `[N, K]`, summed in float32; PRECISION of the factors is "ieee", "tf32x3", "tf32" or "bf16".

    The interpreter multiplies the bits of bfloat16 as integers: there the rounded factors go back to float32.
    """
    if PRECISION == "bf16":
        a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
        if _INTERPRETED:
            a, b = a.to(tl.float32), b.to(tl.float32)
        return tl.dot(a, tl.trans(b), input_precision="ieee", out_dtype=tl.float32)
    else:
        return tl.dot(a, tl.trans(b), input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def matrix(ptr, rows, columns, N_ROWS: tl.constexpr, N_COLUMNS: tl.constexpr):
    """Entries of a contiguous `[N_ROWS, N_COLUMNS]` matrix of weights; 0 beyond its edges."""
    inside = (rows[:, None] < N_ROWS) & (columns[None, :] < N_COLUMNS)
    return tl.load(ptr + rows[:, None] * N_COLUMNS + columns[None, :], mask=inside, other=0.0)


@triton.jit
def vector(ptr, columns, N_COLUMNS: tl.constexpr):
    """Entries of a bias or the like as a row `[1, n]` of float32; 0 beyond its end."""
    return tl.load(ptr + columns, mask=columns < N_COLUMNS, other=0.0).to(tl.float32)[None, :]


@triton.jit
def samples(ptr, first, n_rows, columns, ROWS: tl.constexpr, N_COLUMNS: tl.constexpr):
    """Rows `first` (int64) to `first + ROWS` of a contiguous `[n_rows, N_COLUMNS]`, in float32; 0 beyond its edges."""
    rows = tl.arange(0, ROWS)[:, None]
    inside = (rows < n_rows - first) & (columns[None, :] < N_COLUMNS)
    offs = rows * N_COLUMNS + columns[None, :]
    return tl.load(ptr + first * N_COLUMNS + offs, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def keep(ptr, values, first, n_rows, columns, ROWS: tl.constexpr, N_COLUMNS: tl.constexpr):
    """Write a tile where `samples` would read it."""
    rows = tl.arange(0, ROWS)[:, None]
    inside = (rows < n_rows - first) & (columns[None, :] < N_COLUMNS)
    tl.store(ptr + first * N_COLUMNS + (rows * N_COLUMNS + columns[None, :]), values, mask=inside)


@triton.jit
def keep_sum(ptr, values, columns, N_COLUMNS: tl.constexpr):
    """Write this program's sum over its samples to its row of `[programs, N_COLUMNS]`: no atomics, always one order.

    What is summed is 0 in rows beyond the last: upstream gradients were loaded as 0 there.
    """
    total = tl.sum(values, 0)
    tl.store(ptr + tl.program_id(0).to(tl.int64) * N_COLUMNS + columns, total, mask=columns < N_COLUMNS)


@triton.jit
def weights_of(g_ptr, first, n_rows, ROWS: tl.constexpr):
    """One number a sample, as a column `[ROWS, 1]`; 0 beyond the last."""
    rows = tl.arange(0, ROWS)
    return tl.load(g_ptr + first + rows, mask=rows < n_rows - first, other=0.0)[:, None]


@triton.jit
def projected(
    a_ptr, w_ptr, first, n_rows, units, ROWS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr
):
    """a W' for some units, with a `[n_rows, K]` and W `[N, K]` in memory, 32 columns at a time: few registers."""
    STEP: tl.constexpr = min(32, max(16, triton.next_power_of_2(K)))
    z = tl.zeros([ROWS, units.shape[0]], tl.float32)
    for start in range(0, K, STEP):
        columns = start + tl.arange(0, STEP)
        z += product(samples(a_ptr, first, n_rows, columns, ROWS, K), matrix(w_ptr, units, columns, N, K), PRECISION)
    return z


@triton.jit
def preactivation(
    a, w_ptr, b_ptr, u_ptr, first, n_rows, units, inputs, ROWS: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """z = a W' + b + u for some units of a layer, `[ROWS, units]`; W is `[N, K]`, b or u may be None."""
    z = product(a, matrix(w_ptr, units, inputs, N, K), PRECISION)
    if b_ptr is not None:
        z += vector(b_ptr, units, N)
    if u_ptr is not None:
        z += samples(u_ptr, first, n_rows, units, ROWS, N)
    return z


@triton.jit
def second_layer(
    h1_ptr, d1_ptr, x, v, u1_ptr, u2_ptr, w1_ptr, w2_ptr, b1_ptr, b2_ptr, m_ptr, first, n_rows, start_above,
    D: tl.constexpr, H1: tl.constexpr, H2: tl.constexpr, PHI1: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, ABOVE: tl.constexpr,
):  # fmt: skip
    """z_2 and M d_1 for ABOVE units from `start_above` on; UNITS units of the first layer at a time, never all of them.

    With a probe v (M is W_2 then) what M multiplies, and what is written, is `hd_1 = d_1 * W_1 v` in place of d_1.
    h_1 and d_1 are written by the way where somewhere to is given, and only with the first units above; where M is
    None, so is d_1, and M d_1 is 0.
    """
    above = start_above + tl.arange(0, ABOVE)
    features = tl.arange(0, x.shape[1])
    z2 = tl.zeros([ROWS, ABOVE], tl.float32)
    carried = tl.zeros([ROWS, ABOVE], tl.float32)
    for start in range(0, H1, UNITS):
        units = start + tl.arange(0, UNITS)
        z1 = preactivation(x, w1_ptr, b1_ptr, u1_ptr, first, n_rows, units, features, ROWS, H1, D, PRECISION)
        h1, d1 = activations.value_and_slope(z1, PHI1, False)
        if v is not None:
            d1 *= product(v, matrix(w1_ptr, units, features, H1, D), PRECISION)
        z2 += product(h1, matrix(w2_ptr, above, units, H2, H1), PRECISION)
        if h1_ptr is not None:
            n_written = tl.where(start_above == 0, n_rows, 0)
            keep(h1_ptr, h1, first, n_written, units, ROWS, H1)
            if d1_ptr is not None:
                keep(d1_ptr, d1, first, n_written, units, ROWS, H1)
        if m_ptr is not None:
            carried += product(d1, matrix(m_ptr, above, units, H2, H1), PRECISION)
    if b2_ptr is not None:
        z2 += vector(b2_ptr, above, H2)
    if u2_ptr is not None:
        z2 += samples(u2_ptr, first, n_rows, above, ROWS, H2)
    return z2, carried
