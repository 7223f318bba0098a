"""How noisy the gradients of the losses are, over fresh data and fresh noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore import ScoreMLP, targets

Loss = Callable[[ScoreMLP, Tensor, int], Tensor]  # (network, data, seed) -> loss
DIM, WIDTH, DEPTH = 8, 128, 2
DRAWS, DRAWN = 50, 256  # batches and their size
SIGMAS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)


def small_sigma() -> dict[str, Any]:
    """The variance of a gradient of a batch, in units of the exact loss's, of a network on its way.

    The losses are those whose minimum is the score of the data blurred by `N(0, sigma^2)`.
    """
    target, net = mixture(), _halfway()
    found: dict[str, list[float]] = {"denoising": [], "denoising, pairs +e and -e": []}
    for sigma in SIGMAS:
        losses: dict[str, Loss] = {
            "denoising": _denoising(sigma),
            "denoising, pairs +e and -e": _pairs(sigma),
            "exact": _blurred(sigma),
        }
        moments = {name: _moments(net, target, loss) for name, loss in losses.items()}
        _same_mean(moments)
        for name, values in found.items():
            values.append(float(f"{moments[name][1] / moments['exact'][1]:.3g}"))
    return {"sigma": list(SIGMAS), "variance": found}


def _denoising(sigma: float) -> Loss:
    def loss(net: ScoreMLP, x: Tensor, seed: int) -> Tensor:
        return fastscore.denoising_score_matching(net, x, sigma=sigma, weighting="none", seed=seed)

    return loss


def _pairs(sigma: float) -> Loss:
    """Denoising score matching of every noise and its negative: the part in 1 / sigma cancels."""

    def loss(net: ScoreMLP, x: Tensor, seed: int) -> Tensor:
        e = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        there, back = net(x + sigma * e) + e / sigma, net(x - sigma * e) - e / sigma
        return 0.25 * (there.square() + back.square()).sum(1).mean()

    return loss


def _blurred(sigma: float) -> Loss:
    """Exact implicit score matching on blurred data, which has the same expected gradient as denoising."""

    def loss(net: ScoreMLP, x: Tensor, seed: int) -> Tensor:
        e = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        return fastscore.implicit_score_matching(net, x + sigma * e, trace="exact")

    return loss


def mixture() -> targets.GaussianMixture:
    """Eight round modes of standard deviation 1/2 at random places."""
    return targets.GaussianMixture(1.5 * torch.randn(8, DIM, generator=torch.Generator().manual_seed(DIM)), 0.25)


def _halfway() -> ScoreMLP:
    """A network after 200 steps: neither new nor done."""
    torch.manual_seed(0)
    target, net = mixture(), ScoreMLP(DIM, WIDTH, DEPTH)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for step in range(200):
        x = target.sample(DRAWN, seed=step)
        optimizer.zero_grad()
        fastscore.implicit_score_matching(net, x, trace="hutchinson", n_probes=4, seed=step).backward()
        optimizer.step()
    return net


def _moments(net: ScoreMLP, target: targets.GaussianMixture, loss: Loss) -> tuple[Tensor, float]:
    """The mean of a batch's gradient and its variance, summed over the parameters, from independent draws."""
    total, squares = torch.zeros(sum(p.numel() for p in net.parameters()), dtype=torch.float64), 0.0
    for draw in range(DRAWS):
        value = loss(net, target.sample(DRAWN, seed=10_000 + draw), draw)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(net.parameters()))]).double()
        total, squares = total + gradient, squares + float(gradient.square().sum())
    mean = total / DRAWS
    return mean, (squares - DRAWS * float(mean.square().sum())) / (DRAWS - 1)


def _same_mean(moments: dict[str, tuple[Tensor, float]]) -> None:
    """All of them estimate one gradient: a loss that does not is not shown."""
    mean, variance = moments["exact"]
    for name, (other, spread) in moments.items():
        if float((other - mean).square().sum()) > 10 * (variance + spread) / DRAWS:
            raise ValueError(f"{name} does not have the expected gradient of the exact loss")
