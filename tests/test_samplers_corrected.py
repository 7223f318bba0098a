"""MALA and BAOAB: invariance, detailed balance without Monte Carlo error, moments, orders of convergence, contracts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

import fastscore
from fastscore import noise, targets
from fastscore.reference.metropolis import log_transition
from fastscore.samplers import Mala, Underdamped, mala, underdamped_langevin

N = 1 << 15


def start(n: int, dim: int, seed: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return noise.normal((n, dim), seed=seed, stream=noise.Stream.INITIAL, dtype=dtype)


def quartic(x: Tensor) -> Tensor:
    return -(x**4 / 4 + x**2 / 2 - x / 3).sum(1)


def quartic_score(x: Tensor) -> Tensor:
    return -(x**3 + x - 1 / 3)


@pytest.mark.parametrize("step_size", [0.3, torch.tensor([0.1, 0.7])], ids=["number", "a feature"])
def test_detailed_balance_holds_pointwise(step_size: Any) -> None:
    x, y = 1.5 * start(10_000, 2, 1, torch.float64), 1.5 * start(10_000, 2, 2, torch.float64)
    algorithm = Mala(quartic, step_size=step_size, seed=0, dtype=torch.float64)
    a = torch.as_tensor(step_size, dtype=torch.float64).expand(2)

    def flow(x: Tensor, y: Tensor) -> Tensor:
        """log p(x) q(y | x) alpha(y | x), q written out and alpha from the algorithm's own pieces."""
        (px, sx), (py, sy) = algorithm.evaluate(x), algorithm.evaluate(y)
        law = torch.distributions.Normal(x + a * quartic_score(x), (2 * a).sqrt())
        ratio = py - px + log_transition(y, sy, x, a) - log_transition(x, sx, y, a)
        return quartic(x) + law.log_prob(y).sum(1) + ratio.clamp(max=0)

    forth, back = flow(x, y), flow(y, x)
    assert float(((forth - back) / forth.abs().clamp(min=1)).abs().max()) < 1e-10


def test_a_proposal_is_accepted_exactly_when_its_uniform_says_so() -> None:
    x = start(500, 2, dtype=torch.float64)
    a, seed, k, first = 0.6, 11, 5, 77
    algorithm = Mala(quartic, step_size=a, seed=seed, first_chain=first, dtype=torch.float64)
    y = fastscore.langevin_step(x, quartic_score(x), step_size=a, seed=seed, step=k, first_chain=first)
    q = [torch.distributions.Normal(p + a * quartic_score(p), math.sqrt(2 * a)) for p in (x, y)]
    alpha = (quartic(y) - quartic(x) + (q[1].log_prob(x) - q[0].log_prob(y)).sum(1)).exp()
    u = noise.uniform(500, seed=seed, stream=noise.Stream.ACCEPT, step=k, first_chain=first, dtype=torch.float64)
    state = algorithm.step(algorithm.init(x), k)
    assert torch.equal(state.accepted, (u <= alpha).double()) and 0 < float(state.accepted.mean()) < 1
    torch.testing.assert_close(state.x, torch.where((u <= alpha).unsqueeze(1), y, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [1, 10, 100])
def test_mala_keeps_exact_draws_exact(k: int) -> None:
    target = targets.GaussianMixture([[-1.5], [1.0]], [0.25, 1.0], [0.3, 0.7])
    x = mala(target, target.sample(N, seed=1), step_size=0.5, n_steps=k, seed=2)
    cdf = torch.distributions.Normal(torch.tensor([-1.5, 1.0]), torch.tensor([0.5, 1.0]))
    law = kstest(
        x[:, 0].numpy(), lambda v: (cdf.cdf(torch.as_tensor(v)[:, None]) * torch.tensor([0.3, 0.7])).sum(1).numpy()
    )
    assert law.pvalue > 1e-5
    mean, second = 0.25, 0.3 * (2.25 + 0.25) + 0.7 * 2.0
    assert abs(float(x.mean()) - mean) < 5 * math.sqrt((second - mean**2) / N)
    assert abs(float(x.square().mean()) - second) < 5 * float(x.square().std()) / math.sqrt(N)


def test_mala_has_no_bias_where_langevin_has() -> None:
    target, a = targets.Gaussian([0.0], 1.0), 1.0
    run: dict[str, Any] = {"step_size": a, "n_steps": 60, "seed": 4}
    corrected = mala(target, target.sample(N, seed=1), **run)
    plain = fastscore.langevin_dynamics(target.score, target.sample(N, seed=1), **run)
    assert abs(float(corrected.var()) - 1) < 5 * math.sqrt(2 / N)
    assert abs(float(plain.var()) / 2 - 1) < 5 * math.sqrt(2 / N)  # 1 / (1 - a / 2)


def test_acceptance_tends_to_one_and_is_reported() -> None:
    rates = []
    for a in (1.0, 0.1, 1e-4):
        _, diagnostics = mala(quartic, start(2000, 2), step_size=a, n_steps=20, seed=0, return_diagnostics=True)
        assert diagnostics["acceptance_rate"].shape == (2000,)
        rates.append(float(diagnostics["acceptance_rate"].mean()))
    assert rates[0] < 0.7 < rates[1] < rates[2] and rates[2] > 0.999


def test_mala_takes_a_density_a_score_or_a_target() -> None:
    target = targets.Gaussian([0.5, -0.5], 0.7)
    x = start(50, 2, dtype=torch.float64)
    run: dict[str, Any] = {"step_size": 0.3, "n_steps": 5, "seed": 1}
    expected = mala(target, x, **run)
    torch.testing.assert_close(mala(target.log_prob, x, **run), expected)
    torch.testing.assert_close(mala(target.log_prob, x, score_fn=target.score, **run), expected)
    other = mala(target.log_prob, x, score_fn=torch.neg, **run)  # a given score comes before that of a target
    assert torch.equal(mala(target, x, score_fn=torch.neg, **run), other) and not torch.equal(other, expected)
    torch.testing.assert_close(
        mala(lambda x: -(x - x.new_tensor([0.5, -0.5])).square().sum(1) / 1.4, x, **run), expected
    )


def test_outside_the_support_is_a_refusal_and_no_density_is_an_error() -> None:
    def inside(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, -x.sum(1), -torch.inf)

    x = mala(inside, start(4000, 1).abs(), step_size=0.3, n_steps=50, seed=0)
    assert float(x.min()) > 0 and abs(float(x.mean()) - 1) < 0.15

    def undefined(value: float) -> Any:
        return lambda x: torch.where(x[:, 0] > 0, -x.square().sum(1), value)

    for value in (math.nan, math.inf):
        with pytest.raises(fastscore.NonFiniteError):
            mala(undefined(value), start(100, 1).abs(), step_size=0.5, n_steps=50, seed=0)
        with pytest.raises(fastscore.NonFiniteError, match="after step 0"):
            mala(undefined(value), -start(100, 1).abs(), step_size=1e-6, n_steps=5, seed=0)
    _, diagnostics = mala(
        undefined(math.nan),
        start(100, 1).abs(),
        step_size=0.5,
        n_steps=50,
        seed=0,
        on_nonfinite="freeze",
        return_diagnostics=True,
    )
    assert int((diagnostics["first_nonfinite"] >= 0).sum()) > 10


def test_what_mala_refuses() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(TypeError, match="log_prob must be callable, got int"):
        mala(3, x, step_size=0.1, n_steps=1)
    with pytest.raises(TypeError, match="log_prob must return a tensor, got float"):
        mala(lambda x: 1.0, x, step_size=0.1, n_steps=1)
    with pytest.raises(ValueError, match=r"one number a row, shape \[3\], got \[3, 2\]"):
        mala(lambda x: -x, x, step_size=0.1, n_steps=1)
    with pytest.raises(TypeError, match="score_fn must be callable, got int"):
        mala(quartic, x, score_fn=3, step_size=0.1, n_steps=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step_size must be finite and > 0, got -1"):
        mala(quartic, x, step_size=-1, n_steps=1)


@pytest.mark.parametrize(
    ("lam", "a", "gamma", "t"), [(1.0, 0.5, 1.0, 1.0), (4.0, 0.9, 0.3, 0.5), (0.25, 1.5, 5.0, 2.0)]
)
def test_baoab_keeps_its_exact_stationary_law_of_a_gaussian(lam: float, a: float, gamma: float, t: float) -> None:
    # x has variance T / lam, without bias, and v has T (1 - lam a^2 / 4); they are uncorrelated.
    x, v = math.sqrt(t / lam) * start(N, 2), math.sqrt(t * (1 - lam * a**2 / 4)) * start(N, 2, 5)
    x, diagnostics = underdamped_langevin(
        lambda x: -lam * x,
        x,
        step_size=a,
        n_steps=7,
        friction=gamma,
        temperature=t,
        velocity=v,
        seed=3,
        return_diagnostics=True,
    )
    v, gate = diagnostics["velocity"], 5 * math.sqrt(2 / (2 * N))
    assert abs(float(x.var()) * lam / t - 1) < gate
    assert abs(float(v.var()) / (t * (1 - lam * a**2 / 4)) - 1) < gate
    assert abs(float((x * v).mean() / (x.std() * v.std()))) < gate


def test_baoab_reaches_the_law_from_afar_and_draws_its_momenta() -> None:
    target = targets.Gaussian([2.0, -1.0], [0.5, 2.0])
    x = underdamped_langevin(target, torch.zeros(N, 2), step_size=0.5, n_steps=60, seed=1)
    assert float((x.mean(0) - torch.tensor([2.0, -1.0])).abs().max()) < 5 * math.sqrt(2 / N)
    assert float((x.var(0) / torch.tensor([0.5, 2.0]) - 1).abs().max()) < 5 * math.sqrt(2 / N)
    state = Underdamped(lambda x: -x, step_size=0.1, temperature=4.0, seed=8).init(torch.zeros(100, 3))
    momenta = noise.normal((100, 3), seed=8, stream=noise.Stream.MOMENTA)
    torch.testing.assert_close(state.velocity, 2 * momenta)


def test_one_baoab_step_is_its_formula() -> None:
    x, v = start(5, 2, dtype=torch.float64), start(5, 2, 9, torch.float64)
    a, gamma, t, k = 0.3, 0.7, 1.7, 4
    algorithm = Underdamped(quartic_score, step_size=a, friction=gamma, temperature=t, seed=6, dtype=torch.float64)
    state = algorithm.step(algorithm.init(x, v), k)
    e = noise.normal((5, 2), seed=6, stream=noise.Stream.LANGEVIN, step=k, dtype=torch.float64)
    c = math.exp(-gamma * a)
    half = v + a / 2 * quartic_score(x)
    turned = c * half + math.sqrt((1 - c**2) * t) * e
    moved = x + a / 2 * half + a / 2 * turned
    torch.testing.assert_close(state.x, moved, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(state.velocity, turned + a / 2 * quartic_score(moved), rtol=1e-13, atol=1e-13)


def test_baoab_without_noise_is_of_second_order() -> None:
    x, v = start(20, 2, dtype=torch.float64), start(20, 2, 9, torch.float64)

    def end(n_steps: int) -> Tensor:
        return underdamped_langevin(
            quartic_score, x, step_size=2.0 / n_steps, n_steps=n_steps, temperature=0.0, velocity=v, seed=0
        )

    exact = end(1000)
    errors = [float((end(n) - exact).abs().max()) for n in (20, 40, 80)]
    orders = [math.log2(errors[i] / errors[i + 1]) for i in range(2)]
    assert orders == pytest.approx([2.0, 2.0], abs=0.1)


def test_baoabs_bias_is_of_second_order_in_law() -> None:
    # Stationary E x^2 for p ~ exp(-x^2/2 + cos(2x)/2), against quadrature; the Monte Carlo error is 0.0006.
    def score(x: Tensor) -> Tensor:
        return -x - torch.sin(2 * x)

    grid = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    density = (-grid.square() / 2 + torch.cos(2 * grid) / 2).exp()
    exact = float((grid.square() * density).sum() / density.sum())
    bias = []
    for a, thin in ((0.6, 10), (0.3, 20)):
        run = {"step_size": a, "n_steps": 10 * thin, "burn_in": 3 * thin, "thin": thin, "seed": 12}
        path = underdamped_langevin(score, start(4 * N, 1), return_trajectory=True, **run)
        bias.append(abs(float(path.square().mean()) - exact))
    assert bias[0] > 0.006
    assert bias[1] < bias[0] / 3


RUNS: dict[str, Any] = {
    "mala": lambda x, **options: mala(quartic, x, **{"step_size": 0.2, "seed": 5, "score_fn": quartic_score} | options),
    "underdamped": lambda x, **options: underdamped_langevin(
        quartic_score, x, **{"step_size": 0.2, "seed": 5} | options
    ),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_splits_and_repetitions_give_the_same_bits(run: Any) -> None:
    x = start(16, 2)
    whole = run(x, n_steps=20, first_chain=9)
    assert torch.equal(run(x, n_steps=20, first_chain=9), whole)
    parts = [run(p, n_steps=20, first_chain=9 + i) for p, i in zip(x.split([1, 7, 8]), (0, 1, 8), strict=True)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("stop", range(1, 20, 3))
def test_both_resume_to_the_same_bits(stop: int) -> None:
    x = start(16, 2)
    path = RUNS["mala"](x, n_steps=20, return_trajectory=True)
    rest = RUNS["mala"](path[:, stop - 1], n_steps=20 - stop, first_step=stop)
    assert torch.equal(rest, path[:, -1])
    whole = RUNS["underdamped"](x, n_steps=20)
    half, diagnostics = RUNS["underdamped"](x, n_steps=stop, return_diagnostics=True)
    rest = RUNS["underdamped"](half, n_steps=20 - stop, first_step=stop, velocity=diagnostics["velocity"])
    assert torch.equal(rest, whole)


def test_an_interrupted_underdamped_chain_carries_its_velocity() -> None:
    calls = 0

    def score(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return quartic_score(x)

    x = start(8, 2)
    with pytest.raises(fastscore.Interrupted) as caught:
        underdamped_langevin(score, x, step_size=0.2, n_steps=20, seed=5)
    stopped = caught.value
    rest = RUNS["underdamped"](stopped.x, n_steps=20 - stopped.step, first_step=stopped.step, velocity=stopped.state[1])
    assert torch.equal(rest, RUNS["underdamped"](x, n_steps=20))


def test_going_on_without_a_velocity_is_refused() -> None:
    with pytest.raises(ValueError, match="velocity is needed to go on with a chain, got None with first_step 3"):
        RUNS["underdamped"](start(2, 2), n_steps=1, first_step=3)
    with pytest.raises(ValueError, match=r"velocity must have the shape of x \[2, 2\], got \[2, 1\]"):
        RUNS["underdamped"](start(2, 2), n_steps=1, velocity=torch.zeros(2, 1))
    with pytest.raises(ValueError, match="friction must be finite and > 0, got 0"):
        RUNS["underdamped"](start(2, 2), n_steps=1, friction=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_narrow_states_are_kept_wide(run: Any, dtype: torch.dtype) -> None:
    found = run(start(8, 2).to(dtype), n_steps=5)
    assert found.dtype == dtype and bool(torch.isfinite(found).all())


def test_a_step_size_beyond_the_targets_bound_is_warned_of() -> None:
    target = targets.Gaussian([0.0, 0.0], [0.25, 1.0])
    x = torch.zeros(2, 2)
    for step_size in (0.51, torch.tensor(0.51), torch.tensor([0.51, 0.1])):
        with pytest.warns(UserWarning, match=r"step_size 0.51 is above 2 / L = 0.5, L the largest precision"):
            fastscore.langevin_dynamics(target, x, step_size=step_size, n_steps=1, seed=0)
    fastscore.langevin_dynamics(target, x, step_size=0.5, n_steps=1, seed=0)
    fastscore.langevin_dynamics(lambda x: target.score(x), x, step_size=0.51, n_steps=1, seed=0)


def wells(dim: int, cond_dim: int = 0) -> fastscore.EnergyMLP:
    """An energy set by hand: steep walls at 3 on either side of every coordinate, and something in between."""
    torch.manual_seed(4)
    network = fastscore.EnergyMLP(dim, width=32, depth=1, activation="softplus", cond_dim=cond_dim)
    first, last = network.layers
    with torch.no_grad():
        weight, bias, out = torch.randn(32, dim), torch.randn(32), torch.randn(1, 32)
        for i in range(2 * dim):
            weight[i], bias[i], out[0, i] = 0.0, -12.0, 6.0
            weight[i, i // 2] = 4.0 * (-1) ** i
        for layer, name, value in ((first, "weight", weight), (first, "bias", bias), (last, "weight", out)):
            getattr(layer, name).copy_(value)
    return network


@pytest.mark.parametrize("n", [64, N])
def test_mala_takes_an_energy_network_for_what_it_is(n: int) -> None:
    """Its law is exp(-E), by quadrature; its samples those of -E as a log density, in C and step by step."""
    energy, x = wells(1), start(n, 1)
    run: dict[str, Any] = {"step_size": 0.1, "n_steps": 200 if n == N else 20, "seed": 4}
    made, told = mala(energy, x, return_diagnostics=True, **run)
    assert torch.equal(made, mala(lambda x: -energy(x), x, **run))
    assert 0.5 < float(told["acceptance_rate"].mean()) < 0.99
    if n == N:
        grid = torch.linspace(-8, 8, 4001)
        mass = (-energy(grid[:, None]).detach().double()).exp().cumsum(0)
        law = kstest(made[:, 0].numpy(), lambda v: np.interp(v, grid.numpy(), (mass / mass[-1]).numpy()))
        assert law.pvalue > 1e-5


@pytest.mark.parametrize("n", [64, 256])
def test_mala_hands_on_a_condition(n: int) -> None:
    energy, x, cond = wells(2, cond_dim=1), start(n, 2), torch.linspace(-1, 1, n)[:, None]
    run: dict[str, Any] = {"step_size": 0.2, "n_steps": 10, "seed": 4}
    made = mala(energy, x, cond=cond, **run)
    torch.testing.assert_close(made, mala(lambda x: -energy(x, cond), x, **run), rtol=1e-5, atol=1e-5)
    alone = mala(energy, x[7:8], cond=cond[7:8], first_chain=7, **run)
    torch.testing.assert_close(made[7:8], alone, rtol=1e-5, atol=1e-5)
    score = mala(lambda x, c: -energy(x, c), x, score_fn=energy.score, cond=cond, **run)
    torch.testing.assert_close(score, made, rtol=1e-4, atol=1e-4)


def test_the_acceptance_rate_is_over_all_steps_with_a_burn_in_too() -> None:
    run: dict[str, Any] = {"step_size": 0.5, "n_steps": 20, "seed": 0, "return_diagnostics": True}
    _, plain = mala(quartic, start(50, 2), **run)
    for burn_in in (5, 20):
        assert torch.equal(
            mala(quartic, start(50, 2), burn_in=burn_in, **run)[1]["acceptance_rate"], plain["acceptance_rate"]
        )
