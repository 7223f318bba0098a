"""Scores that a whole-chain kernel takes: analytic targets, networks recognised as MLPs, Triton scores of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscore.ops import chain as ops
from fastscore.reader import Reading, read
from fastscore.samplers.arguments import same_for_all, target_of
from fastscore.targets import GaussianMixture


@dataclass(frozen=True)
class Found:
    """What a score was found to be, once in a chain: looking costs more than a step."""

    source: ops.Source | None = None
    known: bool = True


UNKNOWN = Found(known=False)


def source(score_fn: Any, x: Tensor, cond: Any) -> ops.Source | None:
    """What `score_fn` at `cond` is to the kernels, or None where they do not run or do not know it."""
    if not ops.available(x):
        return None
    if isinstance(score_fn, ops.TritonScore):
        return score_fn if cond is None else None
    target = target_of(score_fn, "score", x) if cond is None else None
    if target is not None:
        return _mixture(target) if isinstance(target, GaussianMixture) else ops.DoubleWell(target.barrier)
    reading = _network(score_fn, x, cond)
    if reading is None:
        return None
    if cond is None and same_for_all(reading):
        return ops.Network(reading.mlp, reading.shifts, reading.scales, reading.is_energy)
    rows = tuple(None if scale is None else scale.expand(len(x), 1).contiguous() for scale in reading.scales)
    return ops.Network(reading.mlp, reading.shifts, rows, reading.is_energy, per_chain=True)  # type: ignore[arg-type]


def ladder(score_fn: Any, x: Tensor, sigmas: Sequence[float]) -> ops.Source | None:
    """A mixture with noise added, or a network told its noise level, with one row of constants for each of `sigmas`."""
    if not ops.available(x) or len(x) == 0:
        return None
    if isinstance(target := target_of(score_fn, "noisy_score", x), GaussianMixture):
        return _noisy(target, sigmas)
    found = [_network(score_fn, x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)) for sigma in sigmas]
    readings = [reading for reading in found if reading is not None]
    if len(readings) < len(sigmas) or not all(map(same_for_all, readings)):
        return None
    shifts = tuple(map(_stacked, zip(*(reading.shifts for reading in readings), strict=True)))
    scales = tuple(map(_stacked, zip(*(reading.scales for reading in readings), strict=True)))
    return ops.Network(readings[0].mlp, shifts, scales, readings[0].is_energy)  # type: ignore[arg-type]


_CONDITION = 1e5  # of a covariance, above which x' P x has fewer digits than |L^-1 x|^2


def _mixture(target: GaussianMixture) -> ops.Mixture | None:
    """As a kernel takes it; None where its covariances are too close to singular for that."""
    means, inverse, constants = target._exact
    precisions = inverse.squeeze(-1).square() if inverse.shape[-1] == 1 else inverse.mT @ inverse
    if precisions.shape[-1] > 1 and precisions.dim() == 3 and bool((torch.linalg.cond(precisions) > _CONDITION).any()):
        return None
    return ops.Mixture(
        means.squeeze(-1), precisions.expand(-1, *[target.dim] * (precisions.dim() - 1)), constants.squeeze(-1)
    )


def _noisy(target: GaussianMixture, sigmas: Sequence[float]) -> ops.Mixture | None:
    found = [_mixture(target.smoothed(sigma)) for sigma in sigmas]
    levels = [level for level in found if level is not None]
    if len(levels) < len(sigmas):
        return None
    precisions, constants = zip(*((level.precisions, level.constants) for level in levels), strict=True)
    return ops.Mixture(levels[0].means, torch.stack(precisions), torch.stack(constants))


def _network(score_fn: Any, x: Tensor, cond: Any) -> Reading | None:
    if x.dim() != 2 or x.dtype != torch.float32:
        return None
    reading = read(score_fn, x, cond)
    return reading if reading is not None and reading.gives_score else None


def _stacked(rows: Sequence[Tensor | None]) -> Tensor | None:
    """The first row at each level; None where no level has one."""
    kept = [row[:1] for row in rows if row is not None]
    return torch.cat(kept) if kept else None
