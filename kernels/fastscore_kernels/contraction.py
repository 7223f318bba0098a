"""`1/2 |s|^2` and `v_k . p_k` of every sample with the probes made in registers, and the gradients in s and p_k.

A program has a tile of samples and of counters of the noise; where it has not all counters of its samples, its sums are
one row of several, which are added outside: no atomics, always one order.
"""

import torch
import triton
import triton.language as tl

from fastscore_kernels import philox, probes
from fastscore_kernels.launch import device_of, tile_counters

# Elements a program works on at a time: 8 a thread, 2 in float64 (see `launch`).
_ELEMENTS, _ELEMENTS_DOUBLE = 1024, 256


@triton.jit
def lanes(key_low, key_high, probe, chain, groups, NORMAL: tl.constexpr, DOUBLE: tl.constexpr):
    """The four normals, or words, of counters `[CHAINS, GROUPS]`."""
    w0, w1, w2, w3 = philox.words(key_low, key_high, 2, probe, chain, groups)
    if NORMAL:
        return philox.normals(w0, w1, w2, w3, DOUBLE)
    else:
        return w0, w1, w2, w3


@triton.jit
def features_of(lane: tl.constexpr, groups, bits, n_groups, NORMAL: tl.constexpr):
    """The features of one lane (normals) or word (signs) of counters `[1, GROUPS]`, as `[1, GROUPS, BITS]`."""
    if NORMAL:
        return groups[:, :, None] + (lane * n_groups + bits)
    else:
        return groups[:, :, None] * 128 + (32 * lane + bits)


@triton.jit
def probe_of(lane: tl.constexpr, v0, v1, v2, v3, bits, NORMAL: tl.constexpr, ROUNDED: tl.constexpr):
    """Their probes: of normals one of four, rounded as drawn ones are; of words one's bits."""
    v = v0 if lane == 0 else (v1 if lane == 1 else (v2 if lane == 2 else v3))
    if NORMAL:
        return v.to(ROUNDED)[:, :, None]
    else:
        return probes.sign(v[:, :, None], bits)


@triton.jit(do_not_specialize=["first_chain", "key_low", "key_high", "first_probe"])
def contraction_kernel(
    squares_ptr,
    forms_ptr,
    score_ptr,
    products_ptr,
    n_chains,
    n_features,
    n_groups,
    n_probes,
    first_chain,
    key_low,
    key_high,
    first_probe,
    NORMAL: tl.constexpr,
    ROUNDED: tl.constexpr,
    DOUBLE: tl.constexpr,
    LANES: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_CHAINS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    """Sums over this program's features: squares `[blocks, n]` (None without a score), forms `[blocks, K, n]`."""
    COMPUTE: tl.constexpr = forms_ptr.dtype.element_ty
    first_row, rows, groups, inside = philox.tile(n_chains, n_groups, BLOCK_CHAINS, BLOCK_GROUPS)
    chain, bits = first_chain + first_row + rows, tl.arange(0, BITS)[None, None, :]
    start, plane = first_row * n_features, tl.cast(n_chains, tl.int64) * n_features
    sample = tl.arange(0, BLOCK_CHAINS)
    block = (tl.program_id(0) % tl.cdiv(n_groups, BLOCK_GROUPS)).to(tl.int64)
    if score_ptr is not None:
        SQUARES: tl.constexpr = squares_ptr.dtype.element_ty
        squares = tl.zeros([BLOCK_CHAINS, BLOCK_GROUPS, BITS], SQUARES)
        for lane in tl.static_range(LANES):
            feature = features_of(lane, groups, bits, n_groups, NORMAL)
            mask = inside[:, :, None] & (feature < n_features)
            s = tl.load(score_ptr + start + (rows[:, :, None] * n_features + feature), mask=mask, other=0.0)
            squares += s.to(SQUARES) * s.to(SQUARES)
        total = 0.5 * tl.sum(tl.sum(squares, 2), 1)
        tl.store(squares_ptr + (block * n_chains + first_row) + sample, total, mask=sample < n_chains - first_row)
    for k in range(0, n_probes):
        probe = first_probe + k
        v0, v1, v2, v3 = lanes(key_low, key_high, probe, chain, groups, NORMAL, DOUBLE)
        forms = tl.zeros([BLOCK_CHAINS, BLOCK_GROUPS, BITS], COMPUTE)
        for lane in tl.static_range(LANES):
            feature = features_of(lane, groups, bits, n_groups, NORMAL)
            mask = inside[:, :, None] & (feature < n_features)
            offs = rows[:, :, None] * n_features + feature
            p = tl.load(products_ptr + (k * plane + start) + offs, mask=mask, other=0.0).to(COMPUTE)
            forms += p * probe_of(lane, v0, v1, v2, v3, bits, NORMAL, ROUNDED).to(COMPUTE)
        at = (block * n_probes + k) * n_chains + first_row
        total = tl.sum(tl.sum(forms, 2), 1)
        tl.store(forms_ptr + at + sample, total, mask=sample < n_chains - first_row)


@triton.jit(do_not_specialize=["first_chain", "key_low", "key_high", "first_probe"])
def pullback_kernel(
    dscore_ptr,
    dproducts_ptr,
    score_ptr,
    on_squares_ptr,
    on_forms_ptr,
    n_chains,
    n_features,
    n_groups,
    n_probes,
    first_chain,
    key_low,
    key_high,
    first_probe,
    NORMAL: tl.constexpr,
    ROUNDED: tl.constexpr,
    DOUBLE: tl.constexpr,
    LANES: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_CHAINS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    """`ds = g s` and `dp_k = g_k v_k`, for g `[n]` and g_k `[K, n]`; where either has nowhere to go it is not made."""
    first_row, rows, groups, inside = philox.tile(n_chains, n_groups, BLOCK_CHAINS, BLOCK_GROUPS)
    chain, bits = first_chain + first_row + rows, tl.arange(0, BITS)[None, None, :]
    start, plane = first_row * n_features, tl.cast(n_chains, tl.int64) * n_features
    there = rows < n_chains - first_row
    if dscore_ptr is not None:
        g = tl.load(on_squares_ptr + first_row + rows, mask=there, other=0.0)[:, :, None]
        for lane in tl.static_range(LANES):
            feature = features_of(lane, groups, bits, n_groups, NORMAL)
            mask = inside[:, :, None] & (feature < n_features)
            offs = rows[:, :, None] * n_features + feature
            s = tl.load(score_ptr + start + offs, mask=mask, other=0.0)
            tl.store(dscore_ptr + start + offs, g * s.to(g.dtype), mask=mask)
    if dproducts_ptr is not None:
        for k in range(0, n_probes):
            v0, v1, v2, v3 = lanes(key_low, key_high, first_probe + k, chain, groups, NORMAL, DOUBLE)
            at = tl.cast(k, tl.int64) * n_chains + first_row
            g = tl.load(on_forms_ptr + at + rows, mask=there, other=0.0)[:, :, None]
            for lane in tl.static_range(LANES):
                feature = features_of(lane, groups, bits, n_groups, NORMAL)
                mask = inside[:, :, None] & (feature < n_features)
                v = probe_of(lane, v0, v1, v2, v3, bits, NORMAL, ROUNDED).to(g.dtype)
                offs = rows[:, :, None] * n_features + feature
                tl.store(dproducts_ptr + (k * plane + start) + offs, g * v, mask=mask)


def contraction(score, products, kind, rounded, seed, first_probe, first_chain):
    """`(1/2 |s|^2 [n] or None, v_k . p_k [K, n])` of a score `[n, D]` or None and products `[K, n, D]`."""
    k, n, width = products.shape
    grid, given = launched(n, width, kind, rounded, seed, first_probe, first_chain)
    blocks = triton.cdiv(given["n_groups"], given["BLOCK_GROUPS"])

    def sums(double: bool, *shape: int) -> torch.Tensor:
        dtype = torch.float64 if double else torch.float32
        return torch.empty(shape if blocks == 1 else (blocks, *shape), dtype=dtype, device=products.device)

    forms = sums(torch.float64 in (products.dtype, rounded), k, n)
    squares = None if score is None else sums(score.dtype == torch.float64, n)
    with device_of(products):
        contraction_kernel[grid](
            squares_ptr=squares,
            forms_ptr=forms,
            score_ptr=None if score is None else score.contiguous(),
            products_ptr=products.contiguous(),
            n_probes=k,
            **given,
        )
    if blocks == 1:
        return squares, forms
    return None if squares is None else squares.sum(0), forms.sum(0)


def pullback(score, on_squares, on_forms, size, dtype, kind, rounded, seed, first_probe, first_chain):
    """`(ds [n, D], dp [K, n, D] of dtype)` for gradients in the squares `[n]` and the forms `[K, n]`; None for None."""
    k, n, width = size
    grid, given = launched(n, width, kind, rounded, seed, first_probe, first_chain)
    device = (on_forms if on_squares is None else on_squares).device
    ds = None if on_squares is None else torch.empty((n, width), dtype=score.dtype, device=device)
    dp = None if on_forms is None else torch.empty(size, dtype=dtype, device=device)
    with device_of(on_forms if on_squares is None else on_squares):
        pullback_kernel[grid](
            dscore_ptr=ds,
            dproducts_ptr=dp,
            score_ptr=None if ds is None else score.contiguous(),
            on_squares_ptr=None if ds is None else on_squares.contiguous(),
            on_forms_ptr=None if dp is None else on_forms.contiguous(),
            n_probes=k,
            **given,
        )
    return ds, dp


_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


def launched(n, width, kind, rounded, seed, first_probe, first_chain):
    """The grid, and what both kernels take of the probes and the sizes."""
    normal = kind == "normal"
    bits = 1 if normal else min(32, triton.next_power_of_2(width))
    n_groups = triton.cdiv(width, 4 if normal else 128)
    elements = _ELEMENTS_DOUBLE if rounded == torch.float64 else _ELEMENTS
    grid, options = tile_counters(n, n_groups, rounded, elements // bits, 4 if normal else 128)
    key_low, key_high, step = philox.as_int32(seed, seed >> 32, first_probe)
    return grid, {
        "n_chains": n,
        "n_features": width,
        "n_groups": n_groups,
        "first_chain": first_chain,
        "key_low": key_low,
        "key_high": key_high,
        "first_probe": step,
        "NORMAL": normal,
        "ROUNDED": _DTYPES[rounded],
        "DOUBLE": rounded == torch.float64,
        "LANES": min(4, width) if normal else min(4, triton.cdiv(width, 32)),
        "BITS": bits,
        **options,
    }
