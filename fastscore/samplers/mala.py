"""The Metropolis-adjusted Langevin algorithm: Langevin proposals, accepted so that the density is kept exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.networks import EnergyMLP
from fastscore.ops import _cpu_target
from fastscore.ops.langevin import langevin_step
from fastscore.ops.metropolis import accept
from fastscore.ops.noise import computed
from fastscore.reference.metropolis import MalaState as MalaState
from fastscore.reference.metropolis import Proposal
from fastscore.samplers import analytic, chain
from fastscore.samplers.analytic import Known, announce
from fastscore.samplers.arguments import as_tensor, counted, prepare, table, told
from fastscore.samplers.signatures import Diagnosed, MalaArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

LogProb = Callable[..., Tensor]


class Mala:
    """The algorithm as `init` and `step`.

    A proposal where log p = -inf, outside the support, is refused. One that is not finite itself, or where log p is NaN
    or +inf or its gradient not finite, makes x NaN, so that it is not taken for a refusal.
    """

    def __init__(
        self,
        log_prob: LogProb | Any,
        *,
        step_size: chain.Schedule,
        score_fn: _checks.Score | None = None,
        cond: Tensor | None = None,
        seed: int,
        first_chain: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        density, gradient = _density(log_prob, score_fn)
        self.log_prob, self.score_fn = told(density, cond), gradient and told(gradient, cond)
        self.step_size = chain.schedule("step_size", step_size)
        self.dtype = dtype
        self.seed, self.first_chain = counted(seed, first_chain)
        self.known = Known(self.log_prob)

    def init(self, x: Tensor) -> MalaState:
        """The state at x."""
        x = x.detach().to(computed(x.dtype), copy=True)
        log_prob, score = self.evaluate(x)
        return MalaState(x, log_prob, score, torch.zeros_like(log_prob))

    def step(self, state: MalaState, k: int) -> MalaState:
        """Step number k."""
        if (made := self.leap(state, k, 1, chain.NOTHING)) is not None:
            return made[0]
        counters, x = (self.seed, k, self.first_chain), state.x
        a = as_tensor("step_size", self.step_size(k), x).to(x.dtype)
        y = langevin_step(x, state.score, a, 1.0, *counters)
        return accept(state, Proposal(y, *self.evaluate(y)), a, *counters)

    def leap(self, state: MalaState, k: int, n: int, keep: chain.Keep) -> tuple[MalaState, Tensor] | None:
        """Steps k to k + n - 1 at once, where compiled code knows the target."""
        if (target := self._target(state.x)) is None:
            return None
        a = table("step_size", self.step_size, range(k, k + n), state.x).expand(n, state.x.shape[1]).contiguous()
        made, path = target.mala(state, a, (self.seed, k, self.first_chain), keep)
        return MalaState(*made), path

    def _target(self, x: Tensor) -> _cpu_target.Target | None:
        if self.dtype != torch.float32 or not self.known(x):
            return None
        return _cpu_target.of(analytic.density(self.log_prob, self.score_fn, x), x)

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p `[B]` and its gradient at x, in x's dtype."""
        if (target := self._target(x)) is not None:
            return target.density(x)
        point = x.to(self.dtype)
        if self.score_fn is not None:
            return _values(self.log_prob, point).to(x.dtype), _checks.evaluate(self.score_fn, point).to(x.dtype)
        with torch.inference_mode(False), torch.enable_grad():
            point = (point.clone() if point.is_inference() else point.detach()).requires_grad_()
            log_prob = _values(self.log_prob, point)
            if not log_prob.requires_grad:
                raise ValueError("log_prob must be differentiable in x, got values without a graph; or give score_fn")
            (score,) = torch.autograd.grad(log_prob.sum(), point, allow_unused=True)
            if score is None:
                raise ValueError("log_prob must be differentiable in x, got values that do not depend on x")
        return log_prob.detach().to(x.dtype), score.to(x.dtype)


@overload
def mala(
    log_prob: LogProb | Any, x: Tensor, *, return_diagnostics: Literal[True], **given: Unpack[MalaArguments]
) -> Diagnosed: ...
@overload
def mala(
    log_prob: LogProb | Any, x: Tensor, *, return_diagnostics: Literal[False] = ..., **given: Unpack[MalaArguments]
) -> Tensor: ...
@overload
def mala(
    log_prob: LogProb | Any, x: Tensor, *, return_diagnostics: bool, **given: Unpack[MalaArguments]
) -> chain.Output: ...
def mala(
    log_prob: LogProb | Any,
    x: Tensor,
    *,
    step_size: chain.Schedule,
    n_steps: int,
    score_fn: _checks.Score | None = None,
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
    """The Metropolis-adjusted Langevin algorithm on every row of x at once: p is its exact stationary law.

    y = x + a s(x) + sqrt(2 a) e is accepted with probability min(1, p(y) q(x | y) / (p(x) q(y | x))),
    q(y | x) = N(y; x + a s(x), 2 a I), s = grad log p (Roberts and Tweedie, Bernoulli 2(4), 1996, section 1.4.2).

    Args:
        log_prob: log p up to a constant, `[B, *event]` -> `[B]`, whose gradient autograd takes; or a target, an object
            with `log_prob` and `score`; or an `EnergyMLP` E, for p = exp(-E). Of any other energy, give
            `lambda x: -E(x)`. At a temperature T, give log p / T, and T times the step size.
        x: starting points, `[B, *event]`; not changed.
        step_size: a > 0, a time, as in `langevin_dynamics`; an acceptance rate near 0.57 is best in many dimensions.
        n_steps: how many steps to make.
        score_fn: grad log p, where it is cheaper than autograd.
        burn_in: as in `langevin_dynamics`, as are the arguments that follow.
        thin: keep every thin-th state.
        cond: handed to `log_prob` and `score_fn` with every call, as their second argument.
        seed: an int in [0, 2^64).
        generator: where to draw the seed from instead.
        first_chain: the global index of row 0.
        first_step: the number of the first step, to go on with a chain that was stopped.
        on_nonfinite: "raise", "freeze" or "ignore".
        return_trajectory: return the kept states `[B, n_kept, *event]`.
        return_diagnostics: return (samples, diagnostics), with `acceptance_rate`, `[B]`, among them.
        checkpoint: as in `langevin_dynamics`.
        checkpoint_every: likewise.
        progress: show a progress bar.

    Returns:
        The last state, or as the two flags say.

    Raises:
        NonFiniteError: see `langevin_dynamics`; also where a proposal or the gradient of log p is not finite, or log p
            is NaN or +inf.
        Interrupted: Ctrl-C, likewise.
        TypeError: an argument of a wrong type, by name.
        ValueError: a wrong shape or device, or a number outside its range, by name.
    """
    prepare(_density(log_prob, score_fn)[0], x, first_chain, step_size=step_size)
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
        settings={"step_size": step_size, "cond": cond},
    ).seeded(seed, generator)
    algorithm = Mala(
        log_prob,
        step_size=step_size,
        score_fn=score_fn,
        cond=cond,
        seed=run.seed,
        first_chain=first_chain,
        dtype=x.dtype,
    )
    announce(algorithm.log_prob, x, None, n_steps)
    state, output = chain.run_chain(algorithm, x, run)
    if not isinstance(output, Tensor):
        output[1]["acceptance_rate"] = state.accepted / max(1, n_steps)
    return output


def _density(log_prob: Any, score_fn: _checks.Score | None) -> tuple[LogProb, _checks.Score | None]:
    """(log p, grad log p or None) of a function, of an object that has them as methods, or of an energy."""
    if score_fn is not None:
        _checks.callable_("score_fn", score_fn)
    if isinstance(log_prob, EnergyMLP):
        return lambda *given: -log_prob(*given), score_fn
    if callable(method := getattr(log_prob, "log_prob", None)):
        return method, score_fn or getattr(log_prob, "score", None)
    _checks.callable_("log_prob", log_prob)
    return log_prob, score_fn


def _values(log_prob: LogProb, x: Tensor) -> Tensor:
    """log_prob(x), checked to be a tensor `[B]`."""
    values = log_prob(x)
    if not isinstance(values, Tensor):
        raise TypeError(f"log_prob must return a tensor, got {type(values).__name__}")
    if values.shape != x.shape[:1]:
        raise ValueError(f"log_prob must return one number a row, shape {[x.shape[0]]}, got {list(values.shape)}")
    if not values.is_floating_point():
        raise TypeError(f"log_prob must return a floating point tensor, got {values.dtype}")
    return values
