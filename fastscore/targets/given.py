"""What targets are given, checked: constants and points; and which part of the noise their samples are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore import _checks

SAMPLE = 2  # the first step of the noise of samples: starting points of chains have step 0 of the same stream


def constant(name: str, value: object) -> Tensor:
    """A finite float64 constant on the CPU: closed forms are prepared there, whatever they are used in."""
    if isinstance(value, Tensor) and value.is_complex():
        raise TypeError(f"{name} must be real numbers, got {value.dtype}")
    try:
        tensor: Tensor = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be numbers of one shape, got {value!r}") from error
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got {value}")
    return tensor


def points(x: Tensor, dim: int) -> Tensor:
    """Points `[B, dim]`, checked, in float32 or float64."""
    _checks.floating("x", x)
    if x.dim() != 2 or x.shape[1] != dim:
        raise ValueError(f"x must have shape [B, {dim}], got {list(x.shape)}")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
