"""Langevin dynamics as an object, called as other packages call theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.noise import Stream, normal
from fastscore.samplers import chain
from fastscore.samplers.arguments import as_score, check_clamp, prepare
from fastscore.samplers.finite import POLICIES
from fastscore.samplers.langevin import langevin_dynamics
from fastscore.samplers.signatures import Diagnosed, SampleArguments

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class LangevinDynamics:
    """Langevin dynamics as an object: fix the score and the step once, then call `sample`.

    Arguments stand where torchebm's class of this name has them.

    Args:
        score_fn: s = grad log p, as in `langevin_dynamics`; or any object with a `score` method.
        step_size: a, as in `langevin_dynamics`.
        noise_scale: sqrt(T) > 0, instead of `temperature`: a number, a 0-dim tensor, or a function of the step number.
        decay: 0, for torchebm's sake.
        clamp: (low, high), applied to the state after every step.
        dtype: of the initial state that `sample` makes when it is given none.
        device: likewise.
        integrator: None or "euler_maruyama", which is the step that is made.
        temperature: T, as in `langevin_dynamics`.
        cond: handed to `score_fn` with every call.
        on_nonfinite: "raise", "freeze" or "ignore".

    Raises:
        TypeError: an argument of a wrong type, by name.
        ValueError: a number outside its range, by name.
    """

    def __init__(
        self,
        score_fn: _checks.Score,
        step_size: chain.Schedule = 1e-3,
        noise_scale: chain.Schedule | None = None,
        decay: float = 0.0,
        clamp: tuple[float, float] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        integrator: str | None = None,
        *,
        temperature: chain.Schedule = 1.0,
        cond: Tensor | None = None,
        on_nonfinite: str = "raise",
    ) -> None:
        chain.schedule("step_size", step_size)
        if noise_scale is not None:
            if not isinstance(temperature, (int, float)) or temperature != 1:
                raise ValueError("give noise_scale or temperature, its square, not both")
            temperature = _squared(noise_scale)
        chain.schedule("temperature", temperature, positive=False)
        _checks.real("decay", decay)
        if decay != 0:
            raise ValueError(f"decay must be 0, got {decay}: for dynamics with friction use underdamped_langevin")
        if integrator not in (None, "euler_maruyama"):
            raise ValueError(
                f"integrator must be None or 'euler_maruyama', got {integrator!r}: other steps are those of "
                "underdamped_langevin and mala"
            )
        _checks.choice("on_nonfinite", on_nonfinite, POLICIES)
        _checks.floating_dtype("dtype", dtype)
        _checks.device("device", device)
        self.score_fn, self.clamp, self.dtype, self.device = as_score(score_fn), check_clamp(clamp), dtype, device
        self._arguments: dict[str, Any] = {
            "step_size": step_size,
            "temperature": temperature,
            "cond": cond,
            "on_nonfinite": on_nonfinite,
        }

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Of what `sample` starts from, and of a network that is the score: `torch.nn.Module.to`."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        self.device, self.dtype = device or self.device, dtype or self.dtype
        if isinstance(network := getattr(self.score_fn, "__self__", self.score_fn), torch.nn.Module):
            network.to(*args, **kwargs)
        return self

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
        reset_schedulers: bool = ...,
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
        reset_schedulers: bool = ...,
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
        reset_schedulers: bool = ...,
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
        reset_schedulers: bool = True,
        *,
        y: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        burn_in: int = 0,
        first_chain: int = 0,
        first_step: int = 0,
        checkpoint: chain.Path | None = None,
        checkpoint_every: int = 1000,
        progress: bool = False,
    ) -> chain.Output:
        """Run the chains.

        Args:
            x: starting points `[B, *event]`; if None, `n_samples` draws of N(0, I) of shape `dim`.
            dim: event shape (an int for a vector), needed when x is None, and not looked at otherwise.
            n_steps: how many steps to make.
            n_samples: how many chains, when x is None.
            thin: keep every thin-th state after the burn-in: (n_steps - burn_in) // thin of them.
            return_trajectory: return the kept states `[B, n_kept, *event]`.
            return_diagnostics: return (samples, {"mean", "var", ...}), see `langevin_dynamics`.
            reset_schedulers: True: a function of the step number starts at 0 with every call.
            y: `cond` of this call, where the sampler has none.
            model_kwargs: handed to `score_fn` by name with every call.
            seed: an int in [0, 2^64), for the initial state and the noise.
            generator: where to draw the seed from instead.
            burn_in: steps before the first is counted for keeping.
            first_chain: the global index of row 0.
            first_step: the number of the first step, to go on from x with the same seed.
            checkpoint: a file the run is written to and goes on from, as in `langevin_dynamics`.
            checkpoint_every: steps between two writings.
            progress: show a progress bar.

        Returns:
            The last state, or as the two flags say.

        Raises:
            TypeError: an argument of a wrong type, by name.
            ValueError: x and dim are both missing, or a number is outside its range.
        """
        kept: dict[str, Any] = {
            "n_steps": n_steps,
            "thin": thin,
            "burn_in": burn_in,
            "first_chain": first_chain,
            "first_step": first_step,
            "return_trajectory": return_trajectory,
            "return_diagnostics": return_diagnostics,
            "checkpoint": checkpoint,
            "checkpoint_every": checkpoint_every,
            "progress": progress,
        }
        score_fn, arguments = self._at(y, model_kwargs)
        _checks.flag("reset_schedulers", reset_schedulers)
        if not reset_schedulers and (callable(arguments["step_size"]) or callable(arguments["temperature"])):
            raise ValueError("reset_schedulers must be True, got False: to go on, give first_step=")
        if x is None:
            if dim is None:
                raise ValueError("give x (starting points) or dim (the shape of an event), got neither")
            event = dim if isinstance(dim, Sequence) else (dim,)
            shape = (_checks.count("n_samples", n_samples), *(_checks.count("dim", d) for d in event))
            like = torch.empty(shape, dtype=self.dtype, device=self.device)
            prepare(score_fn, like, first_chain, **{name: arguments[name] for name in ("step_size", "temperature")})
            seed, generator = chain.Run(**kept).seeded(seed, generator).seed, None
            drawn: dict[str, Any] = {"seed": seed, "stream": Stream.INITIAL, "first_chain": first_chain}
            x = normal(shape, dtype=self.dtype, device=self.device, **drawn)
        made: chain.Output = langevin_dynamics(score_fn, x, seed=seed, generator=generator, **kept, **arguments)
        return made

    def _at(self, y: Tensor | None, model_kwargs: Mapping[str, Any] | None) -> tuple[_checks.Score, dict[str, Any]]:
        """The score at the conditions of one call, and the arguments of the sampler for it."""
        if model_kwargs is not None and not isinstance(model_kwargs, Mapping):
            raise TypeError(f"model_kwargs must be a dict, got {model_kwargs!r}")
        arguments = self._arguments | {"clamp": check_clamp(self.clamp)}
        if y is not None:
            if arguments["cond"] is not None or "y" in (model_kwargs or {}):
                raise ValueError("give a condition once: y, cond of the sampler, or model_kwargs['y']")
            arguments["cond"] = y
        return (partial(self.score_fn, **model_kwargs) if model_kwargs else self.score_fn), arguments


def _squared(noise_scale: chain.Schedule) -> chain.Schedule:
    """The temperature of a scale of the noise."""
    scale = chain.schedule("noise_scale", noise_scale)
    return (lambda k: scale(k) * scale(k)) if callable(noise_scale) else noise_scale * noise_scale
