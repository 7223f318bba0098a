"""What the loop asks of an algorithm: one step at a time, many at once, or many with states kept on the way."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from fastscore.ops.chain import Keep

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
