"""Sampling as optimisation and beyond it: a score field in the plane, learned from samples, climbed and sampled."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore import ScoreMLP, gradient_ascent, implicit_score_matching, langevin_dynamics
from fastscore.demo import pictures
from fastscore.demo.training import Trained, train
from fastscore.metrics import fisher_divergence
from fastscore.targets import GaussianMixture

EXTENT = 5.0  # the square that is drawn, and that the chains start in
MODES, RADIUS, STD = 8, 3.0, 0.5
WATCHED, FRESH = 4000, 20_000  # samples to watch the training by, and to judge it by
THIN = 5  # steps between two states that are kept of a chain
DRAWN_STEPS = 1000  # of each of the Langevin chains that are drawn


@dataclass(frozen=True)
class Settings:
    """What a run of this demonstration may vary."""

    width: int = 128
    n_steps: int = 3000
    batch: int = 1024
    learning_rate: float = 4e-3
    n_data: int = 50_000
    n_chains: int = 1000
    step_size: float = 0.02
    n_langevin: int = 4000
    n_ascent: int = 500

    @classmethod
    def fast(cls) -> Settings:
        """A few seconds' worth: every stage runs, and the pictures show what little has been learned."""
        return cls(width=32, n_steps=150, n_langevin=100, n_ascent=100)


def centres() -> Tensor:
    """The modes `[K, 2]`: evenly spaced on a circle."""
    angles = 2 * math.pi * torch.arange(MODES) / MODES
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)


def weights() -> Tensor:
    """The weights `[K]` of the modes: every other one three times as heavy."""
    return torch.tensor([1.0, 3.0] * (MODES // 2)) / (2 * MODES)


def target() -> GaussianMixture:
    """Round modes at `centres()`, weighing `weights()`."""
    return GaussianMixture(centres(), STD**2, weights().tolist())


def fit(data: Tensor, held_out: Tensor, settings: Settings) -> Trained[ScoreMLP]:
    """Learns the score from samples alone: `E [1/2 |s|^2 + tr ds/dx]`, the trace exact."""
    network = ScoreMLP(data.shape[1], settings.width, depth=2, activation="silu")

    def loss(points: Tensor) -> Tensor:
        return implicit_score_matching(network, points, trace="exact")

    return train(
        network,
        lambda: loss(data[torch.randint(len(data), (settings.batch,))]),
        lambda: loss(held_out),
        n_steps=settings.n_steps,
        learning_rate=settings.learning_rate,
        label="mixture: training",
    )


def occupancy(points: Tensor, modes: Tensor) -> Tensor:
    """Share `[K]` of the points `[..., D]` that are nearest to each of the modes `[K, D]`."""
    nearest = torch.cdist(points.reshape(-1, modes.shape[1]), modes).argmin(1)
    return torch.bincount(nearest, minlength=len(modes)) / len(nearest)


def run(seed: int, settings: Settings) -> tuple[dict[str, Any], pictures.PlanePictures]:
    """Trains, climbs and samples; returns what is to be reported and what is to be drawn."""
    truth = target()
    parts = [settings.n_data, WATCHED, FRESH]
    data, watched, fresh = truth.sample(sum(parts), seed=seed).split(parts)
    began = time.perf_counter()
    trained = fit(data, watched, settings)
    network = trained.network
    fitted = time.perf_counter()
    fresh = truth.sample(20_000, seed=seed + 2)
    start = EXTENT * (2 * torch.rand(settings.n_chains, truth.dim) - 1)
    ascent = gradient_ascent(
        network, start, step_size=settings.step_size, n_steps=settings.n_ascent, thin=THIN, return_trajectory=True
    )
    langevin = langevin_dynamics(
        network, start, step_size=settings.step_size, n_steps=settings.n_langevin, thin=THIN, return_trajectory=True,
        seed=seed, progress=True,
    )  # fmt: skip
    assert isinstance(ascent, Tensor) and isinstance(langevin, Tensor)
    seconds = {"training": fitted - began, "sampling": time.perf_counter() - fitted}
    ascent, langevin = (torch.cat([start[:, None], path], dim=1) for path in (ascent, langevin))
    late = langevin[:, langevin.shape[1] // 2 :]
    shares = {
        "true weight": weights(),
        "gradient ascent": occupancy(ascent[:, -1], centres()),
        "Langevin dynamics": occupancy(late, centres()),
    }
    report = {
        "settings": asdict(settings),
        "relative_fisher_divergence": float(fisher_divergence(network, truth, fresh, relative=True)),
        "final_loss": {"training": trained.recent_loss(), "held_out": trained.checkpoints[-1][1]},
        "ascent_on_a_mode": float((torch.cdist(ascent[:, -1], centres()).amin(1) < STD / 4).float().mean()),
        "ascent_modes_found": int((shares["gradient ascent"] > 0).sum()),
        "shares": {label: share.tolist() for label, share in shares.items()},
        "langevin_total_variation": float((shares["Langevin dynamics"] - shares["true weight"]).abs().sum() / 2),
        "seconds": seconds,
    }
    return report, _shown(truth, network, ascent, langevin, shares)


def _shown(
    truth: GaussianMixture, network: ScoreMLP, ascent: Tensor, langevin: Tensor, shares: dict[str, Tensor]
) -> pictures.PlanePictures:
    arrows, fine = _grid(21, 0.92 * EXTENT), _grid(200, EXTENT)
    with torch.no_grad():
        learned = network(arrows.flatten(0, 1)).view_as(arrows)
    return pictures.PlanePictures(
        extent=EXTENT,
        density=truth.log_prob(fine.flatten(0, 1)).exp().view(fine.shape[:2]).numpy(),
        grid=arrows.numpy(),
        true=truth.score(arrows.flatten(0, 1)).view_as(arrows).numpy(),
        learned=learned.numpy(),
        modes=centres().numpy(),
        ascent=ascent[:100].swapaxes(0, 1).numpy(),
        langevin=langevin[:3, : 1 + DRAWN_STEPS // THIN].swapaxes(0, 1).numpy(),
        cloud=langevin[:, -1].numpy(),
        weights={label: share.numpy() for label, share in shares.items()},
    )


def _grid(n: int, reach: float) -> Tensor:
    """Points `[n, n, 2]` of a square from -reach to reach, rows along the second coordinate."""
    ticks = torch.linspace(-reach, reach, n)
    return torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1)


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    on_a_mode, found = report["ascent_on_a_mode"], report["ascent_modes_found"]
    return f"""\
mixture: {MODES} modes in the plane, every other one three times as heavy
  relative Fisher divergence of the learned score: {report["relative_fisher_divergence"]:.4f}
  gradient ascent: {on_a_mode:.1%} of the chains end on a mode; {found} modes found
  Langevin dynamics: total variation between shares and weights of the modes {report["langevin_total_variation"]:.3f}"""
