"""Whole chains of every algorithm towards any target that has a score in C: one object in C, filled in by its kind.

As in `_cpu_chain`: contiguous float32 CPU tensors, the reference's noise, its states to float32 rounding, the same bits
for every batch and every cut of the steps.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fastscore.ops import _cpu_build, _cpu_chain, _cpu_network
from fastscore.reference.philox import Stream

Counters = tuple[int, int, int]  # seed, number of the first step, global index of row 0


@dataclass(frozen=True)
class DoubleWell:
    """`-4 b x (x^2 - 1)` in each of D coordinates."""

    dim: int
    barrier: float
    log_normaliser: float

    def chain(
        self,
        x: Tensor,
        step_sizes: Tensor,
        temperatures: Tensor,
        clamp: tuple[float, float] | None,
        counters: Counters,
    ) -> Tensor | None:
        """Steps of every row of x `[B, D]`, as `_cpu_chain.Mixture.chain`."""
        if (target := of(self, x)) is None:
            return None
        constants = (target.address,)
        return _cpu_chain.run_chains(
            "target_chain", constants, self.work(), x, step_sizes, temperatures, clamp, counters
        )

    def constants(self) -> tuple[object, ...]:
        """What the kernels take it as."""
        return ctypes.c_int(self.dim), *map(ctypes.c_float, (self.barrier, self.log_normaliser))

    def work(self) -> int:
        """How many exponentials cost as much as one feature of the score."""
        return 1


Source: TypeAlias = _cpu_chain.Mixture | _cpu_network.Network | DoubleWell
_KINDS = {_cpu_chain.Mixture: "mixture", _cpu_network.Network: "network", DoubleWell: "double_well"}


class Target:
    """A source of scores as the kernels take it; made by `of`."""

    def __init__(self, found: ctypes.CDLL, source: Source) -> None:
        self.found, self.source = found, source
        self._held = source.constants()  # what the object in C points to
        self.address = ctypes.create_string_buffer(found.target_size())
        getattr(found, f"{_KINDS[type(source)]}_target")(self.address, *self._held)

    def value(self, x: Tensor) -> Tensor:
        """The score at every row of x `[B, D]`."""
        return self._value(x, None)

    def density(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p `[B]` and its gradient; not of a network."""
        log_prob = x.new_empty(len(x))
        return log_prob, self._value(x, log_prob)

    def underdamped(
        self, state: tuple[Tensor, ...], half: Tensor, keep: Tensor, renew: Tensor, counters: Counters
    ) -> tuple[Tensor, ...]:
        """(x, v, s), each `[B, D]`, after as many steps of BAOAB as the factors `[S, D]` have rows.

        They are a / 2, exp(-gamma a) and sqrt((1 - exp(-2 gamma a)) T).
        """
        return self._run("underdamped_chain", state, (half, keep, renew), (), counters)

    def mala(self, state: tuple[Tensor, ...], step_sizes: Tensor, counters: Counters) -> tuple[Tensor, ...]:
        """(x `[B, D]`, log p `[B]`, s, number accepted `[B]`) after as many steps as step_sizes `[S, D]` has rows."""
        factors = (step_sizes, torch.sqrt(2.0 * step_sizes))
        return self._run("mala_chain", state, factors, (ctypes.c_uint32(Stream.ACCEPT),), counters)

    def _run(
        self,
        name: str,
        state: tuple[Tensor, ...],
        factors: tuple[Tensor, ...],
        more: tuple[object, ...],
        counters: Counters,
    ) -> tuple[Tensor, ...]:
        """The state after the steps of a kernel, in new memory."""
        made = tuple(part.clone(memory_format=torch.contiguous_format) for part in state)
        seed, step, first_chain = counters
        n_steps = len(factors[0])

        def run(rows: tuple[int, int]) -> int:
            return int(
                getattr(self.found, name)(
                    *map(_cpu_build.pointer, made),
                    *map(ctypes.c_uint64, rows),
                    ctypes.c_int(n_steps),
                    *map(_cpu_build.pointer, factors),
                    *more,
                    *_cpu_build.key(seed, step, Stream.LANGEVIN, first_chain),
                    self.address,
                )
            )

        self._parallel(run, made[0], n_steps)
        return made

    def _value(self, x: Tensor, log_prob: Tensor | None) -> Tensor:
        x, score = x.contiguous(), torch.empty(x.shape)

        def run(rows: tuple[int, int]) -> int:
            given = (*map(_cpu_build.pointer, (x, score, log_prob)), *map(ctypes.c_uint64, rows), self.address)
            return int(self.found.target_value(*given))

        self._parallel(run, x, 1)
        return score

    def _parallel(self, run: Callable[[tuple[int, int]], int], x: Tensor, n_steps: int) -> None:
        """`run` over the rows of x.

        Raises:
            MemoryError: it answered anything but 0.
        """

        def part(rows: tuple[int, int]) -> None:
            if run(rows):
                raise MemoryError(f"no memory for a block of {_cpu_chain.BLOCK} chains in {x.shape[1]} dimensions")

        _cpu_chain.over(part, len(x), x.numel() * self.source.work() * n_steps)


def of(source: Source | None, x: Tensor) -> Target | None:
    """The source for the kernels, or None where there is none or nothing is compiled that takes x."""
    if source is None or (found := _cpu_chain.library(x)) is None:
        return None
    return Target(found, source)
