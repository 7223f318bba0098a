"""Every line that docs/coming-from.md offers is run, and its samples compared with the law of the other's update."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastscore
from fastscore import noise, targets
from fastscore.samplers import mala

PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"
ROWS = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ") and "`" in line]
N, A, MEAN, LAM = 1 << 14, 0.1, 0.5, 2.0


def energy(x: Tensor) -> Tensor:
    return 0.5 * LAM * (x - MEAN).square().sum(1)


NAMES = {
    "torch": torch,
    "LangevinDynamics": fastscore.LangevinDynamics,
    "langevin_dynamics": fastscore.langevin_dynamics,
    "annealed_langevin_dynamics": fastscore.annealed_langevin_dynamics,
    "gradient_ascent": fastscore.gradient_ascent,
    "mala": mala,
    "energy": energy,
    "log_prob": lambda x: -energy(x),
    "score": lambda x: LAM * (MEAN - x),
    "noisy_score": lambda x, sigma: (MEAN - x) / (1 / LAM + sigma.unsqueeze(1) ** 2),
    "sigmas": [2.0, 1.0, 0.5],
    "target": targets.Gaussian([MEAN, MEAN], 1 / LAM),
}


def law(there: str, here: str) -> tuple[float, float]:
    """Mean and variance of x after the update in the row, from N(0, 1)."""
    mean, var = 0.0, 1.0
    if "mala" in here:
        return MEAN, 1 / LAM
    if "anneal" in here:
        steps = [(A * (s / 0.5) ** 2, 1 / (1 / LAM + s**2)) for s in (2.0, 1.0, 0.5) for _ in range(5)]
    else:
        steps = [(A, LAM)] * 20
    for a, lam in steps:
        mean = mean + a * lam * (MEAN - mean)
        var = (1 - a * lam) ** 2 * var + (0.0 if "ascent" in here else 2 * a)
    return mean, var


@pytest.mark.parametrize("row", ROWS, ids=[f"{i}-{row[0].strip('| ')}" for i, row in enumerate(ROWS)])
def test_every_line_gives_the_law_of_the_one_it_replaces(row: list[str]) -> None:
    (here,) = re.findall(r"`(.+)`", row[2])
    torch.manual_seed(5)
    x = noise.normal((N, 2), seed=1, stream=noise.Stream.INITIAL)
    found = eval(here, NAMES | {"x": x})
    mean, var = law(row[1], here)
    n = found.numel()
    assert abs(float(found.mean()) - mean) < 5 * math.sqrt(var / n)
    assert abs(float(found.var()) / var - 1) < 5 * math.sqrt(2 / n)


def test_the_table_names_the_four_packages() -> None:
    assert len(ROWS) == 12
    assert {"torchebm", "ncsn, ncsnv2", "score_sde", "blackjax"} <= {row[0].strip("| ") for row in ROWS}


def test_a_network_that_takes_the_index_of_a_level() -> None:
    (line,) = re.findall(r"`(lambda x, sigma: .+?)`, `levels`", PAGE.read_text().replace("\n  ", " "))
    levels, seen = [2.0, 1.0, 0.5], []

    def net(x: Tensor, labels: Tensor) -> Tensor:
        seen.append(int(labels[0]))
        return -x

    wrapped = eval(line, {"torch": torch, "net": net, "levels": levels})
    fastscore.annealed_langevin_dynamics(
        wrapped, torch.zeros(3, 2), sigmas=levels, n_steps_each=1, step_size=0.1, seed=0
    )
    assert seen == [0, 1, 2, 2]
