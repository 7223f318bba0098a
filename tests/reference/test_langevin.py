"""The Langevin step against its formula and the exact law of its chain."""

from __future__ import annotations

import math

import pytest
import torch

from fastscore.reference.langevin import langevin_step


def test_formula():
    x, score, noise = torch.randn(3, 5, 4, dtype=torch.float64)
    made = langevin_step(x, score, torch.tensor(0.3), torch.tensor(2.0), noise)
    a = float(torch.tensor(0.3))
    torch.testing.assert_close(made, x + a * score + math.sqrt(2 * a * 2.0) * noise, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    x, score = torch.randn(2, 5, 4).to(dtype)
    noise = torch.randn(5, 4)
    a, t = torch.tensor(0.3), torch.tensor(1.0)
    exact = langevin_step(x.float(), score.float(), a, t, noise)
    assert torch.equal(langevin_step(x, score, a, t, noise), exact.to(dtype))


def test_a_step_size_a_feature():
    x, score, noise = torch.randn(3, 5, 4, dtype=torch.float64)
    a = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    made = langevin_step(x, score, a, torch.tensor(1.0), noise)
    for d in range(4):
        one = langevin_step(x[:, d], score[:, d], a[d], torch.tensor(1.0), noise[:, d])
        assert torch.equal(made[:, d], one)
