"""What Hutchinson's losses ask of a score s and its products `p_k = J v_k` with probes: `1/2 |s|^2` and `v_k . p_k`."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Half precision as float32, in which sums are taken; other dtypes as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def contraction(score: Tensor | None, products: Tensor, probes: Tensor) -> tuple[Tensor | None, Tensor]:
    """Half the squared norm of every score `[B, *event]`, and the inner products of `[K, B, *event]` with the probes.

    Returns:
        `1/2 |s|^2`, `[B]`, or None without a score; and `v_k . p_k`, `[K, B]`. Half precision is summed in float32.
    """
    squares = None if score is None else 0.5 * wide(score).square().flatten(1).sum(1)
    return squares, (wide(products) * wide(probes)).flatten(2).sum(2)
