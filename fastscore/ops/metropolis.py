"""Metropolis's rule for Langevin proposals in one pass, with its uniforms made inside: no autograd."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fastscore.ops import _cpu_call, _cpu_chain, _dispatch, noise
from fastscore.reference import metropolis as reference
from fastscore.reference.metropolis import MalaState, Proposal
from fastscore.reference.philox import Stream


def accept(state: MalaState, to: Proposal, a: Tensor, seed: int, step: int, first_chain: int) -> MalaState:
    """As `fastscore.reference.metropolis.accept`, with the uniforms of a step's stream `ACCEPT`."""
    x = state.x
    if x.numel() and not noise.looked_on():
        if (kernels := _dispatch.kernels("metropolis", x.device)) is not None:
            given = (*map(_rows, (*state, *to)), a.flatten() if a.dim() else a)
            return _shaped(kernels.accept(*given, seed, Stream.ACCEPT, step, first_chain), x)
        narrow = x.numel() <= len(x) * _cpu_chain.WIDEST
        if narrow and (found := _cpu_chain.library(x, 0, *state[1:], *to, a)) is not None:
            return _compiled(found, state, to, a, seed, step, first_chain)
    u = noise.uniform(len(x), seed, Stream.ACCEPT, step, first_chain, x.dtype, x.device)
    return reference.accept(state, to, a, u)


def _compiled(
    found: ctypes.CDLL, state: MalaState, to: Proposal, a: Tensor, seed: int, step: int, first_chain: int
) -> MalaState:
    made = [_rows(part).clone(memory_format=torch.contiguous_format) for part in state]
    given = [_rows(part).contiguous() for part in to]
    n, width = made[0].shape
    factors = a.flatten().expand(width).contiguous()

    def run(rows: tuple[int, int]) -> None:
        failed = found.metropolis(
            *map(_cpu_call.pointer, (*made, *given)),
            *map(ctypes.c_uint64, rows),
            ctypes.c_int(width),
            _cpu_call.pointer(factors),
            *_cpu_call.key(seed, step, Stream.ACCEPT, first_chain),
        )
        if failed:
            raise MemoryError(f"no memory for a block of {_cpu_chain.BLOCK} chains in {width} dimensions")

    _cpu_chain.over(run, n, n * width)
    return _shaped(made, state.x)


def _rows(part: Tensor) -> Tensor:
    """`[B, D]` of what has an event, `[B]` of what has none."""
    return part.flatten(1) if part.dim() > 1 else part


def _shaped(made: list[Tensor] | tuple[Tensor, ...], x: Tensor) -> MalaState:
    """The parts of a state with the shape of x where they have an event."""
    return MalaState(*(part.view(x.shape) if part.dim() > 1 else part for part in made))
