"""Double wells: densities with 2^D modes of one shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastscore import _checks, noise
from fastscore.targets.given import SAMPLE, points


class DoubleWell:
    """Independent double wells: `p(x)` proportional to `exp(-b sum_d (x_d^2 - 1)^2)`, `score(x) = -4 b x (x^2 - 1)`.

    Two wells a coordinate, at -1 and 1, with a barrier of height b between them: 2^D modes. The normaliser and the
    samples come from the density tabulated in float64 where it is above e^-80 of its maximum (the trapezoidal rule on a
    function that vanishes at both ends is exact to rounding; between the points of the table the inverse distribution
    function is off by less than 1e-7, and for high barriers by less than 1e-6 of the width of a well).

    Args:
        dim: D.
        barrier: b > 0, in units of the temperature.

    Attributes:
        dim: D.

    Raises:
        ValueError: A dim below 1, a barrier that is not finite and > 0.

    Example:
        >>> DoubleWell(2, barrier=0.5).score(torch.tensor([[2.0, 1.0]]))
        tensor([[-12., -0.]])
    """

    def __init__(self, dim: int, barrier: float = 1.0) -> None:
        _checks.count("dim", dim, minimum=1)
        _checks.positive("barrier", barrier)
        self.dim, self.barrier = dim, float(barrier)
        reach = math.sqrt(80 / self.barrier)  # the density is e^-80 where x^2 = 1 +- reach
        inner = -reach / (1 + math.sqrt(1 - reach)) if reach < 1 else -1.0
        apart = torch.linspace(inner, reach / (1 + math.sqrt(1 + reach)), 2**15 + 1, dtype=torch.float64)  # |x| - 1
        density = torch.exp(-self.barrier * (apart * (apart + 2)).square())
        mass = torch.nn.functional.pad(torch.cumulative_trapezoid(density, apart), (1, 0))
        half, side = 0.5 * mass / mass[-1], 1 + apart
        self._points = torch.cat([-side.flip(0), side])
        self._distribution = torch.cat([0.5 - half.flip(0), 0.5 + half])
        self._log_normaliser = math.log(2 * mass[-1])

    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised log-density `[B]` at x `[B, D]`, in float32 or float64."""
        wide = points(x, self.dim)
        return (-self.barrier * ((wide - 1) * (wide + 1)).square() - self._log_normaliser).sum(1)

    def score(self, x: Tensor) -> Tensor:
        """Score `grad log p` `[B, D]` at x `[B, D]`."""
        wide = points(x, self.dim)
        return (-4 * self.barrier * wide * ((wide - 1) * (wide + 1))).to(x.dtype)

    def sample(self, n: int, seed: int | None = None) -> Tensor:
        """Independent draws `[n, D]` in torch's default dtype, a function of the seed alone.

        Args:
            n: How many, zero included.
            seed: An int in [0, 2^64); drawn from torch's default CPU generator when not given.
        """
        _checks.count("n", n, minimum=0)
        seed = noise.resolve_seed(seed, None)
        z = noise.normal((n, self.dim), seed=seed, stream=noise.Stream.INITIAL, step=SAMPLE, dtype=torch.float64)
        u = torch.special.ndtr(z)
        last = len(self._points) - 2
        left = (torch.searchsorted(self._distribution, u, right=True) - 1).clamp(0, last)
        below, above = self._distribution[left], self._distribution[left + 1]
        share = ((u - below) / (above - below)).nan_to_num(0.5)
        return torch.lerp(self._points[left], self._points[left + 1], share).to(torch.get_default_dtype())
