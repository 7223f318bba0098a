"""What the figures measure: the closed form beside it, and that losses with another gradient are refused."""

from __future__ import annotations

import math

import pytest
import torch

from bench.science import descent, gradients, ula
from fastscore import ScoreMLP


def test_the_law_of_langevin_is_that_of_its_recursion():
    a, var = 0.3, ula.START_VARIANCE
    for k in range(1, 30):
        var = (1 - a) ** 2 * var + 2 * a
        assert ula.variance(a, k) == pytest.approx(var, rel=1e-12)
    assert ula.variance(a, math.inf) == pytest.approx(1 / (1 - a / 2), rel=1e-12)


def test_the_losses_of_a_figure_have_one_expected_gradient(monkeypatch):
    monkeypatch.setattr(gradients, "DRAWS", 30)
    torch.manual_seed(0)
    target, net, sigma = gradients.mixture(), ScoreMLP(gradients.DIM, 32, 2), 0.1
    losses = {"denoising": gradients._denoising(sigma), "pairs": gradients._pairs(sigma)}
    moments = {name: gradients._moments(net, target, loss) for name, loss in losses.items()}
    moments["exact"] = gradients._moments(net, target, gradients._blurred(sigma))
    gradients._same_mean(moments)
    assert moments["exact"][1] < moments["denoising"][1]

    def wrong(net, x, seed):
        return 2.0 * gradients._blurred(sigma)(net, x, seed)

    with pytest.raises(ValueError, match="wrong does not have"):
        gradients._same_mean(moments | {"wrong": gradients._moments(net, target, wrong)})


def test_pairs_of_noise_are_denoising():
    net, x = ScoreMLP(gradients.DIM, 32, 2), gradients.mixture().sample(256, seed=0)
    sigma, seed = 0.1, 3
    e = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    each = [0.5 * (net(x + sign * sigma * e) + sign * e / sigma).square().sum(1).mean() for sign in (1, -1)]
    torch.testing.assert_close(gradients._pairs(sigma)(net, x, seed), sum(each) / 2)


def test_the_time_to_a_goal_is_steps_times_seconds():
    curves = {"exact": [1.0, 0.2, 0.01], "sliced": [1.0, 0.9, 0.8]}
    found = descent.summary({"steps": [0, 10, 20], "curves": curves, "seconds_per_step": {"exact": 0.5, "sliced": 0.1}})
    assert found["seconds_to"]["exact"] == {"0.3": 5.0, "0.1": 10.0, "0.05": 10.0}
    assert set(found["seconds_to"]["sliced"].values()) == {None}
