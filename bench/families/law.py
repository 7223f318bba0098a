"""What a training step's loss and parameter gradients have to be: a float64 reference, or the law around one.

A deterministic loss is compared array by array. An estimate is compared in its loss and in every gradient's projection
on the expected one, averaged over `CALLS` steps; how far such a mean may be off is known from the same estimate made
in float64 on a part of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import check
from bench.registry import Arrays, Call

CALLS, PILOTS, ROWS = 4, 32, 512
TOLERANCE = 5e-3
"""Norm-wise, of a float32 gradient; a GPU's may be in TF32."""


@dataclass
class Law:
    """The expected loss and gradients, and the standard deviation of one estimate's statistics."""

    expected: Arrays
    deviation: Tensor | None = None
    of_expected: float = 0.0
    """Standard errors of `expected` itself, in units of `deviation`."""

    def check(self, results: Sequence[Arrays]) -> None:
        """Raise `WrongError` for results that do not fit."""
        if self.deviation is None:
            for result in results:
                check.close(result, self.expected, TOLERANCE)
            return
        names = [name for name, value in self.expected.items() if float(value.norm()) > 0]
        got = torch.stack([_statistics(result, self.expected) for result in results])
        want = _statistics(self.expected, self.expected)
        scale = (1 / len(results) + self.of_expected**2) ** 0.5
        floor = TOLERANCE * torch.maximum(want.abs(), torch.ones(()))
        off = (got.mean(0) - want).abs() - floor
        check.same_mean(names, want + off.clamp(min=0)[None], want, scale * self.deviation)


def exact(step: Call) -> Law:
    """A deterministic step in float64."""
    return Law(_kept(step()))


def estimate(step_of: Callable[[Tensor], Call], x: Tensor, expected: Arrays | None = None) -> Law:
    """A random step: `step_of` makes the float64 step of a batch; `expected` where it is known exactly."""
    part = x[:ROWS]
    pilot = step_of(part)
    runs = [_kept(pilot()) for _ in range(PILOTS)]
    middle = _mean(runs)
    deviation = torch.stack([_statistics(run, middle) for run in runs]).std(0) * (len(part) / len(x)) ** 0.5
    if expected is not None:
        return Law(expected, deviation)
    whole = step_of(x)
    return Law(_mean([_kept(whole()) for _ in range(CALLS)]), deviation, CALLS**-0.5)


def _kept(result: Arrays) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in result.items()}


def _mean(runs: Sequence[Arrays]) -> dict[str, Tensor]:
    return {name: torch.stack([run[name] for run in runs]).mean(0) for name in runs[0]}


def _statistics(result: Arrays, expected: Arrays) -> Tensor:
    """The loss, and each gradient's projection on the expected one, which is 1 where they are equal."""
    found = []
    for name, want in expected.items():
        square = float(want.square().sum())
        if name == "loss":
            found.append(float(result[name]))
        elif square > 0:
            found.append(float((result[name].to(want) * want).sum()) / square)
    return torch.tensor(found, dtype=torch.float64)
