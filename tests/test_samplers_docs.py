"""Every line of docs/coming-from.md is run, ours and theirs, and compared with the exact law of the update.

Theirs by the package itself where `make rivals` installed it; published formulas, of what is no package, as written.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastscore
from bench.rivals import BUILD, PYTHON
from fastscore import noise, targets
from fastscore.samplers import mala
from tests import peers
from tests.peers import LAM, MEAN, A, N, energy

PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"
ROWS = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ") and "`" in line]
# Not on the page, for they say nothing new there: the same call of either class, with more of torchebm's arguments.
CALLS = (
    "LangevinDynamics({}, 0.1).sample(x, n_steps=20, thin=5, return_trajectory=True)[:, -1]",
    "LangevinDynamics({}, 0.1, 0.5, 0.0, (-9, 9)).sample(x, 2, 20, 1, 1, False, False, True)",
)
ROWS += [["| torchebm", f"`{call.format('model')}`", f"`{call.format('score')}` |"] for call in CALLS]
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
(DEFINED,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
exec(DEFINED, NAMES)


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
        var = (1 - a * lam) ** 2 * var + (
            0.0 if "ascent" in here else 0.25 * 2 * a if "0.1, 0.5, 0.0" in here else 2 * a
        )
    return mean, var


@pytest.mark.parametrize("row", ROWS, ids=[f"{i}-{row[0].strip('| ')}" for i, row in enumerate(ROWS)])
def test_every_line_gives_the_law_of_the_one_it_replaces(row: list[str]) -> None:
    (here,) = re.findall(r"`(.+?)`", row[2])
    torch.manual_seed(5)
    x = noise.normal((N, 2), seed=1, stream=noise.Stream.INITIAL)
    found = eval(here, NAMES | {"x": x})
    assert_law(found.mean(), found.var(), found.numel(), law(row[1], here))


def assert_law(mean: Tensor | float, var: Tensor | float, n: int, true: tuple[float, float]) -> None:
    """Within five standard errors; a row's values are as good as independent."""
    assert abs(float(mean) - true[0]) < 5 * math.sqrt(true[1] / n)
    assert abs(float(var) / true[1] - 1) < 5 * math.sqrt(2 / n)


def published(line: str, x: Tensor) -> Tensor:
    """The formulas of samplers that are no package, from their papers and lines."""

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad(energy(x.requires_grad_()).sum(), x)[0]

    if "anneal_Langevin_dynamics" in line:  # Song and Ermon 2019, algorithm 1, in its authors' step_lr
        for sigma in (2.0, 1.0, 0.5):
            a = A * sigma**2 / 0.5**2
            for _ in range(5):
                x = x - a * (x - MEAN) / (1 / LAM + sigma**2) + math.sqrt(2 * a) * torch.randn_like(x)
        return x
    for _ in range(20):
        grad = -gradient(x.detach())
        if "x_mean" in line:
            x_mean = x + A * grad
            x = x_mean + math.sqrt(2 * A) * torch.randn_like(x)
        elif "eps" in line:  # Welling and Teh 2011
            x = x + 0.2 / 2 * grad + math.sqrt(0.2) * torch.randn_like(x)
        else:
            x = x - A * -grad + math.sqrt(2 * A) * torch.randn_like(x)
    return x.detach()


THERE = {(row[0].strip("| "), row[1]): law(row[1], row[2]) for row in ROWS}
PACKAGES = ("torchebm", "blackjax")


@pytest.mark.parametrize(("package", "line"), [key for key in THERE if key[0] not in PACKAGES])
def test_a_published_formula_has_the_law(package: str, line: str) -> None:
    torch.manual_seed(6)
    found = published(line, torch.randn(N, 2))
    assert_law(found.mean(), found.var(), found.numel(), THERE[package, line])


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the packages in the rivals' environment give, each line of theirs run once."""
    if not PYTHON.exists():
        pytest.skip(f"torchebm and blackjax are not installed: {BUILD}")
    rows = tmp_path_factory.mktemp("peers") / "rows.json"
    lines = [(package, re.match("`(.+?)`", line)[1] if package == "torchebm" else line) for package, line in THERE]  # type: ignore[index]
    rows.write_text(json.dumps(lines))
    script = Path(__file__).with_name("peers.py")
    run = subprocess.run([PYTHON, script, rows], capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize(("package", "line"), [key for key in THERE if key[0] in PACKAGES])
def test_a_peers_own_line_has_the_law(package: str, line: str, there: dict[str, Any]) -> None:
    if package not in there["packages"]:
        pytest.skip(f"{package} is not installed: {BUILD}")
    assert_law(*there["laws"][line.strip("`") if package == "torchebm" else line], THERE[package, line])


CONTRACT = {
    "one chain": [1, 2],
    "chains": [4, 2],
    "an event": [3, 2, 3],
    "starting points": [5, 2],
    "no steps": [5, 2],
    "a trajectory": [4, 6, 2],
    "every second": [4, 3, 2],
    "every fourth": [4, 1, 2],
    "none": [4, 0, 2],
    "diagnostics": [[4, 2], [2, 2], [2, 2]],
    "both": [[4, 6, 2], [6, 2], [6, 2]],
    "of one chain": [[1, 2], [3, 2], [3, 2]],
    "thin 0": "ValueError",
    "neither x nor dim": "ValueError",
    "in order": [[4, 2, 2], [2, 2], [2, 2]],
    "x is left alone": True,
    "torch's seed repeats a run": True,
    "the last of a trajectory is the sample": True,
    "mean and var are over chains": True,
}


def test_the_class_answers_as_torchebms_tests_ask() -> None:
    found = peers.observed(lambda a: fastscore.LangevinDynamics(lambda x: LAM * (MEAN - x), step_size=a))
    assert found == CONTRACT


@pytest.mark.slow
def test_torchebm_answers_the_same(there: dict[str, Any]) -> None:
    if "observed" not in there:
        pytest.skip(f"torchebm is not installed: {BUILD}")
    assert there["observed"] == CONTRACT


def test_the_score_of_an_energy_is_one_that_is_read() -> None:
    layers = (torch.nn.Linear(2, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1), torch.nn.Flatten(0))
    names: dict[str, Any] = {"torch": torch, "energy": torch.nn.Sequential(*layers)}
    exec(DEFINED, names)
    assert fastscore.divergence(names["score_of_energy"], torch.randn(5, 2)).method == "forward-laplacian"


def test_the_table_names_the_four_packages() -> None:
    assert len(ROWS) == 13
    assert {"torchebm", "ncsn, ncsnv2", "score_sde", "blackjax"} <= {row[0].strip("| ") for row in ROWS}


LEVELS = [2.0, 0.3, 0.1]


@pytest.mark.parametrize("sigmas", [LEVELS, torch.tensor(LEVELS), torch.tensor(LEVELS, dtype=torch.float64)])
def test_a_network_that_takes_the_index_of_a_level(sigmas: Tensor | list[float]) -> None:
    (line,) = re.findall(r"`(lambda x, sigma: .+?)`, `levels`", PAGE.read_text().replace("\n  ", " "))
    seen: list[int] = []

    def net(x: Tensor, labels: Tensor) -> Tensor:
        seen.extend(set(labels.tolist()))
        return -x

    wrapped = eval(line, {"net": net, "levels": torch.as_tensor(sigmas)})
    fastscore.annealed_langevin_dynamics(
        wrapped, torch.zeros(3, 2), sigmas=sigmas, n_steps_each=1, step_size=1e-3, seed=0
    )
    assert seen == [0, 1, 2, 2]
    seen.clear()
    wrapped(torch.zeros(3, 2), torch.as_tensor(sigmas).flip(0).float())
    assert set(seen) == {0, 1, 2}
