"""What the samplers are given, as types: their overloads tell a checker when they return a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import torch
from torch import Tensor

from fastscore.samplers import chain

if TYPE_CHECKING:
    from fastscore import _checks

Diagnosed: TypeAlias = tuple[Tensor, dict[str, Tensor]]
"""Samples and diagnostics."""


class Kept(TypedDict, total=False):
    """What is kept of a run."""

    burn_in: int
    thin: int
    return_trajectory: bool
    checkpoint: chain.Path | None
    checkpoint_every: int
    progress: bool


class Placed(Kept, total=False):
    """Where a run stands among others."""

    first_chain: int
    first_step: int
    on_nonfinite: str


class Random(Placed, total=False):
    """Where its noise comes from."""

    seed: int | None
    generator: torch.Generator | None


class Steps(TypedDict):
    """How many steps, and how long they are."""

    step_size: chain.Schedule
    n_steps: int


class AscentArguments(Steps, Placed, total=False):
    """Of `gradient_ascent`."""

    clamp: tuple[float, float] | None
    cond: Tensor | None


class LangevinArguments(Steps, Random, total=False):
    """Of `langevin_dynamics`."""

    temperature: chain.Schedule
    clamp: tuple[float, float] | None
    cond: Tensor | None


class KineticArguments(Steps, Random, total=False):
    """Of `underdamped_langevin`."""

    friction: float
    temperature: chain.Schedule
    velocity: Tensor | None
    cond: Tensor | None


class MalaArguments(Steps, Random, total=False):
    """Of `mala`."""

    score_fn: _checks.Score | None
    cond: Tensor | None


class Ladder(TypedDict):
    """Its levels and their steps."""

    sigmas: Sequence[float] | Tensor
    n_steps_each: int
    step_size: float


class AnnealedArguments(Ladder, Random, total=False):
    """Of `annealed_langevin_dynamics`."""

    temperature: float
    denoise: bool
    clamp: tuple[float, float] | None
    cond: Tensor | None


class SampleArguments(TypedDict, total=False):
    """Of `LangevinDynamics.sample`, by name only."""

    y: Tensor | None
    model_kwargs: Mapping[str, Any] | None
    seed: int | None
    generator: torch.Generator | None
    burn_in: int
    first_chain: int
    first_step: int
    checkpoint: chain.Path | None
    checkpoint_every: int
    progress: bool
