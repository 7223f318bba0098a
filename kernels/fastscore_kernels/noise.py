"""Arrays of counter noise: normals, four a counter, and signs, 128 a counter."""

import torch
import triton
import triton.language as tl

from fastscore_kernels import philox
from fastscore_kernels.launch import device_of, tile_counters

RADEMACHER_TILE = 1024  # signs a program makes of each of the four words of its counters


@triton.jit(do_not_specialize=["first_chain", "key_low", "key_high", "step"])
def normal_kernel(
    out_ptr,
    n_chains,
    n_features,
    n_groups,
    first_chain,
    key_low,
    key_high,
    step,
    STREAM: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_CHAINS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    """Standard normals: counter (row, g) gives the features g, G + g, 2 G + g and 3 G + g."""
    DOUBLE: tl.constexpr = out_ptr.dtype.element_ty == tl.float64
    first_row, rows, groups, inside = philox.tile(n_chains, n_groups, BLOCK_CHAINS, BLOCK_GROUPS)
    w0, w1, w2, w3 = philox.words(key_low, key_high, STREAM, step, first_chain + first_row + rows, groups)
    e0, e1, e2, e3 = philox.normals(w0, w1, w2, w3, DOUBLE)
    start = first_row * n_features
    for lane in tl.static_range(LANES):
        e = e0 if lane == 0 else (e1 if lane == 1 else (e2 if lane == 2 else e3))
        feature = groups + lane * n_groups
        tl.store(out_ptr + start + (rows * n_features + feature), e, mask=inside & (feature < n_features))


@triton.jit(do_not_specialize=["first_chain", "key_low", "key_high", "step"])
def mixed_kernel(
    out_ptr,
    x_ptr,
    alpha_ptr,
    beta_ptr,
    n_chains,
    n_features,
    n_groups,
    first_chain,
    key_low,
    key_high,
    step,
    STREAM: tl.constexpr,
    ALPHAS: tl.constexpr,
    BETAS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_CHAINS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    """`alpha x + beta e` with the normals e of `normal_kernel`; ALPHAS, BETAS: one a row rather than one for all."""
    first_row, rows, groups, inside = philox.tile(n_chains, n_groups, BLOCK_CHAINS, BLOCK_GROUPS)
    w0, w1, w2, w3 = philox.words(key_low, key_high, STREAM, step, first_chain + first_row + rows, groups)
    e0, e1, e2, e3 = philox.normals(w0, w1, w2, w3, False)
    start = first_row * n_features
    there = rows < n_chains - first_row
    alpha = tl.load(alpha_ptr + (first_row + rows if ALPHAS else 0 * rows), mask=there, other=0.0)
    beta = tl.load(beta_ptr + (first_row + rows if BETAS else 0 * rows), mask=there, other=0.0)
    for lane in tl.static_range(LANES):
        e = e0 if lane == 0 else (e1 if lane == 1 else (e2 if lane == 2 else e3))
        feature = groups + lane * n_groups
        mask = inside & (feature < n_features)
        offs = rows * n_features + feature
        x = tl.load(x_ptr + start + offs, mask=mask, other=0.0)
        tl.store(out_ptr + start + offs, alpha * x + beta * e, mask=mask)


@triton.jit(do_not_specialize=["first_chain", "key_low", "key_high", "step"])
def rademacher_kernel(
    out_ptr,
    n_chains,
    n_features,
    n_groups,
    first_chain,
    key_low,
    key_high,
    step,
    STREAM: tl.constexpr,
    LANES: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_CHAINS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    """Signs 1 - 2 bit: feature d is bit d mod 32 of word (d mod 128) div 32 of counter (row, d div 128).

    BITS of a word are looked at: as many as rows of fewer than 32 features need.
    """
    first_row, rows, groups, inside = philox.tile(n_chains, n_groups, BLOCK_CHAINS, BLOCK_GROUPS)
    w0, w1, w2, w3 = philox.words(key_low, key_high, STREAM, step, first_chain + first_row + rows, groups)
    bit = tl.arange(0, BITS)[None, None, :]
    start = first_row * n_features
    for word in tl.static_range(LANES):
        w = w0 if word == 0 else (w1 if word == 1 else (w2 if word == 2 else w3))
        sign = 1.0 - 2.0 * ((w[:, :, None] >> bit.to(tl.uint32)) & 1).to(tl.float32)
        feature = groups[:, :, None] * 128 + (32 * word + bit)
        mask = inside[:, :, None] & (feature < n_features)
        tl.store(out_ptr + start + (rows[:, :, None] * n_features + feature), sign, mask=mask)


def normal(n, width, seed, stream, step, first_chain, dtype, device) -> torch.Tensor:
    """Standard normals `[n, width]`, four lanes of one feature a counter."""
    out = torch.empty((n, width), dtype=dtype, device=device)
    return _launch(normal_kernel, out, 1, None, seed, stream, step, first_chain)


def mixed(x, alpha, beta, seed, stream, first_chain) -> torch.Tensor:
    """`alpha x + beta e` in float32 for x `[n, D]`; alpha and beta hold one number or one a row."""
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    given = {"x_ptr": x.contiguous(), "alpha_ptr": alpha.contiguous(), "beta_ptr": beta.contiguous()}
    given |= {"ALPHAS": alpha.numel() > 1, "BETAS": beta.numel() > 1}
    return _launch(mixed_kernel, out, 1, None, seed, stream, 0, first_chain, given)


def rademacher(n, width, seed, stream, step, first_chain, dtype, device) -> torch.Tensor:
    """Signs `[n, width]`, four lanes (words) of 32 features a counter."""
    out = torch.empty((n, width), dtype=dtype, device=device)
    bits = min(32, triton.next_power_of_2(width))
    return _launch(rademacher_kernel, out, 32, RADEMACHER_TILE // bits, seed, stream, step, first_chain, {"BITS": bits})


def _launch(kernel, out, lane_width, tile, seed, stream, step, first_chain, given=None) -> torch.Tensor:
    n, width = out.shape
    n_groups = triton.cdiv(width, 4 * lane_width)
    grid, options = tile_counters(n, n_groups, out.dtype, tile, 4 * lane_width)
    key_low, key_high, low_step = philox.as_int32(seed, seed >> 32, step)
    with device_of(out):
        kernel[grid](
            out_ptr=out,
            **(given or {}),
            n_chains=n,
            n_features=width,
            n_groups=n_groups,
            first_chain=first_chain,
            key_low=key_low,
            key_high=key_high,
            step=low_step,
            STREAM=int(stream),
            LANES=min(4, triton.cdiv(width, lane_width)),
            **options,
        )
    return out
