"""What training code does around a loss: random scores, no_grad and hooks inside, averaged weights, NumPy's numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import fastscore as fs
from fastscore import metrics
from tests.brute import data

X = data(6, 3)


class DropPath(nn.Module):
    """Drops half of the rows."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x * x.new_empty(len(x), 1).bernoulli_(0.5)


def network(out: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.SELU(), nn.Linear(8, out)).double()


def brute_trace(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    s = fn(x)
    return torch.stack([torch.autograd.grad(s[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(3)]).sum(0)


@pytest.mark.parametrize("layer", [DropPath(), nn.RReLU()])
def test_a_chunk_is_recomputed_with_the_random_numbers_it_drew(layer: nn.Module) -> None:
    score = nn.Sequential(network(), layer).train()

    def loss() -> Tensor:
        torch.manual_seed(5)
        return fs.implicit_score_matching(score, X, trace="hutchinson", seed=1, chunk_size=2)

    weight = score[0][2].weight
    (found,) = torch.autograd.grad(loss(), weight)
    step, values = 1e-6 * data(*weight.shape, seed=3), []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step
            values.append(loss())
            weight -= sign * step
    torch.testing.assert_close((found * step).sum(), (values[0] - values[1]) / 2, rtol=1e-6, atol=1e-14)


NET = network()


def length(x: Tensor) -> Tensor:
    return x.square().sum(1, keepdim=True)


def in_block(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = length(x)
    return NET(x) * scale


def nested(x: Tensor) -> Tensor:
    with torch.no_grad():
        with torch.enable_grad():
            NET(x)
        with torch.no_grad():
            NET[0].weight.sum()
        scale = length(x)
    return NET(x) * scale


def table(x: Tensor) -> Tensor:
    with torch.no_grad():
        rows = torch.arange(x.shape[0], dtype=x.dtype).cos()
        with torch.no_grad():
            rows = rows + NET[0].weight.sum()
    return NET(x) * rows[:, None]


CUT = {
    "block": (in_block, "exact-vjp"),
    "decorator": (lambda x: NET(x) * torch.no_grad()(length)(x), "exact-vjp"),
    "nested": (nested, "exact-vjp"),
    "of no x": (table, "exact-jvp"),
    "gradient": (lambda x: x + torch.func.grad(lambda x: NET(x).square().sum())(x) * 2, "exact-jvp"),
}


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("name", CUT)
def test_no_grad_inside_a_score_is_that_of_reverse_mode(name: str, recorded: bool) -> None:
    score, method = CUT[name]
    with torch.set_grad_enabled(recorded):
        found = fs.divergence(score, X)
    if name != "gradient":
        torch.testing.assert_close(found.trace, brute_trace(score, X))
    assert found.method == method


@pytest.mark.parametrize("recorded", [True, False])
def test_no_grad_inside_an_energy(recorded: bool) -> None:
    def energy(x: Tensor, scale: Tensor) -> Tensor:
        return NET(x).square().sum(1) * scale.squeeze(1)

    with torch.set_grad_enabled(recorded):
        found = fs.laplacian(lambda x: energy(x, torch.no_grad()(length)(x)), X)
        expected = fs.laplacian(lambda x: energy(x, length(x.detach())), X)
    torch.testing.assert_close(found.laplacian, expected.laplacian)
    assert found.method == "exact-vjp"


def test_gradient_hooks_are_called() -> None:
    module = network()
    module[0].register_full_backward_hook(lambda module, before, after: (2 * before[0],))

    def hooked(x: Tensor) -> Tensor:
        y = NET(x).sin()
        y.register_hook(lambda gradient: 2 * gradient)
        return y * y

    for score in (module, hooked):
        torch.testing.assert_close(fs.divergence(score, X).trace, brute_trace(score, X))


ENERGY = network(1)


def differentiated(x: Tensor) -> Tensor:
    return -torch.autograd.grad(ENERGY(x).sum(), x, create_graph=True)[0]


USES: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "denoising": lambda s, x: fs.denoising_score_matching(s, x, sigma=0.3, seed=1),
    "explicit": lambda s, x: fs.explicit_score_matching(s, x, target=-x),
    "fisher": lambda s, x: metrics.fisher_divergence(s, -x, x),
    "stein": metrics.kernel_stein_discrepancy,
}


@pytest.mark.parametrize("name", USES)
def test_a_score_that_differentiates_an_energy_itself(name: str) -> None:
    found, expected = USES[name](differentiated, X), USES[name](differentiated, X.clone().requires_grad_())
    assert found == expected
    torch.testing.assert_close(
        torch.autograd.grad(found, ENERGY[0].weight), torch.autograd.grad(expected, ENERGY[0].weight)
    )


@pytest.mark.parametrize("net", [fs.ScoreMLP(3, 8).double(), fs.ScoreMLP(3, 8, 3).double(), network()])
def test_numbers_of_numpy(net: nn.Module) -> None:
    python = {"seed": 2**63 + 1, "n_probes": 2, "first_chain": 7, "chunk_size": 2}
    numpy = {name: np.uint64(value) for name, value in python.items()}
    for loss in (fs.sliced_score_matching, lambda *a, **k: fs.implicit_score_matching(*a, trace="hutchinson", **k)):
        assert loss(net, X, **numpy) == loss(net, X, **python)
    for reduction in ("mean", "sum"):
        a, b = ({"seed": kind(3), "first_chain": kind(2)} for kind in (np.int64, int))
        found = fs.denoising_score_matching(net, X, sigma=np.float32(0.25), reduction=reduction, **a)
        assert found == fs.denoising_score_matching(net, X, sigma=0.25, reduction=reduction, **b)
    assert type(fs.ScoreMLP(np.int64(3), np.int32(8), np.int64(2), cond_dim=np.int8(1)).dim) is int
    for bad in (np.bool_(True), np.float32(3), np.int64(-1)):
        with pytest.raises((TypeError, ValueError), match="dim must be"):
            fs.ScoreMLP(bad)


def test_points_of_inference_mode_where_gradients_are_wanted() -> None:
    with torch.inference_mode():
        x = data(6, 3)
    score, deep, energy = (net.double() for net in (fs.ScoreMLP(3, 8), fs.ScoreMLP(3, 8, 3), fs.EnergyMLP(3, 8)))
    for made in (
        fs.divergence(score, x).trace,
        fs.divergence(deep, x, trace="hutchinson").trace,
        fs.divergence(energy.score, x).trace,
        fs.laplacian(energy, x).laplacian,
        fs.jacobian(score, x),
        fs.implicit_score_matching(score, x),
        fs.explicit_score_matching(network(), x, target=-x),
    ):
        made.sum().backward()
    assert score.layers[0].weight.grad is not None


def test_a_noise_level_shaped_like_the_events() -> None:
    x, sigma = data(5, 3, 2, 2), data(5, seed=2).exp()
    losses = [
        fs.denoising_score_matching(torch.neg, x, sigma=s, seed=1, reduction="none")
        for s in (sigma, sigma.view(-1, 1, 1, 1))
    ]
    assert torch.equal(*losses)


@pytest.mark.parametrize("fast", [True, False])
def test_averaged_weights_take_the_way_of_the_network(fast: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 3)).double()
    averaged = AveragedModel(net)
    if not fast:
        averaged.register_forward_hook(lambda module, args, out: 2 * out)
    for _ in range(2):
        with torch.no_grad():
            net[0].weight += 1
        averaged.update_parameters(net)
        found = fs.divergence(averaged, X)
        torch.testing.assert_close(found.trace, (1 if fast else 2) * fs.divergence(averaged.module, X).trace)
        assert found.method == ("closed-form" if fast else "exact-jvp")


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_condition_of_several_tensors_is_cut_with_the_batch(chunk_size: int | None) -> None:
    cond = {"scale": X[:, :1].exp(), "more": (torch.ones(3).double(), None, 2.0)}

    def score(x: Tensor, cond: dict) -> Tensor:
        return NET(x) * cond["scale"] * cond["more"][0] * cond["more"][2]

    found = fs.divergence(score, X, cond=cond, chunk_size=chunk_size).trace
    torch.testing.assert_close(found, brute_trace(lambda x: score(x, cond), X))
