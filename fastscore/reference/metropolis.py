"""Metropolis's rule for Langevin proposals: the last third of a step of the Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MalaState(NamedTuple):
    """The state of a Metropolis-adjusted chain."""

    x: Tensor
    """Position, `[B, *event]`, float32 or float64."""
    log_prob: Tensor
    """log p(x), `[B]`."""
    score: Tensor
    """grad log p(x), `[B, *event]`."""
    accepted: Tensor
    """How many proposals were accepted since `init`, `[B]`."""


class Proposal(NamedTuple):
    """Where a chain would go: the first three fields of the state it would have there."""

    x: Tensor
    log_prob: Tensor
    score: Tensor


def accept(state: MalaState, to: Proposal, a: Tensor, uniform: Tensor) -> MalaState:
    """The state after a proposal is accepted, where log u <= log p(y) q(x | y) - log p(x) q(y | x), or refused.

    x becomes NaN where the density is no number, here or there, or the proposal is not finite.

    Args:
        state: at x.
        to: the same at y = x + a s(x) + sqrt(2 a) e.
        a: the step size, 0-dim or of the event's shape.
        uniform: u, `[B]`.
    """
    x, log_prob, score, accepted = state
    forth, back = log_transition(x, score, to.x, a), log_transition(to.x, to.score, x, a)
    taken = uniform.log() <= to.log_prob - log_prob + back - forth
    lost = _undefined(log_prob, score) | _undefined(to.log_prob, to.score) | ~to.x.flatten(1).isfinite().all(1)
    row = (-1, *(1,) * (x.dim() - 1))
    return MalaState(
        torch.where(taken.view(row), to.x, x).masked_fill(lost.view(row), torch.nan),
        torch.where(taken, to.log_prob, log_prob),
        torch.where(taken.view(row), to.score, score),
        accepted + taken,
    )


def log_transition(x: Tensor, score: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """log q(y | x) = -sum (y - x - a s(x))^2 / (4 a), `[B]`, up to a constant that x and y share."""
    return -((y - x - a * score).square() / (4.0 * a)).flatten(1).sum(1)


def _undefined(log_prob: Tensor, score: Tensor) -> Tensor:
    """The rows whose density is no number, `[B]`."""
    steep = log_prob.isfinite() & ~score.flatten(1).isfinite().all(1)
    return log_prob.isnan() | (log_prob == torch.inf) | steep
