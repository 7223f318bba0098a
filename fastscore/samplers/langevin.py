"""Langevin dynamics (unadjusted; ULA): x' = x + a s(x) + sqrt(2 a T) e."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.ops import _cpu_target, graph
from fastscore.ops import chain as _whole_chain
from fastscore.ops import langevin as _ops
from fastscore.samplers import chain, whole
from fastscore.samplers.algorithm import LangevinState, LangevinSteps
from fastscore.samplers.analytic import Known, announce, compiled
from fastscore.samplers.arguments import as_tensor, check_clamp, checked, counted, prepare, table, warn_of_divergence
from fastscore.samplers.signatures import Diagnosed, LangevinArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


def langevin_step(
    x: Tensor,
    score: Tensor,
    *,
    step_size: float | Tensor,
    seed: int,
    step: int,
    temperature: float | Tensor = 1.0,
    first_chain: int = 0,
) -> Tensor:
    """One step of Langevin dynamics, x + a score + sqrt(2 a T) e with e ~ N(0, I), differentiable.

    The Euler-Maruyama step of dX = s(X) dt + sqrt(2 T) dW, whose law at T = 1 tends to the density p with
    s = grad log p as a -> 0 (Roberts and Tweedie, Bernoulli 2(4), 1996, section 1.2). The noise is a pure function of
    (seed, step, chain, feature): the same on every device and for every split of the batch, made inside the step on a
    GPU, and regenerated, never stored, by the backward pass. Gradients flow to x, score and step_size.

    Args:
        x: the state, `[B, *event]`, float16, bfloat16, float32 or float64.
        score: grad log p at x, the same shape and device; its dtype may differ.
        step_size: a, a time: a finite number > 0, a 0-dim tensor, or a tensor of the event's shape for one step size a
            feature. The noise grows with its square root.
        seed: an int in [0, 2^64).
        step: which step of the chain this is, an int in [0, 2^32). Two steps of one chain must differ in it.
        temperature: T, a finite number >= 0 (0: gradient ascent) or a 0-dim tensor; no gradient flows to it.
        first_chain: the global index of row 0, an int in [0, 2^56), for a batch that is a part of a larger one.

    Returns:
        The next state, of the shape and dtype of x. Arithmetic is in float32 (float64 for a float64 x).

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a wrong shape or device, or a number outside its range, by name.
    """
    _checks.batch("x", x)
    _checks.floating("score", score)
    _checks.same_shape("score", score, "x", x)
    _checks.same_device("score", score, "x", x)
    _checks.positive("step_size", step_size)
    _checks.nonnegative("temperature", temperature)
    _checks.integer("seed", seed, 0, 2**64)
    _checks.integer("step", step, 0, 2**32)
    _checks.integer("first_chain", first_chain, 0, 2**56 - x.shape[0] + 1)
    return _ops.langevin_step(
        x,
        score,
        checked("step_size", step_size, x),
        checked("temperature", temperature, x),
        seed,
        step,
        first_chain,
    )


class Langevin(LangevinSteps):
    """Langevin dynamics as `init` and `step`, for people who write their own loop.

    The state is kept in float32 (float64 for a float64 x), because small steps would be lost in a narrower one; the
    score is evaluated at the state rounded to `dtype`. A loop of one's own:

        algorithm = fastscore.samplers.Langevin(score_fn, step_size=0.01, seed=0, dtype=x.dtype)
        state = algorithm.init(x)
        for k in range(1000):
            state = algorithm.step(state, k)  # state.x is the position
    """

    def __init__(
        self,
        score_fn: _checks.Score,
        *,
        step_size: chain.Schedule,
        temperature: chain.Schedule = 1.0,
        clamp: tuple[float, float] | None = None,
        cond: Tensor | None = None,
        seed: int,
        first_chain: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.score_fn, self.cond, self.clamp, self.dtype = score_fn, cond, check_clamp(clamp), dtype
        self.given, self.source, self.captured = (step_size, temperature), whole.UNKNOWN, graph.Capture()
        self.known = Known(score_fn)
        self.step_size = chain.schedule("step_size", step_size)
        self.temperature = chain.schedule("temperature", temperature, positive=False)
        self.seed, self.first_chain = counted(seed, first_chain)

    def step(self, state: LangevinState, k: int) -> LangevinState:
        """Step number k."""
        if (made := self.leap(state, k, 1, chain.NOTHING)) is not None:
            return made[0]
        x = state.x
        a, t = checked("step_size", self.step_size(k), x), checked("temperature", self.temperature(k), x)
        score = self._score(x)
        moved = _ops.langevin_step(x, score, a, t, self.seed, k, self.first_chain)
        return LangevinState(moved if self.clamp is None else moved.clamp(*self.clamp))

    def _compiled(self, x: Tensor, k: int, n: int, keep: chain.Keep) -> tuple[Tensor, Tensor] | None:
        if self.dtype != torch.float32 or not self.known(x, self.cond):
            return None
        if (source := compiled(self.score_fn, x, self.cond)) is None:
            return None
        a, t = (
            table(name, schedule, range(k, k + n), x)
            for name, schedule in (("step_size", self.step_size), ("temperature", self.temperature))
        )
        return _cpu_target.langevin(source, x, a, t, self.clamp, (self.seed, k, self.first_chain), keep)

    @property
    def _constant(self) -> bool:
        """Whether all steps have one step size and one temperature."""
        return not (callable(self.given[0]) or callable(self.given[1]))

    def _settings(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Step size and temperature of step k."""
        return as_tensor("step_size", self.step_size(k), x), as_tensor("temperature", self.temperature(k), x)

    def _score(self, x: Tensor) -> Tensor:
        """The score at the state, rounded to what the score function is given."""
        return self.known.score(x.to(self.dtype), self.cond)

    def _replay(self, x: Tensor, k: int, n: int) -> Tensor | None:
        owner, counters = getattr(self.score_fn, "__self__", self.score_fn), (self.seed, self.first_chain)
        replayed = self.captured.find(
            n, lambda: graph.replayed(owner, self._score, x, *self._settings(k, x), self.clamp, *counters)
        )
        if replayed is None:
            return None
        return replayed.run(x, k, n, None if self._constant else lambda k: self._settings(k, x))

    def _whole(self, x: Tensor, k: int, n: int, keep: chain.Keep) -> _whole_chain.Result | None:
        if not self.source.known:
            self.source = whole.Found(whole.source(self.score_fn, x, self.cond) if self.dtype == x.dtype else None)
        if (source := self.source.source) is None:
            return None
        constant = self._constant
        if not constant and isinstance(source, _whole_chain.Network) and source.has_rows:
            return None  # its rows go by the level of the schedule
        steps = range(k, k + 1) if constant else range(k, k + n)
        a = torch.stack([as_tensor("step_size", self.step_size(step), x) for step in steps])
        t = torch.stack([as_tensor("temperature", self.temperature(step), x) for step in steps])
        table = _whole_chain.Schedule(a, t, 2**30 if constant else 1)
        return _whole_chain.run(
            source,
            x,
            table,
            n_steps=n,
            seed=self.seed,
            first_step=k,
            first_chain=self.first_chain,
            clamp=self.clamp,
            keep=keep,
        )


@overload
def langevin_dynamics(
    score_fn: _checks.Score, x: Tensor, *, return_diagnostics: Literal[True], **given: Unpack[LangevinArguments]
) -> Diagnosed: ...
@overload
def langevin_dynamics(
    score_fn: _checks.Score, x: Tensor, *, return_diagnostics: Literal[False] = ..., **given: Unpack[LangevinArguments]
) -> Tensor: ...
@overload
def langevin_dynamics(
    score_fn: _checks.Score, x: Tensor, *, return_diagnostics: bool, **given: Unpack[LangevinArguments]
) -> chain.Output: ...
def langevin_dynamics(
    score_fn: _checks.Score,
    x: Tensor,
    *,
    step_size: chain.Schedule,
    n_steps: int,
    temperature: chain.Schedule = 1.0,
    burn_in: int = 0,
    thin: int = 1,
    clamp: tuple[float, float] | None = None,
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
    """Unadjusted Langevin dynamics: `n_steps` of x + a s(x) + sqrt(2 a T) e on every row of x at once.

    The law of the chain tends to that of density p^(1/T), s = grad log p, up to a bias of order a (Roberts and Tweedie,
    Bernoulli 2(4), 1996). It diverges when a > 2 / L for an L-Lipschitz score. No graph is built through `score_fn`.

    Args:
        score_fn: s; called as score_fn(x), or score_fn(x, cond) where `cond` is given, without a graph; or a target, an
            object with a method `score`. Row i of the score must depend on row i of x alone.
        x: starting points, `[B, *event]`; not changed.
        step_size: a > 0, a time: a number, a 0-dim tensor, a tensor of the event's shape (a step size a feature), or a
            function of the step number giving one of these.
        n_steps: how many steps to make.
        temperature: T >= 0: a number, a 0-dim tensor, or a function of the step number.
        burn_in: steps before the first is counted for keeping.
        thin: keep every thin-th state after the burn-in: (n_steps - burn_in) // thin of them.
        clamp: (low, high), applied to the state after every step; infinity is clamped too, and not reported then.
        cond: handed to `score_fn` with every call.
        seed: an int in [0, 2^64).
        generator: where to draw the seed from instead; with neither, torch's default CPU generator.
        first_chain: the global index of row 0, for a batch that is a part of a larger one: the same samples.
        first_step: the number of the first step, to go on with a chain that was stopped: the same samples.
        on_nonfinite: "raise" a NonFiniteError naming chain and step; "freeze" the chain at its last finite state, flag
            it in the diagnostics and keep the others going; or "ignore".
        return_trajectory: return the kept states `[B, n_kept, *event]` instead of the last one.
        return_diagnostics: return (samples, diagnostics), a dict: `mean` and `var` over the chains at every kept step,
            `chain_mean` and `chain_var` of every chain over its kept states, and `first_nonfinite`, the step after
            which a chain was first not finite, or -1.
        checkpoint: a file the run is written to, and goes on from where it is there; see `samplers.saved`. It is of
            these arguments, which are checked, and of this score, which cannot be: give another score a new file.
        checkpoint_every: steps between two writings; it is also written at the end and at Ctrl-C.
        progress: show a progress bar.

    Returns:
        The last state, of the shape and dtype of x, or as the two flags above say.

    Raises:
        NonFiniteError: see `on_nonfinite`.
        Interrupted: Ctrl-C; a KeyboardInterrupt that carries the state and the step to go on with.
        TypeError: an argument of a wrong type, by name.
        ValueError: a wrong shape or device, or a number outside its range, by name.
    """
    score_fn = prepare(score_fn, x, first_chain, step_size=step_size, temperature=temperature)
    warn_of_divergence(score_fn, step_size, x)
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
        settings={"step_size": step_size, "temperature": temperature, "clamp": check_clamp(clamp), "cond": cond},
    ).seeded(seed, generator)
    algorithm = Langevin(
        score_fn,
        step_size=step_size,
        temperature=temperature,
        clamp=clamp,
        cond=cond,
        seed=run.seed,
        first_chain=first_chain,
        dtype=x.dtype,
    )
    announce(score_fn, x, cond, n_steps)
    return chain.run_chain(algorithm, x, run)[1]
