"""States of Metropolis-adjusted chains and proposals from them, for the rule's tests on every device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscore.ops.noise import uniform
from fastscore.reference import metropolis
from fastscore.reference.metropolis import MalaState, Proposal
from fastscore.reference.philox import Stream

INF, NAN = torch.inf, torch.nan
# Where they stand, the fate of a chain is decided by them alone: (log p, score, log p there, score there, x there).
ODD = [
    (NAN, 0.0, 0.0, 0.0, 0.0),
    (INF, 0.0, 0.0, 0.0, 0.0),
    (-INF, NAN, 9.0, 0.0, 0.0),
    (0.0, INF, 0.0, 0.0, 0.0),
    (0.0, 0.0, NAN, 0.0, 0.0),
    (0.0, 0.0, INF, 0.0, 0.0),
    (0.0, 0.0, -INF, NAN, 0.0),
    (0.0, 0.0, -INF, 0.0, 0.0),
    (0.0, 0.0, 9.0, -INF, 0.0),
    (0.0, 0.0, 9.0, 0.0, NAN),
    (0.0, 0.0, -INF, 0.0, INF),
]


def some(shape: tuple[int, ...], a: float | Tensor, dtype: torch.dtype = torch.float32) -> tuple[MalaState, Proposal]:
    """Towards a standard normal law; about half of the proposals are refused."""
    draws = torch.Generator().manual_seed(7)
    x, e = torch.randn(2, *shape, generator=draws, dtype=torch.float64)
    y = (1 - a) * x + torch.sqrt(2 * torch.as_tensor(a, dtype=torch.float64)) * e
    shift = torch.randn(shape[0], generator=draws, dtype=torch.float64)
    each = [[z, -0.5 * z.flatten(1).square().sum(1) + where, -z] for z, where in ((x, 0.0), (y, shift))]
    state, to = ([part.to(dtype) for part in parts] for parts in each)
    return MalaState(*state, torch.arange(shape[0]).to(dtype)), Proposal(*to)


def odd(width: int, feature: int, dtype: torch.dtype = torch.float32) -> tuple[MalaState, Proposal]:
    """A chain of each of `ODD`, the numbers at one of its features, and between them chains that are as they ought."""
    state, to = some((2 * len(ODD), width), 0.1, dtype)
    for row, (p, s, to_p, to_s, to_x) in enumerate(ODD):
        state.log_prob[2 * row], to.log_prob[2 * row] = p, to_p
        for part, value in ((state.score, s), (to.score, to_s), (to.x, to_x)):
            part[2 * row, feature] += value
    return state, to


def judged(state: MalaState, to: Proposal, a: Tensor, counters: tuple[int, int, int]) -> MalaState:
    """By the reference."""
    seed, step, first_chain = counters
    x = state.x
    u = uniform(len(x), seed, Stream.ACCEPT, step, first_chain, x.dtype, x.device)
    return metropolis.accept(state, to, a, u)


def same(found: MalaState, true: MalaState) -> None:
    """Bit for bit: what is chosen is not computed."""
    for name, value, right in zip(MalaState._fields, found, true, strict=True):
        torch.testing.assert_close(
            value.cpu(), right, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def moved(parts: Any, device: torch.device) -> Any:
    """The same on a device."""
    return type(parts)(*(part.to(device) for part in parts))
