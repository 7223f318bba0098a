"""How samplers are called: what a refused call leaves alone, whose line is warned of, and others' arguments."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore import noise, targets
from fastscore.ops import chain
from fastscore.samplers import whole

X = torch.zeros(3, 2)
RUN: dict[str, Any] = {"step_size": 0.1, "n_steps": 2}
LADDER: dict[str, Any] = {"sigmas": [1.0, 0.5], "step_size": 0.1, "n_steps_each": 2}


def start(n: int, dim: int = 2) -> Tensor:
    return noise.normal((n, dim), seed=3, stream=noise.Stream.INITIAL)


def density(x: Tensor) -> Tensor:
    return -x.square().sum(1)


def dynamics(given: Any, step_size: Any = 0.1, **options: Any) -> Any:
    return fastscore.LangevinDynamics(torch.neg, step_size).sample(given, **options)


REFUSED: dict[str, Any] = {
    "langevin": lambda o: fastscore.langevin_dynamics(torch.neg, X, **RUN | o),
    "mala": lambda o: fastscore.mala(density, X, **RUN | o),
    "underdamped": lambda o: fastscore.underdamped_langevin(torch.neg, X, **RUN | o),
    "annealed": lambda o: fastscore.annealed_langevin_dynamics(lambda x, s: -x, X, **LADDER | o),
    "x": lambda o: dynamics(X, **o),
    "dim": lambda o: dynamics(None, dim=2, **o),
}
BAD: list[dict[str, Any]] = [{"thin": 0}, {"burn_in": 9999}, {"return_trajectory": "no"}, {"checkpoint": 5}]
MORE: list[tuple[str, dict[str, Any]]] = [
    ("langevin", {"clamp": (1.0, 0.0)}),
    ("annealed", {"clamp": (1.0, 0.0)}),
    ("annealed", {"sigmas": [True, 0.5]}),
    ("underdamped", {"friction": -1.0}),
    ("underdamped", {"first_step": 3}),
    ("dim", {"step_size": torch.ones(3)}),
    ("x", {"step_size": torch.ones(3)}),
    ("dim", {"n_samples": 0}),
]


@pytest.mark.parametrize(("name", "change"), [*((n, b) for n in REFUSED for b in BAD), *MORE])
def test_a_refused_call_draws_nothing(name: str, change: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    before = torch.get_rng_state(), generator.get_state()
    for given in ({}, {"generator": generator}):
        with pytest.raises((TypeError, ValueError), match=next(iter(change))):
            REFUSED[name](change | given)
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.equal(generator.get_state(), before[1])


@pytest.mark.parametrize("sigmas", [[True, 0.5], torch.tensor([True, False])])
def test_a_noise_level_is_no_bool(sigmas: Any) -> None:
    with pytest.raises(TypeError, match="sigmas must be a number or a tensor, got True"):
        REFUSED["annealed"]({"sigmas": sigmas})


STEEP = targets.Gaussian([0.0, 0.0], [0.25, 1.0])
WARNED: dict[str, Any] = {
    "langevin": lambda a: fastscore.langevin_dynamics(STEEP, X, step_size=a, n_steps=0),
    "ascent": lambda a: fastscore.gradient_ascent(STEEP.score, X, step_size=a, n_steps=0),
    "underdamped": lambda a: fastscore.underdamped_langevin(STEEP, X, step_size=2 * a, n_steps=0),
    "x": lambda a: fastscore.LangevinDynamics(STEEP, a).sample(X, n_steps=0),
    "dim": lambda a: fastscore.LangevinDynamics(STEEP, a).sample(dim=2, n_steps=0),
}


@pytest.mark.parametrize("call", WARNED.values(), ids=WARNED)
def test_a_warning_names_the_users_line(call: Any) -> None:
    with pytest.warns(UserWarning, match=r"step_size .* is above 2 / (L|sqrt\(L\)) = (0\.5|1), L the largest") as told:
        call(0.51)
    assert (told[0].filename, told[0].lineno) == (__file__, call.__code__.co_firstlineno)
    call(0.5)  # warnings are errors here


def grows(target: Any, a: Any, order: int) -> bool:
    """Whether chains from x leave all bounds in a thousand steps."""
    sampler = fastscore.langevin_dynamics if order == 1 else fastscore.underdamped_langevin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = sampler(target, start(8), step_size=a, n_steps=1000, seed=0, on_nonfinite="ignore")
    return not float(made.abs().max()) < 1e3


BOUND = 2 / (4 - 2 * math.sqrt(2)) ** -1  # 2 / L of the full covariance below, L the largest eigenvalue of its inverse
TAILS: list[tuple[Any, Any, int]] = [
    (STEEP, torch.tensor([0.5, 2.0]), 1),
    (STEEP, torch.tensor([1.0, 2.0]), 2),
    (targets.Gaussian([0.0, 0.0], [[6.0, 2.0], [2.0, 2.0]]), BOUND, 1),
    (targets.Gaussian([0.0, 0.0], [[6.0, 2.0], [2.0, 2.0]]), math.sqrt(2 * BOUND), 2),
    (targets.GaussianMixture([[-3.0, 0.0], [3.0, 0.0]], 0.25), 0.5, 1),
    (targets.GaussianMixture([[-3.0, 0.0], [3.0, 0.0]], 0.25), 1.0, 2),
]


@pytest.mark.parametrize(("target", "limit", "order"), TAILS)
def test_warned_of_is_what_diverges(target: Any, limit: Any, order: int) -> None:
    sampler = fastscore.langevin_dynamics if order == 1 else fastscore.underdamped_langevin
    with pytest.warns(UserWarning, match="chains may diverge"):
        sampler(target, X, step_size=1.03 * limit, n_steps=0)
    sampler(target, X, step_size=0.97 * limit, n_steps=0)
    assert grows(target, 1.03 * limit, order) and not grows(target, 0.97 * limit, order)


def test_no_warning_where_the_components_differ() -> None:
    target = targets.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], [0.01, 1.0])
    fastscore.langevin_dynamics(target, X, step_size=1.0, n_steps=1, seed=0)


def test_start_is_a_draw_of_the_initial_stream() -> None:
    made = fastscore.LangevinDynamics(torch.neg, 0.1).sample(dim=7, n_samples=5, n_steps=0, seed=99)
    assert torch.equal(made, noise.normal((5, 7), seed=99, stream=5))


@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5), lambda k: 0.5])
def test_noise_scale_is_the_root_of_the_temperature(scale: Any) -> None:
    # torchebm 0.8.9: x + a s(x) + sqrt(2 noise_scale^2) sqrt(a) e
    x, e = start(5), noise.normal((5, 2), seed=1, stream=noise.Stream.LANGEVIN)
    made = fastscore.LangevinDynamics(torch.neg, 0.1, scale).sample(x, n_steps=1, seed=1)
    torch.testing.assert_close(made, 0.9 * x + math.sqrt(2 * 0.5**2) * math.sqrt(0.1) * e)
    with pytest.raises(ValueError, match="give noise_scale or temperature"):
        fastscore.LangevinDynamics(torch.neg, noise_scale=scale, temperature=0.5)
    with pytest.raises(ValueError, match="noise_scale must be finite and > 0, got -1"):
        fastscore.LangevinDynamics(torch.neg, noise_scale=-1)


class TestTorchebmsArguments:
    def test_positions(self) -> None:
        sampler = fastscore.LangevinDynamics(
            torch.neg, 0.1, 2.0, 0.0, (-0.5, 0.5), torch.float64, "cpu", "euler_maruyama"
        )
        made = sampler.sample(None, 2, 6, 4, 3, False, False, True, generator=torch.Generator())
        assert made.dtype == torch.float64 and made.abs().max() <= 0.5 and sampler.clamp == (-0.5, 0.5)
        sampler.clamp = None
        assert sampler.sample(dim=2, n_samples=50, seed=0).abs().max() > 0.5

    def test_what_it_has_no_place_for_is_named(self) -> None:
        make = fastscore.LangevinDynamics
        with pytest.raises(ValueError, match=r"decay must be 0, got 0\.1: .* underdamped_langevin"):
            make(torch.neg, decay=0.1)
        with pytest.raises(ValueError, match="integrator must be None or 'euler_maruyama', got 'heun'"):
            make(torch.neg, integrator="heun")
        with pytest.raises(ValueError, match=r"reset_schedulers must be True, got False: .* first_step"):
            make(torch.neg, lambda k: 0.1).sample(X, reset_schedulers=False)
        with pytest.raises(TypeError, match="reset_schedulers must be True or False, got 'no'"):
            make(torch.neg).sample(X, reset_schedulers="no")  # type: ignore[call-overload]
        assert make(torch.neg).sample(X, reset_schedulers=False, n_steps=1).shape == (3, 2)

    def test_conditions(self) -> None:
        def score(x: Tensor, y: Tensor, by: float = 1.0) -> Tensor:
            return by * y[:, None] - x

        x, y, run = start(3), torch.tensor([1.0, 2.0, 3.0]), {"n_steps": 4, "seed": 5}
        sampler = fastscore.LangevinDynamics(score, 0.1)
        expected = fastscore.LangevinDynamics(lambda x: 2 * y[:, None] - x, 0.1).sample(x, **run)
        assert torch.equal(sampler.sample(x, y=y, model_kwargs={"by": 2.0}, **run), expected)
        assert torch.equal(sampler.sample(x, model_kwargs={"y": y, "by": 2.0}, **run), expected)
        assert torch.equal(sampler.sample(x, y=2 * y, model_kwargs={}, **run), expected)
        for wrong in ({"y": y, "model_kwargs": {"y": y}}, {"y": y, "cond": y}):
            with pytest.raises(ValueError, match="give a condition once"):
                fastscore.LangevinDynamics(score, 0.1, cond=wrong.pop("cond", None)).sample(x, **wrong)
        with pytest.raises(TypeError, match="model_kwargs must be a dict, got 3"):
            sampler.sample(x, model_kwargs=3)  # type: ignore[call-overload]

    def test_dim_beside_x_is_not_looked_at(self) -> None:
        sampler = fastscore.LangevinDynamics(torch.neg, 0.1)
        assert torch.equal(sampler.sample(X, dim=5, seed=1), sampler.sample(X, seed=1))

    def test_to_moves_the_start_and_the_network(self) -> None:
        network = fastscore.EnergyMLP(2, width=8)
        sampler = fastscore.LangevinDynamics(network.score, 0.1)
        assert sampler.to(torch.float64) is sampler and next(network.parameters()).dtype == torch.float64
        assert sampler.sample(dim=2, n_steps=1).dtype == torch.float64
        assert fastscore.LangevinDynamics(torch.neg).to(device="meta").device == torch.device("meta")


@pytest.mark.parametrize("rows", [8, 200])
def test_a_ladder_of_conditions(rows: int) -> None:
    """A class a row, told by `cond` or known to the function, in C or step by step: the same samples in every split."""
    torch.manual_seed(0)
    network = fastscore.ScoreMLP(2, width=32, depth=2, cond_dim=2)
    torch.nn.init.normal_(network.layers[-1].weight)  # type: ignore[arg-type]
    x, label, run = start(rows), torch.linspace(-1, 1, rows)[:, None], LADDER | {"seed": 1}

    def score(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return network(torch.tanh(x), torch.cat([sigma[:, None], label], 1)) - x  # type: ignore[no-any-return]

    def readable(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return network(x, torch.cat([sigma[:, None], label], 1))  # type: ignore[no-any-return]

    for fn in (score, readable):
        made = fastscore.annealed_langevin_dynamics(fn, x, cond=label, **run)
        known = fastscore.annealed_langevin_dynamics(lambda x, s, fn=fn: fn(x, s, label), x, **run)
        single = [
            fastscore.annealed_langevin_dynamics(fn, x[i : i + 1], cond=label[i : i + 1], first_chain=i, **run)
            for i in (0, 5, rows - 1)
        ]
        torch.testing.assert_close(made[[0, 5, -1]], torch.cat(single), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(known, made, rtol=1e-5, atol=1e-5)


def test_a_kernel_is_told_each_rows_own_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """A label a row that a function knows: the whole-chain kernels are told the rows' own, or are not used."""
    monkeypatch.setattr(chain, "available", lambda x: True)
    network, x, label = fastscore.ScoreMLP(2, width=32, depth=2, cond_dim=1), start(4), torch.arange(4.0)[:, None]
    own, same = whole.source(lambda x: network(x, label), x, None), whole.source(lambda x: network(x, 0.5), x, None)
    assert isinstance(own, chain.Network) and isinstance(same, chain.Network)
    assert own.per_chain and not same.per_chain
    assert whole.ladder(lambda x, s: network(x, label + s[:, None]), x, [1.0, 0.5]) is None
    assert whole.ladder(lambda x, s: network(x, s), x, [1.0, 0.5]) is not None


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5)], ids=["norm", "dropout"])
def test_a_network_in_training_mode_is_warned_of(layer: torch.nn.Module) -> None:
    net, x = torch.nn.Sequential(torch.nn.Linear(2, 8), layer, torch.nn.Linear(8, 2)), torch.zeros(5, 2)
    for score_fn in (net, net.forward):
        with pytest.warns(UserWarning, match=rf"{type(layer).__name__} in training mode.*call .eval"):
            fastscore.langevin_dynamics(score_fn, x, step_size=0.1, n_steps=2, seed=0)
    fastscore.langevin_dynamics(net.eval(), x, step_size=0.1, n_steps=2, seed=0)


def test_a_score_that_makes_its_own_leaf_without_a_graph_is_told_how() -> None:
    def score(x: Tensor) -> Tensor:
        return torch.autograd.grad(-x.requires_grad_().square().sum(), x)[0]

    with pytest.raises(RuntimeError, match=r"under torch.enable_grad\(\)"):
        fastscore.langevin_dynamics(score, torch.zeros(5, 2), step_size=0.1, n_steps=2)


def test_sample_goes_on_and_is_cut_as_langevin_dynamics_is() -> None:
    chains = fastscore.LangevinDynamics(targets.GaussianMixture.ring().score, 0.01)
    whole = chains.sample(dim=2, n_samples=8, n_steps=6, seed=3)
    assert torch.equal(chains.sample(dim=2, n_samples=3, n_steps=6, seed=3, first_chain=5), whole[5:])
    half = chains.sample(dim=2, n_samples=8, n_steps=3, seed=3)
    assert torch.equal(chains.sample(half, n_steps=3, seed=3, first_step=3), whole)


def algorithms() -> dict[str, Any]:
    """The algorithms for loops of one's own, without their seed."""
    score, own = targets.Gaussian([0.0, 0.0], 1.0), fastscore.samplers
    return {
        "langevin": partial(own.Langevin, score.score, step_size=0.1),
        "mala": partial(own.Mala, score, step_size=0.1),
        "underdamped": partial(own.Underdamped, score.score, step_size=0.1),
        "annealed": partial(own.AnnealedLangevin, score.noisy_score, sigmas=[1.0, 0.1], n_steps_each=3, step_size=0.1),
    }


@pytest.mark.parametrize("name", algorithms())
def test_the_algorithms_check_what_they_are_given(name: str) -> None:
    make = algorithms()[name]
    with pytest.raises(TypeError, match="seed"):
        make(seed=1.5)
    with pytest.raises(ValueError, match="first_chain"):
        make(seed=0, first_chain=-1)
    algorithm = make(seed=0)
    assert algorithm.step(algorithm.init(torch.zeros(5, 2)), 0).x.shape == (5, 2)


def test_a_ladder_for_a_loop_of_ones_own_decreases() -> None:
    with pytest.raises(ValueError, match="sigmas must decrease"):
        fastscore.samplers.AnnealedLangevin(torch.zeros_like, sigmas=[0.1, 1.0], n_steps_each=1, step_size=0.1, seed=0)
