"""The diagnostics alarm on stuck, shifted and duplicated chains, and stay quiet on good ones."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore import noise, targets

pytest.importorskip("arviz")


def good(b: int = 8, n: int = 500, event: tuple[int, ...] = (2,), seed: int = 0) -> Tensor:
    """Independent draws: `[b, n, *event]`."""
    return noise.normal((b, n, *event), seed=seed, stream=noise.Stream.DATA)


@pytest.mark.parametrize("seed", range(10))
def test_independent_draws_raise_no_alarm(seed: int) -> None:
    found = fastscore.diagnose(good(seed=seed))
    assert found.problems() == []
    assert float((found.r_hat - 1).abs().max()) < 0.01
    assert float((found.ess_bulk / 4000 - 1).abs().max()) < 0.2 and float((found.ess_tail / 4000 - 1).abs().max()) < 0.3


def test_r_hat_is_its_formula_and_the_sizes_are_those_of_an_autoregression() -> None:
    # Without ranks, R-hat^2 = (n - 1)/n + B/(n W) over half chains; an AR(1) chain has n (1 - rho) / (1 + rho) draws.
    rho, noises = 0.6, good(4, 20000, (1,))
    path = torch.empty_like(noises)
    state = noises[:, 0]
    for t in range(noises.shape[1]):
        state = rho * state + math.sqrt(1 - rho**2) * noises[:, t]
        path[:, t] = state
    found = fastscore.diagnose(path)
    assert float(found.ess_bulk) == pytest.approx(80000 * (1 - rho) / (1 + rho), rel=0.1)
    ranks = path.flatten().argsort().argsort().double().add(1 - 0.375).div(path.numel() + 0.25)
    z = torch.distributions.Normal(0.0, 1.0).icdf(ranks).view(8, 10000)
    n, between, within = 10000, z.mean(1).var() * 10000, z.var(1).mean()
    assert float(found.r_hat) >= float(((n - 1) / n + between / (n * within)).sqrt()) - 1e-9
    assert float(found.r_hat) < 1.01


@pytest.mark.parametrize("shift", [0.5, -2.0, 100.0])
def test_a_shifted_chain_is_an_alarm(shift: float) -> None:
    path = good()
    path[3, :, 1] += shift
    found = fastscore.diagnose(path)
    assert float(found.r_hat[0]) < 1.01 < float(found.r_hat[1])
    assert any("chains disagree" in problem for problem in found.problems())


def test_a_chain_that_drifts_is_an_alarm() -> None:
    path = good()
    path[:, 250:] += 0.5
    assert any("chains disagree" in problem for problem in fastscore.diagnose(path).problems())


def test_a_stuck_chain_is_an_alarm() -> None:
    path = good()
    path[5] = path[5, 0]
    found = fastscore.diagnose(path)
    assert found.stuck.tolist() == [b == 5 for b in range(8)]
    assert "1 of 8 chains stuck, first chain 5" in found.problems()
    path[5, 250, 0] += 1  # one move in five hundred: no longer stuck, but R-hat sees it
    found = fastscore.diagnose(path)
    assert not found.stuck.any() and any("chains disagree" in problem for problem in found.problems())


def test_a_copy_of_a_chain_is_an_alarm() -> None:
    path = good()
    path[6], path[7] = path[2], path[2]
    found = fastscore.diagnose(path)
    assert found.duplicated.tolist() == [b in (6, 7) for b in range(8)]
    assert found.problems() == ["2 of 8 chains duplicated, first chain 6"]


def test_two_ranks_with_one_seed_and_no_first_chain_are_found() -> None:
    target, x = targets.Gaussian([0.0], 1.0), torch.zeros(3, 1)
    run: dict[str, Any] = {"step_size": 0.5, "n_steps": 100, "seed": 1, "return_trajectory": True}
    wrong = torch.cat([fastscore.langevin_dynamics(target, x, **run) for _ in range(2)])
    right = torch.cat([fastscore.langevin_dynamics(target, x, first_chain=f, **run) for f in (0, 3)])
    assert fastscore.diagnose(wrong).duplicated.tolist() == [False] * 3 + [True] * 3
    assert not fastscore.diagnose(right).duplicated.any()


def test_chains_that_are_not_finite_are_flagged_and_left_out() -> None:
    path = good()
    expected = fastscore.diagnose(path[1:])
    path[0, 400:, 1] = math.nan
    found = fastscore.diagnose(path)
    assert found.nonfinite.tolist() == [True] + [False] * 7
    assert torch.equal(found.r_hat, expected.r_hat) and torch.equal(found.ess_bulk, expected.ess_bulk)
    assert fastscore.diagnose(path[:1]).r_hat.isnan().all()
    frozen = fastscore.diagnose(good(), {"first_nonfinite": torch.tensor([-1, 7] + [-1] * 6)})
    assert "1 of 8 chains nonfinite, first chain 1" in frozen.problems()


def test_too_few_draws_are_an_alarm() -> None:
    problems = fastscore.diagnose(good(2, 40)).problems()
    assert any(problem.startswith("ess_bulk is down to") for problem in problems)


def test_a_samplers_outputs_are_taken_as_they_are() -> None:
    target, x = targets.Gaussian([0.0, 1.0], 1.0), targets.Gaussian([0.0, 1.0], 1.0).sample(32, seed=0)
    run: dict[str, Any] = {"thin": 4, "seed": 1, "return_trajectory": True, "return_diagnostics": True}
    found = fastscore.diagnose(*fastscore.mala(target, x, step_size=0.8, n_steps=600, **run))
    assert found.problems() == [] and found.r_hat.shape == (2,)
    assert found.acceptance_rate is not None and found.acceptance_rate.shape == (32,)
    refused = fastscore.diagnose(*fastscore.mala(target, x, step_size=20.0, n_steps=100, **run)).problems()
    assert any("32 of 32 chains accept fewer than 10%" in problem for problem in refused)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"shape \[B, n, \*event\] with n at least 4, got \[8, 3, 2\]"):
        fastscore.diagnose(good(8, 3))
    with pytest.raises(ValueError, match=r"n at least 4, got \[8, 100\]"):
        fastscore.diagnose(good(8, 100, ()))
    with pytest.raises(ValueError, match="the batch is empty"):
        fastscore.diagnose(good()[:0])
    with pytest.raises(TypeError, match="trajectory must be a floating point tensor"):
        fastscore.diagnose(torch.zeros(2, 5, 1, dtype=torch.int64))
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match='diagnose needs ArviZ, which is not installed: install the extra "diagn'):
        fastscore.diagnose(good())


def test_a_feature_that_never_moves_is_an_alarm(caplog: pytest.LogCaptureFixture) -> None:
    path = good()
    path[:, :, 1] = 3.0
    found = fastscore.diagnose(path)
    assert found.unmoved.tolist() == [False, True] and found.r_hat.isnan().tolist() == [False, True]
    assert found.problems() == ["1 of 2 features never move, first feature [1]"]
    path[:, :, 1] = torch.arange(8.0)[:, None]  # a value a chain
    assert fastscore.diagnose(path).unmoved.tolist() == [False, True]
    path[0, 100, 1] += 1
    assert not fastscore.diagnose(path).unmoved.any()
    path[0, 101, 1] = math.nan  # a chain that is left out
    assert fastscore.diagnose(path).unmoved.tolist() == [False, True]
    path[:, 101, 1] = math.nan
    assert not fastscore.diagnose(path).unmoved.any()
    assert not caplog.records


def test_agreement_that_cannot_be_known_is_an_alarm(caplog: pytest.LogCaptureFixture) -> None:
    found = fastscore.diagnose(good(1, 4000))
    assert found.r_hat.isnan().all() and found.problems() == [
        "r_hat needs 2 finite chains, got 1: whether chains agree is not known"
    ]
    assert not caplog.records  # of ArviZ, which says so in its own words
    unknown = fastscore.diagnose(good())._replace(r_hat=torch.tensor([1.0, math.nan]))
    assert unknown.problems() == ["r_hat is not a number for 1 of 2 features"]
