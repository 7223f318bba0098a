"""When a result is right: the two questions that every family's check asks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.registry import Arrays, WrongError

STANDARD_ERRORS = 5.0
"""A right result is refused once in two million statistics."""


def close(got: Arrays, want: Arrays, tolerance: float) -> None:
    """Every array is within `tolerance` of the reference, relative to the reference's norm.

    An array whose norm is far below that of all together is measured by a thousandth of that instead.
    """
    overall = max(float(value.double().norm()) for value in want.values())
    for name, value in want.items():
        if name not in got:
            raise WrongError(f"{name} is missing")
        difference = float((got[name].double().to(value.device) - value.double()).norm())
        error = difference / max(float(value.double().norm()), 1e-3 * overall)
        if not error <= tolerance:
            raise WrongError(f"{name} is off by {error:.1e} of its norm, allowed {tolerance:.0e}")


def same_mean(names: list[str], got: Tensor, mean: Tensor, error: Tensor, floor: Tensor | float = 0.0) -> None:
    """The mean over independent observations `[N, S]` of S statistics is the expected one `[S]`.

    Args:
        names: of the statistics.
        got: the observations; their own spread is part of the standard error where there are more than 30.
        mean: the expected mean.
        error: its standard error, with that of the mean of `got` where `got` is too short to tell.
        floor: what may be off besides, by rounding.
    """
    got = got.double()
    if not bool(torch.isfinite(got).all()):
        raise WrongError("a value is not finite")
    if len(got) > 30:
        error = (error.square() + got.var(0) / len(got)).sqrt()
    off = (got.mean(0) - mean).abs() / (STANDARD_ERRORS * error + floor).clamp(min=1e-300)
    worst = int(off.argmax())
    if not float(off[worst]) <= 1.0:
        found = f"{float(got.mean(0)[worst]):.4g}, expected {float(mean[worst]):.4g}"
        raise WrongError(f"the mean of {names[worst]} is {found} +- {float(error[worst]):.1g}")


def fresh_normals(parts: list[Tensor]) -> None:
    """What two calls drew, or one, are standard normals, and so is the difference: not the same ones again."""
    standard_normal(parts[0])
    if len(parts) > 1:
        standard_normal((parts[0].double() - parts[1].double()) / math.sqrt(2))


def standard_normal(z: Tensor) -> None:
    """The first four moments of what ought to be standard normals."""
    z = z.double().flatten()
    moments = torch.stack([z, z.square(), z**3, z**4], 1)
    known = torch.tensor([[0.0, 1.0, 0.0, 3.0], [1.0, 2.0, 15.0, 96.0]], dtype=torch.float64, device=z.device)
    same_mean(["z", "z^2", "z^3", "z^4"], moments.mean(0, keepdim=True), known[0], (known[1] / len(z)).sqrt())
