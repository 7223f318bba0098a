"""Exact and estimated traces against everything else a PyTorch user could write, as ratios to a denoising step.

    pytest bench -k divergence -s

Every round of a case runs all its contenders once, one after another, so that a noisy machine disturbs them alike; the
figures are medians relative to an eager step of denoising score matching (DSM) of the same network. Correctness gates
the timing: a contender whose parameter gradients are wrong fails before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from bench import clock
from fastscore.losses import implicit_score_matching
from fastscore.networks import EnergyMLP, ScoreMLP

# Inductor warns of its own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

WIDTH, SIGMA = 128, 0.1
Step = Callable[[], Tensor]


def denoising(network: nn.Module, x: Tensor) -> Step:
    """The yardstick, as every tutorial writes it."""

    def step() -> Tensor:
        noise = torch.randn_like(x)
        return 0.5 * (SIGMA * network(x + SIGMA * noise) + noise).square().sum(-1).mean()

    return step


def energy_denoising(network: nn.Module, x: Tensor) -> Step:
    """DSM of an energy: the score is an autograd gradient, the loss's gradient a double backward."""

    def step() -> Tensor:
        noise = torch.randn_like(x)
        y = (x + SIGMA * noise).requires_grad_()
        (score,) = torch.autograd.grad(-network(y).sum(), y, create_graph=True)
        return 0.5 * (SIGMA * score + noise).square().sum(-1).mean()

    return step


def loop(score: Callable[[Tensor], Tensor], x: Tensor) -> Step:
    """The Jacobian's diagonal by a loop of autograd.grad."""

    def step() -> Tensor:
        y = x.detach().requires_grad_()
        s = score(y)
        rows = (torch.autograd.grad(s[:, i].sum(), y, create_graph=True)[0][:, i] for i in range(x.shape[1]))
        return (0.5 * s.square().sum(-1) + sum(rows)).mean()

    return step


def stacked(network: nn.Module, x: Tensor, compiled: bool = False) -> Step:
    """vmap(jacrev) of one sample."""
    parameters = dict(network.named_parameters())

    def one(parameters: dict[str, Tensor], v: Tensor) -> Tensor:
        return functional_call(network, parameters, (v.unsqueeze(0),)).squeeze(0)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        s = vmap(one, (None, 0))(parameters, x)
        jacobian = vmap(jacrev(one, 1), (None, 0))(parameters, x)
        return (0.5 * s.square().sum(-1) + jacobian.diagonal(dim1=1, dim2=2).sum(-1)).mean()

    chosen = torch.compile(loss) if compiled else loss
    return lambda: chosen(parameters, x)


def sliced(network: nn.Module, x: Tensor) -> Step:
    """Hutchinson by a double backward, the published form of sliced score matching with variance reduction."""

    def step() -> Tensor:
        y = x.detach().requires_grad_()
        s = network(y)
        v = torch.randn_like(y).sign()
        (product,) = torch.autograd.grad(s, y, v, create_graph=True)
        return (0.5 * s.square().sum(-1) + (product * v).sum(-1)).mean()

    return step


def score_of(energy: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda y: torch.autograd.grad(-energy(y).sum(), y, create_graph=True)[0]


def gradients(network: nn.Module, step: Step) -> list[Tensor]:
    found = torch.autograd.grad(step(), list(network.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(network.parameters(), found, strict=True)]


def agree(network: nn.Module, mine: Step, theirs: Step) -> None:
    for got, want in zip(gradients(network, mine), gradients(network, theirs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * max(1.0, float(want.abs().max())))


def race(network: nn.Module, contenders: dict[str, Step], benchmark, label: str, rounds: int) -> None:
    """Whole training steps (zero, loss, backward), relative to the denoising one."""

    def whole(step: Step) -> clock.Contender:
        def run() -> None:
            network.zero_grad()
            step().backward()

        return run

    times = clock.race({name: whole(step) for name, step in contenders.items()}, benchmark, rounds=rounds)
    benchmark.extra_info.update(clock.compare(label, times, base="denoising"))


# batch, D, hidden layers, at most for exact, at most for Hutchinson (on 2 quiet cores)
SCORES = [
    (4096, 2, 2, 1.4, 1.7),
    (4096, 8, 2, 1.4, 1.7),
    (4096, 64, 2, 1.4, 1.7),
    (4096, 2, 3, 2.5, 1.7),
    (4096, 8, 3, 6.0, 1.7),
    (65536, 2, 2, 0.7, 0.9),
]


@pytest.mark.parametrize(("batch", "dim", "depth", "exact", "estimate"), SCORES)
def test_divergence(batch, dim, depth, exact, estimate, benchmark):
    """Ours, then the rivals where one round of them takes seconds rather than minutes."""
    torch.manual_seed(0)
    network, x = ScoreMLP(dim, width=WIDTH, depth=depth), torch.randn(batch, dim)
    ours: Step = lambda: implicit_score_matching(network, x, trace="exact")  # noqa: E731
    seeds = iter(range(1 << 30))
    contenders: dict[str, Step] = {
        "denoising": denoising(network, x),
        "exact": ours,
        "hutchinson": lambda: implicit_score_matching(network, x, trace="hutchinson", seed=next(seeds)),
        "sliced double backward": sliced(network, x),
    }
    if dim <= 8 and batch <= 4096:
        contenders |= {"autograd loop": loop(network, x), "vmap(jacrev)": stacked(network, x)}
        if depth == 2:
            contenders["compiled vmap(jacrev)"] = stacked(network, x, compiled=True)
        agree(network, ours, contenders["autograd loop"])
    label = f"B={batch} D={dim} L={depth}"
    benchmark.extra_info["goals"] = {"exact": exact, "hutchinson": estimate}
    race(network, contenders, benchmark, label, rounds=15 if batch <= 4096 else 5)


@pytest.mark.parametrize(("dim", "goal"), [(2, None), (8, 3.7)])
def test_divergence_of_an_energy(dim, goal, benchmark):
    torch.manual_seed(0)
    network, x = EnergyMLP(dim, width=WIDTH, depth=2), torch.randn(4096, dim)
    ours: Step = lambda: implicit_score_matching(network.score, x, trace="exact")  # noqa: E731
    naive = loop(score_of(network), x)
    agree(network, ours, naive)
    contenders = {"denoising": energy_denoising(network, x), "exact": ours, "autograd loop": naive}
    benchmark.extra_info["goals"] = {"exact": goal}
    race(network, contenders, benchmark, f"energy B=4096 D={dim} L=2", rounds=9)
