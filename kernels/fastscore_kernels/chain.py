"""A whole Langevin chain in one launch: the state stays in registers, the noise is made there, the score is inlined.

The one skeleton of every whole-chain kernel: the score is a `@triton.jit` function of the tile of states. The analytic
targets, the networks and a user's own score all come this way.

A tile is `[P, BLOCK_CHAINS]`, P a power of two: a thread holds whole chains, so that sums over features and the lanes
of the noise never leave it. Row r of the tile is feature `l G + g` of the noise contract, l = r div GP, g = r mod GP,
where GP is G rounded up to a power of two: the features in order, with gaps where there are fewer of them than rows.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl

from fastscore_kernels import philox
from fastscore_kernels.launch import device_of

# Threads go along the axis of a tile on which addresses are the most contiguous; where all are alike, along the last
# one, but before Triton 3.7 along the first.
_TURN = tl.constexpr(tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7))


@triton.jit
def tile_features(N_FEATURES: tl.constexpr):
    """The feature of every row of the tile `[P, 1]`, and whether there is one."""
    LANES: tl.constexpr = 4 if N_FEATURES > 2 else N_FEATURES
    N_GROUPS: tl.constexpr = (N_FEATURES + 3) // 4
    GROUPS: tl.constexpr = triton.next_power_of_2(N_GROUPS)
    row = tl.arange(0, LANES * GROUPS)[:, None]
    feature = row // GROUPS * N_GROUPS + row % GROUPS
    return feature, (row % GROUPS < N_GROUPS) & (feature < N_FEATURES)


@triton.jit
def turned(tile):
    """The tile as memory is addressed with it, or back, so that threads go along chains."""
    return tl.trans(tile) if _TURN else tile


@triton.jit
def noise(key_low, key_high, step, chains, N_FEATURES: tl.constexpr, DOUBLE: tl.constexpr):
    """Standard normals `[P, BLOCK_CHAINS]`, the lanes of a counter GP rows apart."""
    GROUPS: tl.constexpr = triton.next_power_of_2((N_FEATURES + 3) // 4)
    CHAINS: tl.constexpr = chains.shape[1]
    groups = tl.arange(0, GROUPS)[:, None]
    w0, w1, w2, w3 = philox.words(key_low, key_high, 0, step, chains, groups)
    e0, e1, e2, e3 = philox.normals(w0, w1, w2, w3, DOUBLE)
    if N_FEATURES == 1:
        return e0
    elif N_FEATURES == 2:
        return tl.reshape(tl.permute(tl.join(e0, e1), [2, 0, 1]), [2, CHAINS])
    else:
        lanes = tl.join(tl.join(e0, e1), tl.join(e2, e3))
        return tl.reshape(tl.permute(lanes, [3, 2, 0, 1]), [4 * GROUPS, CHAINS])


@triton.jit(
    do_not_specialize=[
        "n_chains",
        "n_steps",
        "burn_in",
        "thin",
        "n_kept",
        "steps_each",
        "ladder_step",
        "first_chain",
        "key_low",
        "key_high",
        "first_step",
    ]
)
def chain_kernel(
    out_ptr,
    kept_ptr,
    x_ptr,
    step_size_ptr,
    temperature_ptr,
    bounds_ptr,
    score_params,
    n_chains,
    n_steps,
    burn_in,
    thin,
    n_kept,
    steps_each,
    ladder_step,
    first_chain,
    key_low,
    key_high,
    first_step,
    SCORE: tl.constexpr,
    N_FEATURES: tl.constexpr,
    BLOCK_CHAINS: tl.constexpr,
    PER_FEATURE: tl.constexpr,
    CLAMP: tl.constexpr,
):
    """x <- x + a s(x) + sqrt(2 a T) e, `n_steps` times; a and T are read from the row of this step's level.

    The outer loop runs from one kept state to the next, so that the loop over steps writes nothing and Triton moves
    loads that do not change out of it. LLVM may not move out more: that fills the registers with addresses.
    """
    DOUBLE: tl.constexpr = x_ptr.dtype.element_ty == tl.float64
    chains = tl.program_id(0).to(tl.int64) * BLOCK_CHAINS + tl.arange(0, BLOCK_CHAINS)[None, :]
    features, exists = tile_features(N_FEATURES)
    inside = (chains < n_chains) & exists
    # Unhinted, memory would decide the layout of the whole loop: neighbouring features would go to different threads.
    row, column, there = turned(chains), turned(features), turned(inside)
    offs = tl.max_contiguous(row * N_FEATURES + column, [1, 1])
    x = turned(tl.load(x_ptr + offs, mask=there, other=0.0))
    low, high = tl.load(bounds_ptr), tl.load(bounds_ptr + 1)
    for kept in range(n_kept + 1):
        # Not carried from the loop's last turn: Triton (3.6, 3.7) takes what only bounds an inner loop for dead, and
        # starts every inner loop where the first one did.
        start = tl.where(kept > 0, burn_in + kept * thin, 0)
        stop = tl.where(kept < n_kept, burn_in + (kept + 1) * thin, n_steps)
        for k in tl.range(start, stop, disable_licm=True):
            level = (ladder_step + k) // steps_each
            t = tl.load(temperature_ptr + level)
            if PER_FEATURE:
                a = tl.load(step_size_ptr + level * N_FEATURES + features, mask=exists, other=0.0)
            else:
                a = tl.load(step_size_ptr + level)
            s = SCORE(x, (features, inside, chains, level), score_params)
            e = noise(key_low, key_high, first_step + k, first_chain + chains, N_FEATURES, DOUBLE)
            x = tl.where(exists, x + a * s + tl.sqrt(2.0 * t * a) * e, 0.0)
            if CLAMP:  # comparisons with a NaN are false, so that it stays one
                x = tl.where(x < low, low, tl.where(x > high, high, x))
        if kept < n_kept:
            offs_kept = (row * n_kept + kept) * N_FEATURES + column
            tl.store(kept_ptr + tl.max_contiguous(offs_kept, [1, 1]), turned(x), mask=there)
    tl.store(out_ptr + offs, turned(x), mask=there)


def generation(device: torch.device) -> int:
    """The major number of an NVIDIA GPU's compute capability; 0 for AMD; in the interpreter, 9."""
    if device.type != "cuda":
        return 9
    return 0 if torch.version.hip is not None else torch.cuda.get_device_capability(device)[0]


def tile_order(n_features: int) -> list[int]:
    """The feature of every row of the tile; -1 in the gaps."""
    lanes, n_groups = 4 if n_features > 2 else n_features, triton.cdiv(n_features, 4)
    groups = triton.next_power_of_2(n_groups)
    order = [lane * n_groups + g if g < n_groups else -1 for lane in range(lanes) for g in range(groups)]
    return [d if d < n_features else -1 for d in order]


def to_tile(values: torch.Tensor, dim: int) -> torch.Tensor:
    """The features along `dim` in the order of the tile's rows, zeros in the gaps."""
    places, there = _places(values.shape[dim], values.device)
    shape = [1] * values.dim()
    shape[dim] = -1
    return torch.where(there.view(shape), values.index_select(dim, places), 0.0)


@functools.lru_cache(maxsize=256)
def _places(n_features: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The feature of every row of the tile, and whether there is one; kept, for a copy to a GPU waits for its work."""
    order = torch.tensor(tile_order(n_features), device=device)
    return order.clamp(min=0), order >= 0


def chain_call(
    score: Any,
    params: tuple[Any, ...],
    x: torch.Tensor,
    step_size: torch.Tensor,
    temperature: torch.Tensor,
    *,
    n_steps: int,
    burn_in: int,
    thin: int,
    n_kept: int,
    steps_each: int,
    ladder_step: int,
    seed: int,
    first_step: int,
    first_chain: int,
    clamp: tuple[float, float] | None,
    options: dict[str, int],
) -> tuple[tuple[int], dict[str, Any], tuple[torch.Tensor, torch.Tensor]]:
    """Grid, arguments and outputs (last state, kept states) of one launch; see `run_chain`."""
    x, step_size, temperature = (t.to(x.dtype).contiguous() for t in (x, step_size, temperature))
    n_chains, n_features = x.shape
    out = torch.empty((n_chains, n_features), dtype=x.dtype, device=x.device)
    kept = torch.empty((n_chains, n_kept, n_features), dtype=x.dtype, device=x.device)
    key_low, key_high, low_step = philox.as_int32(seed, seed >> 32, first_step)
    arguments = {
        "out_ptr": out,
        "kept_ptr": kept,
        "x_ptr": x,
        "step_size_ptr": step_size,
        "temperature_ptr": temperature,
        "bounds_ptr": _bounds(clamp, x),
        "score_params": params,
        "n_chains": n_chains,
        "n_steps": n_steps,
        "burn_in": burn_in,
        "thin": thin,
        "n_kept": n_kept,
        "steps_each": steps_each,
        "ladder_step": ladder_step,
        "first_chain": first_chain,
        "key_low": key_low,
        "key_high": key_high,
        "first_step": low_step,
        "SCORE": score,
        "N_FEATURES": n_features,
        "PER_FEATURE": step_size.dim() == 2,
        "CLAMP": clamp is not None,
        **options,
    }
    return (triton.cdiv(n_chains, options["BLOCK_CHAINS"]),), arguments, (out, kept)


def _bounds(clamp: tuple[float, float] | None, x: torch.Tensor) -> torch.Tensor:
    """(low, high) on the device, written there: a copy would wait for it."""
    bounds = torch.zeros(2, dtype=x.dtype, device=x.device)
    for place, value in zip(bounds, clamp or (), strict=False):
        place.fill_(value)
    return bounds


def run_chain(*arguments: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The chain of x `[B, D]` (float32 or float64) under `score(x, at, params)`, in one launch.

    step_size `[levels]` or `[levels, D]` and temperature `[levels]`: step k of this run takes the row
    (ladder_step + k) div steps_each. The noise of step k is that of step first_step + k of chain first_chain + row.

    Returns:
        The last state `[B, D]` and the states after step burn_in + (i + 1) thin, `[B, n_kept, D]`.
    """
    grid, call, outputs = chain_call(*arguments, **named)
    with device_of(call["x_ptr"]):
        chain_kernel[grid](**call)
    return outputs
