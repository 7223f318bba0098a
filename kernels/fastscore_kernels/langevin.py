"""x' = x + a s + sqrt(2 a T) e in one pass over memory: 3 values moved an element, the noise made in registers."""

import torch
import triton
import triton.language as tl

from fastscore_kernels import philox
from fastscore_kernels.launch import device_of, tile_counters


@triton.jit(do_not_specialize=["first_chain", "key_low", "key_high", "step"])
def langevin_step_kernel(
    out_ptr,
    x_ptr,
    score_ptr,
    step_size_ptr,
    n_chains,
    n_features,
    n_groups,
    first_chain,
    key_low,
    key_high,
    step,
    temperature_ptr,
    STEP_ON_DEVICE: tl.constexpr,
    PER_FEATURE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_CHAINS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    """One tile of [BLOCK_CHAINS, BLOCK_GROUPS] counters; each gives the features g, G + g, 2 G + g and 3 G + g.

    Rows of fewer than four features have fewer LANES, and the noise of the others is not made. STEP_ON_DEVICE: `step`
    is a pointer, so that a captured launch makes new noise when it is replayed.
    """
    DOUBLE: tl.constexpr = x_ptr.dtype.element_ty == tl.float64
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    first_row, rows, groups, inside = philox.tile(n_chains, n_groups, BLOCK_CHAINS, BLOCK_GROUPS)
    chain = first_chain + first_row + rows
    if STEP_ON_DEVICE:
        step = tl.load(step)
    w0, w1, w2, w3 = philox.words(key_low, key_high, 0, step, chain, groups)
    e0, e1, e2, e3 = philox.normals(w0, w1, w2, w3, DOUBLE)
    two_t = 2.0 * tl.load(temperature_ptr).to(COMPUTE)
    a = tl.load(step_size_ptr).to(COMPUTE)
    start = first_row * n_features
    for lane in tl.static_range(LANES):
        e = e0 if lane == 0 else (e1 if lane == 1 else (e2 if lane == 2 else e3))
        feature = groups + lane * n_groups
        mask = inside & (feature < n_features)
        offs = rows * n_features + feature
        if PER_FEATURE:
            a = tl.load(step_size_ptr + feature, mask=feature < n_features, other=0.0).to(COMPUTE)
        x = tl.load(x_ptr + start + offs, mask=mask, other=0.0).to(COMPUTE)
        s = tl.load(score_ptr + start + offs, mask=mask, other=0.0).to(COMPUTE)
        tl.store(out_ptr + start + offs, x + a * s + tl.sqrt(two_t * a) * e, mask=mask)


def langevin_step(
    x: torch.Tensor,
    score: torch.Tensor,
    step_size: torch.Tensor,
    temperature: torch.Tensor,
    seed: int,
    step: int | torch.Tensor,
    first_chain: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The next state of `[B, D]`; step_size is 0-dim or `[D]`, temperature 0-dim, both on the device.

    A step on the device is one int32, the bits of the number.
    `out` may be x itself: each element is read before it is written, by the same thread.
    """
    x, score, step_size = x.contiguous(), score.contiguous(), step_size.contiguous()
    n_chains, n_features = x.shape
    out = torch.empty((n_chains, n_features), dtype=x.dtype, device=x.device) if out is None else out
    if not out.is_contiguous():
        raise ValueError(f"out must be contiguous, got strides {out.stride()}")
    n_groups = triton.cdiv(n_features, 4)
    grid, options = tile_counters(n_chains, n_groups, x.dtype)
    key_low, key_high = philox.as_int32(seed, seed >> 32)
    with device_of(x):
        langevin_step_kernel[grid](
            out_ptr=out,
            x_ptr=x,
            score_ptr=score,
            step_size_ptr=step_size,
            n_chains=n_chains,
            n_features=n_features,
            n_groups=n_groups,
            first_chain=first_chain,
            key_low=key_low,
            key_high=key_high,
            step=step if isinstance(step, torch.Tensor) else philox.as_int32(step)[0],
            temperature_ptr=temperature,
            STEP_ON_DEVICE=isinstance(step, torch.Tensor),
            PER_FEATURE=step_size.dim() == 1,
            LANES=min(4, n_features),
            **options,
        )
    return out
