"""What a training step's loss and parameter gradients have to be: a float64 reference, or the law around one.

A deterministic loss is compared array by array. An estimate is compared in its loss and in every gradient's projection
on a direction near the expected one, averaged over `CALLS` steps; how far such a mean may be off is known from the same
estimate made in float64 on a part of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import check as checks
from bench.registry import Arrays, Call, Case

CALLS, PILOTS, ROWS = 4, 32, 512
TOLERANCE = 5e-3
"""Norm-wise, of a float32 gradient; a GPU's may be in TF32."""


@dataclass
class Exact:
    """A deterministic step's loss and gradients."""

    expected: Arrays

    def check(self, results: Sequence[Arrays]) -> None:
        """Raise `WrongError` for results that do not fit."""
        for result in results:
            checks.close(result, self.expected, TOLERANCE)


@dataclass
class Estimate:
    """A random step: the mean of its loss and of its gradients' projections, and how much a mean of results may vary.

    Attributes:
        directions: what gradients are projected on, made without the results.
        mean: of the statistics.
        deviation: of the statistics of one step.
        error: standard error of `mean`.
    """

    directions: Arrays
    mean: Tensor
    deviation: Tensor
    error: Tensor

    def check(self, results: Sequence[Arrays]) -> None:
        """Raise `WrongError` for results that do not fit."""
        got = torch.stack([_statistics(result, self.directions) for result in results])
        error = (self.deviation.square() / len(results) + self.error.square()).sqrt()
        checks.same_mean(list(self.directions), got, self.mean, error, TOLERANCE * self.mean.abs().clamp(min=1.0))


def check(
    case: Case, arrays: Arrays, laws: Mapping[str, Exact | Estimate], name: str, results: Sequence[Arrays]
) -> None:
    """Raise `WrongError` for results that do not fit the law of that name: the check of every family of losses."""
    laws[name].check(results)


def exact(step: Call) -> Exact:
    """A deterministic step in float64."""
    return Exact(_kept(step()))


def estimate(step_of: Callable[[Tensor], Call], x: Tensor, known: Exact | None = None) -> Estimate:
    """A random step: `step_of` makes the float64 step of a batch; `known` where it is one of a known mean."""
    part = x[:ROWS]
    pilot = step_of(part)
    runs = [_kept(pilot()) for _ in range(PILOTS)]
    middle = (
        {name: torch.stack([run[name] for run in runs]).mean(0) for name in runs[0]}
        if known is None
        else known.expected
    )
    directions = {name: value for name, value in middle.items() if float(value.norm()) > 0}
    deviation = torch.stack([_statistics(run, directions) for run in runs]).std(0) * (len(part) / len(x)) ** 0.5
    if known is not None:
        return Estimate(directions, _statistics(known.expected, directions), deviation, torch.zeros_like(deviation))
    whole = step_of(x)
    mean = torch.stack([_statistics(whole(), directions) for _ in range(CALLS)]).mean(0)
    return Estimate(directions, mean, deviation, deviation / CALLS**0.5)


def _kept(result: Arrays) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in result.items()}


def _statistics(result: Arrays, directions: Arrays) -> Tensor:
    """The loss, and each gradient's projection on its direction, in units of the direction's length."""
    found = []
    for name, along in directions.items():
        value = result[name].to(along)
        found.append(float(value) if name == "loss" else float((value * along).sum() / along.square().sum()))
    return torch.tensor(found, dtype=torch.float64)
