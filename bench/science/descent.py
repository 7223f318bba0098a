"""Training from scratch with every loss: the relative Fisher divergence against the time it took.

The seconds of a step (loss and backward) are those that `python -m bench` measured on a quiet machine for the same
network, batch and loss; training itself may run anywhere.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastscore
from bench.science.gradients import DEPTH, DIM, IMPLICIT, WIDTH, Loss, mixture, step_seconds
from fastscore import ScoreMLP, metrics

BATCH = 4096
STEPS, EVERY, RATE = 250, 10, 3e-3
GOALS = (0.3, 0.1, 0.05)


def denoising(net: ScoreMLP, x: Tensor, seed: int, sigma: float) -> Tensor:
    return fastscore.denoising_score_matching(net, x, sigma=sigma, seed=seed)


LOSSES: dict[str, tuple[Loss, str]] = {  # with the name of its row in cpu.json
    **{name: IMPLICIT[name] for name in ("exact", "Hutchinson, 1 probe", "sliced, variance-reduced (double backward)")},
    **{
        f"denoising, sigma = {sigma}": (partial(denoising, sigma=sigma), "fastscore, denoising")
        for sigma in (0.3, 0.1, 0.03)
    },
}


def curves() -> dict[str, Any]:
    """`E |s - s*|^2 / E |s*|^2` on points that training does not see, from the same start and the same data."""
    found = {name: _run(loss) for name, (loss, _) in LOSSES.items()}
    return costed({"steps": list(range(0, STEPS + 1, EVERY)), "curves": found})


def costed(found: dict[str, Any]) -> dict[str, Any]:
    """The same with the seconds of a step that are recorded now, and what follows from them."""
    rows = step_seconds(DIM)
    return summary(found | {"seconds_per_step": {name: rows[row] for name, (_, row) in LOSSES.items()}})


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The same with the seconds until a curve is first at each goal, None where it never is."""

    def until(name: str, goal: float) -> float | None:
        reached = (step for step, error in zip(found["steps"], found["curves"][name], strict=True) if error <= goal)
        step = next(reached, None)
        return None if step is None else float(f"{step * found['seconds_per_step'][name]:.3g}")

    return found | {
        "seconds_to": {name: {f"{goal:g}": until(name, goal) for goal in GOALS} for name in found["curves"]}
    }


def _run(loss: Loss) -> list[float]:
    torch.manual_seed(0)
    target, net = mixture(), ScoreMLP(DIM, WIDTH, DEPTH)
    held_out = target.sample(8192, seed=2**40)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    errors = []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                error = float(metrics.fisher_divergence(net, target, held_out, relative=True))
            errors.append(float(f"{error:.3g}"))
        optimizer.zero_grad()
        loss(net, target.sample(BATCH, seed=step), step).backward()
        optimizer.step()
    return errors
