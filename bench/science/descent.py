"""Training from scratch with every loss: the relative Fisher divergence against the time it took.

The seconds of a step (loss and backward) are those that `python -m bench` measured on a quiet machine for the same
network, batch and loss; training itself may run anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastscore
from bench.science.gradients import mixture
from fastscore import ScoreMLP, metrics

CPU = Path(__file__).parents[1] / "results" / "cpu.json"
BATCH, DIM, WIDTH, DEPTH = 4096, 8, 128, 2
STEPS, EVERY, RATE = 250, 10, 3e-3
GOALS = (0.3, 0.1, 0.05)
Loss = Callable[[ScoreMLP, Tensor, int], Tensor]  # (network, data, seed) -> loss


def exact(net: ScoreMLP, x: Tensor, seed: int) -> Tensor:
    return fastscore.implicit_score_matching(net, x, trace="exact")


def hutchinson(net: ScoreMLP, x: Tensor, seed: int) -> Tensor:
    return fastscore.implicit_score_matching(net, x, trace="hutchinson", seed=seed)


def sliced(net: ScoreMLP, x: Tensor, seed: int) -> Tensor:
    """Sliced score matching with variance reduction, as published: signs for directions, and a double backward."""
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).sign()
    y = x.detach().requires_grad_()
    s = net(y)
    (product,) = torch.autograd.grad(s, y, v, create_graph=True)
    return (0.5 * s.square().sum(1) + (product * v).sum(1)).mean()


def denoising(net: ScoreMLP, x: Tensor, seed: int, sigma: float) -> Tensor:
    return fastscore.denoising_score_matching(net, x, sigma=sigma, seed=seed)


LOSSES: dict[str, tuple[Loss, str]] = {  # with the name of its row in cpu.json
    "exact": (exact, "fastscore, exact"),
    "Hutchinson, 1 probe": (hutchinson, "fastscore, Hutchinson"),
    "sliced, variance-reduced (double backward)": (sliced, "sliced score matching, double backward"),
    **{
        f"denoising, sigma = {sigma}": (partial(denoising, sigma=sigma), "denoising, eager")
        for sigma in (0.3, 0.1, 0.03)
    },
}


def curves() -> dict[str, Any]:
    """`E |s - s*|^2 / E |s*|^2` on points that training does not see, from the same start and the same data."""
    found = {name: _run(loss) for name, (loss, _) in LOSSES.items()}
    return summary({"steps": list(range(0, STEPS + 1, EVERY)), "curves": found, "seconds_per_step": _seconds()})


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


def _seconds() -> dict[str, float]:
    cases = {case["name"]: case["rows"] for case in json.loads(CPU.read_text())["cases"]}
    rows = cases[f"B={BATCH} D={DIM} L={DEPTH} H={WIDTH}"]
    return {name: rows[row]["seconds"] for name, (_, row) in LOSSES.items()}
