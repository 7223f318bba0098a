"""The training loop that both demonstrations share."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

Network = TypeVar("Network", bound=nn.Module)

WARM_UP = 200  # steps over which the learning rate rises
AVERAGING = 0.999  # decay of the averaged weights, reached once training is 10 000 steps old
CHECKPOINTS = 50  # points on the held-out curve of a long run


@dataclass(frozen=True)
class Trained(Generic[Network]):
    """A trained network and how it got there."""

    network: Network  # the running average of the weights, which samples better than the last ones
    losses: list[float]  # one a step
    checkpoints: list[tuple[int, float]]  # (step, held-out loss)

    def recent_loss(self) -> float:
        """Mean over the last 100 steps."""
        return fmean(self.losses[-100:])


def train(
    network: Network,
    loss: Callable[[], Tensor],
    held_out_loss: Callable[[], Tensor],
    *,
    n_steps: int,
    learning_rate: float,
    label: str,
) -> Trained[Network]:
    """Minimises `loss()` by Adam with a cosine schedule, keeping an exponential average of the weights.

    Args:
        network: Trained in place.
        loss: Draws a batch and returns its mean loss through `network`.
        held_out_loss: The same on data that are not trained on, called now and then and never differentiated.
        n_steps: Batches.
        learning_rate: The largest of the schedule.
        label: Names the progress bar.
    """
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    losses: list[float] = []
    checkpoints: list[tuple[int, float]] = []
    every = max(20, n_steps // CHECKPOINTS)
    bar = tqdm(range(n_steps), desc=label, unit="step", mininterval=0.5)
    for step in bar:
        for group in optimiser.param_groups:
            warm = min(1.0, (step + 1) / WARM_UP)
            group["lr"] = learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / n_steps))
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
        # A young average forgets fast, so that the random weights of the start leave no trace in it.
        decay = min(AVERAGING, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        losses.append(value.item())
        if (step + 1) % every == 0 or step + 1 == n_steps:
            with torch.no_grad():
                checkpoints.append((step + 1, held_out_loss().item()))
            bar.set_postfix_str(f"loss {fmean(losses[-100:]):.3f}, held out {checkpoints[-1][1]:.3f}", refresh=False)
    return Trained(average, losses, checkpoints)
