"""Handwritten digits: a noise-conditional score network trained by exact implicit score matching, then sampled."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from fastscore import ScoreMLP, annealed_langevin_dynamics, implicit_score_matching, noise
from fastscore.demo import ladder, pictures
from fastscore.demo.quality import PRESENT, Quality, assess
from fastscore.demo.training import Trained, train

LEVELS = 16  # a pixel is a whole number from 0 to 16
WATCHED = 4  # noise levels at which a held-out digit is watched during training
DRAWN = 8  # chains whose way down the ladder is drawn


@dataclass(frozen=True)
class Settings:
    """What a run of this demonstration may vary."""

    width: int = 256
    n_steps: int = 6000
    batch: int = 256
    learning_rate: float = 4e-3
    smallest_sigma: float = 0.05  # less than half of the distance 1/8 between two grey levels
    n_steps_each: int = 60
    n_samples: int = 1000
    n_held_out: int = 500

    @classmethod
    def fast(cls) -> Settings:
        """A few seconds' worth: every stage runs, and the pictures show what little has been learned."""
        return cls(width=64, n_steps=150, n_steps_each=5, n_samples=300, n_held_out=200)


class Digits(NamedTuple):
    """Scikit-learn's 1797 digits of 8 x 8 pixels, split at random with every class in proportion."""

    train: Tensor  # [N, 64] in [-1, 1]
    train_labels: NDArray[np.int64]
    held_out: Tensor
    held_out_labels: NDArray[np.int64]


class NoiseConditionalScore(nn.Module):
    """The score of data of standard deviation d under noise of standard deviation sigma.

    `s(x, sigma) = d / (sigma r) net(x / r, log sigma) - x / r^2`, `r^2 = sigma^2 + d^2`, for centred x `[B, D]` and
    sigma `[B]` (or one for the batch). The second term is the score that Gaussian data would have; the factors keep
    what the network sees, and what it has to say, of order one at every noise level (Karras et al., Elucidating the
    Design Space of Diffusion-Based Generative Models, NeurIPS 2022, equation 7, written for the score).
    """

    def __init__(self, dim: int, width: int, spread: float) -> None:
        super().__init__()
        self.net = ScoreMLP(dim, width, depth=2, activation="silu", cond_dim=1)
        self.spread = spread

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns the score at x, shaped like x."""
        sigma = sigma.reshape(-1, 1)
        r = (sigma.square() + self.spread**2).sqrt()
        score: Tensor = self.spread / (sigma * r) * self.net(x / r, sigma.log()) - x / r.square()
        return score


def load(n_held_out: int, seed: int) -> Digits:
    """Loads the digits, scaled to [-1, 1], and holds `n_held_out` of them out."""
    images, labels = load_digits(return_X_y=True)
    train_images, held_out, train_labels, held_out_labels = train_test_split(
        images, labels, test_size=n_held_out, stratify=labels, random_state=seed % 2**32
    )
    as_tensor = [torch.tensor(2 * part / LEVELS - 1, dtype=torch.float32) for part in (train_images, held_out)]
    return Digits(as_tensor[0], train_labels, as_tensor[1], held_out_labels)


def to_grey(images: Tensor) -> NDArray[np.float64]:
    """Images in [-1, 1] as grey from 0 (paper) to 16 (ink)."""
    grey: NDArray[np.float64] = ((images.clamp(-1, 1) + 1) * LEVELS / 2).double().numpy()
    return grey


def to_pixels(images: Tensor) -> NDArray[np.float64]:
    """Images in [-1, 1] as pixels 0, 1, .. 16: to the nearest grey level that the data have."""
    return np.round(to_grey(images))


def fit(data: Digits, centre: Tensor, sigmas: Tensor, settings: Settings) -> Trained[NoiseConditionalScore]:
    """Trains by `E sigma^2 (1/2 |s|^2 + tr ds/dx)` at `x + sigma e`, sigma drawn from the ladder, the trace exact.

    No term holds the noise e or the clean x: the network is told where the noisy points are, not where they came from.
    """
    spread = float((data.train - centre).square().mean().sqrt())
    network = NoiseConditionalScore(data.train.shape[1], settings.width, spread)

    def noisy(images: Tensor, sigma: Tensor) -> Tensor:
        return images - centre + sigma.unsqueeze(1) * torch.randn_like(images)

    def loss(points: Tensor, sigma: Tensor) -> Tensor:
        losses = implicit_score_matching(network, points, cond=sigma, trace="exact", reduction="none")
        return (sigma.square() * losses).mean()

    def loss_of_a_batch() -> Tensor:
        sigma = sigmas[torch.randint(len(sigmas), (settings.batch,))]
        return loss(noisy(data.train[torch.randint(len(data.train), (settings.batch,))], sigma), sigma)

    # Always the same points, levels in turn, so that the held-out curve moves with the network alone.
    watched_sigma = sigmas.repeat(len(data.held_out))[: WATCHED * len(data.held_out)]
    watched = noisy(data.held_out.repeat(WATCHED, 1), watched_sigma)
    return train(
        network,
        loss_of_a_batch,
        lambda: loss(watched, watched_sigma),
        n_steps=settings.n_steps,
        learning_rate=settings.learning_rate,
        label="digits: training",
    )


def sample(network: NoiseConditionalScore, sigmas: Tensor, settings: Settings, seed: int) -> tuple[Tensor, Tensor]:
    """Annealed Langevin dynamics from pure noise: centred samples `[N, D]`, and states `[DRAWN, levels + 1, D]`.

    The states are those of the first chains at the end of every level, and last their sample. They come from a second
    run: chains do not depend on their batch, so it goes the same way.
    """
    dim = network.net.dim
    start = sigmas[0] * noise.normal((settings.n_samples, dim), seed=seed, stream=noise.Stream.INITIAL)
    each = settings.n_steps_each
    step_size = ladder.step_size(sigmas, each)
    samples = annealed_langevin_dynamics(
        network, start, sigmas=sigmas, n_steps_each=each, step_size=step_size, seed=seed, progress=True
    )
    states = annealed_langevin_dynamics(
        network, start[:DRAWN], sigmas=sigmas, n_steps_each=each, step_size=step_size, seed=seed,
        thin=each, return_trajectory=True,
    )  # fmt: skip
    assert isinstance(samples, Tensor) and isinstance(states, Tensor)
    return samples, torch.cat([states, samples[:DRAWN, None]], dim=1)


def run(seed: int, settings: Settings) -> tuple[dict[str, Any], pictures.DigitPictures]:
    """Trains, samples and judges; returns what is to be reported and what is to be drawn."""
    data = load(settings.n_held_out, seed)
    centre = data.train.mean(0)
    sigmas = ladder.noise_ladder(ladder.widest(data.train), settings.smallest_sigma, data.train.shape[1])
    began = time.perf_counter()
    trained = fit(data, centre, sigmas, settings)
    fitted = time.perf_counter()
    samples, states = sample(trained.network, sigmas, settings, seed)
    sampled = time.perf_counter()
    pixels, real = to_pixels(samples + centre), to_pixels(data.held_out)
    quality = assess(pixels, to_pixels(data.train), data.train_labels, real, data.held_out_labels, seed)
    report = {
        "settings": asdict(settings),
        "sigmas": sigmas.tolist(),
        "final_loss": {"training": trained.recent_loss(), "held_out": trained.checkpoints[-1][1]},
        "quality": asdict(quality),
        "seconds": {
            "training": fitted - began,
            "sampling": sampled - fitted,
            "judging": time.perf_counter() - sampled,
        },
    }
    # Faded by as much as the noise at their level would spoil the contrast.
    contrast = (1 + 4 * torch.cat([sigmas, sigmas.new_zeros(1)]).square()).rsqrt()
    drawn = to_grey((contrast[:, None] * (states + centre)).swapaxes(0, 1))
    shown = pictures.DigitPictures(real, pixels, drawn, sigmas.numpy(), trained.losses, trained.checkpoints)
    return report, shown


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    settings, quality = Settings(**report["settings"]), Quality(**report["quality"])
    shares = " ".join(f"{100 * share:.0f}" for share in quality.class_shares)

    def accuracies(of: dict[str, float]) -> str:
        return ", ".join(f"{100 * value:.0f}% ({name.replace('_', ' ')})" for name, value in of.items())

    return f"""\
digits: {settings.n_samples} samples against {settings.n_held_out} held-out digits
  classes present: {quality.classes_present} of 10 (at {PRESENT:.0%} of the samples or more); 0 to 9 in %: {shares}
    judged by a classifier that is right on {quality.classifier_accuracy:.1%} of the held-out digits
  median distance to the nearest training digit, samples over held-out: {quality.distance_ratio:.3f}
    nearer to one than 99% of the held-out digits: {quality.memorised_share:.1%} of the samples (new digits: 1%)
  told from held-out digits with accuracy {accuracies(quality.two_sample_accuracy)}
    training digits told from held-out ones: {accuracies(quality.two_sample_baseline)}"""
