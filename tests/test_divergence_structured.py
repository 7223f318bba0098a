"""Networks that are recognised: closed forms, tangents and duals are what the generic way gives."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastscore import noise
from fastscore.divergence import divergence, jacobian, laplacian
from fastscore.networks import EnergyMLP, ScoreMLP
from tests.brute import Energy, Function, brute_jacobian, close, compare_with_gradients, data, gradients

SCALES: dict[str, Callable[[Function], Function]] = {
    "plain": lambda net: net,
    "in": lambda net: lambda x: net(2.0 * x),
    "out": lambda net: lambda x: -3.0 * net(x),
    "all": lambda net: lambda x: 0.5 * net(2.0 * x) - 0.3 * x,
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("weighted", ["", "all", "each"])
def test_recognised_networks(scale: str, depth: int, weighted: str) -> None:
    """Closed forms, tangents and duals are what the generic way gives: traces, estimates, errors and gradients."""
    torch.manual_seed(6)
    hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(5, 5), nn.Softplus())]
    net = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), *hidden, nn.Linear(5, 3)).double()
    function = SCALES[scale](net)
    points, c = data(4, 3), {"": None, "all": data(3, 3, seed=2), "each": data(4, 3, 3, seed=2)}[weighted]
    exact = "closed-form" if depth < 3 and weighted != "each" else "tangents"
    for how, method in (
        ({"trace": "exact"}, exact),
        ({"trace": "exact", "chunk_size": 3}, exact),
        ({"trace": "hutchinson", "n_probes": 3, "seed": 4}, "hutchinson-dual"),
        ({"trace": "hutchinson", "n_probes": 2, "seed": 4, "probe": "normal"}, "hutchinson-dual"),
    ):
        x, y = points.clone().requires_grad_(), points.clone().requires_grad_()
        found = divergence(function, x, weight=c, **how)
        assert found.method == method
        s, j = brute_jacobian(function, y)
        j = j if c is None else c @ j
        if how["trace"] == "exact":
            expected = j.diagonal(0, 1, 2).sum(1)
            assert found.stderr is None
        else:
            draw, n = getattr(noise, how.get("probe", "rademacher")), how["n_probes"]
            v = torch.stack([draw((4, 3), seed=4, stream=noise.Stream.PROBES, step=k, dtype=x.dtype) for k in range(n)])
            each = torch.einsum("kbi,bij,kbj->kb", v, j, v)
            expected = each.mean(0)
            close(found.stderr, each.detach().std(0) / math.sqrt(n))
            assert not found.stderr.requires_grad
        compare_with_gradients(found[:2], (s, expected), x, y, net)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_jacobians_of_recognised_networks(scale: str, depth: int, chunk_size: int | None) -> None:
    torch.manual_seed(6)
    net = ScoreMLP(6, 5, depth, cond_dim=1).double()
    function = SCALES[scale](lambda x: net(x, cond))
    cond = data(4, 1, seed=2).requires_grad_()
    x, y = data(4, 2, 3).requires_grad_(), data(4, 2, 3).requires_grad_()
    found, expected = jacobian(function, x, chunk_size=chunk_size), brute_jacobian(function, y)[1]
    close(found, expected)
    leaves = [cond, *net.parameters()]
    close(gradients([found], [x, *leaves]), gradients([expected], [y, *leaves]))


@pytest.mark.parametrize("scale", ["plain", "in", "out"])
def test_recognised_energies(scale: str) -> None:
    torch.manual_seed(7)
    net = Energy().double()
    energy = SCALES[scale](net)
    x, y = data(4, 2, 3).requires_grad_(), data(4, 2, 3).requires_grad_()
    found = laplacian(energy, x)
    assert found.method == "forward-laplacian"
    value = energy(y).reshape(4)
    gradient, hessian = brute_jacobian(lambda y: torch.autograd.grad(energy(y).sum(), y, create_graph=True)[0], y)
    expected = (value, -gradient, hessian.diagonal(0, 1, 2).sum(1))
    close(found[:3], expected)
    close(
        gradients(list(found[:3]), [x, *net.parameters()]),
        gradients(list(expected), [y, *net.parameters()]),
    )
    line = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    one = laplacian(line, data(4, 1))
    assert one.method == "forward-laplacian"
    slope = jacobian(line, data(4, 1)).squeeze(2)
    close(one.score, -slope)
    close(one.laplacian, jacobian(lambda x: -laplacian(line, x).score, data(4, 1)).flatten())
    exact = EnergyMLP(3, 5).double()
    found = divergence(exact.score, data(4, 3))
    assert found.method == "forward-laplacian"
    close(found.trace, brute_jacobian(exact.score, data(4, 3))[1].diagonal(0, 1, 2).sum(1))
    assert divergence(exact.score, data(4, 3), trace="hutchinson").method == "hutchinson-dual"


@pytest.mark.parametrize("probe", ["rademacher", "normal"])
@pytest.mark.parametrize(("n_probes", "depth"), [(1, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize("scale", ["plain", "in", "out"])
def test_estimates_of_recognised_energies(scale: str, n_probes: int, depth: int, probe: str) -> None:
    """Energy, score, estimates, their standard error and all gradients against float64 brute force."""
    torch.manual_seed(7)
    net = Chain(depth).double()
    energy = SCALES[scale](net)
    x, y = data(5, 2, 3).requires_grad_(), data(5, 2, 3).requires_grad_()
    how = {"trace": "hutchinson", "n_probes": n_probes, "probe": probe, "seed": 5, "first_chain": 7}
    found = laplacian(energy, x, **how)
    assert found.method == "hutchinson-dual"
    value = energy(y).reshape(5)
    gradient, hessian = brute_jacobian(lambda y: torch.autograd.grad(energy(y).sum(), y, create_graph=True)[0], y)
    drawn = {"seed": 5, "stream": noise.Stream.PROBES, "first_chain": 7, "dtype": x.dtype}
    v = torch.stack([getattr(noise, probe)((5, 6), step=k, **drawn) for k in range(n_probes)])
    each = torch.einsum("kbi,bij,kbj->kb", v, hessian, v)
    close(found[:3], (value, -gradient, each.mean(0)))
    if n_probes > 1:
        close(found.stderr, each.detach().std(0) / math.sqrt(n_probes))
        assert not found.stderr.requires_grad
    leaves = list(net.parameters())
    expected = gradients([value, -gradient, each.mean(0)], [y, *leaves])
    close(gradients(list(found[:3]), [x, *leaves]), expected)


class Chain(nn.Module):
    """An energy of images with residuals above the first layer."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6 if layer == 0 else 5, 5) for layer in range(depth))
        self.out = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.layers[0](x.flatten(1)))
        for layer in self.layers[1:]:
            h = h + nn.functional.silu(layer(h))
        return self.out(h)


def test_auto_is_exact_while_cheap_and_says_so() -> None:
    assert divergence(lambda x: -x, torch.zeros(2, 64)).method == "exact-jvp"
    found = divergence(lambda x: -x, torch.zeros(2, 65))
    assert found.method == "hutchinson-jvp"
    assert torch.equal(found.trace, torch.full((2,), -65.0))
    assert divergence(lambda x: -x, torch.zeros(2, 65), trace="exact").method == "exact-jvp"
    wide = nn.Sequential(nn.Linear(65, 4), nn.Tanh(), nn.Linear(4, 65))
    assert divergence(wide, torch.zeros(2, 65)).method == "closed-form"
    assert laplacian(lambda x: x.square().sum(1), torch.zeros(2, 65)).method == "hutchinson-jvp"
