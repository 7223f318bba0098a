"""How many noise levels, and how large a Langevin step: the choices of Song and Ermon (2020), computed.

Sources: Y. Song, S. Ermon, Improved Techniques for Training Score-Based Generative Models (NeurIPS 2020), "NCSNv2".
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor


def widest(data: Tensor) -> float:
    """The largest distance between two rows of data `[N, D]`: the first noise level (technique 1)."""
    return float(torch.cdist(data, data).max())


def largest_ratio(dim: int) -> float:
    """The ratio of neighbouring noise levels at which half of one level's typical set lies in the next's (technique 2).

    Solves `Phi(sqrt(2D) (g - 1) + 3g) - Phi(sqrt(2D) (g - 1) - 3g) = 1/2` for g > 1 by bisection: the left side falls
    from almost 1 at g = 1. For D < 5 it never gets there, typical sets being no thin shells yet: no ratio is too large.
    """
    phi = NormalDist().cdf
    low, high = 1.0, 32.0
    for _ in range(60):
        ratio = (low + high) / 2
        shift = math.sqrt(2 * dim) * (ratio - 1)
        if phi(shift + 3 * ratio) - phi(shift - 3 * ratio) > 0.5:
            low = ratio
        else:
            high = ratio
    return low


def noise_ladder(largest: float, smallest: float, dim: int) -> Tensor:
    """Geometric noise levels from `largest` down to `smallest`, as few as technique 2 allows in D = `dim`."""
    n_levels = 1 + math.ceil(math.log(largest / smallest) / math.log(largest_ratio(dim)))
    return torch.logspace(math.log10(largest), math.log10(smallest), n_levels)


def step_size(sigmas: Tensor, n_steps_each: int) -> float:
    """The step size at the last level that brings each level's variance closest to what the next expects (technique 4).

    For data at one point, level i has the law `N(0, sigma_i^2)`. Langevin steps of size `e sigma_i^2` shrink a
    variance of `g^2 sigma_i^2` (g the ladder's ratio) after T steps to `sigma_i^2 v`,
    `v = (1 - e)^(2T) (g^2 - c) + c`, `c = 1 / (1 - e/2)`. The e that minimises `|v - 1|` is found on a grid.
    """
    ratio = sigmas[0].double() / sigmas[1].double()
    e = torch.logspace(-4, 0, 20_000, dtype=torch.float64)[:-1]
    stationary = 1 / (1 - e / 2)
    variance = (1 - e) ** (2 * n_steps_each) * (ratio**2 - stationary) + stationary
    return float(e[(variance - 1).abs().argmin()] * sigmas[-1].double() ** 2)
