"""What is done about a chain that leaves the finite numbers: raise, freeze it where it was finite, or let it be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastscore.samplers.algorithm import State

POLICIES = ("raise", "freeze", "ignore")
_LOOK_EVERY = 64  # steps between two looks at the flags of a GPU: looking waits for it


class NonFiniteError(RuntimeError):
    """A chain left the finite numbers.

    Attributes:
        chains: global indices of the rows that did, a list of ints.
        step: the first step after which one of them was not finite.
    """

    def __init__(self, chains: list[int], step: int) -> None:
        self.chains, self.step = chains, step
        shown = ", ".join(map(str, chains[:8])) + (", ..." if len(chains) > 8 else "")
        super().__init__(
            f"the state of chain {shown} is not finite after step {step} ({len(chains)} in all); a smaller step_size, "
            'clamp=(low, high), or on_nonfinite="freeze" (keeps the other chains going and flags these) may help'
        )


class Guard:
    """Finds the chains that are not finite, and raises, freezes them at their last finite state, or lets them be.

    Of a run in float16 that is what float16 takes for infinite, though its state is float32.
    """

    def __init__(self, policy: str, first_chain: int, x: Tensor) -> None:
        self.policy, self.first_chain = policy, first_chain
        self.first_bad = torch.full((x.shape[0],), -1, dtype=torch.int64, device=x.device)
        self.replay_until = 0  # steps up to here are made singly: a leap over them failed
        self._look_now = x.device.type == "cpu"
        self._limit = 65520.0 if x.dtype == torch.float16 else math.inf  # from where on a position is infinite

    def __call__(self, old: State, new: State, k: int) -> State:
        """The state to go on with after step k."""
        if self.policy == "ignore" or (self._look_now and not self._any_frozen() and self._surely_finite(new)):
            return new
        bad = ~self._finite(new)
        self.first_bad = torch.where(bad & (self.first_bad < 0), k, self.first_bad)
        if self.policy == "freeze":
            frozen = self.first_bad >= 0
            return type(new)(*(torch.where(rows(frozen, n), o, n) for o, n in zip(old, new, strict=True)))
        if self._look_now or k % _LOOK_EVERY == _LOOK_EVERY - 1:
            self.look()
        return new

    def after_leap(self, old: State, new: State) -> State | None:
        """The state to go on with after a leap; None if a chain broke on the way: make the steps singly."""
        if self.policy == "ignore":
            return new
        frozen = self.first_bad >= 0
        if not self._any_frozen():
            return new if self._surely_finite(new) or bool(self._finite(new).all()) else None
        if not bool((self._finite(new) | frozen).all()):
            return None
        return type(new)(*(torch.where(rows(frozen, n), o, n) for o, n in zip(old, new, strict=True)))

    def look(self) -> None:
        """Raise now if the policy is to raise and a chain was found not finite."""
        if self.policy != "raise":
            return
        bad = self.first_bad.cpu()
        if bool((bad >= 0).any()):
            step = int(bad[bad >= 0].min())
            raise NonFiniteError((self.first_chain + (bad == step).nonzero().flatten()).tolist(), step)

    def _any_frozen(self) -> bool:
        return self.policy == "freeze" and bool((self.first_bad >= 0).any())

    def _surely_finite(self, state: tuple[Tensor, ...]) -> bool:
        """Whether sums already tell that all chains are; large numbers may hide it."""
        return self._limit == math.inf and all(math.isfinite(part.sum()) for part in _moving(state))

    def _finite(self, state: tuple[Tensor, ...]) -> Tensor:
        """Which chains are, `[B]`."""
        first, *rest = (torch.isfinite(part).flatten(1).all(1) for part in _moving(state))
        for other in rest:
            first = first & other
        return first if self._limit == math.inf else first & (state[0].abs() < self._limit).flatten(1).all(1)


def _moving(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What of a state has to be finite: the position, and the velocity of a chain that has one."""
    velocity = getattr(state, "velocity", None)
    return state[:1] if velocity is None else (state[0], velocity)


def rows(mask: Tensor, like: Tensor) -> Tensor:
    """A mask `[B]` that goes with the rows of `like`."""
    return mask.view(-1, *(1,) * (like.dim() - 1))
