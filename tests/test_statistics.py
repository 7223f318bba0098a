"""The statistical tests, tested: that they alarm on what is wrong, and how seldom they do on what is right.

The laws themselves are in `test_samplers_laws.py`, `test_samplers_corrected.py` and `reference/test_philox.py`.

The budget of false alarms: seeds are fixed, so `make test` has none. Who draws new seeds should expect, from the some
400 comparisons of these files at |z| < 5 (each 5.7e-7 for a normal), one in 4,000 runs; skewness and kurtosis, which
are not normal at these sizes, have gates at 6. `test_what_is_right_is_seldom_an_alarm` measures that with other seeds:
315 comparisons, none beyond 4.5. There is no joint (Geweke) test, as no sampler here draws data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore import noise, targets
from fastscore.noise import Stream
from fastscore.reference import philox
from tests.test_samplers_laws import correlation, start, statistics

A, K = 0.3, 4


def ula(
    n: int, seed: int, make: Callable[..., Tensor] = noise.normal, drift: float = 1.0, scale: float = 1.0
) -> Tensor:
    """K steps on N(0, 1) from exact draws, the noise made by `make`; right unless an argument is given."""
    x = start(n, 4, seed=seed + 1000)
    for k in range(K):
        e = make((n, 4), seed=seed, stream=Stream.LANGEVIN, step=k)
        x = x - drift * A * x + scale * math.sqrt(2 * A) * e
    return x


def alarms(x: Tensor) -> dict[str, float]:
    """The statistics of the law of `ula` that are out of their gates."""
    shrink = (1 - A) ** 2
    var = shrink**K + 2 * A * sum(shrink**j for j in range(K))
    return {name: z for name, (z, gate) in statistics(x, 0.0, var).items() if not abs(z) < gate}


def four_lanes(shape: tuple[int, ...], **where: Any) -> Tensor:
    return noise.normal((shape[0], 1), **where).expand(shape)


def two_ranks(shape: tuple[int, ...], **where: Any) -> Tensor:
    return noise.normal((shape[0] // 2, *shape[1:]), **where).repeat(2, 1)


def chains_in_pairs(shape: tuple[int, ...], **where: Any) -> Tensor:
    return noise.normal((shape[0] // 2, *shape[1:]), **where).repeat_interleave(2, 0)


def one_step_for_all(shape: tuple[int, ...], **where: Any) -> Tensor:
    return noise.normal(shape, **where | {"step": 0})


def clipped(shape: tuple[int, ...], **where: Any) -> Tensor:
    return noise.normal(shape, **where).clamp(-2, 2)


WRONG: dict[str, tuple[int, dict[str, Any]]] = {
    "a step size for its root": (1 << 13, {"scale": math.sqrt(2 * A)}),
    "no factor of two": (1 << 13, {"scale": math.sqrt(0.5)}),
    "noise of one step in all": (1 << 13, {"make": one_step_for_all}),
    "lanes that are copies": (1 << 13, {"make": four_lanes}),
    "ranks that are copies": (1 << 13, {"make": two_ranks}),
    "neighbours that are copies": (1 << 13, {"make": chains_in_pairs}),
    "a drift of the wrong sign": (1 << 13, {"drift": -1.0}),
    "tails cut at two": (1 << 13, {"make": clipped}),
    "noise one hundredth too large": (1 << 18, {"scale": 1.01}),
    "a drift two hundredths too small": (1 << 18, {"drift": 0.98}),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_an_alarm(name: str) -> None:
    n, wrong = WRONG[name]
    assert alarms(ula(n, 1, **wrong)) != {}
    assert alarms(ula(n, 1)) == {}


def test_the_sampler_is_the_recursion_that_is_put_to_these_tests() -> None:
    x = start(64, 4, seed=1005)
    found = fastscore.langevin_dynamics(torch.neg, x, step_size=A, n_steps=K, seed=5)
    torch.testing.assert_close(found, ula(64, 5), rtol=1e-5, atol=1e-6)


def test_what_is_right_is_seldom_an_alarm() -> None:
    z = [z for seed in range(45) for z, gate in statistics_of(seed) if gate == 5]
    assert len(z) == 45 * 7
    largest, spread = max(map(abs, z)), torch.tensor(z).std()
    assert largest < 4.5 and abs(float(spread) - 1) < 5 / math.sqrt(2 * len(z))


def statistics_of(seed: int) -> list[tuple[float, float]]:
    shrink = (1 - A) ** 2
    var = shrink**K + 2 * A * sum(shrink**j for j in range(K))
    return list(statistics(ula(1 << 13, 10_000 + 7 * seed), 0.0, var).values())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_a_million_chains_of_other_seeds_have_the_law(seed: int) -> None:
    x = start(1 << 20, 4, seed=seed + 1000)
    found = fastscore.langevin_dynamics(torch.neg, x, step_size=A, n_steps=K, seed=seed)
    assert alarms(found) == {}


@pytest.mark.parametrize("neighbour", ["seed", "step", "first_chain", "stream", "seed above 32 bits"])
def test_neighbouring_noises_are_independent(neighbour: str) -> None:
    where = {"seed": 5, "step": 7, "first_chain": 0, "stream": int(Stream.LANGEVIN)}
    change = {"first_chain": 1 << 32} if neighbour == "first_chain" else {neighbour: where.get(neighbour, 0) + 1}
    other = where | ({"seed": 5 + (1 << 32)} if neighbour == "seed above 32 bits" else change)
    a, b = noise.normal((1 << 18, 4), **where), noise.normal((1 << 18, 4), **other)
    for first, second in ((a, b), (a.square(), b.square()), (a[:, 0], b[:, 1]), (a[1:], b[:-1])):
        assert abs(correlation(first, second)) < 5
    assert not (a == b).all(1).any()


def test_flipping_any_bit_of_key_or_counter_flips_half_of_every_word() -> None:
    trials = 600
    generator = torch.Generator().manual_seed(3)
    given = torch.randint(0, 1 << 32, (6, 192, trials), generator=generator)
    flipped = given.clone()
    for bit in range(192):
        flipped[bit // 32, bit] ^= 1 << bit % 32
    words = [philox.philox(tuple(g[:4]), tuple(g[4:])) for g in (given, flipped)]
    changed = torch.stack(words[0]) ^ torch.stack(words[1])
    counts = sum((changed >> bit & 1) for bit in range(32)).double()  # [4 words, 192 bits, trials]
    assert abs(float(counts.mean()) - 16) < 5 * math.sqrt(8 / counts.numel())
    assert float((counts.mean(2) - 16).abs().max()) < 5 * math.sqrt(8 / trials)


def test_steins_identity_holds_for_the_scores_of_targets() -> None:
    # E s(x).f(x) + div f(x) = 0 for f = s and for f = x: implicit score matching rests on it.
    for target in (targets.GaussianMixture.ring(), targets.Gaussian([1.0, -1.0], [0.5, 2.0])):
        x = target.sample(1 << 12, seed=2).double()
        score, trace = fastscore.divergence(target.score, x)[:2]
        for found in (score.square().sum(1) + trace, (score * x).sum(1) + 2):
            assert abs(float(found.mean())) < 5 * float(found.std()) / math.sqrt(len(found))
            assert abs(float(found.mean())) < 0.2 * float(found.abs().mean())


@pytest.mark.parametrize("sampler", ["mala", "underdamped_langevin"])
def test_ranks_of_the_truth_among_posterior_draws_are_uniform(sampler: str) -> None:
    # Simulation-based calibration (Talts et al. 2018): theta ~ N(0, 1), y | theta ~ N(theta, 1/4), 99 draws of
    # theta | y by chains from the prior; the rank of theta among them is uniform on 0..99, here in 20 bins.
    n, draws, precision = 1000, 99, 5.0
    theta = noise.normal((n, 1), seed=1, stream=Stream.DATA)
    y = theta + 0.5 * noise.normal((n, 1), seed=2, stream=Stream.DATA)
    at = (4 * y / precision).repeat_interleave(draws, 0)
    x = start(n * draws, 1, seed=3)
    run: dict[str, Any] = {"n_steps": 25, "seed": 4}
    if sampler == "mala":
        run |= {"score_fn": lambda x: -precision * (x - at), "step_size": 0.2}
        found = fastscore.mala(lambda x: -precision * (x - at).square().sum(1) / 2, x, **run)
    else:
        found = fastscore.underdamped_langevin(lambda x: -precision * (x - at), x, step_size=0.4, friction=3.0, **run)
    ranks = (found.view(n, draws) < theta).sum(1)
    counts = torch.bincount(ranks // 5, minlength=20).double()
    chi2 = float(((counts - n / 20).square() / (n / 20)).sum())
    assert chi2 < 63.7  # chi-square with 19 degrees of freedom is beyond with probability 1e-6
