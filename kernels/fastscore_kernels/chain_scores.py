"""Scores for the whole-chain kernel: the analytic targets, and an example of one's own.

A score is a `@triton.jit` function `score(x, at, params)` of a tile of states x `[P, BLOCK_CHAINS]` (features first)
that returns grad log p, a tile of the same shape. `at` is (features `[P, 1]`, inside `[P, BLOCK_CHAINS]`, chains
`[1, BLOCK_CHAINS]`, level): the feature of each row, which entries are real (the others hold 0 and stay 0), the index
of each chain in the batch, and the level of a ladder. `params` is the tuple that the launcher was given: tensors arrive
as pointers, numbers as float32 or integers, and `tl.constexpr(n)` as a constant (`N: tl.constexpr = params[i]`).
"""

from typing import Any

import torch
import triton
import triton.language as tl

from fastscore_kernels.chain import generation, tile_order, to_tile

MAX_UNROLLED = tl.constexpr(64)  # numbers of a mixture a thread keeps in registers; larger ones are read at every step


@triton.jit
def double_well(x, at, params):
    """E = b sum_d (x_d^2 - 1)^2: score -4 b x (x - 1) (x + 1), params (b,), a tensor: a number would be float32."""
    return -4.0 * tl.load(params[0]) * x * ((x - 1.0) * (x + 1.0))


@triton.jit
def gaussian(x, at, params):
    """-S^-1 (x - m); params as for a mixture of one."""
    _, pulled = component(x, 0, at, params)
    return -pulled


@triton.jit
def mixture(x, at, params):
    """-sum_k r_k S_k^-1 (x - m_k), r_k = softmax_k(c_k - 1/2 (x - m_k)' S_k^-1 (x - m_k)).

    params: means `[K, P]`, precisions `[K, P]` or `[K, P, P]`, constants c `[K]`, K, whether diagonal, how exact, and
    whether precisions and constants have a level before K: those of a mixture with less and less noise added.
    The largest exponent is found first: that costs the products twice, and saves K exponentials and every rescaling.
    """
    K: tl.constexpr = params[3]
    SMALL: tl.constexpr = K * x.shape[0] * (1 if params[4] else x.shape[0]) <= MAX_UNROLLED
    largest = tl.full([x.shape[1]], float("-inf"), x.dtype)
    total = tl.zeros([x.shape[1]], x.dtype)
    pull = tl.zeros(x.shape, x.dtype)
    if SMALL:
        for k in tl.static_range(K):
            largest = tl.maximum(largest, component(x, k, at, params)[0])
        for k in tl.static_range(K):
            total, pull = weighted(x, k, at, largest, total, pull, params)
    else:
        for k in range(K):
            largest = tl.maximum(largest, component(x, k, at, params)[0])
        for k in range(K):
            total, pull = weighted(x, k, at, largest, total, pull, params)
    return -pull / total[None, :]


@triton.jit
def weighted(x, k, at, largest, total, pull, params):
    """The sums over components with component k in them."""
    joint, pulled = component(x, k, at, params)
    weight = tl.exp(joint - largest)
    return total + weight, pull + weight[None, :] * pulled


@triton.jit
def component(x, k, at, params):
    """c_k - 1/2 y' S_k^-1 y `[BLOCK_CHAINS]` and S_k^-1 y, y = x - m_k; c and S those of this step's level."""
    P: tl.constexpr = x.shape[0]
    row = tl.arange(0, P)
    of_level = k
    if params[6]:
        of_level += at[3].to(tl.int64) * params[3]
    y = x - tl.load(params[0] + k * P + row)[:, None]
    if params[4]:
        pulled = y * tl.load(params[1] + of_level * P + row)[:, None]
    else:
        pulled = times(y, params[1] + of_level * P * P, params)
    return tl.load(params[2] + of_level) - 0.5 * tl.sum(y * pulled, 0), pulled


@triton.jit
def times(y, matrix, params):
    """M y for a symmetric M `[P, P]`: column by column where P is small, else by `tl.dot`, with chains as rows."""
    P: tl.constexpr = y.shape[0]
    PRECISION: tl.constexpr = params[5]
    row = tl.arange(0, P)
    if P < 16:
        product = tl.zeros(y.shape, y.dtype)
        for j in tl.static_range(P):
            entry = tl.sum(tl.where(row[:, None] == j, y, 0.0), 0)
            product += tl.load(matrix + j * P + row)[:, None] * entry[None, :]
        return product
    else:
        whole = tl.load(matrix + row[:, None] * P + row[None, :])
        return tl.trans(tl.dot(tl.trans(y), tl.trans(whole), input_precision=PRECISION, out_dtype=y.dtype))


def pack(means: torch.Tensor, precisions: torch.Tensor, constants: torch.Tensor, precision: str) -> tuple[Any, ...]:
    """The params of a target: means `[K, D]`, precisions S^-1 `[K, D]` or `[K, D, D]`, constants `[K]`.

    Of a ladder, precisions and constants have one more dimension before K: the level.
    """
    diagonal = precisions.dim() == constants.dim() + 1
    tiled = to_tile(precisions, -1) if diagonal else to_tile(to_tile(precisions, -1), -2)
    return (
        to_tile(means, 1).contiguous(),
        tiled.contiguous(),
        constants.contiguous(),
        tl.constexpr(len(means)),
        tl.constexpr(diagonal),
        tl.constexpr("tf32" if precision == "bf16" else precision),
        tl.constexpr(constants.dim() == 2),
    )


def launch_options(n_features: int, full: bool, device: torch.device) -> dict[str, int] | None:
    """The tile of an analytic target (full: of matrices) or of one's own score, or None: it would spill registers."""
    rows = len(tile_order(n_features))
    if rows > (16 if full and generation(device) not in (0, 9) else 64):
        return None
    if rows <= 8:
        return {"BLOCK_CHAINS": 32, "num_warps": 1}
    return {"BLOCK_CHAINS": 64 if full else 32, "num_warps": 4}
