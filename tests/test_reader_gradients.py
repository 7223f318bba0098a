"""Scores that take the gradient of an energy by themselves: read where that is safe, with the values of autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastscore import divergence, explain, implicit_score_matching, laplacian
from fastscore.reader import read
from tests.brute import brute_jacobian, data

B, D, H = 5, 3, 6
grad = torch.autograd.grad


class Energy(nn.Module):
    """An energy with its score as people write it."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        middle = [nn.LayerNorm(H)] if norm else []
        self.net = nn.Sequential(nn.Linear(D, H), nn.SiLU(), *middle, nn.Linear(H, H), nn.Tanh(), nn.Linear(H, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1)).squeeze(-1)

    def score(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x.requires_grad_(True)
            energy = self(x)
            return -grad(energy, x, grad_outputs=torch.ones_like(energy), create_graph=True, retain_graph=True)[0]


def summed(net: Energy, x: Tensor) -> Tensor:
    x = x.requires_grad_()
    return -grad(net(x).sum(), x, create_graph=True)[0]


def log_density(net: Energy, x: Tensor) -> Tensor:
    x.requires_grad = True
    (slope,) = grad(torch.sum(net(x)), [x], create_graph=True)
    return slope


def tempered(net: Energy, x: Tensor) -> Tensor:
    y = x.clone().requires_grad_()
    return grad(-2 * net(y / 3).sum() / 0.5, y, create_graph=True)[0] / 4


def of_rows(net: Energy, x: Tensor) -> Tensor:
    rows = x.requires_grad_().reshape(len(x), -1)
    return -grad(net(rows).sum(), rows, create_graph=True)[0].reshape(x.shape)


READ: dict[str, Callable[[Energy, Tensor], Tensor]] = {
    "ones for gradients": Energy.score,
    "summed": summed,
    "of a log density": log_density,
    "scaled": tempered,
    "of rows": of_rows,
}
DECLINED: dict[str, Callable[[Energy, Tensor], Tensor]] = {
    "of the mean": lambda net, x: -len(x) * grad(net(x).mean(), x, create_graph=True)[0],
    "weighted": lambda net, x: -grad(net(x), x, torch.full((len(x),), 2.0, dtype=x.dtype), create_graph=True)[0],
    "of a square": lambda net, x: -grad(net(x).square().sum(), x, create_graph=True)[0],
    "in one of two": lambda net, x: sum(grad(net(x).sum(), (x, net.net[0].bias), create_graph=True)[:1]),
    "with a multiple of x": lambda net, x: -grad(net(x).sum(), x, create_graph=True)[0] - x,
    "torch.func": lambda net, x: -torch.func.grad(lambda y: net(y).sum())(x),
    "vmap": lambda net, x: torch.func.vmap(torch.func.grad(lambda y: -net(y[None])[0]))(x),
}


def bound(fn: Callable[[Energy, Tensor], Tensor], **how: Any) -> tuple[Energy, Callable[[Tensor], Tensor]]:
    torch.manual_seed(0)
    net = Energy(**how).double()
    return net, net.score if fn is Energy.score else lambda x: fn(net, x)


@pytest.mark.parametrize("shape", [(B, D), (B, 1, D)])
@pytest.mark.parametrize("name", [*READ, *DECLINED])
def test_values_and_gradients_are_those_of_autograd(name: str, shape: tuple[int, ...]) -> None:
    net, fn = bound((READ | DECLINED)[name])
    parameters = list(net.parameters())
    x = data(*shape).requires_grad_(name in DECLINED)
    score, jacobian = brute_jacobian(fn, x.detach().clone().requires_grad_())
    trace = jacobian.diagonal(0, 1, 2).sum(1)
    found = divergence(fn, x)
    assert (found.method == "forward-laplacian") == (name in READ), explain(fn, x).network
    torch.testing.assert_close(found[:2], (score, trace), rtol=1e-10, atol=1e-10)
    expected = (0.5 * score.square().flatten(1).sum(1) + trace).mean()
    loss = implicit_score_matching(fn, x)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    gradients = (torch.autograd.grad(total, parameters, allow_unused=True) for total in (loss, expected))
    for mine, theirs in zip(*gradients, strict=True):  # the last bias moves no score: None, or zeros
        none = [torch.zeros(()) if gradient is None else gradient for gradient in (mine, theirs)]
        torch.testing.assert_close(*torch.broadcast_tensors(*none), rtol=1e-9, atol=1e-9, check_dtype=False)


def test_a_score_of_layers_that_are_not_read_goes_the_generic_way() -> None:
    net, fn = bound(summed, norm=True)
    x = data(B, D)
    assert read(fn, x) is None
    assert divergence(fn, x).method == "exact-vjp"  # torch.autograd.grad has no forward rule
    torch.testing.assert_close(divergence(fn, x).trace, -laplacian(net, x).laplacian, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "fn",
    [
        lambda net, x: -grad(net(y := x.detach().requires_grad_()).sum(), y, create_graph=True)[0],
        lambda net, x: -grad(net(x).sum(), x)[0],
    ],
    ids=["of a detached x", "without a graph"],
)
def test_a_score_that_cannot_be_differentiated_is_an_error(fn: Callable[[Energy, Tensor], Tensor]) -> None:
    _, score = bound(fn)
    x = data(B, D).requires_grad_()
    assert read(score, x) is None
    with pytest.raises(ValueError, match="does not depend on x"):
        divergence(score, x)


def test_a_partial_gradient_is_not_taken_for_the_whole() -> None:
    def partial(net: Energy, x: Tensor) -> Tensor:
        y, z = x.clone(), x.clone()
        return -grad((net(y) + net(z)).sum(), y, create_graph=True)[0]

    def inner(net: Energy, x: Tensor) -> Tensor:
        y = x.clone()
        h = torch.tanh(net.net[0](x))
        h = h + torch.tanh(net.net[2](h))
        return -grad(net.net[4](h).sum() + 0 * y.sum(), y, create_graph=True)[0]

    x = data(B, D).requires_grad_()
    assert all(read(bound(fn)[1], x) is None for fn in (partial, inner))


def test_a_changed_network_is_read_anew() -> None:
    net, fn = bound(summed)
    x = data(B, D)
    divergence(fn, x)
    net.net[1] = nn.Softplus()
    with torch.no_grad():
        net.net[0].weight.mul_(2)
    torch.testing.assert_close(divergence(fn, x).trace, -laplacian(net, x).laplacian, rtol=1e-10, atol=1e-10)
    net.net[1] = nn.ReLU()
    assert read(fn, x) is None
