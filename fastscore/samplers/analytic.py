"""Scores with a fast path on a CPU: targets whose chains run in compiled code, networks in cache-sized tiles."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

from fastscore import _checks
from fastscore.ops._cpu_chain import Mixture
from fastscore.ops._cpu_forward import forward
from fastscore.reader import read
from fastscore.targets import GaussianMixture

_ROWS = 1 << 15  # below these a network's own forward pass is as fast


def evaluate(score_fn: _checks.Score, x: Tensor, cond: Tensor | None) -> Tensor:
    """The score at x, checked; without a graph, tile by tile where it is a module that is recognised as an MLP."""
    owner = getattr(score_fn, "__self__", score_fn)
    if isinstance(owner, nn.Module) and len(x) >= _ROWS and x.device.type == "cpu" and not torch.is_grad_enabled():
        reading = read(score_fn, x, cond) if x.dtype in (torch.float32, torch.float64) else None
        if reading is not None and reading.kind == "score" and all(w.dtype == x.dtype for w in reading.mlp.weights):
            flat = x.flatten(1)
            score = forward(reading.mlp, flat if reading.in_scale is None else reading.in_scale * flat, reading.shifts)
            score = score if reading.out_scale is None else score.mul_(reading.out_scale)
            return (score if reading.skip is None else score.addcmul_(reading.skip, flat)).view(x.shape)
    return _checks.evaluate(score_fn, x, cond)


def mixture(score_fn: Any, x: Tensor) -> Mixture | None:
    """The constants of the mixture whose own `score` this is, if its chains can run from float32 x on a CPU."""
    owner = getattr(score_fn, "__self__", None)
    if not isinstance(score_fn, types.MethodType) or not isinstance(owner, GaussianMixture):
        return None
    if score_fn.__func__ is not GaussianMixture.score or x.dtype != torch.float32 or x.device.type != "cpu":
        return None
    if x.dim() != 2 or x.shape[1] != owner.dim:
        return None
    means, inverse, log_scale = (constant.float() for constant in owner._exact)
    inverse = inverse.expand(-1, owner.dim, -1)
    return Mixture(
        means.squeeze(-1).contiguous(),
        (inverse.squeeze(-1) if inverse.shape[-1] == 1 else inverse).contiguous(),
        log_scale.squeeze(-1).contiguous(),
    )
