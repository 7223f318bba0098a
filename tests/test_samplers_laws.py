"""The laws of the samplers against closed forms: fixed seeds, every statistic within 5 standard errors.

A run of this file makes about 150 comparisons at |z| < 5 (6 for skewness and kurtosis): with seeds drawn anew, one
false alarm in some 10^4 runs. The seeds are fixed, so there is none.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore import noise, targets

N = 1 << 17


def start(n: int, dim: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return noise.normal((n, dim), seed=seed, stream=noise.Stream.INITIAL, dtype=dtype)


def correlation(a: Tensor, b: Tensor) -> float:
    """sqrt(n) times the correlation of two samples: a standard normal where they are independent."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).mean() / (a.std() * b.std()) * math.sqrt(a.numel()))


def statistics(x: Tensor, mean: float, var: float) -> dict[str, tuple[float, float]]:
    """The standardised deviations of x `[N, D]` from independent N(mean, var), each with its gate."""
    n = x.numel()
    z = (x.double() - mean) / math.sqrt(var)
    centred = z - z.mean()
    return {
        "mean": (float(z.mean()) * math.sqrt(n), 5),
        "variance": (float(z.square().mean() - 1) * math.sqrt(n / 2), 5),
        "skewness": (float(centred.pow(3).mean()) * math.sqrt(n / 6), 6),
        "kurtosis": (float(centred.pow(4).mean() / centred.square().mean() ** 2 - 3) * math.sqrt(n / 24), 6),
        "neighbouring chains": (correlation(z[:-1], z[1:]), 5),
        "chains a vector apart": (correlation(z[:-4], z[4:]), 5),
        "halves of the batch": (correlation(z[: len(z) // 2], z[len(z) // 2 :]), 5),
        "lanes of a pair": (correlation(z[:, 0], z[:, 1]), 5),
        "lanes of two pairs": (correlation(z[:, 0], z[:, 2]), 5),
    }


@pytest.mark.parametrize(
    ("lam", "a", "temperature", "k"),
    [
        (1.0, 0.1, 1.0, 1),
        (1.0, 0.1, 1.0, 7),
        (1.0, 1.9, 1.0, 5),
        (4.0, 0.1, 1.0, 20),
        (4.0, 0.3, 0.5, 3),
        (0.25, 1.0, 2.0, 10),
        (0.25, 0.01, 1.0, 2),
        (1.0, 1.0, 1.0, 4),
    ],
)
def test_ula_after_k_steps_has_its_exact_law(lam: float, a: float, temperature: float, k: int) -> None:
    mu, m0, v0 = 0.7, -1.0, 0.25
    x = m0 + math.sqrt(v0) * start(N, 4, seed=11)
    run = {"step_size": a, "temperature": temperature, "seed": 100 + k}
    before = fastscore.langevin_dynamics(lambda x: lam * (mu - x), x, n_steps=k - 1, **run)
    after = fastscore.langevin_dynamics(lambda x: lam * (mu - x), before, n_steps=1, first_step=k - 1, **run)
    shrink = 1 - a * lam
    mean = mu + shrink**k * (m0 - mu)
    var = shrink ** (2 * k) * v0 + 2 * a * temperature * sum(shrink ** (2 * j) for j in range(k))
    found = statistics(after, mean, var)
    # Two successive states: after - shrink before is fresh noise.
    found["successive states"] = (correlation(after - shrink * before, before), 5)
    assert {name: z for name, (z, gate) in found.items() if not abs(z) < gate} == {}


def test_the_noise_of_ten_steps_is_ten_noises() -> None:
    x = torch.zeros(1 << 15, 2)
    path = fastscore.langevin_dynamics(lambda x: -x, x, step_size=0.5, n_steps=10, seed=5, return_trajectory=True)
    before = torch.cat([x.unsqueeze(1), path[:, :-1]], 1)
    noises = (path - 0.5 * before).movedim(1, 0).flatten(1)
    z = torch.corrcoef(noises) * math.sqrt(noises.shape[1])
    assert float((z - torch.diag(z.diagonal())).abs().max()) < 5
    assert len(torch.unique(noises)) > 0.98 * noises.numel()


def test_step_size_and_temperature_schedules_compose_the_law() -> None:
    steps, temperatures = [0.5, 0.2, 0.1], [2.0, 0.0, 1.0]
    x = fastscore.langevin_dynamics(
        lambda x: -x,
        torch.ones(N, 1),
        step_size=steps.__getitem__,
        temperature=temperatures.__getitem__,
        n_steps=3,
        seed=8,
    )
    mean, var = 1.0, 0.0
    for a, t in zip(steps, temperatures, strict=True):
        mean, var = (1 - a) * mean, (1 - a) ** 2 * var + 2 * a * t
    assert abs(float(x.mean()) - mean) < 5 * math.sqrt(var / N)
    assert abs(float(x.var()) / var - 1) < 5 * math.sqrt(2 / N)


def test_a_step_size_a_feature_preconditions() -> None:
    lam, a = torch.tensor([100.0, 1.0, 0.01]), torch.tensor([0.005, 0.5, 50.0])
    x = fastscore.langevin_dynamics(lambda x: -lam * x, torch.zeros(N, 3), step_size=a, n_steps=20, seed=9)
    expected = 1 / (lam * (1 - a * lam / 2))
    assert float((x.var(0) / expected - 1).abs().max()) < 5 * math.sqrt(2 / N)


def test_gradient_ascent_contracts_to_the_mode_at_its_rate() -> None:
    x = start(50, 3, seed=2, dtype=torch.float64)
    found = fastscore.gradient_ascent(lambda x: 2.0 * (1.0 - x), x, step_size=0.1, n_steps=25)
    torch.testing.assert_close(found, 1.0 + 0.8**25 * (x - 1.0), rtol=1e-12, atol=1e-14)


def test_gradient_ascent_finds_the_modes_of_a_mixture() -> None:
    target = targets.GaussianMixture.ring()
    found = fastscore.gradient_ascent(lambda x: target.score(x), target.sample(400, seed=3), step_size=0.1, n_steps=300)
    assert float(target.score(found).abs().max()) < 1e-4
    assert len(torch.unique((found * 10).round(), dim=0)) == 8


class Smoothed:
    """The score of a Gaussian mixture convolved with N(0, sigma^2), one sigma a row."""

    def __init__(self, weight: float, far: float, var: float) -> None:
        self.weight, self.far, self.var = weight, far, var

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        v = (self.var + sigma**2).unsqueeze(1)
        right, left = x - self.far, x + self.far
        log_odds = math.log(self.weight / (1 - self.weight)) + (left.square() - right.square()).sum(1, True) / (2 * v)
        r = torch.sigmoid(log_odds)
        return -(r * right + (1 - r) * left) / v


def test_annealing_finds_the_weights_of_far_modes_where_plain_langevin_does_not() -> None:
    weight, far, var = 0.8, 5.0, 0.25
    score = Smoothed(weight, far, var)
    n = 1 << 12
    sigmas = [10.0 * 0.7**i for i in range(11)]
    x = sigmas[0] * start(n, 1, seed=4)
    last = sigmas[-1]
    eps = 0.2 * last**2
    annealed = fastscore.annealed_langevin_dynamics(
        score, x, sigmas=sigmas, n_steps_each=30, step_size=eps, denoise=False, seed=1
    )
    plain = fastscore.langevin_dynamics(lambda x: score(x, torch.zeros(len(x))), x, step_size=0.02, n_steps=320, seed=1)
    # The ladder is finite, so a small bias in the weight is its own; plain Langevin stays with the half it began in.
    assert abs(float((annealed > 0).float().mean()) - weight) < 0.05
    assert abs(float((plain > 0).float().mean()) - 0.5) < 0.05
    side = annealed[annealed > 0] - far
    assert abs(float(side.mean())) < 5 * math.sqrt(0.25 / len(side)) + 0.01
    assert abs(float(side.var()) / (var + last**2) - 1) < 0.15


def test_denoising_is_tweedies_formula() -> None:
    # Data at 0 exactly: s(x, sigma) = -x / sigma^2, so the posterior mean is 0 whatever the last state is.
    x = fastscore.annealed_langevin_dynamics(
        lambda x, sigma: -x / sigma.unsqueeze(1) ** 2,
        torch.ones(5, 2),
        sigmas=[1.0, 0.1],
        n_steps_each=3,
        step_size=1e-3,
        seed=0,
    )
    assert float(x.abs().max()) < 1e-6


def test_annealed_step_sizes_follow_the_ladder() -> None:
    # s = -x / sigma^2 at temperature 0: every level multiplies x by (1 - eps / sigma_last^2)^n, whatever its sigma.
    x = torch.ones(3, 2, dtype=torch.float64)
    found = fastscore.annealed_langevin_dynamics(
        lambda x, sigma: -x / sigma.unsqueeze(1) ** 2,
        x,
        sigmas=[4.0, 2.0, 1.0],
        n_steps_each=5,
        step_size=0.1,
        temperature=0.0,
        denoise=False,
        seed=0,
    )
    torch.testing.assert_close(found, 0.9**15 * x, rtol=1e-13, atol=0)


@pytest.mark.parametrize("a", [1e-5, 1e-6])
def test_small_steps_are_not_lost_in_a_narrow_state(a: float) -> None:
    n, k = 8192, 100
    x = start(n, 1, seed=6).to(torch.bfloat16)
    path = fastscore.langevin_dynamics(torch.zeros_like, x, step_size=a, n_steps=k, seed=7)
    assert path.dtype == torch.bfloat16
    wide = fastscore.samplers.Langevin(torch.zeros_like, step_size=a, seed=7, dtype=torch.bfloat16)
    state = wide.init(x)
    for step in range(k):
        state = wide.step(state, step)
    moved = state.x - x.float()
    assert abs(float(moved.var()) / (2 * a * k) - 1) < 5 * math.sqrt(2 / n)
    assert torch.equal(path, state.x.to(torch.bfloat16))
