"""Scores with a fast path on a CPU: mixtures and networks whose chains run in compiled code, networks in tiles."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.ops import _cpu_network
from fastscore.ops._cpu_chain import REPAYS, Mixture, expect
from fastscore.ops._cpu_forward import forward
from fastscore.reader import Reading, read
from fastscore.targets import GaussianMixture

_COMPILED_ROWS = 128  # below these, packing a network's weights for one step costs more than its own forward pass
_TILED_ROWS = 1 << 15  # below these a network's own forward pass is as fast as one in tiles


def evaluate(score_fn: _checks.Score, x: Tensor, cond: Tensor | None) -> Tensor:
    """The score at x, checked; without a graph, in compiled code or tiles where it is recognised as an MLP."""
    if not torch.is_grad_enabled() and (reading := _network(score_fn, x, cond)) is not None:
        flat = x.flatten(1)
        packed = _packed(reading, flat)
        if packed is not None and (score := packed.value(flat)) is not None:
            return score.view(x.shape)
        if len(x) >= _TILED_ROWS:
            score = forward(reading.mlp, flat if reading.in_scale is None else reading.in_scale * flat, reading.shifts)
            score = score if reading.out_scale is None else score.mul_(reading.out_scale)
            return (score if reading.skip is None else score.addcmul_(reading.skip, flat)).view(x.shape)
    return _checks.evaluate(score_fn, x, cond)


def compiled(score_fn: _checks.Score, x: Tensor, cond: Tensor | None) -> Mixture | _cpu_network.Network | None:
    """What compiled code makes the chains from x of, whatever their length; None where it does not.

    A network is read and packed anew at every call: its weights may have changed.
    """
    if x.dim() != 2 or x.dtype != torch.float32:
        return None
    if cond is None and (target := _mixture(score_fn, x)) is not None:
        return target
    reading = _network(score_fn, x, cond)
    return None if reading is None else _packed(reading, x)


def level(score_fn: _checks.Score, x: Tensor, sigma: float) -> _cpu_network.Network | None:
    """A network told its noise level, the same for all rows, as `compiled`."""
    if x.dim() != 2 or x.dtype != torch.float32:
        return None
    reading = _network(score_fn, x, torch.full((len(x),), sigma, dtype=x.dtype))
    return None if reading is None else _packed(reading, x, rows=1)


def announce(score_fn: _checks.Score, x: Tensor, cond: Tensor | None, n_steps: int) -> None:
    """Compile now if chains from x repay it.

    Those that run as a whole in compiled code do, whatever their length: a long run and its parts are then the same
    bits.
    """
    whole = _mixture(score_fn, x) is not None or _network(score_fn, x, cond) is not None
    expect(x, REPAYS if whole else n_steps * x.numel())


def _network(score_fn: Any, x: Tensor, cond: Tensor | None) -> Reading | None:
    if len(x) < _COMPILED_ROWS or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return None
    reading = read(score_fn, x, cond)
    return reading if reading is not None and reading.kind == "score" else None


def _packed(reading: Reading, x: Tensor, rows: int | None = None) -> _cpu_network.Network | None:
    shifts = tuple(None if shift is None else shift[:rows] for shift in reading.shifts)
    scales = (reading.in_scale, reading.out_scale, reading.skip)
    return _cpu_network.pack(reading.mlp, x, shifts, [None if c is None else c[:rows] for c in scales])


def _mixture(score_fn: Any, x: Tensor) -> Mixture | None:
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
