"""The fast path that a recognised network takes: its score, traces, Jacobian, energy and losses.

`fastscore._plan` says what is to be computed; `ops.mlp` has the closed forms. Here lies what is between them: which
form is taken, and the scalings around the network, `s(x) = b net(a x) + c x`, so `tr(C J) = a b tr(C J_net) + c tr C`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastscore import _checks
from fastscore._forms import Probes as Directions
from fastscore._forms import cut, run, weighted
from fastscore._plan import Plan, Request, read
from fastscore.ops import mlp as ops
from fastscore.reader import Reading
from fastscore.reference import mlp as reference

_PIECE = 2**26  # bytes that the tangents of one piece may take


class Found(NamedTuple):
    """Score `[B, *event]`, its traces `[K, B]` (K = 1 if exact), and the energy `[B]` of an energy."""

    score: Tensor
    traces: Tensor
    energy: Tensor | None


def score(reading: Reading, x: Tensor, how: Request, exact: bool) -> Found:
    """The score with its trace or estimates."""
    if reading.is_energy:
        return energy(reading, x, how, exact)
    rows = _flat(x)
    scaled = rows if reading.in_scale is None else reading.in_scale * rows
    weight = None if how.weight is None else how.weight.to(x.dtype)
    if exact:
        value, trace = _score_and_trace(reading, scaled, weight, how)
        traces, directions = trace.unsqueeze(0), None
    else:
        directions = how.directions()
        probes = how.probes(directions.seed)
        value, quadratic = ops.score_and_quadratic(reading.mlp, scaled, reading.shifts, probes=probes, weight=weight)
        traces = quadratic.t()
    for scale in (reading.in_scale, reading.out_scale):
        traces = traces if scale is None else scale.squeeze(1) * traces
    value = value if reading.out_scale is None else reading.out_scale * value
    if reading.skip is not None:
        value = value + reading.skip * rows
        traces = traces + reading.skip.squeeze(1) * _identity_forms(rows, weight, directions, how.n_probes)
    return Found(value.reshape(x.shape), traces, None)


def jacobian(reading: Reading, x: Tensor, chunk_size: int | None) -> Tensor:
    """`ds/dx` of a score, `[B, D, D]`."""
    rows = _flat(x)
    scaled = rows if reading.in_scale is None else reading.in_scale * rows

    def piece(x: Tensor, *shifts: Tensor | None) -> tuple[Tensor]:
        return (reference.score_and_jacobian(reading.mlp, x, shifts)[1],)

    (total,) = _in_pieces(piece, _rows(reading, x, chunk_size), scaled, *reading.shifts)
    for scale in (reading.in_scale, reading.out_scale):
        total = total if scale is None else scale.unsqueeze(2) * total
    if reading.skip is None:
        return total
    return total + reading.skip.unsqueeze(2) * torch.eye(rows.shape[1], dtype=x.dtype, device=x.device)


def energy(reading: Reading, x: Tensor, how: Request, exact: bool) -> Found:
    """The energy, its score and the divergence of that or its estimates."""
    rows = _flat(x)
    scaled = rows if reading.in_scale is None else reading.in_scale * rows
    probes = None if exact else how.probes()
    value, gradient, laplacian = ops.energy_terms(reading.mlp, scaled, reading.shifts, probes=probes)
    traces = -laplacian.unsqueeze(0) if exact else -laplacian.t()
    if reading.in_scale is not None:
        gradient, traces = reading.in_scale * gradient, reading.in_scale.squeeze(1).square() * traces
    if reading.out_scale is not None:
        outer = reading.out_scale.squeeze(1)
        value, gradient, traces = outer * value, reading.out_scale * gradient, outer * traces
    return Found(gradient.reshape(x.shape), traces, value)


def implicit_loss(plan: Plan, x: Tensor, how: Request, share: float) -> Tensor | None:
    """`share sum_b (1/2 |s_b|^2 + tr_b)` with its gradients computed on the way, or None for the way by terms."""
    reading = plan.reading
    if reading is None or not reading.is_plain:
        return None
    rows, weights = _flat(x), {"square": share / 2, "trace": share}
    probes = None if plan.exact else how.probes()
    return ops.implicit_loss(reading.mlp, rows, reading.shifts, probes=probes, energy=reading.is_energy, **weights)[0]


def score_alone(fn: _checks.Score, x: Tensor, cond: Any) -> Tensor | None:
    """The score where its gradients take compiled passes, or None."""
    reading = _plain_reading(fn, x, cond)
    if reading is None:
        return None
    found = ops.score(reading.mlp, _flat(x), reading.shifts, energy=reading.is_energy)
    return None if found is None else found.view(x.shape)


def denoising_loss(
    fn: _checks.Score,
    x: Tensor,
    cond: Any,
    level: float | Tensor,
    *,
    weigh: bool,
    share: float,
    seed: int,
    first_chain: int,
) -> Tensor | None:
    """`share sum_b 1/2 |level s(x + level e) + e|^2` by compiled passes that make noise and gradients, or None."""
    reading = _plain_reading(fn, x, cond)
    if reading is None:
        return None
    flat = level.reshape(-1, 1) if isinstance(level, Tensor) else level
    return ops.denoising_loss(
        reading.mlp, _flat(x), reading.shifts, level=flat, weigh=weigh, square=share / 2, seed=seed,
        first_chain=first_chain, energy=reading.is_energy,
    )  # fmt: skip


def _plain_reading(fn: _checks.Score, x: Tensor, cond: Any) -> Reading | None:
    """The network that the score is without scales, where compiled passes may take its own gradients, or None."""
    reading = read(fn, x, cond) if ops.denoises(x) else None
    return reading if reading is not None and reading.is_plain else None


def recordable(x: Tensor) -> Tensor:
    """x, or a copy where it was made in inference mode, whose tensors no backward may keep."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not x.is_inference():
        return x
    return x.clone()


def _flat(x: Tensor) -> Tensor:
    return recordable(x).flatten(1)


def piece_rows(reading: Reading, x: Tensor, how: Request) -> int | None:
    """The rows of a piece where D tangents of a network are held, for weights that differ; None where tiles are."""
    per_sample = how.weight is not None and how.weight.dim() == 3
    return _rows(reading, x, how.chunk_size) if per_sample else None


def _score_and_trace(reading: Reading, x: Tensor, weight: Tensor | None, how: Request) -> tuple[Tensor, Tensor]:
    """The network's value and `tr(C J)`."""
    rows = piece_rows(reading, x, how)
    if rows is None:
        return ops.score_and_trace(reading.mlp, x, reading.shifts, weight=weight)

    def piece(x: Tensor, weight: Tensor, *shifts: Tensor | None) -> tuple[Tensor, Tensor]:
        return ops.score_and_trace(reading.mlp, x, shifts, weight=weight)

    value, trace = _in_pieces(piece, rows, x, weight, *reading.shifts)
    return value, trace


def _rows(reading: Reading, x: Tensor, chunk_size: int | None) -> int:
    """Rows few enough for D tangents of every layer to be held."""
    if torch.compiler.is_compiling():
        return len(x)
    each = x.element_size() * reading.mlp.dim * (reading.mlp.dim + 3 * sum(reading.mlp.widths))
    return min(len(x), chunk_size or max(1, _PIECE // each))


def _in_pieces(piece: Callable[..., tuple[Tensor, ...]], rows: int, *tensors: Tensor | None) -> list[Tensor]:
    """`piece(*tensors)` for `rows` rows of the batch at a time, recomputed in the backward."""
    assert tensors[0] is not None
    batch = len(tensors[0])
    if rows >= batch:
        return list(piece(*tensors))
    recorded = torch.is_grad_enabled() and torch._C._functorch.peek_interpreter_stack() is None
    done = [
        run(recorded, piece, *(cut(tensor, batch, first, min(first + rows, batch)) for tensor in tensors))
        for first in range(0, batch, rows)
    ]
    return [torch.cat(parts) for parts in zip(*done, strict=True)]


def _identity_forms(rows: Tensor, weight: Tensor | None, directions: Directions | None, n_probes: int) -> Tensor:
    """`tr C` `[1, 1 or B]`, or along the probes `v' C v` `[K, B]`, so that an estimate is that of the generic way."""
    if directions is None:
        if weight is None:
            return rows.new_full((1, 1), rows.shape[1])
        return weight.diagonal(0, -2, -1).sum(-1).reshape(1, -1)
    v = directions(rows.detach(), 0, 0, n_probes)
    left = v if weight is None else weighted(v, weight)
    return (left * v).sum(2)
