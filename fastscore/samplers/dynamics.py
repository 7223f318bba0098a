"""Langevin dynamics as an object, called as other packages call theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.noise import Stream, normal, resolve_seed
from fastscore.samplers import chain
from fastscore.samplers.arguments import as_score, check_clamp
from fastscore.samplers.langevin import langevin_dynamics
from fastscore.samplers.signatures import Diagnosed, SampleArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LangevinDynamics:
    """Langevin dynamics as an object: fix the score and the step once, then call `sample`.

    Args:
        score_fn: s = grad log p, as in `langevin_dynamics`; or any object with a `score` method.
        step_size: a, as in `langevin_dynamics`.
        temperature: T, as in `langevin_dynamics`.
        clamp: (low, high), applied to the state after every step.
        cond: handed to `score_fn` with every call.
        on_nonfinite: "raise", "freeze" or "ignore".
        dtype: of the initial state that `sample` makes when it is given none.
        device: likewise.

    Raises:
        TypeError: an argument of a wrong type, by name.
        ValueError: a number outside its range, by name.
    """

    def __init__(
        self,
        score_fn: _checks.Score,
        step_size: chain.Schedule = 1e-3,
        *,
        temperature: chain.Schedule = 1.0,
        clamp: tuple[float, float] | None = None,
        cond: Tensor | None = None,
        on_nonfinite: str = "raise",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        chain.schedule("step_size", step_size)
        chain.schedule("temperature", temperature, positive=False)
        _checks.choice("on_nonfinite", on_nonfinite, chain.POLICIES)
        _checks.floating_dtype("dtype", dtype)
        _checks.device("device", device)
        self.score_fn, self.dtype, self.device = as_score(score_fn), dtype, device
        self._arguments: dict[str, Any] = {
            "step_size": step_size,
            "temperature": temperature,
            "clamp": check_clamp(clamp),
            "cond": cond,
            "on_nonfinite": on_nonfinite,
        }

    @overload
    def sample(
        self,
        x: Tensor | None = ...,
        dim: int | tuple[int, ...] | None = ...,
        n_steps: int = ...,
        n_samples: int = ...,
        thin: int = ...,
        return_trajectory: bool = ...,
        *,
        return_diagnostics: Literal[True],
        **given: Unpack[SampleArguments],
    ) -> Diagnosed: ...
    @overload
    def sample(
        self,
        x: Tensor | None = ...,
        dim: int | tuple[int, ...] | None = ...,
        n_steps: int = ...,
        n_samples: int = ...,
        thin: int = ...,
        return_trajectory: bool = ...,
        return_diagnostics: Literal[False] = ...,
        **given: Unpack[SampleArguments],
    ) -> Tensor: ...
    @overload
    def sample(
        self,
        x: Tensor | None = ...,
        dim: int | tuple[int, ...] | None = ...,
        n_steps: int = ...,
        n_samples: int = ...,
        thin: int = ...,
        return_trajectory: bool = ...,
        return_diagnostics: bool = ...,
        **given: Unpack[SampleArguments],
    ) -> chain.Output: ...
    def sample(
        self,
        x: Tensor | None = None,
        dim: int | tuple[int, ...] | None = None,
        n_steps: int = 100,
        n_samples: int = 1,
        thin: int = 1,
        return_trajectory: bool = False,
        return_diagnostics: bool = False,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        burn_in: int = 0,
        checkpoint: chain.Path | None = None,
        checkpoint_every: int = 1000,
        progress: bool = False,
    ) -> chain.Output:
        """Run the chains.

        Args:
            x: starting points `[B, *event]`; if None, `n_samples` draws of N(0, I) of shape `dim`.
            dim: event shape (an int for a vector), needed when x is None.
            n_steps: how many steps to make.
            n_samples: how many chains, when x is None.
            thin: keep every thin-th state after the burn-in: (n_steps - burn_in) // thin of them.
            return_trajectory: return the kept states `[B, n_kept, *event]`.
            return_diagnostics: return (samples, {"mean", "var", ...}), see `langevin_dynamics`.
            seed: an int in [0, 2^64), for the initial state and the noise.
            generator: where to draw the seed from instead.
            burn_in: steps before the first is counted for keeping.
            checkpoint: a file the run is written to and goes on from, as in `langevin_dynamics`.
            checkpoint_every: steps between two writings.
            progress: show a progress bar.

        Returns:
            The last state, or as the two flags say.

        Raises:
            TypeError: an argument of a wrong type, by name.
            ValueError: x and dim are both missing, or a number is outside its range.
        """
        seed = resolve_seed(seed, generator)
        event = tuple(dim) if isinstance(dim, Sequence) else (dim,)
        if dim is not None and isinstance(x, Tensor) and x.shape[1:] != event:
            raise ValueError(f"dim must be the event's shape of x {list(x.shape[1:])}, got {dim}")
        if x is None:
            if dim is None:
                raise ValueError("give x (starting points) or dim (the shape of an event), got neither")
            shape = (_checks.count("n_samples", n_samples), *(_checks.count("dim", d) for d in event))
            x = normal(shape, seed=seed, stream=Stream.INITIAL, dtype=self.dtype, device=self.device)
        return langevin_dynamics(
            self.score_fn,
            x,
            n_steps=n_steps,
            thin=thin,
            burn_in=burn_in,
            return_trajectory=return_trajectory,
            return_diagnostics=return_diagnostics,
            seed=seed,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            progress=progress,
            **self._arguments,
        )
