"""The demonstrations: judges on inputs whose verdict is known, the ladder against closed forms, a run end to end."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from fastscore.demo import digits, ladder, mixture, pictures
from fastscore.demo.quality import Quality, assess, nearest_distances, two_sample_accuracy
from fastscore.demo.training import train


@pytest.fixture(scope="module")
def data() -> digits.Digits:
    return digits.load(500, seed=0)


def test_split_is_disjoint_in_proportion_and_scaled(data: digits.Digits) -> None:
    assert data.train.shape == (1297, 64) and data.held_out.shape == (500, 64)
    assert data.train.min() == -1 and data.train.max() == 1
    assert set(np.bincount(data.held_out_labels)) <= set(range(48, 52))
    assert nearest_distances(data.held_out.numpy(), data.train.numpy()).min() > 0.3  # no digit is in both


def test_pixels_round_trip(data: digits.Digits) -> None:
    pixels = digits.to_pixels(data.held_out)
    assert set(np.unique(pixels)) == set(range(17))
    np.testing.assert_array_equal(digits.to_pixels(data.held_out + 0.06), pixels)  # less than half a grey level
    assert digits.to_pixels(torch.tensor([[-3.0, 3.0]])).tolist() == [[0.0, 16.0]]


def test_real_digits_pass_for_real(data: digits.Digits) -> None:
    real, train_images = digits.to_pixels(data.held_out), digits.to_pixels(data.train)
    quality = assess(real[:250], train_images, data.train_labels, real[250:], data.held_out_labels[250:])
    assert quality.classifier_accuracy > 0.97
    assert quality.classes_present == 10
    assert quality.distance_ratio == pytest.approx(1.0, abs=0.08)
    assert quality.memorised_share < 0.05
    # 250 against 250: chance has a standard deviation of 2 to 3%
    assert all(0.4 < value < 0.6 for value in quality.two_sample_accuracy.values())
    assert all(0.4 < value < 0.6 for value in quality.two_sample_baseline.values())


def test_noise_memories_and_one_class_are_found_out(data: digits.Digits) -> None:
    real, train_images = digits.to_pixels(data.held_out[:100]), digits.to_pixels(data.train)

    def judged(samples: np.ndarray) -> Quality:
        return assess(samples, train_images, data.train_labels, real, data.held_out_labels[:100])

    noise = judged(np.random.default_rng(0).integers(0, 17, (100, 64)).astype(float))
    assert noise.distance_ratio > 2
    assert min(noise.two_sample_accuracy.values()) > 0.99
    copies = judged(train_images[:100])
    assert copies.distance_ratio == 0 and copies.memorised_share == 1
    sevens = judged(train_images[data.train_labels == 7])
    assert sevens.classes_present == 1
    assert sevens.class_shares[7] > 0.99 and math.isclose(sum(sevens.class_shares), 1)


def test_two_sample_accuracy_of_two_gaussians() -> None:
    """The best possible accuracy between N(-1, 1) and N(1, 1) is Phi(1) = 0.841."""
    generator = np.random.default_rng(0)
    first, second = generator.normal(-1, 1, (600, 1)), generator.normal(1, 1, (400, 1))
    accuracy = two_sample_accuracy(first, second, seed=0)
    assert accuracy["support_vectors"] == pytest.approx(0.841, abs=0.04)
    assert accuracy["random_forest"] < 0.87


@pytest.mark.parametrize("dim", [8, 64, 3072])
def test_ladder_is_geometric_and_as_coarse_as_allowed(dim: int) -> None:
    ratio = ladder.largest_ratio(dim)
    shift, phi = math.sqrt(2 * dim) * (ratio - 1), NormalDist().cdf
    assert phi(shift + 3 * ratio) - phi(shift - 3 * ratio) == pytest.approx(0.5, abs=1e-9)
    sigmas = ladder.noise_ladder(10.0, 0.05, dim).double()
    assert sigmas[0] == pytest.approx(10.0) and sigmas[-1] == pytest.approx(0.05)
    ratios = sigmas[:-1] / sigmas[1:]
    assert ratios.max() / ratios.min() - 1 < 1e-4
    assert ratios.max() <= ratio * (1 + 1e-4)
    assert (10.0 / 0.05) ** (1 / (len(sigmas) - 2)) > ratio  # one level fewer would not do


def test_as_many_levels_as_in_the_paper() -> None:
    """Song and Ermon (2020, section 3) round to 232 levels from 50 to 0.01 for images of 32 x 32 x 3 pixels."""
    assert len(ladder.noise_ladder(50.0, 0.01, 3072)) == pytest.approx(232, rel=0.06)


@pytest.mark.parametrize("n_steps_each", [5, 60])
def test_step_size_brings_the_variance_to_its_level(n_steps_each: int) -> None:
    """The law of Langevin steps on N(0, sigma_i^2) is followed by its recursion; no other step size does better."""
    sigmas = ladder.noise_ladder(9.6, 0.05, 64)
    chosen = ladder.step_size(sigmas, n_steps_each)

    def last_variance(step_size: float) -> float:
        sigma, previous = sigmas[-1].item(), sigmas[-2].item()
        variance = previous**2
        for _ in range(n_steps_each):
            variance = (1 - step_size / sigma**2) ** 2 * variance + 2 * step_size
        return variance / sigma**2

    errors = [abs(last_variance(chosen * factor) - 1) for factor in (0.8, 1.0, 1.25)]
    assert errors[1] < 0.3 if n_steps_each == 5 else errors[1] < 0.03
    assert errors[1] < min(errors[0], errors[2])


def test_widest_is_the_largest_distance() -> None:
    assert ladder.widest(torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]])) == pytest.approx(5.0)


def test_score_network_of_a_silent_net_is_the_gaussian_s() -> None:
    network = digits.NoiseConditionalScore(64, 16, spread=0.5)
    with torch.no_grad():
        for parameter in network.net.layers[-1].parameters():
            parameter.zero_()
        x, sigma = torch.randn(3, 64), torch.tensor([0.1, 1.0, 10.0])
        torch.testing.assert_close(network(x, sigma), -x / (sigma.square() + 0.25).unsqueeze(1))


def test_training_lowers_the_loss_and_averages_the_weights() -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(1, 1, bias=False)
    x = torch.linspace(-1, 1, 32).unsqueeze(1)

    def loss() -> torch.Tensor:
        return (network(x) - 2 * x).square().mean()

    trained = train(network, loss, loss, n_steps=390, learning_rate=0.05, label="line")
    assert len(trained.losses) == 390
    assert [step for step, _ in trained.checkpoints] == [*range(20, 390, 20), 390]
    assert trained.network.weight.item() == pytest.approx(2.0, abs=0.02)
    assert trained.recent_loss() == pytest.approx(sum(trained.losses[-100:]) / 100)
    assert trained.network.weight.item() != network.weight.item()


def test_mixture_is_what_it_says() -> None:
    truth, modes = mixture.target(), mixture.centres()
    assert truth.score(modes).norm(dim=1).max() < 0.02
    assert mixture.weights().sum() == pytest.approx(1.0)
    drawn = mixture.occupancy(truth.sample(40_000, seed=1), modes)
    torch.testing.assert_close(drawn, mixture.weights(), atol=0.01, rtol=0)


def test_digits_end_to_end() -> None:
    settings = replace(digits.Settings.fast(), width=16, n_steps=20, n_steps_each=2, n_samples=40, n_held_out=60)
    torch.manual_seed(0)
    report, shown = digits.run(1, settings)
    assert len(shown.losses) == 20
    assert shown.real.shape == (60, 64) and shown.sampled.shape == (40, 64)
    assert shown.states.shape == (len(report["sigmas"]) + 1, digits.DRAWN, 64)
    assert np.isfinite(shown.states).all()
    assert sum(report["quality"]["class_shares"]) == pytest.approx(1.0)
    assert "of 10" in digits.summary(report)


def test_states_on_the_way_are_those_of_the_samples() -> None:
    torch.manual_seed(0)
    network = digits.NoiseConditionalScore(64, 16, spread=0.5)
    sigmas = torch.tensor([2.0, 1.0, 0.5])
    settings = replace(digits.Settings.fast(), n_steps_each=3, n_samples=20)
    samples, states = digits.sample(network, sigmas, settings, seed=3)
    with torch.no_grad():
        last = states[:, -2]
        denoised = last + 0.25 * network(last, sigmas[-1])
    torch.testing.assert_close(denoised, samples[: digits.DRAWN])


def test_mixture_learns_in_a_second() -> None:
    settings = replace(mixture.Settings.fast(), n_steps=20, n_langevin=20, n_ascent=20, n_chains=200)
    torch.manual_seed(0)
    report, plane = mixture.run(1, settings)
    assert 0 < report["relative_fisher_divergence"] < 1.5
    assert plane.langevin.shape[1:] == (3, 2)
    assert plane.true.shape == plane.learned.shape == plane.grid.shape
    for shares in report["shares"].values():
        assert sum(shares) == pytest.approx(1.0)


def test_tiles_keep_every_image_upright() -> None:
    images = np.arange(4 * 64, dtype=float).reshape(4, 64)
    sheet = pictures._tiles(images, 2, 2, -1.0)
    assert sheet.shape == (20, 20)
    np.testing.assert_array_equal(sheet[11:19, 1:9], images[2].reshape(8, 8))
    assert (sheet[0] == -1).all() and (sheet[:, 10] == -1).all()
