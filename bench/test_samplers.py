"""Samplers against naive eager PyTorch, as ratios of medians.

    pytest bench/test_samplers.py -s

Every round of a case runs the rivals one after another, so that a noisy machine disturbs them alike. Correctness gates
Rivals run one after another in every round of a case, so that a noisy machine disturbs them alike. Correctness gates
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore import targets
from fastscore.networks import ScoreMLP
from fastscore.ops import _cpu_build

ROUNDS = 5


def ratio(name: str, naive: Callable[[], object], ours: Callable[[], object], per: float = 1.0) -> float:
    """Median time of `naive`, times `per`, over that of `ours`."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(ROUNDS + 1):
        for kept, contender in zip(times, (naive, ours), strict=True):
            begun = time.perf_counter()
            contender()
            if run:  # the first is to warm up
                kept.append(time.perf_counter() - begun)
    found = statistics.median(times[0]) * per / statistics.median(times[1])
    print(f"\n{name}: {found:.1f}x naive eager ({torch.get_num_threads()} threads)")
    return found


def mixture_cases() -> tuple[targets.GaussianMixture, Tensor, Callable[[int], Tensor]]:
    target = targets.GaussianMixture.ring(8, radius=4.0, std=0.5)
    x = target.sample(4096, seed=0)
    angles = torch.arange(8) * (2 * torch.pi / 8)
    means = 4.0 * torch.stack([angles.cos(), angles.sin()], 1)

    def naive(n_steps: int) -> Tensor:
        y = x
        for _ in range(n_steps):
            difference = y[:, None, :] - means
            weights = torch.softmax(-2.0 * difference.square().sum(-1), -1)
            score = -4.0 * (weights[..., None] * difference).sum(1)
            y = y + 0.005 * score + 0.1 * torch.randn_like(y)
        return y

    return target, x, naive


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "no compiler"])
def test_mixture(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    target, x, naive = mixture_cases()
    if compiled and _cpu_build.library(build=True) is None:
        pytest.skip("no C compiler")
    if not compiled:
        monkeypatch.setattr(_cpu_build, "library", lambda *, build: None)

    def ours() -> Tensor:
        return fastscore.langevin_dynamics(target.score, x, step_size=0.005, n_steps=1000 if compiled else 100, seed=1)

    radius = [float(y.norm(dim=1).mean()) for y in (naive(100), ours())]
    assert abs(radius[0] - radius[1]) < 0.1
    kind = "compiled, goal 10" if compiled else "no compiler, goal 6"
    found = ratio(f"mixture of 8, 4096 chains ({kind})", lambda: naive(100), ours, 10.0 if compiled else 1.0)
    assert not compiled or found > 5.0


@pytest.mark.parametrize(("shape", "goal"), [((15_625, 64), 4.0), ((500_000, 2), 4.0), ((468_750, 64), 8.0)])
def test_one_step(shape: tuple[int, int], goal: float) -> None:
    if _cpu_build.library(build=True) is None:
        pytest.skip("no C compiler")
    x, score = torch.randn(shape), torch.randn(shape)

    def naive() -> Tensor:
        return x + 0.01 * score + 0.1414 * torch.randn_like(x)

    def ours() -> Tensor:
        return fastscore.langevin_step(x, score, step_size=0.01, seed=1, step=2)

    assert abs(float((ours() - x - 0.01 * score).std()) / 0.1414 - 1) < 0.01
    assert ratio(f"one step of {shape} (goal {goal:g})", naive, ours) > 1.0


@pytest.mark.parametrize(("n", "goal"), [(4096, 1.6), (65_536, 5.0)])
def test_network(n: int, goal: float) -> None:
    torch.manual_seed(0)
    network, x, n_steps = ScoreMLP(2, 128, 3), torch.randn(n, 2), 16_384 // n + 2

    @torch.no_grad()
    def naive() -> Tensor:
        y = x
        for _ in range(n_steps):
            y = y + 0.01 * network(y) + 0.1414 * torch.randn_like(y)
        return y

    def ours() -> Tensor:
        return fastscore.langevin_dynamics(network, x, step_size=0.01, n_steps=n_steps, seed=1)

    plain = fastscore.langevin_dynamics(lambda x: network(x), x, step_size=0.01, n_steps=n_steps, seed=1)
    torch.testing.assert_close(ours(), plain, rtol=1e-4, atol=1e-4)
    assert ratio(f"3 x 128 SiLU, {n} chains (goal {goal:g})", naive, ours) > 0.9


def test_compilation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh = type("_Found", (_cpu_build._Found,), {"library": None, "looked": False, "built": False, "work": 0})
    monkeypatch.setattr(_cpu_build, "_Found", fresh)
    monkeypatch.setenv("HOME", str(tmp_path))
    begun = time.perf_counter()
    found = _cpu_build.library(build=True)
    took = time.perf_counter() - begun
    if found is None:
        pytest.skip("no C compiler")
    print(f"\ncompilation: {took:.1f} s, once a machine")
    assert took < 15
