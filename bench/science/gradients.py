"""How noisy the gradients of the losses are, over fresh data and fresh noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastscore
from fastscore import ScoreMLP, targets

Loss = Callable[[ScoreMLP, Tensor, int], Tensor]  # (network, data, seed) -> loss
DIM, WIDTH, DEPTH = 8, 128, 2
NOISE_DIMS = (2, 8, 64)
CPU = Path(__file__).parents[1] / "results" / "cpu.json"
DRAWS, DRAWN = 50, 256  # batches and their size
SIGMAS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002)


def noise() -> dict[str, Any]:
    """The variance of a gradient of a batch, in units of the exact loss's, and the seconds of a step of each loss."""
    variance: dict[str, dict[str, float]] = {}
    for dim in NOISE_DIMS:
        target, net = mixture(dim), _halfway(dim)
        moments = {name: _moments(net, target, loss) for name, (loss, _) in IMPLICIT.items()}
        _same_mean(moments)
        variance[f"D={dim}"] = {name: float(f"{v / moments['exact'][1]:.3g}") for name, (_, v) in moments.items()}
    return costed({"variance": variance})


def costed(found: dict[str, Any]) -> dict[str, Any]:
    """The same with the seconds of a step that are recorded now."""
    rows = {dim: step_seconds(dim) for dim in NOISE_DIMS}
    seconds = {f"D={dim}": {name: rows[dim][row] for name, (_, row) in IMPLICIT.items()} for dim in rows}
    return found | {"seconds_per_step": seconds}


def step_seconds(dim: int) -> dict[str, float]:
    """Seconds of a step (loss and backward) of every loss, as `python -m bench` recorded them at B = 4096."""
    cases = {case["name"]: case["rows"] for case in json.loads(CPU.read_text())["cases"]}
    return {name: row["seconds"] for name, row in cases[f"B=4096 D={dim} L={DEPTH} H={WIDTH}"].items()}


def exact(net: ScoreMLP, x: Tensor, seed: int) -> Tensor:
    """Implicit score matching."""
    return fastscore.implicit_score_matching(net, x, trace="exact")


def hutchinson(net: ScoreMLP, x: Tensor, seed: int) -> Tensor:
    """The same with the trace estimated by one probe."""
    return fastscore.implicit_score_matching(net, x, trace="hutchinson", seed=seed)


def sliced(net: ScoreMLP, x: Tensor, seed: int) -> Tensor:
    """Sliced score matching with variance reduction, as published: signs for directions, and a double backward."""
    s, curvature, _ = _slices(net, x, seed)
    return (0.5 * s.square().sum(1) + curvature).mean()


def sliced_plain(net: ScoreMLP, x: Tensor, seed: int) -> Tensor:
    """The same without variance reduction: `1/2 (v's)^2 + v'Jv`."""
    s, curvature, v = _slices(net, x, seed)
    return (0.5 * (s * v).sum(1).square() + curvature).mean()


def _slices(net: ScoreMLP, x: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).sign()
    y = x.detach().requires_grad_()
    s = net(y)
    (product,) = torch.autograd.grad(s, y, v, create_graph=True)
    return s, (product * v).sum(1), v


IMPLICIT: dict[str, tuple[Loss, str]] = {  # with the name of its row in cpu.json
    "exact": (exact, "fastscore, exact"),
    "Hutchinson, 1 probe": (hutchinson, "fastscore, Hutchinson"),
    "sliced, variance-reduced (double backward)": (sliced, "sliced score matching, double backward"),
    "sliced (double backward)": (sliced_plain, "sliced score matching, double backward"),
}


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


def mixture(dim: int = DIM) -> targets.GaussianMixture:
    """Eight round modes of standard deviation 1/2 at random places."""
    return targets.GaussianMixture(1.5 * torch.randn(8, dim, generator=torch.Generator().manual_seed(dim)), 0.25)


def _halfway(dim: int = DIM) -> ScoreMLP:
    """A network after 200 steps: neither new nor done."""
    torch.manual_seed(0)
    target, net = mixture(dim), ScoreMLP(dim, WIDTH, DEPTH)
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
