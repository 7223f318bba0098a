"""The denoising loss of a structured network on a CPU: compiled passes against autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore.ops import mlp_denoising, mlp_functions

ROWS = 2100  # times a width of 32: enough to be worth compiled passes


def residual_network() -> torch.nn.Module:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(3, 32), torch.nn.Linear(32, 32)
            self.last = torch.nn.Linear(32, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            return self.last(h + torch.nn.functional.silu(self.second(h)))

    return Net()


NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "one": lambda: fastscore.ScoreMLP(dim=3, width=32, depth=1),
    "two": lambda: fastscore.ScoreMLP(dim=3, width=33, depth=2, activation="softplus"),
    "residual": residual_network,
    "four": lambda: fastscore.ScoreMLP(dim=3, width=32, depth=4),
    "told": lambda: fastscore.ScoreMLP(dim=3, width=32, depth=2, cond_dim=1),
    "energy": lambda: fastscore.EnergyMLP(dim=3, width=32, depth=1),
    "energy, three": lambda: fastscore.EnergyMLP(dim=3, width=32, depth=3, activation="tanh"),
    "energy, told": lambda: fastscore.EnergyMLP(dim=3, width=32, depth=2, cond_dim=1),
}
HOW: dict[str, dict[str, object]] = {
    "mean": {},
    "sum": {"reduction": "sum", "weighting": "none"},
    "many": {"sigma": torch.linspace(0.1, 1.0, ROWS, dtype=torch.float64)},
}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every loss that the compiled passes make."""
    calls: list[int] = []
    real = mlp_denoising.Denoising.forward

    def forward(*args: object) -> Tensor:
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(mlp_denoising.Denoising, "forward", staticmethod(forward))
    return calls


def found(net: torch.nn.Module, dtype: torch.dtype, n: int = ROWS, **how: object) -> list[Tensor]:
    """The loss and three times its gradients."""
    net.to(dtype).zero_grad()
    x = torch.linspace(-2, 2, 3 * n, dtype=torch.float64).view(n, 3).sin().to(dtype)
    level = torch.as_tensor(how.pop("sigma", 0.4)).to(dtype)
    cond = level.expand(n)[:, None] if getattr(net, "cond_dim", 0) else None
    fn = net.score if isinstance(net, fastscore.EnergyMLP) else net
    loss = fastscore.denoising_score_matching(fn, x, sigma=level, cond=cond, seed=5, first_chain=2**32 - 9, **how)
    (3 * loss).backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters() if p.requires_grad]
    return [loss.detach(), *(gradient.clone() for gradient in gradients)]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_gradients(name: str, how: str, taken: list[int]) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name]()
    exact = found(net, torch.float64, **HOW[how])
    assert not taken
    made = found(net, torch.float32, **HOW[how])
    assert taken
    assert len(made) == len(exact) == 1 + len(list(net.parameters()))
    for m, e in zip(made, exact, strict=True):
        assert (m.double() - e).abs().max() <= 5e-6 * e.abs().max().clamp(min=1)


@pytest.mark.parametrize("convention", ["half", "fisher"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", NETWORKS)
def test_explicit_score_matching(name: str, reduction: str, convention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, calls = NETWORKS[name](), []
    real = mlp_functions.Terms.forward
    forward = staticmethod(lambda *args: (calls.append(1), real(*args))[1])
    monkeypatch.setattr(mlp_functions.Terms, "forward", forward)

    def loss_and_gradients(dtype: torch.dtype) -> list[Tensor]:
        fn = net.to(dtype).score if isinstance(net, fastscore.EnergyMLP) else net.to(dtype)
        x = torch.linspace(-2, 2, 3 * ROWS, dtype=torch.float64).view(ROWS, 3).sin().to(dtype).requires_grad_()
        cond = torch.linspace(0.1, 1.0, ROWS, dtype=torch.float64).to(dtype)[:, None] if "told" in name else None
        how = {"cond": cond, "convention": convention, "reduction": reduction}
        loss = fastscore.explicit_score_matching(fn, x, target=torch.neg, **how)
        leaves = [x, *net.parameters()]
        found = torch.autograd.grad(loss.square().sum(), leaves, allow_unused=True)
        return [loss.detach(), *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True))]

    exact = loss_and_gradients(torch.float64)
    assert not calls
    made = loss_and_gradients(torch.float32)
    assert calls
    for m, e in zip(made, exact, strict=True):
        assert (m.double() - e).abs().max() <= 1e-5 * e.abs().max().clamp(min=1)


def test_frozen_parameters_get_no_gradient_and_the_others_the_same(taken: list[int]) -> None:
    torch.manual_seed(0)
    net = fastscore.ScoreMLP(dim=3, width=32, depth=2)
    loss, *every = found(net, torch.float32)
    parameters = list(net.parameters())
    for parameter in parameters[::2]:
        parameter.requires_grad_(False).grad = None
    again, *some = found(net, torch.float32)
    assert len(taken) == 2
    assert torch.equal(loss, again)
    assert len(some) == len(parameters[1::2])
    for left, right in zip(some, every[1::2], strict=True):
        assert torch.equal(left, right)


def test_what_else_is_asked_takes_autograds_way(taken: list[int]) -> None:
    """Few rows, gradients in x or in sigma, samples' own losses, no gradient, activations without compiled passes."""
    net, x = fastscore.ScoreMLP(dim=3, width=32, depth=2), torch.ones(ROWS, 3)
    dsm = fastscore.denoising_score_matching
    dsm(net, x[:20], sigma=0.5, seed=1)
    dsm(net, x.clone().requires_grad_(), sigma=0.5, seed=1)
    dsm(net, x, sigma=torch.tensor(0.5, requires_grad=True), seed=1)
    dsm(net, x, sigma=0.5, seed=1, reduction="none")
    dsm(fastscore.ScoreMLP(dim=3, width=32, depth=2, activation="sine"), x, sigma=0.5, seed=1)
    with torch.no_grad():
        dsm(net, x, sigma=0.5, seed=1)
    assert not taken


@pytest.mark.parametrize("name", ["two", "energy, three"])
def test_second_derivatives(name: str, taken: list[int]) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name]()

    def second(dtype: torch.dtype) -> list[Tensor]:
        fn, x = net.to(dtype).score if "energy" in name else net.to(dtype), torch.ones(ROWS, 3, dtype=dtype)
        generic = (lambda x: fn(x) + 0 * x.frac()) if dtype == torch.float64 else fn  # is not read
        loss = fastscore.denoising_score_matching(generic, x, sigma=0.5, seed=1, first_chain=2**32 - 9)
        parameters = list(net.parameters())
        first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        squares = sum(f.square().sum() for f in first if f is not None)
        return [g for g in torch.autograd.grad(squares, parameters, allow_unused=True) if g is not None]

    made_second = second(torch.float32)
    assert taken
    for made, e in zip(made_second, second(torch.float64), strict=True):
        assert (made.double() - e).abs().max() <= 2e-5 * e.abs().max().clamp(min=1)
