"""Whole losses under `torch.compile(fullgraph=True)`: eager's values and gradients, by the same closed forms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from fastscore import (
    EnergyMLP,
    ScoreMLP,
    denoising_score_matching,
    divergence,
    implicit_score_matching,
    jacobian,
    laplacian,
    noise,
    sliced_score_matching,
)

torch.manual_seed(3)
SCORE = ScoreMLP(3, 8, 2, cond_dim=1).double()
DEEP = ScoreMLP(3, 8, 3, "tanh").double()
ENERGY = EnergyMLP(3, 8, 2).double()
NORMALISED = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 3)).double()
LEAVES = [p for net in (SCORE, DEEP, ENERGY, NORMALISED) for p in net.parameters()]
X = noise.normal((24, 3), seed=1, stream=noise.Stream.DATA, dtype=torch.float64)
TIMES = X[:, 0].exp()
HUTCHINSON = {"trace": "hutchinson", "n_probes": 2, "seed": 5}

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "exact": lambda x: implicit_score_matching(SCORE, x, cond=TIMES),
    "hutchinson": lambda x: implicit_score_matching(SCORE, x, cond=TIMES, **HUTCHINSON),
    "normal": lambda x: implicit_score_matching(SCORE, x, cond=0.5, probe="normal", **HUTCHINSON),
    "sliced": lambda x: sliced_score_matching(DEEP, x, seed=5),
    "tangents": lambda x: implicit_score_matching(DEEP, x, convention="fisher", reduction="sum"),
    "energy": lambda x: implicit_score_matching(ENERGY.score, x),
    "energy, hutchinson": lambda x: implicit_score_matching(ENERGY.score, x, **HUTCHINSON),
    "laplacian": lambda x: laplacian(ENERGY, x).laplacian.square().sum(),
    "jacobian": lambda x: jacobian(DEEP, x).square().sum(),
    "weight": lambda x: divergence(SCORE, x, cond=TIMES, weight=torch.eye(3) + torch.ones(3, 3)).trace.sum(),
    "generic": lambda x: implicit_score_matching(NORMALISED, x),
    "generic, hutchinson": lambda x: implicit_score_matching(NORMALISED, x, **HUTCHINSON),
}


def compare(loss: Callable[[Tensor], Tensor], backend: str) -> None:
    torch._dynamo.reset()
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    compiled, eager = torch.compile(loss, fullgraph=True, backend=backend)(x), loss(y)
    torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(compiled, [x, *LEAVES], allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(eager, [y, *LEAVES], allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_whole_losses(name: str) -> None:
    compare(LOSSES[name], "aot_eager")


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("hutchinson", "tangents", "energy", "generic")]


@pytest.mark.parametrize("name", ["exact", *SLOW])
def test_whole_losses_through_inductor(name: str) -> None:
    """Needs a C++ compiler."""
    compare(LOSSES[name], "inductor")


@pytest.mark.parametrize(
    ("fn", "method"), [(DEEP, "tangents"), (ENERGY.score, "forward-laplacian"), (NORMALISED, "exact-vjp")]
)
def test_the_method_is_that_of_the_structure(fn: Callable[[Tensor], Tensor], method: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: divergence(fn, x), fullgraph=True, backend="aot_eager")
    assert compiled(X).method == method


@pytest.mark.parametrize("net", [DEEP, NORMALISED], ids=["closed", "generic"])
def test_batch_sizes_that_vary_cost_two_compilations(net: nn.Module) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: implicit_score_matching(net, x), fullgraph=True, backend=counter)
    for rows in (24, 20, 7, 13):
        torch.testing.assert_close(compiled(X[:rows]), implicit_score_matching(net, X[:rows]))
    assert counter.frame_count == 2


@pytest.mark.parametrize("net", [DEEP, NORMALISED], ids=["closed", "generic"])
def test_seeds_that_vary_cost_two_compilations(net: nn.Module) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def loss(x: Tensor, seed: int) -> Tensor:
        return implicit_score_matching(net, x, trace="hutchinson", seed=seed, first_chain=seed)

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for seed in (4, 5, 6, 2**40):
        torch.testing.assert_close(compiled(X, seed), loss(X, seed))
    assert counter.frame_count == 2


@pytest.mark.parametrize("loss", [partial(denoising_score_matching, sigma=0.3), sliced_score_matching])
def test_a_seed_drawn_inside(loss: Callable[..., Tensor]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: loss(NORMALISED, x), fullgraph=True, backend="aot_eager")
    assert torch.isfinite(compiled(X))
    assert compiled(X) != compiled(X)


@pytest.mark.parametrize("change", ["hook", "forward", "layer"])
def test_a_changed_network_is_not_read_from_its_layers(change: str) -> None:
    torch._dynamo.reset()
    net = ScoreMLP(3, 8).double()
    if change == "hook":
        net.layers[1].register_forward_hook(lambda module, args, out: 2 * out)
    elif change == "layer":
        net.layers[0] = Twice(3, 8).double()
    else:
        net.forward = lambda x: 2 * ScoreMLP.forward(net, x)
    loss = torch.compile(lambda x: implicit_score_matching(net, x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss(X), brute_loss(net, X))


def brute_loss(net: nn.Module, x: Tensor) -> Tensor:
    s = net(x)
    j = torch.stack([torch.func.jacrev(lambda row: net(row[None])[0])(row) for row in x])
    return (0.5 * s.square().sum(1) + j.diagonal(0, 1, 2).sum(1)).mean()


class Twice(nn.Linear):
    """A layer that is not what its parameters say."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)
