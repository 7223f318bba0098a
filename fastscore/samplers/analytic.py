"""Scores with a fast path on a CPU: mixtures and networks whose chains run in compiled code, networks in tiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.ops import _cpu_network
from fastscore.ops._cpu_chain import REPAYS, Mixture, expect
from fastscore.ops._cpu_forward import forward
from fastscore.ops._cpu_target import DoubleWell as DoubleWellSource
from fastscore.ops._cpu_target import Source, value
from fastscore.reader import Reading, read
from fastscore.samplers.arguments import same_for_all, target_of
from fastscore.targets import DoubleWell, GaussianMixture

_COMPILED_ROWS = 128  # below these, packing a network's weights for one step costs more than its own forward pass
_TILED_ROWS = 1 << 15  # below these a network's own forward pass is as fast as one in tiles


def evaluate(score_fn: _checks.Score, x: Tensor, cond: Tensor | None) -> Tensor:
    """The score at x, checked; without a graph, in compiled code or tiles where it is recognised as an MLP."""
    if not torch.is_grad_enabled() and (reading := _network(score_fn, x, cond)) is not None:
        flat = x.flatten(1)
        packed = _packed(reading, flat)
        if packed is not None and (score := value(packed, flat)) is not None:
            return score.view(x.shape)
        if len(x) >= _TILED_ROWS and reading.kind == "score":
            score = forward(reading.mlp, flat if reading.in_scale is None else reading.in_scale * flat, reading.shifts)
            score = score if reading.out_scale is None else score.mul_(reading.out_scale)
            return (score if reading.skip is None else score.addcmul_(reading.skip, flat)).view(x.shape)
    return _checks.evaluate(score_fn, x, cond)


def compiled(score_fn: _checks.Score, x: Tensor, cond: Tensor | None) -> Source | None:
    """What compiled code makes the chains from x of, whatever their length; None where it does not.

    A network is read and packed anew at every call: its weights may have changed.
    """
    if x.dim() != 2 or x.dtype != torch.float32:
        return None
    if cond is None and (target := _target(score_fn, "score", x)) is not None:
        return target
    reading = _network(score_fn, x, cond)
    return None if reading is None else _packed(reading, x)


def level(score_fn: _checks.Score, x: Tensor, sigma: float) -> Mixture | _cpu_network.Network | None:
    """A smoothed mixture, or a network told its noise level, as `compiled`."""
    if x.dim() != 2 or x.dtype != torch.float32:
        return None
    if (mixture := _owner(score_fn, "noisy_score", x)) is not None:
        return _mixture(mixture.smoothed(sigma))
    reading = _network(score_fn, x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device))
    return None if reading is None else _packed(reading, x, 1 if same_for_all(reading) else None)


def density(log_prob: Any, score_fn: Any, x: Tensor) -> Source | None:
    """Where `log_prob` is a target's own, or a network, and the score that one's own if it is given, as `compiled`."""
    if x.dim() != 2 or x.dtype != torch.float32:
        return None
    if (target := _target(log_prob, "log_prob", x)) is not None:
        own = score_fn is None or _owner(score_fn, "score", x) is log_prob.__self__
        return target if own else None
    if (found := _log_density(log_prob, x)) is None or score_fn is None:
        return found
    reading = _network(score_fn, x, None)
    other = None if reading is None else _packed(reading, x)
    return found if isinstance(other, _cpu_network.Network) and found.descends(other) else None


def announce(score_fn: _checks.Score, x: Tensor, cond: Tensor | None, n_steps: int) -> None:
    """Compile now if chains from x repay it.

    Those that run as a whole in compiled code do, whatever their length: a long run and its parts are then the same
    bits.
    """
    expect(x, REPAYS if recognised(score_fn, x, cond) else n_steps * x.numel())


def recognised(fn: Any, x: Tensor, cond: Tensor | None) -> bool:
    """Whether compiled code may know a score or log density: what it does not, it never will."""
    analytic = any(_owner(fn, name, x) is not None for name in ("score", "noisy_score", "log_prob"))
    return analytic or _read(fn, x, cond) is not None


class Known:
    """Whether compiled code may know a score or log density; asked once, which takes as long as a small step."""

    def __init__(self, fn: Any) -> None:
        self.fn = fn
        self.answer: bool | None = None

    def __call__(self, x: Tensor, cond: Tensor | None = None) -> bool:
        """The answer, first for these arguments."""
        if self.answer is None:
            self.answer = recognised(self.fn, x, cond)
        return self.answer

    def score(self, x: Tensor, cond: Tensor | None) -> Tensor:
        """The score at x, as by `evaluate`."""
        return (evaluate if self(x, cond) else _checks.evaluate)(self.fn, x, cond)


def _network(fn: Any, x: Tensor, cond: Tensor | None) -> Reading | None:
    """A network that gives a score, if its chains are worth compiled code."""
    reading = _read(fn, x, cond)
    return reading if reading is not None and reading.gives_score else None


def _read(fn: Any, x: Tensor, cond: Tensor | None) -> Reading | None:
    """A network, be what it gives a score or an energy, if its chains are worth compiled code."""
    if len(x) < _COMPILED_ROWS or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return None
    return read(fn, x, cond)


def _log_density(log_prob: Any, x: Tensor) -> _cpu_network.Network | None:
    """A network that gives log p, `[B]`, as the energy `-log p`."""
    reading = _read(log_prob, x, None)
    if reading is None or reading.gives_score or reading.in_scale is not None or reading.skip is not None:
        return None
    *shifts, last = reading.shifts
    own_rows = [t is not None and len(t) > 1 and t.stride(0) != 0 for t in (last, reading.out_scale, *shifts)]
    if any(own_rows[:2]) or log_prob(x if any(own_rows) else x[:1]).dim() != 1:
        return None
    *weights, top = reading.mlp.weights
    *biases, base = reading.mlp.biases
    with torch.no_grad():
        scale = -x.new_ones(1) if reading.out_scale is None else -reading.out_scale[0]
        constant = sum((t.reshape(-1)[:1] for t in (base, last) if t is not None), x.new_zeros(1))
        energy = replace(reading.mlp, weights=(*weights, scale * top), biases=(*biases, scale * constant))
    return _cpu_network.pack(energy, x, (*shifts, None), energy=True)


def _packed(reading: Reading, x: Tensor, rows: int | None = None) -> _cpu_network.Network | None:
    shifts = tuple(None if shift is None else shift[:rows] for shift in reading.shifts)
    scales = tuple(None if scale is None else scale[:rows] for scale in reading.scales)
    return _cpu_network.pack(reading.mlp, x, shifts, scales, energy=reading.is_energy)


def _owner(method: Any, name: str, x: Tensor) -> Any:
    """The target in closed form whose method `name` this is, if its chains can run from float32 x on a CPU."""
    return target_of(method, name, x) if x.dtype == torch.float32 and x.device.type == "cpu" else None


def _target(method: Any, name: str, x: Tensor) -> Mixture | DoubleWellSource | None:
    owner = _owner(method, name, x)
    if isinstance(owner, DoubleWell):
        return DoubleWellSource(owner.dim, owner.barrier, owner._log_normaliser)
    return None if owner is None else _mixture(owner)


def _mixture(target: GaussianMixture) -> Mixture:
    """The constants of a mixture for the kernels."""
    means, inverse, log_scale = (constant.float() for constant in target._exact)
    inverse = inverse.expand(-1, target.dim, -1)
    return Mixture(
        means.squeeze(-1).contiguous(),
        (inverse.squeeze(-1) if inverse.shape[-1] == 1 else inverse).contiguous(),
        log_scale.squeeze(-1).contiguous(),
    )
