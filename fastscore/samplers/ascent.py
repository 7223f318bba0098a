"""Gradient ascent on log p: x' = x + a s(x), Langevin dynamics at temperature 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

from torch import Tensor

from fastscore import _checks
from fastscore.samplers import chain
from fastscore.samplers.langevin import langevin_dynamics
from fastscore.samplers.signatures import AscentArguments, Diagnosed

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def gradient_ascent(
    score_fn: _checks.Score, x: Tensor, *, return_diagnostics: Literal[True], **given: Unpack[AscentArguments]
) -> Diagnosed: ...
@overload
def gradient_ascent(
    score_fn: _checks.Score, x: Tensor, *, return_diagnostics: Literal[False] = ..., **given: Unpack[AscentArguments]
) -> Tensor: ...
@overload
def gradient_ascent(
    score_fn: _checks.Score, x: Tensor, *, return_diagnostics: bool, **given: Unpack[AscentArguments]
) -> chain.Output: ...
def gradient_ascent(
    score_fn: _checks.Score,
    x: Tensor,
    *,
    step_size: chain.Schedule,
    n_steps: int,
    burn_in: int = 0,
    thin: int = 1,
    clamp: tuple[float, float] | None = None,
    cond: Tensor | None = None,
    first_chain: int = 0,
    first_step: int = 0,
    on_nonfinite: str = "raise",
    return_trajectory: bool = False,
    return_diagnostics: bool = False,
    checkpoint: chain.Path | None = None,
    checkpoint_every: int = 1000,
    progress: bool = False,
) -> chain.Output:
    """`n_steps` of x + a s(x): every row of x climbs log p to a mode. Nothing is random.

    Arguments, results and errors are those of `langevin_dynamics`; it converges for a < 2 / L, L the Lipschitz constant
    of the score.
    """
    return langevin_dynamics(
        score_fn,
        x,
        step_size=step_size,
        n_steps=n_steps,
        temperature=0.0,
        burn_in=burn_in,
        thin=thin,
        clamp=clamp,
        cond=cond,
        seed=0,
        first_chain=first_chain,
        first_step=first_step,
        on_nonfinite=on_nonfinite,
        return_trajectory=return_trajectory,
        return_diagnostics=return_diagnostics,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )
