"""What the chains of `chains` and `mala` sample, and how their last states are checked, whichever step moves them.

`case_of` describes a case, `inputs` draws its starting points and what its target is made of, and `score_of` is the
target's score. Of last states `statistics` makes observations, whose means `check` compares with the reference's: the
family moves the points of `starts`, in float64, by its own step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench import check as checks
from bench.families import networks
from bench.registry import Arrays, Case
from fastscore import reader

REFERENCE = (2**14, 2**22, 2**19)  # at the most: chains, their steps together, their numbers
STD = 0.5  # of every component of the mixtures
BARRIER = 2.0  # of the double well, as in torchebm

TITLES = {
    "ring": "2-D mixture of 8",
    "mixture32": "32-D mixture of 8",
    "network": "3 x 128 SiLU network",
    "double well": "128-D double well",
    "energy": "2 x 128 SiLU energy",
}
MIXTURES = ("ring", "mixture32")


def case_of(target: str, chains: int, steps: int, step_size: float, rivals: int, headline: bool) -> Case:
    dim = {"ring": 2, "network": 2, "energy": 2, "mixture32": 32, "double well": 128}[target]
    mixture = 8 * (5 * dim + 6)  # distances, exponentials and the weighted mean of the components
    each = {
        "network": 2 * (2 * 128 + 2 * 128**2 + 128 * 2),
        "energy": 2 * (2 * 128 + 128**2 + 128 + 128**2 + 128 * 2),
        "double well": 4 * dim,
    }
    return Case(
        name=f"{TITLES[target]}, {chains} chains",
        settings={"target": target, "n": chains, "D": dim, "steps": steps, "step_size": step_size, "rivals": rivals},
        units=chains * steps,
        flops=each.get(target, mixture) + 4 * dim,
        seconds=8.0 if rivals > 1 else 5.0,
        headline=headline,
    )


def inputs(case: Case, device: str) -> dict[str, Tensor]:
    """Starting points; at the target's own law where it can be drawn, so that chains have only their bias to find."""
    s, draws = case.settings, networks.generator(0)
    x = torch.randn(s["n"], s["D"], generator=draws)
    made = {}
    if s["target"] == "network":
        made = networks.weights([2, 128, 128, 128, 2])
        for name in ("w3", "b3"):
            made[name] = 0.3 * made[name]
    elif s["target"] == "energy":
        made = networks.weights([2, 128, 128, 1])
    elif s["target"] == "double well":
        x = x.sign() + 0.3 * torch.randn(x.shape, generator=draws)
    else:
        angles = torch.arange(8) * (math.tau / 8)
        ring = 4.0 * torch.stack([angles.cos(), angles.sin()], 1)
        made["means"] = ring if s["target"] == "ring" else torch.randn(8, s["D"], generator=draws)
        x = made["means"][torch.randint(8, (s["n"],), generator=draws)] + STD * x
    return {name: value.to(device) for name, value in (made | {"x": x}).items()}


def score_of(case: Case, arrays: Arrays, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    """The score as one writes it."""
    target = case.settings["target"]
    if target == "network":
        return networks.network({k: v for k, v in arrays.items() if k != "x"}, dtype=dtype)
    if target == "energy":
        return energy_score(networks.network({k: v for k, v in arrays.items() if k != "x"}, dtype=dtype))
    if target == "double well":
        return lambda y: -4 * BARRIER * y * (y.square() - 1)
    means = arrays["means"].to(dtype)

    def score(y: Tensor) -> Tensor:
        difference = y[:, None, :] - means
        weights = torch.softmax(-0.5 / STD**2 * difference.square().sum(-1), -1)
        return -(weights[..., None] * difference).sum(1) / STD**2

    return score


def energy_score(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Minus the gradient, as one writes it."""

    def score(y: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            return -torch.autograd.grad(model(y).sum(), y)[0]

    return score


def statistics(x: Tensor, arrays: Arrays) -> Tensor:
    """Coordinates, their squares, squared distances from the start and from the nearest mode: observations a chain.

    Where there are no modes the last is the fourth power of the distance from 0. Rows start from those of the inputs,
    over and over again.
    """
    x = x.double().to(arrays["x"].device)
    start = arrays["x"].double().repeat(-(-len(x) // len(arrays["x"])), 1)[: len(x)]
    squares, moved = x.square(), (x - start).square().sum(1, keepdim=True)
    if "means" in arrays:
        last = torch.cdist(x, arrays["means"].double()).square().amin(1, keepdim=True)
    else:
        last = squares.sum(1, keepdim=True).square()
    return torch.cat([x, squares, moved, last], 1)


def starts(case: Case, arrays: Arrays) -> Tensor:
    """Those of the reference's chains: the inputs', over and over again, in float64."""
    steps, n = case.settings["steps"], len(arrays["x"])
    chains = min(REFERENCE[0], REFERENCE[1] // steps, REFERENCE[2] // case.settings["D"])
    return arrays["x"].double().repeat(-(-chains // n), 1)[:chains]


def check(case: Case, arrays: Arrays, found: Any, law: str, results: Sequence[Arrays]) -> None:
    """The last states have the law of the reference's, and are not its starting points."""
    mean, error = found
    dim = case.settings["D"]
    names = (
        [f"x{i}" for i in range(dim)]
        + [f"x{i}^2" for i in range(dim)]
        + ["|x - x0|^2", "|x - m|^2" if "means" in arrays else "|x|^4"]
    )
    moved = results[0]["x"].to(arrays["x"].device) - arrays["x"]
    if not bool((moved != 0).any(1).all()):
        raise checks.WrongError("a chain has not moved")
    if len(results) > 1 and bool((results[0]["x"] == results[1]["x"]).all(1).any()):  # a number may fall alike
        raise checks.WrongError("two runs with different seeds share a state")
    checks.same_mean(names, statistics(torch.cat([result["x"] for result in results]), arrays), mean, error)


class Hidden:
    """A function that counts its calls, so that fastscore cannot read it: a call of it has a consequence.

    Raises:
        AssertionError: it is read all the same.
    """

    def __init__(self, fn: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.fn, self.calls = fn, 0
        assert reader.read(self, x) is None, "what ought to be hidden is read"

    def __call__(self, y: Tensor) -> Tensor:
        self.calls += 1
        return self.fn(y)


def unfit(rivals: int, targets: Sequence[str] = tuple(TITLES), device: str = "") -> Callable[[Case, str], str]:
    """Why a case is not for a provider: by the rivals that it is to have, its target and the device; "" is any."""

    def reason(case: Case, where: str) -> str:
        if device and where != device:
            return "CUDA graphs need a GPU" if device == "cuda" else "for CPUs"
        if case.settings["target"] not in targets:
            return "not for this target"
        return "" if case.settings["rivals"] >= rivals else "left out at this size"

    return reason
