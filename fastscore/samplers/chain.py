"""The one loop that every sampler shares: what to keep, when to stop, and what to do when a state is not finite.

An algorithm is an object with `init(x) -> state` and `step(state, k) -> state`; a state is a NamedTuple of tensors
whose first field is the position x `[B, *event]`, and every field has one row a chain. All randomness of step k comes
from (seed, k, chain), so a run may stop after any step and go on with `first_step`, or be cut into batches with
`first_chain`, and give the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.noise import resolve_seed
from fastscore.ops.chain import NOTHING as NOTHING
from fastscore.ops.chain import Keep as Keep
from fastscore.samplers.algorithm import Algorithm, Leaping, State
from fastscore.samplers.finite import POLICIES, Guard, NonFiniteError, rows
from fastscore.samplers.saved import Record, check_file

_LEAP = 256  # steps made at once at most: what an interrupt waits for, and what is made again to find a bad step
_PATH = 1 << 24  # entries of the states that a leap keeps on its way, at most

Schedule = float | Tensor | Callable[[int], float | Tensor]
Path = str | os.PathLike[str]
Output = Tensor | tuple[Tensor, dict[str, Tensor]]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run: carries what is needed to go on to the same bits.

    The state of a run in half precision is float32, at which a run that goes on evaluates the score: that one goes on
    to rounding only.

    Attributes:
        x: the position after the last finished step.
        state: the whole state of the algorithm there.
        step: the step to go on with (`first_step`).
        seed: the seed of the run.
        trajectory: what was kept so far, `[B, n, *event]`, or None.
    """

    def __init__(self, state: tuple[Tensor, ...], step: int, seed: int, trajectory: Tensor | None) -> None:
        self.x, self.state, self.step, self.seed, self.trajectory = state[0], state, step, seed, trajectory
        super().__init__(f"interrupted before step {step}; go on with x=e.x, first_step={step}, seed={seed}")


def _bar(done: int, total: int) -> Any:
    """A progress bar; imported here, so that all else runs on a GPU machine's bare Python."""
    from tqdm import tqdm

    return tqdm(initial=done, total=total, leave=False, unit="step")


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long a run is and what is kept of it; the fields are the arguments of the samplers."""

    n_steps: int
    burn_in: int = 0
    thin: int = 1
    first_step: int = 0
    first_chain: int = 0
    on_nonfinite: str = "raise"
    return_trajectory: bool = False
    return_diagnostics: bool = False
    progress: bool = False
    seed: int = 0
    checkpoint: Path | None = None
    checkpoint_every: int = 1000
    settings: Mapping[str, Any] = field(default_factory=dict)  # the algorithm's own, which a checkpoint must share

    def __post_init__(self) -> None:
        _checks.count("n_steps", self.n_steps, 0)
        _checks.count("burn_in", self.burn_in, 0)
        _checks.count("thin", self.thin, 1)
        _checks.integer("first_step", self.first_step, 0, 2**32 - self.n_steps + 1)
        _checks.choice("on_nonfinite", self.on_nonfinite, POLICIES)
        for name in ("return_trajectory", "return_diagnostics", "progress"):
            _checks.flag(name, getattr(self, name))
        check_file(self.checkpoint, self.checkpoint_every)
        if self.burn_in > self.n_steps:
            raise ValueError(f"burn_in must be at most n_steps {self.n_steps}, got {self.burn_in}")

    def seeded(self, seed: int | None, generator: torch.Generator | None) -> Run:
        """The same with its seed, drawn where none is given: once all else is checked, a refused call draws nothing."""
        return replace(self, seed=resolve_seed(seed, generator))

    @property
    def keep(self) -> Keep:
        """The states that are kept: every `thin`-th after the burn-in."""
        return Keep(self.burn_in + self.thin, self.thin, (self.n_steps - self.burn_in) // self.thin)

    def leap(self, k: int) -> int:
        """How many steps can be made after the first k before a state has to be looked at."""
        n = self._unwatched(k)
        return min(n, self.keep.part(k, k).first) if self.return_trajectory or self.return_diagnostics else n

    def path(self, k: int, entries: int) -> tuple[int, Keep] | None:
        """The steps of a leap after the first k that keeps states, of so many entries each; None if not two or more."""
        if not (self.return_trajectory or self.return_diagnostics):
            return None
        n = self._unwatched(k)
        there = self.keep.part(k, k + n)
        keep = replace(there, count=min(there.count, max(1, _PATH // max(1, entries))))
        return (min(n, keep.first + keep.count * keep.thin - 1), keep) if keep.count > 1 else None

    def _unwatched(self, k: int) -> int:
        """Steps after the first k up to where a leap has to end, whatever is kept."""
        n = min(_LEAP, self.n_steps - k)
        return n if self.checkpoint is None else min(n, self.checkpoint_every - k % self.checkpoint_every)

    def settled(self, state: Tensor, made: Tensor) -> Tensor:
        """What is made of the last state: the state itself where only that is finite, as `on_nonfinite` says.

        Raises:
            NonFiniteError: the policy is to raise, and something is not finite.
        """
        if self.on_nonfinite == "ignore" or not made.numel():
            return made
        bad = ~torch.isfinite(made).flatten(1).all(1)
        if self.on_nonfinite == "freeze":
            return torch.where(rows(bad, made), state.to(made.dtype), made)
        if bool(bad.any()):
            last = self.first_step + self.n_steps - 1
            raise NonFiniteError((self.first_chain + bad.nonzero().flatten()).tolist(), last)
        return made


def run_chain(algorithm: Algorithm[State], x: Tensor, run: Run, *, state: State | None = None) -> tuple[State, Output]:
    """Run `algorithm` from x; returns the last state and what the caller asked to be given.

    The output is x after the last step, or the trajectory `[B, n_kept, *event]` where asked, and with it, where asked,
    the diagnostics: `mean` and `var` over the chains at every kept step (`[n_kept, *event]`), `chain_mean` and
    `chain_var` of every chain over its kept states (`[B, *event]`, kept up as it runs: no trajectory is needed), and
    `first_nonfinite` (`[B]`, the step after which a chain was first not finite, or -1).
    """
    guard, record = Guard(run.on_nonfinite, run.first_chain, x), Record(run, type(algorithm).__name__, x)
    # One object, so that an interrupt never sees a state of another step.
    done, guard.first_bad = record.restore(algorithm.init(x) if state is None else state, guard.first_bad)
    # A disabled tqdm too waits for a lock that forked processes share: one killed while it held it would stop this run.
    bar = _bar(done[1], run.n_steps) if run.progress else None
    try:
        with torch.no_grad(), bar if bar is not None else nullcontext():
            while done[1] < run.n_steps:
                old, k, running = done
                kept, n = run.path(k, old[0].numel()), run.leap(k)
                if kept is not None and (made := _leap(algorithm, guard, run, old, k, *kept)) is not None:
                    done = (made[0], k + kept[0], record.keep_path(made[1], k + kept[1].first, running))
                elif (made := _leap(algorithm, guard, run, old, k, n, NOTHING)) is not None:
                    done = (made[0], k + n, record.keep(made[0][0], k + n, running))
                else:
                    state = _step(algorithm, guard, run, old, k)
                    done = (state, k + 1, record.keep(state[0], k + 1, running))
                if record.due(done[1]):
                    guard.look()
                    record.write(*done, guard.first_bad)
                if bar is not None:
                    bar.update(done[1] - k)
            guard.look()
    except KeyboardInterrupt as interrupt:
        record.write(*done, guard.first_bad)
        partial = record.kept(done[1]).get("trajectory")
        raise Interrupted(done[0], run.first_step + done[1], run.seed, partial) from interrupt
    output = record.trajectory if record.trajectory is not None else done[0][0].to(x.dtype)
    if record.moments is None:
        return done[0], output
    return done[0], (output, record.diagnostics(done[2], guard.first_bad))


def _step(algorithm: Algorithm[State], guard: Guard, run: Run, state: State, k: int) -> State:
    """The state after one step more."""
    step = run.first_step + k
    return guard(state, algorithm.step(state, step), step)


def _leap(
    algorithm: Algorithm[State], guard: Guard, run: Run, state: State, k: int, n: int, keep: Keep
) -> tuple[State, Tensor] | None:
    """(state after n steps more, positions kept on the way); None where they have to be made one by one."""
    if n <= 1 or k < guard.replay_until or not isinstance(algorithm, Leaping):
        return None
    made = algorithm.leap(state, run.first_step + k, n, keep)
    settled = guard.after_leap(state, made[0]) if made is not None else None
    if made is None or settled is None:
        if made is not None or not keep.count:  # else a leap that keeps nothing may still be made
            guard.replay_until = k + n
        return None
    path = made[1]
    if run.on_nonfinite == "freeze" and keep.count:
        path = torch.where(rows(guard.first_bad >= 0, path), settled[0].unsqueeze(1), path)
    return settled, path


def schedule(name: str, value: Schedule, *, positive: bool = True) -> Callable[[int], float | Tensor]:
    """A number, a tensor or a function of the step, as a function of the step whose values are checked."""
    check = _checks.positive if positive else _checks.nonnegative
    if callable(value):

        def checked(k: int) -> float | Tensor:
            given: float | Tensor = value(k)
            check(f"{name}({k})", given)
            return given

        return checked
    check(name, value)
    return lambda k: value
