"""Networks in compiled code: as accurate as PyTorch, the same bits however a run is cut, current weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastscore
from fastscore import noise
from fastscore.networks import EnergyMLP, ScoreMLP
from fastscore.ops import _cpu_build, _cpu_network, _cpu_target
from fastscore.reader import read
from fastscore.reference import activations
from fastscore.reference.mlp import MLP
from fastscore.samplers import analytic

X = 2 * noise.normal((300, 3), seed=0, stream=5)
ACTIVATIONS = ["silu", "tanh", "softplus", "gelu_tanh", "softsign", "gelu"]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    if _cpu_build.library(build=True) is None:
        pytest.skip("no C compiler")


class Wrapped(nn.Module):
    """Residual layers of odd widths and a scale for every row, of a condition `[B, 1]`."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 37), nn.Linear(37, 37, bias=False), nn.Linear(37, 3)
        self.map, self.activation = nn.Linear(1, 37), activation

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        h = self.activation(self.first(0.5 * x) + self.map(cond))
        h = h + self.activation(self.second(h))
        return self.last(h) * cond - 0.1 * x


def built(name: str) -> nn.Module:
    torch.manual_seed(3)
    kinds = {"silu": nn.SiLU(), "tanh": nn.Tanh(), "softplus": nn.Softplus(), "softsign": nn.Softsign()}
    kinds |= {"gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh")}
    return Wrapped(kinds[name])


def packed(net: Any, x: Tensor, *cond: Tensor) -> _cpu_network.Network:
    found = analytic.compiled(net, x, *cond or (None,))
    assert isinstance(found, _cpu_network.Network)
    return found


@torch.no_grad()
@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_value_is_as_accurate_as_pytorchs(name: str, scale: float) -> None:
    net, x = built(name), scale * X
    cond = torch.linspace(0.5, 2, len(x)).unsqueeze(1)
    found, plain = _cpu_target.value(packed(net, x, cond), x), net(x, cond)
    exact = net.double()(x.double(), cond.double())
    errors = [(value - exact).norm() for value in (found, plain)]
    assert found is not None and float(errors[0]) <= 2 * float(errors[1]) + 1e-7 * float(exact.norm())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_score_of_an_energy_is_as_accurate_as_pytorchs(name: str, scale: float) -> None:
    torch.manual_seed(3)
    net, x = EnergyMLP(3, 37, 3, name, cond_dim=1), scale * X
    cond = torch.linspace(0.5, 2, len(x)).unsqueeze(1)
    found, plain = _cpu_target.value(packed(net.score, x, cond), x), net.score(x, cond).detach()
    exact = net.double().score(x.double(), cond.double()).detach()
    errors = [(value - exact).norm() for value in (found, plain)]
    assert found is not None and float(errors[0]) <= 2 * float(errors[1]) + 1e-7 * float(exact.norm())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_score_of_an_energy_where_activations_are_flat_or_lost(name: str) -> None:
    net, x = EnergyMLP(3, 37, 2, name), X.clone()
    x[5], x[6], x[7] = 1e12, -1e12, torch.nan
    found, plain = _cpu_target.value(packed(net.score, x), x), net.score(x)
    assert found is not None and bool(found[7].isnan().all()) and bool(found[:7].isfinite().all())
    torch.testing.assert_close(found[:7], plain[:7], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "dim", "width", "depth"), [(1, 1, 1, 1), (17, 2, 6, 2), (64, 5, 64, 3), (65, 33, 130, 4)]
)
def test_every_shape_of_an_energy(n: int, dim: int, width: int, depth: int) -> None:
    torch.manual_seed(width)
    net, x = EnergyMLP(dim, width, depth), torch.randn(n, dim)
    made = _cpu_network.pack(net.structure(), x, energy=True)
    assert made is not None
    torch.testing.assert_close(_cpu_target.value(made, x), net.score(x), rtol=1e-5, atol=1e-5)


def test_energies_that_are_not_compiled() -> None:
    """Residual layers, or scales around the score."""
    net = EnergyMLP(3, 8, 2).structure()
    assert _cpu_network.pack(replace(net, residuals=(False, True)), X, energy=True) is None
    assert _cpu_network.pack(net, X, (), [torch.ones(1, 1), None, None], energy=True) is None


@torch.no_grad()
@pytest.mark.parametrize("width", [1, 5, 6, 64, 130])
@pytest.mark.parametrize(("n", "dim"), [(1, 1), (17, 2), (64, 5), (65, 33)])
def test_every_shape(n: int, dim: int, width: int) -> None:
    torch.manual_seed(width)
    net, x = ScoreMLP(dim, width, 1 + width % 3), torch.randn(n, dim)
    found = read(net, x)
    assert found is not None
    made = _cpu_network.pack(found.mlp, x)
    assert made is not None
    torch.testing.assert_close(_cpu_target.value(made, x), net(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_large_and_lost_preactivations() -> None:
    for name in ACTIVATIONS:
        net, cond = built(name), torch.ones(300, 1)
        x = X.clone()
        x[5], x[6], x[7] = 1e30, -1e30, torch.nan
        found, plain = _cpu_target.value(packed(net, x, cond), x), net(x, cond)
        assert found is not None
        assert torch.equal(found.isnan(), plain.isnan()) and bool(found[7].isnan().all())
        torch.testing.assert_close(found[:7], plain[:7], rtol=1e-4, atol=1e-5)


def run(net: Any, x: Tensor, n_steps: int = 30, **options: Any) -> Any:
    return fastscore.langevin_dynamics(net, x, **{"step_size": 0.05, "n_steps": n_steps, "seed": 5} | options)


@pytest.mark.parametrize("kind", [ScoreMLP, EnergyMLP])
@pytest.mark.parametrize("conditioned", [False, True])
def test_chains_are_the_generic_ones(conditioned: bool, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = kind(3, 40, 2, cond_dim=int(conditioned))
    score = net.score if kind is EnergyMLP else net
    assert analytic.compiled(score, X, torch.zeros(300, 1) if conditioned else None) is not None
    options: dict[str, Any] = {
        "step_size": lambda k: 0.05 / (1 + k) * torch.ones(3),
        "temperature": lambda k: 1.0 + k,
        "clamp": (-6.0, 4.5),
        "first_chain": 2**32 - 50,
        "first_step": 17,
    }
    options |= {"cond": torch.linspace(0, 1, 300)} if conditioned else {}
    found = run(score, X, **options)
    monkeypatch.setattr(_cpu_build, "library", lambda *, build: None)
    torch.testing.assert_close(found, run(score, X, **options), rtol=2e-5, atol=2e-5)


def test_chains_have_the_same_bits_however_they_are_cut() -> None:
    torch.manual_seed(0)
    net = ScoreMLP(3, 40, 2)
    path = run(net, X, return_trajectory=True)
    assert torch.equal(run(net, X), path[:, -1])
    assert torch.equal(run(net, X, thin=7, burn_in=2, return_trajectory=True), path[:, 2:][:, 6::7])
    assert torch.equal(run(net, path[:, 12], 17, first_step=13), path[:, -1])
    parts = [run(net, part, first_chain=start) for part, start in zip(X.split([130, 170]), (0, 130), strict=True)]
    assert torch.equal(torch.cat(parts), path[:, -1])


def test_a_ladder_is_the_generic_one_and_may_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = ScoreMLP(3, 40, 2, cond_dim=1)

    def ladder(x: Tensor, **options: Any) -> Any:
        options = {"sigmas": [2.0, 1.0, 0.5], "n_steps_each": 5, "step_size": 0.05, "seed": 1} | options
        return fastscore.annealed_langevin_dynamics(lambda x, sigma: net(x, sigma) / sigma[:, None], x, **options)

    path = ladder(X, return_trajectory=True)
    assert torch.equal(ladder(X, denoise=False), path[:, -1])
    assert torch.equal(ladder(path[:, 6], denoise=False, first_step=7), path[:, -1])
    monkeypatch.setattr(_cpu_build, "library", lambda *, build: None)
    torch.testing.assert_close(ladder(X, return_trajectory=True), path, rtol=1e-4, atol=1e-4)


def test_weights_may_change_between_steps() -> None:
    torch.manual_seed(0)
    net = ScoreMLP(3, 40, 2)
    algorithm = fastscore.samplers.Langevin(net, step_size=0.05, seed=5)
    state = algorithm.step(algorithm.init(X), 0)
    for weight in net.parameters():
        weight.data *= 1.5
    found = algorithm.step(state, 1).x
    assert torch.equal(found, run(net, state.x, 1, first_step=1))
    with torch.no_grad():
        score = net(state.x)
    expected = fastscore.langevin_step(state.x, score, step_size=0.05, seed=5, step=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def corrected(log_prob: Any, x: Tensor = X, n_steps: int = 20, **options: Any) -> Any:
    return fastscore.mala(log_prob, x, **{"step_size": 1.0, "n_steps": n_steps, "seed": 5} | options)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_log_density_of_an_energy(name: str) -> None:
    """With whatever scales and moves it, and the output's bias, which no score has."""
    torch.manual_seed(3)
    net = EnergyMLP(3, 37, 3, name)
    torch.nn.init.constant_(net.layers[-1].bias, 0.7)
    for log_prob, scale, added in ((lambda x: -net(x), -1.0, 0.0), (lambda x: 3 - 0.5 * net(x), -0.5, 3.0)):
        source = analytic.density(log_prob, None, X)
        assert source is not None
        target = _cpu_target.of(source, X)
        assert target is not None
        found, score = target.density(X)
        exact = net.double()(X.double()).detach()
        torch.testing.assert_close(found.double(), scale * exact + added, rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(score.double(), -scale * net.score(X.double()).detach(), rtol=1e-5, atol=1e-6)
        net.float()


def test_corrected_chains_are_the_generic_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the energy alone or its score beside it; and the same bits however they are cut."""
    torch.manual_seed(0)
    net = EnergyMLP(3, 40, 2)
    for weight in net.parameters():
        weight.data *= 2  # so that some proposals are refused
    options: dict[str, Any] = {"first_chain": 2**32 - 50, "first_step": 17, "return_diagnostics": True}
    found, diagnostics = corrected(lambda x: -net(x), **options)
    assert 0.01 < 1 - float(diagnostics["acceptance_rate"].mean()) < 0.9
    both, _ = corrected(lambda x: -net(x), score_fn=net.score, **options)
    path = corrected(lambda x: -net(x), return_trajectory=True)
    assert torch.equal(found, both) and torch.equal(corrected(lambda x: -net(x)), path[:, -1])
    assert torch.equal(corrected(lambda x: -net(x), path[:, 12], 7, first_step=13), path[:, -1])
    monkeypatch.setattr(_cpu_build, "library", lambda *, build: None)
    generic, other = corrected(lambda x: -net(x), **options)
    torch.testing.assert_close(found, generic, rtol=2e-5, atol=2e-5)
    assert torch.equal(diagnostics["acceptance_rate"], other["acceptance_rate"])


def test_log_densities_that_are_not_compiled() -> None:
    """Another network's score, a column, a scale for every chain, a network of a score."""
    net, other = EnergyMLP(3, 8, 2), EnergyMLP(3, 8, 2)
    rows = torch.linspace(1, 2, 300)
    assert analytic.density(lambda x: -net(x), net.score, X) is not None
    assert analytic.density(lambda x: -net(x), other.score, X) is None
    assert analytic.density(lambda x: -net(x), lambda x: 2 * net.score(x), X) is None
    assert analytic.density(lambda x: -net(x).unsqueeze(1), None, X) is None
    assert analytic.density(lambda x: -net(x) * rows[: len(x)], None, X) is None
    assert analytic.density(ScoreMLP(3, 8, 2), None, X) is None
    with pytest.raises(ValueError, match="one number a row"):
        corrected(lambda x: -net(x).unsqueeze(1))


def test_a_bad_chain_is_named() -> None:
    torch.manual_seed(0)
    net, x = ScoreMLP(3, 40, 2), X.clone()
    x[70, 1] = torch.inf
    with pytest.raises(fastscore.NonFiniteError, match="chain 75 is not finite after step 3"):
        run(net, x, first_step=3, first_chain=5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_of_what_is_not_finite_is_torchs(name):
    z = torch.tensor([[torch.nan], [torch.inf], [-torch.inf], [-1e30]])
    one = torch.ones(1, 1)
    found = _cpu_network.pack(MLP((one, one), (None, None), (name,), (False,)), z)
    known = activations.ACTIVATIONS[name].function(z.double()).float()
    torch.testing.assert_close(_cpu_target.of(found, z).value(z), known, equal_nan=True)
