"""The exact solution of Bobylev, Krook and Wu of the homogeneous Landau equation, Maxwell molecules in two dimensions.

With mass 1, momentum 0, energy `int |v|^2 f dv = 2` and collisions of strength C = 1/16,

    f(t, v) = exp(-x) / (2 pi K) ((2 K - 1) / K + (1 - K) / K x),    x = |v|^2 / (2 K),    K = 1 - exp(-t / 8) / 2,

a ring at t = 0 and the Maxwellian in the end. For a round f the collision integral is that of Fokker and Planck,
`df/dt = C div(grad f + v f)`: this f is the initial ring, blurred by an Ornstein-Uhlenbeck process.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

C = 1 / 16  # the strength of collisions


def width(t: float) -> float:
    """K(t): the solution is a Gaussian of this variance times a parabola."""
    return 1 - math.exp(-t / 8) / 2


def density(t: float, r: Tensor) -> Tensor:
    """f(t, v) at speeds r = |v|."""
    K = width(t)
    x = r.square() / (2 * K)
    return torch.exp(-x) / (2 * math.pi * K) * (2 * K - 1 + (1 - K) * x) / K


def score(t: float, v: Tensor) -> Tensor:
    """grad_v log f, `[N, 2]`. At t = 0 it has a pole at v = 0, where f vanishes."""
    K = width(t)
    x = v.square().sum(1, keepdim=True) / (2 * K)
    return v / K * ((1 - K) / (2 * K - 1 + (1 - K) * x) - 1)


def velocity(t: float, v: Tensor) -> Tensor:
    """U(t, v) of the exact f: its moments turn the collision integral into `-C (s(v) + v)`."""
    return -C * (score(t, v) + v)


def fourth_moment(t: float) -> float:
    """int |v|^4 f dv. Mass, momentum and energy `int |v|^2 f dv = 2` do not change; this is the first that does."""
    K = width(t)
    return 8 * K * (2 - K)


def entropy(t: float) -> float:
    """int f log f dv, by the trapezoidal rule: it falls until the Maxwellian is reached."""
    r = torch.linspace(0, 10, 20_001, dtype=torch.float64)
    f = density(t, r)
    return float(torch.trapezoid(2 * math.pi * r * torch.xlogy(f, f), r))
