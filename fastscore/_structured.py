"""What a caller asks of a trace, and the fast path that a recognised network takes to it.

`reader.read` says whether a callable is an MLP; `ops.mlp` has the closed forms. Here lies what is between them: which
form is taken, and the scalings around the network, `s(x) = b net(a x) + c x`, so `tr(C J) = a b tr(C J_net) + c tr C`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastscore import _checks, noise, reader
from fastscore._forms import Probes as Directions
from fastscore.ops import mlp as ops

EXACT_FEATURES = 64
"""`trace="auto"` is exact for events of up to this many features where the exact trace costs a tangent a feature."""


@dataclass(frozen=True)
class Request:
    """How a trace is wanted: the arguments that `divergence` and `laplacian` share, under the same names."""

    trace: str
    n_probes: int
    probe: str
    chunk_size: int | None
    seed: int | None
    generator: torch.Generator | None
    weight: Tensor | None = None

    def check(self, name: str, fn: object, x: Tensor) -> None:
        """Refuse what cannot be right, before any work."""
        check(name, fn, x, self.chunk_size)
        _checks.choice("trace", self.trace, ("auto", "exact", "hutchinson"))
        _checks.choice("probe", self.probe, ("rademacher", "normal"))
        _checks.count("n_probes", self.n_probes, minimum=1)
        if self.weight is None:
            return
        _checks.floating("weight", self.weight)
        _checks.same_device("weight", self.weight, "x", x)
        b, d = x.shape[0], features(x)
        if tuple(self.weight.shape) not in ((d, d), (b, d, d)):
            raise ValueError(f"weight must have shape [{d}, {d}] or [{b}, {d}, {d}], got {list(self.weight.shape)}")

    def exact(self, x: Tensor, closed: bool = False) -> bool:
        """Whether the trace is to be exact, `closed` if that costs no tangent a feature."""
        return self.trace == "exact" or (self.trace == "auto" and (closed or features(x) <= EXACT_FEATURES))


class Found(NamedTuple):
    """Score `[B, *event]`, its traces `[K, B]` (K = 1 if exact), the energy `[B]` of an energy, and the method."""

    score: Tensor
    traces: Tensor
    energy: Tensor | None
    method: str


def check(name: str, fn: object, x: Tensor, chunk_size: int | None) -> None:
    """Refuse a function, points or a chunk size that cannot be right."""
    _checks.callable_(name, fn)
    _checks.batch("x", x)
    if chunk_size is not None:
        _checks.count("chunk_size", chunk_size, minimum=1)


def features(x: Tensor) -> int:
    """D, the number of features of an event."""
    return math.prod(x.shape[1:])


def read(fn: _checks.Score, x: Tensor, cond: Any, kinds: tuple[str, ...]) -> reader.Reading | None:
    """The network that fn is, if it is one of these kinds and its sums are in x's own precision."""
    if x.dtype not in (torch.float32, torch.float64):
        return None
    reading = reader.read(fn, x, cond)
    return reading if reading is not None and reading.kind in kinds else None


def score(fn: _checks.Score, x: Tensor, cond: Any, how: Request) -> Found | None:
    """The score with its trace or estimates, or None where fn is to take the generic way."""
    reading = read(fn, x, cond, ("score", "energy_score"))
    if reading is None:
        return None
    if reading.kind == "energy_score":
        return energy(reading, x, how)
    depth = reading.mlp.depth
    rows = x.flatten(1)
    scaled = rows if reading.in_scale is None else reading.in_scale * rows
    weight = None if how.weight is None else how.weight.to(x.dtype)
    if how.exact(x, closed=depth <= 2):
        value, trace = ops.score_and_trace(reading.mlp, scaled, reading.shifts, weight=weight)
        traces, directions, method = trace.unsqueeze(0), None, "closed-form" if depth <= 2 else "tangents"
    else:
        directions = Directions(how.probe, noise.resolve_seed(how.seed, how.generator))
        probes = ops.Probes(directions.seed, how.n_probes, how.probe)
        value, quadratic = ops.score_and_quadratic(reading.mlp, scaled, reading.shifts, probes=probes, weight=weight)
        traces, method = quadratic.t(), "hutchinson-dual"
    for scale in (reading.in_scale, reading.out_scale):
        traces = traces if scale is None else scale.squeeze(1) * traces
    value = value if reading.out_scale is None else reading.out_scale * value
    if reading.skip is not None:
        value = value + reading.skip * rows
        traces = traces + reading.skip.squeeze(1) * _identity_forms(rows, weight, directions, how.n_probes)
    return Found(value.reshape(x.shape), traces, None, method)


def energy(reading: reader.Reading, x: Tensor, how: Request) -> Found | None:
    """The energy, its score and the divergence of that, or None for what the forward Laplacian does not give."""
    if how.weight is not None or reading.skip is not None or not how.exact(x):
        return None
    rows = x.flatten(1)
    scaled = rows if reading.in_scale is None else reading.in_scale * rows
    value, gradient, laplacian = ops.energy_terms(reading.mlp, scaled, reading.shifts)
    if reading.in_scale is not None:
        gradient, laplacian = reading.in_scale * gradient, reading.in_scale.squeeze(1).square() * laplacian
    if reading.out_scale is not None:
        outer = reading.out_scale.squeeze(1)
        value, gradient, laplacian = outer * value, reading.out_scale * gradient, outer * laplacian
    return Found(gradient.reshape(x.shape), -laplacian.unsqueeze(0), value, "forward-laplacian")


def implicit_loss(fn: _checks.Score, x: Tensor, cond: Any, how: Request, share: float) -> Tensor | None:
    """`share sum_b (1/2 |s_b|^2 + tr_b)` with its gradients computed on the way, or None for the way by terms."""
    reading = read(fn, x, cond, ("score", "energy_score"))
    if reading is None or not reading.is_plain:
        return None
    rows, weights = x.flatten(1), {"square": share / 2, "trace": share}
    if reading.kind == "energy_score":
        return ops.energy_loss(reading.mlp, rows, reading.shifts, **weights)[0] if how.exact(x) else None
    probes = None
    if not how.exact(x, closed=reading.mlp.depth <= 2):
        probes = ops.Probes(noise.resolve_seed(how.seed, how.generator), how.n_probes, how.probe)
    return ops.implicit_loss(reading.mlp, rows, reading.shifts, probes=probes, **weights)[0]


def _identity_forms(rows: Tensor, weight: Tensor | None, directions: Directions | None, n_probes: int) -> Tensor:
    """`tr C` `[1, 1 or B]`, or along the probes `v' C v` `[K, B]`, so that an estimate is that of the generic way."""
    if directions is None:
        if weight is None:
            return rows.new_full((1, 1), rows.shape[1])
        return weight.diagonal(0, -2, -1).sum(-1).reshape(1, -1)
    v = directions(rows.detach(), 0, 0, n_probes)
    left = v if weight is None else torch.matmul(v.unsqueeze(2), weight).squeeze(2)
    return (left * v).sum(2)
