"""Whole chains of every algorithm towards any target that has a score in C: one object in C, filled in by its kind.

Contiguous float32 CPU tensors, the reference's noise, its states to float32 rounding, the same bits for every batch and
every cut of the steps.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from fastscore.ops import _cpu_call, _cpu_chain, _cpu_mixture, _cpu_network
from fastscore.ops.chain import NOTHING, Keep
from fastscore.reference.philox import Stream

_PLAIN_ELEMENTS = 1 << 16  # of a block's largest array, without a compiler: in the cache, and repaying the calls

Clamp: TypeAlias = tuple[float, float] | None
Counters = tuple[int, int, int]  # seed, number of the first step, global index of row 0


@dataclass(frozen=True)
class DoubleWell:
    """`-4 b x (x^2 - 1)` in each of D coordinates."""

    dim: int
    barrier: float
    log_normaliser: float

    def constants(self) -> tuple[object, ...]:
        """What the kernels take it as."""
        return ctypes.c_int(self.dim), *map(ctypes.c_float, (self.barrier, self.log_normaliser))

    def work(self) -> int:
        """How many exponentials cost as much as one feature of the score."""
        return 1


Source: TypeAlias = _cpu_chain.Mixture | _cpu_network.Network | DoubleWell
_KINDS = {_cpu_chain.Mixture: "mixture", _cpu_network.Network: "network", DoubleWell: "double_well"}


class _Path(ctypes.Structure):
    """Where positions on the way go."""

    _fields_ = (
        ("states", ctypes.c_void_p),
        ("first", ctypes.c_int),
        ("thin", ctypes.c_int),
        ("count", ctypes.c_uint64),
    )


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
        """log p `[B]` and its gradient; not of a network that gives a score."""
        log_prob = x.new_empty(len(x))
        return log_prob, self._value(x, log_prob)

    def langevin(
        self, x: Tensor, step_sizes: Tensor, temperatures: Tensor, clamp: Clamp, counters: Counters, keep: Keep
    ) -> tuple[Tensor, Tensor]:
        """As the function `langevin`."""
        low, high = clamp or (0.0, 0.0)
        more = (ctypes.c_int(clamp is not None), *map(ctypes.c_float, (low, high)))
        (moved,), path = self._run("target_chain", (x,), _factors(x, step_sizes, temperatures), more, counters, keep)
        return moved, path

    def underdamped(
        self, state: tuple[Tensor, ...], factors: tuple[Tensor, Tensor, Tensor], counters: Counters, keep: Keep
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """(x, v, s), each `[B, D]`, after as many steps of BAOAB as the factors `[S, D]` have rows, and what is kept.

        They are a / 2, exp(-gamma a) and sqrt((1 - exp(-2 gamma a)) T).
        """
        return self._run("underdamped_chain", state, factors, (), counters, keep)

    def mala(
        self, state: tuple[Tensor, ...], step_sizes: Tensor, counters: Counters, keep: Keep
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """(x, log p `[B]`, s, number accepted `[B]`) after the steps of step_sizes `[S, D]`, and what is kept."""
        factors = (step_sizes, torch.sqrt(2.0 * step_sizes))
        return self._run("mala_chain", state, factors, (ctypes.c_uint32(Stream.ACCEPT),), counters, keep)

    def _run(
        self,
        name: str,
        state: tuple[Tensor, ...],
        factors: tuple[Tensor, ...],
        more: tuple[object, ...],
        counters: Counters,
        keep: Keep,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The state after the steps of a kernel, in new memory, and the positions kept, `[B, keep.count, D]`."""
        made = tuple(part.clone(memory_format=torch.contiguous_format) for part in state)
        seed, step, first_chain = counters
        n_steps, x = len(factors[0]), made[0]
        path = x.new_empty(len(x), keep.count, x.shape[1])

        def run(rows: tuple[int, int], steps: range, to: _Path) -> int:
            return int(
                getattr(self.found, name)(
                    *map(_cpu_call.pointer, made),
                    *map(ctypes.c_uint64, rows),
                    ctypes.c_int(len(steps)),
                    *(_cpu_call.pointer(table[steps.start :]) for table in factors),
                    *more,
                    *_cpu_call.key(seed, step + steps.start, Stream.LANGEVIN, first_chain),
                    ctypes.byref(to),
                    self.address,
                )
            )

        most = max(1, _cpu_chain.CALL_ELEMENTS // max(1, _cpu_chain.BLOCK * x.shape[1] * self.source.work()))
        for begin in range(0, n_steps, most):  # of a large network: else a single block might take minutes
            steps = range(begin, min(begin + most, n_steps))
            to = _Path(path.data_ptr(), keep.first - begin, keep.thin, keep.count)
            self._parallel(partial(run, steps=steps, to=to), x, len(steps))
        return made, path

    def _value(self, x: Tensor, log_prob: Tensor | None) -> Tensor:
        x, score = x.contiguous(), torch.empty(x.shape, dtype=torch.float32, device="cpu")

        def run(rows: tuple[int, int]) -> int:
            given = (*map(_cpu_call.pointer, (x, score, log_prob)), *map(ctypes.c_uint64, rows), self.address)
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
    if source is None or x.shape[1] > _cpu_chain.WIDEST or (found := _cpu_chain.library(x)) is None:
        return None
    return Target(found, source)


def langevin(
    source: Source | None,
    x: Tensor,
    step_sizes: Tensor,
    temperatures: Tensor,
    clamp: Clamp,
    counters: Counters,
    keep: Keep = NOTHING,
) -> tuple[Tensor, Tensor] | None:
    """Rows of x `[B, D]` after as many Langevin steps as step_sizes `[S, D or 1]` and temperatures `[S, 1]` have rows.

    Args:
        source: the score.
        x: float32; not changed.
        step_sizes: a, a step and feature.
        temperatures: T, a step.
        clamp: applied to the state after every step.
        counters: seed, number of the first of these steps, global index of row 0.
        keep: which states on the way are kept.

    Returns:
        The states, and those kept, `[B, keep.count, D]`; None where nothing compiled, nor NumPy, can make them.
    """
    if (target := of(source, x)) is not None:
        return target.langevin(x, step_sizes, temperatures, clamp, counters, keep)
    if not isinstance(source, _cpu_chain.Mixture) or not _cpu_chain.plain(x):
        return None
    out, path = x.clone(memory_format=torch.contiguous_format), x.new_empty(len(x), keep.count, x.shape[1])
    a, c = _factors(x, step_sizes, temperatures)
    mixture = _cpu_mixture.Constants(source.means.numpy(), source.inverse.numpy(), source.log_scale.numpy())
    seed, step, first_chain = counters
    size = max(_cpu_chain.BLOCK, _PLAIN_ELEMENTS // source.means.numel())
    for start in range(0, len(x), size):  # on one thread: NumPy's short calls on two would wait for each other
        rows, kept = (whole[start : start + size].numpy() for whole in (out, path))
        named = (seed, Stream.LANGEVIN, step, first_chain + start)
        _cpu_mixture.chain(rows, mixture, (a.numpy(), c.numpy()), clamp, named, keep, kept)
    return out, path


def value(source: Source, x: Tensor) -> Tensor | None:
    """The score at every row of x, `[B, D]`, or None where nothing compiled can tell it."""
    return None if (target := of(source, x)) is None else target.value(x)


def _factors(x: Tensor, step_sizes: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
    """a and sqrt(2 a T), `[S, D]`."""
    a = step_sizes.to(torch.float32).expand(len(step_sizes), x.shape[1]).contiguous()
    return a, torch.sqrt(2.0 * temperatures.to(torch.float32) * a)
