"""Samplers on a Gaussian, where everything is known: the law of k steps of Langevin dynamics, and what is left of bias.

With `r = (1 - a lambda)^2`, k steps of size a from variance v have variance `r^k v + 2 a (1 - r^k) / (1 - r)`, in the
limit `1 / (lambda (1 - a lambda / 2))`: too large, by a lambda / 2 to first order.
"""

from __future__ import annotations

import math
from typing import Any

import torch

import fastscore
from fastscore import targets

CHAINS = 2**17
STEPS_SEEN = (1, 2, 3, 5, 8, 13, 21, 34, 55)
STARTS = (0.1, 0.5, 1.0)  # step sizes whose first steps are shown
SIZES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.3)  # step sizes whose stationary variance is shown
START_VARIANCE = 4.0


def variance(a: float, k: float) -> float:
    """The exact variance after k steps of size a for lambda = 1; k may be infinite."""
    r = (1 - a) ** 2
    left = 0.0 if math.isinf(k) else r**k
    return left * START_VARIANCE + 2 * a * (1 - left) / (1 - r)


def bias() -> dict[str, Any]:
    """Measured and exact variances; the standard error of a measured one is `sqrt(2 / CHAINS)` of it."""
    target = targets.Gaussian([0.0], [1.0])
    x = math.sqrt(START_VARIANCE) * fastscore.noise.normal((CHAINS, 1), seed=1, stream=fastscore.noise.Stream.INITIAL)

    def measured(sampler: str, a: float, k: int) -> float:
        seed = {"step_size": a, "n_steps": k, "seed": 2}
        if sampler == "mala":
            y = fastscore.mala(target, x, **seed)
        elif sampler == "underdamped":
            y = fastscore.underdamped_langevin(target.score, x, **(seed | {"step_size": math.sqrt(2 * a)}))
        else:
            y = fastscore.langevin_dynamics(target.score, x, **seed)
        assert isinstance(y, torch.Tensor)
        return float(f"{float(y.double().var()):.6g}")

    def long(a: float) -> int:
        return math.ceil(12 / a)

    return {
        "chains": CHAINS,
        "relative_standard_error": float(f"{math.sqrt(2 / CHAINS):.3g}"),
        "k": list(STEPS_SEEN),
        "first_steps": {
            f"{a:g}": {
                "measured": [measured("langevin", a, k) for k in STEPS_SEEN],
                "exact": [float(f"{variance(a, k):.6g}") for k in STEPS_SEEN],
            }
            for a in STARTS
        },
        "step_size": list(SIZES),
        "stationary": {
            "exact": [float(f"{variance(a, math.inf):.6g}") for a in SIZES],
            "langevin": [measured("langevin", a, long(a)) for a in SIZES],
            "mala": [measured("mala", a, long(a)) for a in SIZES],
            "underdamped": [measured("underdamped", a, 2 * long(a)) for a in SIZES],
        },
    }
