"""Annealed Langevin dynamics (Song and Ermon 2019, algorithm 1; 2020 for the step sizes and the last denoising)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.ops import _cpu_target, graph
from fastscore.ops import chain as _whole_chain
from fastscore.ops import langevin as _ops
from fastscore.samplers import chain, whole
from fastscore.samplers.algorithm import LangevinState, LangevinSteps
from fastscore.samplers.analytic import Known, announce, level
from fastscore.samplers.arguments import as_tensor, check_clamp, checked, counted, prepare, told
from fastscore.samplers.signatures import AnnealedArguments, Diagnosed

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AnnealedLangevin(LangevinSteps):
    """The ladder, as `init` and `step`: step k is at level k div n_steps_each, a_i = eps (sigma_i / sigma_last)^2."""

    def __init__(
        self,
        score_fn: _checks.Score,
        *,
        sigmas: Sequence[float],
        n_steps_each: int,
        step_size: float,
        temperature: float = 1.0,
        clamp: tuple[float, float] | None = None,
        seed: int,
        first_chain: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.score_fn, self.sigmas, self.dtype = score_fn, ladder(sigmas), dtype
        self.n_steps_each = _checks.count("n_steps_each", n_steps_each)
        _checks.scalar("step_size", step_size)
        self.step_sizes = [step_size * (sigma / self.sigmas[-1]) ** 2 for sigma in self.sigmas]
        if self.step_sizes[0] > torch.finfo(torch.float32).max:
            raise ValueError(f"sigmas span too much: the step size at the first level is {self.step_sizes[0]:.3g}")
        self.temperature, self.clamp = temperature, check_clamp(clamp)
        self.seed, self.first_chain = counted(seed, first_chain)
        self.source, self.known = whole.UNKNOWN, Known(score_fn)
        # The noise level that a captured step reads, [B].
        self.sigma = torch.empty(0, dtype=torch.float32, device="cpu")
        self.captured = graph.Capture()

    def step(self, state: LangevinState, k: int) -> LangevinState:
        """Step number k."""
        if (made := self.leap(state, k, 1, chain.NOTHING)) is not None:
            return made[0]
        x = state.x
        rung = k // self.n_steps_each
        a, t = checked("step_size", self.step_sizes[rung], x), checked("temperature", self.temperature, x)
        moved = _ops.langevin_step(x, self.score(x, self.sigmas[rung]), a, t, self.seed, k, self.first_chain)
        return LangevinState(moved if self.clamp is None else moved.clamp(*self.clamp))

    def _whole(self, x: Tensor, k: int, n: int, keep: chain.Keep) -> _whole_chain.Result | None:
        if not self.source.known:
            self.source = whole.Found(whole.ladder(self.score_fn, x, self.sigmas) if self.dtype == x.dtype else None)
        if (network := self.source.source) is None:
            return None
        a = torch.tensor(self.step_sizes, dtype=x.dtype, device=x.device)
        return _whole_chain.run(
            network,
            x,
            _whole_chain.Schedule(a, torch.full_like(a, self.temperature), self.n_steps_each, k),
            n_steps=n,
            seed=self.seed,
            first_step=k,
            first_chain=self.first_chain,
            clamp=self.clamp,
            keep=keep,
        )

    def _compiled(self, x: Tensor, k: int, n: int, keep: chain.Keep) -> tuple[Tensor, Tensor] | None:
        if x.device.type != "cpu" or self.dtype != torch.float32 or not self.known(x, self._told(x, self.sigmas[0])):
            return None
        moved, first, last, paths = x, k, k + n, []
        while k < last:
            found = k // self.n_steps_each
            until = min(last, (found + 1) * self.n_steps_each)
            a = x.new_full((until - k, 1), self.step_sizes[found])
            t = torch.full_like(a, self.temperature)
            counters, part = (self.seed, k, self.first_chain), keep.part(k - first, until - first)
            source = level(self.score_fn, moved, self.sigmas[found])
            if (made := _cpu_target.langevin(source, moved, a, t, self.clamp, counters, part)) is None:
                return None
            moved, k = made[0], until
            paths.append(made[1])
        return moved, torch.cat(paths, 1)

    def _settings(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Step size and temperature of step k."""
        a = self.step_sizes[k // self.n_steps_each]
        return as_tensor("step_size", a, x), as_tensor("temperature", self.temperature, x)

    def _replay(self, x: Tensor, k: int, n: int) -> Tensor | None:
        def capture() -> graph.ReplayedSteps | None:
            self.sigma = torch.full((x.shape[0],), self.sigmas[0], dtype=self.dtype, device=x.device)
            owner = getattr(self.score_fn, "__self__", self.score_fn)
            settings = (*self._settings(k, x), self.clamp, self.seed, self.first_chain)
            return graph.replayed(owner, self._score_at_level, x, *settings)

        if (replayed := self.captured.find(n, capture)) is None:
            return None

        told: int | None = None

        def rung(step: int) -> tuple[Tensor, Tensor] | None:
            nonlocal told
            if (found := step // self.n_steps_each) == told:
                return None
            told = found
            self.sigma.fill_(self.sigmas[found])
            return self._settings(step, x)

        return replayed.run(x, k, n, rung)

    def _score_at_level(self, x: Tensor) -> Tensor:
        return self.known.score(x.to(self.dtype), self.sigma)

    def score(self, x: Tensor, sigma: float) -> Tensor:
        """s(x, sigma), with sigma as `[B]`."""
        x = x.to(self.dtype)
        return self.known.score(x, self._told(x, sigma))

    def _told(self, x: Tensor, sigma: float) -> Tensor:
        return torch.full((x.shape[0],), sigma, dtype=x.dtype, device=x.device)


@overload
def annealed_langevin_dynamics(
    score_fn: _checks.Score, x: Tensor, *, return_diagnostics: Literal[True], **given: Unpack[AnnealedArguments]
) -> Diagnosed: ...
@overload
def annealed_langevin_dynamics(
    score_fn: _checks.Score, x: Tensor, *, return_diagnostics: Literal[False] = ..., **given: Unpack[AnnealedArguments]
) -> Tensor: ...
@overload
def annealed_langevin_dynamics(
    score_fn: _checks.Score, x: Tensor, *, return_diagnostics: bool, **given: Unpack[AnnealedArguments]
) -> chain.Output: ...
def annealed_langevin_dynamics(
    score_fn: _checks.Score,
    x: Tensor,
    *,
    sigmas: Sequence[float] | Tensor,
    n_steps_each: int,
    step_size: float,
    temperature: float = 1.0,
    denoise: bool = True,
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
    """Langevin dynamics down a ladder of noise levels, the last state denoised.

    For each sigma_i, largest first: `n_steps_each` steps of x + a_i s(x, sigma_i) + sqrt(2 a_i T) e with
    a_i = step_size (sigma_i / sigma_last)^2; then, if `denoise`, x + sigma_last^2 s(x, sigma_last), the posterior mean
    (Song and Ermon, NeurIPS 2019, algorithm 1, in which alpha_i = 2 a_i; NeurIPS 2020, section 3; Tweedie's formula).

    Args:
        score_fn: s(x, sigma), called with sigma as a tensor `[B]`; s(x, sigma, cond) where `cond` is given.
        x: starting points `[B, *event]`, usually noise of standard deviation sigmas[0]; not changed.
        sigmas: the noise levels, finite, > 0 and decreasing.
        n_steps_each: steps at each level.
        step_size: eps > 0, the step size at the last level.
        temperature: T >= 0.
        denoise: whether the last state (and not the trajectory) is denoised.
        burn_in: as in `langevin_dynamics`, as are the arguments that follow; steps are counted over the whole ladder.
        thin: keep every thin-th state.
        clamp: (low, high), applied to the state after every step; infinity is clamped too, and not reported then.
        cond: handed to `score_fn` with every call, such as a class a row.
        seed: an int in [0, 2^64).
        generator: where to draw the seed from instead.
        first_chain: the global index of row 0.
        first_step: the number of the first step in the whole ladder, to go on with a chain that was stopped.
        on_nonfinite: "raise", "freeze" or "ignore".
        return_trajectory: return the kept states `[B, n_kept, *event]`.
        return_diagnostics: return (samples, diagnostics).
        checkpoint: as in `langevin_dynamics`.
        checkpoint_every: likewise.
        progress: show a progress bar.

    Returns:
        The last state, denoised where asked, or as the two flags say.

    Raises:
        NonFiniteError: see `langevin_dynamics`.
        Interrupted: Ctrl-C, likewise.
        TypeError: an argument of a wrong type, by name.
        ValueError: a wrong shape or device, or a number outside its range, by name.
    """
    score_fn = told(prepare(score_fn, x, first_chain, temperature=temperature), cond)
    if callable(temperature):
        raise TypeError("temperature must be a number or a 0-dim tensor, the same for the whole ladder, got a function")
    levels = ladder(sigmas)
    _checks.count("n_steps_each", n_steps_each)
    _checks.scalar("step_size", step_size)
    _checks.flag("denoise", denoise)
    total = len(levels) * n_steps_each
    _checks.integer("first_step", first_step, 0, total + 1)
    run = chain.Run(
        n_steps=total - first_step,
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
        settings={
            "sigmas": levels,
            "step_size": step_size,
            "temperature": temperature,
            "clamp": check_clamp(clamp),
            "cond": cond,
            "n_steps_each": n_steps_each,
        },
    ).seeded(seed, generator)
    algorithm = AnnealedLangevin(
        score_fn,
        sigmas=levels,
        n_steps_each=n_steps_each,
        step_size=step_size,
        temperature=temperature,
        clamp=clamp,
        seed=run.seed,
        first_chain=first_chain,
        dtype=x.dtype,
    )
    announce(score_fn, x, torch.full((len(x),), levels[0], dtype=x.dtype, device=x.device), total)
    state, output = chain.run_chain(algorithm, x, run)
    if not denoise or return_trajectory:
        return output
    with torch.no_grad():
        final = run.settled(state.x, (state.x + levels[-1] ** 2 * algorithm.score(state.x, levels[-1])).to(x.dtype))
    return final if isinstance(output, Tensor) else (final, output[1])


def ladder(sigmas: Sequence[float] | Tensor) -> list[float]:
    """The noise levels as floats, checked."""
    to_list = getattr(sigmas, "tolist", None)  # of a tensor or a NumPy array
    given = sigmas if to_list is None else to_list()
    if not isinstance(given, Sequence) or not all(isinstance(sigma, (int, float)) for sigma in given):
        raise TypeError(f"sigmas must be a sequence of numbers, got {given}")
    if not given:
        raise ValueError("sigmas must have at least one noise level, got none")
    for sigma in given:
        _checks.positive("sigmas", sigma)
    levels = [float(sigma) for sigma in given]
    if any(later >= sooner for sooner, later in itertools.pairwise(levels)):
        raise ValueError(f"sigmas must decrease, got {levels}")
    return levels
