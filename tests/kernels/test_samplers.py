"""The samplers on whole-chain kernels: the public functions give the step-by-step chain, and the kernels do run."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from fastscore import EnergyMLP, ScoreMLP, TritonScore, annealed_langevin_dynamics, langevin_dynamics, use_backend
from fastscore.ops import chain
from fastscore.samplers import NonFiniteError, whole
from fastscore.samplers import chain as loop
from fastscore.targets import DoubleWell, Gaussian, GaussianMixture


@triton.jit
def leaves(x, at, params):
    """Not a number from a limit on."""
    return tl.where(tl.abs(x) < params[0], -x, float("nan"))


@pytest.fixture
def launches(monkeypatch):
    """Counts the whole-chain launches that were made."""
    made, run = [], chain.run

    def counting(source, x, schedule, **options):
        result = run(source, x, schedule, **options)
        if result is not None:
            made.append(options["n_steps"])
        return result

    monkeypatch.setattr(chain, "run", counting)
    return made


def both(sampler, score_fn, x, **options):
    made = sampler(score_fn, x, seed=3, **options)
    with use_backend("torch"):
        return made, sampler(score_fn, x, seed=3, **options)


def scores():
    yield "mixture", GaussianMixture.ring(5, 2.0, 0.5).score, None
    yield "gaussian", Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.3], [0.3, 0.5]])).score, None
    yield "double well", DoubleWell(2, barrier=0.5).score, None
    yield "network", ScoreMLP(2, width=32, depth=2), None
    yield "network with a condition", ScoreMLP(2, width=32, depth=2, cond_dim=1), torch.linspace(0.1, 1, 9)
    yield "energy", EnergyMLP(2, width=32, depth=2).score, None


@pytest.mark.parametrize("case", list(scores()), ids=lambda case: case[0].replace(" ", "-"))
def test_langevin_dynamics(case, launches, device):
    _, score_fn, cond = case
    owner = getattr(score_fn, "__self__", score_fn)
    if isinstance(owner, torch.nn.Module):
        owner.to(device)
    cond = None if cond is None else cond.to(device)
    x = torch.randn(9, 2, device=device)
    made, true = both(langevin_dynamics, score_fn, x, step_size=0.02, n_steps=6, cond=cond)
    torch.testing.assert_close(made, true, rtol=1e-5, atol=1e-5)
    assert launches == [6]


def test_a_schedule_and_a_trajectory(launches, device):
    score_fn, x = GaussianMixture.ring(5, 2.0, 0.5).score, torch.randn(7, 2, device=device)
    options = {"step_size": lambda k: 0.02 / (1 + k), "n_steps": 7, "burn_in": 1, "thin": 3, "return_trajectory": True}
    made, true = both(langevin_dynamics, score_fn, x, **options)
    torch.testing.assert_close(made, true, rtol=1e-5, atol=1e-5)
    assert launches == [7]


def test_kept_states_leave_inside_a_launch(launches, device, monkeypatch):
    """The trajectory, the moments and the last state of one launch, and of launches cut by memory and checkpoints."""
    score_fn, x = GaussianMixture.ring(5, 2.0, 0.5).score, torch.randn(7, 2, device=device)
    options = {"step_size": 0.02, "n_steps": 11, "burn_in": 2, "return_trajectory": True, "return_diagnostics": True}
    made, true = both(langevin_dynamics, score_fn, x, **options)
    torch.testing.assert_close(made, true, rtol=1e-5, atol=1e-5)
    assert launches == [11]
    monkeypatch.setattr(loop, "_PATH", 3 * x.numel())
    assert_same(both(langevin_dynamics, score_fn, x, **options)[0], made)
    assert launches[1:] == [5, 3, 3]
    thinned = both(langevin_dynamics, score_fn, x, **options, thin=2)[0]
    assert torch.equal(thinned[0], made[0][:, 1::2])
    assert launches[4:] == [9, 1, 1]


def test_checkpoints_cut_launches_that_keep(launches, device, tmp_path):
    pytest.importorskip("safetensors")
    score_fn, x = GaussianMixture.ring(5, 2.0, 0.5).score, torch.randn(7, 2, device=device)
    options = {"step_size": 0.02, "seed": 3, "return_trajectory": True, "return_diagnostics": True}
    whole = langevin_dynamics(score_fn, x, n_steps=9, **options)
    assert launches == [9]
    saved = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 4}
    langevin_dynamics(score_fn, x, n_steps=6, **options, **saved)
    assert launches[1:] == [4, 2]
    assert_same(langevin_dynamics(score_fn, x, n_steps=9, **options, **saved), whole)


@pytest.mark.parametrize("policy", ["raise", "freeze", "ignore"])
def test_a_chain_that_breaks_while_states_are_kept(policy, device, monkeypatch):
    monkeypatch.setattr(loop, "_LEAP", 16)
    score_fn, x = GaussianMixture.ring(5, 2.0, 0.5).score, torch.randn(5, 2, device=device)
    x[3, 0] = torch.nan
    options = {"step_size": 0.02, "n_steps": 30, "thin": 10, "return_trajectory": True, "return_diagnostics": True}
    if policy == "raise":
        with pytest.raises(NonFiniteError, match="chain 3 is not finite after step 0"):
            langevin_dynamics(score_fn, x, seed=3, **options)
        return
    options = options | {"n_steps": 9, "thin": 2, "on_nonfinite": policy}
    made, true = both(langevin_dynamics, score_fn, x, **options)
    torch.testing.assert_close(made, true, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_frozen_chains_stay_on_the_path(launches, device, monkeypatch):
    """A leap after one that failed keeps the states of the chains that are frozen since."""
    monkeypatch.setattr(loop, "_LEAP", 4)
    score_fn = TritonScore(leaves, (9.0,), lambda x: torch.where(x.abs() < 9.0, -x, torch.nan))
    x = torch.randn(5, 2, device=device)
    x[3] = 10.0
    options = {"step_size": 0.02, "n_steps": 12, "on_nonfinite": "freeze", "return_trajectory": True}
    made, true = both(langevin_dynamics, score_fn, x, **options)
    torch.testing.assert_close(made, true, rtol=1e-5, atol=1e-5)
    assert torch.equal(made[3], x[3].expand(12, 2))
    assert launches == [4, 1, 1, 1, 1, 4, 4]


def assert_same(made, true):
    """To the bit."""
    assert torch.equal(made[0], true[0])
    assert all(torch.equal(made[1][name], value) for name, value in true[1].items())


def test_annealing(launches, device):
    net = ScoreMLP(2, width=32, depth=2, cond_dim=1).to(device)

    def score_fn(x, sigma):
        return net(x, sigma.log()) / sigma[:, None]

    options = {"sigmas": [3.0, 1.0, 0.3], "n_steps_each": 2, "step_size": 0.01}
    made, true = both(annealed_langevin_dynamics, score_fn, torch.randn(9, 2, device=device), **options)
    torch.testing.assert_close(made, true, rtol=1e-5, atol=1e-5)
    assert launches == [6]
    x = torch.randn(9, 2, device=device)
    made, true = both(annealed_langevin_dynamics, score_fn, x, **options, return_trajectory=True)
    torch.testing.assert_close(made, true, rtol=1e-5, atol=1e-5)
    assert launches == [6, 6]


MIXTURES = {
    "ring": GaussianMixture.ring(5, 2.0, 0.5),
    "each": GaussianMixture([[0.0, 1.0, 2.0], [1.0, -1.0, 0.0]], [[0.3, 0.5, 1.0], [1.0, 0.2, 0.4]], [0.2, 0.8]),
    "full": GaussianMixture([[0.0, 1.0], [1.0, -1.0]], [[[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.2], [-0.2, 0.3]]]),
    "many": GaussianMixture(torch.linspace(-2, 2, 200).view(40, 5), 0.3),
    "gaussian": Gaussian(torch.arange(18.0) / 9, 0.2 * torch.eye(18) + 0.1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MIXTURES)
def test_annealing_towards_a_mixture(name, dtype, launches, device):
    """Every level has its own precisions; a run that is cut inside a level goes on at that level."""
    target = MIXTURES[name]
    x = torch.randn(9, target.dim, dtype=dtype, device=device)
    options = {"sigmas": [3.0, 1.0, 0.3], "n_steps_each": 2, "step_size": 0.01, "clamp": (-4.0, 4.0)}
    made, true = both(annealed_langevin_dynamics, target.noisy_score, x, **options)
    digits = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(made, true, rtol=digits, atol=digits)
    if dtype == torch.float64 and target.dim > 8:
        assert launches == []  # a matrix in float64 does not fit
        return
    assert launches == [6]
    options |= {"return_trajectory": True, "seed": 3}
    path = annealed_langevin_dynamics(target.noisy_score, x, **options)
    rest = annealed_langevin_dynamics(target.noisy_score, path[:, 2], first_step=3, **options)
    assert torch.equal(rest, path[:, 3:])
    assert launches == [6, 6, 3]


@pytest.mark.parametrize("target", [Gaussian([0.0, 1.0], 0.5), DoubleWell(2)], ids=["gaussian", "wells"])
def test_a_target_of_another_dimension_is_refused(target, launches, device):
    x = torch.randn(9, 3, device=device)
    with pytest.raises(ValueError, match=r"x must have shape \[B, 2\]"):
        langevin_dynamics(target.score, x, step_size=0.01, n_steps=2, seed=0)
    if isinstance(target, Gaussian):
        with pytest.raises(ValueError, match=r"x must have shape \[B, 2\]"):
            annealed_langevin_dynamics(target.noisy_score, x, sigmas=[1.0], n_steps_each=2, step_size=0.01, seed=0)
    assert launches == []


def test_runs_may_be_cut(launches, device):
    score_fn, x = GaussianMixture.ring(5, 2.0, 0.5).score, torch.randn(7, 2, device=device)
    whole = langevin_dynamics(score_fn, x, step_size=0.02, n_steps=6, seed=3)
    first = langevin_dynamics(score_fn, x, step_size=0.02, n_steps=2, seed=3)
    assert torch.equal(langevin_dynamics(score_fn, first, step_size=0.02, n_steps=4, seed=3, first_step=2), whole)
    assert launches == [6, 2, 4]


def test_a_chain_that_diverges_is_named(device):
    score_fn, x = Gaussian(torch.zeros(2), torch.eye(2)).score, torch.randn(5, 2, device=device)
    x[3] = 1e38
    with pytest.raises(NonFiniteError, match="chain 3 is not finite after step 0"):
        langevin_dynamics(lambda x: score_fn(x) * 1e4, x, step_size=1.0, n_steps=4, seed=0)
    x[3, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="chain 3 is not finite after step 0"):
        langevin_dynamics(score_fn, x, step_size=0.1, n_steps=4, seed=0)


def test_a_covariance_that_is_nearly_singular_takes_no_kernel(device):
    """In a precision matrix it would lose the digits that a triangular factor keeps."""
    turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64) / 2**0.5
    for spread, taken in ((1e-2, True), (1e-3, False)):
        covariance = turn @ torch.diag(torch.tensor([1.0, spread**2], dtype=torch.float64)) @ turn.T
        target = GaussianMixture([[0.0, 0.0], [1.0, 0.0]], covariance.expand(2, 2, 2))
        x = torch.zeros(5, 2, device=device)
        assert (whole.source(target.score, x, None) is not None) == taken
        assert (whole.ladder(target.noisy_score, x, [1e-4 * spread]) is not None) == taken
