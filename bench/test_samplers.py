"""Samplers against naive eager PyTorch and torch.compile, as ratios of medians.

    pytest bench/test_samplers.py -s

Contenders take turns in every round. Correctness gates the timing: one that does not give the law is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastscore
from bench import clock
from fastscore import targets
from fastscore.networks import ScoreMLP
from fastscore.ops import _cpu_build

ANGLES = torch.arange(8) * (2 * torch.pi / 8)
MEANS = 4.0 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def mixture_step(y: Tensor) -> Tensor:
    """A step towards eight modes, as one writes it."""
    difference = y[:, None, :] - MEANS
    weights = torch.softmax(-2.0 * difference.square().sum(-1), -1)
    score = -4.0 * (weights[..., None] * difference).sum(1)
    return y + 0.005 * score + 0.1 * torch.randn_like(y)


@torch.no_grad()
def chain_of(step: Callable[[Tensor], Tensor], x: Tensor, n_steps: int) -> Tensor:
    for _ in range(n_steps):
        x = step(x)
    return x


def mixture_cases() -> tuple[targets.GaussianMixture, Tensor, Callable[[int], Tensor]]:
    target = targets.GaussianMixture.ring(8, radius=4.0, std=0.5)
    x = target.sample(4096, seed=0)
    return target, x, lambda n_steps: chain_of(mixture_step, x, n_steps)


@pytest.mark.parametrize("compiler", [True, False], ids=["compiler", "no compiler"])
def test_mixture(compiler: bool, benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    target, x, naive = mixture_cases()
    if compiler and _cpu_build.library(build=True) is None:
        pytest.skip("no C compiler")
    if not compiler:
        monkeypatch.setattr(_cpu_build, "library", lambda *, build: None)
    n_steps = 1000 if compiler else 100

    def ours() -> Tensor:
        return fastscore.langevin_dynamics(target.score, x, step_size=0.005, n_steps=n_steps, seed=1)

    radius = [float(y.norm(dim=1).mean()) for y in (naive(100), ours())]
    assert abs(radius[0] - radius[1]) < 0.1
    label = "2-D mixture of 8, 4096 chains" + ("" if compiler else ", no C compiler")
    contenders: dict[str, clock.Contender] = {"naive eager": lambda: naive(100), "fastscore": ours}
    work = {"naive eager": 100.0, "fastscore": float(n_steps)}
    if compiler:
        step = torch.compile(mixture_step)
        contenders["torch.compile"] = lambda: chain_of(step, x, 100)
        work["torch.compile"] = 100.0
    ratios = clock.compare(label, clock.race(contenders, benchmark, rounds=5), base="naive eager", work=work)
    benchmark.extra_info.update(ratios, goal=1 / 10 if compiler else 1 / 6)


@pytest.mark.parametrize(("shape", "goal"), [((15_625, 64), 4.0), ((500_000, 2), 4.0), ((468_750, 64), 8.0)])
def test_one_step(shape: tuple[int, int], goal: float, benchmark) -> None:
    if _cpu_build.library(build=True) is None:
        pytest.skip("no C compiler")
    x, score = torch.randn(shape), torch.randn(shape)

    def naive() -> Tensor:
        return x + 0.01 * score + 0.1414 * torch.randn_like(x)

    def ours() -> Tensor:
        return fastscore.langevin_step(x, score, step_size=0.01, seed=1, step=2)

    assert abs(float((ours() - x - 0.01 * score).std()) / 0.1414 - 1) < 0.01
    contenders = {"naive eager": naive, "fastscore": ours, "torch.compile": torch.compile(naive)}
    times = clock.race(contenders, benchmark, rounds=5)
    ratios = clock.compare(f"one step of {shape[0]} x {shape[1]}", times, base="naive eager")
    benchmark.extra_info.update(ratios, goal=1 / goal)


@pytest.mark.parametrize(("n", "goal"), [(4096, 1.6), (65_536, 5.0)])
def test_network(n: int, goal: float, benchmark) -> None:
    torch.manual_seed(0)
    network, x, n_steps = ScoreMLP(2, 128, 3), torch.randn(n, 2), 16_384 // n + 2

    def step(y: Tensor) -> Tensor:
        return y + 0.01 * network(y) + 0.1414 * torch.randn_like(y)

    compiled = torch.compile(step)

    def ours() -> Tensor:
        return fastscore.langevin_dynamics(network, x, step_size=0.01, n_steps=n_steps, seed=1)

    plain = fastscore.langevin_dynamics(lambda x: network(x), x, step_size=0.01, n_steps=n_steps, seed=1)
    torch.testing.assert_close(ours(), plain, rtol=1e-4, atol=1e-4)
    contenders = {
        "naive eager": lambda: chain_of(step, x, n_steps),
        "fastscore": ours,
        "torch.compile": lambda: chain_of(compiled, x, n_steps),
    }
    times = clock.race(contenders, benchmark, rounds=5)
    ratios = clock.compare(f"3 x 128 SiLU network, {n} chains", times, base="naive eager")
    benchmark.extra_info.update(ratios, goal=1 / goal)


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
