"""Underdamped (kinetic) Langevin dynamics by the BAOAB splitting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.noise import Stream
from fastscore.ops import _cpu_target
from fastscore.ops.noise import computed, normal
from fastscore.samplers import chain
from fastscore.samplers.analytic import Known, announce, compiled
from fastscore.samplers.arguments import as_tensor, counted, prepare, table, warn_of_divergence
from fastscore.samplers.signatures import Diagnosed, KineticArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


class UnderdampedState(NamedTuple):
    """The state of an underdamped chain."""

    x: Tensor
    """Position, `[B, *event]`, float32 or float64."""
    velocity: Tensor
    """Velocity, `[B, *event]`."""
    score: Tensor
    """The score at x, `[B, *event]`."""


class Underdamped:
    """BAOAB as `init` and `step`."""

    def __init__(
        self,
        score_fn: _checks.Score,
        *,
        step_size: chain.Schedule,
        friction: float = 1.0,
        temperature: chain.Schedule = 1.0,
        cond: Tensor | None = None,
        seed: int,
        first_chain: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        _checks.scalar("friction", friction)
        self.score_fn, self.cond, self.friction, self.dtype = score_fn, cond, friction, dtype
        self.known = Known(score_fn)
        self.step_size = chain.schedule("step_size", step_size)
        self.temperature = chain.schedule("temperature", temperature, positive=False)
        self.seed, self.first_chain = counted(seed, first_chain)

    def init(self, x: Tensor, velocity: Tensor | None = None) -> UnderdampedState:
        """The state at x, with velocities drawn from N(0, T) where none are given."""
        x = x.detach().to(computed(x.dtype), copy=True)
        if velocity is None:
            t = as_tensor("temperature", self.temperature(0), x).to(x.dtype)
            velocity = torch.sqrt(t) * self._normal(x, Stream.MOMENTA, 0)
        return UnderdampedState(x, velocity.detach().to(x.dtype, copy=True), self._score(x))

    def step(self, state: UnderdampedState, k: int) -> UnderdampedState:
        """Step number k."""
        if (made := self.leap(state, k, 1, chain.NOTHING)) is not None:
            return made[0]
        x, v, score = state
        a = as_tensor("step_size", self.step_size(k), x).to(x.dtype)
        half, keep, renew = self._factors(a, as_tensor("temperature", self.temperature(k), x).to(x.dtype))
        v = v + half * score
        x = x + half * v
        v = keep * v + renew * self._normal(x, Stream.LANGEVIN, k)
        x = x + half * v
        score = self._score(x)
        return UnderdampedState(x, v + half * score, score)

    def leap(self, state: UnderdampedState, k: int, n: int, keep: chain.Keep) -> tuple[UnderdampedState, Tensor] | None:
        """Steps k to k + n - 1 at once, where compiled code knows the target."""
        x, steps = state.x, range(k, k + n)
        if (target := self._target(x)) is None:
            return None
        a = table("step_size", self.step_size, steps, x).expand(n, x.shape[1]).contiguous()
        factors = self._factors(a, table("temperature", self.temperature, steps, x))
        made, path = target.underdamped(state, factors, (self.seed, k, self.first_chain), keep)
        return UnderdampedState(*made), path

    def _factors(self, a: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a / 2, c = exp(-gamma a) and sqrt((1 - c^2) T)."""
        return 0.5 * a, torch.exp(-self.friction * a), torch.sqrt(-torch.expm1(-2.0 * self.friction * a) * t)

    def _target(self, x: Tensor) -> _cpu_target.Target | None:
        if self.dtype != torch.float32 or not self.known(x, self.cond):
            return None
        return _cpu_target.of(compiled(self.score_fn, x, self.cond), x)

    def _score(self, x: Tensor) -> Tensor:
        if (target := self._target(x)) is not None:
            return target.value(x)
        return self.known.score(x.to(self.dtype), self.cond).to(x.dtype)

    def _normal(self, x: Tensor, stream: Stream, k: int) -> Tensor:
        width = x.shape[1:].numel()
        return normal(x.shape[0], width, self.seed, stream, k, self.first_chain, x.dtype, x.device).view(x.shape)


@overload
def underdamped_langevin(
    score_fn: _checks.Score, x: Tensor, *, return_diagnostics: Literal[True], **given: Unpack[KineticArguments]
) -> Diagnosed: ...
@overload
def underdamped_langevin(
    score_fn: _checks.Score,
    x: Tensor,
    *,
    return_diagnostics: Literal[False] = ...,
    **given: Unpack[KineticArguments],
) -> Tensor: ...
@overload
def underdamped_langevin(
    score_fn: _checks.Score, x: Tensor, *, return_diagnostics: bool, **given: Unpack[KineticArguments]
) -> chain.Output: ...
def underdamped_langevin(
    score_fn: _checks.Score,
    x: Tensor,
    *,
    step_size: chain.Schedule,
    n_steps: int,
    friction: float = 1.0,
    temperature: chain.Schedule = 1.0,
    velocity: Tensor | None = None,
    burn_in: int = 0,
    thin: int = 1,
    cond: Tensor | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    first_chain: int = 0,
    first_step: int = 0,
    on_nonfinite: str = "raise",
    return_trajectory: bool = False,
    return_diagnostics: bool = False,
    checkpoint: chain.Path | None = None,
    checkpoint_every: int = 1000,
    progress: bool = False,
) -> chain.Output:
    """Underdamped Langevin dynamics, dx = v dt, dv = s(x) dt - gamma v dt + sqrt(2 gamma T) dW, by the BAOAB splitting.

    One step is: half a kick v += a/2 s(x); half a drift x += a/2 v; v = c v + sqrt((1 - c^2) T) e, c = exp(-gamma a);
    half a drift; half a kick at the new x: one evaluation of the score a step. Positions tend to p^(1/T) up to a bias
    of order a^2, none at all for a Gaussian (Leimkuhler and Matthews, AMRX 2013(1), section 2). Here a is the step of a
    second-order equation: with unit mass it is stable for a < 2 / sqrt(L).

    Args:
        score_fn: s; called as score_fn(x), or score_fn(x, cond) where `cond` is given.
        x: starting points, `[B, *event]`; not changed.
        step_size: a > 0, as in `langevin_dynamics`.
        n_steps: how many steps to make.
        friction: gamma > 0, one over a time.
        temperature: T >= 0, as in `langevin_dynamics`.
        velocity: starting velocities, of the shape of x; drawn from N(0, T) when None. Needed to go on with a chain
            (`first_step` > 0): it is in the diagnostics, and in the `state` of an interrupt.
        burn_in: as in `langevin_dynamics`, as are the arguments that follow.
        thin: keep every thin-th state.
        cond: handed to `score_fn` with every call.
        seed: an int in [0, 2^64).
        generator: where to draw the seed from instead.
        first_chain: the global index of row 0.
        first_step: the number of the first step, to go on with a chain that was stopped.
        on_nonfinite: "raise", "freeze" or "ignore".
        return_trajectory: return the kept positions `[B, n_kept, *event]`.
        return_diagnostics: return (samples, diagnostics), with the last `velocity`, `[B, *event]`, among them.
        checkpoint: as in `langevin_dynamics`.
        checkpoint_every: likewise.
        progress: show a progress bar.

    Returns:
        The last positions, or as the two flags say.

    Raises:
        NonFiniteError: see `langevin_dynamics`.
        Interrupted: Ctrl-C, likewise.
        TypeError: an argument of a wrong type, by name.
        ValueError: a wrong shape or device, or a number outside its range, by name.
    """
    score_fn = prepare(score_fn, x, first_chain, step_size=step_size, temperature=temperature)
    _checks.scalar("friction", friction)
    if velocity is not None:
        _checks.floating("velocity", velocity)
        _checks.same_shape("velocity", velocity, "x", x)
        _checks.same_device("velocity", velocity, "x", x)
    warn_of_divergence(score_fn, step_size, x, order=2)
    run = chain.Run(
        n_steps=n_steps,
        burn_in=burn_in,
        thin=thin,
        first_step=first_step,
        first_chain=first_chain,
        on_nonfinite=on_nonfinite,
        return_trajectory=return_trajectory,
        return_diagnostics=return_diagnostics,
        progress=progress,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        settings={"step_size": step_size, "friction": friction, "temperature": temperature, "cond": cond},
    )
    if velocity is None and first_step:
        raise ValueError(f"velocity is needed to go on with a chain, got None with first_step {first_step}")
    run = run.seeded(seed, generator)
    algorithm = Underdamped(
        score_fn,
        step_size=step_size,
        friction=friction,
        temperature=temperature,
        cond=cond,
        seed=run.seed,
        first_chain=first_chain,
        dtype=x.dtype,
    )
    announce(score_fn, x, cond, n_steps)
    with torch.no_grad():
        start = algorithm.init(x, velocity)
    state, output = chain.run_chain(algorithm, x, run, state=start)
    if not isinstance(output, Tensor):
        output[1]["velocity"] = state.velocity
    return output
