"""What the loop asks of an algorithm: one step at a time, or many at once with states kept on the way."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from fastscore.ops.chain import Keep, Result
from fastscore.ops.noise import computed

State = TypeVar("State", bound=tuple[Tensor, ...])


class Algorithm(Protocol[State]):
    """One Markov chain (or flow) over rows of x."""

    def init(self, x: Tensor) -> State:
        """The state before the first step."""

    def step(self, state: State, k: int) -> State:
        """Step number k (counted from the very first step of the chain); must not change `state`."""


@runtime_checkable
class Leaping(Algorithm[State], Protocol[State]):
    """An algorithm that can make many steps at once, to the same bits as one by one."""

    def leap(self, state: State, k: int, n: int, keep: Keep) -> tuple[State, Tensor] | None:
        """The state after steps k to k + n - 1 and the positions kept, `[B, keep.count, *event]`; None: one by one."""


class LangevinState(NamedTuple):
    """The state of a Langevin chain."""

    x: Tensor
    """Position, `[B, *event]`, float32 or float64."""


class LangevinSteps:
    """What Langevin dynamics and its ladders share: how they begin, and the ways to make many steps at once."""

    def init(self, x: Tensor) -> LangevinState:
        """The state at x."""
        return LangevinState(x.detach().to(computed(x.dtype), copy=True))

    def leap(self, state: LangevinState, k: int, n: int, keep: Keep) -> tuple[LangevinState, Tensor] | None:
        """Steps k to k + n - 1 at once: in one launch, in compiled code, or where nothing is kept by a CUDA graph."""
        x = state.x
        if (launched := self._whole(x, k, n, keep)) is not None:
            return LangevinState(launched.x), launched.kept
        if (made := self._compiled(x, k, n, keep)) is not None:
            return LangevinState(made[0]), made[1]
        if keep.count or (replayed := self._replay(x, k, n)) is None:
            return None
        return LangevinState(replayed), x.unsqueeze(1)[:, :0]

    def _whole(self, x: Tensor, k: int, n: int, keep: Keep) -> Result | None:
        """These steps in one launch on a GPU; None where no kernel fits."""
        raise NotImplementedError

    def _compiled(self, x: Tensor, k: int, n: int, keep: Keep) -> tuple[Tensor, Tensor] | None:
        """(x after these steps, positions kept) in compiled code on a CPU; None where it does not know the score."""
        raise NotImplementedError

    def _replay(self, x: Tensor, k: int, n: int) -> Tensor | None:
        """x after these steps by a CUDA graph, captured when first worth it; None where it is not, or cannot be."""
        raise NotImplementedError
