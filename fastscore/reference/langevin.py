"""One Langevin (Euler-Maruyama) step: x' = x + a s + sqrt(2 a T) e."""

from __future__ import annotations

import torch
from torch import Tensor


def langevin_step(x: Tensor, score: Tensor, step_size: Tensor, temperature: Tensor, noise: Tensor) -> Tensor:
    """The update of x given its noise e: x and score `[B, *event]`, step_size a and temperature T broadcast over them.

    Computed in the widest dtype of the noise (float32, or float64 for a float64 x) and rounded to the dtype of x.
    """
    dtype = noise.dtype
    a = step_size.to(dtype)
    moved = x.to(dtype) + a * score.to(dtype) + torch.sqrt(2.0 * temperature.to(dtype) * a) * noise
    return moved.to(x.dtype)
