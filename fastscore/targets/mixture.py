"""Gaussians and mixtures of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastscore import _checks, noise
from fastscore.ops.noise import looked_on
from fastscore.targets.given import SAMPLE, constant, points

_LEAST = 1e-76  # the least variance whose root has an inverse in float32

Numbers: TypeAlias = Tensor | float | Sequence[float] | Sequence[Sequence[float]]


def _cholesky(name: str, covariance: Tensor) -> Tensor:
    """Lower factors L of covariances S = L L' `[K, D, D]`; standard deviations `[K, D, 1]` where S is diagonal."""
    if covariance.dim() == 2:
        if not bool((covariance > 0).all()):
            raise ValueError(f"{name} must be positive variances, got {covariance.tolist()}")
        _large_enough(name, covariance)
        return covariance.sqrt().unsqueeze(-1)
    spread = covariance.diagonal(dim1=1, dim2=2).abs().sqrt()
    different = (covariance - covariance.mT).abs() > 1e-5 * spread.unsqueeze(2) * spread.unsqueeze(1)
    if bool(different.any()):
        k, i, j = different.nonzero()[0].tolist()
        entry, other = covariance[k, i, j].item(), covariance[k, j, i].item()
        raise ValueError(f"{name} must be symmetric, got {entry} at [{i}, {j}] and {other} at [{j}, {i}]")
    covariance = (covariance + covariance.mT) / 2  # of which rounding made it differ
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(covariance)
    if bool(info.any()):
        least = torch.linalg.eigvalsh(covariance).min().item()
        raise ValueError(f"{name} must be positive definite, got a least eigenvalue of {least:.6g}")
    _large_enough(name, factor.diagonal(0, -2, -1).square())
    return factor


def _large_enough(name: str, variances: Tensor) -> None:
    """Variances, those of a coordinate given the ones before it, whose inverse roots float32 can hold."""
    if bool((variances < _LEAST).any()):
        raise ValueError(f"{name} must have variances of at least {_LEAST}, got {float(variances.min()):.6g}")


def _product(matrix: Tensor, vectors: Tensor) -> Tensor:
    """A matrix product in the dtype of its factors, with autocast, too."""
    with torch.autocast(vectors.device.type, enabled=False):
        return matrix @ vectors


def _average(joint: Tensor, parts: Tensor) -> Tensor:
    """Parts `[K, D, B]` times the responsibilities of joint log-densities `[K, B]`.

    A single component is responsible for every point, also where its density underflows to log 0.
    """
    return parts if len(joint) == 1 else torch.softmax(joint, dim=0).unsqueeze(1) * parts


class GaussianMixture:
    r"""A mixture of K Gaussians in D dimensions, `p(x) = sum_k w_k N(x; m_k, S_k)`.

    With `z_k = L_k^-1 (x - m_k)`, `S_k = L_k L_k'`, and the responsibilities `r_k = softmax_k(log w_k N(x; m_k, S_k))`:
    `log p = logsumexp_k(log w_k - 1/2 |z_k|^2 - log det L_k) - D/2 log 2 pi` and `score = -sum_k r_k L_k^-T z_k`.
    Both go through the log-sum-exp, so they stay right where every component's density underflows, as long as some
    `|z_k|^2` is finite: in float32, within 10^19 standard deviations. Beyond, a single Gaussian still has its score.

    Args:
        means: Centres m_k, `[K, D]`.
        covariances: One variance for all (a float), a variance each `[K]`, diagonals `[K, D]` or matrices `[K, D, D]`.
        weights: K positive numbers, divided by their sum; equal when not given.

    Attributes:
        dim: D.
        dtype, device: Those of `means` where it is a tensor (else torch's default); samples come in them.
        lipschitz: A bound on the spectral norm of the score's Jacobian where the covariances are all the same
            (`max(1, R^2/4 - 1) / lambda_min(S)`, R the largest Mahalanobis distance between two means, because
            `ds/dx = -P + P Cov_r(m) P`); None where they differ, for then no bound holds everywhere.
            Langevin dynamics needs a step size below `2 / lipschitz`.

    Raises:
        ValueError: Shapes that do not fit, numbers that are not finite, covariances that are not positive definite, a
            variance below 1e-76.

    Example:
        >>> target = GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], 0.25)
        >>> target.score(torch.tensor([[3.0, 0.0]]))
        tensor([[-4., -0.]])
    """

    def __init__(self, means: Numbers, covariances: Numbers, weights: Numbers | None = None) -> None:
        centres, spreads = constant("means", means), constant("covariances", covariances)
        if centres.dim() != 2 or centres.numel() == 0:
            raise ValueError(f"means must have shape [K, D], got {list(centres.shape)}")
        k, self.dim = centres.shape
        if tuple(spreads.shape) not in ((), (k,), (k, self.dim), (k, self.dim, self.dim)):
            raise ValueError(
                f"covariances must be a number or have shape [{k}], [{k}, {self.dim}] or "
                f"[{k}, {self.dim}, {self.dim}], got {list(spreads.shape)}"
            )
        probability = constant("weights", [1.0] * k if weights is None else weights)
        if tuple(probability.shape) != (k,) or not bool((probability > 0).all()):
            raise ValueError(f"weights must be {k} positive numbers, got {probability.tolist()}")
        if spreads.dim() < 2:
            spreads = spreads.reshape(-1, 1).expand(k, self.dim)
        given = means if isinstance(means, Tensor) and means.is_floating_point() else torch.empty(0)
        self.dtype, self.device = given.dtype, given.device
        probability = probability / probability.max()  # else the sum may overflow
        self._means, self._weights = centres, probability / probability.sum()
        self._factor = _cholesky("covariances", spreads)
        self._axes: tuple[Tensor, Tensor] | None = None
        self._exact = self._closed_form()
        self._ready = tuple(constant.to(self.device, self.dtype) for constant in self._exact)
        self._other: tuple[Tensor, ...] | None = None
        self.lipschitz = self._lipschitz()

    @classmethod
    def ring(cls, n_modes: int = 8, radius: float = 4.0, std: float = 0.5) -> GaussianMixture:
        """`n_modes` equal round modes of standard deviation `std`, evenly spaced on a circle in the plane."""
        _checks.count("n_modes", n_modes, minimum=1)
        _checks.positive("radius", radius)
        _checks.positive("std", std)
        angles = [2 * math.pi * i / n_modes for i in range(n_modes)]
        return cls([[radius * math.cos(a), radius * math.sin(a)] for a in angles], std**2)

    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised log-density `[B]` at x `[B, D]`, in float32 or float64."""
        joint, _ = self._joint(points(x, self.dim))
        return torch.logsumexp(joint, dim=0)

    def score(self, x: Tensor) -> Tensor:
        """Score `grad log p` `[B, D]` at x `[B, D]`."""
        wide = points(x, self.dim)
        joint, z = self._joint(wide)
        weighted = _average(joint, z)  # [K, D, B]
        inverse = self._constants(wide)[1]
        pulled = inverse * weighted if inverse.shape[-1] == 1 else _product(inverse.mT, weighted)
        return -pulled.sum(0).t().to(x.dtype)

    def smoothed(self, sigma: float) -> GaussianMixture:
        """The law of x + sigma e, e ~ N(0, I): the mixture of N(m_k, S_k + sigma^2 I)."""
        _checks.positive("sigma", sigma)
        factor = self._factor
        if factor.shape[-1] == 1:
            spread = factor.squeeze(-1).square() + sigma**2
        else:
            spread = factor @ factor.mT + sigma**2 * torch.eye(self.dim, dtype=factor.dtype)
        made = GaussianMixture(self._means, spread, self._weights)
        made.dtype, made.device = self.dtype, self.device
        made._ready = tuple(constant.to(self.device, self.dtype) for constant in made._exact)
        return made

    def noisy_score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Score `[B, D]` of the law of x + sigma e at x `[B, D]`, sigma `[B]`: what a denoiser learns.

        A score function for `annealed_langevin_dynamics`. With S_k = Q_k diag(l_k) Q_k', the precision of a component
        is Q_k diag(1 / (l_k + sigma^2)) Q_k'.
        """
        wide = points(x, self.dim)
        _checks.floating("sigma", sigma)
        if sigma.shape != x.shape[:1]:
            raise ValueError(f"sigma must have one number a row, shape {list(x.shape[:1])}, got {list(sigma.shape)}")
        values, vectors = (part.to(wide) for part in self._spectrum)  # [K, D], [K, D, D]
        along = _product(vectors.mT, wide.t() - self._means.to(wide).unsqueeze(-1))  # [K, D, B]
        spread = values.unsqueeze(-1) + sigma.to(wide).square()
        joint = self._weights.log().to(wide)[:, None] - 0.5 * (along.square() / spread + spread.log()).sum(1)
        return -_product(vectors, _average(joint, along) / spread).sum(0).t().to(x.dtype)

    def sample(self, n: int, seed: int | None = None) -> Tensor:
        """Independent draws `[n, D]`, a function of the seed alone (row b is chain b of the stream of initial states).

        Args:
            n: How many, zero included.
            seed: An int in [0, 2^64); drawn from torch's default CPU generator when not given.
        """
        _checks.count("n", n, minimum=0)
        seed = noise.resolve_seed(seed, None)
        drawn: dict[str, Any] = {"seed": seed, "stream": noise.Stream.INITIAL, "device": self.device}
        z = noise.normal((n, self.dim), step=SAMPLE, dtype=self.dtype, **drawn).unsqueeze(-1)
        u = noise.uniform(n, step=SAMPLE + 1, dtype=torch.float64, **drawn)
        component = torch.searchsorted(self._weights.cumsum(0)[:-1].to(u), u, right=True)
        means, factor = self._means.to(z)[component], self._factor.to(z)[component]
        return means + (factor * z if factor.shape[-1] == 1 else factor @ z).squeeze(-1)

    def _joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Joint log-density of point and component `[K, B]` and whitened distances z `[K, D, B]`.

        Chains lie on the last axis: reductions over a few components then run over whole vector registers, which on a
        CPU is an order of magnitude faster than the other way round.
        """
        means, inverse, log_scale = self._constants(x)
        distance = x.t().contiguous() - means
        z = inverse * distance if inverse.shape[-1] == 1 else _product(inverse, distance)
        return log_scale - 0.5 * z.square().sum(1), z

    def _closed_form(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means `[K, D, 1]`, inverse factors `[K, D, D or 1]` and log normalisers `[K, 1]` in float64."""
        factor = self._factor
        if factor.shape[-1] == 1:
            inverse, diagonal = 1 / factor, factor.squeeze(-1)
        else:
            eye = torch.eye(self.dim, dtype=factor.dtype)
            inverse, diagonal = torch.linalg.solve_triangular(factor, eye, upper=False), factor.diagonal(0, -2, -1)
        log_scale = self._weights.log() - diagonal.log().sum(-1) - 0.5 * self.dim * math.log(2 * math.pi)
        return self._means.unsqueeze(-1), inverse, log_scale.unsqueeze(-1)

    def _constants(self, x: Tensor) -> tuple[Tensor, ...]:
        """The constants of the closed form, as x is."""
        if x.dtype == self.dtype and x.device == self.device:
            return self._ready
        kept = self._other
        if kept is None or kept[0].dtype != x.dtype or kept[0].device != x.device:
            kept = tuple(constant.to(x.device, x.dtype) for constant in self._exact)
            if type(x) is Tensor and not (looked_on() or torch.is_inference_mode_enabled()):
                self._other = kept  # for the next step: a copy to a GPU waits for all that is at work there
        return kept

    @property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Variances `[K, D]` along the axes `[K, D, D]` (columns) of every component, float64, made once.

        Not a `functools.cached_property`, whose lock torch.compile cannot trace before Python 3.12.
        """
        if self._axes is not None:
            return self._axes
        factor = self._factor if self._factor.shape[-1] == self.dim else torch.diag_embed(self._factor.squeeze(-1))
        vectors, roots, _ = torch.linalg.svd(factor)
        self._axes = roots.square(), vectors
        return self._axes

    def _stiffness(self, scale: Tensor) -> float | None:
        """The largest eigenvalue of A P A, A = diag(scale), P the components' precision; None where they differ."""
        if self.lipschitz is None:
            return None
        inverse = self._exact[1][0]
        if inverse.shape[-1] == 1:
            return float((inverse.squeeze(-1) * scale).max()) ** 2
        return float(torch.linalg.svdvals(inverse * scale)[0]) ** 2

    def _lipschitz(self) -> float | None:
        factor = self._factor
        if not torch.equal(factor, factor[:1].expand_as(factor)):
            return None
        matrix = torch.diag(factor[0, :, 0]) if factor.shape[-1] == 1 else factor[0]
        whitened = torch.linalg.solve_triangular(matrix, self._means.t(), upper=False).t()
        widest = float(torch.cdist(whitened, whitened, compute_mode="donot_use_mm_for_euclid_dist").max())
        return max(1.0, widest**2 / 4 - 1) / float(torch.linalg.svdvals(matrix)[-1]) ** 2


class Gaussian(GaussianMixture):
    """The Gaussian `N(m, S)` in D dimensions: `score(x) = -S^-1 (x - m)`.

    Args:
        mean: m, `[D]`.
        covariance: S as a variance (a float), a diagonal `[D]` or a matrix `[D, D]`.

    Attributes:
        dim: D.
        lipschitz: `1 / lambda_min(S)`: Langevin dynamics diverges for step sizes above `2 / lipschitz`.

    Raises:
        ValueError: Shapes that do not fit, numbers that are not finite, a covariance that is not positive definite, a
            variance below 1e-76.

    Example:
        >>> Gaussian([1.0, 0.0], 4.0).score(torch.tensor([[3.0, 2.0]]))
        tensor([[-0.5000, -0.5000]])
    """

    def __init__(self, mean: Numbers, covariance: Numbers) -> None:
        centre, spread = constant("mean", mean), constant("covariance", covariance)
        if centre.dim() != 1 or centre.numel() == 0:
            raise ValueError(f"mean must have shape [D], got {list(centre.shape)}")
        d = len(centre)
        if tuple(spread.shape) not in ((), (d,), (d, d)):
            raise ValueError(f"covariance must be a number or have shape [{d}] or [{d}, {d}], got {list(spread.shape)}")
        _cholesky("covariance", (spread if spread.dim() else spread.expand(d)).unsqueeze(0))
        super().__init__(mean.unsqueeze(0) if isinstance(mean, Tensor) else [centre.tolist()], spread.unsqueeze(0))
