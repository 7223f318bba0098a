"""Metropolis's rule for Langevin proposals: sums, uniforms and choice of a whole row in one launch."""

import torch
import triton
import triton.language as tl

from fastscore_kernels import philox
from fastscore_kernels.launch import device_of

TILE = 1024  # entries of a tile of rows and features


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _loaded(x_ptr, score_ptr, to_x_ptr, to_score_ptr, at, mask):
    x = tl.load(x_ptr + at, mask=mask, other=0.0)
    s = tl.load(score_ptr + at, mask=mask, other=0.0)
    to_x = tl.load(to_x_ptr + at, mask=mask, other=0.0)
    to_s = tl.load(to_score_ptr + at, mask=mask, other=0.0)
    return x, s, to_x, to_s


@triton.jit(do_not_specialize=["first_chain", "key_low", "key_high", "step"])
def accept_kernel(
    x_ptr,
    log_prob_ptr,
    score_ptr,
    accepted_ptr,
    to_x_ptr,
    to_log_prob_ptr,
    to_score_ptr,
    out_x_ptr,
    out_log_prob_ptr,
    out_score_ptr,
    out_accepted_ptr,
    step_size_ptr,
    n_chains,
    n_features,
    first_chain,
    key_low,
    key_high,
    step,
    STREAM: tl.constexpr,
    PER_FEATURE: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """A tile of rows: first what speaks for each proposal, a tile of features at a time, then the rows chosen."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    rows = tl.arange(0, ROWS)[:, None]
    there = rows < n_chains - first
    start = first * n_features
    ratio = tl.zeros((ROWS, FEATURES), step_size_ptr.dtype.element_ty)
    steep = tl.zeros((ROWS, FEATURES), tl.int32)
    steep_there = tl.zeros((ROWS, FEATURES), tl.int32)
    far = tl.zeros((ROWS, FEATURES), tl.int32)
    for begin in range(0, n_features, FEATURES):
        feature = begin + tl.arange(0, FEATURES)[None, :]
        mask = there & (feature < n_features)
        at = start + (rows * n_features + feature)
        x, s, to_x, to_s = _loaded(x_ptr, score_ptr, to_x_ptr, to_score_ptr, at, mask)
        if PER_FEATURE:
            a = tl.load(step_size_ptr + feature, mask=feature < n_features, other=1.0)
        else:
            a = tl.load(step_size_ptr)
        forth = to_x - x - a * s
        back = x - to_x - a * to_s
        ratio += (forth * forth - back * back) / (4.0 * a)
        steep |= (~_finite(s)).to(tl.int32)
        steep_there |= (~_finite(to_s)).to(tl.int32)
        far |= (~_finite(to_x)).to(tl.int32)
    row = first + rows
    p = tl.load(log_prob_ptr + row, mask=there, other=0.0)
    to_p = tl.load(to_log_prob_ptr + row, mask=there, other=0.0)
    count = tl.load(accepted_ptr + row, mask=there, other=0.0)
    word, _, _, _ = philox.words(key_low, key_high, STREAM, step, first_chain + row, tl.zeros((ROWS, 1), tl.int32))
    u = (word.to(p.dtype) + 0.5) * 2.0**-32
    taken = tl.log(u) <= to_p - p + tl.sum(ratio, 1, keep_dims=True)
    lost = (tl.max(far, 1, keep_dims=True) > 0) | _undefined(p, steep) | _undefined(to_p, steep_there)
    tl.store(out_log_prob_ptr + row, tl.where(taken, to_p, p), mask=there)
    tl.store(out_accepted_ptr + row, count + taken.to(p.dtype), mask=there)
    for begin in range(0, n_features, FEATURES):
        feature = begin + tl.arange(0, FEATURES)[None, :]
        mask = there & (feature < n_features)
        at = start + (rows * n_features + feature)
        x, s, to_x, to_s = _loaded(x_ptr, score_ptr, to_x_ptr, to_score_ptr, at, mask)
        tl.store(out_x_ptr + at, tl.where(lost, float("nan"), tl.where(taken, to_x, x)), mask=mask)
        tl.store(out_score_ptr + at, tl.where(taken, to_s, s), mask=mask)


@triton.jit
def _undefined(log_prob, steep):
    """Whether log p is NaN or +inf, or finite with a score that is not."""
    no_number = (log_prob != log_prob) | (log_prob == float("inf"))
    return no_number | (_finite(log_prob) & (tl.max(steep, 1, keep_dims=True) > 0))


def tiles(n_chains: int, n_features: int) -> dict[str, int]:
    """Launch options."""
    features = min(TILE, triton.next_power_of_2(n_features))
    return {"ROWS": min(TILE // features, triton.next_power_of_2(n_chains)), "FEATURES": features, "num_warps": 4}


def accept(
    x: torch.Tensor,
    log_prob: torch.Tensor,
    score: torch.Tensor,
    accepted: torch.Tensor,
    to_x: torch.Tensor,
    to_log_prob: torch.Tensor,
    to_score: torch.Tensor,
    step_size: torch.Tensor,
    seed: int,
    stream: int,
    step: int,
    first_chain: int,
) -> tuple[torch.Tensor, ...]:
    """The state (x, log p, score, number accepted) after a proposal (x, log p, score) is accepted or refused.

    x and scores are `[B, D]`, the others `[B]`, step_size is 0-dim or `[D]`; all of one dtype, float32 or float64.
    """
    n_chains, n_features = x.shape
    options = tiles(n_chains, n_features)
    given = [part.contiguous() for part in (x, log_prob, score, accepted, to_x, to_log_prob, to_score)]
    made = tuple(torch.empty(part.shape, dtype=x.dtype, device=x.device) for part in given[:4])
    key_low, key_high, low_step = philox.as_int32(seed, seed >> 32, step)
    with device_of(x):
        accept_kernel[(triton.cdiv(n_chains, options["ROWS"]),)](
            *given,
            *made,
            step_size.contiguous(),
            n_chains,
            n_features,
            first_chain,
            key_low,
            key_high,
            low_step,
            STREAM=int(stream),
            PER_FEATURE=step_size.dim() == 1,
            **options,
        )
    return made
