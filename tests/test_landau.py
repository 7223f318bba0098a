"""The Landau example: its exact solution, its collisions, and a short solve against that solution."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def landau() -> ModuleType:
    pytest.importorskip("matplotlib")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import landau

        return landau


def test_the_exact_solution_solves_the_equation(landau):
    exact, t, h = landau.bkw, 1.3, 1e-4
    r = torch.linspace(0.1, 4, 40, dtype=torch.float64)

    def flux(r):  # r times the radial part of f U
        v = torch.stack([r, torch.zeros_like(r)], 1)
        return r * exact.density(t, r) * exact.velocity(t, v)[:, 0]

    change = (exact.density(t + h, r) - exact.density(t - h, r)) / (2 * h)
    torch.testing.assert_close(change, -(flux(r + h) - flux(r - h)) / (2 * h) / r, rtol=0, atol=1e-8)
    slope = (exact.density(t, r + h).log() - exact.density(t, r - h).log()) / (2 * h)
    torch.testing.assert_close(exact.score(t, torch.stack([r, 0 * r], 1))[:, 0], slope, rtol=0, atol=1e-6)

    grid = torch.linspace(0, 12, 20_001, dtype=torch.float64)
    shells = 2 * math.pi * grid * exact.density(t, grid)
    for power, moment in ((0, 1.0), (2, 2.0), (4, exact.fourth_moment(t))):
        assert float(torch.trapezoid(shells * grid**power, grid)) == pytest.approx(moment, abs=1e-7)


@pytest.mark.parametrize("dim", [2, 3])
def test_collisions_by_moments_are_the_sum_over_pairs(landau, dim):
    generator = torch.Generator().manual_seed(0)
    v, s = torch.randn(2, 300, dim, dtype=torch.float64, generator=generator) + 0.5
    z, g = v.unsqueeze(1) - v, s.unsqueeze(1) - s
    pairs = z.square().sum(2, keepdim=True) * g - z * (z * g).sum(2, keepdim=True)
    torch.testing.assert_close(landau.collide(v, s), -pairs.mean(1) / 16, rtol=1e-12, atol=1e-12)


def test_collisions_of_the_exact_score_are_the_exact_velocity(landau):
    v = landau.quiet_start(4000)
    exact = landau.bkw.velocity(0.0, v)
    found = landau.collide(v, landau.bkw.score(0.0, v))
    assert float((found - exact).norm() / exact.norm()) < 0.01


def test_any_score_conserves_momentum_and_energy(landau):
    generator = torch.Generator().manual_seed(1)
    v, s = torch.randn(2, 500, 2, dtype=torch.float64, generator=generator)
    moved = landau.advance(v, s, dt=0.5)
    assert float((moved - v).norm() / v.norm()) > 0.01
    torch.testing.assert_close(moved.mean(0), v.mean(0), rtol=0, atol=1e-14)
    torch.testing.assert_close(moved.square().sum(), v.square().sum(), rtol=1e-14, atol=0)


def test_a_quick_solve_follows_the_exact_solution(landau, tmp_path):
    results = landau.main(["--quick", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "landau.json").read_text()) == results
    assert (tmp_path / "landau.png").stat().st_size > 10_000

    assert results["timing"]["disagreement"] < 1e-13  # of gradients in float64
    history = results["solution"]["history"]
    assert max(history["momentum"]) - min(history["momentum"]) < 1e-14
    assert max(history["energy"]) - min(history["energy"]) < 1e-13
    assert max(history["score_error"]) < 0.2
    for t, moment, entropy in zip(history["t"], history["fourth_moment"], history["entropy"], strict=True):
        assert moment == pytest.approx(landau.bkw.fourth_moment(t), rel=0.01)
        assert entropy == pytest.approx(landau.bkw.entropy(t), abs=0.01)


def test_a_picture_of_no_record_is_refused(landau, tmp_path, capsys):
    with pytest.raises(SystemExit):
        landau.main(["--part", "picture", "--out", str(tmp_path)])
    assert "which is not there" in capsys.readouterr().err and not list(tmp_path.iterdir())
