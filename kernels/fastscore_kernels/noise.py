"""Arrays of counter noise: normals, four a counter, and signs, 128 a counter."""

import torch
import triton
import triton.language as tl

from fastscore_kernels import philox
from fastscore_kernels.launch import device_of, tile_counters

RADEMACHER_TILE = 32  # counters a program: each gives 128 signs


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
    BLOCK_CHAINS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    """Signs 1 - 2 bit: feature d is bit d mod 32 of word (d mod 128) div 32 of counter (row, d div 128)."""
    first_row, rows, groups, inside = philox.tile(n_chains, n_groups, BLOCK_CHAINS, BLOCK_GROUPS)
    w0, w1, w2, w3 = philox.words(key_low, key_high, STREAM, step, first_chain + first_row + rows, groups)
    bit = tl.arange(0, 32)[None, None, :]
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


def rademacher(n, width, seed, stream, step, first_chain, dtype, device) -> torch.Tensor:
    """Signs `[n, width]`, four lanes (words) of 32 features a counter."""
    out = torch.empty((n, width), dtype=dtype, device=device)
    return _launch(rademacher_kernel, out, 32, RADEMACHER_TILE, seed, stream, step, first_chain)


def _launch(kernel, out, lane_width, tile, seed, stream, step, first_chain) -> torch.Tensor:
    n, width = out.shape
    n_groups = triton.cdiv(width, 4 * lane_width)
    grid, options = tile_counters(n, n_groups, out.dtype, tile)
    key_low, key_high, low_step = philox.as_int32(seed, seed >> 32, step)
    with device_of(out):
        kernel[grid](
            out_ptr=out,
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
